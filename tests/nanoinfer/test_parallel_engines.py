"""Engines of several processes over gloo: the same tokens as one, whatever fails is said by whoever failed, no orphans.

Each engine costs seconds to start, so tests that ask the same engine different things share it.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file, save_file

import nanoinfer
from nanoinfer import LLM, ConfigError, FinishReason, RequestError, SamplingParams, WorkerError, data_parallel

OPTIONS = {"device": "cpu", "num_kv_blocks": 64, "block_size": 8, "max_num_seqs": 5, "rank_timeout_s": 30.0}


def greedy(max_tokens):
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)


def drawn(**settings):
    return SamplingParams(**({"temperature": 1.3, "max_tokens": 9, "ignore_eos": True} | settings))


# Each row draws its tokens another way: from the engine's seed, from its own, from a part of the vocabulary.
DRAWN = [drawn(), drawn(seed=4), drawn(top_k=9, seed=1), drawn(top_p=0.6), greedy(9)]


def all_processes(llm):
    """The numbers of all processes under this one's."""
    own = [worker.pid for worker in workers_of(llm).all]
    children = [child.pid for pid in own for child in psutil.Process(pid).children(recursive=True)]
    return own + children


def workers_of(llm):
    engine = llm._engine
    return engine._workers if hasattr(engine, "_workers") else engine.execution.ranks.workers


