"""What a variant launches by itself is what Triton would launch: the same compiled kernel, the same arguments.

Triton's own specialization is at work here, and decides; only the compiler and the device are doubles.
"""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from nanoinfer.kernels import (
    ahead,
    decode_attention,
    decode_inputs,
    few_rows,
    fused,
    linear,
    prefill_attention,
    push_sum,
    reference,
    sampling,
    share_sum,
    store_kv,
)
from nanoinfer.kernels.variant import Variant

MODULES = (
    decode_attention,
    decode_inputs,
    few_rows,
    fused,
    linear,
    prefill_attention,
    push_sum,
    sampling,
    share_sum,
    store_kv,
)
CPU = torch.device("cpu")
GRID = (3, 2, 1)


class Device:
    """Compiles nothing, launches nothing, and notes what it is asked for."""

    def __init__(self):
        self.index, self.stream = 0, 7
        self.compiled, self.launched = [], []
        self.active = SimpleNamespace(
            get_current_device=lambda: self.index,
            get_current_stream=lambda index: (index, self.stream),
            get_current_target=lambda: GPUTarget("cuda", 90, 32),
        )

    def compile(self, source, target, options, **_):
        made_for = tuple(source.signature.items()), tuple(source.constants.items()), str(source.attrs), str(options)
        kernel = Compiled(self, len(self.compiled), (self.index, target, *made_for))
        self.compiled.append(kernel)
        return kernel


class Compiled:
    """One specialization; launches of equal ones compare equal."""

    def __init__(self, device, number, made_for):
        self.device, self.made_for = device, made_for
        self.function, self.packed_metadata = number, ("packed", number)

    def launch_metadata(self, *_):
        return "metadata"

    def run(self, x, y, z, stream, function, packed, metadata, enter, leave, *arguments):
        assert (function, packed) == (self.function, self.packed_metadata)
        told = [hook(metadata) for hook in (enter, leave) if hook is not None]
        assert len(told) in {0, 2}
        bare = [value.data_ptr() if isinstance(value, torch.Tensor) else value for value in arguments]
        self.device.launched.append((self.made_for, (x, y, z), stream, tuple(map(repr, bare))))


@pytest.fixture
def device(monkeypatch):
    double = Device()
    monkeypatch.setattr(driver, "_active", double.active)
    monkeypatch.setattr(triton.compiler, "compile", double.compile)
    return double


def _body(a, b, n, m, f, width: tl.constexpr, norm: tl.constexpr):
    """Take two tensors and three numbers; never compiled."""


def kernel():
    return JITFunction(_body, do_not_specialize=["m"], do_not_specialize_on_alignment=["b"])


def variant(jitted=None, **constants):
    return Variant(jitted or kernel(), **({"width": 8, "norm": True, "num_warps": 2} | constants))


@pytest.fixture
def runs(monkeypatch):
    """Count launches that go through Triton."""
    calls, run = [], JITFunction.run
    monkeypatch.setattr(
        JITFunction, "run", lambda self, *args, **options: calls.append(1) or run(self, *args, **options)
    )
    return calls


MEMORY = torch.zeros(64, dtype=torch.int64)
DTYPES = (torch.float32, torch.bfloat16, torch.int64)


@st.composite
def tensors(draw):
    return MEMORY[draw(st.sampled_from((0, 1, 2))) :].view(draw(st.sampled_from(DTYPES)))


NUMBERS = st.sampled_from((0, 1, 2, 16, 17, 48, -16, True, 2**31 - 1, 2**31, -(2**31), 2**40, 1.0, 0.5))
INTEGERS = st.sampled_from((0, 1, 16, 17, 2**31 - 1, 2**31, -1, -(2**31), 2**63))
LAUNCH = st.tuples(tensors(), tensors(), NUMBERS, INTEGERS, NUMBERS)


