"""The published JSON Schemas, generated from the records."""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import TYPE_CHECKING

from touchstone.canonical import atomic_write
from touchstone.records import CodeMetrics, Environment, LedgerEntry, Record, Result, RunPlan, Trace
from touchstone.reproduce.claims import Claims

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PUBLISHED: Mapping[str, type[Record]] = MappingProxyType(
    {
        "claims": Claims,
        "code_metrics": CodeMetrics,
        "environment": Environment,
        "ledger_entry": LedgerEntry,
        "result": Result,
        "run_plan": RunPlan,
        "trace": Trace,
    }
)


def schema_text(record: type[Record]) -> str:
    """Return the JSON Schema of a record as it is read back from a file, with a stable order of keys."""
    schema = record.model_json_schema(mode="validation")
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(dialect | schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def export_schemas(directory: Path) -> tuple[Path, ...]:
    """Write one `<name>.schema.json` for every published record and return the paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, record in PUBLISHED.items():
        path = directory / f"{name}.schema.json"
        atomic_write(path, schema_text(record).encode())
        paths.append(path)
    return tuple(paths)
