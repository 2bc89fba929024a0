"""One forward pass and sampling on one rank.

The device keeps per-slot state (block table, sampling settings, the token sampled last); a plan says what changes. A
decode row's input is the slot's last token, which never visits the host, so a step can be launched before the ids of
the step before it were read.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from nanoinfer.execution.batch import Batch
from nanoinfer.execution.cuda_graphs import CudaRecorder, Graphs, GraphSizes
from nanoinfer.execution.staging import StagedDecodes, Stager
from nanoinfer.model.attention import AttentionInputs, DecodeInputs, PrefillInputs
from nanoinfer.model.sampling import Limits, SamplingInputs, choose_tokens
from nanoinfer.scheduling.plan import Phase, StepPlan

if TYPE_CHECKING:
    from torch import Tensor

    from nanoinfer.execution.batch import BatchShape
    from nanoinfer.execution.cuda_graphs import Recorder
    from nanoinfer.execution.decode_rows import StagedRows
    from nanoinfer.execution.seeds import Seeds
    from nanoinfer.execution.staging import StagedPrefills, StagedStep
    from nanoinfer.model.decoder import Decoder
    from nanoinfer.model.ops import Ops


class SlotState:
    """What the device knows of each slot; written in the order of the plans. The last slot belongs to padded rows.

    block_tables  (num_slots + 1, max_blocks) int32; entries beyond a slot's table are stale but valid block ids
    last_tokens   (num_slots + 1,) int64, the token sampled last
    temperatures, top_ps  (num_slots + 1,) float32
    top_ks, seeds         (num_slots + 1,) int64
    """

    def __init__(self, num_slots: int, max_blocks: int, device: torch.device, *, padding_block: int) -> None:
        rows = num_slots + 1
        self.block_tables = torch.zeros(rows, max_blocks, dtype=torch.int32, device=device)
        self.block_tables[num_slots] = padding_block
        self.last_tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        self.temperatures = torch.zeros(rows, dtype=torch.float32, device=device)
        self.top_ps = torch.ones(rows, dtype=torch.float32, device=device)
        self.top_ks = torch.ones(rows, dtype=torch.int64, device=device)
        self.seeds = torch.zeros(rows, dtype=torch.int64, device=device)

    def update(self, batch: Batch) -> None:
        """Take in what a step changes before it is computed."""
        if len(batch.table_slots):
            self.block_tables[batch.table_slots, batch.table_columns] = batch.table_blocks.int()
        if len(batch.new_slots):
            self.temperatures[batch.new_slots] = batch.new_temperatures.float()
            self.top_ps[batch.new_slots] = batch.new_top_ps.float()
            self.top_ks[batch.new_slots] = batch.new_top_ks
            self.seeds[batch.new_slots] = batch.new_seeds

    def limits(self, rows: Tensor) -> Limits:
        """Gather the restrictions of slots `rows` (S,)."""
        return Limits(top_ps=self.top_ps[rows], top_ks=self.top_ks[rows])


@dataclass(frozen=True, slots=True)
class DeviceTimer:
    """CUDA events around a step's work."""

    begin: torch.cuda.Event
    end: torch.cuda.Event

    def elapsed_ns(self) -> int:
        """Nanoseconds between the events; both must have happened."""
        milliseconds: float = self.begin.elapsed_time(self.end)
        return round(milliseconds * 1e6)


@dataclass(frozen=True, slots=True)
class StepHandle:
    """A launched step: its sampled ids are, or will be, on the host.

    staged  the rows of a step that only decodes, whose ids come in another order than the plan's
    graph   whether a CUDA graph was replayed
    """

    token_ids: Tensor
    arrived: torch.cuda.Event | None
    timer: DeviceTimer | None
    staged: StagedRows | None
    graph: bool

    def tokens(self) -> list[int]:
        """Wait for the ids, one for each sampled row in the plan's order."""
        if self.arrived is not None:
            self.arrived.synchronize()
        if self.staged is not None:
            return self.staged.in_plan_order(self.token_ids)
        ids: list[int] = self.token_ids.tolist()
        return ids

    def device_ns(self) -> int | None:
        """Time the step took on the device, None where that was not recorded; call it after `tokens`."""
        return None if self.timer is None else self.timer.elapsed_ns()


