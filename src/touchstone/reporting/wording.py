"""The hash of what a report's words come from, beside the ledger: its templates and the bench files' questions.

A report names it, so that one that was made by other words says so, and is not taken for one that was changed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
FOLDERS = ("bench", "templates")
SUFFIXES = frozenset({".py", ".j2", ".toml", ".html", ".css", ".js"})


def wording_sha256(repository: Path = REPOSITORY) -> str:
    """Hash names and contents of all templates and bench files, in the order of their names."""
    digest = hashlib.sha256()
    for file in wording_files(repository):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(repository).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def wording_files(repository: Path = REPOSITORY) -> list[Path]:
    """List the files that are hashed."""
    found = (path for folder in FOLDERS for path in (repository / folder).rglob("*"))
    return sorted(path for path in found if path.suffix in SUFFIXES and "__pycache__" not in path.parts)
