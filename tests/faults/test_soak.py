"""A short soak on the CPU, and that a soak sees what it is made to see."""

import json
from dataclasses import asdict, replace

import pytest

from nanoinfer import LLM
from tools import soak


@pytest.mark.no_cover  # thousands of steps of an engine whose lines its own tests count
def test_a_few_seconds_of_random_requests_leak_nothing_and_change_no_token(folder, monkeypatch):
    monkeypatch.setattr(soak, "MAX_SAMPLED", 6)
    seen = soak.soak_engines(folder, minutes=5 / 60)
    assert seen.faults == []
    assert seen.leaks() == []
    assert seen.counts.shifts == len(seen.readings) == soak.MIN_SHIFTS
    assert min(seen.counts.finished, seen.counts.compared, seen.counts.compared_tokens, seen.counts.mixed_steps) > 0


@pytest.mark.no_cover
def test_without_a_model_folder_random_weights_are_soaked_and_text_stops_and_varies(tmp_path, monkeypatch):
    monkeypatch.setattr(soak, "MAX_SAMPLED", 4)
    monkeypatch.setattr(soak, "MIN_SHIFTS", 1)
    (tmp_path / "config.json").write_text(json.dumps(soak.MODEL), encoding="utf-8")
    seen = soak.soak_engines(tmp_path, minutes=1 / 60)
    assert seen.faults == []
    asked = soak.SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    with LLM(str(tmp_path), weights="synthetic", device="cpu", max_model_len=64, max_num_seqs=2) as llm:
        outputs = llm.generate([[1, 2, 3], [700, 2]], asked)
    assert all(len(set(output.token_ids)) > 10 for output in outputs)


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
    seen = soak.Soak(readings=[{}, soak.reading("cpu")])
    with open(__file__, "rb"):  # noqa: PTH123  whatever keeps a descriptor
        seen.readings.append(soak.reading("cpu"))
    assert seen.leaks() == ["open_files grew by 1"]


def test_what_a_soak_never_did_is_told():
    seen = soak.Soak(counts=soak.Counts(**dict.fromkeys(asdict(soak.Counts()), 1)))
    assert seen.missed(device="cuda:0", dtype="float32") == []
    seen.counts.graph_steps = seen.counts.compared = 0
    assert seen.missed(device="cuda:0", dtype="float32") == [
        "graph_steps is 0: soak longer",
        "compared is 0: soak longer",
    ]
    assert seen.missed(device="cpu", dtype="bfloat16") == []


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
