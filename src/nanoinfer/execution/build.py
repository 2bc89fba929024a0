"""From settings and a model folder to a runner: device, weights, measured activations, KV pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nanoinfer.config import ConfigError
from nanoinfer.execution import memory
from nanoinfer.execution.contract import Execution
from nanoinfer.execution.cuda_graphs import GraphSizes, graph_sizes, nothing_collected
from nanoinfer.execution.devices import resolve_device, resolve_dtype
from nanoinfer.execution.group import smallest
from nanoinfer.execution.runner import Runner
from nanoinfer.execution.seeds import Seeds
from nanoinfer.model.decoder import Decoder
from nanoinfer.model.ops import begin_compiling, compiling_kernels, select_ops
from nanoinfer.model.parallel import SINGLE
from nanoinfer.model.weights import draw_weights, load_checkpoint
from nanoinfer.request import SamplingParams
from nanoinfer.scheduling.plan import Phase, ScheduledRequest, StepPlan

if TYPE_CHECKING:
    from pathlib import Path

    from nanoinfer.config import EngineConfig
    from nanoinfer.model.config import ModelConfig
    from nanoinfer.model.ops import Ops
    from nanoinfer.model.parallel import TensorParallel


def build_execution(
    config: EngineConfig, model_config: ModelConfig, folder: Path, parallel: TensorParallel = SINGLE
) -> Execution:
    """Load this rank's part of the model and make room for its KV cache.

    Settings that cannot work are a ConfigError. With several ranks all of them call this together.
    """
    device = resolve_device(config.device)
    begin_compiling(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # kernels and events go to the current device
    dtype = resolve_dtype(config.dtype, device)
    limit = longest_sequence(config, model_config)
    ops = select_ops(device, model_config.head_dim)
    # A collection of garbage would stop all threads that compile, some of them more than once.
    with nothing_collected(), compiling_kernels(device, dtype, parallel.local(model_config), config.block_size):
        model = load_model(
            config, model_config, folder, device=device, dtype=dtype, num_positions=limit, ops=ops, parallel=parallel
        )
    sizes = _PoolSizes(config, parallel.local(model_config), device, dtype)
    needs = _measure_needs(model, ops, config, sizes, limit) if device.type == "cuda" else None
    if needs is not None:
        torch.cuda.empty_cache()  # the memory of a graph is nobody else's to reuse
    num_blocks = memory.num_kv_blocks(
        config,
        block_bytes=sizes.block_bytes,
        budget_bytes=_pool_budget(config, device, needs, wanted_bytes=sizes.bytes_for(limit, config.max_num_seqs)),
        required_tokens=limit if config.max_model_len is not None else 1,
    )
    if parallel.size > 1:
        num_blocks = smallest(num_blocks, device)
    max_model_len = min(limit, num_blocks * config.block_size)
    pool = sizes.make_pool(num_blocks)
    runner = _make_runner(model, ops, pool, config, max_model_len)
    with_graphs = device.type == "cuda" and config.cuda_graphs
    graphs = runner.capture_graphs(graph_sizes(config, max_model_len)).facts() if with_graphs else None
    if device.type == "cuda":
        _take_activations(runner, config, max_model_len)
    return Execution(
        runner=runner,
        device=device,
        dtype=dtype,
        num_blocks=num_blocks,
        max_model_len=max_model_len,
        block_bytes=sizes.block_bytes,
        pool_bytes=pool.untyped_storage().nbytes(),
        weights_bytes=memory.unique_storage_bytes(model),
        activations_peak_bytes=None if needs is None else needs.activations_bytes,
        graphs=graphs,
    )


def longest_sequence(config: EngineConfig, model_config: ModelConfig) -> int:
    """Return the longest prompt plus output, before it is known how large the KV pool is."""
    limit = model_config.max_position_embeddings
    if config.max_model_len is not None and config.max_model_len > limit:
        raise ConfigError(f"max_model_len is {config.max_model_len}; the model's positions end at {limit}")
    return config.max_model_len or limit


def load_model(
    config: EngineConfig,
    model_config: ModelConfig,
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    num_positions: int,
    ops: Ops,
    parallel: TensorParallel = SINGLE,
) -> Decoder:
    """Build this rank's part of the decoder on its device and fill it from the checkpoint or the seed."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = Decoder(model_config, ops, num_positions, parallel)
    finally:
        torch.set_default_dtype(default)
    if config.weights == "synthetic":
        draw_weights(model, model_config, config.seed)
    else:
        load_checkpoint(model, model_config, folder)
    return model.eval()


