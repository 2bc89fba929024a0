from __future__ import annotations

import pytest

from nanoinfer.kvcache.blocks import BlockPool, InvariantError


def test_every_block_is_handed_out_once():
    pool = BlockPool(5)
    assert sorted(pool.take(2) + pool.take(0) + pool.take(3)) == [0, 1, 2, 3, 4]
    assert pool.num_free == 0


def test_shared_block_is_given_up_by_its_last_user_only():
    pool = BlockPool(1)
    (block,) = pool.take(1)
    pool.share(block)
    assert pool.drop([block]) == []
    assert pool.is_referenced(block)
    assert pool.drop([block]) == [block]
    assert not pool.is_referenced(block)


def test_given_up_block_is_free_only_when_it_is_put_back():
    pool = BlockPool(1)
    (block,) = pool.take(1)
    pool.drop([block])
    assert pool.num_free == 0
    pool.check_invariants([], kept=[block])
    pool.free([block])
    assert pool.num_free == 1
    pool.check_invariants([], kept=[])


def test_given_up_block_can_be_used_again_without_being_free_in_between():
    pool = BlockPool(2)
    blocks = pool.take(2)
    pool.drop(blocks)
    pool.reuse(blocks)
    assert pool.num_free == 0
    pool.check_invariants([blocks], kept=[])


def test_block_released_too_often_is_a_defect():
    pool = BlockPool(2)
    (block,) = pool.take(1)
    pool.drop([block])
    with pytest.raises(InvariantError, match=f"block {block} is released more often"):
        pool.drop([block])


def test_pool_without_blocks_is_refused():
    with pytest.raises(ValueError, match="0 blocks; it needs at least 1"):
        BlockPool(0)


def test_check_finds_a_lost_block():
    pool = BlockPool(2)
    pool.drop(pool.take(1))
    with pytest.raises(InvariantError, match="lost"):
        pool.check_invariants([], kept=[])


def test_check_finds_a_table_that_holds_a_block_without_a_reference():
    pool = BlockPool(2)
    (block,) = pool.take(1)
    pool.check_invariants([[block]], kept=[])
    with pytest.raises(InvariantError, match="1 references, 2 tables hold it"):
        pool.check_invariants([[block], [block]], kept=[])


def test_check_finds_a_block_freed_twice():
    pool = BlockPool(2)
    pool.free([1])
    with pytest.raises(InvariantError, match="twice"):
        pool.check_invariants([], kept=[])


def test_check_finds_a_block_that_is_free_and_kept():
    pool = BlockPool(2)
    with pytest.raises(InvariantError, match="kept block is on the free list"):
        pool.check_invariants([], kept=[0])
