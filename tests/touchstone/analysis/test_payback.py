"""When captured graphs are earned back: Fieller's interval by hand and by simulation, and both routes to one answer."""

from __future__ import annotations

import copy
import random

import pytest
from scipy import stats

from tests.touchstone.factories import FakeRun, make_trace
from touchstone.analysis.payback import fieller
from touchstone.analysis.results import results_of
from touchstone.analysis.runs import read_runs
from touchstone.experiment import load_experiments
from touchstone.ledger import LEDGER_NAME, Ledger, read_ledger
from touchstone.records import Attempt, GraphCapture
from touchstone.verify.custody import Evidence, read_chain, read_traces
from touchstone.verify.gathered import gather
from touchstone.verify.payback import payback_faults

EXPERIMENTS = {item.plan_id: item for item in load_experiments()}
ORDER = ("off", "on", "on", "off")


class TestFieller:
    def test_a_saving_without_noise_is_earned_back_after_the_quotient(self):
        crossing = fieller([2.0, 2.0, 2.0], [0.5, 0.5, 0.5])
        assert (crossing.value, crossing.verdict) == (4.0, "EARNED BACK")
        assert crossing.low == pytest.approx(4.0)
        assert crossing.high == pytest.approx(4.0)

    def test_a_loss_is_never_earned_back(self):
        crossing = fieller([2.0, 2.1, 1.9], [-0.5, -0.51, -0.49])
        assert (crossing.value, crossing.low, crossing.high, crossing.verdict) == (None, None, None, "NEVER")

    def test_a_saving_that_is_not_told_from_zero_has_no_upper_end(self):
        crossing = fieller([2.0, 2.1, 1.9, 2.0], [0.5, -0.4, 0.3, -0.2])
        assert (crossing.high, crossing.verdict) == (None, "UNDECIDED")
        assert crossing.low > 0
        assert fieller([2.0, 2.1, 1.9, 2.0], [-0.5, 0.4, -0.3, 0.2]).value is None

    @pytest.mark.parametrize("savings", [[0.5, 0.4, 0.6, 0.55], [0.5, -0.4, 0.3, -0.2]])
    def test_at_an_end_the_t_test_stands_on_the_edge(self, savings):
        costs = [2.0, 2.1, 1.9, 2.05]
        crossing = fieller(costs, savings)
        for end in (crossing.low, crossing.high):
            if end is not None:
                left = [cost - end * saving for cost, saving in zip(costs, savings, strict=True)]
                assert stats.ttest_1samp(left, 0).pvalue == pytest.approx(0.05, rel=1e-9)

    def test_the_interval_holds_the_truth_as_often_as_it_says(self):
        chance, covered, rounds = random.Random(7), 0, 2000
        for _ in range(rounds):
            costs = [chance.gauss(1.0, 0.05) for _ in range(6)]
            savings = [chance.gauss(1e-4, 3e-5) for _ in range(6)]
            crossing = fieller(costs, savings)
            high = float("inf") if crossing.high is None else crossing.high
            covered += crossing.verdict != "NEVER" and (crossing.low or 0.0) <= 1e4 <= high
        assert 0.935 <= covered / rounds <= 0.965


def run_of(path, *, on_ms=2.0, graphs=True):
    """Six processes whose decode steps take 10 ms without graphs, and `on_ms` with them; capture takes about 3 s."""
    fake = FakeRun(path)
    arms = {"off": {"cuda_graphs": False}, "on": {"cuda_graphs": True}}
    fake.add_instrument()
    for unit in fake.plan_test("2.3", processes=6, order=ORDER, arms=arms):
        slow = 1 + 0.01 * (unit.process % 3)
        traces = {"off": make_trace(decode_ms=10 * slow), "on": replayed(make_trace(decode_ms=on_ms / slow))}
        fake.attempt(unit, [traces[arm] for arm in ORDER])
    folder = fake.write()
    return with_graphs(folder, path.with_name("with-graphs")) if graphs else folder


def replayed(trace):
    steps = tuple(step.model_copy(update={"graph": step.kind == "decode"}) for step in trace.steps)
    return trace.model_copy(update={"steps": steps})


