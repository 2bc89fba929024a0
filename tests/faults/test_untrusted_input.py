"""What comes from outside is data: no file runs code, no shell is asked, and no text becomes markup of a page."""

import ast
import copy
import gzip
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from tests.fuzz.test_files import chained
from tests.touchstone.report_sample import write_sample_run
from touchstone import trace
from touchstone.ledger import LEDGER_NAME, LedgerError, read_ledger
from touchstone.verify import custody

REPOSITORY = Path(__file__).parents[2]
FOLDERS = ("src", "quality", "bench", "tools")
SOURCES = [*(path for name in FOLDERS for path in sorted((REPOSITORY / name).rglob("*.py"))), REPOSITORY / "noxfile.py"]

# --- the source tree ------------------------------------------------------------------------------------------------

CODE_LOADERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "code", "runpy"}
SHELLS = {"system", "popen", "getoutput", "getstatusoutput", "create_subprocess_shell"}
OBJECT_COLLECTIVES = {"broadcast_object_list", "all_gather_object", "gather_object", "scatter_object_list"}
PROGRAMS = {"run", "Popen", "call", "check_call", "check_output"}


def dangers(tree):
    """Places where text could become code: pickles, shells, evaluated strings, code of a model folder."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"{node.lineno}: import {name}" for name in names if name.split(".")[0] in CODE_LOADERS)
        if isinstance(node, ast.Call):
            yield from (f"{node.lineno}: {danger}" for danger in dangers_of_call(node))


def dangers_of_call(call):
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if owner == "" and name in {"eval", "exec", "compile"}:
        yield f"{name}()"
    if (owner in {"os", "subprocess", "asyncio"} and name in SHELLS) or name in OBJECT_COLLECTIVES:
        yield f"{owner}.{name}()"
    if (owner, name) in {("torch", "load"), ("yaml", "load"), ("yaml", "unsafe_load"), ("np", "load")}:
        yield f"{owner}.{name}()"
    if not is_constant(given.get("shell"), {None, False}):
        yield "shell="
    if (
        owner == "subprocess"
        and name in PROGRAMS
        and call.args
        and isinstance(call.args[0], ast.Constant | ast.JoinedStr)
    ):
        yield "a command as one text"
    if name == "from_pretrained" and not is_constant(given.get("trust_remote_code"), {False}):
        yield "trust_remote_code is not refused"
    if name == "Environment" and "loader" in given and not is_constant(given.get("autoescape"), {True}):
        yield "templates without autoescape"


def is_constant(node, allowed):
    value = None if node is None else getattr(node, "value", ...)
    return value in allowed


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from marshal import loads",
        "import os\nos.system('ls')",
        "subprocess.run('ls', shell=True)",
        "subprocess.run(command, shell=flag)",
        "subprocess.run(f'ls {folder}')",
        "subprocess.check_output('ls')",
        "eval(text)",
        "torch.load(path)",
        "yaml.load(text, Loader=yaml.Loader)",
        "AutoTokenizer.from_pretrained(folder)",
        "AutoTokenizer.from_pretrained(folder, trust_remote_code=True)",
        "Environment(loader=loader)",
        "dist.broadcast_object_list(objects)",
    ],
)
def test_the_search_finds_what_it_looks_for(line):
    assert list(dangers(ast.parse(line)))


@pytest.mark.parametrize(
    "line",
    [
        "subprocess.run([program, folder], check=True)",
        "subprocess.run(command, shell=False)",
        "model.eval()",
        "re.compile(pattern)",
        "AutoTokenizer.from_pretrained(folder, trust_remote_code=False)",
        "Environment(loader=loader, autoescape=True)",
    ],
)
def test_the_search_lets_pass_what_is_harmless(line):
    assert list(dangers(ast.parse(line))) == []


def test_nothing_in_the_tree_unpickles_asks_a_shell_or_runs_code_of_a_model_folder():
    assert len(SOURCES) > 100
    found = {
        str(path.relative_to(REPOSITORY)): danger
        for path in SOURCES
        for danger in dangers(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == {}


# --- what is written is written whole -------------------------------------------------------------------------------

# The ledger takes its lines back by itself, a log is no result, and `clear_refs` is a switch of the kernel.
WRITERS = {"canonical.py", "ledger.py", "orchestrate.py", "nanoinfer.py"}


def writes(tree):
    """Calls that write to a file by its path, and would leave half of it behind."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        mode = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        opened = node.func.attr == "open" and any(re.fullmatch(r"[rbt]*[wax+][wax+bt]*", text) for text in mode)
        if node.func.attr in {"write_text", "write_bytes"} or opened:
            yield node.lineno


