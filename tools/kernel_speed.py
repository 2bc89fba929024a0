"""Check every Triton kernel against its PyTorch reference on this GPU, then time it, with the variants worth a look.

    PYTHONPATH=src python tools/kernel_speed.py --json kernel_speed.json [--only decode,prefill] [--budget-s 230]

Shapes are those of Qwen3-0.6B: 16 query and 8 key/value heads of 128, hidden size 1,024, vocabulary 151,936.

Time    median over replays of a CUDA graph that launches a kernel many times, divided by the launches. Inputs rotate
        over more memory than the L2 holds, as the layers of a model do, so no launch finds the last one's data.
Bytes   what the kernel must read and write once; its rate is compared with this machine's own read bandwidth.
FLOPs   2 per multiply-add of visible (query, key) pairs; compared with this machine's own bfloat16 product.
Errors  norm(out - reference) / norm(reference), the reference in float32 arithmetic on the same inputs.

Compilation starts cold, in a cache of its own, and is printed by kernel. Variants that no longer fit the budget are
named and skipped. Exits with 1 if an error is over its tolerance.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["TRITON_CACHE_DIR"] = tempfile.mkdtemp(prefix="triton-cold-")  # read when triton is imported

import torch
import triton
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from nanoinfer.kernels import fused, reference, sampling
from nanoinfer.kernels.decode_attention import Cuts, DecodeTuning, decode_attention
from nanoinfer.kernels.linear import LinearTuning, early_linear, linear_tuning
from nanoinfer.kernels.prefill_attention import PrefillTuning, prefill_attention
from nanoinfer.kernels.store_kv import norm_rotary_store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Call = Callable[[], object]

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, INTERMEDIATE, VOCABULARY = 16, 8, 128, 1024, 3072, 151_936
SCALE: float = HEAD_DIM**-0.5
EPS = 1e-6
ROTATION_BYTES = 256 * 2**20  # several times the L2 of any GPU so far
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float32: 5e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
SECTIONS = ("check", "decode", "prefill", "linear", "fused", "sampling")


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison with the reference."""

    kernel: str
    dtype: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is a number within the tolerance."""
        return self.error <= self.tolerance


@dataclass(frozen=True, slots=True)
class Timing:
    """One timed variant; num_bytes or num_flops is what the work needs at least."""

    kernel: str
    shape: str
    variant: str
    microseconds: float
    first_call_s: float
    num_bytes: float
    num_flops: float
    share_of_peak: float


@dataclass(slots=True)
class Session:
    """The machine's peaks, what was found so far, and when to stop."""

    device: torch.device
    deadline: float
    read_bytes_per_s: float = 1.0
    flops_per_s: float = 1.0
    checks: list[Check] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def check(
        self, kernel: str, dtype: torch.dtype, out: Tensor, expected: Tensor, tolerance: float | None = None
    ) -> None:
        """Record the relative error of a kernel's result."""
        error = ((out.float() - expected.float()).norm() / expected.float().norm()).item()
        check = Check(kernel, str(dtype), error, TOLERANCE[dtype] if tolerance is None else tolerance)
        self.checks.append(check)
        print(f"{'ok  ' if check.passed else 'FAIL'} {kernel:<34} {dtype!s:<15} error {error:.2e}", flush=True)

    def time(
        self,
        kernel: str,
        shape: str,
        variant: str,
        calls: Sequence[Call],
        *,
        num_bytes: float = 0,
        num_flops: float = 0,
    ) -> None:
        """Time calls that differ only in the memory they touch; skip them once the budget is spent."""
        if time.monotonic() > self.deadline:
            self.skipped.append(f"{kernel} {shape} {variant}")
            return
        begin = time.monotonic()
        try:
            calls[0]()
            torch.cuda.synchronize()
            first_call_s = time.monotonic() - begin
            microseconds = graph_microseconds(calls)
        except triton.runtime.errors.OutOfResources as error:
            print(f"     {kernel:<14} {shape:<34} {variant:<34} does not fit: {error}", flush=True)
            return
        seconds = microseconds * 1e-6
        share = max(num_bytes / self.read_bytes_per_s, num_flops / self.flops_per_s) / seconds
        timing = Timing(kernel, shape, variant, microseconds, first_call_s, num_bytes, num_flops, share)
        self.timings.append(timing)
        rate = (
            f"{num_flops / seconds / 1e12:7.1f} TFLOP/s" if num_flops else f"{num_bytes / seconds / 1e9:7.0f} GB/s   "
        )
        print(
            f"     {kernel:<14} {shape:<34} {variant:<34} {microseconds:9.2f} us {rate} {share:6.1%}"
            f"   first call {first_call_s:5.2f} s",
            flush=True,
        )


