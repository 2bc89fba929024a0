import re

import pytest

from tests.touchstone.factories import FakeRun, make_environment, make_workload
from tests.touchstone.reproduce.pairs_of_runs import (
    EXPERIMENTS,
    claim,
    only,
    outcomes,
    write_claims,
    write_run,
    write_switched,
    write_whole,
)
from touchstone.ledger import LEDGER_NAME, Ledger
from touchstone.records import Check, EntryKind
from touchstone.reporting.lint import numbers_in
from touchstone.reproduce.errors import ComparisonError
from touchstone.reproduce.outcomes import ClaimVerdict, ExitCode
from touchstone.reproduce.reproduction import reproduce

SPEED = claim("absolute", metric="total_time")
COUNT = claim("exact", metric="peak_concurrency")
TOKENS = claim("token hash")
IDENTITY = claim("identity", metric="latency_identity")
SWITCH = claim("ratio", "2.1", metric="total_time", direction="lower")
SHAPE = claim("shape", "1.2", ascending=[{"metric": "tpot_mean"}, {"metric": "ttft_mean"}])
ABSENT = claim("identity", "1.3", metric="every_check")
OTHER = {"cpu_model": "Another CPU", "host_id": "fedcba987654"}


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    return write_whole(tmp_path_factory.mktemp("paper") / "run")


def verdict(paper, here, one):
    return only(paper, here, one).verdict


class TestSpeedsOnTheSameHardware:
    @pytest.mark.no_cover
    @pytest.mark.parametrize(
        ("scale", "spread", "expected"),
        [
            (1.01, 0.004, ClaimVerdict.REPRODUCED),
            (0.99, 0.004, ClaimVerdict.REPRODUCED),
            (1.10, 0.004, ClaimVerdict.NOT_REPRODUCED),
            (0.90, 0.004, ClaimVerdict.NOT_REPRODUCED),
            (1.05, 0.030, ClaimVerdict.INCONCLUSIVE),
        ],
    )
    def test_the_interval_of_the_ratio_decides(self, paper, tmp_path, scale, spread, expected):
        here = write_run(tmp_path / "here", scale=scale, spread=spread)
        assert verdict(paper, here, SPEED) is expected

    def test_an_open_question_says_how_many_processes_would_decide_it(self, paper, tmp_path):
        outcome = only(paper, write_run(tmp_path / "here", scale=1.0, spread=0.1), SPEED)
        assert outcome.verdict is ClaimVerdict.INCONCLUSIVE
        assert int(re.search(r"if nothing has changed, (\d+) processes here", outcome.reason.en).group(1)) > 6
        assert "crosses the end of the margin of ±5 %, by 6 processes in the paper's run" in outcome.reason.en

    @pytest.mark.parametrize(
        ("scale", "expected"), [(1.001, ClaimVerdict.COMPATIBLE), (1.05, ClaimVerdict.NOT_COMPATIBLE)]
    )
    def test_a_single_rerun_is_held_against_the_prediction_interval(self, paper, tmp_path, scale, expected):
        assert verdict(paper, write_run(tmp_path / "here", scale=scale, processes=1), SPEED) is expected

    def test_a_paper_of_one_process_decides_nothing(self, tmp_path):
        paper = write_run(tmp_path / "paper", processes=1)
        assert verdict(paper, write_run(tmp_path / "here"), SPEED) is ClaimVerdict.INCONCLUSIVE

    def test_another_host_of_the_same_kind_is_the_same_hardware(self, paper, tmp_path):
        here = write_run(tmp_path / "here", hardware={"host_id": "fedcba987654", "memory_bytes": 8_000_000_000})
        found = outcomes(paper, here, SPEED)
        assert found.same_hardware
        assert {difference.key for difference in found.other} == {"hardware.host_id", "hardware.memory_bytes"}
        assert found.outcomes[0].verdict is ClaimVerdict.REPRODUCED


