"""Write the JSON Schemas again after a change of the records: `python tools/export_schemas.py`."""

import argparse
from pathlib import Path

from touchstone.schemas import export_schemas

if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    for path in export_schemas(Path(__file__).resolve().parents[1] / "schemas"):
        print(path.name)
