"""Caches that cannot be written: what needs none works on, and what needs one says which."""

import hashlib
import json
import os
import resource
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from nanoinfer import LLM, ConfigError
from touchstone import cli_errors
from touchstone.canonical import StorageError
from touchstone.records import ModelSpec
from touchstone.running.models import ChosenModel, ModelError, choose_model, make_tiny_model, with_checkpoint

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
from nanoinfer.model.ops import begin_compiling

begin_compiling(torch.device("cuda"))  # what an engine on a GPU begins with
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


# A model that is made on the spot, in the order of its files: the last one says that it is whole.
WRITTEN = ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json")

FILES = {"config.json": b"{}", "model.safetensors": bytes(20_000)}
COMMIT = "0" * 40


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as its client asks of one model, which every name has."""

    def do_GET(self):
        self.answer()

    def do_HEAD(self):
        self.answer()

    def answer(self):
        kind = next((kind for kind in ("revision", "tree", "resolve") if f"/{kind}/" in self.path), None)
        if kind is None:
            self.send_error(404)
        elif kind == "revision":
            self.reply(json.dumps({"id": "m", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]}))
        elif kind == "tree":
            sizes = {name: len(content) for name, content in FILES.items()}
            files = [{"type": "file", "path": name, "size": size, "oid": COMMIT} for name, size in sizes.items()]
            self.reply(json.dumps(files))
        else:
            self.reply(FILES[self.path.rpartition("/")[2]])

    def reply(self, content):
        body = content if isinstance(content, bytes) else content.encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def hub_cache(monkeypatch):
    """hub_cache(folder) lets the hub's client, in front of a hub of this machine, keep what it fetches there."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    place = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(constants, "ENDPOINT", place)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", place + "/{repo_id}/resolve/{revision}/{filename}")
    yield lambda folder: monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_hub_cache_that_can_be_written_is_filled(tmp_path, hub_cache):
    hub_cache(tmp_path / "cache")
    folder = choose_model("some/model", "cpu", tmp_path).folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert folder.is_relative_to(tmp_path / "cache")


@pytest.mark.filterwarnings("ignore:Not enough free disk space")
@pytest.mark.parametrize("fault", [in_place_of_the_folder, in_a_read_only_folder, on_a_full_disk])
def test_a_hub_cache_that_cannot_be_written_is_named_with_a_remedy(tmp_path, small_disk, hub_cache, fault):
    folder, reason = fault(tmp_path, small_disk)
    hub_cache(folder)
    told = (
        rf"{reason}.*go to {folder}: set HF_HOME to a folder that can be written and has room, or give a local folder"
    )
    with pytest.raises(ConfigError, match=rf"'some/model' could not be fetched from the hub .*{told}"):
        LLM("some/model")
    with pytest.raises(ModelError, match=rf"hub's cache {folder} cannot be used .*{reason}.*; set HF_HOME"):
        choose_model("some/model", "cpu", tmp_path)


def test_without_a_model_named_the_shape_with_random_weights_stands_in_and_the_run_says_so(tmp_path, hub_cache):
    (tmp_path / "file").touch()
    hub_cache(tmp_path / "file")
    chosen = choose_model(None, "cuda", tmp_path)
    assert chosen.spec.weights == "synthetic"
    assert "could not be fetched" in chosen.spec.note


# --- the folder of models that are made on the spot -------------------------------------------------------------------


@pytest.mark.parametrize("fault", [in_place_of_the_folder, in_a_read_only_folder, on_a_full_disk])
def test_a_model_that_cannot_be_written_is_a_sentence_with_the_place(tmp_path, folder, small_disk, fault):
    workshop, reason = fault(tmp_path, small_disk)
    shape = ChosenModel(ModelSpec(source="shape", weights="synthetic", note=None), folder, 0)
    for make in (lambda: choose_model(None, "cpu", workshop), lambda: with_checkpoint(shape, "float32", workshop)):
        with pytest.raises(OSError, match=reason) as caught:
            make()
        told = cli_errors.tell(caught.value)
        assert told.status == cli_errors.FAILED
        assert told.message.startswith(str(workshop))
        assert "then give the same command again" in told.message
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.is_relative_to(workshop / "tiny-qwen3")]


@pytest.mark.parametrize("num_written", [0, 1, 4])
def test_a_model_of_which_a_part_finds_no_room_is_not_taken_for_whole(folder, small_disk, num_written):
    disk, page = small_disk(1 << 24), resource.getpagesize()
    pages = [-(-(folder / name).stat().st_size // page) for name in WRITTEN]
    filler = disk / "filler"
    filler.write_bytes(bytes((1 << 24) - sum(pages[:num_written]) * page))
    with pytest.raises(StorageError, match=rf"No space left.*{WRITTEN[num_written]}"):
        choose_model(None, "cpu", disk)
    filler.unlink()
    made = choose_model(None, "cpu", disk).folder
    assert {path.name: path.read_bytes() for path in made.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }
