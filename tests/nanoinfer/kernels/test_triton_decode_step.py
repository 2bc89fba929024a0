"""Matrix products of decode steps against their references: those of few rows, and the one before attention."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from nanoinfer.kernels import few_rows, reference
from nanoinfer.kernels.linear import LinearTuning, early_linear, fits, linear, linear_tuning

EPS = 1e-6
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# The interpreter cuts float32 to bfloat16 where a GPU rounds, at every intermediate result.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3 if torch.cuda.is_available() else 2.5e-2}


def relative_error(found, expected):
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


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
