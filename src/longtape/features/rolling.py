"""Kernels over the past: one forward pass, float64, and nothing of a window's sum survives outside the
window.

A running sum that adds the newest value and subtracts the oldest keeps the rounding of everything it has ever
seen, so its value depends on where the data begins, and one huge value spoils all that follow. Here rows are
cut into blocks one shorter than the window, and a window is the tail of one block and the head of the next
(van Herk 1992; Gil & Werman 1993). Each result is made of its own window's values only, at two additions a
row. Moments are taken about the last value of the earlier block, which every window over the two blocks
holds, so that there is no cancellation at high price levels.

Every function takes a C-contiguous float64 array [T] and returns one of the same length. The first n − 1 rows
are NaN, and so is every window that holds a NaN, and no other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compile once, keep the machine code on disk, and leave IEEE arithmetic as written (no fast-math)."""
    return cast(F, numba.njit(cache=True, nogil=True, error_model="numpy")(function))


@kernel
def rolling_sum(x: Array, n: int) -> Array:
    """Σ of the last n values."""
    rows, block = len(x), n - 1
    out = np.empty(rows)
    if n == 1:
        out[:] = x
        return out
    out[: min(block, rows)] = np.nan
    tail = np.empty(block)
    for start in range(block, rows, block):
        before, now, to = x[start - block : start], x[start : start + block], out[start : start + block]
        total = 0.0
        for j in range(block):
            total += before[block - 1 - j]
            tail[block - 1 - j] = total
        head = 0.0
        for j in range(len(now)):
            head += now[j]
            to[j] = tail[j] + head
    return out


@kernel
def _centred(x: Array, n: int) -> tuple[Array, Array]:
    """x less the mean of the last n ≥ 2 values, and their sample variance."""
    rows, block = len(x), n - 1
    above, variance = np.empty(rows), np.empty(rows)
    above[: min(block, rows)], variance[: min(block, rows)] = np.nan, np.nan
    tail, tail2 = np.empty(block), np.empty(block)
    per_n, per_freedom = 1.0 / n, 1.0 / block
    for start in range(block, rows, block):
        before, now = x[start - block : start], x[start : start + block]
        pivot, total, total2 = before[block - 1], 0.0, 0.0
        for j in range(block):
            d = before[block - 1 - j] - pivot
            total += d
            total2 += d * d
            tail[block - 1 - j], tail2[block - 1 - j] = total, total2
        total, total2 = 0.0, 0.0
        for j in range(len(now)):
            d = now[j] - pivot
            total += d
            total2 += d * d
            s = tail[j] + total
            above[start + j] = d - s * per_n
            variance[start + j] = (tail2[j] + total2 - s * s * per_n) * per_freedom
    return above, variance


@kernel
def _root(variance: Array) -> Array:
    for t in range(len(variance)):
        variance[t] = math.sqrt(variance[t]) if not variance[t] < 0.0 else 0.0
    return variance


def rolling_deviation(x: Array, n: int) -> Array:
    """Sample deviation (n − 1 degrees of freedom; 0 for n = 1) of the last n values; exactly 0 where they are equal."""
    return _root(_centred(x, n)[1]) if n > 1 else x - x


def rolling_moments(x: Array, n: int) -> tuple[Array, Array]:
    """Mean of the last n values, and their deviation as `rolling_deviation`."""
    if n == 1:
        return x.copy(), x - x
    above, variance = _centred(x, n)
    return x - above, _root(variance)


def rolling_zscore(x: Array, n: int) -> Array:
    """Distance from the mean of the last n values in their sample deviations; 0 where they are equal."""
    if n == 1:
        return x - x
    above, variance = _centred(x, n)
    return divide(above, _root(variance), 0.0)


@kernel
def rolling_covariance(x: Array, y: Array, n: int) -> tuple[Array, Array, Array]:
    """Sample covariance of x and y, and the variances of both, over the last n ≥ 2 values."""
    rows, block = len(x), n - 1
    cov, var_x, var_y = np.full(rows, np.nan), np.full(rows, np.nan), np.full(rows, np.nan)
    tail = np.empty((block, 5))
    for start in range(block, rows, block):
        at_x, at_y = x[start - 1], y[start - 1]
        a, b, aa, bb, ab = 0.0, 0.0, 0.0, 0.0, 0.0
        for j in range(block - 1, -1, -1):
            u, v = x[start - block + j] - at_x, y[start - block + j] - at_y
            a, b, aa, bb, ab = a + u, b + v, aa + u * u, bb + v * v, ab + u * v
            tail[j, 0], tail[j, 1], tail[j, 2], tail[j, 3], tail[j, 4] = a, b, aa, bb, ab
        a, b, aa, bb, ab = 0.0, 0.0, 0.0, 0.0, 0.0
        for j in range(min(block, rows - start)):
            u, v = x[start + j] - at_x, y[start + j] - at_y
            a, b, aa, bb, ab = a + u, b + v, aa + u * u, bb + v * v, ab + u * v
            s, t = tail[j, 0] + a, tail[j, 1] + b
            var_x[start + j] = (tail[j, 2] + aa - s * s / n) / block
            var_y[start + j] = (tail[j, 3] + bb - t * t / n) / block
            cov[start + j] = (tail[j, 4] + ab - s * t / n) / block
    return cov, var_x, var_y


