"""The methods chapter: its arithmetic and simulations are worked out here, and stand in both languages."""

from __future__ import annotations

import ast
import json
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from touchstone.engines.registry import ADAPTERS
from touchstone.reporting.quotation import quotations
from touchstone.running.models import QWEN3_0_6B_CONFIG
from touchstone.running.sizes import kv_bytes_per_token, num_parameters

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("zh", "en")
NUMBER = re.compile(r"\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?(?:e\d+)?")
QUOTED = re.compile(r"(<!-- quoted: (?!end)[^>]+-->\n).*?(<!-- quoted: end -->)", re.DOTALL)

# --- the plan's samples
SEQUENCES, LENGTH = 256, 512
TOKENS = SEQUENCES * LENGTH
PREFILL_RATE, E2E_RATE, DECODE_RATE = 395_297.08, 790_444.13, 131_072_000.0
SHARING, PREFIX = 70, math.floor(0.8 * LENGTH)
PROMPT_TOKENS = 100 * LENGTH
# --- dense FP16 peak of an RTX 3090, accumulating in FP16 and in FP32: NVIDIA's GA102 whitepaper
PEAK_FP16, PEAK_FP32 = 142e12, 71e12


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def own_text(language: str) -> str:
    """The chapter without what it quotes."""
    return QUOTED.sub(r"\1\2", text_of(f"paper/methods.{language}.md"))


def section(language: str, number: int) -> str:
    found = re.search(rf"^### {number}\. .*?(?=^##)", own_text(language) + "\n##", re.MULTILINE | re.DOTALL)
    assert found is not None
    return found.group()


def says(number: int, *texts: str) -> None:
    """Require both languages to say this in the section with this number."""
    for language in LANGUAGES:
        told = section(language, number)
        assert [text for text in texts if text not in told] == [], f"{language}, section {number}"


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


# --- the chapter as a whole


def test_both_languages_say_the_same_numbers_and_quote_the_same_lines():
    chinese, english = (own_text(language) for language in LANGUAGES)
    assert Counter(NUMBER.findall(chinese)) == Counter(NUMBER.findall(english))
    assert quotations(chinese) == quotations(english)


def test_every_point_has_its_section_in_both_languages():
    for language in LANGUAGES:
        numbers = re.findall(r"^### (\d+)\. ", own_text(language), re.MULTILINE)
        assert numbers == [str(number) for number in range(1, 31)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_the_chapter_names_exists(language):
    paths = re.findall(r"`((?:src|tests|docs|quality)/[\w./]*)`", own_text(language))
    assert paths
    assert not [path for path in paths if not (ROOT / path).exists()]


# --- the samples


def test_the_decode_rate_is_that_of_a_clamped_timer():
    assert TOKENS / 0.001 == DECODE_RATE
    parameters = num_parameters(QWEN3_0_6B_CONFIG)
    bare = parameters - QWEN3_0_6B_CONFIG["vocab_size"] * QWEN3_0_6B_CONFIG["hidden_size"]
    with_head = 2 * parameters * DECODE_RATE  # the embeddings are tied: the head has as many
    says(1, f"{TOKENS:,}", f"{bare:,}", f"{2 * bare * DECODE_RATE:.2e}".replace("+", ""), "142 TFLOP/s")
    says(1, f"{with_head:.2e}".replace("+", ""), f"{with_head / PEAK_FP16:,.0f}")


def test_the_total_time_is_too_short_for_the_prefill_alone():
    bare = num_parameters(QWEN3_0_6B_CONFIG) - QWEN3_0_6B_CONFIG["vocab_size"] * QWEN3_0_6B_CONFIG["hidden_size"]
    flops = 2 * bare * TOKENS
    assert flops / PEAK_FP16 > 0.3316
    prefill_s, total_s = TOKENS / PREFILL_RATE, 2 * TOKENS / E2E_RATE
    says(2, f"{flops / 1e12:.1f} TFLOP", f"{flops / PEAK_FP16:.2f} s", f"{flops / PEAK_FP32:.2f} s")
    says(2, f"{prefill_s:.5f} s", f"{total_s:.5f} s", f"{(total_s - prefill_s) * 1e6:.0f} µs")


def test_the_end_to_end_rate_is_not_what_the_two_rates_give():
    harmonic = 2 / (1 / PREFILL_RATE + 1 / DECODE_RATE)
    assert PREFILL_RATE < harmonic < E2E_RATE < DECODE_RATE
    says(3, f"{E2E_RATE / PREFILL_RATE:.4f}", f"{harmonic:,.0f} tok/s", f"{E2E_RATE:,.0f}")


def test_the_two_throughputs_of_the_sample_differ():
    says(4, f"{E2E_RATE / 1434.13:.0f}")


def test_the_saving_of_the_plan_is_always_zero():
    requests, output_len = [list(range(length)) for length in (5, 17, 300)], 8
    tokens_no_cache = sum(len(req) + output_len for req in requests)
    tokens_with_cache = sum(len(req) + output_len for req in requests)
    assert (tokens_no_cache - tokens_with_cache) / tokens_no_cache * 100 == 0
    says(6, "0")


def test_the_saving_of_the_sample_is_more_than_can_be():
    assert PROMPT_TOKENS - 22_570 == SHARING * PREFIX
    assert percent(SHARING * PREFIX / PROMPT_TOKENS, 2) == "55.92 %"
    says(7, f"{SHARING * PREFIX:,} = {SHARING} × {PREFIX}")
    says(7, f"{(SHARING - 1) * PREFIX:,}", percent((SHARING - 1) * PREFIX / PROMPT_TOKENS, 2))
    for block in (16, 256):
        whole = PREFIX // block * block
        hits = (SHARING - 1) * whole
        says(7, f"{SHARING - 1} × {whole} = {hits:,}", percent(hits / PROMPT_TOKENS, 2))


# --- the methods


def test_the_keys_and_values_do_not_fit_the_card():
    token = kv_bytes_per_token(QWEN3_0_6B_CONFIG, "float16")
    needed = SEQUENCES * 2 * LENGTH * token
    assert needed > 24 * 2**30
    says(11, f"{token:,}", f"{token / 2**10:.0f} KiB", f"{needed / 2**30:.0f} GiB")


def test_the_latency_of_the_plan_counts_one_token_too_many():
    says(13, percent(128 / 127 - 1))
    assert 2 / 1 - 1 == 1  # doubled at n = 2


def test_half_the_time_is_twice_the_throughput():
    says(16, percent(0.5, 0), percent(1 / 0.5 - 1, 0))


def test_three_runs_pass_by_luck():
    draws = 1 + 0.05 * np.random.default_rng(20260101).standard_normal((2_000_000, 3))
    mean = draws.mean(axis=1)
    by_deviation = float((draws.std(axis=1) <= 0.03 * mean).mean())
    by_largest = float((np.abs(draws / mean[:, None] - 1).max(axis=1) <= 0.03).mean())
    for told, once in (("41.8 %", by_deviation), ("25.7 %", by_largest)):
        says(17, told)
        assert float(told[:-2]) / 100 == pytest.approx(once, abs=0.001)
    for told, retried in (("93.3 %", by_deviation), ("77.3 %", by_largest)):
        says(17, told)
        assert float(told[:-2]) / 100 == pytest.approx(1 - (1 - retried) ** 5, abs=0.001)
    for n in (3, 5, 6):
        says(17, percent(1 - 2 ** (1 - n)))


def test_text_counts_miss_the_code_of_radon_itself():
    import radon  # noqa: PLC0415  only its source is looked at

    files = [path.read_text(encoding="utf-8") for path in Path(radon.__file__).parent.rglob("*.py")]
    nodes = [node for file in files for node in ast.walk(ast.parse(file))]
    functions = sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in nodes)
    classes = sum(isinstance(node, ast.ClassDef) for node in nodes)
    naive, naive_classes = (sum(file.count(word) for file in files) for word in ("def ", "class "))
    says(18, radon.__version__, str(naive), str(functions), percent(naive / functions - 1))
    says(18, str(naive_classes), str(classes))
    assert "x = undef y".count("def ") == 1


