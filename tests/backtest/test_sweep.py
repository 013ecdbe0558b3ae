"""A sweep is the same as one backtest after the other."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from longtape.backtest import Costs, Limits, run_backtest
from longtape.backtest.sweep import sweep
from longtape.core.errors import UserError
from tests.backtest.markets import random_bars, times, weights

TERMS = {
    "costs": Costs(fee=0.001),
    "fill": "next_close",
    "limits": Limits(stop_loss=0.04, max_leverage=1.0),
    "lot_size": 0.5,
}


@pytest.fixture(scope="module")
def one():
    frame = random_bars(np.random.default_rng(2), 300)
    return frame, run_backtest(weights(np.zeros(300)), frame, **TERMS)


def test_every_row_is_the_backtest_of_its_weights(one):
    frame, base = one
    candidates = np.random.default_rng(3).normal(size=(20, 300))
    found = sweep(base, candidates, keep_returns=True)
    assert found.table["candidate"].to_list() == list(range(20))
    assert found.returns.shape == (299, 20)
    for row, values in zip(found.table.drop("candidate").iter_rows(named=True), candidates, strict=True):
        alone = run_backtest(weights(values), frame, **TERMS)
        assert row == pytest.approx(alone.metrics, rel=1e-12, nan_ok=True)
    assert (
        found.returns[:, 7].tolist() == run_backtest(weights(candidates[7]), frame, **TERMS).returns.tolist()
    )
    assert sweep(base, list(candidates)).table.equals(found.table, null_equal=True)
    assert sweep(base, candidates[:1]).returns is None


def test_several_symbols():
    rng = np.random.default_rng(4)
    frame = pl.concat([random_bars(rng, 50, "A"), random_bars(rng, 50, "B", missing=0.2)])
    target = pl.DataFrame({"timestamp": times(50), "A": rng.normal(size=50), "B": rng.normal(size=50)})
    base = run_backtest(target, frame)
    again = sweep(base, [target.drop("timestamp").to_numpy(), np.zeros((50, 2))]).table
    assert again["end"].to_list() == [base.metrics["end"], 100_000.0]


def test_candidates_that_do_not_fit(one):
    _, base = one
    good = np.zeros(300)
    bad = good.copy()
    bad[4] = np.nan
    for candidates, message in (
        ([good, good[:9]], r"candidate 1 has weights of shape \(9,\), not \(300, 1\)"),
        ([good, bad], "candidate 1 has a weight that is no number at bar 5"),
        ([], "no candidates"),
    ):
        with pytest.raises(UserError, match=message):
            sweep(base, candidates)
