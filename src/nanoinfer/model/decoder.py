"""The network: a pre-normalized decoder as Qwen2, Qwen3 and Llama share it, read from top to bottom."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from nanoinfer.model.attention import Attention, AttentionInputs
from nanoinfer.model.layers import Embedding, GatedMLP, Layer, Linear, RMSNorm, rotary_table
from nanoinfer.model.parallel import SINGLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nanoinfer.model.attention import KVBlocks
    from nanoinfer.model.config import ModelConfig
    from nanoinfer.model.ops import Ops
    from nanoinfer.model.parallel import TensorParallel


class Decoder(Layer):
    """Token ids to hidden states to logits.

    The residual stream and the branch that is added to it travel separately, so that each addition is fused with the
    normalization that follows it, or with the product before. `config` describes the whole model, of which this rank
    holds its part.
    """

    cos_sin: Tensor

    def __init__(self, config: ModelConfig, ops: Ops, num_positions: int, parallel: TensorParallel = SINGLE) -> None:
        super().__init__()
        local = parallel.local(config)
        self.parallel = parallel
        self.vocab_size = config.vocab_size
        self.embedding = Embedding(config.vocab_size, config.hidden_size, parallel)
        self.layers = nn.ModuleList(DecoderLayer(local, ops, parallel) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, ops)
        self.head = Linear(config.hidden_size, len(parallel.part(config.vocab_size)), bias=False)
        if config.tie_word_embeddings:
            self.head.weight = self.embedding.weight
        # Ranks gain with more rows: their other products are not made to begin early.
        self.few_rows = ops.few_rows if parallel.size == 1 else 2 * ops.few_rows
        self.register_buffer("cos_sin", rotary_table(config, num_positions), persistent=False)

    def forward(
        self,
        token_ids: Tensor,
        inputs: AttentionInputs,
        kv_cache: Sequence[KVBlocks],
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Map token_ids (T,) to normalized hidden states (T, hidden_size), or to those of the tokens `wanted` (S,).

        kv_cache, an entry a layer, receives the tokens' keys and values. Behind the last layer's attention nothing is
        computed of a token that is not wanted.
        """
        residual = self.embedding(token_ids)
        if inputs.prefill is None and token_ids.shape[0] <= self.few_rows:
            return self._forward_few_rows(residual, inputs, kv_cache)
        branch: Tensor | None = None
        cos_sin, last = self.cos_sin, len(self.layers) - 1
        for index, (layer, kv_blocks) in enumerate(zip(self.layers, kv_cache, strict=True)):
            rows = wanted if index == last else None
            branch, residual = layer(branch, residual, inputs, cos_sin, kv_blocks, rows)
        return self.norm.add(branch, residual)[0]

    def _forward_few_rows(self, residual: Tensor, inputs: AttentionInputs, kv_cache: Sequence[KVBlocks]) -> Tensor:
        cos_sin = self.cos_sin
        for layer, kv_blocks in zip(self.decoder_layers(), kv_cache, strict=True):
            residual = layer.forward_few_rows(residual, inputs, cos_sin, kv_blocks)
        return cast("Tensor", self.norm(residual))

    def decoder_layers(self) -> Iterator[DecoderLayer]:
        """Walk the layers from the bottom."""
        for layer in self.layers:
            yield cast("DecoderLayer", layer)

    def logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states (S, hidden_size) to the logits (S, V) of this rank's part of the vocabulary."""
        out: Tensor = self.head(hidden)
        return out


class DecoderLayer(Layer):
    """Attention, then the MLP, each on the normalized residual stream."""

    def __init__(self, config: ModelConfig, ops: Ops, parallel: TensorParallel) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, ops)
        self.attention = Attention(config, ops, parallel)
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, ops)
        self.mlp = GatedMLP(config, ops, parallel)

    def forward(
        self,
        branch: Tensor | None,
        residual: Tensor,
        inputs: AttentionInputs,
        cos_sin: Tensor,
        kv_blocks: KVBlocks,
        wanted: Tensor | None,
    ) -> tuple[Tensor | None, Tensor]:
        """Map (branch, residual) to the next ones, all (T, hidden_size) or None, or to those of the tokens wanted."""
        hidden, residual = self.attention_norm.add(branch, residual)
        attended = self.attention(hidden, inputs, cos_sin, kv_blocks)
        if wanted is not None:
            attended, residual = attended[wanted], residual[wanted]
        hidden, residual = self.mlp_norm.add(*self.attention.o_proj.add(attended, residual))
        moved: tuple[Tensor | None, Tensor] = self.mlp(hidden, residual)
        return moved

    def forward_few_rows(
        self, residual: Tensor, inputs: AttentionInputs, cos_sin: Tensor, kv_blocks: KVBlocks
    ) -> Tensor:
        """Do the same for a decode step of a few rows, in five launches; maps the residual stream to the next one."""
        attention, mlp, ops = self.attention, self.mlp, self.attention.ops
        norm, projection = self.attention_norm, attention.qkv_proj
        qkv = ops.norm_linear(residual, norm.weight, norm.eps, projection.weight, projection.bias)
        attended = attention.attend(qkv, inputs, cos_sin, kv_blocks)
        residual = attention.o_proj.add_few_rows(attended, residual)
        norm, projection = self.mlp_norm, mlp.gate_up_proj
        hidden = ops.norm_gated_linear(residual, norm.weight, norm.eps, projection.weight, projection.bias)
        return mlp.down_proj.add_few_rows(hidden, residual)