@settings(max_examples=60)
@given(st.lists(LAUNCH, min_size=2, max_size=8))
def test_every_launch_is_the_one_that_triton_makes_of_the_same_arguments(launches):
    with pytest.MonkeyPatch.context() as patch:
        ours, theirs = Device(), Device()
        patch.setattr(driver, "_active", ours.active)
        one, jitted = variant(), kernel()
        for launch in (*launches, *launches):
            for double in (ours, theirs):
                patch.setattr(triton.compiler, "compile", double.compile)
                if double is ours:
                    one.launch(GRID, launch[:2], launch[2:])
                else:
                    jitted[GRID](*launch, width=8, norm=True, num_warps=2)
            assert ours.launched == theirs.launched
        assert len(ours.compiled) == len(theirs.compiled)


def test_launches_that_ask_for_the_same_kernel_ask_triton_once(device, runs):
    one, a, b = variant(), torch.zeros(8), torch.zeros(8)
    for last in (3, 5, 2**31 - 1):
        one.launch(GRID, (a, b[1:]), (4, last, 0.5))
    assert (len(runs), len(device.compiled), len(device.launched)) == (1, 1, 3)


@pytest.mark.parametrize(
    ("tensors", "numbers"),
    [
        ((torch.zeros(8).half(), torch.zeros(8)), (4, 3, 1.0)),  # dtype
        ((torch.zeros(9)[1:], torch.zeros(8)), (4, 3, 1.0)),  # alignment
        ((torch.zeros(8), torch.zeros(8)), (1, 3, 1.0)),  # one
        ((torch.zeros(8), torch.zeros(8)), (16, 3, 1.0)),  # a multiple of 16
        ((torch.zeros(8), torch.zeros(8)), (4, 2**31, 1.0)),  # width
        ((torch.zeros(8), torch.zeros(8)), (4, 3, 1)),  # type
    ],
)
def test_arguments_of_other_properties_get_a_kernel_of_their_own(tensors, numbers, device):
    one = variant()
    for _ in range(2):
        one.launch(GRID, (torch.zeros(8), torch.zeros(8)), (4, 3, 1.0))
        one.launch(GRID, tensors, numbers)
    made_for = [launch[0] for launch in device.launched]
    assert len(device.compiled) == 2
    assert made_for[0] == made_for[2] != made_for[1] == made_for[3]


@pytest.mark.parametrize(
    "other", [{"width": 16}, {"norm": False}, {"num_warps": 4}, {"num_stages": 2}, {"launch_pdl": True}]
)
def test_variants_of_other_constants_and_options_share_no_kernel(other, device):
    jitted, arguments = kernel(), ((torch.zeros(8), torch.zeros(8)), (4, 3, 1.0))
    for one in (variant(jitted), variant(jitted, **other)):
        one.launch(GRID, *arguments)
        one.launch(GRID, *arguments)
    assert len(device.compiled) == 2
    made_for = [launch[0] for launch in device.launched]
    assert made_for[0] == made_for[1] != made_for[2] == made_for[3]


def test_each_device_has_a_kernel_of_its_own_and_launches_follow_the_current_stream(device):
    one, arguments = variant(), ((torch.zeros(8), torch.zeros(8)), (4, 3, 1.0))
    for device.index, device.stream in ((0, 7), (1, 7), (0, 8), (1, 9)):
        one.launch(GRID, *arguments)
    assert [made_for[0] for made_for, *_ in device.launched] == [0, 1, 0, 1]
    assert [stream for _, _, stream, _ in device.launched] == [(0, 7), (1, 7), (0, 8), (1, 9)]
    assert len(device.compiled) == 2


def test_whoever_listens_to_launches_is_told_of_each(device, monkeypatch):
    one, arguments, heard = variant(), ((torch.zeros(8), torch.zeros(8)), (4, 3, 1.0)), []
    one.launch(GRID, *arguments)
    monkeypatch.setattr(knobs.runtime.launch_enter_hook, "calls", [heard.append])
    one.launch(GRID, *arguments)
    one.launch(GRID, *arguments)
    assert heard == ["metadata"] * 2
    assert device.launched[0] == device.launched[1] == device.launched[2]


