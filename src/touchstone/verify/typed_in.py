"""Numbers that a template states by itself, where only a ledger may give one."""

from __future__ import annotations

from touchstone.reporting.lint import template_digit_faults
from touchstone.reporting.markdown import GLOSSARY_FILE, TEMPLATES, Glossary, markdown_environment
from touchstone.verify.outcome import Fault


def typed_in_numbers() -> tuple[Fault, ...]:
    """Name every digit in the templates that is none of a formula or a name."""
    environment = markdown_environment("en", Glossary.load(TEMPLATES / GLOSSARY_FILE))
    return tuple(
        Fault(f"templates/{name}", fault)
        for name in environment.list_templates(extensions=["j2"])
        for fault in template_digit_faults(environment, (TEMPLATES / name).read_text(encoding="utf-8"))
    )
