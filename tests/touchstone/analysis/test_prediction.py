"""Cache hits predicted from prompts, block size and order of admission: by hand, by the engine, and as a check."""

from __future__ import annotations

import random
from itertools import islice

import numpy as np
import pytest

from tests.touchstone.factories import FakeRun, make_engine, make_trace, make_workload
from touchstone.analysis.formulas import (
    RunFacts,
    cached_tokens_bound,
    predicted_cached_tokens,
)
from touchstone.analysis.prediction import Asked, admission_order, hit_blocks, prompts_of, reusable_tokens
from touchstone.analysis.quantities import NotAvailable, Quantity
from touchstone.analysis.results import results_of
from touchstone.analysis.runs import read_runs
from touchstone.experiment import load_experiments
from touchstone.records import Lengths
from touchstone.verify.observed import METRICS, observe
from touchstone.verify.prefix import most_tokens, predicted_tokens
from touchstone.workload import fixed

EXPERIMENTS = {item.plan_id: item for item in load_experiments()}
SHARED = fixed(10, 100, 3, shared_fraction=0.7, prefix_fraction=0.8)
VOCABULARY = 5000


class TestByHand:
    def test_whole_blocks_of_a_prompt_admitted_before_are_found(self):
        assert hit_blocks([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 9, 9]], [0, 1], 2) == [0, 2]

    def test_the_first_of_those_that_share_computes_the_prefix_whoever_it_is(self):
        prompts = [[1, 2, 3, 4, 5], [1, 2, 3, 4, 6]]
        assert hit_blocks(prompts, [0, 1], 2) == [0, 2]
        assert hit_blocks(prompts, [1, 0], 2) == [2, 0]

    def test_a_block_counts_only_after_all_blocks_before_it(self):
        assert hit_blocks([[1, 1, 2, 2, 3], [9, 9, 2, 2, 3]], [0, 1], 2) == [0, 0]

    def test_the_block_of_the_last_token_is_always_computed(self):
        assert hit_blocks([[1, 2, 3, 4], [1, 2, 3, 4]], [0, 1], 2) == [0, 1]
        assert hit_blocks([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]], [0, 1], 2) == [0, 2]

    def test_a_prompt_may_go_on_where_another_one_ended(self):
        assert hit_blocks([[1, 2], [1, 2, 3, 4], [1, 2, 3, 4, 5]], [0, 1, 2], 2) == [0, 1, 2]

    def test_half_a_block_is_never_found(self):
        assert hit_blocks([[1, 2, 3], [1, 2, 3]], [0, 1], 4) == [0, 0]

    def test_admission_is_by_step_then_by_arrival(self):
        trace = make_trace(prompts=[10, 10, 10], arrivals_ms=[5, 0, 0])
        later = trace.requests[1].model_copy(update={"scheduled_ns": trace.requests[0].scheduled_ns + 1})
        requests = (trace.requests[0], later, trace.requests[2])
        assert admission_order(requests) == [2, 0, 1]
        assert admission_order((later.model_copy(update={"scheduled_ns": None}),)) is None

    def test_seventy_of_a_hundred_that_share_four_fifths_find_the_plans_number_of_tokens(self):
        spec = fixed(100, 512, 1, shared_fraction=0.7, prefix_fraction=0.8)
        blocks = hit_blocks(prompts_of(spec, VOCABULARY, 3), range(100), 16)
        assert sum(blocks) * 16 == 69 * 400
        assert sum(reusable_tokens(spec, [512] * 100, 16)) == 70 * 400


class TestTwoWays:
    @pytest.mark.parametrize("seed", range(6))
    def test_pairwise_common_prefixes_give_the_same_as_the_walk_through_blocks(self, seed):
        """Ragged prompts over three ids, so that beginnings coincide by chance as well."""
        chance = random.Random(seed)
        spec = make_workload(
            num_requests=12,
            input_tokens=Lengths(low=3, high=20),
            shared_fraction=0.5,
            prefix_fraction=0.6,
        )
        prompts = prompts_of(spec, 3, seed)
        order = list(range(12))
        chance.shuffle(order)
        begins = np.empty(12, dtype=np.int64)
        begins[order] = np.arange(12)
        lengths = np.array([len(prompt) for prompt in prompts])
        for size in (1, 2, 4):
            walked = sum(hit_blocks(prompts, order, size)) * size
            arrivals = np.zeros(12, dtype=np.int64)
            told = {"begins": begins, "arrivals": arrivals, "lengths": lengths, "size": size}
            assert predicted_tokens(spec.model_dump_json(), 3, seed, **told) == walked

    @pytest.mark.parametrize("size", [1, 16, 64, 256])
    def test_the_bound_is_the_same_in_fractions_and_in_decimals(self, size):
        for shared, prefix in ((0.7, 0.8), (0.29, 0.33), (1.0, 1.0), (0.0, 0.0)):
            spec = fixed(50, 300, 1, shared_fraction=shared, prefix_fraction=prefix)
            each = reusable_tokens(spec, [300] * 50, size)
            told = most_tokens(spec.model_dump(), np.full(50, 300), size)
            assert told == (sum(each), max(each, default=0))

    def test_verify_finds_the_same_number_in_a_run(self):
        facts = facts_of([48] * 6 + [0] * 4)
        planned = {
            "workload": SHARED.model_dump(mode="json"),
            "arms": [{"name": "on", "options": {}, "extra_output": 0.0}],
            "engine_options": {},
        }
        run = {"arm": "on", "seed": 5}
        told = observe(facts.trace.model_dump(mode="json"), run, facts.engine.model_dump(mode="json"), planned)
        mine = METRICS["predicted_cached_tokens"].compute(told)
        theirs = predicted_cached_tokens(facts)
        assert (mine.value, mine.terms) == (theirs.value, dict(theirs.terms))
        assert METRICS["cached_tokens_bound"].compute(told).value == cached_tokens_bound(facts).value


