import json

import pytest

from tests.touchstone import factories
from tests.touchstone.factories import make_workload
from tests.touchstone.reproduce.pairs_of_runs import EXPERIMENTS, write_run, write_switched, write_whole
from touchstone.records import Lengths
from touchstone.reporting.lint import table_faults
from touchstone.reproduce.comparison import compare_runs
from touchstone.reproduce.comparison_tables import comparison_json, comparison_markdown, remarks
from touchstone.reproduce.errors import ComparisonError


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    return write_whole(tmp_path_factory.mktemp("before") / "run")


def compared(before, after):
    return compare_runs(before, after, EXPERIMENTS)


def found(comparison, metric, arm="default", test_id="1.1"):
    return next(one for one in comparison.metrics if (one.test_id, one.metric, one.arm) == (test_id, metric, arm))


class TestOneMachine:
    @pytest.mark.no_cover
    @pytest.mark.parametrize(("scale", "expected"), [(1.2, "HIGHER"), (0.8, "LOWER"), (1.0, "EQUIVALENT")])
    def test_paired_speeds_are_judged_with_their_interval(self, before, tmp_path, scale, expected):
        one = found(compared(before, write_run(tmp_path / "after", scale=scale)), "total_time")
        assert one.design == "paired"
        assert one.verdict == expected
        assert one.interval.low <= one.ratio <= one.interval.high
        assert one.ratio == pytest.approx(scale, rel=1e-3)
        assert one.n == 6

    def test_the_ratio_is_the_second_run_over_the_first(self, before, tmp_path):
        one = found(compared(before, write_run(tmp_path / "after", scale=2.0)), "total_time")
        assert one.second / one.first == pytest.approx(2, rel=0.01)
        assert one.ratio == pytest.approx(2, rel=0.01)

    def test_noise_that_hides_the_answer_is_inconclusive(self, tmp_path):
        before = write_run(tmp_path / "before", spread=0.2)
        after = write_run(tmp_path / "after", spread=0.01)
        assert found(compared(before, after), "total_time").verdict == "INCONCLUSIVE"

    def test_too_few_processes_give_no_verdict(self, tmp_path):
        before, after = (write_run(tmp_path / name, processes=3) for name in ("before", "after"))
        assert found(compared(before, after), "total_time").verdict == "INSUFFICIENT"

    def test_other_numbers_of_processes_are_compared_unpaired(self, before, tmp_path):
        one = found(compared(before, write_run(tmp_path / "after", processes=8, scale=1.2)), "total_time")
        assert one.design == "unpaired"
        assert one.verdict == "HIGHER"
        assert one.n == 6
        assert one.interval.low < one.ratio < one.interval.high

    def test_counts_are_exact_in_every_arm(self, before, tmp_path):
        comparison = compared(before, write_switched(tmp_path / "after", cached=64))
        same = found(comparison, "prompt_tokens_computed", "off", "2.1")
        other = found(comparison, "prompt_tokens_computed", "on", "2.1")
        assert (same.design, same.ratio, same.verdict) == ("count", 1.0, "EXACT")
        assert (other.first, other.second) == (120.0, 136.0)
        assert other.ratio == 136 / 120


class TestRefusals:
    @pytest.mark.parametrize(
        ("hardware", "key"),
        [
            ({"host_id": "fedcba987654"}, "hardware.host_id: 0123456789ab / fedcba987654"),
            ({"memory_bytes": 8}, "hardware.memory_bytes"),
            ({"cpu_model": "Other"}, "hardware.cpu_model: Made-up CPU / Other"),
        ],
    )
    def test_runs_of_two_machines_are_refused_by_their_keys(self, before, tmp_path, hardware, key):
        with pytest.raises(ComparisonError, match=f"not runs of one machine: {key}"):
            compared(before, write_run(tmp_path / "after", hardware=hardware))

    def test_another_driver_is_another_machine(self, before, tmp_path, monkeypatch):
        plain = factories.Software
        monkeypatch.setattr(factories, "Software", lambda **facts: plain(**(facts | {"driver": "570"})))
        with pytest.raises(ComparisonError, match=r"software\.driver: None / 570"):
            compared(before, write_run(tmp_path / "after"))

    def test_another_workload_is_named_and_only_that_test_refused(self, before, tmp_path):
        comparison = compared(before, write_run(tmp_path / "after", workload=make_workload(temperature=0.5)))
        refused = {item.test_id: item.reason for item in comparison.refused}
        assert refused["1.1"] == "the workloads differ in temperature: 0.0 / 0.5"
        assert {one.test_id for one in comparison.metrics} == {"1.2"}

    def test_other_token_counts_are_refused_with_the_run(self, tmp_path):
        workload = make_workload(output_tokens=Lengths(low=3, high=9))
        before = write_run(tmp_path / "before", workload=workload, outputs=5)
        after = write_run(tmp_path / "after", workload=workload, outputs=7)
        refused = {item.test_id: item.reason for item in compared(before, after).refused}
        assert refused["1.1"] == "6 runs have other token counts; first 1.1-p0, run 0: 210 / 214 tokens"

    def test_a_test_that_one_run_lacks_is_listed(self, before, tmp_path):
        comparison = compared(before, write_run(tmp_path / "after", invalid="the canary moved"))
        refused = {item.test_id: item.reason for item in comparison.refused}
        assert "none of 6 attempts was valid" in refused["1.1"]

    def test_a_failed_check_keeps_its_test_out(self, before, tmp_path):
        comparison = compared(before, write_switched(tmp_path / "after", cached=96))
        assert any("cache_hits_within_bound" in item.reason for item in comparison.refused if item.test_id == "2.1")


class TestTables:
    def test_the_json_holds_every_digit(self, before, tmp_path):
        comparison = compared(before, write_run(tmp_path / "after", scale=1.1))
        assert json.loads(comparison_json(comparison)) == comparison.model_dump(mode="json")

    def test_the_markdown_is_a_table_that_names_both_ledgers(self, before, tmp_path):
        comparison = compared(before, write_run(tmp_path / "after", scale=1.1))
        text = comparison_markdown(comparison)
        assert table_faults(text) == ()
        assert comparison.first_root_sha256 in text
        assert comparison.second_root_sha256 in text
        assert "| 1.1 | total\\_time |" in text

    def test_the_remarks_say_what_is_missing(self, before, tmp_path):
        comparison = compared(before, write_run(tmp_path / "after", scale=1.1))
        lines = list(remarks(comparison))
        assert lines[0].endswith("equivalent means within ±5 %")
        assert any(line.startswith("test 1.3 is not compared: not measured in") for line in lines)
