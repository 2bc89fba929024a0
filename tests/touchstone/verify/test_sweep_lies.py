"""Sweeps in results and reports: an honest run passes, and any number or word told otherwise is found at its place."""

from __future__ import annotations

import json
import random
import re
import shutil
from types import SimpleNamespace

import pytest

from tests.touchstone.factories import FakeRun, make_engine, make_trace, make_workload
from tests.touchstone.verify.told import Story
from touchstone.analysis import statistics
from touchstone.analysis.metrics import DICTIONARY, Better
from touchstone.experiment import load_experiments
from touchstone.records import Lengths, NotMeasured
from touchstone.reporting import report
from touchstone.reporting.markdown import GLOSSARY_FILE, TEMPLATES, Glossary
from touchstone.verify import again
from touchstone.verify.printed_sweeps import HIGHER_IS_BETTER, NEITHER_IS_BETTER
from touchstone.verify.verification import verify_run

ORDER = ("off", "on", "on", "off")
ARMS = {"off": {"prefix_cache": False}, "on": {"prefix_cache": True}}
EXPERIMENTS = {experiment.plan_id: experiment for experiment in load_experiments()}
LATE = {"mixed": 1.0, "separated": 1.3}
TERMS = Glossary.load(TEMPLATES / GLOSSARY_FILE)


def word(key, language="en"):
    return re.escape(TERMS.term(key, language))


BETTER, NOWHERE = word("better_at"), word("nowhere")


def tell(fake, test_id, axis, workload, traces):
    """Plan and record one test of two arms in six blocks, every run with half a per cent of noise of its own."""
    order, chance = tuple(traces), random.Random(test_id)
    forth = (*order, *reversed(order))
    arms = ARMS if "off" in traces else {name: {"scheduling": name} for name in order}
    units = fake.plan_test(test_id, processes=6, order=forth, arms=arms, workload=workload)
    fake.tests[-1] = fake.tests[-1].model_copy(update={"axis": axis})
    for unit in units:
        fake.attempt(unit, [traces[arm](chance.gauss(1, 0.005)) for arm in forth])


def cached(hits, ms):
    return lambda noise: make_trace(prompts=[100] * 10, cached=[0] + [hits] * 9, prefill_ms=ms * noise)


