from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.touchstone.peers_sample import ENGINES, write_peers_run
from touchstone.experiment import load_experiments
from touchstone.ledger import LEDGER_NAME
from touchstone.reporting import paper as papers
from touchstone.reporting.markdown import GLOSSARY_FILE, TEMPLATES, Glossary
from touchstone.reporting.paper import MAX_BYTES, PaperError, committed_runs, make_paper, renewed_documents, size_of
from touchstone.reporting.quotation import QuotationError, fill, quotations
from touchstone.reproduce.claims import load_claims
from touchstone.verify import custody
from touchstone.verify.verification import verify_run

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "0" * 40
DOCUMENTS = tuple(name for name, _, _ in papers.DOCUMENTS)


@pytest.fixture(scope="module")
def sample(published, tmp_path_factory):
    """A run with its report, and the text of the report by language."""
    folder = shutil.copytree(published.folder, tmp_path_factory.mktemp("run") / "copy")
    texts = {language: (folder / f"report.{language}.md").read_text(encoding="utf-8") for language in ("zh", "en")}
    return SimpleNamespace(folder=folder, experiments=published.experiments, texts=texts)


@pytest.fixture(scope="module")
def glossary():
    return Glossary.load(TEMPLATES / GLOSSARY_FILE)


@pytest.fixture
def repository(tmp_path):
    """The documents of the repository, without a run."""
    for name in DOCUMENTS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    return tmp_path


def quoted(sample, glossary, words, language="en", folder=""):
    document = f"before\n\n<!-- quoted: {words} -->\n<!-- quoted: end -->\n\nafter\n"
    filled = fill(document, language, lambda _: sample.texts[language], glossary, folder)
    assert filled.startswith("before\n\n<!-- quoted: ")
    assert filled.endswith("<!-- quoted: end -->\n\nafter\n")
    return filled.split("-->\n\n", 1)[1].rsplit("\n\n<!--", 1)[0]


def no_run(_folder):
    return None


# --- quotations


def test_tables_of_the_first_page_are_quoted_word_for_word(sample, glossary):
    for language in ("zh", "en"):
        table = quoted(sample, glossary, "key-numbers", language)
        assert table in sample.texts[language]
        assert table.count("\n") > 5


@pytest.mark.parametrize(("language", "labels"), [("en", ("Weights", "Precision")), ("zh", ("权重", "精度"))])
def test_the_machine_and_the_model_are_quoted_without_the_rest_of_the_setting(sample, glossary, language, labels):
    rows = quoted(sample, glossary, "setting", language).splitlines()
    assert all(row in sample.texts[language] for row in rows)
    assert rows[1].startswith("|:--|")
    said = [row.split(" | ")[0].strip("| `") for row in rows[2:]]
    assert said[0].startswith("GPU 0") or said[0] == "CPU"
    assert said[-2:] == list(labels)
    assert len(said) == len(set(said))


def test_checks_are_quoted_with_their_title_row(sample, glossary):
    table = quoted(sample, glossary, "checks 1.1 timer_not_rounded within_roofline", "zh").splitlines()
    assert table[0].startswith("| 检查项 |")
    assert [line.split("`")[1] for line in table[2:]] == ["timer_not_rounded", "within_roofline"]
    assert all(line in sample.texts["zh"] for line in table)


def test_a_headline_metric_is_quoted_with_interval_and_verdict(sample, glossary):
    line = quoted(sample, glossary, "metrics 1.1 prefill_throughput")
    assert re.fullmatch(r"- Prefill throughput `prefill_throughput`: \*\*.*Verdict: \*\*stable\*\*", line)
    assert line.split("`: ")[1] in sample.texts["en"]


def test_each_arm_of_a_metric_is_quoted(sample, glossary):
    lines = quoted(sample, glossary, "metrics 2.1 cache_hit_rate").splitlines()
    assert [line.split("`")[3] for line in lines] == ["off", "on"]


@pytest.mark.parametrize(("language", "colon"), [("en", ": "), ("zh", "：")])
@pytest.mark.parametrize("words", ["metrics 2.1 cache_hit_rate", "metrics 1.1 peak_concurrency"])
def test_a_quoted_metric_and_its_arm_stand_apart_by_the_colon_of_the_language(sample, glossary, words, language, colon):
    lines = quoted(sample, glossary, words, language).splitlines()
    for line in lines:
        assert re.fullmatch(rf"- [^`]+ `{words.split()[-1]}`{colon}`\w+`(: \*\*|：\*\*| ).*", line), line
    assert lines


def test_a_supporting_metric_is_quoted_from_its_table(sample, glossary):
    line = quoted(sample, glossary, "metrics 1.1 peak_concurrency")
    assert "`default`" in line
    assert line.endswith("exact")


