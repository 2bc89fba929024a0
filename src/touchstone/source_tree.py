"""Which commit a source tree is, where git is not: by the stamp of `git archive`, and by git's own hash of the files.

`git archive` fills in commit and tree in `.source-commit`. The hash is worked out again from the files, so that a tree
that was changed after it was unpacked does not pass for its commit. (Git's object format: gitformat-pack, git-mktree.)
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

STAMP = ".source-commit"
_TEMPLATE = b"commit $Format:%H$\ntree $Format:%T$\n"
_FILLED_IN = re.compile(rb"commit ([0-9a-f]{40})\ntree ([0-9a-f]{40})\n")


@dataclass(frozen=True, slots=True)
class Stamp:
    """What `git archive` wrote: the commit, and the hash of its tree."""

    commit: str
    tree: str


def read_stamp(folder: Path) -> Stamp | None:
    """Read the stamp of an unpacked archive; None where there is none, as in a copy that git did not make."""
    try:
        filled_in = _FILLED_IN.fullmatch((folder / STAMP).read_bytes())
    except OSError:
        return None
    return None if filled_in is None else Stamp(filled_in[1].decode(), filled_in[2].decode())


def tree_hash(folder: Path, without: Path | None = None) -> str:
    """Hash a folder as git does, apart from `without` and from what its .gitignore names; 40 hex digits.

    The stamp counts as it lies in the repository, not filled in.
    """
    return _hash_of_tree(folder, folder, _ignored(folder), without).hex()


def _hash_of_tree(root: Path, folder: Path, ignored: Sequence[str], without: Path | None) -> bytes:
    entries = sorted(_entries(root, folder, ignored, without))
    return _hash(b"tree", b"".join(b"%s %s\0%s" % (mode, name, digest) for _, mode, name, digest in entries))


def _entries(
    root: Path, folder: Path, ignored: Sequence[str], without: Path | None
) -> Iterator[tuple[bytes, bytes, bytes, bytes]]:
    """Yield (place in git's order, mode, name, hash) of everything in a folder; git keeps no empty folder."""
    for path in folder.iterdir():
        is_folder = path.is_dir() and not path.is_symlink()
        if path == without or _is_ignored(path.relative_to(root), ignored, is_folder=is_folder):
            continue
        name = os.fsencode(path.name)
        if not is_folder:
            yield name, _mode(path), name, _hash(b"blob", _content(root, path))
        elif (digest := _hash_of_tree(root, path, ignored, without)) != _EMPTY_TREE:
            yield name + b"/", b"40000", name, digest


def _mode(path: Path) -> bytes:
    if path.is_symlink():
        return b"120000"
    return b"100755" if path.stat().st_mode & stat.S_IXUSR else b"100644"


def _content(root: Path, path: Path) -> bytes:
    if path.is_symlink():
        return os.fsencode(path.readlink())
    return _TEMPLATE if path == root / STAMP else path.read_bytes()


def _hash(kind: bytes, content: bytes) -> bytes:
    header = b"%s %d\0" % (kind, len(content))
    return hashlib.sha1(header + content, usedforsecurity=False).digest()


_EMPTY_TREE = _hash(b"tree", b"")


def _ignored(folder: Path) -> list[str]:
    """Read the patterns of .gitignore; of its language those that name a file or folder, anywhere or at the top."""
    try:
        lines = (folder / ".gitignore").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [line for line in lines if line and not line.startswith("#")]


def _is_ignored(relative: Path, patterns: Sequence[str], *, is_folder: bool) -> bool:
    for pattern in patterns:
        candidate = f"/{relative.as_posix()}" if pattern.startswith("/") else relative.name
        if (is_folder or not pattern.endswith("/")) and fnmatchcase(candidate, pattern.rstrip("/")):
            return True
    return False
