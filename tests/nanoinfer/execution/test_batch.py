"""A plan, flattened by hand, and what the runner makes of it."""

import numpy as np
import torch

from nanoinfer.execution.batch import flatten, upload
from nanoinfer.execution.runner import SlotState
from nanoinfer.execution.seeds import Seeds
from nanoinfer.request import SamplingParams
from nanoinfer.scheduling.plan import Phase, ScheduledRequest, StepPlan

DRAWN = SamplingParams(temperature=0.7, top_p=0.9, top_k=400, seed=2**62 + 1)


def on_cpu(plan):
    return upload(flatten(plan, Seeds(0), 100, pin_memory=False), torch.device("cpu"))


def plan():
    decodes = (
        ScheduledRequest(10, 3, 16, 1, None, (8,), 4, True, 5, None),
        ScheduledRequest(11, 0, 6, 1, None, (), 2, True, 1, None),
    )
    prefills = (
        ScheduledRequest(12, 2, 4, 3, (50, 51, 52), (5, 6), 0, False, 0, DRAWN),
        ScheduledRequest(13, 1, 0, 2, (60, 61), (7,), 0, True, 0, SamplingParams(temperature=0)),
    )
    return StepPlan(0, Phase.MIXED, decodes, prefills)


def test_every_field_of_the_batch_says_what_the_plan_says():
    batch = on_cpu(plan())
    expected = {
        "table_slots": [3, 2, 2, 1],
        "table_columns": [4, 0, 1, 0],
        "table_blocks": [8, 5, 6, 7],
        "new_slots": [2, 1],
        "new_top_ks": [100, 100],
        "new_top_ps": [0.9, 1.0],
        "new_temperatures": [0.7, 0.0],
        "decode_slots": [3, 0],
        "decode_positions": [16, 6],
        "prefill_slots": [2, 1],
        "prefill_starts": [0, 3, 5],
        "prefill_context_lens": [7, 2],
        "prefill_token_ids": [50, 51, 52, 60, 61],
        "prefill_positions": [4, 5, 6, 0, 1],
        "prefill_token_slots": [2, 2, 2, 1, 1],
        "sample_tokens": [0, 1, 6],
        "sample_slots": [3, 0, 1],
        "sample_indices": [5, 1, 0],
    }
    assert {name: getattr(batch, name).tolist() for name in expected} == expected
    assert batch.new_seeds[0] == 2**62 + 1
    assert (batch.max_decode_context, batch.max_prefill_len) == (17, 3)


def test_a_decode_step_has_empty_prefill_fields():
    decodes = plan().decodes
    batch = on_cpu(StepPlan(0, Phase.DECODE, decodes, ()))
    assert batch.prefill_token_ids.shape == (0,)
    assert batch.prefill_starts.tolist() == [0]
    assert batch.sample_tokens.tolist() == [0, 1]
    assert batch.max_prefill_len == 0


def test_slots_keep_what_a_step_does_not_change():
    slots = SlotState(4, 6, torch.device("cpu"))
    slots.block_tables[3, :4] = torch.tensor([1, 2, 3, 4])
    slots.update(on_cpu(plan()))
    assert slots.block_tables[3].tolist() == [1, 2, 3, 4, 8, 0]
    assert slots.block_tables[2, :2].tolist() == [5, 6]
    np.testing.assert_allclose(slots.temperatures.tolist(), [0, 0, 0.7, 0, 0], rtol=1e-6)
    assert slots.seeds[2] == 2**62 + 1


def test_seeds_of_requests_are_their_own_or_follow_from_the_engines():
    unseeded = SamplingParams()
    assert Seeds(1).of(5, DRAWN) == DRAWN.seed
    assert Seeds(1).of(5, unseeded) == Seeds(1).of(5, unseeded)
    derived = {Seeds(engine).of(request, unseeded) for engine in range(3) for request in range(100)}
    assert len(derived) == 300
    assert all(0 <= seed < 2**63 for seed in derived)