def test_a_test_that_was_not_measured_is_quoted_with_its_reason(sample, glossary):
    for words in ("metrics 3.2 e2e_throughput", "checks 3.2 same_work"):
        assert quoted(sample, glossary, words) == "**not measured**: needs 2 GPUs"


def test_a_figure_is_quoted_with_the_way_to_its_folder(sample, glossary):
    line = quoted(sample, glossary, "figure pairs-2.1", folder="paper/")
    assert line.endswith("](paper/figures/pairs-2.1.svg)")
    assert line.startswith("![Paired blocks of test 2.1")


@pytest.mark.parametrize(
    "words", ["figure nothing", "metrics 1.1 nothing", "checks 1.1 nothing", "metrics 9.9 total_time", "nothing"]
)
def test_what_the_report_does_not_hold_cannot_be_quoted(sample, glossary, words):
    with pytest.raises(QuotationError, match=r"nothing|9\.9"):
        quoted(sample, glossary, words)


def test_filling_twice_changes_nothing_more(sample, glossary):
    document = "<!-- quoted: ideas -->\nold\n<!-- quoted: end -->\n"
    once = fill(document, "en", lambda _: sample.texts["en"], glossary, "")
    assert "old" not in once
    assert fill(once, "en", lambda _: sample.texts["en"], glossary, "") == once


def test_without_a_run_every_quotation_says_so(glossary):
    document = "<!-- quoted: ideas -->\n3.14 times faster\n<!-- quoted: end -->\n"
    assert "No paper run is committed yet" in fill(document, "en", no_run, glossary, "")
    assert "3.14" not in fill(document, "en", no_run, glossary, "")
    assert "论文运行尚未提交" in fill(document, "zh", no_run, glossary, "")


def test_a_further_run_is_quoted_by_its_folder_and_says_by_itself_that_it_is_missing(sample, glossary):
    document = "<!-- quoted: figure pairs-2.1 of peers -->\n<!-- quoted: end -->\n"
    filled = fill(document, "en", {"peers": sample.texts["en"]}.get, glossary, "paper/")
    assert "](paper/peers/figures/pairs-2.1.svg)" in filled
    assert "That run is not committed yet" in fill(document, "en", {"": sample.texts["en"]}.get, glossary, "paper/")
    assert "该项运行尚未提交" in fill(document, "zh", no_run, glossary, "paper/")


# --- the repository as it is


def test_the_documents_quote_what_the_paper_says_now():
    for path, text in renewed_documents():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale: run `make paper`"


@pytest.mark.parametrize("pair", [DOCUMENTS[:2], DOCUMENTS[2:]])
def test_both_languages_quote_the_same(pair):
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in pair)
    assert quotations(english) == quotations(chinese) != ()


def test_the_paper_is_small_enough_for_a_repository():
    assert size_of(ROOT / "paper") <= MAX_BYTES


# --- making the paper


def test_without_a_run_the_paper_says_so_and_makes_nothing(repository):
    made = make_paper({}, repository)
    assert made.runs == ()
    assert not (repository / "paper" / "report.en.md").exists()
    assert "No paper run is committed yet" in (repository / "README.md").read_text(encoding="utf-8")


@pytest.mark.no_cover
def test_a_committed_run_is_rendered_twice_to_the_same_bytes(sample, repository, monkeypatch):
    monkeypatch.setattr(papers, "DOCUMENTS", ())
    folder = repository / "paper"
    shutil.copytree(sample.folder / "traces", folder / "traces")
    shutil.copyfile(sample.folder / LEDGER_NAME, folder / LEDGER_NAME)
    (folder / "figures").mkdir()
    (folder / "figures" / "left-over.svg").write_text("of a report before", encoding="utf-8")
    assert make_paper(sample.experiments, repository).runs == (folder,) == committed_runs(repository)
    first = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    make_paper(sample.experiments, repository)
    assert first == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert folder / "figures" / "left-over.svg" not in first


def test_a_run_inside_the_paper_is_a_further_one(repository):
    for name in ("peers", "second-host"):
        (repository / "paper" / name).mkdir()
        (repository / "paper" / name / LEDGER_NAME).touch()
    assert [path.name for path in committed_runs(repository)] == ["peers", "second-host"]


