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
from nanoinfer.model.attention import AttentionInputs, DecodeInputs, PrefillInputs
from nanoinfer.model.sampling import SamplingInputs, choose_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from nanoinfer.execution.seeds import Seeds
    from nanoinfer.model.decoder import Decoder
    from nanoinfer.model.ops import Ops
    from nanoinfer.request import SamplingParams
    from nanoinfer.scheduling.plan import StepPlan


class SlotState:
    """What the device knows of each of `num_slots` slots; written in the order of the plans.

    block_tables  (num_slots, max_blocks) int32; entries beyond a slot's table are stale but valid block ids
    last_tokens   (num_slots,) int64, the token sampled last
    temperatures, top_ps  (num_slots,) float32
    top_ks, seeds         (num_slots,) int64
    """

    def __init__(self, num_slots: int, max_blocks: int, device: torch.device) -> None:
        self.block_tables = torch.zeros(num_slots, max_blocks, dtype=torch.int32, device=device)
        self.last_tokens = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.temperatures = torch.zeros(num_slots, dtype=torch.float32, device=device)
        self.top_ps = torch.ones(num_slots, dtype=torch.float32, device=device)
        self.top_ks = torch.ones(num_slots, dtype=torch.int64, device=device)
        self.seeds = torch.zeros(num_slots, dtype=torch.int64, device=device)

    def update(self, batch: Batch) -> None:
        """Take in what a step changes before it is computed."""
        if len(batch.table_slots):
            self.block_tables[batch.table_slots, batch.table_columns] = batch.table_blocks.int()
        if len(batch.new_slots):
            self.temperatures[batch.new_slots] = batch.new_temperatures.float()
            self.top_ps[batch.new_slots] = batch.new_top_ps.float()
            self.top_ks[batch.new_slots] = batch.new_top_ks
            self.seeds[batch.new_slots] = batch.new_seeds


@dataclass(frozen=True, slots=True)
class DeviceTimer:
    """CUDA events around a step's work."""

    begin: torch.cuda.Event
    end: torch.cuda.Event

    def elapsed_ns(self) -> int:
        """Nanoseconds between the events; both must have happened."""
        milliseconds: float = self.begin.elapsed_time(self.end)
        return round(milliseconds * 1e6)


class StepHandle:
    """A launched step: its sampled ids are, or will be, on the host."""

    def __init__(self, token_ids: Tensor, arrived: torch.cuda.Event | None, timer: DeviceTimer | None) -> None:
        self._token_ids = token_ids
        self._arrived = arrived
        self._timer = timer

    def tokens(self) -> list[int]:
        """Wait for the ids, one for each sampled row in the plan's order."""
        if self._arrived is not None:
            self._arrived.synchronize()
        ids: list[int] = self._token_ids.tolist()
        return ids

    def device_ns(self) -> int | None:
        """Time the step took on the device, None where that was not recorded; call it after `tokens`."""
        return None if self._timer is None else self._timer.elapsed_ns()


class Runner:
    """Runs plans on one device.

    kv_cache     (num_layers, 2, N, block_size, Hkv, D), zeros at the start: attention multiplies masked values by zero,
                 so that they must be finite
    num_slots    rows of the per-slot state
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
        self.slots = SlotState(num_slots, max_blocks, self.device)
        self._seeds = seeds
        self._restricted_slots: set[int] = set()
        self._time_steps = time_steps and self.device.type == "cuda"

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> StepHandle:
        """Queue one step on the device and return without waiting for it (on a CPU: when it is done)."""
        begin = self._event() if self._time_steps else None
        batch = upload(plan, self._seeds, self.vocab_size, self.device)
        self.slots.update(batch)
        token_ids = self._compute(batch, restricted=self._is_restricted(plan))
        timer = None if begin is None else DeviceTimer(begin, self._event())
        if self.device.type != "cuda":
            return StepHandle(token_ids, None, timer)
        on_host = torch.empty(token_ids.shape, dtype=token_ids.dtype, pin_memory=True)
        on_host.copy_(token_ids, non_blocking=True)
        return StepHandle(on_host, self._event(), timer)

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=self._time_steps)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _compute(self, batch: Batch, *, restricted: bool) -> Tensor:
        """Forward pass, then sampling; returns the ids (S,) int64 and keeps them as the slots' last tokens."""
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
            prefill=self._prefill_inputs(batch) if len(batch.prefill_slots) else None,
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
            top_ps=self.slots.top_ps[rows],
            top_ks=self.slots.top_ks[rows],
            seeds=self.slots.seeds[rows],
            token_indices=batch.sample_indices,
            restricted=restricted,
        )

    def _is_restricted(self, plan: StepPlan) -> bool:
        """Whether a row of the step samples with top_k or top_p; keeps account of the slots that do."""
        for row in plan.scheduled:
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
