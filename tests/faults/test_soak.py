"""A short soak on the CPU, and that a soak sees what it is made to see."""

from dataclasses import replace

import pytest

from nanoinfer import LLM
from tools import soak


def test_a_few_seconds_of_random_requests_leak_nothing_and_change_no_token(folder, monkeypatch):
    monkeypatch.setattr(soak, "MAX_SAMPLED", 6)
    seen = soak.soak_engines(folder, minutes=5 / 60)
    assert seen.faults == []
    assert seen.leaks() == []
    assert seen.counts.shifts == len(seen.readings) == soak.MIN_SHIFTS
    assert min(seen.counts.finished, seen.counts.compared, seen.counts.compared_tokens) > 0


def test_a_changed_token_and_a_missing_one_are_seen(folder):
    with LLM(str(folder), device="cpu", max_model_len=64, num_kv_blocks=8, max_num_seqs=2) as llm:
        asked = soak.Asked((1, 2, 3), soak.SamplingParams(temperature=0, max_tokens=6, ignore_eos=True))
        (output,) = llm.generate([asked.prompt], asked.sampling)
        wrong = replace(output, token_ids=(*output.token_ids[:-1], output.token_ids[-1] ^ 1))
        short = replace(output, token_ids=output.token_ids[:-1])
        seen = soak.Soak()
        soak.compare([(asked, output), (asked, wrong), (asked, short)], llm, seen)
    assert len(seen.faults) == 2
    assert seen.counts.compared == 3


def test_an_open_file_and_a_thread_more_are_leaks():
    seen = soak.Soak(readings=[soak.reading("cpu")])
    with open(__file__, "rb"):  # noqa: PTH123  whatever keeps a descriptor
        seen.readings.append(soak.reading("cpu"))
    assert seen.leaks() == ["open_files grew by 1"]


def test_a_block_that_is_not_given_back_is_seen(folder):
    seen = soak.Soak()
    with LLM(str(folder), device="cpu", max_model_len=64, num_kv_blocks=8, max_num_seqs=2) as llm:
        soak.engine_of(llm).cache.reserve([], 1)
        traffic = soak.Traffic(llm.vocab_size, 0)
        shift = soak.Shift(llm, traffic, seen)
        traffic.chance = lambda _: False
        with pytest.raises(AssertionError, match="counts 1 references, 0 tables hold it"):
            shift.work(0)


def test_facts_of_steps_that_nobody_takes_do_not_pile_up(folder, monkeypatch):
    monkeypatch.setattr("nanoinfer.engine.MAX_STEP_FACTS", 5)
    with LLM(str(folder), device="cpu", max_model_len=64, num_kv_blocks=8, max_num_seqs=2) as llm:
        for _ in range(3):
            llm.generate([[1, 2, 3]], soak.SamplingParams(temperature=0, max_tokens=6, ignore_eos=True))
        assert len(llm.take_step_facts()) == 5
        assert llm.take_step_facts() == ()
