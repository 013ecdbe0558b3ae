"""Blocks of consecutive rows: every row but the oldest few, each once, in batches that cut no block."""

import numpy as np
import pytest

from longtape.core.errors import UserError
from longtape.training.batches import in_blocks, in_order


@pytest.mark.parametrize("block", [1, 4, 7])
def test_blocks_are_consecutive_and_leave_out_only_what_is_over(block):
    origins = np.concatenate([np.arange(10, 45), np.arange(60, 83)])
    blocks = in_blocks(origins, block)
    assert (np.diff(blocks, axis=1) == 1).all()
    assert len(np.unique(blocks)) == blocks.size
    left = np.setdiff1d(origins, blocks)
    assert left.tolist() == [*range(10, 10 + 35 % block), *range(60, 60 + 23 % block)]


def test_batches_in_order_hold_whole_blocks():
    batches = list(in_order(in_blocks(np.arange(100), 8), 32))
    assert [len(batch) for batch in batches] == [32, 32, 32]
    assert np.concatenate(batches).tolist() == list(range(4, 100))
    assert [len(batch) for batch in in_order(in_blocks(np.arange(10), 1), 4, stride=2)] == [4, 1]


def test_a_period_without_a_whole_block_is_refused():
    with pytest.raises(UserError, match="8 consecutive windows"):
        in_blocks(np.array([1, 2, 3, 9, 10, 11]), 8)