def test_json_with_comments_is_refused():
    with pytest.raises(json.JSONDecodeError):
        json.loads('{"prefill_throughput": 395297.08  // tokens/s\n}')


# --- what else was found


def rows_of(table: str) -> dict[tuple[str, ...], list[str]]:
    """Rows of a table of docs/statistics.md by their first cells, which are not shares."""
    text = text_of("docs/statistics.md")
    body = text[text.index(f"**{table}") :].split("\n\n")[1]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines()[2:]]
    return {tuple(row): row for row in rows}


def row(table: str, *start: str) -> list[str]:
    return next(cells for cells in rows_of(table).values() if tuple(cells[: len(start)]) == start)


def test_the_order_of_the_arms_matters_as_simulated():
    table = "Verdicts on an ablation"
    wrong = row(table, "0.0 %", "1.0 %", "0.2 %", "all A, then all B")
    right = row(table, "0.0 %", "1.0 %", "0.2 %", "ABBA")
    shares = [float(cell.rstrip(" %")) for cell in right[4:6]]
    says(22, wrong[4], f"{sum(shares):.1f} %")


def test_the_bootstrap_covers_as_simulated():
    for n in ("6", "9"):
        for noise in ("normal", "skewed"):
            says(24, row("Coverage of", n, noise)[4])


def test_stable_is_as_wide_as_simulated():
    told = row("Share judged STABLE", "2.0 %", "0.0 %")
    says(25, told[4], told[5])


def test_transformers_masks_padding_ids_in_silence_without_a_mask():
    import torch  # noqa: PLC0415  slow to load
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM  # noqa: PLC0415  likewise

    torch.manual_seed(0)
    torch.set_num_threads(1)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    model = Qwen3ForCausalLM(Qwen3Config(**sizes, num_attention_heads=4, num_key_value_heads=2)).eval()
    settings = GenerationConfig(max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=3, eos_token_id=63)
    prompt = torch.tensor([[5, 3, 9, 3, 11, 3, 40]])
    bare = model.generate(prompt, generation_config=settings)
    masked = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)
    assert bare.tolist() != masked.tolist()
    assert "transformers" not in ADAPTERS or "attention_mask=" in text_of("src/touchstone/engines/transformers.py")
