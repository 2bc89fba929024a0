"""Each lie that an arm can tell about itself, told to a good run folder; the check made for it fires, and no other."""

from __future__ import annotations

import pytest

from tests.touchstone.factories import MS, FakeRun, make_trace, make_workload, pair_seed
from touchstone.analysis.results import results_of
from touchstone.analysis.runs import read_runs
from touchstone.experiment import load_experiments
from touchstone.ledger import LEDGER_NAME, Ledger, read_ledger
from touchstone.records import Attempt
from touchstone.workload import at_rate, build

EXPERIMENTS = {item.plan_id: item for item in load_experiments()}
ORDER = ("first", "second", "second", "first")


def checks_of(folder, test_id):
    result = next(result for result in results_of(read_runs(folder), EXPERIMENTS) if result.test_id == test_id)
    return {check.id: check for check in result.checks}


def failed(checks):
    return {name for name, check in checks.items() if not check.passed}


class TestGraphs:
    ORDER = ("off", "on", "on", "off")
    ARMS = {"off": {"cuda_graphs": False}, "on": {"cuda_graphs": True}}  # noqa: RUF012  read by every test, changed by none

    def run(self, path, replayed):
        fake = FakeRun(path)
        for unit in fake.plan_test("2.3", processes=6, order=self.ORDER, arms=self.ARMS):
            fake.attempt(unit, [with_graphs(make_trace(), replayed[arm]) for arm in self.ORDER])
        return checks_of(fake.write(), "2.3")

    def test_arms_that_do_what_they_say_pass(self, tmp_path):
        checks = self.run(tmp_path, {"off": False, "on": True})
        assert checks["graphs_as_asked"].passed
        assert "48 decode steps, 0 of them" in checks["graphs_as_asked"].detail

    @pytest.mark.parametrize("replayed", [{"off": False, "on": False}, {"off": True, "on": True}])
    def test_an_arm_that_is_the_other_one_is_caught(self, tmp_path, replayed):
        assert failed(self.run(tmp_path, replayed)) == {"graphs_as_asked"}


def with_graphs(trace, graph):
    steps = tuple(step.model_copy(update={"graph": graph and step.kind == "decode"}) for step in trace.steps)
    return trace.model_copy(update={"steps": steps})


class TestArrivals:
    RATE = 40.0

    def run(self, path, late_ns=0):
        """Write a run at a load whose requests arrive as drawn, but for one that is let in later."""
        spec = make_workload(num_requests=5, load=0.5)
        fake = FakeRun(path / "plain")
        for unit in fake.plan_test("2.2", processes=6, order=ORDER, workload=spec):
            traces = [self.trace(spec, pair_seed(unit, position), late_ns) for position in range(4)]
            fake.attempt(unit, traces)
        return checks_of(self.with_rates(fake.write(), path / "rated"), "2.2")

    def trace(self, spec, seed, late_ns):
        drawn = [request.arrival_ns / MS for request in build(at_rate(spec, self.RATE), 2, seed)]
        drawn[-1] += late_ns / MS
        return make_trace(prompts=[100] * 5, arrivals_ms=drawn, prefill_ms=1000)

    def with_rates(self, folder, out):
        out.mkdir()
        (folder / "traces").rename(out / "traces")
        with Ledger.create(out / LEDGER_NAME) as ledger:
            for entry in read_ledger(folder / LEDGER_NAME):
                body = entry.body
                if isinstance(body, Attempt):
                    rows = tuple(row.model_copy(update={"request_rate_per_s": self.RATE}) for row in body.measurements)
                    body = body.model_copy(update={"measurements": rows})
                ledger.append(entry.kind, body)
        return out

    def test_requests_that_arrive_as_drawn_pass(self, tmp_path):
        check = self.run(tmp_path)["arrivals_as_drawn"]
        assert check.passed
        assert "24 runs at 40 requests/s" in check.detail

    @pytest.mark.parametrize("late_ns", [-5_000, 1_000_000])
    def test_a_request_that_is_let_in_early_or_late_is_caught(self, tmp_path, late_ns):
        assert failed(self.run(tmp_path, late_ns)) == {"arrivals_as_drawn"}


class TestPasses:
    """The first arm takes 100 ms, the second 200 ms times a factor that may differ between the two passes."""

    def run(self, path, *, last=1.0, scatter=0.001, cached=(0, 0)):
        fake = FakeRun(path)
        arms = {"first": {"prefix_cache": True}, "second": {"prefix_cache": True}}
        shared = make_workload(num_requests=10, shared_fraction=0.7, prefix_fraction=0.8)
        for unit in fake.plan_test("2.1", processes=6, order=ORDER, arms=arms, workload=shared):
            noise = 1 + scatter * (unit.process % 3)
            factors = {"first": (1, 1), "second": (2 * noise, 2 * noise * last)}
            seen = dict.fromkeys(factors, 0)
            traces = []
            for arm in ORDER:
                turn, seen[arm] = seen[arm], seen[arm] + 1
                hits = [cached[turn]] * 6 + [0] * 4
                traces.append(make_trace(prompts=[100] * 10, cached=hits, prefill_ms=100 * factors[arm][turn]))
            fake.attempt(unit, traces)
        return checks_of(fake.write(), "2.1")

    def test_two_passes_of_one_ratio_verify_each_other(self, tmp_path):
        check = self.run(tmp_path)["passes_agree"]
        assert check.passed
        assert check.detail.startswith("6 blocks: ratio of total times 1.8")
        assert check.detail.endswith("0 unequal token counts")

    def test_a_ratio_that_moves_within_the_margin_passes(self, tmp_path):
        assert self.run(tmp_path, last=1.04)["passes_agree"].passed

    def test_a_ratio_that_moves_beyond_margin_and_chance_is_caught(self, tmp_path):
        assert failed(self.run(tmp_path, last=1.2)) == {"passes_agree"}

    def test_a_pass_that_finds_other_counts_is_caught(self, tmp_path):
        checks = self.run(tmp_path, cached=(80, 64))
        assert failed(checks) == {"passes_agree"}
        assert "12 unequal token counts" in checks["passes_agree"].detail