def test_the_instrument_writes_files_whole_or_not_at_all():
    found = {path.name for path in SOURCES if "touchstone" in path.parts if list(writes(ast.parse(path.read_text())))}
    assert found <= WRITERS
    assert "canonical.py" in found


# --- the page -------------------------------------------------------------------------------------------------------

EVIL = (
    '"><script>alert(1)</script> <img src=x onerror=alert(2)> [a](javascript:alert(3)) ![b](http://evil/c.png) '
    "</summary><svg onload=alert(4)> <details ontoggle=alert(5)> $`\\href{javascript:alert(6)}{d}`$ {{ 7*7 }} | `e` &lt"
)


class Page(HTMLParser):
    """Collects what could act: scripts, handlers, and references that lead out of the page."""

    def __init__(self):
        super().__init__()
        self.scripts, self.acts, self.leads = 0, [], []

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        if tag in {"iframe", "object", "embed", "form", "base", "link", "img"}:
            self.acts.append(tag)
        for name, value in attrs:
            if name.startswith("on"):
                self.acts.append(name)
            if name in {"href", "src", "xlink:href", "action"} and not (value or "").startswith("#"):
                self.leads.append(value)


def test_text_from_outside_becomes_no_markup_of_the_page(phased, fault_at, monkeypatch, tmp_path):
    fault_at("build", "raise")
    monkeypatch.setenv("MESSAGE", EVIL)
    directory = tmp_path / "run"
    phased.measure(phased.make_run(directory, cpu_model=EVIL))
    assert EVIL in phased.attempts(directory)[0].reason
    phased.report(directory)
    page = Page()
    page.feed((directory / "report.html").read_text(encoding="utf-8"))
    assert (page.scripts, page.acts, page.leads) == (1, [], [])
    for language in ("en", "zh"):
        text = (directory / f"report.{language}.md").read_text(encoding="utf-8")
        page = Page()
        page.feed(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))
        assert page.scripts == 0
        assert set(page.acts) <= {"img"}  # the report's own figures
        assert all(lead.startswith(("figures/", "report.")) for lead in page.leads)
        assert "{{ 7*7 }}" in text


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    """The lines of a good run's ledger."""
    folder = tmp_path_factory.mktemp("sample")
    write_sample_run(folder)
    return [json.loads(line) for line in (folder / LEDGER_NAME).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "a" * 64 + "/../x", "", "A" * 64])
def test_a_ledger_of_a_stranger_cannot_name_a_file_outside_its_folder(entries, tmp_path, name):
    entries = copy.deepcopy(entries)
    attempt = next(entry["body"] for entry in entries if entry["kind"] == "attempt" and entry["body"]["measurements"])
    attempt["measurements"][0]["trace_sha256"] = name
    (tmp_path / LEDGER_NAME).write_bytes(chained(entries))
    with pytest.raises(LedgerError, match=r"attempt, measurements\.0\.trace_sha256: String should match pattern"):
        read_ledger(tmp_path / LEDGER_NAME)
    evidence = custody.Evidence(tmp_path)
    assert custody.read_chain(evidence) == ()
    assert ["trace_sha256" in str(fault) for fault in custody.check_schemas(evidence)] == [True]


def test_a_trace_that_unpacks_to_more_than_any_run_holds_is_refused_before_it_fills_the_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(trace, "MAX_TRACE_BYTES", 1 << 16)
    monkeypatch.setattr(custody, "_MAX_TRACE_BYTES", 1 << 16)
    bomb = gzip.compress(bytes(1 << 24), mtime=0)
    path = trace.trace_path(tmp_path, "0" * 64)
    path.parent.mkdir()
    path.write_bytes(bomb)
    with pytest.raises(trace.TraceError, match="holds more than 65,536 bytes"):
        trace.load_trace(tmp_path, "0" * 64)
    attempt = {"measurements": [{"trace_sha256": "0" * 64}], "repeated": None}
    (fault,) = custody.read_traces(custody.Evidence(tmp_path, [custody.LedgerLine(1, "attempt", attempt, attempt, "")]))
    assert "holds over 65,536 bytes" in fault.detail
