"""Templates to Markdown: the Jinja environment of one language, its glossary, and what may be printed how.

Jinja's autoescape is on, but every printed value passes `_Printer` first, which returns it as finished Markdown. So the
rule is the one of HTML templates, for Markdown: text from outside (a processor's name, a reason, a path) cannot break
a table or begin a formula, and HTML entities never appear.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Undefined
from markupsafe import Markup

from touchstone.experiment import Bilingual
from touchstone.reporting.errors import ReportError
from touchstone.reporting.formatting import exact
from touchstone.reporting.values import Amount, Code, Term, Verbatim

if TYPE_CHECKING:
    from collections.abc import Mapping

Language: TypeAlias = Literal["zh", "en"]
LANGUAGES: tuple[Language, ...] = ("zh", "en")
TEMPLATES = Path(__file__).resolve().parents[3] / "templates"
GLOSSARY_FILE = "terms.toml"

_MARKDOWN_SPECIAL = re.compile(r"([\\`*_<|$]|\](?=[(\[])|~(?=~))")
_QUOTED = re.compile(r"`([^`]+)`")
_IDENTIFIER = re.compile(r"((?<![A-Za-z0-9_.])[A-Za-z][A-Za-z0-9.]*_[A-Za-z0-9_.]*[A-Za-z0-9_])")
_BLANK_LINES = re.compile(r"\n{3,}")
_SPACES_AT_END = re.compile(r"[ \t]+$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Glossary:
    """Every word that the report says by itself, in both languages; the sections of `terms.toml`."""

    terms: Mapping[str, Mapping[Language, str]]
    verdicts: Mapping[str, Mapping[str, str]]
    effects: Mapping[str, Mapping[str, str]]
    units: Mapping[str, Mapping[Language, str]]
    checklist: Mapping[str, Mapping[Language, str]]
    claims: Mapping[str, Mapping[str, str]]

    @classmethod
    def load(cls, path: Path) -> Glossary:
        """Read the glossary; ReportError if the file is missing or damaged, or a section is not there."""
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ReportError(f"{path} does not exist; the report is made from a clone of the repository") from None
        except (ValueError, RecursionError) as error:
            raise ReportError(f"{path} is no TOML ({error}); restore it from the repository") from None
        sections = ("terms", "verdicts", "effects", "units", "checklist", "claims")
        for name in sections:
            if name not in content:
                raise ReportError(f"{path} lacks the section [{name}]")
            if not _is_table_of_texts(content[name]):
                raise ReportError(f"{path}: section [{name}] must hold names with a text for each language")
        return cls(*(content[name] for name in sections))

    def term(self, key: str, language: Language) -> str:
        """Translate a term; ReportError names one that the glossary lacks."""
        return _look_up(self.terms, key, language, "terms")

    def unit(self, key: str, language: Language) -> str:
        """Translate a unit; ReportError names one that the glossary lacks."""
        return _look_up(self.units, key, language, "units") if key else ""


def _is_table_of_texts(section: object) -> bool:
    """Tell whether a section maps names to tables of texts."""
    if not isinstance(section, dict):
        return False
    return all(
        isinstance(texts, dict) and all(isinstance(text, str) for text in texts.values()) for texts in section.values()
    )


def _look_up(section: Mapping[str, Mapping[Language, str]], key: str, language: Language, name: str) -> str:
    try:
        return section[key][language]
    except KeyError:
        raise ReportError(f"{GLOSSARY_FILE} has no {language} entry for {key!r} in [{name}]") from None


class _Printer:
    """Turns a printable value into Markdown of one language; refuses what has no decided form."""

    def __init__(self, glossary: Glossary, language: Language) -> None:
        self._glossary = glossary
        self._language: Language = language

    def __call__(self, value: object) -> Markup:
        if isinstance(value, Undefined):
            value._fail_with_undefined_error()  # noqa: SLF001  StrictUndefined's own way to raise with the name
        if isinstance(value, Markup):
            return value
        if isinstance(value, Verbatim):
            return Markup(value.zh if self._language == "zh" else value.en)  # noqa: S704  a report's own lines
        return Markup(self._text(value))  # noqa: S704  this is where text becomes Markdown; nothing here is HTML

    def _text(self, value: object) -> str:
        match value:
            case Amount(text, unit):
                shown = self._glossary.unit(unit, self._language)
                return escape_markdown(f"{text} {shown}".strip())
            case Term(key):
                return escape_markdown(self._glossary.term(key, self._language))
            case Code(text):
                return code_span(text)
            case Bilingual():
                return prose(value.zh if self._language == "zh" else value.en)
            case str():
                return escape_markdown(value)
            case int() if not isinstance(value, bool):
                return exact(value)
        raise ReportError(f"a template prints {value!r} ({type(value).__name__}); decide its digits or words before")


def escape_markdown(text: str) -> str:
    """Escape what Markdown, its tables or mathematics would take as markup; line breaks become spaces."""
    return _MARKDOWN_SPECIAL.sub(r"\\\1", " ".join(text.split("\n")))


def prose(text: str) -> str:
    """Escape a sentence; what stands between backticks is code, and so are identifiers: words with an underscore."""
    pieces = _QUOTED.split(text.strip())
    return "".join(code_span(piece) if index % 2 else _unquoted(piece) for index, piece in enumerate(pieces))


def _unquoted(text: str) -> str:
    pieces = _IDENTIFIER.split(text)
    return "".join(code_span(piece) if index % 2 else escape_markdown(piece) for index, piece in enumerate(pieces))


def code_span(text: str) -> str:
    r"""Show text verbatim; a pipe is written `\|`, which a table needs, a backtick and a line break are replaced."""
    plain = " ".join(text.split()).replace("`", "'").replace("|", "\\|")
    return f"`{plain}`" if plain else "—"


def markdown_environment(language: Language, glossary: Glossary, templates: Path = TEMPLATES) -> Environment:
    """Make the Jinja environment of one language: strict about names and about what may be printed."""
    printer = _Printer(glossary, language)
    environment = Environment(
        loader=FileSystemLoader(templates),
        undefined=StrictUndefined,
        autoescape=True,
        finalize=printer,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.update(
        t={key: Markup(escape_markdown(term[language])) for key, term in glossary.terms.items()},  # noqa: S704  as above
        language=language,
    )
    environment.filters.update(
        code=lambda text: Markup(code_span(str(text))),  # noqa: S704  as above
        first_upper=lambda value: _first_upper(printer(value)),
        path=lambda name: Markup(str(name)),  # noqa: S704  names that the report itself gives
        math=lambda formula: Markup(f"```math\n{formula}\n```"),  # noqa: S704  as above
        verdict=lambda key: _word({**glossary.effects, **glossary.verdicts}, key, language, "verdicts] or [effects"),
        claim_verdict=lambda key: _word(glossary.claims, key, language, "claims"),
        checklist=lambda key: _word(glossary.checklist, key, language, "checklist"),
    )
    return environment


def _first_upper(markdown: Markup) -> Markup:
    """Begin a heading or a paragraph with a capital letter; Chinese has none."""
    return Markup(f"{str(markdown)[:1].upper()}{str(markdown)[1:]}")  # noqa: S704  as above


def _word(section: Mapping[str, Mapping[Any, str]], key: str, language: Language, name: str) -> Markup:
    return Markup(escape_markdown(_look_up(section, key, language, name)))  # noqa: S704  as above


def render(environment: Environment, template: str, context: Mapping[str, object]) -> str:
    """Render a template; ReportError names the template and the undefined variable."""
    try:
        text = environment.get_template(template).render(context)
    except Exception as error:
        if isinstance(error, ReportError):
            raise
        raise ReportError(f"{template}: {type(error).__name__}: {error}") from error
    return tidy(text)


def tidy(markdown: str) -> str:
    """Drop blanks at line ends and more than one blank line in a row; end with one line end."""
    return _BLANK_LINES.sub("\n\n", _SPACES_AT_END.sub("", markdown)).strip("\n") + "\n"