class TestOtherHardware:
    def test_speeds_are_not_comparable_and_the_deciding_keys_are_named(self, paper, tmp_path):
        found = outcomes(paper, write_run(tmp_path / "here", hardware=OTHER | {"cpu_usable_cores": 3}), SPEED)
        assert not found.same_hardware
        assert {difference.key for difference in found.decisive} == {"hardware.cpu_model", "hardware.cpu_usable_cores"}
        assert found.outcomes[0].verdict is ClaimVerdict.NOT_COMPARABLE
        assert "no share of the roofline is recorded" in found.outcomes[0].reason.en

    @pytest.mark.no_cover
    @pytest.mark.parametrize(
        ("switch", "spread", "expected"),
        [
            (0.6, 0.004, ClaimVerdict.CONSISTENT),
            (1.2, 0.004, ClaimVerdict.REFUTED_HERE),
            (1.0, 0.004, ClaimVerdict.INCONCLUSIVE),
        ],
    )
    def test_a_ratio_is_judged_by_its_direction(self, paper, tmp_path, switch, spread, expected):
        here = write_switched(tmp_path / "here", switch=switch, spread=spread, hardware=OTHER)
        assert verdict(paper, here, SWITCH) is expected

    @pytest.mark.parametrize(("switch", "expected"), [(1.0, ClaimVerdict.CONSISTENT), (1.3, ClaimVerdict.REFUTED_HERE)])
    def test_no_effect_in_the_paper_must_be_no_effect_here(self, tmp_path, switch, expected):
        paper = write_switched(tmp_path / "paper", switch=1.0)
        here = write_switched(tmp_path / "here", switch=switch, hardware=OTHER)
        assert verdict(paper, here, SWITCH | {"direction": "equivalent"}) is expected

    def test_counts_and_identities_must_hold(self, paper, tmp_path):
        here = write_run(tmp_path / "here", scale=3.0, hardware=OTHER)
        found = outcomes(paper, here, COUNT, IDENTITY, SHAPE)
        assert [outcome.verdict for outcome in found.outcomes] == [ClaimVerdict.HOLDS] * 3
        assert found.status is ExitCode.ALL_HOLD

    def test_other_tokens_refute_nothing_there(self, paper, tmp_path):
        here = write_run(tmp_path / "here", answer="other", hardware=OTHER)
        assert verdict(paper, here, TOKENS) is ClaimVerdict.NOT_COMPARABLE


class TestRatiosOnTheSameHardware:
    @pytest.mark.parametrize(
        ("switch", "expected"),
        [(0.81, ClaimVerdict.REPRODUCED), (0.6, ClaimVerdict.NOT_REPRODUCED), (1.2, ClaimVerdict.NOT_REPRODUCED)],
    )
    def test_the_size_of_the_ratio_decides(self, paper, tmp_path, switch, expected):
        assert verdict(paper, write_switched(tmp_path / "here", switch=switch), SWITCH) is expected

    def test_the_opposite_direction_refutes_even_within_the_margin(self, tmp_path):
        paper = write_switched(tmp_path / "paper", switch=0.985)
        outcome = only(paper, write_switched(tmp_path / "here", switch=1.015), SWITCH)
        assert outcome.verdict is ClaimVerdict.NOT_REPRODUCED
        assert "opposite direction" in outcome.reason.en

    def test_a_direction_that_the_paper_itself_contradicts_is_refuted(self, paper, tmp_path):
        outcome = only(paper, write_switched(tmp_path / "here"), SWITCH | {"direction": "higher"})
        assert outcome.verdict is ClaimVerdict.REFUTED
        assert "paper's own run" in outcome.reason.en

    def test_a_direction_that_the_paper_leaves_open_stays_open(self, tmp_path):
        paper = write_switched(tmp_path / "paper", switch=1.0)
        assert verdict(paper, write_switched(tmp_path / "here"), SWITCH) is ClaimVerdict.INCONCLUSIVE

    def test_the_arm_of_a_ratio_is_its_treatment(self, paper, tmp_path):
        placebo = claim("ratio", "0.1", metric="total_time", arm="placebo", direction="equivalent")
        control = placebo | {"id": "0.1-control", "arm": "control", "direction": "higher"}
        found = outcomes(paper, write_switched(tmp_path / "here"), placebo, control)
        assert [outcome.verdict for outcome in found.outcomes] == [ClaimVerdict.REPRODUCED] * 2
        assert [outcome.here.text[:3] for outcome in found.outcomes] == ["1.0", "1.1"]

    def test_counted_ratios_must_be_equal(self, paper, tmp_path):
        saved = claim("ratio", "2.1", metric="prompt_tokens_computed", direction="lower")
        assert verdict(paper, write_switched(tmp_path / "same"), saved) is ClaimVerdict.HOLDS
        assert verdict(paper, write_switched(tmp_path / "less", cached=64), saved) is ClaimVerdict.REFUTED


