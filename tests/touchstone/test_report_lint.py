from __future__ import annotations

import pytest

from touchstone.reporting.lint import (
    digits_in_text,
    glossary_faults,
    language_number_faults,
    math_faults,
    numbers_in,
    prose,
    table_faults,
    template_digit_faults,
    unsourced_number_faults,
)
from touchstone.reporting.markdown import TEMPLATES, Glossary, markdown_environment

TERMS = {
    "throughput": {"en": "throughput", "zh": "吞吐量"},
    "gpu": {"en": "GPU", "zh": "GPU"},
    "comma": {"en": ", ", "zh": "，"},
}


@pytest.fixture
def environment():
    return markdown_environment("en", Glossary.load(TEMPLATES / "terms.toml"))


@pytest.mark.parametrize(
    "source",
    [
        "The rate is 1434.13 tok/s.",
        "within 5 %",
        "{{ 1434.13 }}",
        "{{ value * 100 }}",
        "{{ '55.92 %' }}",
        "{% set rate = 42 %}",
        "| 7 |",
        "test 1.1.5",
        "{% if n > 3 %}few{% endif %}",
    ],
)
def test_a_planted_digit_is_caught(environment, source):
    assert template_digit_faults(environment, source)


@pytest.mark.parametrize(
    "source",
    [
        "## 1.2 Latency\n",
        "Test 1.1, {{ p50 }} and SHA-256; p99 is withheld.",
        "{{ list[0] }} {{ n + 1 }}",
        "{# written in 2026 #}",
        "{{ t.part_1 }}",
    ],
)
def test_structural_digits_pass(environment, source):
    assert template_digit_faults(environment, source) == ()


def test_a_fault_names_line_and_digits(environment):
    (fault,) = template_digit_faults(environment, "one\ntwo\n{{ 1434.13 }}")
    assert fault.startswith("line 3: 1434.13 ")


def test_heading_numbers_count_only_in_headings():
    assert digits_in_text("## 3. Results\n") == ()
    assert digits_in_text("3. Results\n")


def test_thousands_separators_do_not_change_a_number():
    assert numbers_in("262,144 tokens, 0.33 s, [1, 2]") == numbers_in("262144 个 token，0.33 s，[1, 2]")


def test_a_number_that_only_one_language_has_is_caught():
    assert language_number_faults("吞吐量 12 tok/s", "throughput 12 tok/s") == ()
    assert language_number_faults("吞吐量 12 tok/s", "throughput 13 tok/s") != ()
    assert language_number_faults("12", "12 and 12") != ()


def test_a_number_from_nowhere_is_caught():
    assert unsourced_number_faults("12 of 15", ["12", "15"]) == ()
    (fault,) = unsourced_number_faults("12 of 16", ["12", "15"])
    assert fault.startswith("16:")


def test_an_english_term_in_chinese_prose_is_caught():
    assert glossary_faults("吞吐量，GPU", "throughput, GPU", TERMS) == ()
    assert glossary_faults("Throughput 很高", "throughput", TERMS) != ()
    assert glossary_faults("`e2e_throughput` 与 `throughput`", "throughput", TERMS) == ()
    assert glossary_faults("单位 [throughput]", "throughput", TERMS, ["throughput"]) == ()


def test_chinese_in_english_prose_is_caught():
    assert glossary_faults("吞吐量", "the 吞吐量", TERMS) != ()
    assert glossary_faults("吞吐量", "full-width， comma", TERMS) != ()
    assert glossary_faults("吞吐量", "the field `总耗时`", TERMS) == ()


def test_code_mathematics_and_targets_are_no_prose():
    text = "see [x](a/decode.md) `decode`\n\n```math\ndecode\n```\n<summary>z</summary>"
    assert "decode" not in prose(text)
    assert "summary" not in prose(text)
    assert "see" in prose(text)


@pytest.mark.parametrize(
    "table",
    [
        "\n| a | b |\n|--|--|\n| 1 |\n",
        "\n| a | b |\n|--|--|\n| 1 | 2 | 3 |\n",
        "\n| a | b |\n| 1 | 2 |\n",
        "\n| a | b |\n|--|--|\n",
        "text\n| a |\n|--|\n| 1 |\n",
        "\n| a |\n\n|--|\n| 1 |\n",
        "\n| a |\n|--|\n| x|y |\n",
    ],
)
def test_a_table_that_github_would_break_is_caught(table):
    assert table_faults(table)


def test_a_good_table_passes_and_code_blocks_hold_no_tables():
    assert table_faults("\n| a | b |\n|:--|--:|\n| x \\| y | `2` |\n\ntext") == ()
    assert table_faults("```\n| a |\n```\n") == ()


@pytest.mark.parametrize("formula", ["\\frac{1}{2", "100 % x", "", "\\text{吞吐}"])
def test_a_formula_that_mathjax_would_refuse_is_caught(formula):
    assert math_faults(f"```math\n{formula}\n```\n")


def test_a_good_formula_passes_and_dollar_blocks_are_refused():
    assert math_faults("```math\n\\frac{1}{2} = 50\\ \\%\n```\n") == ()
    assert math_faults("$$\nx\n$$\n")