def engine_that_shares(**settings):
    engine = make_engine(**settings)
    return engine.model_copy(update={"model": {"vocab_size": VOCABULARY}, "shares_at_admission": True})


def facts_of(cached, *, options=None, engine=None, trace=None):
    trace = trace or make_trace(prompts=[100] * 10, cached=cached)
    return RunFacts(trace, engine=engine or engine_that_shares(), asked=Asked(SHARED, 5, options or {}))


class TestFormulas:
    def test_the_first_of_seven_computes_and_six_find_five_blocks(self):
        predicted = predicted_cached_tokens(facts_of([0] * 10))
        assert isinstance(predicted, Quantity)
        assert (predicted.value, dict(predicted.terms)) == (6 * 80, {"b": 16, r"\sum h_i": 30})
        bound = cached_tokens_bound(facts_of([0] * 10))
        assert (bound.value, dict(bound.terms)) == (6 * 80, {r"\sum u_i": 560, r"\max u_i": 80})

    def test_a_cache_that_is_off_finds_nothing(self):
        off = facts_of([0] * 10, options={"prefix_cache": False})
        assert (predicted_cached_tokens(off).value, cached_tokens_bound(off).value) == (0, 0)

    @pytest.mark.parametrize(
        "engine",
        [make_engine(), engine_that_shares(num_kv_blocks=20), engine_that_shares(block_size=None)],
        ids=["says nothing of sharing", "too small a pool", "no block size"],
    )
    def test_nothing_is_predicted_where_the_law_need_not_hold(self, engine):
        assert isinstance(predicted_cached_tokens(facts_of([0] * 10, engine=engine)), NotAvailable)


class TestTheCheck:
    @staticmethod
    def run(path, cached):
        fake = FakeRun(path, engine=engine_that_shares())
        arms = {"off": {"prefix_cache": False}, "on": {"prefix_cache": True}}
        hits = {"off": [0] * 10, "on": cached}
        order = ("off", "on", "on", "off")
        for unit in fake.plan_test("2.1", processes=6, order=order, arms=arms, workload=SHARED):
            fake.attempt(unit, [make_trace(prompts=[100] * 10, cached=hits[arm]) for arm in order])
        results = {result.test_id: result for result in results_of(read_runs(fake.write()), EXPERIMENTS)}
        return {check.id: check for check in results["2.1"].checks}, results["2.1"]

    def test_it_prints_predicted_measured_and_bound_and_passes_where_they_agree(self, tmp_path):
        checks, _ = self.run(tmp_path, [80] * 6 + [0] * 4)
        check = checks["cache_hits_as_predicted"]
        assert check.passed
        assert "predicted 0, 480; measured 0, 480; at most 0, 480" in check.detail
        assert check.detail.count("480") == check.detail_zh.count("480") == 3

    @pytest.mark.parametrize("cached", [[80] * 5 + [64] + [0] * 4, [80] * 5 + [0] * 5])
    def test_a_single_block_less_than_predicted_is_caught_and_takes_the_counts_back(self, tmp_path, cached):
        checks, result = self.run(tmp_path, cached)
        assert {name for name, check in checks.items() if not check.passed} == {"cache_hits_as_predicted"}
        assert result.results["cache_hit_rate"] is None

    def test_a_block_more_is_caught_by_prediction_and_bound(self, tmp_path):
        checks, _ = self.run(tmp_path, [80] * 6 + [16] + [0] * 3)
        wrong = {name for name, check in checks.items() if not check.passed}
        assert wrong == {"cache_hits_as_predicted", "cache_hits_within_bound"}


def test_the_engine_finds_exactly_what_is_predicted(tiny_engine):
    """More requests than run at once, chunked by a small budget: admission spreads over many steps."""
    spec = fixed(12, 40, 3, shared_fraction=0.6, prefix_fraction=0.7)
    for seed in islice(range(100), 3):
        requests = [(list(prompt), 3) for prompt in prompts_of(spec, tiny_engine.vocab_size, seed)]
        cached, begins = tiny_engine.run(requests)
        order = sorted(range(12), key=lambda index: (begins[index], index))
        predicted = [count * 8 for count in hit_blocks([prompt for prompt, _ in requests], order, 8)]
        assert cached == predicted
        assert sum(cached) > 0


@pytest.fixture(scope="module")
def tiny_engine(tmp_path_factory):
    torch = pytest.importorskip("torch")
    from nanoinfer import LLM, SamplingParams  # noqa: PLC0415  torch first
    from touchstone.running.models import choose_model  # noqa: PLC0415  as above

    torch.set_num_threads(1)
    model = choose_model(None, "cpu", tmp_path_factory.mktemp("model"))
    options = {"weights": "synthetic", "block_size": 8, "max_num_seqs": 3, "max_num_batched_tokens": 50}

    class Tiny:
        def __init__(self):
            self.llm = LLM(str(model.folder), device="cpu", dtype="float32", kv_cache_bytes=1 << 20, **options)
            self.vocab_size = self.llm.vocab_size

        def run(self, requests):
            settings = [SamplingParams(temperature=0, max_tokens=count, ignore_eos=True) for _, count in requests]
            outputs = self.llm.generate([prompt for prompt, _ in requests], settings)
            return (
                [output.facts.num_cached_tokens for output in outputs],
                [output.facts.scheduled_ns for output in outputs],
            )

    engine = Tiny()
    yield engine
    engine.llm.close()
