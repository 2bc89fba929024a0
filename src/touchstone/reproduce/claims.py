"""What the paper claims about which number; the numbers themselves are looked up in its ledger, never typed here."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Self

import yaml
from pydantic import Field, StringConstraints, ValidationError, model_validator

from touchstone.analysis.metrics import DICTIONARY
from touchstone.analysis.results import PLAN
from touchstone.experiment import family_of
from touchstone.records import Record
from touchstone.reproduce.errors import ClaimsError
from touchstone.suggestions import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pydantic_core import ErrorDetails

CLAIMS_NAME = "claims.yaml"
EVERY_CHECK = "every_check"
CODE_TEST = "4.1"

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class ClaimClass(StrEnum):
    """Which kind of statement a claim is, and so by which rule it is judged."""

    EXACT = "exact"
    IDENTITY = "identity"
    TOKEN_HASH = "token hash"  # noqa: S105  tokens of text, no password
    RATIO = "ratio"
    ABSOLUTE = "absolute"
    SHAPE = "shape"


class Direction(StrEnum):
    """Where a ratio treatment / baseline is claimed to lie: above 1, below 1, or within the margin around 1."""

    HIGHER = "higher"
    LOWER = "lower"
    EQUIVALENT = "equivalent"


class ClaimText(Record):
    """The claim as a sentence in both languages, without a number."""

    en: Text
    zh: Text


class Point(Record):
    """One number of a test: a metric of an arm; the arm may be left out where the test has only one."""

    metric: Text
    arm: Text | None = None


class Claim(Record):
    """One statement about one test.

    `metric` is an id of the metric dictionary; for an identity the id of a check, or `every_check`. `direction` is that
    of the ratio treatment / baseline of the metric; the arm of a ratio is the treatment. `ascending` lists numbers of
    one unit from the smallest to the largest.
    """

    id: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(?:[._@-][a-z0-9]+)*$")]
    claim_class: ClaimClass = Field(alias="class")
    test_id: Text
    text: ClaimText
    metric: Text | None = None
    arm: Text | None = None
    direction: Direction | None = None
    ascending: tuple[Point, ...] = ()

    @model_validator(mode="after")
    def _fields_fit_the_class(self) -> Self:
        given = {name for name in _FIELDS if getattr(self, name)}
        required, allowed = _FIELDS_OF_CLASS[self.claim_class]
        if missing := sorted(required - given):
            raise ValueError(f"a claim of class {self.claim_class.value!r} needs {', '.join(missing)}")
        if extra := sorted(given - required - allowed):
            raise ValueError(f"a claim of class {self.claim_class.value!r} has no {', '.join(extra)}; remove it")
        if len(self.ascending) == 1:
            raise ValueError("ascending names one number; an order needs two")
        return self


class Claims(Record):
    """The content of `claims.yaml`."""

    claims: tuple[Claim, ...] = Field(min_length=1)


_FIELDS = ("metric", "arm", "direction", "ascending")
_NONE: frozenset[str] = frozenset()
_METRIC = frozenset({"metric"})
# class -> the fields that it must have, and those that it may have
_FIELDS_OF_CLASS: dict[ClaimClass, tuple[frozenset[str], frozenset[str]]] = {
    ClaimClass.EXACT: (_METRIC, frozenset({"arm"})),
    ClaimClass.IDENTITY: (_METRIC, _NONE),
    ClaimClass.TOKEN_HASH: (_NONE, _NONE),
    ClaimClass.RATIO: (_METRIC, frozenset({"arm", "direction"})),
    ClaimClass.ABSOLUTE: (_METRIC, frozenset({"arm"})),
    ClaimClass.SHAPE: (frozenset({"ascending"}), _NONE),
}


def load_claims(path: Path) -> tuple[Claim, ...]:
    """Read a list of claims; ClaimsError names the line of broken YAML, or the claim and what is wrong with it."""
    content = _parse(path)
    try:
        claims = Claims.model_validate(content).claims
    except ValidationError as error:
        raise ClaimsError(f"{path}: " + "; ".join(_explain(error, content))) from None
    ids = [claim.id for claim in claims]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise ClaimsError(f"{path}: the id {', '.join(twice)} is given to more than one claim; ids must differ")
    if faults := [fault for claim in claims for fault in _faults(claim)]:
        raise ClaimsError(f"{path}: " + "; ".join(faults))
    return claims


def points_of(claim: Claim) -> tuple[Point, ...]:
    """Name the numbers that a claim is about; none for an identity and a token hash."""
    if claim.claim_class in {ClaimClass.EXACT, ClaimClass.ABSOLUTE} and claim.metric is not None:
        return (Point(metric=claim.metric, arm=claim.arm),)
    return claim.ascending


def _parse(path: Path) -> Any:  # noqa: ANN401  whatever the file holds
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ClaimsError(
            f"{path} does not exist; --against names the folder with {CLAIMS_NAME} and a ledger"
        ) from None
    except UnicodeDecodeError as error:
        raise ClaimsError(f"{path} is no UTF-8 text: {error.reason} at byte {error.start}") from None
    except yaml.MarkedYAMLError as error:
        where = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise ClaimsError(f"{path}{where}: this is no YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a character, a date or a depth that YAML refuses
        raise ClaimsError(f"{path}: this is no YAML: {str(error).splitlines()[0]}") from None


def _explain(error: ValidationError, content: object) -> Iterator[str]:
    """Say each fault with the id of its claim, where it has one, in place of a position in a list."""
    listed = content.get("claims") if isinstance(content, dict) else None
    for fault in error.errors():
        where = [str(part) for part in fault["loc"]]
        if len(where) > 1 and isinstance(listed, list):
            where[:2] = [_name(listed, int(where[1]))]
        yield f"{'.'.join(where) or 'the file'}: {_fault(fault)}"


def _fault(fault: ErrorDetails) -> str:
    """Name an unknown key with the one that was perhaps meant, and a value of the wrong kind."""
    if fault["type"] == "extra_forbidden":
        keys = [field.alias or name for record in (Claim, ClaimText) for name, field in record.model_fields.items()]
        return f"there is no such key; leave it away{did_you_mean(str(fault['loc'][-1]), keys)}"
    message = fault["msg"].removeprefix("Value error, ")
    given = fault["input"]
    return f"{message}, not {given!r}" if isinstance(given, str | int | float) else message


def _name(listed: Sequence[object], index: int) -> str:
    claim = listed[index]
    known = claim.get("id") if isinstance(claim, dict) else None
    return f"claim {known!r}" if known else f"claim number {index + 1}"


def _faults(claim: Claim) -> Iterator[str]:
    """Find what the schema cannot see: unknown tests and metrics, and numbers typed into the text."""
    if family_of(claim.test_id) not in PLAN:
        near = did_you_mean(claim.test_id, PLAN)
        yield f"claim {claim.id!r}: test {claim.test_id!r} is unknown; the tests are {', '.join(PLAN)}{near}"
    if any(character.isdigit() for character in claim.text.en + claim.text.zh):
        yield f"claim {claim.id!r}: its text types a number; a number comes from the paper's ledger only"
    if claim.claim_class is ClaimClass.IDENTITY or claim.test_id == CODE_TEST:
        return  # the names of checks and of code counts are held against the paper's results
    ratio = [claim.metric] if claim.claim_class is ClaimClass.RATIO and claim.metric else []
    for metric in (*ratio, *(point.metric for point in points_of(claim))):
        if metric not in DICTIONARY:
            near = did_you_mean(metric, DICTIONARY)
            yield f"claim {claim.id!r}: metric {metric!r} is unknown; known are {', '.join(sorted(DICTIONARY))}{near}"