def graph_microseconds(calls: Sequence[Call], repeats: int = 9) -> float:
    """Median time of one call inside a replayed graph of them all, repeated to at least 20 calls."""
    calls[0]()
    torch.cuda.synchronize()
    rounds = -(-20 // len(calls))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call() for _ in range(rounds) for call in calls]
    graph.replay()
    times: list[float] = []
    for _ in range(repeats):
        begin, end = (torch.Event("cuda", enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return statistics.median(times) / len(kept)


def copies(num_bytes: float) -> int:
    """Count how many input sets of a size exceed the cache, from 1 to 64."""
    return int(min(64, max(1, -(-ROTATION_BYTES // max(1, int(num_bytes))))))


# --- this machine's peaks ---------------------------------------------------------------------------------------------


def measure_peaks(session: Session) -> dict[str, float]:
    """Measure copy and read bandwidth and the 8192^3 bfloat16 product on random data, and print them."""
    source = torch.randn(2**28, device=session.device)
    target = torch.empty_like(source)
    copy_s = graph_microseconds([lambda: target.copy_(source)]) * 1e-6
    read_s = graph_microseconds([lambda: source.view(2**14, 2**14).amax(1)]) * 1e-6
    a, b = (torch.randn(8192, 8192, device=session.device, dtype=torch.bfloat16) for _ in range(2))
    product_s = graph_microseconds([lambda: a @ b]) * 1e-6
    one = torch.zeros(1, device=session.device)
    launch_us = graph_microseconds([lambda: one.add_(1)] * 200)
    num_bytes = source.numel() * 4
    peaks = {
        "copy_bytes_per_s": 2 * num_bytes / copy_s,
        "read_bytes_per_s": num_bytes / read_s,
        "bfloat16_flops_per_s": 2 * 8192**3 / product_s,
        "graph_launch_us": launch_us,
    }
    session.read_bytes_per_s = max(peaks["copy_bytes_per_s"], peaks["read_bytes_per_s"])
    session.flops_per_s = peaks["bfloat16_flops_per_s"]
    print(
        f"peaks: copy {peaks['copy_bytes_per_s'] / 1e9:.0f} GB/s, read {peaks['read_bytes_per_s'] / 1e9:.0f} GB/s, "
        f"bfloat16 product {session.flops_per_s / 1e12:.0f} TFLOP/s, smallest kernel in a graph {launch_us:.2f} us",
        flush=True,
    )
    return peaks


# --- inputs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Paged:
    """A pool of random keys and values, and block tables that each own other blocks of it."""

    key_blocks: Tensor
    value_blocks: Tensor
    tables: list[Tensor]
    context_lens: Tensor


def make_paged(
    context_lens: Sequence[int],
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    num_tables: int = 1,
    head_major: bool = False,
) -> Paged:
    """Deal shuffled blocks to `num_tables` batches; head_major stores a block head by head, seen through strides."""
    needed = [-(-length // block_size) for length in context_lens]
    num_blocks = sum(needed) * num_tables
    shape = (num_blocks, KV_HEADS, block_size, HEAD_DIM) if head_major else (num_blocks, block_size, KV_HEADS, HEAD_DIM)
    key_blocks, value_blocks = (torch.randn(shape, device=device, dtype=dtype) for _ in range(2))
    if head_major:
        key_blocks, value_blocks = key_blocks.transpose(1, 2), value_blocks.transpose(1, 2)
    order = torch.randperm(num_blocks, dtype=torch.int32)
    tables, begin = [], 0
    for _ in range(num_tables):
        table = torch.zeros(len(context_lens), max(needed), dtype=torch.int32)
        for row, count in enumerate(needed):
            table[row, :count] = order[begin : begin + count]
            begin += count
        tables.append(table.to(device))
    return Paged(key_blocks, value_blocks, tables, torch.tensor(context_lens, dtype=torch.int32, device=device))


def random_lengths(count: int, low: int, high: int, seed: int = 0) -> list[int]:
    """Draw lengths of a ragged batch."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high + 1, (count,), generator=generator).tolist()


def rotation_table(device: torch.device) -> Tensor:
    """Return cosines and sines of 40,960 positions, base 1,000,000."""
    angles = torch.outer(torch.arange(40_960), 1e6 ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM))
    return torch.cat((angles.cos(), angles.sin()), dim=-1).to(device)


# --- correctness ------------------------------------------------------------------------------------------------------


def check_kernels(session: Session) -> None:
    """Compare every kernel with its reference in three dtypes."""
    for dtype in DTYPES:
        check_attention(session, dtype)
        check_fused(session, dtype)
        check_sampling(session, dtype)


def check_attention(session: Session, dtype: torch.dtype) -> None:
    """Compare ragged decode, split and not, and ragged prefill, over three block sizes."""
    lengths = [1, 16, 17, 64, 255, 256, 257, *random_lengths(9, 1, 1500)]
    for block_size in (16, 64, 256):
        paged = make_paged(lengths, block_size, dtype, session.device)
        check_decode(session, paged, dtype, f"block {block_size}")
        check_prefill(session, paged, lengths, dtype, f"block {block_size}")


def new_tokens(
    paged: Paged, query_lens: Sequence[int], dtype: torch.dtype, table: Tensor | None = None
) -> dict[str, Any]:
    """Return the arguments that both attention kernels begin with: the last `query_lens` tokens of every context."""
    device, lengths = paged.context_lens.device, paged.context_lens.tolist()
    table = paged.tables[0] if table is None else table
    ranges = [torch.arange(n - new, n) for n, new in zip(lengths, query_lens, strict=True)]
    rows = torch.repeat_interleave(torch.tensor(query_lens)).to(device)
    positions = torch.cat(ranges).to(device)
    block_size = paged.key_blocks.shape[1]
    slots = table[rows, positions // block_size].long() * block_size + positions % block_size
    qkv = torch.randn(len(positions), (HEADS + 2 * KV_HEADS) * HEAD_DIM, device=device, dtype=dtype)
    norm = torch.ones(HEAD_DIM, device=device, dtype=dtype)
    return {
        "qkv": qkv,
        "q_norm": norm,
        "k_norm": norm,
        "eps": EPS,
        "cos_sin": rotation_table(device),
        "positions": positions,
        "key_blocks": paged.key_blocks,
        "value_blocks": paged.value_blocks,
        "slot_mapping": slots,
        "block_table": table,
        "context_lens": paged.context_lens,
        "scale": SCALE,
        "out": torch.empty((len(qkv), HEADS, HEAD_DIM), dtype=dtype, device=device),
    }


def in_float32(arguments: dict[str, Any]) -> dict[str, Any]:
    """Copy what is stored in 16 bits, caches too, so that a reference neither rounds nor writes to the same place."""
    return {
        name: argument.float() if isinstance(argument, Tensor) and argument.is_floating_point() else argument
        for name, argument in arguments.items()
    }


def check_decode(session: Session, paged: Paged, dtype: torch.dtype, name: str) -> None:
    """Compare decode in whole contexts and in parts."""
    first = new_tokens(paged, [1] * len(paged.context_lens), dtype)
    exact = in_float32(first)
    reference.decode_attention(**exact)
    for cuts in (Cuts(1, 1), Cuts(100, 32), None):
        decode_attention(**first, cuts=cuts)
        session.check(f"decode {name} {cuts}", dtype, first["out"], exact["out"])


def check_prefill(session: Session, paged: Paged, context_lens: list[int], dtype: torch.dtype, name: str) -> None:
    """Compare whole prompts and, in every other row, all but 100 cached tokens."""
    query_lens = [max(1, length - 100) if row % 2 else length for row, length in enumerate(context_lens)]
    starts = torch.tensor([0, *query_lens]).cumsum(0).to(session.device, torch.int32)
    first = new_tokens(paged, query_lens, dtype)
    first |= {"query_starts": starts, "max_query_len": max(query_lens)}
    exact = in_float32(first)
    reference.prefill_attention(**exact)
    prefill_attention(**first)
    session.check(f"prefill {name}", dtype, first["out"], exact["out"])


def check_fused(session: Session, dtype: torch.dtype) -> None:
    """Compare normalization, activation, rotation and stores."""
    device, num_tokens = session.device, 300
    x, residual = torch.randn(2, num_tokens, HIDDEN, device=device).to(dtype)
    weight = torch.randn(HIDDEN, device=device).to(dtype)
    expected = reference.add_rms_norm(x, residual, weight, 1e-6)
    out = fused.add_rms_norm(x, residual.clone(), weight, 1e-6)
    session.check("add_rms_norm, normalized", dtype, out[0], expected[0])
    session.check("add_rms_norm, sum", dtype, out[1], expected[1], tolerance=0.0)
    session.check("rms_norm", dtype, fused.rms_norm(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6))
    gate_up = torch.randn(num_tokens, 2 * INTERMEDIATE, device=device).to(dtype)
    session.check("silu_and_mul", dtype, fused.silu_and_mul(gate_up), reference.silu_and_mul(gate_up))
    x, weight = (
        torch.randn(num_tokens, HIDDEN, device=device).to(dtype),
        torch.randn(96, HIDDEN, device=device).to(dtype),
    )
    product = early_linear(x, weight, None, LinearTuning(64, 32, 128, 4, 3))
    tolerance = 1e-3 if dtype == torch.float32 else None  # in float32 an engine takes another product
    session.check("early_linear", dtype, product, x.double() @ weight.double().T, tolerance)


def check_sampling(session: Session, dtype: torch.dtype) -> None:
    """Count rows whose token differs from the reference's: two logarithms may order a near tie differently."""
    num_rows = 64
    logits = (3 * torch.randn(num_rows, VOCABULARY, device=session.device)).to(dtype)
    temperatures = torch.linspace(0.0, 1.5, num_rows, device=session.device)
    seeds = torch.randint(0, 2**63 - 1, (num_rows,), device=session.device)
    indices = torch.arange(num_rows, device=session.device) * 7
    ours = sampling.sample(logits, temperatures, seeds, indices)
    theirs = reference.sample(logits, temperatures, seeds, indices)
    differing = (ours != theirs).sum() / num_rows
    session.check("sample, share of other tokens", dtype, 1 + differing, torch.ones(()), tolerance=1.5 / num_rows)


# --- speed ------------------------------------------------------------------------------------------------------------


def time_decode(session: Session) -> None:
    """Time batch 256 (tile shapes, block sizes, layouts, ragged) and small batches (splits)."""
    uniform = [576] * 256
    for tuning in DECODE_TUNINGS:
        decode_case(session, "256 x 576", uniform, 64, tuning=tuning)
    for block_size in (16, 32, 256):
        decode_case(session, "256 x 576", uniform, block_size)
    decode_case(session, "256 x 576", uniform, 64, head_major=True)
    ragged = random_lengths(256, 100, 2047)
    for cuts in (None, Cuts(1, 1), Cuts(150, 32), Cuts(300, 32), Cuts(600, 32)):
        decode_case(session, "256 x 768", [768] * 256, 64, cuts=cuts)
        decode_case(session, "256 x 100-2047", ragged, 64, cuts=cuts)
        decode_case(session, "64 x 100-2047", ragged[:64], 64, cuts=cuts)
        decode_case(session, "1 x 576", [576], 64, cuts=cuts)
        decode_case(session, "1 x 16384", [16_384], 64, cuts=cuts)
    for batch_size in (1, 2, 4, 8, 16, 32, 64, 128):
        decode_case(session, f"{batch_size} x 576", [576] * batch_size, 64)
    decode_case(session, "256 x 576 float32", uniform, 64, dtype=torch.float32)


DECODE_TUNINGS = (
    None,
    DecodeTuning(32, 1, 2),
    DecodeTuning(32, 1, 4),
    DecodeTuning(16, 1, 4),
    DecodeTuning(64, 1, 2),
    DecodeTuning(32, 2, 2),
    DecodeTuning(32, 2, 3),
    DecodeTuning(32, 2, 4),
    DecodeTuning(64, 2, 2),
    DecodeTuning(64, 2, 3),
    DecodeTuning(64, 4, 2),
    DecodeTuning(128, 4, 2),
)


def decode_case(
    session: Session,
    shape: str,
    context_lens: list[int],
    block_size: int,
    *,
    tuning: DecodeTuning | None = None,
    cuts: Cuts | None = None,
    head_major: bool = False,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Time one decode variant, rotating over batches of the same lengths."""
    num_bytes = sum(context_lens) * 2 * KV_HEADS * HEAD_DIM * dtype.itemsize
    paged = make_paged(
        context_lens, block_size, dtype, session.device, num_tables=copies(num_bytes), head_major=head_major
    )
    ones = [1] * len(context_lens)
    calls = [
        partial(decode_attention, **new_tokens(paged, ones, dtype, table), cuts=cuts, tuning=tuning)
        for table in paged.tables
    ]
    shaped = f"{tuning.tile_keys}k {tuning.num_warps}w {tuning.num_stages}s" if tuning else "default"
    layout = f"block {block_size}{' head-major' if head_major else ''}"
    variant = f"{layout} cuts {tuple(cuts) if cuts else 'default'} {shaped}"
    session.time("decode", shape, variant, calls, num_bytes=num_bytes)


def time_prefill(session: Session) -> None:
    """Time whole prompts, ragged prompts, one long prompt, a chunk far into a context, beside torch's own attention."""
    whole = [512] * 32
    for tuning in PREFILL_TUNINGS:
        prefill_case(session, "32 x 512", whole, whole, 64, tuning)
    for block_size in (16, 256):
        prefill_case(session, "32 x 512", whole, whole, block_size, None)
    ragged = random_lengths(30, 100, 1024)
    prefill_case(session, "30 x 100-1024", ragged, ragged, 64, None)
    for tuning in (None, PrefillTuning(128, 128, 8, 2)):
        prefill_case(session, "1 x 16384", [16_384], [16_384], 64, tuning)
    prefill_case(session, "1 x 2048 after 30720", [2048], [32_768], 64, None)
    prefill_case(session, "100 x 103 after 409", [103] * 100, [512] * 100, 64, None)
    for batch_size, length in ((32, 512), (1, 16_384)):
        query, key, value = (
            torch.randn(batch_size, heads, length, HEAD_DIM, device=session.device, dtype=torch.bfloat16)
            for heads in (HEADS, HEADS, HEADS)
        )
        calls = [partial(scaled_dot_product_attention, query, key, value, is_causal=True)]
        flops = attention_flops([length] * batch_size, [length] * batch_size)
        session.time("torch sdpa", f"{batch_size} x {length}", "contiguous, one KV head a head", calls, num_flops=flops)


PREFILL_TUNINGS = (
    None,
    PrefillTuning(128, 64, 8, 2),
    PrefillTuning(128, 64, 4, 3),
    PrefillTuning(128, 128, 8, 2),
    PrefillTuning(64, 64, 4, 2),
    PrefillTuning(64, 64, 4, 3),
    PrefillTuning(64, 128, 4, 2),
    PrefillTuning(128, 32, 8, 4),
)


def attention_flops(query_lens: Sequence[int], context_lens: Sequence[int]) -> float:
    """Count 4 x heads x head size for each visible (query, key) pair."""
    pairs = sum(
        query * context - query * (query - 1) / 2 for query, context in zip(query_lens, context_lens, strict=True)
    )
    return 4.0 * HEADS * HEAD_DIM * pairs


def prefill_case(
    session: Session,
    shape: str,
    query_lens: list[int],
    context_lens: list[int],
    block_size: int,
    tuning: PrefillTuning | None,
) -> None:
    """Time one prefill variant."""
    paged = make_paged(context_lens, block_size, torch.bfloat16, session.device)
    starts = torch.tensor([0, *query_lens]).cumsum(0).to(session.device, torch.int32)
    call = partial(
        prefill_attention,
        **new_tokens(paged, query_lens, torch.bfloat16),
        query_starts=starts,
        max_query_len=max(query_lens),
        tuning=tuning,
    )
    shaped = (
        f"{tuning.tile_rows}r {tuning.tile_keys}k {tuning.num_warps}w {tuning.num_stages}s" if tuning else "default"
    )
    session.time(
        "prefill", shape, f"block {block_size} {shaped}", [call], num_flops=attention_flops(query_lens, context_lens)
    )


def time_fused(session: Session) -> None:
    """Time the small kernels at one token, a full decode batch and a full prefill step."""
    for num_tokens in (1, 256, 16_384):
        time_norm(session, num_tokens)
        time_silu(session, num_tokens)
        time_store(session, num_tokens)


def time_norm(session: Session, num_tokens: int) -> None:
    """Time residual add and normalization: two rows in, two out."""
    num_bytes = 4 * num_tokens * HIDDEN * 2
    sets = [
        torch.randn(2, num_tokens, HIDDEN, device=session.device, dtype=torch.bfloat16)
        for _ in range(copies(num_bytes))
    ]
    weight = torch.randn(HIDDEN, device=session.device, dtype=torch.bfloat16)
    calls = [partial(fused.add_rms_norm, pair[0], pair[1], weight, 1e-6) for pair in sets]
    session.time("add_rms_norm", f"{num_tokens} tokens", "default", calls, num_bytes=num_bytes)


def time_silu(session: Session, num_tokens: int) -> None:
    """Time the gated activation: two rows in, one out."""
    num_bytes = 3 * num_tokens * INTERMEDIATE * 2
    sets = [
        torch.randn(num_tokens, 2 * INTERMEDIATE, device=session.device, dtype=torch.bfloat16)
        for _ in range(copies(num_bytes))
    ]
    calls = [partial(fused.silu_and_mul, gate_up) for gate_up in sets]
    session.time("silu_and_mul", f"{num_tokens} tokens", "default", calls, num_bytes=num_bytes)


def time_store(session: Session, num_tokens: int) -> None:
    """Time normalization, rotation and store of keys and values: part of the projection in, the cache out."""
    width = (HEADS + 2 * KV_HEADS) * HEAD_DIM
    num_bytes = 2 * num_tokens * 2 * KV_HEADS * HEAD_DIM * 2
    device = session.device
    sets = [torch.randn(num_tokens, width, device=device, dtype=torch.bfloat16) for _ in range(copies(num_bytes))]
    norm = torch.randn(HEAD_DIM, device=device, dtype=torch.bfloat16)
    cos_sin, positions = rotation_table(device), torch.arange(num_tokens, device=device) % 512
    cache = torch.zeros(2, num_tokens // 64 + 1, 64, KV_HEADS, HEAD_DIM, device=device, dtype=torch.bfloat16)
    slots = torch.randperm(cache.shape[1] * 64, device=device)[:num_tokens]
    rest = norm, EPS, cos_sin, positions, cache[0], cache[1], slots
    calls = [partial(norm_rotary_store, qkv, *rest) for qkv in sets]
    session.time("norm_rotary_store", f"{num_tokens} tokens", "default", calls, num_bytes=num_bytes)


def time_linear(session: Session) -> None:
    """Time the product before attention at decode batches, beside cuBLAS."""
    outputs = (HEADS + 2 * KV_HEADS) * HEAD_DIM
    num_bytes = outputs * HIDDEN * 2
    weights = [
        torch.randn(outputs, HIDDEN, device=session.device, dtype=torch.bfloat16) for _ in range(copies(num_bytes))
    ]
    for num_rows in (8, 16, 32, 64, 128):
        x = torch.randn(num_rows, HIDDEN, device=session.device, dtype=torch.bfloat16)
        calls: list[Call] = [partial(torch.nn.functional.linear, x, weight) for weight in weights]
        session.time("linear", f"{num_rows} rows", "cuBLAS", calls, num_bytes=num_bytes)
        for tuning in (linear_tuning(num_rows), *LINEAR_TUNINGS):
            calls = [partial(early_linear, x, weight, None, tuning) for weight in weights]
            session.time("linear", f"{num_rows} rows", str(tuple(tuning)), calls, num_bytes=num_bytes)


LINEAR_TUNINGS = (LinearTuning(64, 64, 128, 4, 3), LinearTuning(128, 128, 64, 8, 4), LinearTuning(32, 64, 128, 4, 3))


def time_sampling(session: Session) -> None:
    """Time greedy and random choice over the full vocabulary, beside torch's argmax."""
    for num_rows in (1, 256):
        for dtype in (torch.bfloat16, torch.float32):
            num_bytes = num_rows * VOCABULARY * dtype.itemsize
            sets = [
                torch.randn(num_rows, VOCABULARY, device=session.device).to(dtype) for _ in range(copies(num_bytes))
            ]
            seeds = torch.arange(num_rows, device=session.device)
            shape = f"{num_rows} rows {str(dtype).removeprefix('torch.')}"
            for temperature in (0.0, 0.6):
                temperatures = torch.full((num_rows,), temperature, device=session.device)
                calls = [partial(sampling.sample, logits, temperatures, seeds, seeds) for logits in sets]
                session.time("sample", shape, f"temperature {temperature}", calls, num_bytes=num_bytes)
            argmax = [partial(torch.argmax, logits, dim=-1) for logits in sets]
            session.time("torch argmax", shape, "", argmax, num_bytes=num_bytes)


# --- the script -------------------------------------------------------------------------------------------------------


def main() -> int:
    """Run the chosen sections; 0 if every check passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the numbers go")
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"comma-separated: {', '.join(SECTIONS)}")
    parser.add_argument("--budget-s", type=float, default=230.0, help="start no new variant after this many seconds")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    if unknown := sorted(set(chosen) - set(SECTIONS)):
        parser.error(f"unknown section {', '.join(unknown)}; choose from {', '.join(SECTIONS)}")
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU; this script only makes sense on one")

    torch.manual_seed(0)
    session = Session(torch.device("cuda", 0), deadline=time.monotonic() + arguments.budget_s)
    print(f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}, triton {triton.__version__}", flush=True)
    begin = time.monotonic()
    peaks = measure_peaks(session)
    actions = (check_kernels, time_decode, time_prefill, time_linear, time_fused, time_sampling)
    for section, action in zip(SECTIONS, actions, strict=True):
        if section in chosen:
            section_begin = time.monotonic()
            action(session)
            print(f"-- {section}: {time.monotonic() - section_begin:.0f} s", flush=True)
            torch.cuda.empty_cache()
    failed = [check for check in session.checks if not check.passed]
    summary = (
        f"{len(session.checks) - len(failed)} of {len(session.checks)} checks passed, {len(session.timings)} timings"
    )
    print(f"{summary}, {len(session.skipped)} skipped, {time.monotonic() - begin:.0f} s")
    for check in failed:
        print(f"FAILED {check.kernel} {check.dtype}: error {check.error:.3e} over {check.tolerance:.1e}")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "device": torch.cuda.get_device_name(0),
            "torch": torch.__version__,
            "triton": triton.__version__,
            "peaks": peaks,
            "checks": [asdict(check) for check in session.checks],
            "timings": [asdict(timing) for timing in session.timings],
            "skipped": session.skipped,
        }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
