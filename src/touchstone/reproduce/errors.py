"""What a comparison of runs can refuse; a module of its own, so that the command line need not load the arithmetic."""

from __future__ import annotations


class ClaimsError(ValueError):
    """A list of claims that cannot be used; the message names file, claim and remedy."""


class ComparisonError(ValueError):
    """Runs that cannot be held against each other; the message names what stands in the way and the remedy."""
