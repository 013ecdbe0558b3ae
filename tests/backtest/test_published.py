"""Figures that others have published: a moving-average crossing on GOOG, and the pinned values of empyrical."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from longtape.backtest import Costs, metrics, run_backtest
from tests.shared_data import shared

# What backtesting.py prints for its SmaCross(10, 30) on GOOG, cash 10,000, no commission, trade_on_close=False.
PRINTED = {
    "sharpe_geometric": 0.5806232244485349,
    "sortino_geometric": 1.0853434352488662,
    "calmar": 0.44166409202994605,
    "max_drawdown": -0.4798012705007589,
    "win_rate": 0.4696969696969697,
    "profit_factor": 2.167945974262033,
    "annual_return": 0.21191099249053224,
}
# empyrical's own test data, `mixed_returns`, 252 periods a year.
EMPYRICAL = np.array([np.nan, 1, 10, -4, 2, 3, 2, 1, -10]) / 100


def crossings(close, fast=10, slow=30):
    """+1 from each strict crossing of the fast average over the slow one, −1 from each under it, 0 before."""
    short, long = close.rolling_mean(fast).to_numpy(), close.rolling_mean(slow).to_numpy()
    side, now = np.zeros(len(close)), 0.0
    for t in range(1, len(close)):
        if short[t - 1] < long[t - 1] and short[t] > long[t]:
            now = 1.0
        elif short[t - 1] > long[t - 1] and short[t] < long[t]:
            now = -1.0
        side[t] = now
    return side


@pytest.fixture(scope="module")
def goog():
    frame = pl.read_parquet(shared("fx_stocks_single/GOOG_1d.parquet"))
    frame = frame.with_columns(pl.lit("GOOG").alias("symbol"))
    weights = pl.DataFrame({"timestamp": frame["timestamp"], "GOOG": 0.9999 * crossings(frame["close"])})
    return run_backtest(
        weights,
        frame,
        costs=Costs(),
        initial_capital=10_000,
        lot_size=1,
        close_at_end=True,
        periods_per_year=252,
    )


def test_the_published_trades_and_final_equity(goog):
    assert goog.trades.height == 66
    assert goog.equity["equity"][-1] == pytest.approx(51_422.99, abs=1e-8)
    assert goog.trades["reason"][-1] == "end"
    assert (goog.trades["units"] % 1 == 0).all()


@pytest.mark.parametrize("name", PRINTED)
def test_the_published_measures(goog, name):
    assert goog.metrics[name] == pytest.approx(PRINTED[name], rel=1e-8)


def test_the_arithmetic_sharpe_is_another_figure(goog):
    assert goog.metrics["sharpe"] == pytest.approx(0.798, abs=5e-4)
    assert len(goog.returns) == 2147
    assert metrics.sharpe(goog.returns, 252, convention="geometric") == goog.metrics["sharpe_geometric"]


def test_the_year_of_252_days_is_read_from_the_days_themselves(goog):
    again = metrics.compute_metrics(goog.equity)
    assert again["periods_per_year"] == 252
    assert again["sharpe"] == goog.metrics["sharpe"]


def test_empyricals_pinned_values():
    assert metrics.sharpe(EMPYRICAL, 252) == pytest.approx(1.7238613961706866, rel=1e-12)
    assert metrics.sortino(EMPYRICAL, 252) == pytest.approx(2.605531251673693, rel=1e-12)
    assert metrics.volatility(EMPYRICAL, 252) == pytest.approx(0.9136465399704637, rel=1e-12)
    assert metrics.max_drawdown(EMPYRICAL) == pytest.approx(-0.1, rel=1e-12)
    assert metrics.annual_return(EMPYRICAL, 252) == pytest.approx(1.9135925373194231, rel=1e-12)
    assert metrics.calmar(EMPYRICAL, 252) == pytest.approx(19.135925373194233, rel=1e-12)