def scheduled(slow):
    """Answer in 100 ms with gaps of 10 ms, or so much slower."""
    return lambda noise: make_trace(prompts=[100] * 10, prefill_ms=100 * slow * noise, decode_ms=10 * slow * noise)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Test 2.1 with two points on one axis, and 2.2 with a load that another arm wins; figures are left away."""
    fake = FakeRun(tmp_path_factory.mktemp("told"), engine=make_engine())
    add_instrument(fake)
    shared, plain = {"num_requests": 10, "shared_fraction": 1.0}, make_workload(num_requests=10)
    half, whole = (make_workload(**shared, prefix_fraction=share) for share in (0.5, 1.0))
    tell(fake, "2.1", None, half, {"off": cached(0, 200), "on": cached(48, 100)})
    tell(fake, "2.1@hit-0", "shared", plain, {"off": cached(0, 200), "on": cached(0, 200)})
    tell(fake, "2.1@hit-100", "shared", whole, {"off": cached(0, 200), "on": cached(96, 50)})
    policies = {name: scheduled(slow) for name, slow in LATE.items()}
    tell(fake, "2.2", None, plain, policies)
    tell(fake, "2.2@load-50", "load", make_workload(num_requests=10, load=0.5), policies)
    fake.not_measured.append(NotMeasured(test_id="2.2@load-90", reason="no 7 machines", reason_zh="没有 7 台机器"))
    folder = Story.read(fake.write()).write(tmp_path_factory.mktemp("run") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write_figures", lambda *_: {})
        again.make(folder, folder, EXPERIMENTS)
    return folder


def add_instrument(fake):
    """Placebo and control in six blocks, the control with a tenth more output tokens."""
    order, chance = ("baseline", "placebo", "control"), random.Random(1)
    ten = make_workload(output_tokens=Lengths(low=10, high=10))
    units = fake.plan_test("0.1", processes=6, order=(*order, *reversed(order)), workload=ten)
    arms = (*fake.tests[-1].arms[:2], fake.tests[-1].arms[2].model_copy(update={"extra_output": 0.1}))
    fake.tests[-1] = fake.tests[-1].model_copy(update={"arms": arms, "margin": 0.05})
    for unit in units:
        outputs = [11 if arm == "control" else 10 for arm in unit.arm_order]
        fake.attempt(unit, [make_trace(outputs=n, decode_ms=20 * chance.gauss(1, 0.002)) for n in outputs])


def outcomes(folder):
    found = verify_run(folder, EXPERIMENTS, remake=False)
    return {outcome.id: outcome for outcome in found}


def failed(folder):
    return {name for name, outcome in outcomes(folder).items() if outcome.examined is not None and not outcome.passed}


@pytest.fixture
def copy(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "copy")

    def change(name, *changes):
        path = folder / name
        text = path.read_text(encoding="utf-8")
        for pattern, new in changes:
            text, count = re.subn(pattern, new, text, count=1)
            assert count == 1, pattern
        path.write_text(text, encoding="utf-8")
        return folder

    return SimpleNamespace(folder=folder, change=change)


def test_an_honest_run_passes_every_check(run):
    found = outcomes(run)
    assert [str(fault) for outcome in found.values() for fault in outcome.faults] == []
    assert found["printed_numbers"].examined > 1000


def test_the_report_says_who_is_better_where(run):
    text = (run / "report.en.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("- **Total time** `total_time`"))
    on, off, equivalent, undecided = line.split("; ")
    assert re.search(rf"`total_time`: `on` {BETTER}: 100 % \(0\.\d+ \[0", on)
    assert re.fullmatch(rf"`off` {BETTER}: {NOWHERE}", off)
    assert re.match(rf"{word('equivalent_at')}: 0 % \(1\.00", equivalent)
    assert re.fullmatch(rf"{word('undecided_at')}: {NOWHERE}", undecided)
    stall = next(line for line in text.splitlines() if line.startswith("- **Gap between consecutive tokens, max**"))
    assert re.search(rf"`mixed` {BETTER}: 50 % \(1\.\d+ \[1.*all at once \(1\.\d+ \[1", stall)
    assert "| 2.2@load-90 | no 7 machines |" in text
    chinese = (run / "report.zh.md").read_text(encoding="utf-8")
    better = word("better_at", "zh")
    assert re.search(rf"`mixed` {better}：50 %（1\.\d+ \[1.*全部同时提交（1\.\d+ \[1", chinese)


LINE = r"\n- \*\*Total time\*\* `total_time`"
ROW = r"\| total time `total_time` \| 2\.1@hit-100 \| 100 %"


@pytest.mark.parametrize(
    ("pattern", "new"),
    [
        (rf"({LINE}: `on` {BETTER}: )100 %", r"\g<1>75 %"),
        (rf"({LINE}: `on` {BETTER}: 100 % \()0\.\d+", r"\g<1>0.111"),
        (rf"({LINE}.*`off` {BETTER}: ){NOWHERE}", r"\g<1>0 % (1.234)"),
        (rf"({ROW}) \| [\d.]+ s", r"\1 | 9.87 s"),
        (rf"({ROW} \|[^|]+\|[^|]+\|) [\d.]+", r"\1 0.77"),
        (rf"({ROW} \|.*?)lower \| `on`", r"\1higher | `on`"),
        (rf"({ROW} \|.*?)lower \| `on`", r"\1lower | `off`"),
        (r"(\| 2\.1@hit-100 \| )100 %( \| \d)", r"\g<1>99 %\2"),
        (r"(\| 2\.1@hit-100 \| 100 % \|[^|]+\| )6", r"\g<1>5"),
        (r"(\| 2\.1@hit-100 \| `same_answer` \| passed \| )\d+", r"\g<1>1"),
        (r"(\| 2\.1@hit-100 \| `same_answer` \| )passed", r"\1**failed**"),
        (r"\| 2\.2@load-90 \| no 7", "| 2.2@load-90 | no 8"),
        (r"(?m)^(\| cached prompt tokens, measured `cached_tokens` \| 2\.1@hit-100 .*?)864", r"\g<1>865"),
    ],
)
def test_a_number_or_a_word_told_otherwise_is_found(copy, pattern, new):
    folder = copy.change("report.en.md", (pattern, new))
    assert "printed_numbers" in failed(folder)


@pytest.mark.no_cover
@pytest.mark.parametrize("language", ["en", "zh"])
def test_places_that_change_sides_are_found_though_the_numbers_stay(copy, language):
    """Exchange the lists of the two sides, numbers and all."""
    better, nowhere = word("better_at", language), word("nowhere", language)
    sides = rf"(?m)^(- .*`separated` {better}(?:: |：))({nowhere})(; |；)(`mixed` {better}(?:: |：))(50 %.*?)([;；])"
    folder = copy.change(f"report.{language}.md", (sides, r"\1\5\3\4\2\6"))
    assert "printed_numbers" in failed(folder)


class TestFamily:
    def effects(self, folder):
        paths = sorted((folder / "results").glob("2.1*.json"))
        return {path.name: json.loads(path.read_text(encoding="utf-8"))["effects"] for path in paths}

    def test_holm_runs_over_the_test_and_all_its_points_together(self, run):
        tested = [effect for effects in self.effects(run).values() for effect in effects if effect["interval"]]
        wanted = statistics.holm([statistics.paired_t_p(effect["blocks"]) for effect in tested])
        assert len(tested) > 6
        assert [effect["p_holm"] for effect in tested] == pytest.approx(list(wanted))

    def test_a_p_value_that_forgets_the_rest_of_the_family_is_found(self, copy):
        name = "results/2.1@hit-0_prefix_cache.json"
        told = json.loads((copy.folder / name).read_text(encoding="utf-8"))
        for effect in told["effects"]:
            effect["p_holm"] = statistics.paired_t_p(effect["blocks"])
        (copy.folder / name).write_text(json.dumps(told), encoding="utf-8")
        assert "results" in failed(copy.folder)


def test_verify_knows_for_every_metric_which_way_is_better():
    named = {m.metric for e in EXPERIMENTS.values() for axis in e.sweep for m in axis.measures if e.plan_id[0] == "2"}
    for metric in named:
        better = DICTIONARY[metric].better
        assert (metric in HIGHER_IS_BETTER) == (better is Better.HIGHER), metric
        assert (metric in NEITHER_IS_BETTER) == (better is None), metric
