"""How an account went from time to time: rolling Sharpe ratios, months, turnover; and symbol by symbol."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from longtape.backtest.result import BacktestResult
from longtape.core.arrays import Floats, Ints


def rolling_window(result: BacktestResult) -> int:
    """Bars of a rolling figure: a quarter of a year, at most a quarter of the record."""
    return int(max(2, min(result.periods_per_year / 4, len(result.clock) / 4)))


def rolling_sharpe(result: BacktestResult, window: int) -> Floats:
    """Sharpe ratio a year of the last `window` returns at each bar [T]; NaN before there are so many, and where
    nothing moved.
    """
    found = np.full(len(result.clock), np.nan)
    if window < 2 or len(result.returns) < window:
        return found
    excess = result.returns - result.risk_free_return
    windows = np.lib.stride_tricks.sliding_window_view(excess, window)
    deviation = windows.std(axis=1, ddof=1)
    moved = deviation > 1e-15
    ratio = np.divide(windows.mean(axis=1), deviation, out=np.full(len(windows), np.nan), where=moved)
    found[window:] = ratio * np.sqrt(result.periods_per_year)
    return found


def monthly_returns(equity: pl.DataFrame) -> list[tuple[int, list[float | None], float]]:
    """Year, simple returns of its twelve months (None where there is no bar), and of the year, from month's end to
    month's end; the first begins at the first equity. equity: `timestamp, equity`.
    """
    year, month = pl.col("timestamp").dt.year().alias("year"), pl.col("timestamp").dt.month().alias("month")
    ends = equity.group_by(year, month, maintain_order=True).agg(pl.col("equity").last())
    before = ends["equity"].shift(1, fill_value=equity["equity"][0])
    ends = ends.with_columns(ratio=ends["equity"] / before)
    rows = []
    for (number,), own in ends.group_by("year", maintain_order=True):
        shares: list[float | None] = [None] * 12
        for at, ratio in zip(own["month"], own["ratio"], strict=True):
            shares[at - 1] = float(ratio) - 1
        rows.append((int(str(number)), shares, float(np.prod(own["ratio"].to_numpy())) - 1))
    return rows


def turnover_by_bar(result: BacktestResult) -> Floats:
    """Value traded at each bar over the equity at its close [T]."""
    fills = result.history.fills
    traded = np.bincount(fills["bar"], np.abs(fills["units"]) * fills["price"], len(result.clock))
    equity = result.history.equity
    return np.divide(traded, equity, out=np.zeros(len(equity)), where=equity > 0)


def by_symbol(result: BacktestResult) -> list[dict[str, Any]]:
    """For each symbol its profit after fees, spread and slippage, open positions at their last close, and what was
    traded; funding and borrow are the whole account's. Rows: `symbol, profit, costs, traded, fills`.
    """
    fills, count = result.history.fills, len(result.symbols)

    def summed(values: Floats) -> Floats:
        totals: Floats = np.bincount(fills["symbol"], values, count).astype(np.float64)
        return totals

    costs = summed(fills["fee"] + fills["spread"] + fills["slippage"])
    bought = summed(fills["units"] * fills["price"])
    units = summed(fills["units"])
    profit = np.where(np.abs(units) > 1e-12, units * _last_marks(result), 0.0) - bought - costs
    traded = summed(np.abs(fills["units"]) * fills["price"])
    numbers: Ints = np.bincount(fills["symbol"], minlength=count)
    return [
        {"symbol": name, "profit": float(profit[s]), "costs": float(costs[s]), "traded": float(traded[s]),
         "fills": int(numbers[s])}
        for s, name in enumerate(result.symbols)
    ]  # fmt: skip


def _last_marks(result: BacktestResult) -> Floats:
    """The last close of each symbol [S], as the account counts prices."""
    closes = result.setup.prices.close
    known = np.where(np.isnan(closes), -1, np.arange(len(closes))[:, None]).max(axis=0)
    return np.where(known >= 0, closes[np.maximum(known, 0), np.arange(closes.shape[1])], 0.0)
