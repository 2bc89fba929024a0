import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.touchstone.reproduce.pairs_of_runs import claim, write_claims
from touchstone.analysis.results import PLAN
from touchstone.experiment import is_point, load_experiments
from touchstone.reproduce.claims import CLAIMS_NAME, ClaimClass, load_claims
from touchstone.reproduce.errors import ClaimsError
from touchstone.schemas import PUBLISHED, schema_text

REPOSITORY = Path(__file__).resolve().parents[3]
PAPERS = sorted((REPOSITORY / "paper").rglob(CLAIMS_NAME))
SPEED = claim("absolute", metric="total_time")


def refusal(folder, *claims):
    write_claims(folder, *claims)
    with pytest.raises(ClaimsError) as caught:
        load_claims(folder / CLAIMS_NAME)
    return str(caught.value)


class TestThePapersClaims:
    def test_they_can_be_read_and_cover_every_class_and_every_test_of_a_committed_run(self):
        claims = [one for path in PAPERS for one in load_claims(path)]
        compared = {"5.1"} if (REPOSITORY / "paper" / "peers" / "ledger.jsonl").exists() else set()
        assert {one.test_id for one in claims if not is_point(one.test_id)} == {*PLAN} - {"5.1"} | compared
        assert {one.test_id for one in claims} <= {*PLAN, *(each.plan_id for each in load_experiments())}
        assert {one.claim_class for one in claims} == set(ClaimClass)

    def test_they_fit_the_published_schema(self):
        schema = json.loads(schema_text(PUBLISHED["claims"]))
        for path in PAPERS:
            jsonschema.Draft202012Validator(schema).validate(yaml.safe_load(path.read_text(encoding="utf-8")))

    def test_every_id_begins_with_its_test(self):
        assert all(one.id.startswith(one.test_id + "-") for path in PAPERS for one in load_claims(path))


class TestBadFiles:
    def test_broken_yaml_is_refused_with_its_line(self, tmp_path):
        path = tmp_path / CLAIMS_NAME
        path.write_text("claims:\n  - id: one\n    text: {en: [\n")
        with pytest.raises(ClaimsError, match=r"claims\.yaml, line 4: this is no YAML"):
            load_claims(path)

    def test_a_missing_file_is_named_with_the_remedy(self, tmp_path):
        with pytest.raises(ClaimsError, match="does not exist; --against names the folder"):
            load_claims(tmp_path / CLAIMS_NAME)

    def test_a_file_that_is_no_text_is_refused(self, tmp_path):
        path = tmp_path / CLAIMS_NAME
        path.write_bytes(b"claims: \xff")
        with pytest.raises(ClaimsError, match="no UTF-8 text"):
            load_claims(path)

    @pytest.mark.parametrize("text", ["", "[]", "claims: []", "claims: 3", "claims:\n  - 7\n"])
    def test_a_file_without_claims_is_refused(self, tmp_path, text):
        path = tmp_path / CLAIMS_NAME
        path.write_text(text)
        with pytest.raises(ClaimsError, match=r"claims\.yaml: "):
            load_claims(path)


class TestBadClaims:
    def test_the_same_id_twice_is_refused(self, tmp_path):
        assert "the id 1.1-absolute is given to more than one claim" in refusal(tmp_path, SPEED, SPEED)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"metric": "warp_factor"}, "metric 'warp_factor' is unknown; known are activation_memory"),
            ({"test_id": "9.9"}, "test '9.9' is unknown; the tests are"),
            ({"class": "rumour"}, "claim '1.1-absolute'.class: Input should be 'exact', 'identity'"),
            ({"class": "rumour"}, "'absolute' or 'shape', not 'rumour'"),
            ({"metric": "total_tme"}, "did you mean total_time or"),
            ({"metric": None}, "a claim of class 'absolute' needs metric"),
            ({"direction": "higher"}, "a claim of class 'absolute' has no direction; remove it"),
            ({"expected": 12}, "claim '1.1-absolute'.expected: there is no such key; leave it away"),
            ({"metrik": "total_time"}, ".metrik: there is no such key; leave it away; did you mean metric?"),
            ({"text": {"en": "Makes 500 tokens.", "zh": "快"}}, "its text types a number"),
            ({"text": {"en": "Fast."}}, "claim '1.1-absolute'.text.zh: Field required"),
            ({"text": {"en": " ", "zh": "快"}}, "claim '1.1-absolute'.text.en"),
            ({"id": "Two words"}, "claim 'Two words'.id"),
            ({"class": "shape", "metric": None, "ascending": [{"metric": "total_time"}]}, "an order needs two"),
        ],
    )
    def test_each_fault_names_the_claim_and_the_value(self, tmp_path, fields, message):
        assert message in refusal(tmp_path, SPEED | fields)

    def test_every_fault_is_told_at_once(self, tmp_path):
        text = refusal(tmp_path, SPEED | {"metric": "a"}, SPEED | {"id": "b", "metric": "c"})
        assert "'a'" in text
        assert "'c'" in text

    def test_a_point_of_an_order_must_be_a_known_metric(self, tmp_path):
        shape = claim("shape", ascending=[{"metric": "total_time"}, {"metric": "total_tim"}])
        assert "metric 'total_tim' is unknown" in refusal(tmp_path, shape)
