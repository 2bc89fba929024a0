from __future__ import annotations

import pytest

from touchstone.reporting.html_figures import FigureFormatError, symbol
from touchstone.reporting.html_text import document, figure_id, mathml

SVG = """<?xml version="1.0"?>
<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 5 7" xmlns="http://www.w3.org/2000/svg">
 <metadata>who and when</metadata>
 <defs><style type="text/css">*{stroke-linejoin: round}</style></defs>
 <defs><path id="glyph" d="M0 0"/><clipPath id="clip"><rect/></clipPath></defs>
 <g clip-path="url(#clip)"><use xlink:href="#glyph" style="fill: #ffffff; stroke: #000000"/></g>
</svg>"""


def body_of(markdown: str) -> str:
    return document(f"# Title\n\n{markdown}", "en", {"a.svg": "0 0 5 7"}).body


def test_text_that_looks_like_html_is_shown_and_not_obeyed():
    page = body_of("A <script>alert(1)</script> here\n\n<img src=x onerror=alert(1)>\n\n`<b>`\n")
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page


def test_a_link_that_would_run_a_program_is_no_link():
    assert "href" not in body_of("[press](javascript:alert(1))\n")


def test_the_disclosures_of_the_templates_stay_disclosures():
    page = body_of("<details>\n<summary>All repetitions</summary>\n\n| a |\n|:--|\n| 1 |\n\n</details>\n")
    assert page.startswith("<details>\n<summary>All repetitions</summary>")
    assert "<td" in page
    assert page.rstrip().endswith("</details>")


def test_a_summary_that_holds_markup_is_escaped():
    assert "<summary>" not in body_of("<summary><b>x</b></summary>\n")


def test_formulas_become_mathematics_in_blocks_and_in_lines():
    page = body_of("```math\n\\frac{a}{b}\n```\n\nThe time $`t_j`$ of a step\n")
    assert page.count("<math") == 2
    assert "<mfrac>" in page
    assert "The time <math" in page
    assert "</math> of a step" in page
    assert "$" not in page


def test_a_price_beside_code_is_no_formula():
    assert "<math" not in body_of("`a` costs 5 $ and `b` none\n")


def test_a_formula_keeps_its_sign_and_its_unit():
    assert "tokens/s" in mathml(r"\frac{1}{2} = 3\ \text{decode tokens/s}", display=True)


def test_ticked_and_open_items_are_told_apart():
    page = body_of("- [x] done\n- [ ] open [x] inside\n")
    assert "☑ done" in page
    assert "☐ open [x] inside" in page


def test_a_number_and_its_unit_stay_on_one_line():
    assert "2.5\u00a0% of 3\u00a0ms, `5 %` and 7 steps" in body_of("2.5 % of 3 ms, `5 %` and 7 steps\n").replace(
        "<code>", "`"
    ).replace("</code>", "`")


def test_headings_are_numbered_so_that_two_languages_answer_to_each_other():
    made = document("# 标题\n\n## 摘要\n\n### 测试 `a`\n\n##### 太深\n", "zh", {})
    assert made.title == "标题"
    assert [(heading.level, heading.id) for heading in made.headings] == [(2, "zh-1"), (3, "zh-2")]
    assert made.headings[1].html == "测试 <code>a</code>"
    assert '<h2 id="zh-1">' in made.body


def test_a_figure_is_shown_by_reference_with_its_caption_as_alternative_text():
    page = body_of('![what it "shows"](figures/a.svg)\n\n*what it "shows"*\n')
    assert 'viewBox="0 0 5 7"' in page
    assert 'aria-label="what it &quot;shows&quot;"' in page
    assert '<use href="#figure-a"/>' in page
    assert '<p class="caption">' in page


def test_an_image_that_the_page_does_not_hold_is_an_error():
    with pytest.raises(KeyError, match=r"b\.svg"):
        body_of("![b](figures/b.svg)\n")


def test_tables_scroll_by_themselves():
    page = body_of("| a | b |\n|:--|--:|\n| 1 | 2 |\n")
    assert page.startswith('<div class="table" tabindex="0"><table>')
    assert page.rstrip().endswith("</table></div>")


def test_numbers_stand_on_the_right_of_their_column():
    page = body_of("| a | b |\n|:--|--:|\n| 1 | 2 |\n")
    assert '<td>1</td>\n<td class="r">2</td>' in page
    assert "style=" not in page


def test_coordinates_are_cut_and_transformations_are_not():
    drawn = (
        '<path d="M 1.234567 2 L 3.5 4.999999"/><g transform="scale(0.00015625)"/><use xlink:href="#a" x="7.123456"/>'
    )
    markup = symbol("a.svg", f'<svg viewBox="0 0 1 1">{drawn}</svg>').markup
    assert 'd="M 1.23 2 L 3.5 4.99"' in markup
    assert "scale(0.00015625)" in markup
    assert 'x="7.12"' in markup


def test_a_figure_has_ids_of_its_own_and_the_colours_of_the_page():
    held = symbol("latency-1.1.svg", SVG)
    own = figure_id("latency-1.1.svg")
    assert held.view_box == "0 0 5 7"
    assert held.markup.startswith(f'<symbol id="{own}" viewBox="0 0 5 7" fill="currentColor">')
    assert f'id="{own}-glyph"' in held.markup
    assert f'href="#{own}-glyph"' in held.markup
    assert f"url(#{own}-clip)" in held.markup
    assert "fill: var(--paper); stroke: currentColor" in held.markup
    assert "<style" not in held.markup
    assert "metadata" not in held.markup


def test_a_file_that_is_no_figure_is_named():
    with pytest.raises(FigureFormatError, match=r"a\.svg is no SVG"):
        symbol("a.svg", "<p>no figure</p>")