def wait_until_gone(pids, limit_s=10.0):
    deadline = time.monotonic() + limit_s
    while (left := [pid for pid in pids if psutil.pid_exists(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left == []


def step_on(llm):
    while llm.has_unfinished:
        llm.step()


@pytest.fixture(scope="module")
def one(tiny):
    """What one process answers to the drawn requests."""
    with LLM(tiny("qwen3").folder, **OPTIONS) as llm:
        return [output.token_ids for output in llm.generate([[7, 8, 9]] * len(DRAWN), DRAWN)]


def check_tokens(llm, model, ragged, one):
    outputs = llm.generate([list(prompt) for prompt, _ in ragged], [greedy(n) for _, n in ragged])
    assert [output.token_ids for output in outputs] == [model.greedy(*request) for request in ragged]
    assert [output.prompt_token_ids for output in outputs] == [prompt for prompt, _ in ragged]
    if one is None:
        return
    # requests are numbered on, and unseeded ones follow their number
    fresh = [settings for settings in DRAWN if settings.seed is not None or settings.is_greedy]
    expected = [tokens for tokens, settings in zip(one, DRAWN, strict=True) if settings in fresh]
    assert [output.token_ids for output in llm.generate([[7, 8, 9]] * len(fresh), fresh)] == expected


def test_two_ranks_give_the_tokens_of_one_process_until_one_is_killed(tiny, ragged, one):
    options = {"scheduling": "mixed", "overlap": True, "max_num_batched_tokens": 13}
    llm = LLM(tiny("qwen3").folder, **OPTIONS, **options, tensor_parallel_size=2)
    pids, port = all_processes(llm), llm._engine.execution.ranks.host.meeting.port
    check_tokens(llm, tiny("qwen3"), ragged, one)
    assert len(llm.memory_by_device()) == len(pids) == 2
    with pytest.raises(OSError, match="in use"):
        socket.create_server(("127.0.0.1", port))
    llm.add_request([1, 2, 3], greedy(150))
    llm.step()
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(WorkerError, match=rf"rank 1 \(process {pids[1]}\) was ended by SIGKILL"):
        step_on(llm)
    assert wait_until_gone(pids)
    with pytest.raises(WorkerError, match="make a new engine"):
        llm.generate([[1]], greedy(1))
    llm.close()
    socket.create_server(("127.0.0.1", port)).close()


def test_four_ranks_that_share_kv_heads_give_the_same_tokens_until_one_has_no_memory(tiny, ragged, one):
    llm = LLM(tiny("qwen3").folder, **OPTIONS, tensor_parallel_size=4)
    pids = all_processes(llm)
    check_tokens(llm, tiny("qwen3"), ragged, one)
    assert len(llm.memory_by_device()) == len(pids) == 4
    process = psutil.Process(pids[1])
    process.rlimit(psutil.RLIMIT_AS, (process.memory_info().vms, process.memory_info().vms))
    with pytest.raises(WorkerError, match=r"rank 1 \(process \d+\) failed with (RuntimeError|MemoryError): .*memory"):
        llm.generate([[k] * 150 for k in range(5)] * 8, greedy(5))
    assert wait_until_gone(pids)


def test_four_engines_give_the_same_tokens_and_close_though_one_hangs(tiny, ragged, one):
    llm = LLM(tiny("qwen3").folder, **(OPTIONS | {"max_num_seqs": 2}), data_parallel_size=4)
    pids = all_processes(llm)
    check_tokens(llm, tiny("qwen3"), ragged, one)
    assert len(llm.memory_by_device()) == len(pids) == 4
    os.kill(pids[0], signal.SIGSTOP)
    begin = time.monotonic()
    llm.close()
    llm.close()
    assert time.monotonic() - begin < 20
    assert wait_until_gone(pids)


@pytest.mark.slow
def test_biases_are_added_once_however_many_ranks_there_are(tiny, ragged):
    with LLM(tiny("llama-bias").folder, **OPTIONS, tensor_parallel_size=2) as llm:
        check_tokens(llm, tiny("llama-bias"), ragged, None)


@pytest.fixture(scope="module")
def both(tiny):
    """Two engines of two ranks each."""
    with LLM(tiny("qwen3").folder, **OPTIONS, tensor_parallel_size=2, data_parallel_size=2, placement="prefix") as llm:
        yield llm


def test_two_engines_of_two_ranks_answer_like_one_process(both, tiny, ragged, one):
    assert [output.token_ids for output in both.generate([[7, 8, 9]] * len(DRAWN), DRAWN)] == one
    check_tokens(both, tiny("qwen3"), ragged, None)


def test_steps_tell_their_engine_and_requests_their_times(both):
    both.take_step_facts()
    begin = time.perf_counter_ns()
    outputs = both.generate([[1] * 20, [2] * 20, [3] * 20, [4] * 20], greedy(6), arrival_s=[0, 0, 0.05, 0.05])
    end = time.perf_counter_ns()
    steps = both.take_step_facts()
    assert {step.rank for step in steps} == {0, 1}
    assert sum(step.num_prefill_tokens for step in steps) == 80
    assert sum(step.num_decode_tokens for step in steps) == 20
    assert [step.end_ns for step in steps] == sorted(step.end_ns for step in steps)
    for output in outputs:
        facts = output.facts
        readings = (begin, facts.arrival_ns, facts.scheduled_ns, *facts.token_times_ns, end)
        assert list(readings) == sorted(readings)
        assert (facts.num_prompt_tokens, len(facts.token_times_ns)) == (20, 6)
    assert both.take_step_facts() == ()


def test_a_request_follows_its_prefix_and_a_reset_forgets_it(both):
    prompt = list(range(40))
    both.reset_prefix_cache()
    cached = [both.generate([prompt], greedy(2))[0].facts.num_cached_tokens for _ in range(2)]
    both.reset_prefix_cache()
    assert [*cached, both.generate([prompt], greedy(2))[0].facts.num_cached_tokens] == [0, 32, 0]


def test_requests_travel_together_as_many_as_fill_a_step(both, monkeypatch):
    both.reset_prefix_cache()
    engine, sent = both._engine, []
    send = engine._workers.send

    def note(index, kind, facts, integers):
        sent.append((index, kind.name, facts["num_requests"]))
        send(index, kind, facts, integers)

    monkeypatch.setattr(engine._workers, "send", note)
    monkeypatch.setattr(engine, "_full_step", 40)
    for token in range(7):
        both.add_request([token] * 20, greedy(2))
    assert sent == [(0, "ADD", 2), (1, "ADD", 2), (0, "ADD", 2)]
    numbers = [output.request_id for output in _step_to_the_end(both)]
    assert sent[3:] == [(1, "ADD", 1)]
    assert len(numbers) == 7


def _step_to_the_end(llm):
    outputs = []
    while llm.has_unfinished:
        outputs += llm.step()
    return outputs


def test_the_clock_of_an_engine_on_another_machine_is_compared(both, monkeypatch):
    assert both._engine._clock_offsets_ns == [0, 0]
    monkeypatch.setattr(data_parallel, "boot_id", lambda: "another machine")
    assert abs(both._engine._clock_offset_ns(1)) < 10**9  # it is this machine's own clock, read on the way


def test_a_profile_of_cpus_is_none_for_each(both):
    both.start_profile()
    both.generate([[1, 2]], greedy(2))
    assert both.stop_profile() == [None] * 4


def test_peaks_and_memory_are_those_of_each_device(both):
    both.generate([[1] * 20, [2] * 20], greedy(4))
    devices = both.memory_by_device()
    assert all(device.facts.kv_used_peak_bytes > 0 for device in devices)
    assert both.memory() == devices[0].facts
    assert both.num_kv_blocks == 2 * 64
    both.reset_peaks()
    assert all(device.facts.kv_used_peak_bytes == 0 for device in both.memory_by_device())
    assert all(device.bytes_in_use is None for device in devices)


def test_requests_are_cancelled_and_refused_as_by_one_engine(both):
    with pytest.raises(RequestError, match="outside the vocabulary of 320 tokens"):
        both.generate([[5], [320]], greedy(2))
    with pytest.raises(RequestError, match="over max_model_len 160"):
        both.generate([[5] * 160], greedy(2))
    long, short = both.add_request([5], greedy(150)), both.add_request([6], greedy(3))
    finished = []
    while not finished:
        finished += both.step()
    assert [output.request_id for output in finished] == [short]
    cancelled = both.cancel(long)
    assert cancelled is None or cancelled.finish_reason in {FinishReason.CANCELLED, FinishReason.LENGTH}
    assert both.cancel(long) is None
    step_on(both)


def test_a_rank_that_hangs_is_named_after_the_timeout_and_engines_beside_it_go_on(tiny, both):
    llm = LLM(tiny("qwen3").folder, **(OPTIONS | {"rank_timeout_s": 4.0}), tensor_parallel_size=2)
    pids = all_processes(llm)
    llm.generate([[1]], greedy(2))
    llm.add_request([1, 2, 3], greedy(150))
    os.kill(pids[1], signal.SIGSTOP)
    begin = time.monotonic()
    with pytest.raises(WorkerError, match=rf"rank 1 \(process {pids[1]}\) hangs"):
        step_on(llm)
    assert time.monotonic() - begin < 20
    assert wait_until_gone(pids)
    prompt = (7, 8, 9)
    assert both.generate([prompt], greedy(3))[0].token_ids == tiny("qwen3").greedy(prompt, 3)


def children():
    return {child.pid for child in psutil.Process().children()}


def test_what_one_rank_finds_wrong_with_its_part_is_refused_at_the_start(tiny, tmp_path):
    shutil.copytree(tiny("llama-bias").folder, tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][-1] = float("nan")  # the last rank's
    save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    before = children()
    with pytest.raises(ConfigError, match=r"up_proj\.weight holds NaN"):
        LLM(tmp_path / "model", **OPTIONS, tensor_parallel_size=2)
    assert children() == before


def test_a_rank_killed_at_the_start_ends_the_start(tiny):
    before, killed = children(), []

    def kill_one():
        while not (new := children() - before):
            time.sleep(0.01)
        killed.append(max(new))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    with pytest.raises(WorkerError, match=r"was ended by SIGKILL") as caught:
        LLM(tiny("qwen3").folder, **OPTIONS, tensor_parallel_size=2)
    killer.join()
    assert f"(process {killed[0]})" in str(caught.value)
    assert children() == before


FRONT_DOOR = """
import json, sys, time
from nanoinfer import LLM, SamplingParams

llm = LLM(sys.argv[1], device="cpu", num_kv_blocks=64, tensor_parallel_size=2)
print(json.dumps([worker.pid for worker in llm._engine.execution.ranks.workers.all]), flush=True)
llm.generate([[1, 2, 3]] * 200, SamplingParams(temperature=0, max_tokens=150, ignore_eos=True))
"""


def test_no_rank_outlives_a_front_door_that_was_killed(tiny):
    command = [sys.executable, "-c", FRONT_DOOR, tiny("qwen3").folder]
    source = str(Path(nanoinfer.__file__).resolve().parents[1])
    environment = os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as front_door:
        pids = json.loads(front_door.stdout.readline())
        assert all(psutil.pid_exists(pid) for pid in pids)
        front_door.kill()
    assert wait_until_gone(pids)


def test_a_model_that_cannot_be_split_is_refused_before_anything_starts(tiny):
    before = psutil.Process().children()
    with pytest.raises(ConfigError, match=r"tensor_parallel_size is 3; use a number that divides the model's 4"):
        LLM(tiny("qwen3").folder, **OPTIONS, tensor_parallel_size=3)
    assert psutil.Process().children() == before
