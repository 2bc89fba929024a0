"""One forward pass and sampling on one device.

The device keeps per-slot state (block table, sampling settings, the token sampled last); a plan says what changes. A
decode row's input is the slot's last token, which never visits the host, so a step can be launched before the ids of
the step before it were read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nanoinfer.execution.batch import Batch, upload
from nanoinfer.execution.cuda_graphs import DecodeGraphs, GraphFacts, capture_decode_graphs, padded_batch_sizes
from nanoinfer.execution.decode_rows import LastBlocks, PaddingRow, StagedRows, stage_rows
from nanoinfer.model.attention import AttentionInputs, DecodeInputs, PrefillInputs
from nanoinfer.model.sampling import Limits, SamplingInputs, choose_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from nanoinfer.execution.seeds import Seeds
    from nanoinfer.model.decoder import Decoder
    from nanoinfer.model.ops import Ops
    from nanoinfer.request import SamplingParams
    from nanoinfer.scheduling.plan import ScheduledRequest, StepPlan


class SlotState:
    """What the device knows of each slot; written in the order of the plans. The last slot belongs to padded rows.

    block_tables  (num_slots + 1, max_blocks) int32; entries beyond a slot's table are stale but valid block ids
    last_tokens   (num_slots + 1,) int64, the token sampled last
    temperatures, top_ps  (num_slots + 1,) float32
    top_ks, seeds         (num_slots + 1,) int64
    """

    def __init__(self, num_slots: int, max_blocks: int, device: torch.device) -> None:
        rows = num_slots + 1
        self.block_tables = torch.zeros(rows, max_blocks, dtype=torch.int32, device=device)
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
        self.block_size = kv_cache.shape[3]
        self.vocab_size = len(model.embedding.weight)
        self.num_slots = num_slots
        self.slots = SlotState(num_slots, max_blocks, self.device)
        self.graphs: DecodeGraphs | None = None
        self._max_context_len = max_blocks * self.block_size
        self._padding = PaddingRow(slot=num_slots, block=kv_cache.shape[2] - 1)
        self._last_blocks = LastBlocks(num_slots)
        self._seeds = seeds
        self._restricted_slots: set[int] = set()
        self._on_gpu = self.device.type == "cuda"
        self._time_steps = time_steps and self._on_gpu

    # --- commands -----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def capture_graphs(self, sizes: tuple[int, ...] | None = None) -> GraphFacts:
        """Capture decode steps of all padded batch sizes (or the given ones), on CUDA."""
        padding = torch.tensor([self._padding.slot, 0, self._padding.block, 0], device=self.device)
        self.graphs, facts = capture_decode_graphs(
            lambda rows: self._decode(rows, restricted=False, max_context_len=self._max_context_len),
            sizes or padded_batch_sizes(self.num_slots),
            padding,
        )
        return facts

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> StepHandle:
        """Queue one step on the device and return without waiting for it (on a CPU: when it is done)."""
        begin = self._event() if self._time_steps else None
        restricted = self._note(plan)
        size = staged = None
        if plan.prefills:
            token_ids = self._compute(upload(plan, self._seeds, self.vocab_size, self.device), restricted=restricted)
        else:
            size = None if restricted or self.graphs is None else self.graphs.size_for(len(plan.decodes))
            staged = self._stage(plan.decodes, size or len(plan.decodes))
            token_ids = self._run_decodes(staged, size, restricted=restricted)
        timer = None if begin is None else DeviceTimer(begin, self._event())
        on_host = torch.empty(token_ids.shape, dtype=token_ids.dtype, pin_memory=self._on_gpu)
        on_host.copy_(token_ids, non_blocking=True)
        arrived = self._event() if self._on_gpu else None
        return StepHandle(on_host, arrived, timer, staged, graph=size is not None)

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=self._time_steps)  # type: ignore[no-untyped-call]
        event.record()
        return event

    # --- steps that only decode ---------------------------------------------------------------------------------------

    def _stage(self, rows: Sequence[ScheduledRequest], size: int) -> StagedRows:
        return stage_rows(rows, self._last_blocks, size=size, padding=self._padding, pin_memory=self._on_gpu)

    def _run_decodes(self, staged: StagedRows, size: int | None, *, restricted: bool) -> Tensor:
        """Run a step without prefill: as a graph of the given size, or kernel by kernel where that is None."""
        if size is not None and self.graphs is not None:
            return self.graphs.replay(staged.rows, len(staged.order))
        longest = int(staged.rows[1, 0]) + 1
        rows = staged.rows.to(self.device, non_blocking=True)
        return self._decode(rows, restricted=restricted, max_context_len=longest)

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
        logits = self.model.logits(self.model(step.token_ids, attention, self.kv_cache))
        sampled = choose_tokens(logits, sampling, self.ops)
        state.last_tokens.index_copy_(0, slots, sampled)
        return sampled

    # --- steps with prefill -------------------------------------------------------------------------------------------

    def _compute(self, batch: Batch, *, restricted: bool) -> Tensor:
        """Forward pass, then sampling; returns the ids (S,) int64 and keeps them as the slots' last tokens."""
        self.slots.update(batch)
        token_ids = torch.cat((self.slots.last_tokens[batch.decode_slots], batch.prefill_token_ids))
        hidden = self.model(token_ids, self._attention_inputs(batch), self.kv_cache)
        if not len(batch.sample_tokens):
            return batch.sample_tokens
        logits = self.model.logits(hidden[batch.sample_tokens])
        sampled = choose_tokens(logits, self._sampling_inputs(batch, restricted=restricted), self.ops)
        self.slots.last_tokens[batch.sample_slots] = sampled
        return sampled

    def _attention_inputs(self, batch: Batch) -> AttentionInputs:
        positions = torch.cat((batch.decode_positions, batch.prefill_positions))
        token_slots = torch.cat((batch.decode_slots, batch.prefill_token_slots))
        blocks = self.slots.block_tables[token_slots, positions // self.block_size]
        return AttentionInputs(
            positions=positions,
            slot_mapping=blocks.long() * self.block_size + positions % self.block_size,
            decode=self._decode_inputs(batch) if len(batch.decode_slots) else None,
            prefill=self._prefill_inputs(batch),
        )

    def _decode_inputs(self, batch: Batch) -> DecodeInputs:
        return DecodeInputs(
            block_table=self.slots.block_tables[batch.decode_slots],
            context_lens=(batch.decode_positions + 1).int(),
            max_context_len=batch.max_decode_context,
        )

    def _prefill_inputs(self, batch: Batch) -> PrefillInputs:
        return PrefillInputs(
            block_table=self.slots.block_tables[batch.prefill_slots],
            query_starts=batch.prefill_starts.int(),
            context_lens=batch.prefill_context_lens.int(),
            max_query_len=batch.max_prefill_len,
        )

    def _sampling_inputs(self, batch: Batch, *, restricted: bool) -> SamplingInputs:
        rows = batch.sample_slots
        return SamplingInputs(
            temperatures=self.slots.temperatures[rows],
            seeds=self.slots.seeds[rows],
            token_indices=batch.sample_indices,
            limits=self.slots.limits(rows) if restricted else None,
        )

    # --- what the host remembers of the slots -------------------------------------------------------------------------

    def _note(self, plan: StepPlan) -> bool:
        """Keep account of the slots' last blocks and limits; whether a row of the step samples with top_k or top_p."""
        self._last_blocks.note(plan.decodes)
        self._last_blocks.note(plan.prefills)
        for row in plan.prefills:
            if row.sampling is not None:
                self._note_sampling(row.slot, row.sampling)
        if not self._restricted_slots:
            return False
        return any(row.samples and row.slot in self._restricted_slots for row in plan.scheduled)

    def _note_sampling(self, slot: int, sampling: SamplingParams) -> None:
        if sampling.is_greedy or (sampling.top_k is None and sampling.top_p is None):
            self._restricted_slots.discard(slot)
        else:
            self._restricted_slots.add(slot)