@kernel
def _larger(a: float, b: float) -> float:
    return a if a > b or math.isnan(a) else b


@kernel
def rolling_max(x: Array, n: int) -> Array:
    """Largest of the last n values."""
    rows, block = len(x), n - 1
    out = np.empty(rows)
    if n == 1:
        out[:] = x
        return out
    out[: min(block, rows)] = np.nan
    tail = np.empty(block)
    for start in range(block, rows, block):
        before, now, to = x[start - block : start], x[start : start + block], out[start : start + block]
        best = -np.inf
        for j in range(block):
            best = _larger(before[block - 1 - j], best)
            tail[block - 1 - j] = best
        best = -np.inf
        for j in range(len(now)):
            best = _larger(now[j], best)
            to[j] = _larger(tail[j], best)
    return out


@kernel
def exponential(x: Array, alpha: float, start: int, seed: int) -> Array:
    """y_t = y_{t−1} + α(x_t − y_{t−1}), begun at row start + seed − 1 with the mean of x over its first `seed` rows."""
    out = np.full(len(x), np.nan)
    if start + seed > len(x):
        return out
    y = 0.0
    for t in range(start, start + seed):
        y += x[t]
    y /= seed
    out[start + seed - 1] = y
    for t in range(start + seed, len(x)):
        y += alpha * (x[t] - y)
        out[t] = y
    return out


@kernel
def grouped_ratio(
    numerator: Array, denominator: Array, group: npt.NDArray[np.int64], otherwise: Array
) -> Array:
    """Σ numerator / Σ denominator from the start of each group to now; `otherwise` while the denominator is 0."""
    out = np.empty(len(numerator))
    above, below = 0.0, 0.0
    for t in range(len(numerator)):
        if t == 0 or group[t] != group[t - 1]:
            above, below = 0.0, 0.0
        above += numerator[t]
        below += denominator[t]
        out[t] = above / below if below > 0.0 else otherwise[t]
    return out


@kernel
def wilder_rsi(x: Array, n: int) -> Array:
    """RSI of Wilder (1978): average gain and loss by exponential smoothing of 1/n, begun with means of n changes."""
    rows = len(x)
    out = np.full(rows, np.nan)
    if rows <= n:
        return out
    up, down = 0.0, 0.0
    for t in range(1, n + 1):
        change = x[t] - x[t - 1]
        up += max(change, 0.0)
        down += max(-change, 0.0)
    up, down, rate = up / n, down / n, 1.0 / n
    for t in range(n, rows):
        if t > n:
            change = x[t] - x[t - 1]
            gain = change if change > 0.0 else 0.0
            up += rate * (gain - up)
            down += rate * ((gain - change) - down)
        total = up + down
        out[t] = 100.0 * up / total if total != 0.0 else 50.0
    return out


def rolling_mean(x: Array, n: int) -> Array:
    """Mean of the last n values."""
    out = rolling_sum(x, n)
    out /= n
    return out


def lagged(x: Array, n: int) -> Array:
    """The value n rows ago; the first n rows are NaN."""
    out = np.empty(len(x))
    out[:n] = np.nan
    out[n:] = x[: max(len(x) - n, 0)]
    return out


@kernel
def divide(a: Array, b: Array, otherwise: float) -> Array:
    """a / b; where b is 0, `otherwise` (NaN in a or b stays NaN)."""
    out = np.empty(len(a))
    for t in range(len(a)):
        out[t] = a[t] / b[t] if b[t] != 0.0 else (otherwise if not math.isnan(a[t]) else np.nan)
    return out


def log_ratio(x: Array, n: int) -> Array:
    """ln(x_t / x_{t−n}); the first n rows are NaN."""
    out = np.empty(len(x))
    out[:n] = np.nan
    if len(x) > n:
        np.divide(x[n:], x[:-n], out=out[n:])
        np.log(out[n:], out=out[n:])
    return out


FORGOTTEN = 1e-10


def memory(alpha: float) -> int:
    """Rows after which an exponential average has forgotten its start: (1 − α)^rows below 1e-10."""
    return 1 if alpha >= 1.0 else math.ceil(math.log(FORGOTTEN) / math.log1p(-alpha))
