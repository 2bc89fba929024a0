"""One forward pass and sampling on one rank.

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
from nanoinfer.execution.staging import StagedDecodes, Stager
from nanoinfer.model.attention import AttentionInputs, DecodeInputs, PrefillInputs
from nanoinfer.model.sampling import Limits, SamplingInputs, choose_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from nanoinfer.execution.decode_rows import StagedRows
    from nanoinfer.execution.seeds import Seeds
    from nanoinfer.execution.staging import StagedStep
    from nanoinfer.model.decoder import Decoder
    from nanoinfer.model.ops import Ops
    from nanoinfer.scheduling.plan import StepPlan


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
        self.vocab_size = model.vocab_size
        self.num_slots = num_slots
        self.slots = SlotState(num_slots, max_blocks, self.device)
        self.graphs: DecodeGraphs | None = None
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

    @torch.inference_mode()
    def capture_graphs(self, sizes: tuple[int, ...] | None = None) -> GraphFacts:
        """Capture decode steps of all padded batch sizes (or the given ones), on CUDA."""
        padding_row = self._stager.padding
        padding = torch.tensor([padding_row.slot, 0, padding_row.block, 0], device=self.device)
        self.graphs, facts = capture_decode_graphs(
            lambda rows: self._decode(rows, restricted=False, max_context_len=self._max_context_len),
            sizes or padded_batch_sizes(self.num_slots),
            padding,
        )
        return facts

    def launch(self, plan: StepPlan) -> StepHandle:
        """Queue one step on the device and return without waiting for it (on a CPU: when it is done)."""
        return self.compute(self._stager.stage(plan, () if self.graphs is None else self.graphs.sizes))

    @torch.inference_mode()
    def compute(self, step: StagedStep) -> StepHandle:
        """Do the same for a step that was staged, here or in another process."""
        begin = self._event() if self._time_steps else None
        if isinstance(step, StagedDecodes):
            token_ids = self._run_decodes(step)
        else:
            token_ids = self._compute(upload(step.flat, self.device), restricted=step.restricted)
        timer = None if begin is None else DeviceTimer(begin, self._event())
        on_host = torch.empty(token_ids.shape, dtype=token_ids.dtype, pin_memory=self._on_gpu)
        on_host.copy_(token_ids, non_blocking=True)
        arrived = self._event() if self._on_gpu else None
        if isinstance(step, StagedDecodes):
            return StepHandle(on_host, arrived, timer, step.staged, graph=step.replay)
        return StepHandle(on_host, arrived, timer, None, graph=False)

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=self._time_steps)  # type: ignore[no-untyped-call]
        event.record()
        return event

    # --- steps that only decode ---------------------------------------------------------------------------------------

    def _run_decodes(self, step: StagedDecodes) -> Tensor:
        """Run a step without prefill: as a graph, or kernel by kernel."""
        staged = step.staged
        if step.replay and self.graphs is not None:
            return self.graphs.replay(staged.rows, len(staged.order))
        longest = int(staged.rows[1, 0]) + 1
        rows = staged.rows.to(self.device, non_blocking=True)
        return self._decode(rows, restricted=step.restricted, max_context_len=longest)

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
        sampled = self._choose(logits, sampling)
        state.last_tokens.index_copy_(0, slots, sampled)
        return sampled

    # --- steps with prefill -------------------------------------------------------------------------------------------

    def _compute(self, batch: Batch, *, restricted: bool) -> Tensor:
        """Forward pass, then sampling; returns the ids (S,) int64 and keeps them as the slots' last tokens."""
        self.slots.update(batch)
        token_ids = torch.cat((self.slots.last_tokens[batch.decode_slots], batch.prefill_token_ids))
        wanted = batch.sample_tokens if len(batch.sample_tokens) else None
        hidden = self.model(token_ids, self._attention_inputs(batch), self.kv_cache, wanted)
        if wanted is None:
            return batch.sample_tokens
        logits = self.model.logits(hidden)
        sampled = self._choose(logits, self._sampling_inputs(batch, restricted=restricted))
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

    def _choose(self, logits: Tensor, sampling: SamplingInputs) -> Tensor:
        return choose_tokens(logits, sampling, self.ops, self.model.parallel, self.vocab_size)