class TestCountsTokensAndOrders:
    def test_other_counts_refute(self, paper, tmp_path):
        hits = claim("exact", "2.1", metric="cache_hit_rate", arm="on")
        assert verdict(paper, write_switched(tmp_path / "same"), hits) is ClaimVerdict.HOLDS
        assert verdict(paper, write_switched(tmp_path / "less", cached=64), hits) is ClaimVerdict.REFUTED

    def test_other_tokens_refute_and_the_share_is_told(self, paper, tmp_path):
        assert verdict(paper, write_run(tmp_path / "same"), TOKENS) is ClaimVerdict.HOLDS
        outcome = only(paper, write_run(tmp_path / "other", answer="other"), TOKENS)
        assert outcome.verdict is ClaimVerdict.REFUTED
        assert outcome.reason.en == "0 of 12 requests returned the same tokens"

    def test_an_order_that_is_turned_round_is_refuted(self, paper, tmp_path):
        turned = SHAPE | {"ascending": list(reversed(SHAPE["ascending"]))}
        assert verdict(paper, write_run(tmp_path / "here"), turned) is ClaimVerdict.REFUTED

    def test_an_order_of_numbers_that_cannot_be_told_apart_is_open(self, paper, tmp_path):
        same = SHAPE | {"ascending": [{"metric": "tpot_mean"}, {"metric": "tpot_mean"}]}
        assert verdict(paper, write_run(tmp_path / "here"), same) is ClaimVerdict.INCONCLUSIVE

    def test_an_identity_that_fails_here_is_refuted_with_its_cause(self, paper, tmp_path):
        bound = claim("identity", "2.1", metric="cache_hits_within_bound")
        assert verdict(paper, write_switched(tmp_path / "good"), bound) is ClaimVerdict.HOLDS
        outcome = only(paper, write_switched(tmp_path / "bad", cached=96), bound)
        assert outcome.verdict is ClaimVerdict.REFUTED
        assert outcome.reason.en.startswith("this run does not pass the check cache_hits_within_bound")


