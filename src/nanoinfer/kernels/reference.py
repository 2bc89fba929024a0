"""Every kernel of the engine in plain PyTorch: the oracle for the Triton kernels, and the path without a GPU.

Names used in shapes: T tokens of a step, B sequences, S sampled rows, Hq query heads, Hkv key/value heads (Hkv divides
Hq; query head h reads key/value head h // (Hq // Hkv)), D head size, N blocks, M blocks in a row of the block table.

The KV cache of one layer is two tensors (N, block_size, Hkv, D), keys and values. Token position p of a sequence lies
in block `block_table[row, p // block_size]` at offset `p % block_size`. `slot_mapping[t]` is the flat place
`block * block_size + offset` that token t is written to. Rows of a block table are padded with any valid block id, and
padded tokens (CUDA graphs) are written to a block that no sequence owns, so no kernel needs a "skip" value.

All arithmetic is done in float32 and rounded once to the input's dtype, except matrix products.
"""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn.functional import linear, scaled_dot_product_attention, silu

if TYPE_CHECKING:
    from torch import Tensor

# Philox-4x32 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3. SC 2011, section 3.3).
_PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_PHILOX_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_PHILOX_ROUNDS = 10
_MASK32 = 0xFFFFFFFF
NOISE_LANES = 256
NOISE_TILE = 4 * NOISE_LANES


# --- normalization, rotation, activation ------------------------------------------------------------------------------


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale each row of x (..., H) to unit root mean square, then by weight (H,)."""
    values = x.float()
    values = values * torch.rsqrt(values.square().mean(-1, keepdim=True) + eps)
    return (values * weight.float()).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Add x (T, H), or the sum of its parts (P, T, H) float32, to the residual stream (T, H) and normalize the sum.

    Returns (normalized, new residual). The sum is rounded to the residual's dtype before it is normalized. A kernel
    may overwrite either input, so callers use only what is returned.
    """
    residual = x + residual if x.dim() == residual.dim() else (x.sum(0) + residual.float()).to(residual.dtype)
    return rms_norm(residual, weight, eps), residual


def rotary(x: Tensor, cos_sin: Tensor, positions: Tensor) -> Tensor:
    """Rotate pairs (i, i + D/2) of x (T, H, D) by the angles of their positions (T,) int64.

    cos_sin (max_position, D) float32 holds D/2 cosines, then D/2 sines. This is the "half" layout of Hugging Face
    checkpoints, not the interleaved one of the RoFormer paper.
    """
    cos, sin = cos_sin[positions].unsqueeze(1).chunk(2, dim=-1)
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up for gate_up (T, 2 I), gate first; shape (T, I)."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (silu(gate) * up).to(gate_up.dtype)


def gated_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return silu(gate) * up with (gate, up) = x W^T + b for x (T, K), W (2 N, K), b (2 N,) or None, gate first."""
    return silu_and_mul(linear(x, weight, bias))


# --- products of a few rows, with what surrounds them -----------------------------------------------------------------


def norm_linear(x: Tensor, norm_weight: Tensor, eps: float, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return rms_norm(x) W^T + b for x (T, K), norm_weight (K,), W (N, K), b (N,) or None."""
    return linear(rms_norm(x, norm_weight, eps), weight, bias)


