"""The sums that measures of a return series are made of, taken in two passes over it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from longtape.core.arrays import Floats


class Summary(NamedTuple):
    """Sums over a series of simple returns. Moments are NaN where they are not defined; NaN returns enter
    only `length`.
    """

    length: int  # all periods
    known: int  # periods with a return
    total: float  # Π(1 + r) − 1
    mean: float
    deviation: float  # ddof 1; 0 where it is nothing but rounding
    skewness: float  # population
    kurtosis: float  # population, 3 for a normal distribution
    downside: float  # √mean(min(r − rate, 0)²)
    drawdown: float  # deepest, ≤ 0; the start counts as a high point
    drawdown_length: int  # most periods in a row below an earlier high
    wins: int
    losses: int
    gained: float  # Σ of the returns above zero
    lost: float  # −Σ of those below
    ruined: bool  # some return took everything


def as_returns(returns: Any) -> Floats:
    """A series of simple returns from a list, numpy, polars or pandas."""
    values = np.asarray(returns.to_numpy() if hasattr(returns, "to_numpy") else returns, dtype=np.float64)
    return np.ascontiguousarray(values.reshape(-1))


def summarise(returns: Any, rate: float = 0.0) -> Summary:
    """Summary of simple returns [T]; `rate` per period is where the downside begins."""
    values = as_returns(returns).view()
    values.flags.writeable = False
    total, *path = _path(values)
    known, *moments = _moments(values, rate)
    return Summary(len(values), known, total, *moments, *path)


@njit(cache=True, nogil=True, error_model="numpy")
def _path(returns: Floats) -> tuple[float, float, int, int, int, float, float, bool]:
    value = high = 1.0
    deepest, below, longest = 0.0, 0, 0
    wins, losses, gained, lost, ruined = 0, 0, 0.0, 0.0, False
    for r in returns:
        if r != r:
            r = 0.0
        # An account that has lost everything has ended: what is gone earns nothing, and a debt loses nothing more.
        if value > 0:
            value *= 1 + r
        if value >= high:
            high, below = value, 0
        else:
            deepest = min(deepest, value / high - 1)
            below += 1
            longest = max(longest, below)
        # Without branches: the sign of a return is what a processor cannot foresee.
        wins += r > 0
        losses += r < 0
        gained += max(r, 0.0)
        lost -= min(r, 0.0)
        ruined |= r <= -1
    return value - 1, deepest, longest, wins, losses, gained, lost, ruined


@njit(cache=True, nogil=True, error_model="numpy")
def _moments(returns: Floats, rate: float) -> tuple[int, float, float, float, float, float]:
    count, total, largest = 0, 0.0, 0.0
    for r in returns:
        if r == r:
            count += 1
            total += r
            largest = max(largest, abs(r))
    if count == 0:
        return 0, np.nan, np.nan, np.nan, np.nan, np.nan
    mean = total / count
    second = third = fourth = down = 0.0
    for r in returns:
        if r == r:
            d, below = r - mean, min(r - rate, 0.0)
            square = d * d
            second += square
            third += square * d
            fourth += square * square
            down += below * below
    downside = np.sqrt(down / count)
    deviation = np.sqrt(second / (count - 1)) if count > 1 else np.nan
    # A constant series has a deviation of rounding errors only, and no shape.
    if count > 1 and deviation <= 1e-12 * largest:
        return count, mean, 0.0, np.nan, np.nan, downside
    variance = second / count
    return count, mean, deviation, third / count / variance**1.5, fourth / count / variance**2, downside
