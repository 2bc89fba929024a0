"""top_k and top_p exclude what transformers excludes."""

import pytest
import torch
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from nanoinfer.model.ops import REFERENCE
from nanoinfer.model.parallel import SINGLE
from nanoinfer.model.sampling import Limits, SamplingInputs, choose_tokens, restrict


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
@pytest.mark.parametrize(("top_k", "top_p"), [(5, 1.0), (50, 0.6), (7, 0.9), (1, 0.3), (50, 1.0)])
def test_restriction_keeps_what_the_warpers_of_transformers_keep(temperature, top_k, top_p):
    logits = torch.randn(16, 50, generator=torch.Generator().manual_seed(1)) * 2
    expected = TopKLogitsWarper(top_k)(None, TemperatureLogitsWarper(temperature)(None, logits))
    if top_p < 1.0:
        expected = TopPLogitsWarper(top_p)(None, expected)
    ours = restrict(logits, torch.full((16,), temperature), torch.full((16,), top_p), torch.full((16,), top_k))
    assert torch.equal(ours.isinf(), expected.isinf())
    assert torch.equal(ours[~ours.isinf()], logits[~ours.isinf()])


def test_each_row_has_its_own_limits():
    logits = torch.arange(10.0).expand(3, 10)
    kept = restrict(logits, torch.ones(3), torch.tensor([1.0, 1.0, 0.5]), torch.tensor([10, 2, 10])).isfinite()
    assert kept.sum(-1).tolist() == [10, 2, 1]


def test_the_most_likely_token_always_survives():
    logits = torch.randn(4, 30)
    kept = restrict(logits, torch.tensor([0.0, 1.0, 5.0, 0.01]), torch.full((4,), 1e-6), torch.full((4,), 30))
    assert torch.equal(kept.argmax(-1), logits.argmax(-1))
    assert kept.isfinite().sum(-1).tolist() == [1, 1, 1, 1]


def test_restricted_rows_draw_only_what_is_kept():
    rows = 500
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(2)).expand(rows, 40)
    inputs = SamplingInputs(
        temperatures=torch.full((rows,), 3.0),
        seeds=torch.arange(rows),
        token_indices=torch.zeros(rows, dtype=torch.int64),
        limits=Limits(top_ps=torch.ones(rows), top_ks=torch.full((rows,), 4)),
    )
    assert set(choose_tokens(logits, inputs, REFERENCE, SINGLE, logits.shape[1]).tolist()) == set(
        logits[0].topk(4).indices.tolist()
    )
