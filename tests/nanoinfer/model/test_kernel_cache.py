"""Compiled kernels are kept where that is possible, by Triton's own managers of files."""

import os
import tempfile
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nanoinfer.config import ConfigError

triton = pytest.importorskip("triton")
from triton import knobs  # noqa: E402  only where Triton is installed
from triton.runtime.cache import FileCacheManager, get_cache_manager, get_dump_manager  # noqa: E402  likewise

from nanoinfer.model import kernel_cache  # noqa: E402  likewise

KEY = "ab" * 32
OWN_NAME = f"nanoinfer-kernels-{os.getuid()}"


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def first(tmp_path, monkeypatch):
    """Triton's folder, which a test makes or puts something else in the place of."""
    folder = tmp_path / "triton"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    kernel_cache.install()
    yield folder
    del knobs.cache.dir
    del knobs.cache.manager_class


@pytest.fixture
def second(first, temporary):
    """The second folder, which is there once the first one has refused something."""
    first.write_text("a file where a folder should be")
    return temporary / OWN_NAME


def refusing_files(monkeypatch, *folders):
    """Let the folders take no file any more, as where the disk behind them is full."""
    replace = os.replace

    def refuse(source, target):
        if any(Path(target).is_relative_to(folder) for folder in folders):
            raise OSError(28, "No space left on device", target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)


def test_a_folder_that_can_be_written_is_used_as_triton_does(first, temporary):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = get_cache_manager(KEY).put(b"binary", "kernel.cubin")
    assert Path(path).is_relative_to(first)
    assert list(temporary.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_replaced_with_a_warning_that_names_both(first, second):
    with pytest.warns(
        UserWarning, match=rf"cannot be kept in {first} .*they are kept in {second}: set TRITON_CACHE_DIR"
    ):
        cache = get_cache_manager(KEY)
    cache.put_group("kernel.json", {"kernel.cubin": cache.put(b"binary", "kernel.cubin")})
    assert second.stat().st_mode & 0o777 == 0o700
    (path,) = get_cache_manager(KEY).get_group("kernel.json").values()
    assert Path(path).is_relative_to(second)
    assert Path(path).read_bytes() == b"binary"


@pytest.mark.usefixtures("second")
def test_the_warning_comes_once_however_many_kernels_are_compiled_side_by_side():
    together = threading.Barrier(8)

    def compile_one(index):
        together.wait()
        get_cache_manager(f"{index:064x}").put(b"binary", "kernel.cubin")

    with ThreadPoolExecutor(8) as threads, pytest.warns(UserWarning, match="cannot be kept") as caught:
        list(threads.map(compile_one, range(8)))
    assert len(caught) == 1


def test_a_disk_that_fills_up_between_two_files_of_a_kernel_loses_neither(first, temporary, monkeypatch):
    cache = get_cache_manager(KEY)
    group = {"kernel.ptx": cache.put(b"text", "kernel.ptx")}
    refusing_files(monkeypatch, first)
    with pytest.warns(UserWarning, match="No space left on device"):
        group["kernel.cubin"] = cache.put(b"binary", "kernel.cubin")
    cache.put_group("kernel.json", group)
    found = get_cache_manager(KEY).get_group("kernel.json")
    assert {name: Path(path).read_bytes() for name, path in found.items()} == {
        "kernel.ptx": b"text",
        "kernel.cubin": b"binary",
    }
    assert Path(found["kernel.cubin"]).is_relative_to(temporary / OWN_NAME)


def test_where_neither_folder_takes_a_file_the_error_names_the_last_with_the_remedy(first, temporary, monkeypatch):
    cache = get_cache_manager(KEY)
    refusing_files(monkeypatch, first, temporary)
    with (
        pytest.warns(UserWarning, match=str(first)),
        pytest.raises(ConfigError, match=rf"in {temporary / OWN_NAME} \(No space left.*set TRITON_CACHE_DIR"),
    ):
        cache.put(b"binary", "kernel.cubin")


def anybodys(folder):
    folder.mkdir()
    folder.chmod(0o777)


def linked(folder):
    folder.symlink_to(folder.parent)


@pytest.mark.parametrize("place", [anybodys, linked, Path.touch])
def test_a_second_folder_that_others_could_have_filled_is_refused(first, second, place):
    place(second)
    with pytest.raises(ConfigError, match=rf"in {first} .*, nor in the temporary folder .*; set TRITON_CACHE_DIR"):
        get_cache_manager(KEY)


def test_folders_of_tritons_own_debugging_are_left_alone(tmp_path, first, temporary, monkeypatch):
    monkeypatch.setenv("TRITON_DUMP_DIR", str(tmp_path / "file" / "below"))
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        get_dump_manager(KEY)
    assert Path(knobs.cache.dir) == first
    assert list(temporary.iterdir()) == []


def test_a_cache_manager_that_the_user_chose_stays(monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_MANAGER", "triton.runtime.cache:FileCacheManager")
    kernel_cache.install()
    assert knobs.cache.manager_class is FileCacheManager
