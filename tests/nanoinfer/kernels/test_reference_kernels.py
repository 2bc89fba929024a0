"""The reference kernels against definitions written out token by token."""

import pytest
import torch

from nanoinfer.kernels import reference


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def words(*values):
    return tuple(torch.tensor([value]) for value in values)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, expected):
    out = reference.philox_4x32(words(*counter), words(*key))
    assert tuple(int(word) for word in out) == expected


def test_noise_of_one_vocabulary_index_follows_the_documented_bits():
    seed, token_index = 2**62 + 12345678901, 7
    noise = reference.gumbel_noise(torch.tensor([seed]), torch.tensor([token_index]), 5000)
    for v in (0, 255, 256, 1023, 1024, 4999):
        counter = words(256 * (v // 1024) + v % 256, token_index, 0, 0)
        word = int(reference.philox_4x32(counter, words(seed & 0xFFFFFFFF, seed >> 32))[v // 256 % 4])
        uniform = torch.tensor(((word >> 9) + 0.5) / 2**23)
        assert noise[0, v] == -torch.log(-torch.log(uniform))


def test_noise_depends_on_seed_and_token_index_alone():
    seeds, indices = torch.tensor([3, 9, 3, 3]), torch.tensor([0, 0, 1, 0])
    noise = reference.gumbel_noise(seeds, indices, 700)
    assert torch.equal(noise[0], noise[3])
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[0], noise[2])
    assert torch.equal(noise[1:2], reference.gumbel_noise(seeds[1:2], indices[1:2], 700))


def test_samples_follow_the_softmax():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5])
    n, temperature = 6_000, 0.7
    ids = reference.sample(logits.expand(n, -1), torch.full((n,), temperature), torch.arange(n), torch.zeros(n))
    observed = torch.bincount(ids, minlength=5) / n
    expected = torch.softmax(logits / temperature, 0)
    assert torch.all((observed - expected).abs() < 5 * (expected * (1 - expected) / n).sqrt())


def test_temperature_zero_is_argmax_and_ties_go_to_the_lowest_index():
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 0.0, -1.0]])
    ids = reference.sample(logits, torch.zeros(2), torch.tensor([1, 2]), torch.tensor([0, 0]))
    assert ids.tolist() == [1, 0]


def test_excluded_tokens_are_never_drawn():
    logits = torch.full((2000, 300), float("-inf"))
    logits[:, 17] = -50.0
    ids = reference.sample(logits, torch.ones(2000), torch.arange(2000), torch.zeros(2000))
    assert ids.eq(17).all()


# --- attention --------------------------------------------------------------------------------------------------------


def attend_one(query, keys, values, scale):
    """One query head vector over keys and values (context, D), in float64."""
    weights = torch.softmax(keys.double() @ query.double() * scale, 0)
    return weights @ values.double()