def norm_gated_linear(x: Tensor, norm_weight: Tensor, eps: float, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return silu(gate) * up with (gate, up) = rms_norm(x) W^T + b.

    x (T, K), norm_weight (K,), W (2 N, K) and b (2 N,) or None, gate first. Returns (T, N).
    """
    return silu_and_mul(norm_linear(x, norm_weight, eps, weight, bias))


def linear_add(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, out: Tensor | None = None
) -> Tensor:
    """Return residual + (x W^T + b) for x (T, K), W (N, K), b (N,) or None, residual (T, N), None adds nothing.

    The result is written to out (T, N) where that is given.
    """
    product = linear(x, weight, bias)
    total = product if residual is None else residual + product
    return total if out is None else out.copy_(total)


# --- the paged cache --------------------------------------------------------------------------------------------------


def store_kv(key: Tensor, value: Tensor, key_blocks: Tensor, value_blocks: Tensor, slot_mapping: Tensor) -> None:
    """Write key and value (T, Hkv, D) into the blocks (N, block_size, Hkv, D) at slot_mapping (T,) int64."""
    key_blocks.flatten(0, 1).index_copy_(0, slot_mapping, key)
    value_blocks.flatten(0, 1).index_copy_(0, slot_mapping, value)


def qk_norm_rotary_store(
    qkv: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    cos_sin: Tensor,
    positions: Tensor,
    key_blocks: Tensor,
    value_blocks: Tensor,
    slot_mapping: Tensor,
) -> Tensor:
    """Turn the fused projection into a rotated query, and keys and values in their blocks.

    qkv (T, (Hq + 2 Hkv) * D): all query heads, then all key heads, then all value heads; Hkv and D are those of the
    blocks. q_norm and k_norm (D,) normalize each head before the rotation (Qwen3); both None leaves that out.
    positions (T,) int64; cos_sin as in `rotary`; slot_mapping (T,) int64. Returns the query (T, Hq, D), contiguous.
    Keys are rounded to the cache's dtype once, after normalization and rotation.
    """
    num_kv_heads, head_dim = key_blocks.shape[2:]
    heads = qkv.view(len(qkv), -1, head_dim)
    num_heads = heads.shape[1] - 2 * num_kv_heads
    query = _norm_rotary(heads[:, :num_heads], q_norm, eps, cos_sin, positions)
    key = _norm_rotary(heads[:, num_heads:-num_kv_heads], k_norm, eps, cos_sin, positions)
    value = heads[:, -num_kv_heads:]
    store_kv(key.to(key_blocks.dtype), value.to(value_blocks.dtype), key_blocks, value_blocks, slot_mapping)
    return query.to(qkv.dtype)


def _norm_rotary(x: Tensor, weight: Tensor | None, eps: float, cos_sin: Tensor, positions: Tensor) -> Tensor:
    """Normalize each head (where there is a weight) and rotate, in float32."""
    values = x.float()
    if weight is not None:
        values = rms_norm(values, weight, eps)
    return rotary(values, cos_sin, positions)


# --- attention over the paged cache -----------------------------------------------------------------------------------


def paged_decode(
    query: Tensor,
    key_blocks: Tensor,
    value_blocks: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    scale: float,
    max_context_len: int | None = None,
) -> Tensor:
    """Attend one query token per sequence to its own KV blocks.

    query (B, Hq, D); key/value blocks (N, block_size, Hkv, D); block_table (B, M) int32, rows padded with any valid id;
    context_lens (B,) int32 counts the new token, 0 marks a padded row, whose result is zeros. max_context_len is an
    upper bound of the contexts where the host knows one. Returns (B, Hq, D) in query's dtype; accumulates in float32.
    """
    block_size, num_kv_heads = key_blocks.shape[1:3]
    longest = max(1, int(context_lens.max()) if max_context_len is None else max_context_len)
    table = block_table[:, : _cdiv(longest, block_size)]
    keys = _gather(key_blocks, table)[:, :, :longest]
    values = _gather(value_blocks, table)[:, :, :longest]
    visible = torch.arange(longest, device=query.device) < context_lens[:, None].clamp(min=1)
    # The query heads that share a key/value head stand where SDPA expects query positions: no head is copied.
    grouped = query.float().view(len(query), num_kv_heads, -1, query.shape[-1])
    out = scaled_dot_product_attention(grouped, keys, values, attn_mask=visible[:, None, None], scale=scale)
    return (out * (context_lens > 0)[:, None, None, None]).flatten(1, 2).to(query.dtype)


def decode_attention(
    qkv: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    cos_sin: Tensor,
    positions: Tensor,
    key_blocks: Tensor,
    value_blocks: Tensor,
    slot_mapping: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    scale: float,
    out: Tensor,
    *,
    max_context_len: int | None = None,
    sparse: bool = False,  # noqa: ARG001  a hint to the kernel
) -> None:
    """Store one new token per sequence and attend from it to its sequence.

    `qk_norm_rotary_store`, then `paged_decode`: their arguments and shapes. Writes to out (B, Hq, D) of qkv's dtype.
    Rows whose context length is 0 are no sequences: what is written for them, here and in the cache, is undefined, and
    may be nothing. `sparse` says that most rows may be of that kind.
    """
    query = qk_norm_rotary_store(qkv, q_norm, k_norm, eps, cos_sin, positions, key_blocks, value_blocks, slot_mapping)
    out.copy_(paged_decode(query, key_blocks, value_blocks, block_table, context_lens, scale, max_context_len))


def paged_prefill(
    query: Tensor,
    key_blocks: Tensor,
    value_blocks: Tensor,
    block_table: Tensor,
    query_starts: Tensor,
    context_lens: Tensor,
    max_query_len: int,
    scale: float,
) -> Tensor:
    """Attend the new tokens of each sequence, causally, to all its tokens: cached ones and new ones.

    query (T, Hq, D), sequences one after the other; sequence b owns rows query_starts[b] .. query_starts[b + 1] - 1,
    which may be none; query_starts (B + 1,) int32; context_lens (B,) int32 counts cached and new tokens; block_table
    (B, M) int32, rows padded with any valid id. Row i of a sequence stands at position context_len - query_len + i and
    sees positions up to its own. max_query_len is the longest query (a host number, so that a launch grid needs no
    device read). Returns (T, Hq, D) in query's dtype, anything in rows that no sequence owns; accumulates in float32.

         position   0 ............ context_len - query_len ............ context_len - 1
                    | cached blocks |  row 0 of the query    ...      last row          |
    """
    starts, contexts = query_starts.tolist(), context_lens.tolist()
    if max(end - start for start, end in pairwise(starts)) > max_query_len:
        raise ValueError(f"max_query_len is {max_query_len}, shorter than the longest query")
    out = torch.empty_like(query)
    for (query_len, context_len), rows in _equal_shapes(starts, contexts).items():
        tokens = torch.cat([torch.arange(starts[row], starts[row + 1]) for row in rows]).to(query.device)
        table = block_table[torch.tensor(rows, device=query.device)]
        group = query[tokens].view(len(rows), query_len, *query.shape[1:])
        attended = _causal_attention(group, key_blocks, value_blocks, table, context_len, scale)
        out[tokens] = attended.flatten(0, 1).to(query.dtype)
    return out


def prefill_attention(
    qkv: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    cos_sin: Tensor,
    positions: Tensor,
    key_blocks: Tensor,
    value_blocks: Tensor,
    slot_mapping: Tensor,
    block_table: Tensor,
    query_starts: Tensor,
    context_lens: Tensor,
    max_query_len: int,
    scale: float,
    out: Tensor,
) -> None:
    """Store all T new tokens and attend from those of each sequence, causally, to all its tokens.

    `qk_norm_rotary_store`, then `paged_prefill`: their arguments and shapes. Writes the sequences' rows of out
    (T, Hq, D) of qkv's dtype, and no others.
    """
    query = qk_norm_rotary_store(qkv, q_norm, k_norm, eps, cos_sin, positions, key_blocks, value_blocks, slot_mapping)
    attended = paged_prefill(
        query, key_blocks, value_blocks, block_table, query_starts, context_lens, max_query_len, scale
    )
    owned = slice(int(query_starts[0]), int(query_starts[-1]))
    out[owned] = attended[owned]


def _equal_shapes(starts: list[int], contexts: list[int]) -> dict[tuple[int, int], list[int]]:
    """Group sequences of equal (query length, context length): each group is one batched attention."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, context_len in enumerate(contexts):
        if starts[row + 1] > starts[row]:
            groups[starts[row + 1] - starts[row], context_len].append(row)
    return groups


def _causal_attention(
    query: Tensor, key_blocks: Tensor, value_blocks: Tensor, table: Tensor, context_len: int, scale: float
) -> Tensor:
    """Attend query (B, L, Hq, D) to contexts of one length; returns (B, L, Hq, D) in float32."""
    table = table[:, : _cdiv(context_len, key_blocks.shape[1])]
    keys = _gather(key_blocks, table)[:, :, :context_len]
    values = _gather(value_blocks, table)[:, :, :context_len]
    query_len = query.shape[1]
    whole = query_len == context_len
    mask = None if whole else _causal_mask(query_len, context_len, query.device)
    out = scaled_dot_product_attention(
        query.float().transpose(1, 2), keys, values, attn_mask=mask, is_causal=whole, scale=scale, enable_gqa=True
    )
    return out.transpose(1, 2)


def _causal_mask(query_len: int, context_len: int, device: torch.device) -> Tensor:
    """Boolean (query_len, context_len): which positions the last `query_len` of a context may see."""
    return torch.ones(query_len, context_len, dtype=torch.bool, device=device).tril(context_len - query_len)


def _gather(blocks: Tensor, table: Tensor) -> Tensor:
    """Lay the blocks of each row end to end: (N, block_size, Hkv, D), (B, m) -> (B, Hkv, m * block_size, D) float32."""
    return blocks[table].flatten(1, 2).transpose(1, 2).float()


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


# --- the rows of a decode step ----------------------------------------------------------------------------------------


class DecodeRows(NamedTuple):
    """What a decode step reads of its B rows.

    token_ids, slot_mapping, seeds (B,) int64; block_table (B, M) int32; context_lens (B,) int32, the new token
    included, 0 for a padded row; temperatures (B,) float32.
    """

    token_ids: Tensor
    slot_mapping: Tensor
    block_table: Tensor
    context_lens: Tensor
    temperatures: Tensor
    seeds: Tensor


def decode_inputs(
    rows: Tensor, block_tables: Tensor, last_tokens: Tensor, temperatures: Tensor, seeds: Tensor, block_size: int
) -> DecodeRows:
    """Write each row's block into its slot's table and gather what the step reads.

    rows (3, B) int64: slots, positions, and the block that each position lies in. block_tables (S, M) int32 is updated;
    last_tokens, seeds (S,) int64; temperatures (S,) float32. The last slot marks padded rows.
    """
    slots, positions, blocks = rows
    block_tables[slots, positions // block_size] = blocks.int()
    return DecodeRows(
        token_ids=last_tokens[slots],
        slot_mapping=blocks * block_size + positions % block_size,
        block_table=block_tables[slots],
        context_lens=torch.where(slots == len(block_tables) - 1, 0, positions + 1).int(),
        temperatures=temperatures[slots],
        seeds=seeds[slots],
    )


# --- sampling ---------------------------------------------------------------------------------------------------------


def philox_4x32(counters: tuple[Tensor, Tensor, Tensor, Tensor], keys: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Return the four output words of Philox-4x32-10; all words are int64 tensors holding 0 .. 2**32 - 1."""
    c0, c1, c2, c3 = counters
    k0, k1 = keys
    for _ in range(_PHILOX_ROUNDS):
        # A 64-bit product wraps like the unsigned one; the mask after the arithmetic shift leaves its high word.
        product0, product1 = c0 * _PHILOX_MULTIPLIERS[0], c2 * _PHILOX_MULTIPLIERS[1]
        c0, c2 = (product1 >> 32 & _MASK32) ^ c1 ^ k0, (product0 >> 32 & _MASK32) ^ c3 ^ k1
        c1, c3 = product1 & _MASK32, product0 & _MASK32
        k0, k1 = (k0 + _PHILOX_KEY_STEPS[0]) & _MASK32, (k1 + _PHILOX_KEY_STEPS[1]) & _MASK32
    return c0, c1, c2, c3


def gumbel_noise(seeds: Tensor, token_indices: Tensor, vocab_size: int) -> Tensor:
    """Draw standard Gumbel noise (S, vocab_size) float32 from seeds (S,) int64 and output token indices (S,).

    A value depends on (seed, token index, vocabulary index) alone. Bit for bit, for vocabulary index v:

        key      k0 = seed & 0xffffffff            k1 = seed >> 32
        counter  c0 = 256 * (v // 1024) + v % 256  c1 = token index    c2 = c3 = 0
        word     w  = output word (v // 256) % 4 of Philox-4x32-10: one call serves v, v + 256, v + 512, v + 768
        uniform  u  = ((w >> 9) + 0.5) * 2**-23    exact in float32, never 0 or 1
        noise    g  = -log(-log(u))                float32

    `tl.philox(seed, c0, c1, 0, 0)` with uint32 counters returns the same four words. Devices agree on u in every bit
    and on g up to the rounding of their logarithms.
    """
    lanes = torch.arange(_cdiv(vocab_size, NOISE_TILE) * NOISE_LANES, device=seeds.device)
    index = token_indices.to(torch.int64)[:, None].expand(-1, len(lanes))
    zero = torch.zeros_like(index)
    keys = (seeds & _MASK32)[:, None], (seeds >> 32 & _MASK32)[:, None]
    words = philox_4x32((lanes.expand(len(seeds), -1), index, zero, zero), keys)
    tiles = torch.stack([word.view(len(seeds), -1, NOISE_LANES) for word in words], dim=2)
    uniform = ((tiles.flatten(1)[:, :vocab_size] >> 9).float() + 0.5) * 2.0**-23
    return -torch.log(-torch.log(uniform))


def sample(logits: Tensor, temperatures: Tensor, seeds: Tensor, token_indices: Tensor) -> Tensor:
    """Choose one token a row: argmax of logits / temperature + Gumbel noise, which draws from the softmax.

    logits (S, V) any float dtype, -inf where a token is excluded; temperatures (S,) float32, 0 is greedy: no noise, and
    the logits as they are; seeds (S,) int64; token_indices (S,) int32 or int64. Returns (S,) int64; of equal scores the
    lowest index wins. (Gumbel-max: Maddison, Tarlow, Minka, A* sampling, NeurIPS 2014, section 2.)
    """
    return sample_shard(logits, temperatures, seeds, token_indices, 0)[1]


def sample_shard(
    logits: Tensor, temperatures: Tensor, seeds: Tensor, token_indices: Tensor, first: int
) -> tuple[Tensor, Tensor]:
    """Do what `sample` does for the part of a vocabulary that begins at `first`; logits (S, V) are that part.

    Returns each row's best score (S,) float32 and its token (S,) int64, counted in the whole vocabulary. The best of
    all parts is what `sample` would choose from the whole.
    """
    scores = logits.float()
    drawn = temperatures > 0
    if bool(drawn.any()):  # noise is most of the work, and greedy rows need none
        noise = gumbel_noise(seeds[drawn], token_indices[drawn], first + logits.shape[1])[:, first:]
        scores = scores.index_put((drawn,), scores[drawn] / temperatures[drawn][:, None] + noise)
    best, index = scores.max(-1)
    return best, index + first


def attention_scale(head_dim: int) -> float:
    """Return the usual factor on query-key products, 1 / sqrt(D)."""
    return 1.0 / math.sqrt(head_dim)
