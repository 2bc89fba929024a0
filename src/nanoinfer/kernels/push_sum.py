"""Sums over a few GPUs that write into each other's memory, in Triton: for messages so small that only latency counts.

A barrier before a sum and one after it cost more than the sum. Here every 4 bytes of data travel with 4 bytes that say
to which sum they belong, in one 8-byte word that is written at once; who waits for the word needs no other sign. (The
protocol is NCCL's "LL".) Each rank writes its words to a place of its own in every rank's memory, then reads all places
of its own memory until they hold words of this sum.

    received   (2, ranks, capacity) int64 words: of odd and of even sums, by source

Two places in turn are enough: a rank that has all words of sum e + 1 knows that every rank has finished sum e, because
it began the next one; so nobody still reads what sum e + 2 overwrites. Each program keeps its own count of sums and
meets only the same program of the other ranks, so messages of any size may follow each other.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from nanoinfer.kernels.launch import early_launch
from nanoinfer.kernels.variant import Variant

if TYPE_CHECKING:
    from torch import Tensor

WORDS = 256  # that one program sends to each rank
FOR_EVER = 2**31 - 1  # looks for words that are missing: half an hour of them, longer than anybody waits for a rank


def push_sum(
    x: Tensor,
    received: Tensor,
    addresses: Tensor,
    counts: Tensor,
    *,
    rank: int,
    patience: int = FOR_EVER,
) -> Tensor:
    """Return the sum of x over the ranks; every rank calls this with the same shape, in the same order of calls.

    x contiguous, float32, or float16 or bfloat16 with an even number of elements. received (2, ranks, capacity) int64,
    zeros before the first sum, in memory that all ranks can write; a word holds 4 bytes of x, and capacity is a
    multiple of WORDS. addresses (ranks,) int64: where each rank's `received` lies, as this rank sees it. counts
    (capacity / WORDS,) int32, zeros before the first sum. Sums are added up in float32, in the same order on every
    rank. After `patience` looks the result is what has come so far, which is wrong.
    """
    _, num_ranks, capacity = received.shape
    num_words = x.numel() * x.itemsize // 4
    if num_words > capacity:
        raise ValueError(f"a message of {num_words} words does not fit into places of {capacity}")
    out = torch.empty_like(x)
    _push_variant(num_ranks, capacity, x.dtype, x.device).launch(
        (-(-num_words // WORDS), 1, 1),
        (x.view(-1).view(torch.int32), out.view(-1).view(torch.int32), received, addresses, counts),
        (num_words, rank, patience),
    )
    return out


@cache
def _push_variant(num_ranks: int, capacity: int, dtype: torch.dtype, device: torch.device) -> Variant:
    return Variant(
        _push_kernel,
        RANKS=num_ranks,
        CAPACITY=capacity,
        WORDS=WORDS,
        KIND=_KINDS[dtype],
        num_warps=4,
        **early_launch(device),
    )


_KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


@triton.jit
def _low(word, KIND: tl.constexpr):
    """Return the first element of a word as float32; the only one in float32."""
    if KIND == 0:
        value = word.to(tl.float32, bitcast=True)
    elif KIND == 1:
        value = (word & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        value = (word << 16).to(tl.float32, bitcast=True)
    return value


@triton.jit
def _high(word, KIND: tl.constexpr):
    """Return the second element of a word as float32."""
    if KIND == 1:
        value = (word >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        value = (word & -65536).to(tl.float32, bitcast=True)
    return value


@triton.jit
def _bits(value, KIND: tl.constexpr):
    """Round float32 to 16 bits and return them in the lower half of an int32."""
    if KIND == 1:
        bits = value.to(tl.float16).to(tl.int16, bitcast=True)
    else:
        bits = value.to(tl.bfloat16).to(tl.int16, bitcast=True)
    return bits.to(tl.int32) & 0xFFFF


# Messages differ in length: none may ask for another compilation.
@triton.jit(
    do_not_specialize=["num_words", "rank", "patience"], do_not_specialize_on_alignment=["x", "out", "addresses"]
)
def _push_kernel(
    x,
    out,
    received,
    addresses,
    counts,
    num_words,
    rank,
    patience,
    RANKS: tl.constexpr,
    CAPACITY: tl.constexpr,
    WORDS: tl.constexpr,
    KIND: tl.constexpr,
    EARLY: tl.constexpr,
):
    program = tl.program_id(0)
    word = program * WORDS + tl.arange(0, WORDS)
    is_word = word < num_words
    source = tl.arange(0, RANKS)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    count = tl.load(counts + program) + 1
    place = (count & 1) * RANKS * CAPACITY
    data = tl.load(x + word, mask=is_word, other=0)
    sent = (count.to(tl.int64) << 32) | (data.to(tl.int64) & 0xFFFFFFFF)
    for step in tl.static_range(RANKS):
        target = tl.load(addresses + (rank + step) % RANKS).to(tl.pointer_type(tl.int64))
        tl.store(target + place + rank * CAPACITY + word, sent, mask=is_word, cache_modifier=".wt")
    places = received + place + source[:, None] * CAPACITY + word[None, :]
    is_place = (source[:, None] >= 0) & is_word[None, :]
    packet = tl.load(places, mask=is_place, other=0, volatile=True)
    looks = patience
    while (looks > 0) & (tl.max(tl.where(is_place & ((packet >> 32).to(tl.int32) != count), 1, 0)) > 0):
        packet = tl.load(places, mask=is_place, other=0, volatile=True)
        looks -= 1
    came = packet.to(tl.int32)
    if KIND == 0:
        total = tl.sum(_low(came, KIND), 0).to(tl.int32, bitcast=True)
    else:
        total = _bits(tl.sum(_low(came, KIND), 0), KIND) | (_bits(tl.sum(_high(came, KIND), 0), KIND) << 16)
    tl.store(out + word, total, mask=is_word)
    tl.store(counts + program, count)
