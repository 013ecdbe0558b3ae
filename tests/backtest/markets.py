"""Small markets for the tests, and the account written the slow way."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import polars as pl

HOUR = 3_600_000
START = 1_704_067_200_000  # Monday 2024-01-01


def times(n, step=HOUR, start=START):
    return pl.Series("timestamp", np.arange(n, dtype=np.int64) * step + start).cast(pl.Datetime("ms", "UTC"))


def bars(open_, close=None, high=None, low=None, volume=1000.0, symbol="A", step=HOUR, start=START):
    """A long frame of one symbol; close = open where it is left out."""
    open_ = np.asarray(open_, float)
    close = open_ if close is None else np.asarray(close, float)
    high = np.maximum(open_, close) if high is None else np.asarray(high, float)
    low = np.minimum(open_, close) if low is None else np.asarray(low, float)
    return pl.DataFrame(
        {
            "timestamp": times(len(open_), step, start),
            "symbol": [symbol] * len(open_),
            "open": open_,
            "high": high,
            "low": low,
            "close": close,
            "volume": np.broadcast_to(np.asarray(volume, float), open_.shape),
        }
    )


def weights(values, symbol="A", step=HOUR, start=START):
    return pl.DataFrame({"timestamp": times(len(values), step, start), symbol: np.asarray(values, float)})


def random_bars(rng, n, symbol="A", missing=0.0, quiet=0.0, last=None):
    """A random walk with gaps in time, bars without volume and possibly an early end."""
    close = 100 * np.exp(np.cumsum(rng.normal(size=n) * 0.03))
    open_ = np.concatenate([[100.0], close[:-1]]) * np.exp(rng.normal(size=n) * 0.01)
    spread = np.exp(np.abs(rng.normal(size=n)) * 0.01)
    volume = np.where(rng.random(n) < quiet, 0.0, 1e6)
    frame = bars(
        open_, close, np.maximum(open_, close) * spread, np.minimum(open_, close) / spread, volume, symbol
    )
    kept = rng.random(n) >= missing
    if last is not None:
        kept &= np.arange(n) <= last
    kept[rng.integers(0, n if last is None else last + 1)] = True
    return frame.filter(pl.Series(kept))


def delistings(bars, end):
    """Last bar of each symbol that is silent at the end for longer than ever before."""
    found = {}
    for (symbol,), frame in bars.group_by("symbol"):
        own = sorted(frame["timestamp"].to_list())
        gaps = [later - earlier for earlier, later in pairwise(own)]
        if end - own[-1] > max(gaps, default=end - end):
            found[symbol] = own[-1]
    return found


def slow_account(
    weights, bars, fee=0.0, spread=0.0, slippage=0.0, every_bar=False, at_close=False, capital=1e5
):
    """The rules of the account in plain Python: weight × equity at the next open (or close), costs out of cash."""
    clock = sorted(bars["timestamp"].unique().to_list())
    symbols = [name for name in weights.columns if name != "timestamp"]
    table = {(row["timestamp"], row["symbol"]): row for row in bars.iter_rows(named=True)}
    decided = {row["timestamp"]: row for row in weights.iter_rows(named=True)}
    cash, units, mark = capital, dict.fromkeys(symbols, 0.0), dict.fromkeys(symbols, 0.0)
    target, waiting, curve = dict.fromkeys(symbols, 0.0), dict.fromkeys(symbols, False), []
    ended, gone = False, delistings(bars, clock[-1])

    def worth():
        return cash + sum(units[s] * mark[s] for s in symbols)

    def trade(now, price_of):
        nonlocal cash
        equity = worth()
        for s in symbols:
            bar = table.get((now, s))
            if waiting[s] and bar and bar["volume"] > 0:
                delta = target[s] * equity / bar[price_of] - units[s]
                cash -= delta * bar[price_of] + abs(delta) * bar[price_of] * (fee + spread + slippage)
                units[s] += delta
                waiting[s] = False

    def close_all():
        nonlocal cash
        for s in symbols:
            cash += units[s] * mark[s] - abs(units[s]) * mark[s] * (fee + spread + slippage)
            units[s] = 0.0

    for t, now in enumerate(clock):
        if not ended:
            if t and (row := decided.get(clock[t - 1])):
                for s in symbols:
                    if row[s] != target[s]:
                        target[s], waiting[s] = row[s], True
            if t and every_bar:
                waiting = dict.fromkeys(symbols, True)
            for price_of in ("open", "close"):
                for s in symbols:
                    if bar := table.get((now, s)):
                        mark[s] = bar[price_of]
                if worth() <= 0 and not ended:
                    close_all()
                    ended = True
                if not ended and (price_of == "close") == at_close:
                    trade(now, price_of)
            for s in symbols:
                if gone.get(s) == now:
                    cash, units[s] = cash + units[s] * mark[s], 0.0
            if worth() <= 0 and not ended:
                close_all()
                ended = True
        curve.append(worth())
    return np.array(curve)