class Cache:
    """Random sequences scattered over a pool of blocks."""

    def __init__(self, context_lens, block_size, num_kv_heads, head_dim, dtype=torch.float32, seed=0):
        generator = torch.Generator().manual_seed(seed)
        counts = [-(-length // block_size) for length in context_lens]
        num_blocks = sum(counts) + 3
        shape = (num_blocks, block_size, num_kv_heads, head_dim)
        self.key_blocks = torch.randn(shape, generator=generator).to(dtype)
        self.value_blocks = torch.randn(shape, generator=generator).to(dtype)
        order = torch.randperm(num_blocks, generator=generator).to(torch.int32)
        self.block_table = torch.full((len(context_lens), max(counts) + 2), int(order[-1]), dtype=torch.int32)
        taken = 0
        for row, count in enumerate(counts):
            self.block_table[row, :count] = order[taken : taken + count]
            taken += count
        self.context_lens = torch.tensor(context_lens, dtype=torch.int32)
        self.generator = generator

    def tokens(self, row, length):
        """Keys and values (length, Hkv, D) of a row, read position by position."""
        size = self.key_blocks.shape[1]
        places = [(int(self.block_table[row, p // size]), p % size) for p in range(length)]
        return (
            torch.stack([self.key_blocks[place] for place in places]),
            torch.stack([self.value_blocks[place] for place in places]),
        )


@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(4, 2, 8), (3, 1, 16), (2, 2, 4)])
def test_paged_decode_equals_attention_read_position_by_position(block_size, num_heads, num_kv_heads, head_dim):
    cache = Cache([1, 7, 16, 33], block_size, num_kv_heads, head_dim)
    query = torch.randn(4, num_heads, head_dim, generator=cache.generator)
    out = reference.paged_decode(
        query, cache.key_blocks, cache.value_blocks, cache.block_table, cache.context_lens, 0.3
    )
    for row, length in enumerate(cache.context_lens.tolist()):
        keys, values = cache.tokens(row, length)
        for head in range(num_heads):
            shared = head // (num_heads // num_kv_heads)
            expected = attend_one(query[row, head], keys[:, shared], values[:, shared], 0.3)
            torch.testing.assert_close(out[row, head].double(), expected, atol=1e-5, rtol=1e-5)


def test_paged_decode_gives_zeros_for_a_padded_row():
    cache = Cache([5, 9], 4, 2, 8)
    query = torch.randn(2, 4, 8, generator=cache.generator)
    lens = torch.tensor([0, 9], dtype=torch.int32)
    out = reference.paged_decode(query, cache.key_blocks, cache.value_blocks, cache.block_table, lens, 0.3)
    assert out[0].eq(0).all()
    assert out[1].ne(0).all()


@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_paged_prefill_is_causal_over_cached_and_new_tokens(block_size):
    query_lens, context_lens = [3, 9, 1, 9, 5], [3, 20, 6, 20, 5]
    cache = Cache(context_lens, block_size, 2, 8)
    starts = torch.tensor([0, *torch.tensor(query_lens).cumsum(0).tolist()], dtype=torch.int32)
    query = torch.randn(sum(query_lens), 4, 8, generator=cache.generator)
    out = reference.paged_prefill(
        query, cache.key_blocks, cache.value_blocks, cache.block_table, starts, cache.context_lens, 9, 0.5
    )
    for row, (query_len, context_len) in enumerate(zip(query_lens, context_lens, strict=True)):
        for i in range(query_len):
            keys, values = cache.tokens(row, context_len - query_len + i + 1)
            for head in range(4):
                expected = attend_one(query[starts[row] + i, head], keys[:, head // 2], values[:, head // 2], 0.5)
                torch.testing.assert_close(out[starts[row] + i, head].double(), expected, atol=1e-5, rtol=1e-5)


def test_paged_prefill_refuses_a_wrong_longest_query():
    cache = Cache([4], 4, 1, 4)
    starts = torch.tensor([0, 4], dtype=torch.int32)
    with pytest.raises(ValueError, match="max_query_len is 3"):
        reference.paged_prefill(
            torch.ones(4, 1, 4),
            cache.key_blocks,
            cache.value_blocks,
            cache.block_table,
            starts,
            cache.context_lens,
            3,
            1.0,
        )


def test_half_precision_attention_is_rounded_once():
    cache = Cache([40, 12], 8, 2, 16, dtype=torch.float16)
    query = torch.randn(2, 4, 16, generator=cache.generator).half()
    arguments = cache.block_table, cache.context_lens, 0.25
    half = reference.paged_decode(query, cache.key_blocks, cache.value_blocks, *arguments)
    full = reference.paged_decode(query.float(), cache.key_blocks.float(), cache.value_blocks.float(), *arguments)
    assert half.dtype == torch.float16
    assert torch.equal(half, full.half())


# --- the rest ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_norm", [True, False])
def test_qk_norm_rotary_store_writes_keys_and_values_where_the_slots_say(with_norm):
    torch.manual_seed(0)
    tokens, heads, kv_heads, dim, eps = 5, 4, 2, 8, 1e-6
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * dim)
    q_norm, k_norm = (torch.rand(dim), torch.rand(dim)) if with_norm else (None, None)
    positions = torch.tensor([0, 3, 9, 1, 2])
    angles = torch.arange(10)[:, None] * torch.rand(dim // 2)
    cos_sin = torch.cat((angles.cos(), angles.sin()), -1)
    key_blocks, value_blocks = torch.zeros(3, 4, kv_heads, dim), torch.zeros(3, 4, kv_heads, dim)
    slots = torch.tensor([11, 0, 5, 6, 2])
    query = reference.qk_norm_rotary_store(
        qkv, q_norm, k_norm, eps, cos_sin, positions, key_blocks, value_blocks, slots
    )
    for t in range(tokens):
        split = qkv[t].view(-1, dim)
        for head in range(heads + kv_heads):
            vector = split[head]
            if with_norm:
                vector = vector / (vector.square().mean() + eps).sqrt() * (q_norm if head < heads else k_norm)
            paired = torch.complex(vector[: dim // 2], vector[dim // 2 :])
            turned = paired * torch.polar(torch.ones(dim // 2), angles[positions[t]])
            expected = torch.cat((turned.real, turned.imag))
            place = divmod(int(slots[t]), 4)
            found = query[t, head] if head < heads else key_blocks[place][head - heads]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(value_blocks[divmod(int(slots[t]), 4)], split[heads + kv_heads :])
    untouched = [slot for slot in range(12) if slot not in slots.tolist()]
    assert key_blocks.flatten(0, 1)[untouched].eq(0).all()


def test_add_rms_norm_returns_the_sum_and_its_normalization():
    x, residual, weight = torch.randn(3, 8), torch.randn(3, 8), torch.rand(8)
    normed, total = reference.add_rms_norm(x.clone(), residual.clone(), weight, 1e-5)
    torch.testing.assert_close(total, x + residual)
    expected = torch.nn.functional.rms_norm(x + residual, (8,), weight, 1e-5)
    torch.testing.assert_close(normed, expected)


def test_silu_and_mul_takes_the_gate_first():
    gate, up = torch.randn(2, 3), torch.randn(2, 3)
    out = reference.silu_and_mul(torch.cat((gate, up), -1))
    torch.testing.assert_close(out, gate * torch.sigmoid(gate) * up)
