"""Where compiled GPU kernels are kept: in Triton's folder, or in one of this user's where that cannot be written.

A home that is read-only, full, or nobody's then costs a warning and the compiler's time, once, and not the engine. What
Triton's folder holds is used from there for as long as nothing has to be added to it.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
import threading
import warnings
from pathlib import Path

from triton import knobs
from triton.runtime.cache import FileCacheManager

from nanoinfer.config import ConfigError

_REMEDY = "set TRITON_CACHE_DIR to a folder that can be written and has some dozen MB of room"
_moving = threading.Lock()  # kernels are compiled side by side


def install() -> None:
    """Let Triton go on in the second folder, unless the user has chosen a cache manager for it."""
    if knobs.cache.manager_class is None:
        knobs.cache.manager_class = _make


def _make(key: str, override: bool = False, dump: bool = False) -> FileCacheManager:
    """Return the manager of one kernel; folders for Triton's own debugging have no second one."""
    return FileCacheManager(key, override=override, dump=dump) if override or dump else KernelCache(key)


class KernelCache(FileCacheManager):  # type: ignore[misc]  # Triton is not typed
    """The files of one kernel. Where the folder of all kernels refuses one, every kernel that follows moves with it."""

    def __init__(self, key: str) -> None:
        self._open(key)

    def _open(self, key: str) -> None:
        while True:
            self._root = Path(knobs.cache.dir)
            try:
                super().__init__(key)
            except OSError as error:
                _move(self._root, error)
            else:
                return

    def put(self, data: object, filename: str, binary: bool = True) -> str:
        """Keep a file and return its path; ConfigError where no folder takes it."""
        while True:
            try:
                path: str = super().put(data, filename, binary)
            except OSError as error:
                _move(self._root, error)
                self._open(self.key)
            else:
                return path


def _move(root: Path, error: OSError) -> None:
    """Keep kernels in the second folder from here on; ConfigError where that one has failed or cannot be had."""
    with _moving:
        if Path(knobs.cache.dir) != root:
            return  # another thread has moved already
        refusal = f"compiled GPU kernels cannot be kept in {root} ({error.strerror})"
        try:
            second = _second_root()
        except OSError as other:
            raise ConfigError(f"{refusal}, nor in the temporary folder ({other.strerror}); {_REMEDY}") from error
        if root == second:
            raise ConfigError(f"{refusal}; {_REMEDY}") from error
        warnings.warn(f"{refusal}; they are kept in {second}: {_REMEDY}", stacklevel=2)
        knobs.cache.dir = str(second)  # this sets the variable as well, for processes that this one starts


def _second_root() -> Path:
    """Return a folder that this user alone can write, for what lies there is loaded and run."""
    folder = Path(tempfile.gettempdir()) / f"nanoinfer-kernels-{os.getuid()}"
    folder.mkdir(mode=stat.S_IRWXU, exist_ok=True)
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or stat.S_IMODE(facts.st_mode) != stat.S_IRWXU:
        raise PermissionError(errno.EPERM, f"{folder} is there and is not this user's alone")
    return folder
