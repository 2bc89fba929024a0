"""The kernels of decode steps against their references: attention from the projection on, products of few rows."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from nanoinfer.kernels import decode_attention, few_rows, reference

EPS = 1e-6
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# The interpreter cuts float32 to bfloat16 where a GPU rounds, at every intermediate result.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3 if torch.cuda.is_available() else 2.5e-2}


def relative_error(found, expected):
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


def attention_arguments(contexts, *, heads, kv_heads, head_dim, block_size, dtype, device, norm):
    """Random rows, cache and tables; the last block belongs to padded rows (context 0)."""
    torch.manual_seed(len(contexts))
    num_rows, num_columns = len(contexts), -(-max(contexts) // block_size) + 1
    num_blocks = num_rows * num_columns + 1
    blocks = torch.randn(2, num_blocks, block_size, kv_heads, head_dim).to(dtype)
    table = torch.randperm(num_blocks - 1)[: num_rows * num_columns].view(num_rows, num_columns).int()
    positions = torch.tensor([max(0, context - 1) for context in contexts])
    own = table[torch.arange(num_rows), positions // block_size].long() * block_size + positions % block_size
    padded = torch.tensor(contexts) == 0
    slot_mapping = torch.where(padded, (num_blocks - 1) * block_size, own)
    angles = torch.randn(max(contexts) + 1, head_dim // 2)
    weights = [torch.rand(head_dim).add(0.5).to(dtype).to(device) if norm else None for _ in range(2)]
    return [
        torch.randn(num_rows, (heads + 2 * kv_heads) * head_dim).to(dtype).to(device),
        *weights,
        EPS,
        torch.cat((angles.cos(), angles.sin()), -1).to(device),
        positions.to(device),
        blocks[0].to(device),
        blocks[1].to(device),
        slot_mapping.to(device),
        table.to(device),
        torch.tensor(contexts, dtype=torch.int32, device=device),
        head_dim**-0.5,
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "block_size", "contexts", "num_splits"),
    [
        (4, 2, 16, 4, [1, 5, 33, 0], 1),
        (3, 1, 32, 16, [70, 1, 100], 4),
        (6, 2, 16, 64, [130, 64], 2),
        (2, 2, 64, 16, [200, 33, 0], 16),
        (7, 1, 16, 1, [19], None),
    ],
)
def test_attention_stores_the_new_token_and_attends_as_the_reference(
    heads, kv_heads, head_dim, block_size, contexts, num_splits, dtype, device
):
    arguments = attention_arguments(
        contexts, heads=heads, kv_heads=kv_heads, head_dim=head_dim, block_size=block_size, dtype=dtype,
        device=device, norm=num_splits != 2,
    )  # fmt: skip
    ours = [argument.clone() if isinstance(argument, torch.Tensor) else argument for argument in arguments]
    expected = reference.decode_attention(*arguments)
    for _ in range(2):  # the second launch finds the counters of splits as the first one left them
        found = decode_attention.decode_attention(*ours, num_splits=num_splits)
    real = torch.tensor(contexts) > 0
    assert relative_error(found[real], expected[real]) < TOLERANCE[dtype]
    assert found.isfinite().all()
    for blocks, expected_blocks in zip(ours[6:8], arguments[6:8], strict=True):
        assert relative_error(blocks[:-1], expected_blocks[:-1]) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_rows", "num_inputs", "num_outputs"), [(1, 48, 30), (3, 64, 80), (4, 100, 7)])
@pytest.mark.parametrize("biased", [True, False])
def test_products_of_few_rows_equal_the_reference(num_rows, num_inputs, num_outputs, biased, dtype, device):
    torch.manual_seed(num_rows)
    x, residual = torch.randn(num_rows, num_inputs), torch.randn(num_rows, 2 * num_outputs)
    weight, bias, norm = torch.randn(2 * num_outputs, num_inputs), torch.randn(2 * num_outputs), torch.rand(num_inputs)
    x, residual, weight, bias, norm = (t.to(dtype).to(device) for t in (x, residual, weight, bias, norm))
    bias = bias if biased else None
    before = residual.clone()
    for name, arguments in (
        ("norm_linear", (x, norm, EPS, weight, bias)),
        ("norm_gated_linear", (x, norm, EPS, weight, bias)),
        ("linear_add", (x, weight, bias, residual)),
    ):
        found, expected = getattr(few_rows, name)(*arguments), getattr(reference, name)(*arguments)
        assert found.dtype == dtype
        assert relative_error(found, expected) < TOLERANCE[dtype], name
    assert torch.equal(residual, before)
