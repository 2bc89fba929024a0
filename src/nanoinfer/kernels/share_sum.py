"""Sums over a few GPUs that read and write each other's memory, in Triton: for messages that fill the links.

Every rank adds up a share of the message and writes the sum of it to all ranks, in place. So a message of S bytes on n
ranks takes (n - 1) / n S bytes each way to read and as many to write, the least that a sum can take without multicast.

    1. meet: all ranks' parts are there, because what wrote them ended before this kernel began
    2. add up the own share in float32, reading it from all ranks, and write it to all ranks
    3. meet again: nobody reads this rank's memory any more, or writes to it

Programs of one number meet: each tells its fellows on the other ranks how often it has come, and waits until all have
come as often. All programs of a kernel together so leave nothing behind, and messages of any size may follow.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from nanoinfer.kernels.launch import early_launch
from nanoinfer.kernels.variant import Variant

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PROGRAMS = 128  # with TILE_BYTES each, enough bytes under way to hide the links' latency
TILE_BYTES = 1 << 13  # that one program reads from each rank at once
UNIT_BYTES = 16  # shares begin at multiples, as the widest loads want it
FOR_EVER = 2**31 - 1


def share_sum(
    x: Tensor,
    addresses: Tensor,
    flags: Tensor,
    flag_addresses: Tensor,
    counts: Tensor,
    *,
    rank: int,
    patience: int = FOR_EVER,
) -> None:
    """Replace x by its sum over the ranks; every rank calls this with the same shape, in the same order of calls.

    x contiguous, float32, float16 or bfloat16, a multiple of UNIT_BYTES, at the beginning of memory that all ranks can
    read and write; addresses (ranks,) int64: where that begins on each rank, as this rank sees it. flags (ranks,
    PROGRAMS) int32 in such memory too, zeros before the first sum; flag_addresses (ranks,) int64 likewise. counts
    (PROGRAMS,) int32, zeros before the first sum. Added up in float32, and the same bits on every rank. After
    `patience` looks for a rank that is late the sum goes on without it and is wrong.
    """
    num_ranks, num_programs = flags.shape
    num_units, left = divmod(x.numel() * x.itemsize, UNIT_BYTES)
    if left:
        raise ValueError(f"a message of {x.numel() * x.itemsize} bytes is no multiple of {UNIT_BYTES}")
    share = -(-num_units // num_ranks)
    _share_variant(num_ranks, num_programs, x.itemsize, x.device).launch(
        (min(num_programs, -(-share * UNIT_BYTES // TILE_BYTES)), 1, 1),
        (addresses, flags, flag_addresses, counts, x.view(-1)[:1]),
        (num_units, share, rank, patience),
    )


@cache
def _share_variant(num_ranks: int, num_programs: int, itemsize: int, device: torch.device) -> Variant:
    return Variant(
        _share_kernel,
        RANKS=num_ranks,
        PROGRAMS=num_programs,
        UNIT=UNIT_BYTES // itemsize,
        TILE=TILE_BYTES // itemsize,
        num_warps=16,
        **early_launch(device),
    )


@triton.jit
def _meet(own, fellows, count, patience):
    """Tell the other ranks' programs that this one has come for the `count`-th time; wait until all have."""
    tl.debug_barrier()  # what the other threads of this program have written is told of too
    tl.atomic_xchg(fellows, count, sem="release", scope="sys")
    came = tl.atomic_add(own, 0, sem="acquire", scope="sys")
    looks = patience
    while (looks > 0) & (tl.min(came) < count):
        came = tl.atomic_add(own, 0, sem="acquire", scope="sys")
        looks -= 1
    tl.debug_barrier()


@triton.jit(do_not_specialize=["num_units", "share", "rank", "patience"])
def _share_kernel(
    addresses,
    flags,
    flag_addresses,
    counts,
    kind,
    num_units,
    share,
    rank,
    patience,
    RANKS: tl.constexpr,
    PROGRAMS: tl.constexpr,
    UNIT: tl.constexpr,
    TILE: tl.constexpr,
    EARLY: tl.constexpr,
):
    program = tl.program_id(0)
    source = tl.arange(0, RANKS)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    count = tl.load(counts + program) + 1
    own = flags + source * PROGRAMS + program
    fellows = tl.load(flag_addresses + source).to(flags.dtype) + rank * PROGRAMS + program
    _meet(own, fellows, 2 * count - 1, patience)
    begin, end = rank * share * UNIT, tl.minimum((rank + 1) * share, num_units) * UNIT
    for first in range(begin + program * TILE, end, tl.num_programs(0) * TILE):
        index = tl.multiple_of(first, UNIT) + tl.arange(0, TILE)
        inside = index < tl.multiple_of(end, UNIT)
        total = tl.zeros((TILE,), tl.float32)
        for peer in tl.static_range(RANKS):
            part = tl.multiple_of(tl.load(addresses + peer).to(kind.dtype), 16)
            total += tl.load(part + index, mask=inside, other=0).to(tl.float32)
        whole = total.to(kind.dtype.element_ty)
        for step in tl.static_range(RANKS):
            target = tl.multiple_of(tl.load(addresses + (rank + step) % RANKS).to(kind.dtype), 16)
            tl.store(target + index, whole, mask=inside)
    _meet(own, fellows, 2 * count, patience)
    tl.store(counts + program, count)
