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
    return cast(F, numba.njit(cache=True, nogil=True)(function))


@kernel
def rolling_sum(x: Array, n: int) -> Array:
    """Σ of the last n values."""
    rows, block = len(x), max(n - 1, 1)
    out = np.full(rows, np.nan)
    if n == 1:
        return x.copy()
    tail = np.empty(block)
    for start in range(block, rows, block):
        total = 0.0
        for j in range(block - 1, -1, -1):
            total += x[start - block + j]
            tail[j] = total
        head = 0.0
        for j in range(min(block, rows - start)):
            head += x[start + j]
            out[start + j] = tail[j] + head
    return out


@kernel
def rolling_moments(x: Array, n: int) -> tuple[Array, Array]:
    """Mean and sample deviation (n − 1 degrees of freedom; 0 for n = 1) of the last n values.

    The deviation of a constant window is exactly 0.
    """
    rows, block = len(x), max(n - 1, 1)
    mean, deviation = np.full(rows, np.nan), np.full(rows, np.nan)
    if n == 1:
        return x.copy(), x - x
    tail, tail2 = np.empty(block), np.empty(block)
    per_n, per_freedom = 1.0 / n, 1.0 / (n - 1)
    for start in range(block, rows, block):
        pivot, total, total2 = x[start - 1], 0.0, 0.0
        for j in range(block - 1, -1, -1):
            d = x[start - block + j] - pivot
            total += d
            total2 += d * d
            tail[j], tail2[j] = total, total2
        total, total2 = 0.0, 0.0
        for j in range(min(block, rows - start)):
            d = x[start + j] - pivot
            total += d
            total2 += d * d
            s = tail[j] + total
            mean[start + j] = pivot + s * per_n
            squares = (tail2[j] + total2 - s * s * per_n) * per_freedom
            deviation[start + j] = math.sqrt(squares) if not squares < 0.0 else 0.0
    return mean, deviation


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
def rolling_max(x: Array, n: int) -> Array:
    """Largest of the last n values."""
    rows, block = len(x), max(n - 1, 1)
    out = np.full(rows, np.nan)
    if n == 1:
        return x.copy()
    tail = np.empty(block)
    for start in range(block, rows, block):
        best = x[start - 1]
        for j in range(block - 1, -1, -1):
            value = x[start - block + j]
            best = value if not value <= best else best
            tail[j] = best
        best = x[start]
        for j in range(min(block, rows - start)):
            value = x[start + j]
            best = value if not value <= best else best
            out[start + j] = tail[j] if not tail[j] <= best else best
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
    return rolling_sum(x, n) / n


def lagged(x: Array, n: int) -> Array:
    """The value n rows ago; the first n rows are NaN."""
    out = np.full(len(x), np.nan)
    out[n:] = x[: max(len(x) - n, 0)]
    return out


def divide(a: Array, b: Array, otherwise: float | Array) -> Array:
    """a / b; where b is 0, `otherwise` (NaN in a or b stays NaN)."""
    zero = b == 0.0
    out = a / np.where(zero, 1.0, b)
    return np.where(zero & ~np.isnan(a), otherwise, out)


FORGOTTEN = 1e-9


def memory(alpha: float) -> int:
    """Rows after which an exponential average has forgotten its start: (1 − α)^rows below 1e-9."""
    return 1 if alpha >= 1.0 else math.ceil(math.log(FORGOTTEN) / math.log1p(-alpha))
