"""Targets: what is to be forecast. Row t is decided at the close of bar t, and its label is known h bars
later.

`return(h)` runs from close to close, the usual object of a forecast; an order decided at that close fills at
the next open, and `open_return(h)` is the return that such an order earns. A label that is not yet known is
NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longtape.core.errors import UserError
from longtape.features.price import one_bar_returns
from longtape.features.registry import target
from longtape.features.rolling import Array, kernel, rolling_mean, rolling_sum
from longtape.features.table import Table

TSAY = "Tsay (2010), Analysis of Financial Time Series, ch. 1"


@dataclass(frozen=True, eq=False)
class Label:
    """Labels [T] known `horizon` bars after their origin, at that bar's close or (`at_open`) at its open."""

    values: Array
    horizon: int
    options: tuple[tuple[str, float], ...] = ()
    at_open: bool = False


def ahead(x: Array, h: int) -> Array:
    """The value h rows later; the last h rows are NaN."""
    out = np.full(len(x), np.nan)
    out[: max(len(x) - h, 0)] = x[h:]
    return out


@kernel
def _log_ahead(x: Array, h: int) -> Array:
    out = np.full(len(x), np.nan)
    for t in range(len(x) - h):
        out[t] = math.log(x[t + h] / x[t])
    return out


@target("ln(close_{t+h} / close_t)", TSAY, "return", horizons=lambda h: (h,))
def return_(table: Table, h: int = 1) -> Sequence[Label]:
    """Log return from the close of the origin bar to the close h bars later."""
    return [Label(_log_ahead(table["close"], h), h)]


@target("ln(open_{t+1+h} / open_{t+1})", TSAY, "return", needs=("open",), horizons=lambda h: (h + 1,))
def open_return(table: Table, h: int = 1) -> Sequence[Label]:
    """Log return of an order that fills at the next open and is closed h opens later; known at that open."""
    return [Label(ahead(_log_ahead(table["open"], h), 1), h + 1, at_open=True)]


@target("ln(close_{t+k} / close_t), k = 1 … h", TSAY, "path", horizons=lambda h: range(1, h + 1))
def path(table: Table, h: int = 24) -> Sequence[Label]:
    """Log return to each of the next h closes: h columns, each with its own end."""
    return [Label(_log_ahead(table["close"], k), k) for k in range(1, h + 1)]


@target(
    "√Σ ln(close_{t+k} / close_{t+k−1})², k = 1 … h",
    "Andersen & Bollerslev (1998), Answering the Skeptics",
    "volatility",
    horizons=lambda h: (h,),
)
def volatility(table: Table, h: int = 24) -> Sequence[Label]:
    """Realised volatility of the next h bars, not annualised."""
    returns = one_bar_returns(table)
    return [Label(np.sqrt(ahead(rolling_sum(returns * returns, h), h)), h)]


def _classes(moves: Array, band: float) -> Array:
    return np.where(np.isnan(moves), np.nan, 1.0 + (moves > band) - (moves < -band))


def _checked_band(name: str, band: float) -> float:
    if not (math.isfinite(band) and band >= 0):
        raise UserError(f"targets: {name}: the band must be 0 or more, in log return")
    return float(band)


@target(
    "0 where ln(close_{t+h}/close_t) < −band, 2 where > band, else 1",
    "three-class direction",
    "direction",
    horizons=lambda h, band: (h,),
)
def direction(table: Table, h: int = 1, band: float = 0.0) -> Sequence[Label]:
    """Down (0), flat (1) or up (2) over h bars, flat within ± band of log return."""
    band = _checked_band("direction(h, band)", band)
    moves = _log_ahead(table["close"], h)
    return [Label(_classes(moves, band), h, (("band", band),))]


@target("1 where close_{t+h} > close_t, else 0", "two-class direction", "up", horizons=lambda h: (h,))
def up(table: Table, h: int = 1) -> Sequence[Label]:
    """1 where the close h bars later is higher, else 0."""
    later = ahead(table["close"], h)
    return [Label(np.where(np.isnan(later), np.nan, later > table["close"]), h)]


@target(
    "as direction, of (mean of the next k mid prices) / mid_t − 1",
    "Ntakaris et al. (2018), Benchmark Dataset for Mid-Price Forecasting; Tsantekidis et al. (2017)",
    "direction",
    needs=("bid_price_1", "ask_price_1"),
    horizons=lambda k, band: (k,),
)
def mid_direction(table: Table, k: int = 10, band: float = 0.0) -> Sequence[Label]:
    """Down (0), flat (1) or up (2): the mean mid price of the next k snapshots against the mid price now."""
    band = _checked_band("mid_direction(k, band)", band)
    mid = 0.5 * (table["bid_price_1"] + table["ask_price_1"])
    moves = ahead(rolling_mean(mid, k), k) / mid - 1.0
    return [Label(_classes(moves, band), k, (("band", band),))]
