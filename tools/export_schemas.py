"""Write the JSON Schemas again after a change of the records: `python tools/export_schemas.py`."""

from pathlib import Path

from touchstone.schemas import export_schemas

if __name__ == "__main__":
    for path in export_schemas(Path(__file__).resolve().parents[1] / "schemas"):
        print(path.name)