class TestWhatIsNotMeasured:
    def test_a_test_that_the_run_left_out_gives_its_reason(self, paper, tmp_path):
        outcome = only(paper, write_run(tmp_path / "here"), ABSENT)
        assert outcome.verdict is ClaimVerdict.NOT_MEASURED
        assert outcome.reason.en.startswith("the paper's run has not measured this test")
        assert outcome.reason.zh

    def test_a_run_without_a_valid_attempt_is_not_measured(self, paper, tmp_path):
        outcome = only(paper, write_run(tmp_path / "here", invalid="the canary moved"), SPEED)
        assert outcome.verdict is ClaimVerdict.NOT_MEASURED
        assert "the canary moved" in outcome.reason.en

    def test_a_failed_check_voids_the_numbers_of_its_test(self, paper, tmp_path):
        outcome = only(paper, write_switched(tmp_path / "here", cached=96), SWITCH)
        assert outcome.verdict is ClaimVerdict.NOT_MEASURED
        assert "cache_hits_within_bound" in outcome.reason.en

    def test_a_failed_check_of_times_leaves_counts_and_tokens(self, paper, tmp_path, monkeypatch):
        """A machine that is far below its bound is slow, and counts as well as any."""
        slow = Check(id="not_far_below_roofline", passed=False, detail="slow", detail_zh="慢")
        monkeypatch.setattr("touchstone.analysis.results.not_far_below_roofline", lambda _: slow)
        found = outcomes(paper, write_run(tmp_path / "here"), SPEED, COUNT, TOKENS).outcomes
        assert [one.verdict for one in found] == [ClaimVerdict.NOT_MEASURED, ClaimVerdict.HOLDS, ClaimVerdict.HOLDS]

    def test_a_failed_placebo_voids_ratios_and_leaves_speeds(self, paper, tmp_path):
        found = outcomes(paper, write_whole(tmp_path / "here", placebo=1.2), SWITCH, SPEED)
        assert [outcome.verdict for outcome in found.outcomes] == [ClaimVerdict.NOT_MEASURED, ClaimVerdict.REPRODUCED]
        assert found.outcomes[0].reason.en == "this run: the placebo shows a difference between equal settings"

    def test_other_work_is_named(self, paper, tmp_path):
        outcome = only(paper, write_run(tmp_path / "here", workload=make_workload(num_requests=4)), SPEED)
        assert outcome.verdict is ClaimVerdict.NOT_MEASURED
        assert outcome.detail == "workload.num_requests: 2 / 4"

    def test_a_count_needs_the_same_seed_and_a_speed_does_not(self, paper, tmp_path):
        found = outcomes(paper, write_run(tmp_path / "here", seed=2), COUNT, SPEED)
        assert [outcome.verdict for outcome in found.outcomes] == [ClaimVerdict.NOT_MEASURED, ClaimVerdict.REPRODUCED]
        assert found.outcomes[0].detail == "seed: 1 / 2"


class TestClaimsThatThePaperDoesNotKnow:
    @pytest.mark.parametrize(
        ("one", "message"),
        [
            (SPEED | {"arm": "turbo"}, "has the arms default: not 'turbo'"),
            (claim("exact", "2.1", metric="cache_hit_rate"), "has the arms off, on: which one is meant?"),
            (SPEED | {"metric": "mixed_step_time"}, "reports no 'mixed_step_time'; it reports prefill_throughput"),
            (SWITCH | {"metric": "kv_occupancy"}, "has no paired effect on 'kv_occupancy'; it has"),
            (SWITCH | {"test_id": "0.1"}, "compares placebo, control by 'total_time': which one is meant?"),
            (IDENTITY | {"metric": "no_such_check"}, "has no check 'no_such_check'; it has attempts_accounted"),
            (
                SHAPE | {"ascending": [{"metric": "total_time"}, {"metric": "decode_throughput"}], "test_id": "1.1"},
                "different units",
            ),
        ],
    )
    def test_they_are_refused_by_name(self, paper, tmp_path, one, message):
        with pytest.raises(ComparisonError, match=message.replace("?", r"\?")):
            only(paper, write_whole(tmp_path / "here"), one)


