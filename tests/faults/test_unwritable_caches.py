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
