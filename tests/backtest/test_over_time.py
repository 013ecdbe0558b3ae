"""How an account went: figures over time add up to those of the whole."""

import numpy as np
import polars as pl
import pytest

from longtape.backtest import Costs, run_backtest
from longtape.backtest.judgement import judge
from longtape.backtest.metrics import sharpe
from longtape.backtest.over_time import (
    by_symbol,
    monthly_returns,
    rolling_sharpe,
    rolling_window,
    turnover_by_bar,
)
from tests.backtest.markets import random_bars

DAY = 86_400_000


def account(n=900, step=DAY, seed=3):
    rng = np.random.default_rng(seed)
    frames = []
    for symbol in ("A", "B"):
        frame = random_bars(rng, n, symbol)
        at = (frame["timestamp"].dt.timestamp("ms") - frame["timestamp"].dt.timestamp("ms")[0]) // 3_600_000
        frames.append(
            frame.with_columns(timestamp=(1_704_067_200_000 + at * step).cast(pl.Datetime("ms", "UTC")))
        )
    bars = pl.concat(frames)
    times = frames[0]["timestamp"]
    held = pl.DataFrame({"timestamp": times, "A": rng.uniform(-0.5, 0.5, n), "B": rng.uniform(-0.5, 0.5, n)})
    return run_backtest(held, bars, costs=Costs(fee=0.001, spread=0.0005, slippage=0.0002))


@pytest.fixture(scope="module")
def result():
    return account()


def test_a_rolling_sharpe_ratio_is_that_of_its_own_returns(result):
    window = rolling_window(result)
    found = rolling_sharpe(result, window)
    assert window == 91
    assert np.isnan(found[:window]).all()
    for t in (window, 500, len(found) - 1):
        assert found[t] == pytest.approx(sharpe(result.returns[t - window : t], result.periods_per_year))
    assert np.isnan(rolling_sharpe(result, 10_000)).all()


def test_months_and_years_multiply_to_the_whole(result):
    rows = monthly_returns(result.equity)
    assert [year for year, _, _ in rows] == [2024, 2025, 2026]
    shares = [share for _, months, _ in rows for share in months if share is not None]
    curve = result.history.equity
    assert np.prod(1 + np.array(shares)) == pytest.approx(curve[-1] / curve[0])
    assert np.prod([1 + share for _, _, share in rows]) == pytest.approx(curve[-1] / curve[0])
    assert rows[-1][1][-1] is None  # the record ends before


def test_symbols_and_bars_add_up_to_the_account(result):
    rows = by_symbol(result)
    books = result.account
    assert sum(row["profit"] for row in rows) == pytest.approx(books["end"] - books["start"])
    assert sum(row["costs"] for row in rows) == pytest.approx(
        books["fees"] + books["spread"] + books["slippage"]
    )
    assert sum(row["fills"] for row in rows) == result.metrics["n_fills"]
    traded = turnover_by_bar(result) * result.history.equity
    assert traded.sum() == pytest.approx(sum(row["traded"] for row in rows))


def test_random_strategies_keep_their_equity_at_some_bars(result):
    random = judge(result, n_random=5, n_bootstrap=20).random
    assert random.equity.shape == (5, len(random.bars))
    assert random.bars[-1] == len(result.clock) - 1
    assert np.allclose(random.equity[:, -1], 1 + random.total_return)


def test_a_record_of_less_than_a_month_says_nothing_of_a_year():
    short = account(n=300, step=1_000)
    assert short.is_short
    found = judge(short, n_random=5, n_bootstrap=20)
    said = " ".join(found.statements)
    assert "The account lasts 5 minutes of market time" in said
    assert "standard errors from zero" in said
    assert "annual return" not in said
    assert "Sharpe 0" not in said
    assert not found.doubts
    assert not account().is_short
