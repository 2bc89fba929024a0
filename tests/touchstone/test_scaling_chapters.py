"""The scaling chapters as they are read, in both languages, of a machine with four GPUs whose speed-ups are known."""

from __future__ import annotations

import re

import pytest

from tests.touchstone.scaling_sample import SHARES, SPEEDUPS, write_scaling_run
from touchstone.verify import again

HEADINGS = {"en": "### Test {}:", "zh": "### 测试 {}："}
ABSENT = {
    "en": "not measured: 8 GPUs are needed, this machine has 4",
    "zh": "未测量：需要 8 张 GPU，本机有 4 张",
}
SERIES = [
    ("3.2", "TP {}", "TP"),
    ("3.2", "DP {}", "DP"),
    *(("3.3", f"{kind} {{}} {load}", f"{kind} {load}") for kind in ("TP", "DP") for load in ("light", "full")),
]
LAWS = {
    "en": {"3.2": "Amdahl's law", "3.3": "Gustafson's law"},
    "zh": {"3.2": "阿姆达尔定律", "3.3": "古斯塔夫森定律"},
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chapters")
    experiments = write_scaling_run(folder, 4)
    assert again.make(folder, folder, experiments) == ()
    return {language: (folder / f"report.{language}.md").read_text(encoding="utf-8") for language in HEADINGS}


def chapter(reports, language, test_id):
    begin = reports[language].index(HEADINGS[language].format(test_id))
    return re.split(r"\n#{2,3} ", reports[language][begin:], maxsplit=1)[0]


def rows(text, *cells):
    """Find the table rows that have these cells somewhere, each as its cells."""
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [row for row in table if set(cells) <= set(row)]


def numbers(cell):
    return [float(number.replace(",", "")) for number in re.findall(r"-?\d[\d,]*\.?\d*", cell)]


def point(text, arm):
    return next(row for row in rows(text, f"`{arm}`") if len(row) == 11)


@pytest.mark.parametrize("language", HEADINGS)
@pytest.mark.parametrize(("test_id", "arm", "made"), SERIES)
def test_each_count_shows_its_efficiency_within_an_interval(reports, language, test_id, arm, made):
    text = chapter(reports, language, test_id)
    for count in (2, 4):
        _, _, devices, _, rate, speedup, span, efficiency, share, *_ = point(text, arm.format(count))
        assert devices == str(count)
        assert numbers(rate)[0] > 0
        for cell, ends, expected in (
            (speedup, span, SPEEDUPS[made][count]),
            (efficiency, share, 100 * SPEEDUPS[made][count] / count),
        ):
            low, high = numbers(ends)
            assert numbers(cell)[0] == pytest.approx(expected, rel=0.01)
            assert low < numbers(cell)[0] < high


@pytest.mark.parametrize("language", HEADINGS)
@pytest.mark.parametrize(("test_id", "arm", "made"), SERIES)
def test_a_count_that_the_machine_lacks_has_its_reason_and_no_number(reports, language, test_id, arm, made):  # noqa: ARG001  as above
    *_, devices, _requests, rate, speedup, span, efficiency, share, fraction, remark = point(
        chapter(reports, language, test_id), arm.format(8)
    )
    assert devices == "8"
    assert {rate, speedup, span, efficiency, share, fraction} == {"—"}
    assert remark == ABSENT[language]


@pytest.mark.parametrize("language", HEADINGS)
@pytest.mark.parametrize("test_id", ["3.2", "3.3"])
def test_every_fit_names_its_law_and_the_residual_of_each_point(reports, language, test_id):
    """The residuals are worked out here from the printed speed-ups, by the straight line of each law."""
    text = chapter(reports, language, test_id)
    fits = rows(text, LAWS[language][test_id])
    series = [(arm, name) for test, arm, name in SERIES if test == test_id]
    assert len(fits) == len(series)
    for arm, _ in series:
        speedups = {count: numbers(point(text, arm.format(count))[5])[0] for count in (2, 4)}
        name = point(text, arm.format(2))[0]
        fitted = law_of(test_id, speedups)
        row = next(row for row in fits if row[0] == name)
        assert numbers(row[3]) == [2, 4]
        assert numbers(row[4]) == pytest.approx([100 * (speedups[p] / fitted[p] - 1) for p in (2, 4)], abs=0.11)


def law_of(test_id, speedups):
    """Fit one serial fraction by least squares through the origin; returns the speed-up that it gives each count."""
    if test_id == "3.2":
        line = {p: (1 - 1 / p, 1 / s - 1 / p) for p, s in speedups.items()}
    else:
        line = {p: (p - 1, p - s) for p, s in speedups.items()}
    fraction = sum(x * y for x, y in line.values()) / sum(x * x for x, _ in line.values())
    if test_id == "3.2":
        return {p: 1 / (fraction + (1 - fraction) / p) for p in speedups}
    return {p: p - fraction * (p - 1) for p in speedups}


@pytest.mark.parametrize("language", HEADINGS)
def test_every_arm_shows_its_share_of_collectives_and_the_memory_of_a_device(reports, language):
    """One device and replicas of it add nothing up between devices: their share is a measured nought."""
    for test_id, arms in (
        ("3.1", ("full", "light")),
        ("3.2", ("TP 2", "TP 4", "DP 2", "DP 4")),
        ("3.3", ("TP 2 full", "TP 4 light", "DP 2 light", "DP 4 full")),
    ):
        text = chapter(reports, language, test_id)
        for arm in arms:
            shown = {row[0].split("`")[1]: row[2] for row in rows(text, f"`{arm}`") if len(row) == 6 and "`" in row[0]}
            share = 100 * SHARES[int(arm.split()[1])] if arm.startswith("TP") else 0
            assert numbers(shown["communication_share"]) == [share]
            assert numbers(shown["kv_cache_per_device"]) == [3]
            assert numbers(shown["peak_memory_per_device"]) == [6.5]


@pytest.mark.parametrize("language", HEADINGS)
def test_a_projection_is_spoken_of_in_the_figures_captions_alone(reports, language):
    told = [line for line in reports[language].splitlines() if "projection" in line]
    assert {re.search(r"3\.\d", line)[0] for line in told} == {"3.2", "3.3"}
    assert all(line.startswith(("![", "*")) for line in told)
    assert {figure for line in told for figure in re.findall(r"\(figures/(.*?)\)", line)} == {
        "scaling-3.2.svg",
        "scaling-3.3.svg",
    }
