"""Engines whose processes torchrun has started, on one host and as if on two."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nanoinfer import LLM, ConfigError, SamplingParams

SCRIPT = """
import json, os, sys
import torch
from nanoinfer import LLM, SamplingParams

torch.set_num_threads(1)
folder, options, prompts = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
with LLM(folder, device="cpu", num_kv_blocks=64, **options) as llm:
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=6, ignore_eos=True))
    print("tokens", json.dumps([output.token_ids for output in outputs]), "devices", len(llm.memory_by_device()))
print("after", os.environ["RANK"])
"""
PROMPTS = [[5, 6, 7], [8] * 9, [1, 2]]
SOURCE = str(Path(__file__).resolve().parents[2] / "src")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def torchrun(folder, script, options, *arguments):
    """Start one group of processes; the caller waits for it."""
    command = [sys.executable, "-m", "torch.distributed.run", *arguments, str(script), folder, json.dumps(options)]
    return subprocess.Popen(
        [*command, json.dumps(PROMPTS)],
        env={"PYTHONPATH": SOURCE, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def check(tiny, groups, num_devices):
    """Wait for all groups; rank 0 alone goes on after `LLM(...)`, and has the tokens of transformers."""
    said = [group.communicate(timeout=240)[0] for group in groups]
    assert [group.returncode for group in groups] == [0] * len(groups), said
    lines = [line for text in said for line in text.splitlines() if line.startswith(("tokens", "after"))]
    expected = [list(tiny("qwen3").greedy(tuple(prompt), 6)) for prompt in PROMPTS]
    assert lines == [f"tokens {json.dumps(expected)} devices {num_devices}", "after 0"]


def test_two_groups_of_processes_make_one_engine(tiny, script):
    """As on two hosts: two launchers that only share an address."""
    master = ("--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(free_port()))
    folder = tiny("qwen3").folder
    groups = [
        torchrun(folder, script, {"tensor_parallel_size": 2}, *master, "--node-rank", str(node)) for node in (0, 1)
    ]
    check(tiny, groups, 2)


@pytest.mark.slow
def test_four_processes_of_one_launcher_make_two_engines_of_two_ranks(tiny, script):
    sizes = {"tensor_parallel_size": 2, "data_parallel_size": 2}
    group = torchrun(tiny("qwen3").folder, script, sizes, "--nproc-per-node", "4", "--master-port", str(free_port()))
    check(tiny, [group], 4)


def test_sizes_that_do_not_multiply_to_the_launched_processes_are_refused(tiny, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"started 3 processes .* is 2; make them equal"):
        LLM(tiny("qwen3").folder, device="cpu", tensor_parallel_size=2)
    with LLM(tiny("qwen3").folder, device="cpu", num_kv_blocks=64) as llm:  # one device needs nobody
        assert len(llm.generate([[1]], SamplingParams(max_tokens=2, ignore_eos=True))[0].token_ids) == 2