def planned(monkeypatch, **changes):
    """Let the sample be read as a run of the paper's profile on a clean tree, apart from the changes."""
    read = papers.load_run

    def changed(*arguments):
        run = read(*arguments)
        plan = run.plan.model_copy(update={"profile": changes.get("profile", "paper")})
        asked = {"dirty": changes.get("dirty", False), "commit": changes.get("commit", COMMIT)}
        source = run.environment.source.model_copy(update=asked)
        environment = run.environment.model_copy(update={"source": source})
        entries = run.entries[: changes.get("entries", len(run.entries))]
        return SimpleNamespace(entries=entries, plan=plan, environment=environment, attempts=run.attempts)

    monkeypatch.setattr(papers, "load_run", changed)
    monkeypatch.setattr(papers, "has_commit", lambda commit: commit == COMMIT)


def test_taking_a_run_over_copies_the_ledger_packs_the_traces_and_leaves_the_rest(sample, tmp_path, monkeypatch):
    planned(monkeypatch)
    source = shutil.copytree(sample.folder, tmp_path / "run")
    (source / "logs").mkdir()
    target = tmp_path / "paper"
    (target / "traces").mkdir(parents=True)
    (target / "traces" / "old.json.gz").touch()
    (target / "claims.yaml").write_text("claims: []\n", encoding="utf-8")
    size = papers.take_over(source, target, sample.experiments)
    assert sorted(path.name for path in target.iterdir()) == ["claims.yaml", LEDGER_NAME, "traces"]
    names = {path.name.removesuffix(".gz") for path in (source / "traces").iterdir()}
    assert {path.name for path in (target / "traces").iterdir()} == {f"{name}.xz" for name in names}
    assert size == size_of(target) - (target / "claims.yaml").stat().st_size


def test_verify_reads_packed_traces_and_finds_a_changed_or_missing_one(sample, tmp_path, monkeypatch):
    planned(monkeypatch)
    papers.take_over(sample.folder, tmp_path, sample.experiments)
    evidence = custody.Evidence(tmp_path)
    assert (custody.read_chain(evidence), custody.read_traces(evidence)) == ((), ())
    first, second, *_ = sorted((tmp_path / "traces").iterdir())
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1
    first.write_bytes(data)
    second.unlink()
    faults = custody.read_traces(evidence)
    assert {fault.file for fault in faults} == {f"traces/{first.name}", f"traces/{second.name.removesuffix('xz')}gz"}


def test_a_trace_that_lies_there_twice_is_one_too_many(sample, tmp_path, monkeypatch):
    planned(monkeypatch)
    papers.take_over(sample.folder, tmp_path, sample.experiments)
    kept = next((sample.folder / "traces").iterdir())
    shutil.copyfile(kept, tmp_path / "traces" / kept.name)
    evidence = custody.Evidence(tmp_path)
    custody.read_chain(evidence)
    (fault,) = custody.read_traces(evidence)
    assert fault.file == f"traces/{kept.name.removesuffix('gz')}xz"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"profile": "smoke"}, r"is a smoke run; the paper is made from `touchstone run --profile paper`"),
        ({"dirty": True}, r"uncommitted changes"),
        ({"dirty": None}, r"uncommitted changes"),
        ({"commit": None}, r"no commit says what ran"),
        ({"commit": "1" * 40}, r"at commit 1{40}, which is not in this repository's history"),
        ({"entries": -1}, r"has not come to its end"),
    ],
)
def test_a_run_that_cannot_stand_for_the_paper_is_refused(sample, tmp_path, monkeypatch, changes, message):
    planned(monkeypatch, **changes)
    with pytest.raises(PaperError, match=message):
        papers.take_over(sample.folder, tmp_path / "paper", sample.experiments)
    assert not (tmp_path / "paper").exists()


def test_a_comparison_of_engines_alone_becomes_a_further_run_of_a_paper_without_a_main_one(
    repository, tmp_path, monkeypatch
):
    """The README then quotes the comparison, and says of the rest that no run is committed."""
    experiments = write_peers_run(tmp_path / "run", finished=True)
    monkeypatch.setattr(papers, "PROFILE", "smoke")
    monkeypatch.setattr(papers, "has_commit", lambda _: True)
    papers.take_over(tmp_path / "run", repository / "paper" / "peers", experiments)
    made = make_paper(experiments, repository)
    assert made.runs == (repository / "paper" / "peers",)
    assert {path.name for path in made.changed} >= {"README.md", "README.zh.md"}, "and those that quote the main run"
    assert [outcome.faults for outcome in verify_run(made.runs[0], experiments) if outcome.faults] == []
    for name, missing in (("README.md", "No paper run is committed yet"), ("README.zh.md", "论文运行尚未提交")):
        text = (repository / name).read_text(encoding="utf-8")
        assert missing in text
        assert all(f"| `5.1` | `{engine}` | " in text for engine in ENGINES)
    assert make_paper(experiments, repository).changed == ()


