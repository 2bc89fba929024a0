"""Engines whose processes torchrun has started, on one host and as if on two."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from nanoinfer import LLM, ConfigError, SamplingParams

SCRIPT = """
import json, os, sys
import torch
from nanoinfer import LLM, SamplingParams, WorkerError

torch.set_num_threads(1)
folder, options, prompts = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
with LLM(folder, device="cpu", num_kv_blocks=64, **options) as llm:
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=6, ignore_eos=True))
    tokens, devices = [output.token_ids for output in outputs], len(llm.memory_by_device())
    print("tokens", json.dumps(tokens), "devices", devices, flush=True)
    try:
        while "until one is killed" in sys.argv:
            llm.generate(prompts, SamplingParams(max_tokens=6, ignore_eos=True))
    except WorkerError as error:
        print("lost", error, flush=True)
        sys.exit(1)  # as a script would that does not catch it; a launcher that sees success waits for all others
print("after", os.environ["RANK"])
"""
PROMPTS = [[5, 6, 7], [8] * 9, [1, 2]]
SOURCE = str(Path(__file__).resolve().parents[2] / "src")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def torchrun(folder, script, options, *arguments, until="the end"):
    """Start one group of processes; the caller waits for it."""
    command = [sys.executable, "-m", "torch.distributed.run", *arguments, str(script), folder, json.dumps(options)]
    return subprocess.Popen(
        [*command, json.dumps(PROMPTS), until],
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


def tokens_line(tiny, num_devices):
    """What rank 0 prints where the engine has the tokens of transformers."""
    expected = [list(tiny("qwen3").greedy(tuple(prompt), 6)) for prompt in PROMPTS]
    return f"tokens {json.dumps(expected)} devices {num_devices}"


def test_two_groups_of_processes_make_one_engine_until_one_is_killed(tiny, script):
    """As on two hosts: two launchers that only share an address. Rank 0 alone goes on after `LLM(...)`."""
    master = ("--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(free_port()))
    folder, until = tiny("qwen3").folder, "until one is killed"
    first, second = (
        torchrun(folder, script, {"tensor_parallel_size": 2}, *master, "--node-rank", str(node), until=until)
        for node in (0, 1)
    )
    said = []
    while not (said and said[-1].startswith("tokens")):
        said.append(first.stdout.readline())
        assert said[-1], said
    assert said[-1].rstrip() == tokens_line(tiny, 2)
    started = [process for group in (first, second) for process in psutil.Process(group.pid).children(recursive=True)]
    (other,) = psutil.Process(second.pid).children()
    other.kill()
    assert "lost rank 1 is gone: its connection has closed\n" in first.communicate(timeout=120)[0]
    said = second.communicate(timeout=120)[0]
    assert "SIGKILL" in said
    assert "tokens" not in said
    assert (first.returncode, second.returncode) == (1, 1)
    assert psutil.wait_procs(started, timeout=20)[1] == []


@pytest.mark.slow
def test_four_processes_of_one_launcher_make_two_engines_of_two_ranks(tiny, script):
    sizes = {"tensor_parallel_size": 2, "data_parallel_size": 2}
    group = torchrun(tiny("qwen3").folder, script, sizes, "--nproc-per-node", "4", "--master-port", str(free_port()))
    said = group.communicate(timeout=240)[0]
    assert group.returncode == 0, said
    lines = [line for line in said.splitlines() if line.startswith(("tokens", "after"))]
    assert lines == [tokens_line(tiny, 4), "after 0"]


def test_sizes_that_do_not_multiply_to_the_launched_processes_are_refused(tiny, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"started 3 processes .* is 2; make them equal"):
        LLM(tiny("qwen3").folder, device="cpu", tensor_parallel_size=2)
    with LLM(tiny("qwen3").folder, device="cpu", num_kv_blocks=64) as llm:  # one device needs nobody
        assert len(llm.generate([[1]], SamplingParams(max_tokens=2, ignore_eos=True))[0].token_ids) == 2
