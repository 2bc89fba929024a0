from __future__ import annotations

import pytest

from nanoinfer.kvcache.blocks import InvariantError
from nanoinfer.kvcache.cache import KVCache, PrefixStatistics
from nanoinfer.kvcache.prefix import extend_chain

BLOCK_SIZE = 4


def chain_of(token_ids):
    digests = []
    extend_chain(digests, token_ids, BLOCK_SIZE, len(token_ids) // BLOCK_SIZE)
    return digests


def computed(cache, token_ids):
    """Reserve blocks for the tokens and publish the full ones."""
    digests = chain_of(token_ids)
    reservation = cache.reserve(digests, len(token_ids))
    cache.publish(digests, reservation.block_table[: len(digests)])
    return reservation.block_table


def test_number_of_blocks_is_rounded_up():
    cache = KVCache(4, BLOCK_SIZE, prefix_cache=True)
    assert [cache.blocks_for(n) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]


def test_second_request_shares_the_full_blocks_of_the_first():
    cache = KVCache(8, BLOCK_SIZE, prefix_cache=True)
    first = computed(cache, list(range(10)))
    reservation = cache.reserve(chain_of(list(range(8))), 11)
    assert reservation.num_hit_blocks == 2
    assert reservation.block_table[:2] == first[:2]
    assert reservation.block_table[2] != first[2]
    assert cache.num_used == 4
    cache.check_invariants([first, reservation.block_table])


def test_released_prefix_is_found_again():
    cache = KVCache(8, BLOCK_SIZE, prefix_cache=True)
    first = computed(cache, list(range(8)))
    cache.release(first)
    assert cache.num_used == 0
    again = cache.reserve(chain_of(list(range(8))), 9)
    assert again.block_table[:2] == first
    cache.check_invariants([again.block_table])


def test_switched_off_prefix_cache_finds_and_counts_nothing():
    cache = KVCache(8, BLOCK_SIZE, prefix_cache=False)
    computed(cache, list(range(8)))
    assert cache.lookup(chain_of(list(range(8)))) == []
    assert cache.statistics == PrefixStatistics(0, 0)


def test_switched_off_prefix_cache_asks_for_no_digest():
    cache = KVCache(8, BLOCK_SIZE, prefix_cache=False)
    digests = iter([b"a", b"b"])
    table = cache.reserve(digests, 8).block_table
    cache.publish(digests, table)
    cache.catch_up()
    assert list(digests) == [b"a", b"b"]


def test_request_that_finds_nothing_asks_for_its_first_digest_only():
    cache = KVCache(8, BLOCK_SIZE, prefix_cache=True)
    digests = iter(chain_of(list(range(8))))
    assert cache.reserve(digests, 9).num_hit_blocks == 0
    assert len(list(digests)) == 1


def test_released_prefix_is_found_though_nobody_asked_for_all_of_its_digests_before():
    cache = KVCache(8, BLOCK_SIZE, prefix_cache=True)
    digests = chain_of(list(range(12)))
    table = cache.reserve([], 12).block_table
    cache.publish(iter(digests), table)
    cache.release(table)
    assert cache.num_used == 0
    assert cache.lookup(digests) == table
    cache.check_invariants([])


def test_content_published_before_a_reset_is_not_found_after_it():
    cache = KVCache(8, BLOCK_SIZE, prefix_cache=True)
    table = computed(cache, list(range(12)))
    cache.reset_prefix_cache()
    cache.catch_up()
    assert cache.lookup(chain_of(list(range(12)))) == []
    cache.release(table)
    assert cache.num_free == 8
    cache.check_invariants([])


def test_lookup_changes_nothing():
    cache = KVCache(8, BLOCK_SIZE, prefix_cache=True)
    table = computed(cache, list(range(8)))
    before = cache.statistics
    assert cache.lookup(chain_of(list(range(8)))) == table
    assert cache.statistics == before
    cache.check_invariants([table])


def test_last_block_of_a_released_chain_is_evicted_before_its_parents():
    cache = KVCache(3, BLOCK_SIZE, prefix_cache=True)
    digests = chain_of(list(range(12)))
    cache.release(computed(cache, list(range(12))))
    cache.reserve([], 1)
    assert len(cache.lookup(digests)) == 2
    cache.reserve([], 1)
    assert len(cache.lookup(digests)) == 1


def test_prefix_unused_longest_is_evicted_first():
    cache = KVCache(3, BLOCK_SIZE, prefix_cache=True)
    prompts = [[k] * 4 for k in range(3)]
    tables = [computed(cache, prompt) for prompt in prompts]
    for k in (1, 0, 2):
        cache.release(tables[k])
    cache.release(cache.reserve(chain_of(prompts[1]), 4).block_table)
    cache.reserve([], 1)
    assert [bool(cache.lookup(chain_of(prompt))) for prompt in prompts] == [False, True, True]


def test_free_blocks_are_taken_before_anything_is_evicted():
    cache = KVCache(3, BLOCK_SIZE, prefix_cache=True)
    digests = chain_of(list(range(8)))
    cache.release(computed(cache, list(range(8))))
    cache.reserve([], 1)
    assert len(cache.lookup(digests)) == 2


def test_reservation_that_does_not_fit_changes_nothing():
    cache = KVCache(3, BLOCK_SIZE, prefix_cache=True)
    table = computed(cache, list(range(8)))
    before = cache.statistics
    assert cache.reserve([], 8) is None
    assert cache.statistics == before
    assert cache.num_free == 1
    cache.check_invariants([table])


def test_idle_hits_are_not_counted_as_room_for_fresh_blocks():
    cache = KVCache(3, BLOCK_SIZE, prefix_cache=True)
    cache.release(computed(cache, list(range(8))))
    assert cache.reserve(chain_of(list(range(8))), 16) is None
    assert cache.reserve(chain_of(list(range(8))), 12).num_hit_blocks == 2


def test_headroom_remains_free():
    cache = KVCache(4, BLOCK_SIZE, prefix_cache=True)
    assert cache.reserve([], 12, headroom=2) is None
    assert cache.reserve([], 8, headroom=2) is not None
    assert cache.num_free == 2


def test_append_lengthens_the_table_by_a_fresh_block():
    cache = KVCache(2, BLOCK_SIZE, prefix_cache=True)
    table = cache.reserve([], 4).block_table
    block = cache.append(table)
    assert table[-1] == block
    assert cache.num_free == 0
    cache.check_invariants([table])


def test_reset_forgets_contents_but_leaves_blocks_to_their_users():
    cache = KVCache(4, BLOCK_SIZE, prefix_cache=True)
    released, held = computed(cache, [1] * 4), computed(cache, [2] * 4)
    cache.release(released)
    cache.reset_prefix_cache()
    assert cache.lookup(chain_of([1] * 4)) == cache.lookup(chain_of([2] * 4)) == []
    assert cache.num_used == 1
    cache.check_invariants([held])
    cache.release(held)
    cache.check_invariants([])


def test_peak_is_the_largest_use_since_its_reset():
    cache = KVCache(8, BLOCK_SIZE, prefix_cache=True)
    table = cache.reserve([], 20).block_table
    cache.release(table)
    assert cache.peak_used == 5
    cache.reset_peak_used()
    assert cache.peak_used == 0
    table = cache.reserve([], 4).block_table
    cache.append(table)
    assert cache.peak_used == 2
    cache.reset_peak_used()
    assert cache.peak_used == 2, "what is in use counts from the start"


def test_queried_and_hit_tokens_are_counted():
    cache = KVCache(8, BLOCK_SIZE, prefix_cache=True)
    computed(cache, list(range(10)))
    computed(cache, list(range(10)))
    assert cache.statistics == PrefixStatistics(num_queried_tokens=20, num_hit_tokens=8)


def test_block_without_tokens_is_refused():
    with pytest.raises(ValueError, match="block_size is 0"):
        KVCache(8, 0, prefix_cache=True)


def test_check_finds_a_table_that_nobody_knows():
    cache = KVCache(8, BLOCK_SIZE, prefix_cache=True)
    cache.reserve([], 8)
    with pytest.raises(InvariantError, match="0 tables hold it"):
        cache.check_invariants([])


def test_check_finds_a_block_given_up_before_it_was_entered():
    cache = KVCache(8, BLOCK_SIZE, prefix_cache=True)
    table = computed(cache, list(range(8)))
    cache._pool.free(cache._pool.drop(table))
    with pytest.raises(InvariantError, match="waits to be entered, but nobody uses it"):
        cache.check_invariants([])
