from __future__ import annotations

from collections import Counter
from typing import get_args

import pytest

from touchstone.analysis import prose as prose_of_results
from touchstone.analysis.metrics import COMPARISONS, DICTIONARY
from touchstone.analysis.quantities import Unit
from touchstone.analysis.statistics import EffectVerdict
from touchstone.experiment import Bilingual
from touchstone.records import Payback, Verdict
from touchstone.reporting.code_tables import CODE_DEFINITIONS
from touchstone.reporting.lint import digits_in_text, math_faults, template_digit_faults
from touchstone.reporting.markdown import (
    LANGUAGES,
    TEMPLATES,
    Glossary,
    ReportError,
    code_span,
    escape_markdown,
    markdown_environment,
    prose,
    render,
    tidy,
)
from touchstone.reporting.values import Amount, Code, Term
from touchstone.reproduce.outcomes import ClaimVerdict


@pytest.fixture(scope="module")
def glossary():
    return Glossary.load(TEMPLATES / "terms.toml")


@pytest.fixture(params=LANGUAGES)
def environment(request, glossary):
    return markdown_environment(request.param, glossary)


def test_templates_hold_no_typed_in_digits(environment):
    names = environment.list_templates(extensions=["j2"])
    assert len(names) == 6
    for name in names:
        assert template_digit_faults(environment, environment.loader.get_source(environment, name)[0]) == ()


def test_the_glossary_holds_no_typed_in_digits(glossary):
    verdicts = (glossary.verdicts, glossary.effects, glossary.claims)
    for section in (glossary.terms, *verdicts, glossary.units, glossary.checklist):
        for word in section.values():
            assert [digits_in_text(text) for text in word.values() if digits_in_text(text)] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_two_terms_share_a_translation(glossary, language):
    counts = Counter(term[language] for term in glossary.terms.values())
    assert {text for text, count in counts.items() if count > 1} == set()


def test_every_term_speaks_both_languages(glossary):
    for section in (glossary.terms, glossary.units, glossary.checklist):
        assert all(set(word) == set(LANGUAGES) and all(word.values()) for word in section.values())


def test_every_verdict_and_unit_has_its_word(glossary):
    assert set(glossary.verdicts) == set(Verdict)
    assert set(glossary.effects) == {*EffectVerdict, *get_args(Payback.model_fields["verdict"].annotation)}
    assert set(glossary.claims) == set(ClaimVerdict)
    assert set(Unit) <= set(glossary.units)


def test_results_call_the_verdicts_in_chinese_what_the_report_calls_them(glossary):
    assert {key: word["zh"] for key, word in glossary.verdicts.items()} == prose_of_results._VERDICTS_ZH


def test_every_formula_of_the_dictionaries_can_be_rendered():
    for definition in (*DICTIONARY.values(), *COMPARISONS.values(), *CODE_DEFINITIONS.values()):
        assert math_faults(f"```math\n{definition.formula}\n```\n") == ()


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("{{ missing_value }}", "missing_value"),
        ("{{ t.no_such_term }}", "no_such_term"),
        ("{{ amount.no_such_field }}", "no_such_field"),
        ("{% for x in missing_list %}{% endfor %}", "missing_list"),
        ("{{ unknown_unit }}", "furlong"),
        ("{{ unknown_term }}", "not_a_term"),
        ("{{ 'ODD' | verdict }}", "ODD"),
    ],
)
def test_what_is_undefined_is_refused_by_name(glossary, tmp_path, source, name):
    (tmp_path / "page.md.j2").write_text(source)
    environment = markdown_environment("en", glossary, tmp_path)
    context = {"amount": Amount("1"), "unknown_unit": Amount("1", "furlong"), "unknown_term": Term("not_a_term")}
    with pytest.raises(ReportError, match=name):
        render(environment, "page.md.j2", context)


@pytest.mark.parametrize("value", [0.5, True, None, [1], float("nan")])
def test_a_value_whose_form_was_not_decided_is_refused(glossary, tmp_path, value):
    (tmp_path / "page.md.j2").write_text("{{ value }}")
    with pytest.raises(ReportError, match=type(value).__name__):
        render(markdown_environment("en", glossary, tmp_path), "page.md.j2", {"value": value})


def test_each_kind_of_value_is_printed_in_its_language(glossary, tmp_path):
    (tmp_path / "page.md.j2").write_text("{{ a }}; {{ t.verdict }}; {{ b }}; {{ c }}; {{ n }}")
    context = {"a": Amount("12", "lines"), "b": Bilingual("now", "现在"), "c": Code("a_b"), "n": 12345}
    english, chinese = (
        render(markdown_environment(language, glossary, tmp_path), "page.md.j2", context) for language in ("en", "zh")
    )
    assert english == "12 lines; Verdict; now; `a_b`; 12,345\n"
    assert chinese == "12 行; 结论; 现在; `a_b`; 12,345\n"


def test_text_from_outside_cannot_become_markup():
    assert escape_markdown("a|b *c* _d_ `e` <f> $g$") == r"a\|b \*c\* \_d\_ \`e\` \<f> \$g\$"
    assert escape_markdown("[x](y)\nz") == r"[x\](y) z"
    assert escape_markdown("[1, 2] ms") == "[1, 2] ms"
    assert code_span("a|b`c\nd") == r"`a\|b'c d`"
    assert code_span("") == "—"


def test_identifiers_in_sentences_become_code():
    assert prose("see kv_used and time.perf_counter_ns.") == "see `kv_used` and `time.perf_counter_ns`."
    assert prose("没有下划线，a*b") == r"没有下划线，a\*b"
    assert prose("最后一次：`OSError: no package|a_b`") == r"最后一次：`OSError: no package\|a_b`"


def test_a_missing_glossary_is_refused_by_name(tmp_path):
    with pytest.raises(ReportError, match=r"terms\.toml does not exist"):
        Glossary.load(tmp_path / "terms.toml")
    (tmp_path / "terms.toml").write_text("[terms]\n")
    with pytest.raises(ReportError, match=r"lacks the section \[verdicts\]"):
        Glossary.load(tmp_path / "terms.toml")


def test_tidy_leaves_one_blank_line_and_one_line_end():
    assert tidy("\n\na  \n\n\n\nb\n\n") == "a\n\nb\n"
