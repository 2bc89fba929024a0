"""Kernels compiled ahead: which are launched, in which order, and what becomes of errors."""

import threading
from concurrent.futures import Future
from contextlib import nullcontext

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from nanoinfer.kernels import ahead

CUDA = torch.device("cuda", 0)
PATIENCE_S = 30.0


def shapes(device, **options):
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "vocab_size": 40,
        "qk_norm": True,
        "qkv_bias": True,
        "output_bias": False,
        "mlp_bias": True,
        "dtype": torch.float16,
        "block_size": 4,
        "device": device,
    }
    return ahead.KernelShapes(**(sizes | options))


def ended():
    future = Future()
    future.set_result(None)
    return future


@pytest.fixture
def plan(monkeypatch):
    """Let `compiling` launch these calls on a device that need not be there."""

    def replace(store, prompts=(), others=(), ready=None):
        monkeypatch.setattr(torch.cuda, "device", lambda _device: nullcontext())
        monkeypatch.setattr(ahead, "compiler_ready", lambda: (ready or ended(),))
        monkeypatch.setattr(ahead, "_store_call", lambda _shapes: store)
        monkeypatch.setattr(ahead, "_prompt_calls", lambda _shapes: list(prompts))
        monkeypatch.setattr(ahead, "_other_calls", lambda _shapes: list(others))

    return replace


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU test of test_gpu_exactness.py covers this")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_every_call_can_be_launched_with_the_shapes_of_a_model(dtype, qk_norm):
    one = shapes(torch.device("cpu"), dtype=dtype, qk_norm=qk_norm)
    calls = [ahead._store_call(one), *ahead._prompt_calls(one), *ahead._other_calls(one)]
    for call in calls:
        call()
    assert len(calls) >= len(ahead._decode_calls(one)) + len(ahead._prompt_calls(one)) + 10


def test_prompts_have_a_launch_for_each_tile_shape_that_a_step_may_choose():
    group = 2
    lengths = range(1, 2 * ahead.SHORT_QUERY, 7)
    wanted = {ahead.prefill_tuning(torch.bfloat16, group, longest) for longest in lengths}
    assert len(ahead._prompt_calls(shapes(torch.device("cpu"), dtype=torch.bfloat16))) == len(wanted) == 3


def test_attention_of_prompts_waits_for_the_kernel_that_all_of_them_launch(plan):
    order, others_ran = [], threading.Event()

    def store():
        assert others_ran.wait(PATIENCE_S)
        order.append("store")

    prompts = [lambda: order.append("prompt")] * 3
    plan(store, prompts, [others_ran.set])
    with ahead.compiling(shapes(CUDA)):
        pass
    assert order == ["store", "prompt", "prompt", "prompt"]


def test_nothing_is_launched_before_the_compiler_is_ready_and_the_body_runs_meanwhile(plan):
    launched, ready = [], Future()
    plan(lambda: launched.append("store"), others=[lambda: launched.append("other")], ready=ready)
    with ahead.compiling(shapes(CUDA)):
        meanwhile = list(launched)
        ready.set_result(None)
    assert (meanwhile, sorted(launched)) == ([], ["other", "store"])


def test_what_fails_beforehand_is_left_to_those_who_compile(plan):
    launched, ready = [], Future()
    ready.set_exception(RuntimeError("no C compiler"))
    plan(lambda: launched.append("store"), ready=ready)
    with ahead.compiling(shapes(CUDA)):
        pass
    assert launched == ["store"]


def test_a_kernel_that_cannot_be_compiled_is_an_error_at_the_end_and_holds_nobody_up(plan):
    launched = []

    def broken():
        raise RuntimeError("this kernel is broken")

    plan(broken, [lambda: launched.append("prompt")], [lambda: launched.append("other")])
    with pytest.raises(RuntimeError, match="this kernel is broken"), ahead.compiling(shapes(CUDA)):
        launched.append("body")
    assert sorted(launched) == ["body", "other", "prompt"]


def test_the_compiler_is_made_ready_once_a_process():
    assert ahead.compiler_ready() is ahead.compiler_ready()
