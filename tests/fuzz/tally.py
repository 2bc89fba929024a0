"""How often each fuzzed thing was tried; printed at the end of a test session."""

from collections import Counter

TRIED = Counter()
