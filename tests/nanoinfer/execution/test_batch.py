"""A plan, flattened by hand, and what the runner makes of it."""

import numpy as np
import torch

from nanoinfer.execution.batch import Batch, BatchShape, Flattener
from nanoinfer.execution.decode_rows import PaddingRow
from nanoinfer.execution.runner import SlotState
from nanoinfer.execution.seeds import Seeds
from nanoinfer.request import SamplingParams
from nanoinfer.scheduling.plan import Phase, ScheduledRequest, StepPlan

DRAWN = SamplingParams(temperature=0.7, top_p=0.9, top_k=400, seed=2**62 + 1)


def flat(plan, *shapes):
    padding = PaddingRow(slot=4, block=9)
    return Flattener(Seeds(0), padding, vocab_size=100, pin_memory=False).flatten(plan, shapes)


def on_cpu(plan, *shapes):
    return flat(plan, *shapes).upload(torch.device("cpu"))


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
        "num_decodes": [2],
        "token_ids": [0, 0, 50, 51, 52, 60, 61],
        "positions": [16, 6, 4, 5, 6, 0, 1],
        "token_slots": [3, 0, 2, 2, 2, 1, 1],
        "prefill_slots": [2, 1],
        "query_starts": [2, 5, 7],
        "context_lens": [7, 2],
        "sample_tokens": [0, 1, 6],
        "sample_slots": [3, 0, 1],
        "sample_indices": [5, 1, 0],
    }
    assert {name: getattr(batch, name).tolist() for name in expected} == expected
    assert batch.new_seeds[0] == 2**62 + 1
    assert batch.shape == BatchShape(7, 2, 2, 3, 4, 2)
    assert (batch.max_decode_context, batch.max_prefill_len) == (17, 3)


def test_padding_belongs_to_a_slot_and_a_block_that_no_request_holds():
    shape = BatchShape(tokens=9, decodes=4, prefills=3, sampled=4, table_updates=5, new_slots=3)
    batch, exact = on_cpu(plan(), shape), on_cpu(plan())
    assert batch.shape == shape
    expected = {
        "table_slots": [4],
        "table_columns": [0],
        "table_blocks": [9],
        "new_slots": [4],
        "new_temperatures": [0.0],
        "num_decodes": [],
        "token_ids": [0, 0],
        "positions": [0, 0],
        "token_slots": [4, 4],
        "prefill_slots": [4],
        "query_starts": [7],
        "context_lens": [0],
        "sample_tokens": [0],
        "sample_slots": [4],
    }
    for name, padding in expected.items():
        assert getattr(batch, name).tolist() == getattr(exact, name).tolist() + padding
    assert flat(plan(), shape).num_sampled == 3


def test_a_plan_is_padded_to_the_first_shape_that_holds_all_of_it():
    own = BatchShape(7, 2, 2, 3, 4, 2)
    too_small = [own._replace(**{name: getattr(own, name) - 1}) for name in BatchShape._fields]
    large, larger = own._replace(tokens=16), own._replace(tokens=32, decodes=8)
    assert flat(plan(), *too_small).shape == own
    assert flat(plan(), *too_small, large, larger).shape == large
    assert flat(plan(), *too_small, larger, large).shape == larger


def test_a_batch_is_views_of_the_integers_of_its_plan():
    integers = flat(plan()).integers
    batch = Batch.of(integers, flat(plan()).shape, max_decode_context=1, max_prefill_len=1)
    assert batch.token_ids.data_ptr() > integers.data_ptr()
    assert sum(batch.shape.sizes) == len(integers)


def test_slots_keep_what_a_step_does_not_change():
    slots = SlotState(4, 6, torch.device("cpu"), padding_block=9)
    slots.block_tables[3, :4] = torch.tensor([1, 2, 3, 4])
    slots.update(on_cpu(plan()))
    assert slots.block_tables[3].tolist() == [1, 2, 3, 4, 8, 0]
    assert slots.block_tables[2, :2].tolist() == [5, 6]
    assert slots.block_tables[4].eq(9).all()
    np.testing.assert_allclose(slots.temperatures.tolist(), [0, 0, 0.7, 0, 0], rtol=1e-6)
    assert slots.seeds[2] == 2**62 + 1


def test_seeds_of_requests_are_their_own_or_follow_from_the_engines():
    unseeded = SamplingParams()
    assert Seeds(1).of(5, DRAWN) == DRAWN.seed
    assert Seeds(1).of(5, unseeded) == Seeds(1).of(5, unseeded)
    derived = {Seeds(engine).of(request, unseeded) for engine in range(3) for request in range(100)}
    assert len(derived) == 300
    assert all(0 <= seed < 2**63 for seed in derived)
