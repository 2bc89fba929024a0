"""The fused Triton kernels and sampling against the PyTorch reference."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from nanoinfer.kernels import fused, reference, sampling
from nanoinfer.kernels.store_kv import norm_rotary_store

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Arithmetic is float32 on both sides; the interpreter truncates to bfloat16 where hardware rounds.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 1.6e-2}


def assert_close(out, expected):
    assert out.dtype == expected.dtype
    assert out.shape == expected.shape
    tolerance = TOLERANCE[out.dtype]
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)


def rotation_table(num_positions, head_dim, device):
    angles = torch.outer(torch.arange(num_positions), 1e4 ** -(torch.arange(0, head_dim, 2) / head_dim))
    return torch.cat((angles.cos(), angles.sin()), dim=-1).to(device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [48, 64, 1024])
def test_rms_norm_equals_reference(dtype, width, device):
    x = (3 * torch.randn(3, width, device=device)).to(dtype)
    weight = torch.randn(width, device=device).to(dtype)
    assert_close(fused.rms_norm(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [48, 1024])
def test_add_rms_norm_returns_the_norm_and_the_sum(dtype, width, device):
    x, residual = torch.randn(2, 3, width, device=device).to(dtype)
    weight = torch.randn(width, device=device).to(dtype)
    expected = reference.add_rms_norm(x.clone(), residual.clone(), weight, 1e-6)
    normalized, total = fused.add_rms_norm(x, residual, weight, 1e-6)
    assert_close(normalized, expected[0])
    assert_close(total, expected[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [24, 1024, 1536])
def test_silu_and_mul_equals_reference(dtype, width, device):
    gate_up = (4 * torch.randn(3, 2 * width, device=device)).to(dtype)
    assert_close(fused.silu_and_mul(gate_up), reference.silu_and_mul(gate_up))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(14, 2, 16), (6, 3, 32), (4, 2, 128)])
def test_keys_are_normalized_and_rotated_and_values_copied_to_their_slots_and_nowhere_else(
    dtype, normalize, heads, kv_heads, head_dim, device
):
    num_tokens, block_size = 5, 4
    qkv = torch.randn(num_tokens, (heads + 2 * kv_heads) * head_dim, device=device).to(dtype)
    norm = torch.randn(head_dim, device=device).to(dtype) if normalize else None
    cos_sin = rotation_table(50, head_dim, device)
    positions = torch.tensor([0, 49, 7, 7, 3], device=device)
    slots = torch.tensor([3, 20, 4, 0, 11], device=device)
    ours = torch.zeros(2, 6, block_size, kv_heads, head_dim, dtype=dtype, device=device)
    theirs = ours.clone()
    norm_rotary_store(qkv, norm, 1e-6, cos_sin, positions, ours[0], ours[1], slots)
    reference.qk_norm_rotary_store(qkv, norm, norm, 1e-6, cos_sin, positions, theirs[0], theirs[1], slots)
    assert_close(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


@pytest.mark.no_cover
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab_size", [7, 1024, 4097])
def test_greedy_rows_take_the_first_of_the_highest_logits(dtype, vocab_size, device):
    logits = torch.randn(4, vocab_size, device=device).to(dtype)
    logits[1] = 0.5
    logits[2, vocab_size // 2] = logits[2, vocab_size - 1] = 100.0
    settings = (
        torch.zeros(4, device=device),
        torch.arange(4, device=device),
        torch.zeros(4, dtype=torch.int64, device=device),
    )
    tokens = sampling.sample(logits, *settings)
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == reference.sample(logits.cpu(), *(setting.cpu() for setting in settings)).tolist()
    assert tokens[1].item() == 0
    assert tokens[2].item() == vocab_size // 2


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_sampled_tokens_equal_the_reference_noise_for_noise(index_dtype, device):
    num_rows, vocab_size = 6, 4200
    logits = torch.randn(num_rows, vocab_size, device=device)
    temperatures = torch.linspace(0.0, 2.0, num_rows, device=device)
    seeds = torch.randint(0, 2**63 - 1, (num_rows,), device=device)
    indices = torch.arange(num_rows, device=device, dtype=index_dtype) * 1000
    ours = sampling.sample(logits, temperatures, seeds, indices)
    theirs = reference.sample(logits, temperatures, seeds, indices)
    assert torch.equal(ours, theirs)
    assert len(set(ours.tolist())) > num_rows // 2  # not all greedy, not all alike


def test_noise_does_not_depend_on_the_row_or_the_batch(device):
    logits = torch.zeros(3, 3000, device=device)
    temperatures = torch.ones(3, device=device)
    seeds = torch.tensor([11, 2**62 + 5, 11], device=device)
    indices = torch.tensor([4, 4, 4], device=device)
    together = sampling.sample(logits, temperatures, seeds, indices)
    alone = sampling.sample(logits[1:2], temperatures[1:2], seeds[1:2], indices[1:2])
    assert together[0] == together[2] != together[1]
    assert together[1] == alone[0]


@pytest.mark.no_cover
def test_excluded_tokens_are_never_drawn(device):
    logits = torch.full((6, 2000), -torch.inf, device=device)
    logits[:, [5, 1500]] = 0.0
    seeds = torch.arange(6, device=device)
    tokens = sampling.sample(logits, torch.ones(6, device=device), seeds, torch.zeros_like(seeds))
    assert set(tokens.tolist()) == {5, 1500}


def test_row_of_nan_yields_a_token_of_the_vocabulary(device):
    logits = torch.full((2, 1500), torch.nan, device=device)
    seeds = torch.arange(2, device=device)
    tokens = sampling.sample(logits, torch.tensor([0.0, 1.0], device=device), seeds, seeds)
    assert tokens.lt(1500).all()
    assert tokens.ge(0).all()


@pytest.mark.gpu
def test_large_vocabulary_is_sampled_as_by_the_reference_on_a_gpu(device):
    logits = torch.randn(64, 151_936, device=device).to(torch.bfloat16)
    temperatures = torch.linspace(0.0, 1.5, 64, device=device)
    seeds = torch.randint(0, 2**63 - 1, (64,), device=device)
    indices = torch.arange(64, device=device)
    ours = sampling.sample(logits, temperatures, seeds, indices)
    theirs = reference.sample(logits, temperatures, seeds, indices)
    # equal bits of noise; the logarithms of two libraries may order a near tie differently
    assert (ours == theirs).sum() >= 63


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fused_kernels_equal_reference_at_model_sizes_on_a_gpu(dtype, device):
    x, residual = torch.randn(2, 300, 4096, device=device).to(dtype)
    weight = torch.randn(4096, device=device).to(dtype)
    expected = reference.add_rms_norm(x, residual, weight, 1e-6)
    for ours, theirs in zip(fused.add_rms_norm(x, residual.clone(), weight, 1e-6), expected, strict=True):
        assert_close(ours, theirs)
    gate_up = torch.randn(300, 6144, device=device).to(dtype)
    assert_close(fused.silu_and_mul(gate_up), reference.silu_and_mul(gate_up))