@pytest.fixture(scope="module")
def two_runs(sample, tmp_path_factory):
    """A paper whose main run, which compares no engines, has the comparison beside it."""
    repository = tmp_path_factory.mktemp("paper")
    main, peers = repository / "paper", repository / "paper" / "peers"
    shutil.copytree(sample.folder / "traces", main / "traces")
    shutil.copyfile(sample.folder / LEDGER_NAME, main / LEDGER_NAME)
    experiments = write_peers_run(peers, finished=True) | sample.experiments
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(papers, "DOCUMENTS", ())
        make_paper(experiments, repository)
    return SimpleNamespace(main=main, peers=peers, experiments=experiments)


def test_the_first_page_leads_to_a_comparison_beside_it_and_quotes_it_word_for_word(two_runs):
    root = papers.load_run(two_runs.peers, two_runs.experiments).root_sha256
    for language in ("en", "zh"):
        first_page = (two_runs.main / f"report.{language}.md").read_text(encoding="utf-8").split("\n## ")[1]
        theirs = (two_runs.peers / f"report.{language}.md").read_text(encoding="utf-8")
        rows = [line for line in first_page.split("\n") if line.startswith("| `5.1")]
        assert len(rows) == 5 + 5 * len(ENGINES)
        assert set(rows) <= set(theirs.split("\n"))
        assert f"](peers/report.{language}.md)" in first_page
        assert f"| `{root}` |" in first_page, "which tells it from the run that quotes it"
    assert '<a href="peers/report.html">' in (two_runs.main / "report.html").read_text(encoding="utf-8")


def test_verify_holds_what_is_quoted_against_the_report_of_the_further_run(two_runs):
    outcomes = {outcome.id: outcome.faults for outcome in verify_run(two_runs.main, two_runs.experiments)}
    assert not any(outcomes.values())
    path = two_runs.main / "report.en.md"
    text = path.read_text(encoding="utf-8")
    line = next(line for line in text.split("\n") if line.startswith("| `5.1` | `vllm` |"))
    path.write_text(text.replace(line, line.replace("1.25", "1.15")), encoding="utf-8")
    found = {o.id: o.faults for o in verify_run(two_runs.main, two_runs.experiments, remake=False)}
    path.write_text(text, encoding="utf-8")
    assert [fault.file for fault in found["printed_numbers"]] == ["report.en.md"]


def test_a_comparison_in_which_no_engine_worked_is_quoted_with_its_reason(repository, tmp_path, monkeypatch):
    run = tmp_path / "run"
    experiments = write_peers_run(run, failing=frozenset(ENGINES), finished=True)
    monkeypatch.setattr(papers, "PROFILE", "smoke")
    monkeypatch.setattr(papers, "has_commit", lambda _: True)
    papers.take_over(run, repository / "paper" / "peers", experiments)
    made = make_paper(experiments, repository)
    assert "`the engine broke`" in (repository / "README.md").read_text(encoding="utf-8")
    assert [outcome.faults for outcome in verify_run(made.runs[0], experiments, remake=False) if outcome.faults] == []


def test_a_comparison_of_which_one_workload_alone_worked_can_be_published(tmp_path):
    experiments = write_peers_run(tmp_path, failing=frozenset(ENGINES), finished=True, working="5.1@w3-nanoinfer-p0")
    papers.write_results(papers.load_run(tmp_path, experiments).results, tmp_path / "results")
    assert not papers.render_report(papers.load_run(tmp_path, experiments), tmp_path).faults
    text = (tmp_path / "report.en.md").read_text(encoding="utf-8")
    assert "| `5.1@w3` | `vllm` | — |" in text.split("\n## ")[1]
    assert [outcome.faults for outcome in verify_run(tmp_path, experiments, remake=False) if outcome.faults] == []


def test_the_paper_is_not_taken_over_from_itself(sample, monkeypatch):
    planned(monkeypatch)
    with pytest.raises(PaperError, match="paper's folder itself"):
        papers.take_over(sample.folder, sample.folder, sample.experiments)


def test_every_claim_names_a_test_of_the_run_that_it_lies_beside():
    experiments = {experiment.plan_id: experiment for experiment in load_experiments()}
    for path in (ROOT / "paper").rglob("claims.yaml"):
        measured = {result.test_id for result in papers.load_run(path.parent, experiments).results}
        assert {claim.test_id for claim in load_claims(path)} <= measured, path


def test_the_committed_runs_can_be_read_with_the_experiments_of_this_version():
    experiments = {experiment.plan_id: experiment for experiment in load_experiments()}
    for folder in committed_runs():
        assert papers.load_run(folder, experiments).entries
