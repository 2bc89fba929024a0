import json
from pathlib import Path

import jsonschema
import pytest

from touchstone.ledger import Ledger
from touchstone.records import EntryKind, RunEvent
from touchstone.schemas import PUBLISHED, schema_text

FOLDER = Path(__file__).resolve().parents[2] / "schemas"


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_committed_schema_is_the_one_of_the_records(name):
    """After a change of the records run `python tools/export_schemas.py`."""
    assert (FOLDER / f"{name}.schema.json").read_text() == schema_text(PUBLISHED[name])


def test_no_schema_is_left_over():
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.schema.json" for name in PUBLISHED}


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_schema_is_valid_and_refuses_unknown_fields(name):
    schema = json.loads(schema_text(PUBLISHED[name]))
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["additionalProperties"] is False


def test_a_ledger_line_fits_its_schema_and_a_changed_one_does_not(tmp_path):
    with Ledger.create(tmp_path / "ledger.jsonl") as ledger:
        ledger.append(EntryKind.EVENT, RunEvent(event="started", at="now", detail=None))
    line = json.loads((tmp_path / "ledger.jsonl").read_text())
    validator = jsonschema.Draft202012Validator(json.loads(schema_text(PUBLISHED["ledger_entry"])))
    validator.validate(line)
    assert not validator.is_valid(line | {"sha256": "short"})
