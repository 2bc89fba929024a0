"""Templates compiled once for all tests of a process: jinja takes longer to compile a report's than to fill them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from jinja2 import BytecodeCache, Environment

if TYPE_CHECKING:
    from jinja2.bccache import Bucket


class _Compiled(BytecodeCache):
    """What a template was compiled to, for as long as its text and the words that are folded into it are the same."""

    def __init__(self):
        self._codes = {}

    def load_bytecode(self, bucket: Bucket):
        bucket.code = self._codes.get(_key(bucket))

    def dump_bytecode(self, bucket: Bucket):
        self._codes[_key(bucket)] = bucket.code


def _key(bucket: Bucket):
    printer = bucket.environment.finalize
    return bucket.key, bucket.checksum, printer._language, repr(printer._glossary)


CompilingOnce = partial(Environment, bytecode_cache=_Compiled())
