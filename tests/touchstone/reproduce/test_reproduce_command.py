import json
import sys

import pytest

from tests.touchstone.reproduce.pairs_of_runs import claim, outcomes, write_claims, write_run, write_whole
from touchstone import cli
from touchstone.cli import main
from touchstone.ledger import LEDGER_NAME
from touchstone.reporting.context import texts_of
from touchstone.reporting.lint import (
    glossary_faults,
    language_number_faults,
    math_faults,
    table_faults,
    unsourced_number_faults,
)
from touchstone.reporting.markdown import GLOSSARY_FILE, TEMPLATES, Glossary
from touchstone.reproduce.rendering import render_reproduction, reproduction_context

SPEED = claim("absolute", metric="total_time")
CLAIMS = (
    SPEED,
    claim("identity", metric="every_check"),
    claim("token hash"),
    claim("ratio", "2.1", metric="total_time", direction="lower"),
    claim("exact", "2.1", metric="cache_hit_rate", arm="on"),
    claim("shape", "1.2", ascending=[{"metric": "tpot_mean"}, {"metric": "ttft_mean"}]),
    claim("identity", "1.3", metric="every_check"),
)


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Run the command line in this process and return (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    for console in (cli._console, cli._errors):
        monkeypatch.setattr(console, "_width", 200)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["touchstone", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture
def paper(tmp_path):
    folder = write_whole(tmp_path / "paper")
    write_claims(folder, *CLAIMS)
    return folder


class TestReproduce:
    @pytest.mark.parametrize(
        ("changes", "status", "words"),
        [
            ({}, 0, "all claims that could be tested hold"),
            ({"scale": 1.3}, 1, "at least one claim is refuted"),
            ({"scale": 1.05, "spread": 0.02}, 2, "no claim is refuted, and not all could be decided"),
            ({"scale": 1.3, "hardware": {"cpu_model": "Other"}}, 0, "hardware: another; speeds are not compared"),
        ],
    )
    def test_the_status_is_the_verdict(self, command, paper, tmp_path, changes, status, words):
        here = write_whole(tmp_path / "here", **changes)
        ended, text, _ = command("reproduce", here)
        assert ended == status
        assert words in text
        assert all((here / f"reproduction.{language}.md").is_file() for language in ("en", "zh"))
        assert not list(paper.glob("reproduction.*"))

    def test_the_table_shows_claim_verdict_and_remark(self, command, paper, tmp_path):
        _, text, _ = command("reproduce", write_whole(tmp_path / "here"), "--against", paper)
        assert "1.1-absolute" in text
        assert "REPRODUCED" in text
        assert "12 of 12 requests returned the same tokens" in text

    def test_a_paper_without_a_ledger_is_status_3_with_the_remedy(self, command, tmp_path):
        write_claims(tmp_path / "paper", SPEED)
        status, _, errors = command("reproduce", write_whole(tmp_path / "here"))
        assert status == 3
        assert "paper holds no ledger.jsonl; the paper's run is not there" in errors
        assert "--against" in errors

    def test_a_broken_ledger_is_status_3_with_its_line(self, command, paper, tmp_path):
        here = write_whole(tmp_path / "here")
        ledger = here / LEDGER_NAME
        ledger.write_bytes(ledger.read_bytes().replace(b'"outputs":', b'"outputs" :').replace(b"Made-up", b"Fast"))
        status, _, errors = command("reproduce", here, "--against", paper)
        assert status == 3
        assert "line 1: the line does not hash" in errors

    def test_a_missing_trace_is_status_3(self, command, paper, tmp_path):
        here = write_whole(tmp_path / "here")
        next((here / "traces").iterdir()).unlink()
        status, _, errors = command("reproduce", here, "--against", paper)
        assert status == 3
        assert "the run folder is incomplete" in errors
        assert "Traceback" not in errors

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("reproduce", "nowhere"), "nowhere does not exist; name a folder"),
            (("reproduce", "nowhere", "--against", "else"), "claims.yaml does not exist"),
            (("reproduce",), "holds no run; measure with `touchstone run` first"),
            (("compare", "nowhere", "elsewhere"), "nowhere does not exist; name a folder"),
        ],
    )
    def test_a_missing_folder_is_status_3(self, command, paper, arguments, message):
        assert paper.is_dir()
        status, _, errors = command(*arguments)
        assert status == 3
        assert message in " ".join(errors.split())

    def test_a_bad_claim_is_status_3(self, command, paper, tmp_path):
        write_claims(paper, SPEED | {"metric": "warp_factor"})
        status, _, errors = command("reproduce", write_whole(tmp_path / "here"))
        assert status == 3
        assert "metric 'warp_factor' is unknown" in errors


class TestCompare:
    def test_it_shows_ratios_and_verdicts(self, command, tmp_path):
        before, after = write_run(tmp_path / "before"), write_run(tmp_path / "after", scale=1.2)
        status, text, _ = command("compare", before, after)
        assert status == 0
        assert "HIGHER" in text
        assert "6 pairs" in text

    def test_it_refuses_two_machines_with_status_3(self, command, tmp_path):
        before = write_run(tmp_path / "before")
        after = write_run(tmp_path / "after", hardware={"host_id": "fedcba987654"})
        status, _, errors = command("compare", before, after)
        assert status == 3
        assert "hardware.host_id: 0123456789ab / fedcba987654" in errors

    def test_the_formats_go_to_the_standard_output_alone(self, command, tmp_path):
        before, after = write_run(tmp_path / "before"), write_run(tmp_path / "after")
        assert json.loads(command("compare", before, after, "--format", "json")[1])["metrics"]
        assert command("compare", before, after, "--format", "md")[1].startswith("| test | metric |")


class TestMarkdown:
    @pytest.mark.no_cover
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"scale": 1.05, "spread": 0.05, "answer": "other", "cached": 64},
            {"hardware": {"cpu_model": "Other|CPU_9 `x`", "cpu_usable_cores": 1}, "switch": 1.2},
            {"invalid": "the canary moved"},
            {"cached": 96},
            {"seed": 9, "processes": 1},
        ],
    )
    def test_both_languages_hold_the_same_numbers_and_no_fault(self, paper, tmp_path, changes):
        found = outcomes(paper, write_whole(tmp_path / "here", **changes), *CLAIMS)
        texts = render_reproduction(found)
        glossary = Glossary.load(TEMPLATES / GLOSSARY_FILE)
        context = reproduction_context(found, glossary)
        sources = [
            *texts_of(context),
            *(path.read_text(encoding="utf-8") for path in TEMPLATES.iterdir() if path.is_file()),
        ]
        assert language_number_faults(texts["zh"], texts["en"]) == ()
        for text in texts.values():
            assert table_faults(text) == ()
            assert math_faults(text) == ()
            assert unsourced_number_faults(text, sources) == ()
        if "invalid" not in changes:  # the cause of an invalid attempt is told in the words of the ledger
            assert glossary_faults(texts["zh"], texts["en"], glossary.terms, glossary.units) == ()

    @pytest.mark.no_cover
    def test_the_same_runs_give_the_same_bytes(self, paper, tmp_path):
        here = write_whole(tmp_path / "here")
        assert render_reproduction(outcomes(paper, here, *CLAIMS)) == render_reproduction(
            outcomes(paper, here, *CLAIMS)
        )

    def test_both_ledgers_are_named_by_their_root(self, paper, tmp_path):
        found = outcomes(paper, write_whole(tmp_path / "here"), *CLAIMS)
        for text in render_reproduction(found).values():
            assert found.paper.ledgered.root_sha256 in text
            assert found.reviewer.ledgered.root_sha256 in text
