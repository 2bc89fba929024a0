"""Several GPUs give the tokens of transformers, through NCCL and symmetric memory, with and without CUDA graphs."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from nanoinfer import LLM, SamplingParams, WorkerError

pytestmark = [pytest.mark.multi_gpu, pytest.mark.timeout(180)]

OPTIONS = {"device": "cuda", "dtype": "float32", "max_num_seqs": 7, "num_kv_blocks": 64, "rank_timeout_s": 45}


def need(count):
    if torch.cuda.device_count() < count:
        pytest.skip(f"needs {count} GPUs")


def greedy(max_tokens):
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)


def step_on(llm):
    while llm.has_unfinished:
        llm.step()


def check(model, ragged, **options):
    """Run the ragged requests on an engine; returns it for further questions."""
    llm = LLM(model.folder, **(OPTIONS | options))
    check_tokens(llm, model, ragged)
    return llm


def check_tokens(llm, model, ragged):
    outputs = llm.generate([list(prompt) for prompt, _ in ragged], [greedy(n) for _, n in ragged])
    assert [output.token_ids for output in outputs] == [model.greedy(*request) for request in ragged]


@pytest.mark.parametrize(
    ("size", "all_reduce", "cuda_graphs"),
    [(2, "auto", True), (4, "auto", True), (4, "auto", False), (4, "nccl", True)],
)
def test_tensor_parallel_tokens_equal_transformers(tiny, ragged, size, all_reduce, cuda_graphs):
    need(size)
    with check(tiny("qwen2"), ragged, tensor_parallel_size=size, all_reduce=all_reduce, cuda_graphs=cuda_graphs) as llm:
        steps = llm.take_step_facts()
        assert all(step.device_ns > 0 for step in steps)
        assert all(step.graph == cuda_graphs for step in steps)
        devices = llm.memory_by_device()
        assert [device.device for device in devices] == [f"cuda:{rank}" for rank in range(size)]
        # the driver counts every process, so what another has given back meanwhile is missing beside `bytes_before`
        parts = [device.facts.weights_bytes + device.facts.kv_pool_bytes for device in devices]
        assert all(0 < part < device.bytes_in_use for part, device in zip(parts, devices, strict=True))
        assert all(device.bytes_before > 0 for device in devices)
        llm.start_profile()
        llm.generate([[5, 6, 7]], greedy(6))
        kernels = [" ".join(profile.kernels_ns) for profile in llm.stop_profile()]
    assert len(kernels) == size
    assert all(("_push_kernel" in names) == (all_reduce == "auto") for names in kernels)
    assert all(("nccl" in names.lower()) == (all_reduce == "nccl") for names in kernels)


def test_the_first_rank_adds_the_residual_and_bfloat16_sums_stay_close(tiny, ragged):
    """One row at a time takes the path for few rows, 16 bits that of symmetric memory."""
    need(2)
    prompt = list(ragged[4][0])
    seeded = SamplingParams(temperature=1.0, seed=3, max_tokens=8, ignore_eos=True)
    with check(tiny("qwen2"), ragged, tensor_parallel_size=2) as llm:
        both = llm.generate([prompt], seeded)[0].token_ids
    with check(tiny("qwen2"), ragged) as llm:
        assert llm.generate([prompt], seeded)[0].token_ids == both
    with LLM(tiny("qwen2").folder, **(OPTIONS | {"dtype": "bfloat16", "tensor_parallel_size": 2})) as llm:
        tokens = llm.generate([prompt], greedy(12))[0].token_ids
    assert tokens[0] == tiny("qwen2").greedy(tuple(prompt), 12)[0]


@pytest.mark.parametrize(("tensor", "data"), [(1, 2), (1, 4), (2, 2)])
def test_data_parallel_tokens_equal_transformers(tiny, ragged, tensor, data):
    need(tensor * data)
    with check(tiny("qwen2"), ragged, tensor_parallel_size=tensor, data_parallel_size=data) as llm:
        assert {step.rank for step in llm.take_step_facts()} == set(range(data))
        assert len({device.device for device in llm.memory_by_device()}) == tensor * data
        llm.start_profile()
        llm.generate([[5, 6, 7]] * data, greedy(4))
        profiles = llm.stop_profile()
    assert all(0 < profile.busy_ns <= profile.span_ns for profile in profiles)
    assert all((profile.communication_ns > 0) == (tensor > 1) for profile in profiles)


def test_two_engines_started_together_share_the_same_gpus(tiny, ragged):
    """Each rank spins in its sums while the device is another engine's; one that is killed leaves the other alone."""
    need(2)
    model = tiny("qwen2")
    for request in ragged:
        model.greedy(*request)  # is remembered, so that nothing keeps the engines from computing at the same time
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda _: LLM(model.folder, **OPTIONS, tensor_parallel_size=2), range(2))
        with first, second:
            list(threads.map(lambda llm: check_tokens(llm, model, ragged), (first, second)))
            os.kill(first._engine.execution.ranks.workers.all[0].pid, signal.SIGKILL)
            check_tokens(second, model, ragged)
            with pytest.raises(WorkerError, match=r"rank 0 .* was ended by SIGKILL"):
                first.generate([[1, 2, 3]], greedy(4))


def test_a_killed_rank_ends_the_run_while_its_peers_wait_on_the_device(tiny):
    need(2)
    llm = LLM(tiny("qwen2").folder, **(OPTIONS | {"tensor_parallel_size": 2, "max_num_seqs": 2}))
    workers = llm._engine.execution.ranks.workers
    pids = [worker.pid for worker in workers.all]
    for _ in range(2):
        llm.add_request([1, 2, 3], greedy(140))
    for _ in range(5):
        llm.step()
    os.kill(pids[1], signal.SIGKILL)
    begin = time.monotonic()
    with pytest.raises(WorkerError, match=r"rank 1 .* was ended by SIGKILL"):
        step_on(llm)
    assert time.monotonic() - begin < 45
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
