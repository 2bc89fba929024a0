"""The paper's scaling claims on machines with different numbers of GPUs."""

from pathlib import Path

import pytest

from tests.touchstone.scaling_sample import write_scaling_run
from touchstone.reproduce.claims import CLAIMS_NAME, load_claims
from touchstone.reproduce.measured import load_measured
from touchstone.reproduce.outcomes import ClaimVerdict
from touchstone.reproduce.reproduction import judge_claims

STRONG = ("3.1", "3.2")
PAPER = Path(__file__).resolve().parents[3] / "paper" / CLAIMS_NAME


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """The claims about strong scaling, of a paper made on four GPUs, judged on a run made on two."""
    sides = []
    for count in (4, 2):
        folder = tmp_path_factory.mktemp(f"gpus{count}")
        experiments = write_scaling_run(folder, count, only=STRONG)
        sides.append(load_measured(folder, experiments, remedy=""))
    claims = [claim for claim in load_claims(PAPER) if claim.test_id in STRONG]
    return {outcome.claim.id: outcome for outcome in judge_claims(claims, *sides).outcomes}


def test_an_order_of_arms_that_one_machine_lacks_is_not_measured_with_its_reason(outcomes):
    outcome = outcomes["3.2-four-beat-two-tp"]
    assert outcome.verdict is ClaimVerdict.NOT_MEASURED
    assert outcome.reason.en == "this run: 4 GPUs are needed, this machine has 2"
    assert outcomes["3.2-eight-beat-four-dp"].reason.en == "the paper's run: 8 GPUs are needed, this machine has 4"


def test_what_both_machines_measured_is_judged(outcomes):
    for claim in ("3.1-identities", "3.2-identities", "3.2-same-work"):
        assert outcomes[claim].verdict is ClaimVerdict.HOLDS