class TestReasons:
    """Every verdict says why, in both languages, with the same numbers."""

    CLAIMS = (SPEED, COUNT, TOKENS, IDENTITY, SHAPE, ABSENT, SWITCH, claim("identity", "1.2", metric="every_check"))

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({}, "lies within the margin of ±5 %"),
            ({"scale": 1.2, "switch": 0.5}, "lies wholly outside of the margin of ±5 %"),
            ({"scale": 1.05, "spread": 0.02}, "the ratio seems to lie near the end of the margin"),
            (
                {"switch": 0.83, "unsteady": 0.03},
                "both runs show the claimed direction; only the size of the ratio is open",
            ),
            ({"switch": 1.3}, "the claim says a ratio below 1, and this run shows the opposite direction (`HIGHER`)"),
            ({"processes": 1}, "a single process here, 0.9960 of the paper's centre, lies inside"),
            ({"processes": 1, "scale": 1.2}, "lies outside 0.9916 to 1.0084, where one more process is expected"),
            ({"hardware": OTHER}, "the intervals of the two ratios lie on the same side of 1"),
            ({"hardware": OTHER, "switch": 1.3, "answer": "other"}, "lie on opposite sides of 1"),
            ({"hardware": OTHER, "switch": 1.0}, "the intervals of the two ratios do not both exclude 1"),
            ({"seed": 2}, "the two runs did different work"),
        ],
    )
    def test_every_verdict_says_what_was_held_against_what(self, paper, tmp_path, changes, told):
        found = outcomes(paper, write_whole(tmp_path / "here", **changes), *self.CLAIMS).outcomes
        reasons = [outcome.reason for outcome in found]
        assert all(reason is not None and reason.en and reason.zh for reason in reasons)
        assert any(told in reason.en for reason in reasons)
        for reason in reasons:
            assert sorted(numbers_in(reason.en)) == sorted(numbers_in(reason.zh))

    @pytest.mark.parametrize(
        ("direction", "switch", "told"),
        [
            ("higher", 0.8, "the claim says a ratio above 1, and the paper's own run does not show it (`LOWER`)"),
            ("equivalent", 0.8, "the claim says a ratio within ±5 % of 1, and the paper's own run does not show it"),
        ],
    )
    def test_what_the_paper_lacks_is_told_with_its_own_verdict(self, paper, tmp_path, direction, switch, told):
        outcome = only(paper, write_switched(tmp_path / "here", switch=switch), SWITCH | {"direction": direction})
        assert told in outcome.reason.en

    @pytest.mark.no_cover
    @pytest.mark.parametrize(
        ("switch", "unsteady", "told"),
        [
            (1.0, 0.0, "is shown to lie within ±5 % of 1"),
            (1.3, 0.0, "lies wholly outside of ±5 % of 1"),
            (1.04, 0.04, "cannot be placed inside or outside of ±5 % of 1"),
        ],
    )
    def test_no_difference_elsewhere_is_told_by_the_ratio_here(self, tmp_path, switch, unsteady, told):
        paper = write_switched(tmp_path / "paper", switch=1.0)
        here = write_switched(tmp_path / "here", switch=switch, unsteady=unsteady, hardware=OTHER)
        assert told in only(paper, here, SWITCH | {"direction": "equivalent"}).reason.en

    def test_unequal_counts_are_both_told(self, paper, tmp_path):
        hits = claim("exact", "2.1", metric="cache_hit_rate", arm="on")
        outcome = only(paper, write_switched(tmp_path / "less", cached=64), hits)
        assert "the paper's 6 give 40, the 6 here give 32" in outcome.reason.en

    def test_a_step_that_is_turned_round_is_named(self, paper, tmp_path):
        turned = SHAPE | {"ascending": list(reversed(SHAPE["ascending"]))}
        outcome = only(paper, write_run(tmp_path / "here"), turned)
        assert outcome.reason.en == (
            "in the paper's run `tpot_mean` is smaller than `ttft_mean`, by a one-sided test at 5 %"
        )


class TestTheWhole:
    def test_nothing_testable_is_no_success(self, paper, tmp_path):
        found = outcomes(paper, write_run(tmp_path / "here"), ABSENT)
        assert found.status is ExitCode.INCONCLUSIVE

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({}, ExitCode.ALL_HOLD),
            ({"scale": 1.2}, ExitCode.REFUTED),
            ({"scale": 1.05, "spread": 0.02}, ExitCode.INCONCLUSIVE),
            ({"scale": 1.05, "spread": 0.02, "answer": "other"}, ExitCode.REFUTED),
        ],
    )
    def test_a_refutation_outweighs_what_is_open(self, paper, tmp_path, changes, expected):
        found = outcomes(paper, write_run(tmp_path / "here", **changes), SPEED, TOKENS, COUNT, IDENTITY)
        assert found.status is expected

    def test_a_run_of_two_environments_is_refused(self, paper, tmp_path):
        here = FakeRun(tmp_path / "here").write()
        with Ledger.resume(here / LEDGER_NAME) as ledger:
            ledger.append(EntryKind.ENVIRONMENT, make_environment(**OTHER))
        write_claims(paper, SPEED)
        with pytest.raises(ComparisonError, match="mixes the environments"):
            reproduce(here, paper, EXPERIMENTS)
