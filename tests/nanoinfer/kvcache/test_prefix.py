from __future__ import annotations

from array import array

import pytest

from nanoinfer.kvcache.blocks import InvariantError
from nanoinfer.kvcache.prefix import DIGEST_BYTES, PrefixIndex, extend_chain, lazy_chain


def chain_of(token_ids, block_size):
    digests = []
    extend_chain(digests, token_ids, block_size, len(token_ids) // block_size)
    return digests


def test_chain_has_one_digest_for_each_full_block():
    digests = chain_of(list(range(11)), block_size=4)
    assert [len(digest) for digest in digests] == [DIGEST_BYTES, DIGEST_BYTES]


def test_chain_extended_in_parts_equals_the_chain_made_at_once():
    token_ids = list(range(40))
    digests = []
    for num_blocks in (0, 1, 4, 4, 10):
        extend_chain(digests, token_ids, 4, num_blocks)
    assert digests == chain_of(token_ids, 4)


def test_equal_blocks_after_different_beginnings_have_different_digests():
    one, other = chain_of([1, 2, 5, 6], 2), chain_of([3, 4, 5, 6], 2)
    repeated = chain_of([5, 6, 5, 6], 2)
    assert one[1] != other[1]
    assert repeated[0] != repeated[1]


def test_order_of_tokens_changes_the_digest():
    assert chain_of([1, 2], 2) != chain_of([2, 1], 2)


def test_large_token_ids_are_told_apart():
    assert chain_of([256, 0], 2) != chain_of([1, 0], 2)


def test_token_ids_may_be_any_sequence_of_integers():
    assert chain_of(array("q", range(12)), 4) == chain_of(list(range(12)), 4) == chain_of(range(12), 4)


def test_lazy_chain_makes_the_first_digest_alone_and_the_others_together():
    token_ids, digests = list(range(20)), []
    lazy = lazy_chain(digests, token_ids, 4, 0, 4)
    assert len(digests) == 0
    assert [len(digests) for _ in lazy] == [1, 4, 4, 4]


@pytest.mark.parametrize("begin", range(6))
@pytest.mark.parametrize("num_known", range(6))
def test_lazy_chain_is_a_part_of_the_chain_whatever_of_it_is_known(begin, num_known):
    chain = chain_of(list(range(20)), 4)
    for end in range(begin, 6):
        digests = chain[:num_known]
        assert list(lazy_chain(digests, list(range(20)), 4, begin, end)) == chain[begin:end]
        assert digests == chain[: max(num_known, end)]


def test_two_lazy_chains_of_one_request_do_not_disturb_each_other():
    token_ids, digests = list(range(24)), []
    one, other = (lazy_chain(digests, token_ids, 4, begin, begin + 3) for begin in (0, 3))
    pairs = list(zip(one, other, strict=True))
    assert digests == chain_of(token_ids, 4) == [pair[0] for pair in pairs] + [pair[1] for pair in pairs]


def test_longest_known_beginning_is_found():
    digests, index = chain_of(list(range(12)), 4), PrefixIndex()
    index.publish([digests[0]], [7])
    index.publish([digests[2]], [9])
    assert index.find(digests) == [7]
    index.publish([digests[1]], [8])
    assert index.find(digests) == [7, 8, 9]
    assert index.find(chain_of([5, 6, 7, 8], 4)) == []


def test_digests_after_the_first_are_asked_for_when_the_first_is_found():
    digests, index = chain_of(list(range(12)), 4), PrefixIndex()
    published = iter(digests)
    index.publish(published, [7, 8, 9])
    assert index.find(chain_of([5, 6, 7, 8], 4)) == []
    assert published.__length_hint__() == 2
    assert index.find(digests) == [7, 8, 9]
    assert published.__length_hint__() == 0


def test_catching_up_asks_for_every_digest_once():
    digests, index = chain_of(list(range(24)), 4), PrefixIndex()
    for begin in (0, 3):
        index.publish(iter(digests[begin : begin + 3]), [begin, begin + 1, begin + 2])
    index.catch_up()
    index.catch_up()
    assert index.find(digests) == [0, 1, 2, 3, 4, 5]
    index.check_invariants()


def test_of_two_blocks_that_wait_with_one_content_the_first_published_is_found():
    digests, index = chain_of(list(range(8)), 4), PrefixIndex()
    index.publish(digests, [1, 2])
    index.publish(digests, [3, 4])
    assert index.find(digests) == [1, 2]
    assert index.retire([3, 4]) == [3, 4]


def test_first_block_with_a_content_stays_the_findable_one():
    digests, index = chain_of([1, 2], 2), PrefixIndex()
    index.publish([digests[0]], [3])
    index.publish([digests[0]], [4])
    assert index.find(digests) == [3]
    assert index.retire([3, 4]) == [4]
    index.check_invariants()


def test_blocks_are_evicted_in_the_order_in_which_they_became_idle():
    index = PrefixIndex()
    for block in (1, 2, 3):
        index.publish([bytes([block])], [block])
    assert index.retire([2, 3]) + index.retire([1]) == []
    index.revive(3)
    index.retire([3])
    assert list(index.idle) == [2, 1, 3]
    assert index.evict(2) + index.evict(1) == [2, 1, 3]
    assert index.num_idle == 0


def test_evicted_block_is_not_found_again():
    digests, index = chain_of([1, 2], 2), PrefixIndex()
    index.publish([digests[0]], [5])
    index.retire([5])
    index.evict(1)
    assert index.find(digests) == []
    assert index.retire([5]) == [5]
    index.check_invariants()


def test_clear_returns_the_idle_blocks_and_forgets_all():
    digests, index = chain_of([1, 2, 3, 4], 2), PrefixIndex()
    index.publish([digests[0]], [5])
    index.publish([digests[1]], [6])
    index.retire([6])
    assert index.clear() == [6]
    assert index.find(digests) == []
    assert index.num_idle == 0
    index.check_invariants()


def test_check_finds_an_idle_block_that_cannot_be_found():
    index = PrefixIndex()
    index._idle[2] = None
    with pytest.raises(InvariantError, match="cannot be found waits for eviction"):
        index.check_invariants()


def test_check_finds_a_block_under_two_digests():
    index = PrefixIndex()
    index.publish([b"a"], [1])
    index.publish([b"b"], [1])
    with pytest.raises(InvariantError, match="two digests"):
        index.check_invariants()


def test_check_finds_two_directions_that_disagree():
    index = PrefixIndex()
    index.publish([b"a"], [1])
    index._digest_by_block[1] = b"b"
    with pytest.raises(InvariantError, match="disagree"):
        index.check_invariants()
