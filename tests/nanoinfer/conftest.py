"""Small random models saved by transformers, and the greedy tokens that transformers itself gives."""

import functools
import random

import pytest
import torch

VOCAB = 320
MAX_LEN = 160

SHAPES = {
    # head_dim is not hidden_size / heads, two query heads a KV head, tied embeddings
    "qwen3": (
        "Qwen3",
        {"head_dim": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
    # one KV head for all, biases, own head
    "qwen3-bias": (
        "Qwen3",
        {"head_dim": 16, "num_attention_heads": 3, "num_key_value_heads": 1, "attention_bias": True},
    ),
    # no grouping
    "qwen2": ("Qwen2", {"num_attention_heads": 4, "num_key_value_heads": 4, "hidden_size": 64}),
    # three query heads a KV head, stretched positions
    "llama": (
        "Llama",
        {
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "hidden_size": 72,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 40,
            },
        },
    ),
    # every bias that a Llama can have
    "llama-bias": (
        "Llama",
        {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10, "attention_bias": True, "mlp_bias": True},
    ),
}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class TinyModel:
    """A random model in float32: its folder, and transformers' greedy answers as the expected ones."""

    def __init__(self, folder, shape, **changed):
        import transformers  # noqa: PLC0415  costs seconds that most tests need not pay

        family, settings = SHAPES[shape]
        defaults = {
            "vocab_size": VOCAB,
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_hidden_layers": 2,
            "max_position_embeddings": MAX_LEN,
        }
        config = getattr(transformers, f"{family}Config")(**(defaults | settings | changed))
        torch.manual_seed(7)
        self.model = getattr(transformers, f"{family}ForCausalLM")(config).float().eval()
        self._spread()
        self.folder = str(folder)
        self.model.save_pretrained(self.folder)
        self.greedy = functools.cache(self._greedy)

    def _spread(self):
        """Make logits differ by units, so that rounding decides no argmax, and norms and biases matter."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name.endswith("norm.weight"):
                    parameter.uniform_(0.5, 1.5)
                elif name.endswith("bias"):
                    parameter.normal_(0.0, 0.3)
                else:
                    parameter.normal_(0.0, 0.3)

    def _greedy(self, prompt, max_tokens):
        return self.greedy_batch([prompt], max_tokens)[0]

    @torch.no_grad()
    def greedy_batch(self, prompts, max_tokens):
        """Continue prompts of one length."""
        ids = torch.tensor(prompts)
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
        return [tuple(row) for row in out[:, ids.shape[1] :].tolist()]


@pytest.fixture(scope="session")
def make_tiny(tmp_path_factory):
    """make_tiny(shape, **changed) -> TinyModel, made once a session; `changed` are fields of its config."""
    return functools.cache(lambda shape, **changed: TinyModel(tmp_path_factory.mktemp(shape), shape, **changed))


@pytest.fixture(scope="session")
def tiny(make_tiny):
    """tiny(shape) -> TinyModel, made once a session."""
    return make_tiny


@pytest.fixture(scope="session")
def ragged():
    """(prompt, max_tokens) pairs of many lengths; half of the prompts share a beginning of 21 tokens."""
    draw = random.Random(5)
    shared = [draw.randrange(VOCAB) for _ in range(21)]
    lengths = [1, 2, 7, 16, 33, 8]
    prompts = [
        (shared if i % 2 else []) + [draw.randrange(VOCAB) for _ in range(length)] for i, length in enumerate(lengths)
    ]
    return [(tuple(prompt), 3 + 5 * i % 17) for i, prompt in enumerate(prompts)]