def with_graphs(folder, out, *, arms=("on",)):
    """Tell the run once more, with what capturing cost in each process for these arms."""
    out.mkdir()
    (folder / "traces").rename(out / "traces")
    with Ledger.create(out / LEDGER_NAME) as ledger:
        for entry in read_ledger(folder / LEDGER_NAME):
            body = entry.body
            if isinstance(body, Attempt) and body.test_id == "2.3":
                number = int(body.unit_id[-1])
                captured = GraphCapture(num_graphs=35, capture_s=3 + 0.02 * number, capture_bytes=10**8 + number)
                rows = tuple(
                    row.model_copy(update={"graphs": captured if row.arm in arms else None})
                    for row in body.measurements
                )
                body = body.model_copy(update={"measurements": rows})
            ledger.append(entry.kind, body)
    return out


def result_of(folder):
    return next(result for result in results_of(read_runs(folder), EXPERIMENTS) if result.test_id == "2.3")


class TestAResult:
    def test_a_faster_decode_earns_the_capture_back_after_capture_over_saving(self, tmp_path):
        result = result_of(run_of(tmp_path / "run"))
        payback = result.payback
        saved = sum(payback.saved_s) / 6
        assert payback.verdict == "EARNED BACK"
        assert payback.tokens == pytest.approx(3.05 / saved)
        assert payback.low < payback.tokens < payback.high
        assert (payback.num_graphs, payback.capture_bytes) == (35, 100_000_002)
        medians = {(item.metric, item.arm): item.median for item in result.statistics}
        assert medians["num_cuda_graphs", "on"] == 35
        assert medians["graph_capture_time", "on"] == pytest.approx(3.05)
        withheld = next(s.withheld for s in result.statistics if (s.metric, s.arm) == ("graph_capture_time", "off"))
        assert withheld == "the engine of this arm captured no CUDA graphs"

    def test_a_slower_decode_never_does(self, tmp_path):
        assert result_of(run_of(tmp_path / "run", on_ms=15)).payback.verdict == "NEVER"

    def test_without_graphs_there_is_nothing_to_earn_back(self, tmp_path):
        assert result_of(run_of(tmp_path / "run", graphs=False)).payback is None

    def test_arms_that_both_capture_graphs_do_not_tell_what_capturing_saves(self, tmp_path):
        folder = run_of(tmp_path / "run", graphs=False)
        assert result_of(with_graphs(folder, tmp_path / "both", arms=("off", "on"))).payback is None


class TestVerify:
    @staticmethod
    def faults(folder, told, *, void=False):
        evidence = Evidence(folder)
        read_chain(evidence)
        read_traces(evidence)
        return list(payback_faults(gather(evidence)["2.3"], told, void=void))

    @pytest.mark.parametrize("on_ms", [2.0, 15.0])
    def test_the_honest_payback_passes(self, tmp_path, on_ms):
        folder = run_of(tmp_path / "run", on_ms=on_ms)
        assert self.faults(folder, result_of(folder).model_dump(mode="json")) == []

    @pytest.mark.parametrize(
        ("change", "fault"),
        [
            ({"tokens": 1.0}, "tokens is 1.0"),
            ({"low": 1.0}, "low is 1.0"),
            ({"high": 1e9}, "high is"),
            ({"high": None}, "has other ends"),
            ({"verdict": "NEVER"}, "the verdict is NEVER"),
            ({"num_graphs": 3}, "35 graphs keep"),
            ({"captures_s": [1.0] * 6}, "captures_s is"),
        ],
    )
    def test_any_other_number_is_caught(self, tmp_path, change, fault):
        folder = run_of(tmp_path / "run")
        told = copy.deepcopy(result_of(folder).model_dump(mode="json"))
        told["payback"] |= change
        assert fault in self.faults(folder, told)[0]

    def test_a_missing_payback_is_caught_and_a_void_run_has_none(self, tmp_path):
        folder = run_of(tmp_path / "run")
        told = result_of(folder).model_dump(mode="json")
        assert self.faults(folder, told | {"payback": None}) == ["payback: missing"]
        assert self.faults(folder, told, void=True) == ["payback: given, and the runs do not allow one"]

    def test_a_payback_is_caught_where_both_arms_captured_graphs(self, tmp_path):
        folder = run_of(tmp_path / "run", graphs=False)
        told = result_of(with_graphs(folder, tmp_path / "one")).model_dump(mode="json")
        both = with_graphs(tmp_path / "one", tmp_path / "both", arms=("off", "on"))
        assert self.faults(both, told) == ["payback: given, and the runs do not allow one"]
        assert self.faults(both, result_of(both).model_dump(mode="json")) == []