class Runner:
    """Runs plans on one device.

    kv_cache     (num_layers, 2, N, block_size, Hkv, D), zeros at the start: attention multiplies masked values by zero,
                 so that they must be finite; the last block belongs to padded rows
    num_slots    requests that run at the same time
    max_blocks   length of a block table
    time_steps   whether to record the device's own time of each step (CUDA only)
    """

    def __init__(
        self,
        model: Decoder,
        ops: Ops,
        kv_cache: Tensor,
        seeds: Seeds,
        *,
        num_slots: int,
        max_blocks: int,
        time_steps: bool = True,
    ) -> None:
        self.model = model
        self.ops = ops
        self.kv_cache = kv_cache
        self.device = kv_cache.device
        self._kv_layers = [(keys, values) for keys, values in kv_cache]
        self.block_size = kv_cache.shape[3]
        self.vocab_size = model.vocab_size
        self.num_slots = num_slots
        self.slots = SlotState(num_slots, max_blocks, self.device, padding_block=kv_cache.shape[2] - 1)
        self.graph_sizes = GraphSizes()
        self._max_context_len = max_blocks * self.block_size
        self._on_gpu = self.device.type == "cuda"
        self._stager = Stager(
            seeds,
            num_slots=num_slots,
            num_blocks=kv_cache.shape[2] - 1,
            vocab_size=self.vocab_size,
            pin_memory=self._on_gpu,
        )
        self._time_steps = time_steps and self._on_gpu

    # --- commands -----------------------------------------------------------------------------------------------------

    def capture_graphs(self, sizes: GraphSizes) -> CudaRecorder:
        """Capture steps of these sizes, on CUDA, and return who knows what that cost."""
        torch.cuda.synchronize(self.device)
        recorder = CudaRecorder(self.device)
        self.record_graphs(sizes, recorder)
        return recorder

    @torch.inference_mode()
    def record_graphs(self, sizes: GraphSizes, record: Recorder) -> None:
        """Record steps of these sizes with padding alone; steps that fit into one are then repetitions."""
        nothing = StepPlan(0, Phase.PREFILL, (), ())
        prompts = {shape: self._stager.flattener.flatten(nothing, (shape,)).integers for shape in sizes.prefills}
        decodes = {size: self._stager.padding.rows(size).flatten() for size in sizes.decodes}
        make = partial(Graphs, record=record, most_sampled=self.num_slots, device=self.device)
        # Steps with prompt tokens take more memory, in which the others then find room.
        self._prefill_graphs: Graphs[BatchShape] = make(self._replayed_prefills, prompts)
        self._decode_graphs: Graphs[int] = make(self._replayed_decodes, decodes)
        self.graph_sizes = sizes

    def launch(self, plan: StepPlan) -> StepHandle:
        """Queue one step on the device and return without waiting for it (on a CPU: when it is done)."""
        return self.compute(self._stager.stage(plan, *self.graph_sizes))

    @torch.inference_mode()
    def compute(self, step: StagedStep) -> StepHandle:
        """Do the same for a step that was staged, here or in another process."""
        begin = self._event() if self._time_steps else None
        token_ids = self._run_decodes(step) if isinstance(step, StagedDecodes) else self._run_prefills(step)
        timer = None if begin is None else DeviceTimer(begin, self._event())
        on_host = torch.empty(token_ids.shape, dtype=token_ids.dtype, pin_memory=self._on_gpu)
        on_host.copy_(token_ids, non_blocking=True)
        arrived = self._event() if self._on_gpu else None
        staged = step.staged if isinstance(step, StagedDecodes) else None
        return StepHandle(on_host, arrived, timer, staged, graph=step.replay)

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=self._time_steps)  # type: ignore[no-untyped-call]
        event.record()
        return event

    # --- steps that only decode ---------------------------------------------------------------------------------------

    def _run_decodes(self, step: StagedDecodes) -> Tensor:
        """Run a step without prefill: as a graph, or kernel by kernel."""
        staged = step.staged
        if step.replay:
            return self._decode_graphs.replay(staged.rows.shape[1], staged.rows.flatten(), len(staged.order))
        longest = int(staged.rows[1, 0]) + 1
        rows = staged.rows.to(self.device, non_blocking=True)
        return self._decode(rows, restricted=step.restricted, max_context_len=longest)

    def _replayed_decodes(self, size: int, integers: Tensor) -> Tensor:
        return self._decode(integers.view(-1, size), restricted=False, max_context_len=self._max_context_len)

    def _decode(self, rows: Tensor, *, restricted: bool, max_context_len: int) -> Tensor:
        """Forward pass and sampling of rows (4, B) as `decode_rows` lays them out; returns the ids (B,) int64.

        Depends on the host by its arguments alone, so that it can be captured.
        """
        slots, state = rows[0], self.slots
        step = self.ops.decode_inputs(
            rows[:3], state.block_tables, state.last_tokens, state.temperatures, state.seeds, self.block_size
        )
        decode = DecodeInputs(
            block_table=step.block_table, context_lens=step.context_lens, max_context_len=max_context_len
        )
        attention = AttentionInputs(positions=rows[1], slot_mapping=step.slot_mapping, decode=decode, prefill=None)
        sampling = SamplingInputs(
            temperatures=step.temperatures,
            seeds=step.seeds,
            token_indices=rows[3],
            limits=state.limits(slots) if restricted else None,
        )
        logits = self.model.logits(self.model(step.token_ids, attention, self._kv_layers))
        sampled = self._choose(logits, sampling)
        state.last_tokens.index_copy_(0, slots, sampled)
        return sampled

    # --- steps with prefill -------------------------------------------------------------------------------------------

    def _run_prefills(self, step: StagedPrefills) -> Tensor:
        """Run a step with prompt tokens: as a graph, or kernel by kernel."""
        flat = step.flat
        if step.replay:
            return self._prefill_graphs.replay(flat.shape, flat.integers, flat.num_sampled)
        return self._compute(flat.upload(self.device), restricted=step.restricted, padded=False)

    def _replayed_prefills(self, shape: BatchShape, integers: Tensor) -> Tensor:
        bounds = {"max_decode_context": self._max_context_len, "max_prefill_len": self._max_context_len}
        return self._compute(Batch.of(integers, shape, **bounds), restricted=False, padded=True)

    def _compute(self, batch: Batch, *, restricted: bool, padded: bool) -> Tensor:
        """Forward pass, then sampling; returns the ids (S,) int64 and keeps them as the slots' last tokens.

        Depends on the host by the shape and bounds of the batch alone, so that it can be captured.
        """
        self.slots.update(batch)
        is_decode = torch.arange(batch.shape.tokens, device=self.device) < batch.num_decodes
        token_ids = torch.where(is_decode, self.slots.last_tokens[batch.token_slots], batch.token_ids)
        wanted = batch.sample_tokens if batch.shape.sampled else None
        hidden = self.model(token_ids, self._attention_inputs(batch, is_decode, padded), self._kv_layers, wanted)
        if wanted is None:
            return batch.sample_tokens
        logits = self.model.logits(hidden)
        sampled = self._choose(logits, self._sampling_inputs(batch, restricted=restricted))
        self.slots.last_tokens[batch.sample_slots] = sampled
        return sampled

    def _attention_inputs(self, batch: Batch, is_decode: Tensor, padded: bool) -> AttentionInputs:
        positions = batch.positions
        blocks = self.slots.block_tables[batch.token_slots, positions // self.block_size]
        prefill = PrefillInputs(
            block_table=self.slots.block_tables[batch.prefill_slots],
            query_starts=batch.query_starts.int(),
            context_lens=batch.context_lens.int(),
            max_query_len=batch.max_prefill_len,
        )
        return AttentionInputs(
            positions=positions,
            slot_mapping=blocks.long() * self.block_size + positions % self.block_size,
            decode=self._decode_inputs(batch, is_decode, padded) if batch.shape.decodes else None,
            prefill=prefill,
        )

    def _decode_inputs(self, batch: Batch, is_decode: Tensor, padded: bool) -> DecodeInputs:
        rows = slice(batch.shape.decodes)
        return DecodeInputs(
            block_table=self.slots.block_tables[batch.token_slots[rows]],
            context_lens=torch.where(is_decode[rows], batch.positions[rows] + 1, 0).int(),
            max_context_len=batch.max_decode_context,
            sparse=padded,
        )

    def _sampling_inputs(self, batch: Batch, *, restricted: bool) -> SamplingInputs:
        rows = batch.sample_slots
        return SamplingInputs(
            temperatures=self.slots.temperatures[rows],
            seeds=self.slots.seeds[rows],
            token_indices=batch.sample_indices,
            limits=self.slots.limits(rows) if restricted else None,
        )

    def _choose(self, logits: Tensor, sampling: SamplingInputs) -> Tensor:
        return choose_tokens(logits, sampling, self.ops, self.model.parallel, self.vocab_size)
