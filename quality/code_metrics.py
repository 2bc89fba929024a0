"""Plan 4.1: how large and how complex is the code, and do the tools that say so agree.

Question   How many lines, functions and classes; how complex is a function; which are the worst?
Compare    Python's syntax tree (the referee for counts), radon and lizard, joined on the line of every `def`.
Measure    every *.py file below the given paths; hidden folders and virtual environments are left out.
Derived    averages over functions, one column a tool and never one over both; risk classes; one row a package.
Accept     what each tool reports is exactly what its known habits predict from the syntax tree, for every function.

Run as `python quality/code_metrics.py [PATH...] [--json FILE]`. Exit status: 0 all differences explained, 1 at least
one is not (file:line on standard error), 2 a path is missing, holds no Python, or holds files that cannot be read as
Python (they are listed by name; the other files are measured and the JSON is written all the same).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import platform
import sys
import tokenize
import warnings
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from quality_tables import print_tables
from syntax_tree import Cause, split_lines
from tool_join import ask_lizard, join
from touchstone.canonical import atomic_write
from touchstone.records import CodeMetrics, FileMetrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tool_join import JoinedFile
    from touchstone.records import FunctionMetrics

REPOSITORY = Path(__file__).resolve().parents[1]
DEFAULT_TREES = ("src", "bench", "quality")
ALL_EXPLAINED, UNEXPLAINED, BAD_INPUT = 0, 1, 2


class InputError(ValueError):
    """A path that cannot be measured; the message names it and says what to do."""


def measure(*trees: Path, relative_to: Path) -> CodeMetrics:
    """Measure every Python file below `trees`, each file once; paths in the record are relative to `relative_to`.

    A file that cannot be read as Python gets a row with its error. InputError for a tree that is missing, lies outside
    `relative_to` or holds no Python file.
    """
    files = _find_files(trees, relative_to)
    results = [_measure_file(path, name) for name, path in files.items()]
    rows = tuple(row for row, _ in results)
    joined = tuple(join for _, join in results if join is not None)
    functions = tuple(function for file in joined for function in file.functions)
    return CodeMetrics(
        tree=" ".join(_relative(tree, relative_to) for tree in trees),
        tree_sha256=_hash_tree(files),
        radon_version=version("radon"),
        lizard_version=version("lizard"),
        python_version=platform.python_version(),
        files=rows,
        functions=functions,
        differences=_count_causes(rows, joined, functions),
        unexplained=tuple(text for file in joined for text in file.unexplained),
    )


def _find_files(trees: Iterable[Path], relative_to: Path) -> dict[str, Path]:
    """Python files by their name in the record, in the order of the names."""
    found: dict[str, Path] = {}
    for tree in trees:
        in_tree = {_relative(path, relative_to): path for path in _python_files(tree)}
        if not in_tree:
            raise InputError(f"no Python files: {tree} holds no *.py; name a folder or file that does")
        found |= in_tree
    return dict(sorted(found.items()))


def _python_files(tree: Path) -> Iterator[Path]:
    if not tree.exists():
        raise InputError(f"no such path: {tree}; name an existing folder or Python file")
    if tree.is_file():
        yield from [tree] if tree.suffix == ".py" else []
        return
    for child in sorted(tree.iterdir()):
        if child.is_file() and child.suffix == ".py" and not child.is_symlink():
            yield child
        elif _is_source_folder(child):
            yield from _python_files(child)


def _is_source_folder(path: Path) -> bool:
    """Leave out links (their target is measured where it lies), hidden folders and virtual environments."""
    return path.is_dir() and not (path.is_symlink() or path.name.startswith(".") or (path / "pyvenv.cfg").exists())


def _relative(path: Path, relative_to: Path) -> str:
    try:
        return path.resolve().relative_to(relative_to.resolve()).as_posix()
    except ValueError:
        raise InputError(
            f"{path} lies outside {relative_to}, to which paths are relative; choose a folder around both"
        ) from None


def _measure_file(path: Path, name: str) -> tuple[FileMetrics, JoinedFile | None]:
    content = path.read_bytes()
    text = _read_text(content, "utf-8", errors="replace")
    try:
        source = _decode(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # an invalid escape in a measured file is not our warning
            joined = join(name, source)
    except (SyntaxError, ValueError, RecursionError, tokenize.TokenError) as error:
        return _row(path, name, text, None, error), None
    return _row(path, name, source, joined, None), joined


def _decode(content: bytes) -> str:
    """Decode as Python does: UTF-8 or the encoding that the file declares; every newline becomes a line feed."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    except SyntaxError:
        content.decode()  # where a byte is not UTF-8, naming it says more than this error does
        raise
    return _read_text(content, encoding, errors="strict")


