"""What the documents say can be done, can be done: commands, links, and the mirrored pair of readmes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("README.md", "README.zh.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def code_blocks(name: str) -> list[str]:
    return re.findall(r"```sh\n(.*?)```", text_of(name), flags=re.DOTALL)


def commands(name: str) -> list[str]:
    """Shell commands of a document without their comments, which may differ by language."""
    lines = [line.split("#")[0].strip() for block in code_blocks(name) for line in block.splitlines()]
    return [line for line in lines if line]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", text_of("Makefile"), flags=re.MULTILINE))


def nox_sessions() -> set[str]:
    return set(re.findall(r"^@nox\.session\ndef ([a-z]+)\(", text_of("noxfile.py"), flags=re.MULTILINE))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_make_target_in_a_document_exists(name: str) -> None:
    inline = re.findall(r"`(?:[A-Z]+=\S+ )?make ([a-z]+)", text_of(name))
    in_blocks = [line.split()[1] for line in commands(name) if line.startswith("make ")]
    assert set(inline + in_blocks) <= make_targets()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_nox_session_in_a_document_exists(name: str) -> None:
    assert set(re.findall(r"nox -s ([a-z]+)", text_of(name))) <= nox_sessions()


def test_every_alias_of_make_calls_a_session_that_exists() -> None:
    called = " ".join(re.findall(r"^\t\$\(SESSION\) ([a-z ]+)", text_of("Makefile"), flags=re.MULTILINE)).split()
    assert set(called) == nox_sessions()


def test_every_alias_of_make_explains_itself() -> None:
    assert set(re.findall(r"^([a-z]+):.*## \S", text_of("Makefile"), flags=re.MULTILINE)) == make_targets()


def test_check_of_the_repository_runs_the_test_command_of_the_readme() -> None:
    assert "make test" in commands("README.md")
    assert "exec make test" in text_of(".ci/run")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_local_link_leads_somewhere(name: str) -> None:
    links = re.findall(r"\]\(([^)#]+)", text_of(name))
    assert not [link for link in links if "://" not in link and not (ROOT / link).exists()]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_source_path_in_a_document_exists(name: str) -> None:
    paths = re.findall(r"`((?:src|bench|quality|templates|tools|tests)/[\w./]*)`", text_of(name))
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_readmes_are_a_mirrored_pair() -> None:
    english, chinese = text_of("README.md"), text_of("README.zh.md")
    assert commands("README.md") == commands("README.zh.md")
    for pattern in (r"^(#+) ", r"^(\|) ", r"^(- )"):
        assert re.findall(pattern, english, re.MULTILINE) == re.findall(pattern, chinese, re.MULTILINE)
    english, chinese = (re.sub(r"/report\.(en|zh)\.md\)", "/report)", text) for text in (english, chinese))
    links = [
        sorted(set(re.findall(r"\]\(([^)]+)\)", text)) - {"README.md", "README.zh.md"}) for text in (english, chinese)
    ]
    assert links[0] == links[1]


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_readme_carries_no_measured_number(name: str) -> None:
    own = re.sub(r"<!-- quoted: (?!end).*?<!-- quoted: end -->", "", text_of(name), flags=re.DOTALL)
    unit = r"(tok(en)?s?/s|ms\b|秒|seconds?\b|GB\b|GiB\b|倍|×|x\b faster|TFLOP)"
    assert not re.findall(rf"\d[\d,.]*\s*{unit}", own)
