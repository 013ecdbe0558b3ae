"""Conformal bounds: as wide as errors on exchangeable windows say, for any model and any distribution.

Split conformal (Vovk et al. 2005; the finite-sample rank ⌈(n + 1)·level⌉ of Lei et al. 2018). Where the rows are too
few for the rank, only an infinite bound is valid, and it is given.

Adaptive conformal (Gibbs & Candès 2021, "Adaptive Conformal Inference Under Distribution Shift") moves the level by
its own mistakes: α ← α + rate·(1 − level − missed). Over T labels the share of misses is then within
(1 + rate)/(rate·T) of 1 − level, whatever the data do, as long as α is not clipped: below 0 the interval is infinite,
above 1 it is empty. A label moves α, and joins the errors, when it is known, not when it is forecast.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Times = npt.NDArray[np.int64]
RATE = 0.005
FEWEST = 250  # errors that the adaptive window holds at least, where they have been made


def conformal_rank(count: int, level: float) -> int:
    """⌈(n + 1)·level⌉: which of n ordered scores bounds the next one with probability `level`."""
    return int(np.ceil(round((count + 1) * level, 9)))


def conformal_quantile(scores: Array, level: float) -> float:
    """The ⌈(n + 1)·level⌉-th smallest score; ∞ where there are not so many, −∞ below the first."""
    return _ranked(np.sort(scores), level)


def _ranked(ascending: Array | list[float], level: float) -> float:
    rank = conformal_rank(len(ascending), level)
    if rank > len(ascending):
        return float("inf")
    return float(ascending[rank - 1]) if rank >= 1 else float("-inf")


def error_bounds(errors: Array, level: float, two_sided: bool) -> tuple[float, float]:
    """Between which values the next error lies with probability `level`, from errors [n].

    Symmetric about 0, or (`two_sided`) each side with half of what is left.
    """
    if not two_sided:
        reach = conformal_quantile(np.abs(errors), level)
        return -reach, reach
    side = (1 + level) / 2
    return -conformal_quantile(-errors, side), conformal_quantile(errors, side)


@dataclass
class ErrorWindow:
    """The last `size` errors, kept in order of size beside the order of time."""

    size: int
    two_sided: bool
    _recent: deque[float] = field(default_factory=deque)
    _ascending: list[float] = field(default_factory=list)

    def add(self, error: float) -> None:
        """Take in the newest error, and let the oldest go."""
        value = error if self.two_sided else abs(error)
        self._recent.append(value)
        insort(self._ascending, value)
        if len(self._recent) > self.size:
            del self._ascending[bisect_left(self._ascending, self._recent.popleft())]

    def bounds(self, level: float) -> tuple[float, float]:
        """As `error_bounds` of what the window holds."""
        if not self.two_sided:
            reach = _ranked(self._ascending, level)
            return -reach, reach
        side = (1 + level) / 2
        upper = _ranked(self._ascending, side)
        rank = conformal_rank(len(self._ascending), side)
        if rank > len(self._ascending):
            return float("-inf"), upper
        return (float(self._ascending[-rank]) if rank >= 1 else float("inf")), upper


def adaptive_bounds(
    errors: Array, made: Times, known: Times, calibration: Array, level: float, *, rate: float = RATE,
    two_sided: bool = False,
) -> Array:  # fmt: skip
    """Bounds [n, 2] of the errors of n forecasts in order of time, each from what was known when it was made.

    errors [n], NaN where a label never comes; made [n]: when each forecast is made; known [n], ascending: when its
    label is there. calibration [m]: errors of the calibration windows, in order of time; as many of the newest errors
    (250 at least) make the interval at any time.
    """
    window = ErrorWindow(max(len(calibration), FEWEST), two_sided)
    for error in calibration:
        window.add(float(error))
    found, miss, due = np.empty((len(errors), 2)), 1 - level, 0
    for now in range(len(errors)):
        while due < now and known[due] <= made[now]:
            error = float(errors[due])
            if not np.isnan(error):
                missed = not found[due, 0] <= error <= found[due, 1]
                miss += rate * (1 - level - missed)
                window.add(error)
            due += 1
        found[now] = window.bounds(1 - miss)
    return found
