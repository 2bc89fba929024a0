"""What a prefix cache must find, by pairwise common prefixes of the prompts: no chain of blocks, no index.

The results walk a trie of blocks in the order of admission. Here the length of the common beginning of every pair of
prompts is counted token by token, and whole blocks are taken from the longest one.
"""

from __future__ import annotations

from decimal import Decimal
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from touchstone.records import WorkloadSpec
from touchstone.workload import build

Json: TypeAlias = "dict[str, Any]"
Integers: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"


@lru_cache(maxsize=32)  # the pairs of all blocks of a test, whose metrics and checks ask for them one after the other
def _prompts(workload: str, vocabulary: int, seed: int) -> Integers:
    """Draw the prompts again, a row each; every row ends in a number below zero, which no other row holds."""
    requests = build(WorkloadSpec.model_validate_json(workload), vocabulary, seed)
    longest = max(len(request.prompt_token_ids) for request in requests) + 1
    rows = np.arange(-1, -1 - len(requests), -1, dtype=np.int64)[:, None].repeat(longest, axis=1)
    for row, request in zip(rows, requests, strict=True):
        row[: len(request.prompt_token_ids)] = request.prompt_token_ids
    return rows


def predicted_tokens(
    workload: str, vocabulary: int, seed: int, *, begins: Integers, arrivals: Integers, lengths: Integers, size: int
) -> int:
    """Add up what each request finds: whole blocks of its longest common beginning with any admitted before it."""
    prompts = _prompts(workload, vocabulary, seed)
    order = np.lexsort((np.arange(len(prompts)), arrivals, begins))
    admitted, total = prompts[order], 0
    for place, index in enumerate(order[1:], start=1):
        differ = admitted[:place] != admitted[place]  # somewhere they do: each row ends in a number of its own
        total += min(int(differ.argmax(axis=1).max()), int(lengths[index]) - 1) // size * size
    return total


def most_tokens(workload: Json, lengths: Integers, size: int) -> tuple[int, int]:
    """Whole blocks of the common prefix over the requests that share most, in tokens: their sum and the largest."""
    share = Decimal(str(workload["prefix_fraction"]))
    count = Decimal(str(workload["shared_fraction"])) * workload["num_requests"]
    each = sorted(min(int(share * int(length)), int(length) - 1) // size * size for length in lengths)
    chosen = each[max(len(each) - int(count), 0) :]
    return sum(chosen), max(chosen, default=0)
