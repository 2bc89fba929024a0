"""Matrix products of decode steps against their references: those of few rows, and the one before attention."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from nanoinfer.kernels import few_rows, fused, reference
from nanoinfer.kernels.linear import (
    SMALL,
    LinearTuning,
    early_linear,
    fits,
    gated_linear,
    linear,
    linear_parts,
    linear_tuning,
)

EPS = 1e-6
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# The interpreter cuts float32 to bfloat16 where a GPU rounds, at every intermediate result.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3 if torch.cuda.is_available() else 2.5e-2}


def relative_error(found, expected):
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("num_rows", "num_inputs", "num_outputs"), [(1, 48, 30), (3, 64, 80), (4, 100, 7), (2, 76, 20), (1, 40, 30)]
)
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


@pytest.mark.parametrize(
    ("num_inputs", "parts"),
    [(1, (1, 0)), (2048, (2048, 0)), (2560, (2048, 512)), (3072, (4096, 0)), (9728, (8192, 2048)), (12288, (16384, 0))],
)
def test_a_row_is_split_where_padding_it_would_idle_over_a_quarter_of_the_lanes(num_inputs, parts):
    assert few_rows.body_and_rest(num_inputs) == parts


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tuning", [LinearTuning(16, 64, 128, 4, 3), LinearTuning(64, 32, 128, 4, 3)], ids=str)
@pytest.mark.parametrize(("num_rows", "num_outputs", "biased"), [(3, 70, True), (20, 64, False), (70, 33, True)])
def test_the_product_before_attention_equals_the_reference(num_rows, num_outputs, biased, tuning, dtype, device):
    torch.manual_seed(num_rows)
    x, weight = torch.randn(num_rows, 256), torch.randn(num_outputs, 256) / 16
    x, weight, bias = (t.to(dtype).to(device) for t in (x, weight, torch.randn(num_outputs)))
    bias = bias if biased else None
    expected = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert relative_error(early_linear(x, weight, bias, tuning), expected) < (
        1e-3 if dtype == torch.float32 else TOLERANCE[dtype]
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_rows", "num_outputs", "biased"), [(3, 70, True), (20, 64, False)])
def test_a_product_with_its_activation_equals_the_reference(num_rows, num_outputs, biased, dtype, device):
    torch.manual_seed(num_rows)
    x, weight, bias = torch.randn(num_rows, 256), torch.randn(2 * num_outputs, 256) / 16, torch.randn(2 * num_outputs)
    x, weight, bias = (t.to(dtype).to(device) for t in (x, weight, bias))
    bias = bias if biased else None
    found = early_linear(x, weight, bias, SMALL, gated=True)
    exact = reference.gated_linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert found.shape == (num_rows, num_outputs)
    assert found.dtype == dtype
    assert relative_error(found, exact) < (1e-3 if dtype == torch.float32 else TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_rows", "num_parts", "biased"), [(3, 4, True), (20, 2, False)])
def test_parts_of_a_product_add_up_to_it_within_the_normalization(num_rows, num_parts, biased, dtype, device):
    torch.manual_seed(num_rows)
    x, weight, bias, norm = torch.randn(num_rows, 512), torch.randn(70, 512) / 20, torch.randn(70), torch.rand(70)
    x, weight, bias, norm = (t.to(dtype).to(device) for t in (x, weight, bias, norm))
    residual, bias = torch.randn(num_rows, 70).to(dtype).to(device), bias if biased else None
    parts = early_linear(x, weight, bias, SMALL, num_parts=num_parts)
    assert (parts.shape, parts.dtype) == ((num_parts, num_rows, 70), torch.float32)
    exact = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert relative_error(parts.sum(0), exact) < 1e-3
    expected = reference.add_rms_norm(parts, residual, norm, EPS)
    found = fused.add_rms_norm(parts, residual.clone(), norm, EPS)
    for own, other in zip(found, expected, strict=True):
        assert own.dtype == dtype
        assert relative_error(own, other) < TOLERANCE[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_rows", [5, 16, 17, 32, 33])
def test_all_products_of_a_layer_equal_the_reference_at_few_rows_on_a_gpu(num_rows, dtype, device):
    x, weight = torch.randn(num_rows, 2048, device=device).to(dtype), torch.randn(2048, 2048, device=device) / 45
    weight = weight.to(dtype)
    parts = linear_parts(x, weight, None)
    assert (parts.dim() == 3) == (num_rows <= 32 and fits(weight))
    whole = parts.sum(0) if parts.dim() == 3 else parts
    assert relative_error(whole, x.double() @ weight.double().T) < TOLERANCE[dtype]
    exact = reference.gated_linear(x.double(), weight.double(), None)
    assert relative_error(gated_linear(x, weight, None), exact) < 2 * TOLERANCE[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_rows", [1, 5, 16, 17, 64, 65, 128, 129])
def test_the_product_before_attention_equals_the_reference_at_any_number_of_rows_on_a_gpu(num_rows, dtype, device):
    x, weight = torch.randn(num_rows, 1024, device=device), torch.randn(4096, 1024, device=device) / 32
    x, weight = x.to(dtype), weight.to(dtype)
    found = linear(x, weight, None)
    assert relative_error(found, x.double() @ weight.double().T) < TOLERANCE[dtype]


def test_tiles_of_the_product_before_attention_hold_few_rows_and_many():
    assert [linear_tuning(rows).tile_rows for rows in (1, 16, 17, 64, 65, 128)] == [16, 16, 64, 64, 128, 128]


def test_weights_whose_product_takes_long_or_has_no_whole_tiles_or_no_gpu_are_left_to_any_product():
    assert not fits(torch.empty(4096, 1024, dtype=torch.float16))


@pytest.mark.gpu
def test_small_weights_in_16_bit_are_fit_for_the_product_before_attention_on_a_gpu(device):
    def fit(num_outputs, num_inputs, dtype):
        return fits(torch.empty(num_outputs, num_inputs, dtype=dtype, device=device))

    if torch.cuda.get_device_capability(device) < (9, 0):
        pytest.skip("kernels begin early from Hopper on")
    assert fit(4096, 1024, torch.float16)
    assert not fit(4096, 1024, torch.float32)
    assert not fit(4096, 1000, torch.float16)
    assert not fit(6144, 4096, torch.bfloat16)
