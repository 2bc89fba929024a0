"""The whole engine on the Triton kernels, interpreted where there is no GPU, against transformers in float32."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from nanoinfer import LLM, SamplingParams
from nanoinfer.execution import build
from nanoinfer.model import ops

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU tests of test_llm_exactness.py cover this"),
]


@pytest.mark.parametrize("shape", ["qwen3-bias", "qwen2"])
@pytest.mark.parametrize(("scheduling", "block_size"), [("mixed", 2), ("separated", 16)])
def test_greedy_tokens_of_interpreted_kernels_equal_transformers(
    tiny, ragged, shape, scheduling, block_size, monkeypatch
):
    monkeypatch.setattr(build, "select_ops", lambda _device, _head_dim: ops._triton_ops())
    model = tiny(shape)
    requests = [(prompt, min(max_tokens, 6)) for prompt, max_tokens in ragged[:4]]
    with LLM(
        model.folder,
        device="cpu",
        scheduling=scheduling,
        block_size=block_size,
        max_num_batched_tokens=19,
        num_kv_blocks=128,
        max_model_len=80,
    ) as llm:
        outputs = llm.generate(
            [prompt for prompt, _ in requests],
            [SamplingParams(temperature=0, max_tokens=count, ignore_eos=True) for _, count in requests],
        )
    assert [output.token_ids for output in outputs] == [model.greedy(*request) for request in requests]
