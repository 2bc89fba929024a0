"""Scheduler and cache under any order of operations: thousands of steps always, a hundred thousand by hand."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from nanoinfer.kvcache.cache import KVCache
from nanoinfer.kvcache.prefix import extend_chain
from tests.fuzz.tally import TRIED
from tests.nanoinfer.scheduling.test_simulated_schedules import AnySchedule

LONG_STEPS = 100_000


class CountedSchedule(AnySchedule):
    """The scheduler with its simulated engine, step by step."""

    @invariant()
    def count(self):
        TRIED["scheduler, steps"] += 1


class CacheAlone(RuleBasedStateMachine):
    """The cache against a memory that knows what was written into each block last, and by whom."""

    @initialize(num_blocks=st.integers(1, 16), block_size=st.sampled_from([1, 2, 4]), prefix_cache=st.booleans())
    def build(self, **options):
        self.cache = KVCache(**options)
        self.memory = {}
        self.tables = []
        self.num_queried = 0

    def chain(self, family, num_blocks):
        """Digests of a prompt; prompts of one family share all of them, neighbours the first two."""
        size = self.cache.block_size
        tokens = [0] * (2 * size) + [family] * (16 * size)
        digests = []
        extend_chain(digests, tokens, size, num_blocks)
        return digests

    @rule(family=st.integers(0, 2), num_tokens=st.integers(1, 40), headroom=st.integers(0, 4))
    def reserve(self, family, num_tokens, headroom):
        digests = self.chain(family, (num_tokens - 1) // self.cache.block_size) if self.cache.prefix_cache else []
        free, used = self.cache.num_free, self.cache.num_used
        found = self.cache.lookup(digests)
        reservation = self.cache.reserve(digests, num_tokens, headroom=headroom)
        if reservation is None:
            assert (self.cache.num_free, self.cache.num_used) == (free, used)
            assert self.cache.blocks_for(num_tokens) - len(found) + headroom > free - len(found)
            return
        table, hits = reservation.block_table, reservation.num_hit_blocks
        assert table[:hits] == found
        assert [self.memory[block] for block in found] == digests[:hits]
        assert len(table) == self.cache.blocks_for(num_tokens)
        assert self.cache.num_free >= headroom
        in_use = {block for other, _ in self.tables for block in other}
        assert not in_use & set(table[hits:]), "a fresh block is somebody's"
        self.tables.append((table, family))
        self.write(len(self.tables) - 1, hits)

    def write(self, index, begin):
        """Compute what a table's blocks hold from `begin` on, and make them findable."""
        table, family = self.tables[index]
        digests = self.chain(family, len(table))
        self.memory |= dict(zip(table[begin:], digests[begin:], strict=True))
        self.cache.publish(digests[begin:], table[begin:])

    @precondition(lambda self: self.tables and self.cache.num_free)
    @rule(data=st.data())
    def append(self, data):
        index = data.draw(st.integers(0, len(self.tables) - 1))
        table, _ = self.tables[index]
        in_use = {block for other, _ in self.tables for block in other}
        assert self.cache.append(table) not in in_use
        self.write(index, len(table) - 1)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data):
        table, _ = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        self.cache.release(table)

    @rule()
    def catch_up(self):
        self.cache.catch_up()

    @rule()
    def forget(self):
        self.cache.reset_prefix_cache()
        assert not self.cache.lookup(self.chain(0, 3))

    @rule()
    def forget_peak(self):
        self.cache.reset_peak_used()
        assert self.cache.peak_used == self.cache.num_used

    @invariant()
    def holds_together(self):
        TRIED["cache, steps"] += 1
        if hasattr(self, "cache"):
            self.cache.check_invariants(table for table, _ in self.tables)

    def teardown(self):
        if hasattr(self, "cache"):
            for table, _ in self.tables:
                self.cache.release(table)
            assert self.cache.num_used == 0


MACHINES = {"scheduler, steps": CountedSchedule, "cache, steps": CacheAlone}
_CHECKS = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


def run(name, num_examples, num_steps):
    """Run a machine so often, with up to so many steps each, and return how many it took."""
    before = TRIED[name]
    chosen = settings(
        max_examples=num_examples,
        stateful_step_count=num_steps,
        derandomize=True,
        database=None,
        suppress_health_check=_CHECKS,
    )
    run_state_machine_as_test(MACHINES[name], settings=chosen)
    return TRIED[name] - before


@pytest.mark.no_cover  # what it steps through has tests of its own, which count the lines
@pytest.mark.parametrize("name", MACHINES)
def test_a_thousand_steps_in_any_order_keep_every_invariant(name):
    assert run(name, 40, 50) >= 1_000


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", MACHINES)
def test_a_hundred_thousand_steps_in_any_order_keep_every_invariant(name):
    assert run(name, 2 * LONG_STEPS // 100, 100) >= LONG_STEPS
