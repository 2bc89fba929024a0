"""A vocabulary sampled in parts, by rank, gives the token that the whole one gives."""

from itertools import pairwise

import pytest
import torch

from nanoinfer.kernels import reference

pytest.importorskip("triton")
from nanoinfer.kernels import sampling


@pytest.mark.no_cover
@pytest.mark.parametrize("bounds", [(0, 700, 1400, 2100), (0, 1, 1025, 2100)])
def test_the_best_of_all_parts_is_the_token_of_the_whole(bounds, device):
    num_rows = 3
    logits = torch.randn(num_rows, 2100, device=device)
    settings = (
        torch.linspace(0.0, 2.0, num_rows, device=device),
        torch.randint(0, 2**63 - 1, (num_rows,), device=device),
        torch.arange(num_rows, device=device),
    )
    for kernels in (reference, sampling):
        whole = kernels.sample(logits, *settings)
        parts = [
            kernels.sample_shard(logits[:, begin:end].contiguous(), *settings, begin) for begin, end in pairwise(bounds)
        ]
        scores, tokens = torch.stack([part[0] for part in parts]), torch.stack([part[1] for part in parts])
        assert torch.equal(tokens.gather(0, scores.argmax(0, keepdim=True))[0], whole)
