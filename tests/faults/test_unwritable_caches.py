"""Caches that cannot be written: what needs none works on, and what needs one says which."""

import errno
import os
import subprocess
import sys

import huggingface_hub
import pytest

from nanoinfer import LLM, ConfigError
from touchstone.running.models import ModelError, choose_model, make_tiny_model

NOWHERE = "/proc/no-such-folder"  # the kernel lets nobody write there, not even root
CACHES = (
    "HOME",
    "XDG_CACHE_HOME",
    "HF_HOME",
    "MPLCONFIGDIR",
    "TRITON_CACHE_DIR",
    "TORCHINDUCTOR_CACHE_DIR",
    "PYTHONPYCACHEPREFIX",
)
PROGRAM = """
import sys
from pathlib import Path
from nanoinfer import LLM, SamplingParams
from touchstone.reporting.figures import save_svg
from matplotlib.figure import Figure
with LLM(sys.argv[1], device="cpu", max_model_len=64, num_kv_blocks=8) as llm:
    (output,) = llm.generate("Banatu kelu", SamplingParams(temperature=0, max_tokens=4, ignore_eos=True))
save_svg(Figure(), Path(sys.argv[2]))
print(len(output.token_ids), bool(output.text))
"""


def test_engine_tokenizer_and_figures_need_no_cache(tmp_path):
    make_tiny_model(tmp_path / "model")
    wanted = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **dict.fromkeys(CACHES, NOWHERE)}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "model"), str(tmp_path / "figure.svg")]
    ended = subprocess.run(command, env=wanted, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == ["4", "True"]
    assert (tmp_path / "figure.svg").read_text().endswith("</svg>\n")


# --- compiled GPU kernels, by Triton's compiler, which needs no GPU ---------------------------------------------------

COMPILE = """
import sys
import torch
import triton
from triton.backends.compiler import GPUTarget
from nanoinfer import ConfigError
from nanoinfer.model.ops import select_ops

select_ops(torch.device("cuda"), 64)  # what an engine on a GPU begins with
from nanoinfer.kernels.fused import _silu_kernel

signature = {"gate_up": "*fp16", "out": "*fp16", "WIDTH": "constexpr", "TILE": "constexpr"}
source = triton.compiler.ASTSource(_silu_kernel, signature, {(2,): 1024, (3,): 1024})
try:
    kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32))
except ConfigError as error:
    sys.exit(f"refused: {error}")
print(len(kernel.asm["cubin"]), *{path.rsplit("/", 2)[0] for path in kernel.metadata_group.values()})
"""


@pytest.fixture
def compile_kernel(tmp_path):
    """compile_kernel(folder) compiles a kernel of the engine's in a new process; `temporary` is that one's."""
    pytest.importorskip("triton")
    (tmp_path / "temporary").mkdir()
    (tmp_path / "program.py").write_text(COMPILE)

    def compile_it(folder):
        wanted = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TRITON_")},
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "TRITON_CACHE_DIR": str(folder),
            "TMPDIR": str(tmp_path / "temporary"),
        }
        command = [sys.executable, str(tmp_path / "program.py")]
        return subprocess.run(command, env=wanted, capture_output=True, text=True, check=False, timeout=120)

    return compile_it


@pytest.fixture
def second(tmp_path):
    """Where kernels are kept that Triton's folder does not take."""
    return tmp_path / "temporary" / f"nanoinfer-kernels-{os.getuid()}"


def in_place_of_the_folder(tmp_path, _small_disk):
    (tmp_path / "file").touch()
    return tmp_path / "file", "Not a directory"


def in_a_read_only_folder(_tmp_path, small_disk):
    return small_disk(1 << 20, "ro") / "cache", "Read-only file system"


def on_a_full_disk(_tmp_path, small_disk):
    return small_disk(4096) / "cache", "No space left on device"


@pytest.mark.parametrize("fault", [in_place_of_the_folder, in_a_read_only_folder, on_a_full_disk])
def test_kernels_that_tritons_cache_does_not_take_are_kept_in_a_folder_of_the_users(
    tmp_path, small_disk, compile_kernel, second, fault
):
    folder, reason = fault(tmp_path, small_disk)
    ended = compile_kernel(folder)
    assert ended.returncode == 0, ended.stderr
    num_bytes, *kept = ended.stdout.split()
    assert (int(num_bytes) > 1000, kept) == (True, [str(second)])
    assert f"cannot be kept in {folder} ({reason}); they are kept in {second}: set TRITON_CACHE_DIR" in ended.stderr
    assert list(second.parent.iterdir()) == [second]


def test_a_read_only_cache_that_holds_the_kernels_is_used_as_it_is(small_disk, compile_kernel, second):
    disk = small_disk(1 << 20)
    compiled = compile_kernel(disk)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    again = compile_kernel(disk)
    assert (again.returncode, again.stdout) == (0, compiled.stdout)
    assert "cannot be kept" not in again.stderr
    assert not second.exists()


def test_kernels_that_can_be_kept_nowhere_are_refused_with_both_places_and_the_remedy(tmp_path, compile_kernel, second):
    (tmp_path / "file").touch()
    second.symlink_to(tmp_path)  # anybody can lay a link in a temporary folder
    ended = compile_kernel(tmp_path / "file" / "below")
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"refused: compiled GPU kernels cannot be kept in {tmp_path}/file/below (")
    assert (
        f"nor in the temporary folder ({second} is there and is not this user's alone); set TRITON_CACHE"
        in ended.stderr
    )


# --- the hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def _unwritable_hub(monkeypatch):
    def refuse(*_arguments, **_options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), NOWHERE)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)


@pytest.mark.usefixtures("_unwritable_hub")
def test_a_hub_cache_that_cannot_be_written_is_named_with_a_remedy(tmp_path):
    with pytest.raises(ConfigError, match=rf"could not be fetched .*{NOWHERE}.*give a local folder instead"):
        LLM("some/model")
    with pytest.raises(ModelError, match=rf"cannot be had from the hub .*{NOWHERE}"):
        choose_model("some/model", "cpu", tmp_path)


@pytest.mark.usefixtures("_unwritable_hub")
def test_without_a_model_named_the_shape_with_random_weights_stands_in_and_the_run_says_so(tmp_path):
    chosen = choose_model(None, "cuda", tmp_path)
    assert chosen.spec.weights == "synthetic"
    assert "was unreachable" in chosen.spec.note