@pytest.fixture
def compiled_kernels(monkeypatch):
    """Take the kernels of all modules out of the interpreter, and forget variants of others before and after."""

    def forget():
        for module in MODULES:
            for name, value in vars(module).items():
                if name.endswith(("_variant", "_plan")):
                    value.cache_clear()

    forget()
    # The key of a kernel's source would tell of functions that it calls, which are still the interpreter's.
    monkeypatch.setattr(JITFunction, "cache_key", property(lambda kernel: kernel.fn.__name__))
    kernels = []
    for module in MODULES:
        for name, value in list(vars(module).items()):
            if name.endswith("_kernel"):
                names = ("do_not_specialize", "do_not_specialize_on_alignment")
                options = {key: getattr(value, key, None) or getattr(value, "kwargs", {}).get(key) for key in names}
                kernels.append(JITFunction(value.fn, **options))
                monkeypatch.setattr(module, name, kernels[-1])
    yield kernels
    forget()


def test_the_second_launch_of_every_kernel_equals_the_first(device, runs, compiled_kernels, monkeypatch):
    launch, launched = Variant.launch, set()

    def twice(self, *arguments):
        before = len(runs)
        launch(self, *arguments)
        launch(self, *arguments)
        assert device.launched[-1] == device.launched[-2]
        assert len(runs) == before + (self not in launched)
        launched.add(self)

    monkeypatch.setattr(Variant, "launch", twice)
    shapes = ahead.KernelShapes(
        hidden_size=32,
        intermediate_size=48,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        vocab_size=40,
        qk_norm=True,
        qkv_bias=True,
        output_bias=False,
        mlp_bias=True,
        dtype=torch.float32,
        block_size=4,
        device=CPU,
    )
    for call in (ahead._store_call(shapes), *ahead._prompt_calls(shapes), *ahead._other_calls(shapes)):
        call()
    x, counts = torch.zeros(4, 16), torch.zeros(256, dtype=torch.int32)
    addresses = torch.zeros(2, dtype=torch.int64)
    linear.early_linear(x, torch.zeros(16, 16), None, linear.SMALL)
    push_sum.push_sum(x, torch.zeros(2, 2, 512, dtype=torch.int64), addresses, counts, rank=0)
    share_sum.share_sum(x, addresses, torch.zeros(2, 128, dtype=torch.int32), addresses, counts, rank=1)
    assert {one._kernel for one in launched} == set(compiled_kernels)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_kernel_launched_again_computes_from_the_new_arguments_in_and_out_of_graphs(dtype, runs):
    cuda = torch.device("cuda", torch.cuda.current_device())
    norm = torch.randn(1024, device=cuda).to(dtype)
    inputs = torch.randn(6, 4, 1024, device=cuda).to(dtype)
    expected = [reference.rms_norm(x, norm, 1e-6) for x in inputs]
    place = torch.empty_like(inputs[0])

    def assert_close(found, number):
        torch.testing.assert_close(found, expected[number], rtol=1.6e-2, atol=1.6e-2)

    assert_close(fused.rms_norm(inputs[0], norm, 1e-6), 0)
    before = len(runs)
    for number in (1, 2, 3):
        assert_close(fused.rms_norm(inputs[number], norm, 1e-6), number)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        found = fused.rms_norm(place, norm, 1e-6)
    for number in (4, 5):
        place.copy_(inputs[number])
        graph.replay()
        assert_close(found, number)
    assert len(runs) == before


def test_constants_are_the_last_parameters_of_every_kernel(compiled_kernels):
    for jitted in compiled_kernels:
        order = [param.is_constexpr for param in jitted.params]
        assert order == sorted(order)