def _read_text(content: bytes, encoding: str, *, errors: str) -> str:
    return io.TextIOWrapper(io.BytesIO(content), encoding, errors).read()


def _row(path: Path, name: str, text: str, joined: JoinedFile | None, error: Exception | None) -> FileMetrics:
    return FileMetrics(
        file=name,
        package=_package(path, name),
        physical_lines=len(split_lines(text)),
        source_lines=joined.source_lines if joined else None,
        functions=len(joined.functions) if joined else None,
        classes=joined.num_classes if joined else None,
        functions_radon=joined.radon.num_functions if joined else None,
        functions_lizard=joined.lizard.num_functions if joined else ask_lizard(name, text).num_functions,
        classes_radon=len(joined.radon.class_lines) if joined else None,
        naive_lines=len(text.split("\n")),
        naive_functions=text.count("def "),
        naive_classes=text.count("class "),
        error=_explain(error) if error else None,
    )


def _explain(error: Exception) -> str:
    match error:
        case UnicodeDecodeError():
            return f"not {error.encoding}: byte 0x{error.object[error.start]:02x} at offset {error.start}"
        case SyntaxError():
            return f"syntax error at line {error.lineno}: {error.msg}"
        case RecursionError():
            return "nested too deeply to be parsed"
        case _:
            return f"not Python: {error}"


def _package(path: Path, name: str) -> str:
    """Name the dotted package of a file; for a script outside any package, its folder."""
    folder = path.resolve().parent
    parts: list[str] = []
    while (folder / "__init__.py").exists():
        parts.insert(0, folder.name)
        folder = folder.parent
    return ".".join(parts) or Path(name).parent.as_posix()


def _hash_tree(files: dict[str, Path]) -> str:
    """SHA-256 over one line a file: its name and the SHA-256 of its bytes."""
    lines = (f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for name, path in files.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _count_causes(
    rows: Iterable[FileMetrics], joined: Iterable[JoinedFile], functions: Iterable[FunctionMetrics]
) -> dict[str, int]:
    counts: Counter[str] = Counter(cause for function in functions for cause in function.difference_causes)
    counts.update(cause.value for file in joined for cause in file.file_causes)
    counts.update(Cause.UNREADABLE.value for row in rows if row.error is not None)
    return dict(sorted(counts.items()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write the JSON; return the exit status."""
    options = _parse(arguments)
    console, errors = Console(), Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        code = measure(*options.paths, relative_to=_common_root(options.paths))
    except InputError as error:
        errors.print(str(error), markup=False)
        return BAD_INPUT
    print_tables(code, console)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(options.json, f"{code.model_dump_json(indent=2)}\n".encode())
    return _verdict(code, errors)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Count lines, functions, classes and complexity; explain where radon and lizard differ.",
        epilog="Exit status: 0 every difference is explained, 1 some are not, 2 input that cannot be measured.",
    )
    defaults = [REPOSITORY / tree for tree in DEFAULT_TREES]
    parser.add_argument(
        "paths", nargs="*", type=Path, default=defaults, metavar="PATH", help=f"default: {' '.join(DEFAULT_TREES)}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record there")
    return parser.parse_args(arguments)


def _common_root(paths: Sequence[Path]) -> Path:
    """Name the folder that paths are relative to: the repository for its own code, or the one around all paths."""
    resolved = [path.resolve() for path in paths]
    if all(path.is_relative_to(REPOSITORY) for path in resolved):
        return REPOSITORY
    return Path(os.path.commonpath([path.parent for path in resolved]))


def _verdict(code: CodeMetrics, errors: Console) -> int:
    unreadable = [file for file in code.files if file.error is not None]
    for file in unreadable:
        errors.print(f"{file.file}: {file.error}", markup=False)
    for difference in code.unexplained:
        errors.print(f"unexplained: {difference}", markup=False)
    if unreadable:
        errors.print(f"{len(unreadable)} of {len(code.files)} files could not be measured")
        return BAD_INPUT
    return UNEXPLAINED if code.unexplained else ALL_EXPLAINED


if __name__ == "__main__":
    sys.exit(main())
