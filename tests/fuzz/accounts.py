"""The account of a run kept again, slowly, from its fills and the bars: one bar, one symbol, one payment at a time."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from tests.fuzz.markets import DAY, HOUR, Floats, Times

FUNDING = 8 * HOUR
Prices = dict[int, tuple[float, float, float]]  # open of a bar → open, close, volume


@dataclass(frozen=True, eq=False)
class Terms:
    """What an account is kept with."""

    capital: float
    funding_rate: dict[str, dict[int, float]] | float = 0.0  # one rate, or by symbol and time
    borrow: float = 0.0
    at_close: bool = False


@dataclass(eq=False)
class Ledger:
    """What came out, bar by bar."""

    equity: list[float] = field(default_factory=list)
    positions: list[dict[str, float]] = field(default_factory=list)
    funding: float = 0.0
    borrow: float = 0.0
    weights: list[tuple[int, str, float]] = field(default_factory=list)  # bar, symbol, weight after its fill
    implied: list[float] = field(default_factory=list)  # Σ |weight at the newest fill| after each bar


def keep(fills: pl.DataFrame, bars: dict[str, pl.DataFrame], clock: Times, terms: Terms) -> Ledger:
    """Start with the capital and walk the bars. Times are opens of bars in UTC milliseconds."""
    prices = {symbol: _prices(frame) for symbol, frame in bars.items()}
    by_bar: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for fill in fills.with_columns(pl.col("timestamp").dt.timestamp("ms")).iter_rows(named=True):
        by_bar[fill["timestamp"]].append(fill)
    step = int(np.median(np.diff(clock))) if len(clock) > 1 else HOUR
    walk = _Walk(prices, terms, terms.capital)
    for number, time in enumerate(clock.tolist()):
        before = int(clock[number - 1]) if number else time
        following = int(clock[number + 1]) if number + 1 < len(clock) else time + step
        walk.bar(time, min(time + step, following), before, by_bar.get(time, []))
    return walk.ledger


def _prices(frame: pl.DataFrame) -> Prices:
    rows = frame.select(pl.col("timestamp").dt.timestamp("ms"), "open", "close", "volume").rows()
    return {time: (opened, closed, volume) for time, opened, closed, volume in rows}


class _Walk:
    def __init__(self, prices: dict[str, Prices], terms: Terms, cash: float) -> None:
        self.prices, self.terms, self.cash = prices, terms, cash
        self.units: dict[str, float] = dict.fromkeys(prices, 0.0)
        self.mark: dict[str, float] = dict.fromkeys(prices, 0.0)
        self.weight: dict[str, float] = dict.fromkeys(prices, 0.0)
        self.closed: int | None = None  # when the last bar was over
        self.ledger = Ledger()

    def bar(self, time: int, until: int, before: int, fills: list[dict[str, Any]]) -> None:
        self._borrow((time - before) / (365 * DAY))  # of the value since the last close
        self._mark(time, 0)
        self._fund(
            time if self.closed is None else self.closed, time + 1
        )  # over a gap: at the open behind it
        if not self.terms.at_close:
            self._fill(time, fills)
        self._mark(time, 1)
        self._fund(time + 1, until)
        self.closed = until
        if self.terms.at_close:
            self._fill(time, fills)
        self.ledger.equity.append(self.equity)
        self.ledger.positions.append(dict(self.units))
        self.ledger.implied.append(sum(abs(weight) for weight in self.weight.values()))

    @property
    def equity(self) -> float:
        return self.cash + sum(self.units[s] * self.mark[s] for s in self.units)

    def _mark(self, time: int, which: int) -> None:
        for symbol, prices in self.prices.items():
            if time in prices:
                self.mark[symbol] = prices[time][which]

    def _borrow(self, years: float) -> None:
        for symbol, units in self.units.items():
            due = max(-units, 0.0) * self.mark[symbol] * self.terms.borrow * years
            self.cash -= due
            self.ledger.borrow += due

    def _fund(self, since: int, until: int) -> None:
        """Payments of [since, until), at the newest mark."""
        for symbol, units in self.units.items():
            due = units * self.mark[symbol] * sum(self._rates(symbol, since, until))
            self.cash -= due
            self.ledger.funding += due

    def _rates(self, symbol: str, since: int, until: int) -> list[float]:
        rate = self.terms.funding_rate
        times = range(-(-since // FUNDING) * FUNDING, until, FUNDING)
        if isinstance(rate, dict):
            return [rate[symbol].get(time, 0.0) for time in times]
        return [rate for _ in times]

    def _fill(self, time: int, fills: list[dict[str, Any]]) -> None:
        equity = self.equity
        for fill in fills:
            symbol, units, price = fill["symbol"], fill["units"], fill["price"]
            self.cash -= units * price + fill["fee"] + fill["spread"] + fill["slippage"]
            self.units[symbol] += units
            self.mark[symbol] = price
            self.weight[symbol] = self.units[symbol] * price / equity
            self.ledger.weights.append((time, symbol, self.weight[symbol]))


def entry_prices(fills: pl.DataFrame) -> list[tuple[dict[str, Any], float, float]]:
    """Each fill with the units held before it and their average price: a sale leaves the average of what stays."""
    held: dict[str, float] = defaultdict(float)
    average: dict[str, float] = defaultdict(float)
    found = []
    for fill in fills.iter_rows(named=True):
        symbol, units, price = fill["symbol"], fill["units"], fill["price"]
        before = held[symbol]
        found.append((fill, before, average[symbol]))
        after = before + units
        if before * units >= 0:
            average[symbol] = (average[symbol] * before + price * units) / after
        elif before * after < 0:
            average[symbol] = price
        held[symbol] = 0.0 if abs(after) < 1e-12 * abs(before) else after
    return found


def largest_relative_error(left: Floats, right: Floats) -> float:
    """Largest |left − right| over |right|."""
    return float(np.max(np.abs(left - right) / np.maximum(np.abs(right), 1e-12))) if len(left) else 0.0
