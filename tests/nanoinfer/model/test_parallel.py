"""Which part of a model a rank holds, and that all parts together are the model."""

import threading

import pytest
import torch
from safetensors.torch import save_file

from nanoinfer.config import ConfigError
from nanoinfer.model.config import ModelConfig
from nanoinfer.model.decoder import Decoder
from nanoinfer.model.destinations import destinations
from nanoinfer.model.ops import REFERENCE
from nanoinfer.model.parallel import SINGLE, Alone, TensorParallel
from nanoinfer.model.weights import draw_weights, load_checkpoint


def config_of(**change):
    raw = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 37,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "max_position_embeddings": 32,
        "attention_bias": True,
        "mlp_bias": True,
    }
    return ModelConfig.from_dict(raw | change)


def ranks(size):
    return [TensorParallel(rank, size, Alone()) for rank in range(size)]


def drawn(config, parallel):
    model = Decoder(config, REFERENCE, 32, parallel)
    draw_weights(model, config, 3)
    return model


class Together:
    """Collectives of ranks that are threads of this process."""

    def __init__(self, size):
        self.parts = [None] * size
        self.barrier = threading.Barrier(size, timeout=60)

    def of(self, rank):
        return ThreadCollectives(rank, self)


class ThreadCollectives(Alone):
    def __init__(self, rank, together):
        self.rank, self.together = rank, together

    def all_gather(self, x):
        self.together.parts[self.rank] = x.clone()
        self.together.barrier.wait()
        gathered = torch.stack(self.together.parts)
        self.together.barrier.wait()
        return gathered

    def all_reduce(self, x, *, keep=False):  # noqa: ARG002  the protocol's parameters
        return self.all_gather(x).sum(0)


def on_every_rank(size, work):
    """Run work(parallel) on ranks that are threads; returns the results in the order of the ranks."""
    together, results = Together(size), [None] * size

    def run(rank):
        with torch.inference_mode():
            results[rank] = work(TensorParallel(rank, size, together.of(rank)))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize(("total", "size"), [(12, 4), (13, 4), (37, 8), (4, 4)])
def test_parts_follow_each_other_and_differ_by_one_at_most(total, size):
    parts = [parallel.part(total) for parallel in ranks(size)]
    assert [index for part in parts for index in part] == list(range(total))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_ranks_beyond_the_kv_heads_share_them_with_the_queries_they_serve():
    assert [list(parallel.kv_heads(2)) for parallel in ranks(8)] == [[0]] * 4 + [[1]] * 4
    for parallel in ranks(8):
        served = {head // 4 for head in parallel.part(8)}  # four query heads a KV head
        assert served == set(parallel.kv_heads(2))


@pytest.mark.parametrize(
    ("size", "change", "message"),
    [
        (3, {}, "divides the model's 8 attention heads"),
        (4, {"num_attention_heads": 12, "num_key_value_heads": 6}, "a divisor or a multiple of the model's 6 KV heads"),
        (4, {"intermediate_size": 30}, "divides intermediate_size 30"),
        (8, {"vocab_size": 7}, "a vocabulary of 7 tokens cannot be split"),
    ],
)
def test_a_model_that_cannot_be_split_is_refused(size, change, message):
    with pytest.raises(ConfigError, match=f"tensor_parallel_size is {size}; .*{message}"):
        ranks(size)[0].local(config_of(**change))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_drawn_parts_are_those_of_the_whole_model(size, tied):
    config = config_of(tie_word_embeddings=tied)
    whole = destinations(drawn(config, SINGLE), config)
    for parallel in ranks(size):
        parts = destinations(drawn(config, parallel), config)
        assert parts.keys() == whole.keys()
        for name, part in parts.items():
            assert torch.equal(part.view, part.part_of(whole[name].view)), name


def test_loaded_parts_are_those_of_the_whole_checkpoint_and_no_more_is_read(tmp_path):
    config = config_of()
    whole = {name: place.view.clone() for name, place in destinations(drawn(config, SINGLE), config).items()}
    whole["model.layers.0.mlp.up_proj.weight"][-1] = torch.nan  # a part that the first rank must not even see
    save_file(whole, tmp_path / "model.safetensors")
    first, last = ranks(4)[0], ranks(4)[3]
    model = Decoder(config, REFERENCE, 32, first)
    load_checkpoint(model, config, tmp_path)
    for name, part in destinations(model, config).items():
        assert torch.equal(part.view, part.part_of(whole[name])), name
    with pytest.raises(ConfigError, match=r"up_proj\.weight holds NaN"):
        load_checkpoint(Decoder(config, REFERENCE, 32, last), config, tmp_path)


def test_a_misshapen_tensor_is_refused_though_only_a_part_of_it_is_read(tmp_path):
    config = config_of()
    whole = {name: place.view.clone() for name, place in destinations(drawn(config, SINGLE), config).items()}
    whole["lm_head.weight"] = torch.zeros(38, 24)
    save_file(whole, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"lm_head.weight has shape \(38, 24\); config.json asks for \(37, 24\)"):
        load_checkpoint(Decoder(config, REFERENCE, 32, ranks(4)[1]), config, tmp_path)


@pytest.mark.parametrize("size", [2, 4])
def test_the_best_of_all_parts_is_the_first_of_the_highest_scores(size):
    scores = torch.tensor([[0.5, -torch.inf, 2.0], [0.5, 1.0, 3.0], [0.5, 1.0, 2.5], [0.1, 0.0, -1.0]])[:size]
    tokens = torch.arange(size)[:, None] * 100 + torch.arange(3)
    chosen = on_every_rank(size, lambda p: p.best_token(scores[p.rank], tokens[p.rank]).tolist())
    assert chosen == [[0, 101, 102]] * size


def test_logits_of_unequal_parts_are_joined_in_order():
    logits = torch.randn(3, 37)
    joined = on_every_rank(4, lambda p: p.whole_logits(logits[:, p.part(37).start : p.part(37).stop], 37))
    assert all(torch.equal(whole, logits) for whole in joined)


def test_embeddings_of_all_parts_add_up_to_the_row_of_every_token():
    config = config_of()
    whole = drawn(config, SINGLE).embedding.weight
    ids = torch.arange(37).flip(0)
    rows = on_every_rank(4, lambda p: drawn(config, p).embedding(ids))
    assert all(torch.equal(found, whole[ids]) for found in rows)