@dataclass(frozen=True, slots=True)
class _PoolSizes:
    """Shape and bytes of a KV pool."""

    config: EngineConfig
    model_config: ModelConfig
    device: torch.device
    dtype: torch.dtype

    @property
    def block_bytes(self) -> int:
        return self.config.block_size * self.model_config.kv_bytes_per_token(self.dtype.itemsize)

    def bytes_for(self, num_tokens: int, num_sequences: int) -> int:
        """Bytes of so many sequences of so many tokens."""
        return -(-num_tokens // self.config.block_size) * num_sequences * self.block_bytes

    def make_pool(self, num_blocks: int) -> torch.Tensor:
        """Allocate `num_blocks` and one more that padded rows write to: no request ever holds it."""
        model = self.model_config
        shape = (model.num_layers, 2, num_blocks + 1, self.config.block_size, model.num_kv_heads, model.head_dim)
        return memory.zeros(shape, self.dtype, self.device)


def _make_runner(model: Decoder, ops: Ops, pool: torch.Tensor, config: EngineConfig, max_model_len: int) -> Runner:
    return Runner(
        model,
        ops,
        pool,
        Seeds(config.seed),
        num_slots=config.max_num_seqs,
        max_blocks=-(-max_model_len // config.block_size),
    )


def _pool_budget(config: EngineConfig, device: torch.device, needs: _Needs | None, *, wanted_bytes: int) -> int:
    """Bytes for a pool of the engine's own choice: on a GPU all there is, on a CPU no more than can be used."""
    if needs is None:
        num_pools = config.tensor_parallel_size * config.data_parallel_size
        return min(wanted_bytes, memory.cpu_budget_bytes() // num_pools)
    return memory.gpu_budget_bytes(
        device,
        memory_fraction=config.memory_fraction,
        reserved_bytes=needs.activations_bytes + needs.graphs_bytes,
    )


@dataclass(frozen=True, slots=True)
class _Needs:
    """Device memory that an engine needs beside weights and KV pool: measured, and foreseen for the graphs.

    graphs_bytes  0 where there are none, and where the settings give the pool's size
    """

    activations_bytes: int
    graphs_bytes: int


def _measure_needs(model: Decoder, ops: Ops, config: EngineConfig, sizes: _PoolSizes, limit: int) -> _Needs:
    """Run the largest step once, and capture a few graphs where the pool's size hangs on theirs, on CUDA.

    The pool has one block meanwhile, in which every row works, because only sizes matter; all rows sample with every
    restriction. What counts is what the allocator takes of the device: more than the tensors, because it cuts memory
    into pieces.
    """
    runner = _make_runner(model, ops, sizes.make_pool(0), config, limit)
    torch.cuda.synchronize(sizes.device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(sizes.device)
    before = torch.cuda.memory_allocated(sizes.device), torch.cuda.memory_reserved(sizes.device)
    runner.launch(_largest_step(config, limit)).tokens()
    tensors = torch.cuda.max_memory_allocated(sizes.device) - before[0]
    activations = max(tensors, torch.cuda.max_memory_reserved(sizes.device) - before[1])
    with_graphs = config.cuda_graphs and memory.takes_what_is_left(config)
    graphs = _foresee_graphs(runner, graph_sizes(config, limit)) if with_graphs else 0
    return _Needs(activations, graphs)


def _take_activations(runner: Runner, config: EngineConfig, limit: int) -> None:
    """Give back what measuring and capturing have left, and take what the largest step needs before others do.

    Its rows write to a block that no request holds yet, and whoever gets their slots brings settings of its own.
    """
    torch.cuda.empty_cache()
    runner.launch(_largest_step(config, limit)).tokens()


def _foresee_graphs(runner: Runner, sizes: GraphSizes) -> int:
    """Return the bytes that all graphs will take, from captures of the two largest of a kind; these are given up again.

    They share their memory, so a second one tells what each further one costs.
    """
    largest = GraphSizes(sizes.decodes[-2:], sizes.prefills[-2:])
    taken = iter(runner.capture_graphs(largest).taken_bytes)
    needed = 0
    for captured, wanted in zip(reversed(largest), reversed(sizes), strict=True):
        of_kind = [next(taken) for _ in captured]
        needed += sum(of_kind) + of_kind[-1] * (len(wanted) - len(captured))
    return needed


def _largest_step(config: EngineConfig, limit: int) -> StepPlan:
    """Fill the token budget with as many rows as can run, each as long as its share and the limit allow."""
    num_rows = min(config.max_num_seqs, config.max_num_batched_tokens)
    num_tokens = min(limit, config.max_num_batched_tokens // num_rows)
    sampling = SamplingParams(temperature=1.0, top_p=0.5, top_k=1)
    rows = [
        ScheduledRequest(
            request_id=slot,
            slot=slot,
            start=0,
            num_tokens=num_tokens,
            token_ids=(0,) * num_tokens,
            new_blocks=(),
            num_old_blocks=0,
            samples=True,
            num_outputs=0,
            sampling=sampling,
        )
        for slot in range(num_rows)
    ]
    return StepPlan(0, Phase.PREFILL, (), tuple(rows))
