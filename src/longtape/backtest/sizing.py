"""What happens to weights between the signal and the account: holding, caps, bands, limits. [R, S] in and
out.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from longtape.core.clock import Milliseconds
from longtape.core.errors import UserError

Floats = npt.NDArray[np.float64]


def hold(
    weights: Floats, known: Milliseconds, ends: npt.NDArray[np.int64], horizon: int, holding: str
) -> Floats:
    """Weights in force at each decision, from the weights that each forecast asks for.

    A forecast made at `known[r]` runs until `ends[r, s]`, `horizon` bars later. `newest`: the latest forecast
    counts, every time. `hold`: a forecast is held until it has run out, those in between are passed over.
    `ladder`: every forecast gets a tranche of one n-th, held until it has run out, n being the decisions
    within a horizon. NaN weights are no decision.
    """
    if holding == "newest" or horizon == 1:
        return _keep_last(weights)
    if holding == "hold":
        return _one_at_a_time(weights, known, ends)
    if holding == "ladder":
        return _ladder(weights, known, ends, _tranches(known, ends, horizon))
    raise UserError(f"holding '{holding}' is not known; it is ladder, hold or newest")


def _tranches(known: Milliseconds, ends: npt.NDArray[np.int64], horizon: int) -> int:
    """Decisions within one horizon: `horizon` of them where every bar is an origin, fewer where origins are
    further apart.
    """
    runs = np.searchsorted(known, ends.max(axis=1)) - np.arange(len(known))
    complete = ends.max(axis=1) <= known[-1]
    if complete.any():
        return int(np.bincount(np.maximum(runs[complete], 0)).argmax())
    return horizon


@njit(cache=True)
def _keep_last(weights: Floats) -> Floats:
    out = np.zeros_like(weights)
    for s in range(weights.shape[1]):
        last = 0.0
        for r in range(len(weights)):
            if weights[r, s] == weights[r, s]:
                last = weights[r, s]
            out[r, s] = last
    return out


@njit(cache=True)
def _one_at_a_time(weights: Floats, known: Milliseconds, ends: npt.NDArray[np.int64]) -> Floats:
    out = np.zeros_like(weights)
    for s in range(weights.shape[1]):
        held, until = 0.0, known[0]
        for r in range(len(weights)):
            if known[r] >= until:
                fresh = weights[r, s] == weights[r, s]
                held = weights[r, s] if fresh else 0.0
                until = ends[r, s] if fresh else known[r]
            out[r, s] = held
    return out


@njit(cache=True)
def _ladder(weights: Floats, known: Milliseconds, ends: npt.NDArray[np.int64], tranches: int) -> Floats:
    out = np.zeros_like(weights)
    for s in range(weights.shape[1]):
        first = 0  # the oldest tranche that has not run out
        for r in range(len(weights)):
            while first < r and ends[first, s] <= known[r]:
                first += 1
            total = 0.0
            for q in range(first, r + 1):
                if weights[q, s] == weights[q, s] and ends[q, s] > known[r]:
                    total += weights[q, s]
            out[r, s] = total / tranches
    return out


def cap(weights: Floats, max_weight: float | None, max_gross: float | None) -> Floats:
    """|weight| at most `max_weight`; rows with Σ|weight| above `max_gross` scaled down to it."""
    if max_weight is not None:
        weights = np.clip(weights, -max_weight, max_weight)
    if max_gross is not None:
        gross = np.abs(weights).sum(axis=1, keepdims=True)
        weights = weights * (max_gross / np.maximum(gross, max_gross))
    return weights


@njit(cache=True)
def restrain(weights: Floats, expected: Floats, band: float, limit: float, cost: float) -> Floats:
    """Leave a symbol where it is unless its weight moves by more than `band` and the move's expected gain, a
    unit of weight, exceeds `cost`; then scale each row's moves so that Σ|move| ≤ `limit`. Moves that are left
    out never lever the account up: Σ|weight| stays within the most that was asked for so far.
    """
    out = np.zeros_like(weights)
    now = np.zeros(weights.shape[1])
    most = 0.0
    for r in range(len(weights)):
        most = max(most, np.abs(weights[r]).sum())
        moved = 0.0
        for s in range(len(now)):
            move = weights[r, s] - now[s]
            worth = expected[r, s] * np.sign(move) > cost
            out[r, s] = weights[r, s] if abs(move) > band and worth else now[s]
            moved += abs(out[r, s] - now[s])
        if moved > limit:
            out[r] = now + (out[r] - now) * (limit / moved)
        gross = np.abs(out[r]).sum()
        if gross > most:
            out[r] *= most / gross
        now[:] = out[r]
    return out
