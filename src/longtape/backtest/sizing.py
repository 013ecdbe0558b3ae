"""What happens to weights between the signal and the account: holding, caps, bands, limits. [R, S] in and
out.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from longtape.core.arrays import Floats, Ints
from longtape.core.clock import Milliseconds
from longtape.core.errors import UserError


def hold(
    weights: Floats,
    times: Milliseconds,
    known: Milliseconds,
    ends: Ints,
    horizon: int,
    holding: str,
) -> Floats:
    """Weights in force at each decision, from the weights that each forecast asks for.

    The origin bar of decision r opens at `times[r]` and is known at `known[r]`; its forecast of symbol s has run out at
    `ends[r, s]` (0: there is none), `horizon` bars later. `newest`: the latest forecast counts, every time. `hold`: a
    forecast is held until it has run out, those in between are passed over. `ladder`: every forecast gets a tranche of
    one n-th, held until it has run out. n is the number of the symbol's decisions within one horizon; no tranche
    outlives n of them, so that |weight| never exceeds the largest that was asked for. NaN weights are no decision.
    """
    if holding == "newest":
        return _keep_last(weights)
    if holding not in ("hold", "ladder"):
        raise UserError(f"holding '{holding}' is not known; it is ladder, hold or newest")
    follow = _ladder if holding == "ladder" else _one_at_a_time
    out = np.zeros_like(weights)
    for s in range(weights.shape[1]):
        own = np.flatnonzero(ends[:, s] > 0)
        tranches = _tranches(times[own], known[own], ends[own, s], horizon)
        follow(weights[:, s].copy(), known, ends[:, s].copy(), own, tranches, out[:, s])
    return out


def _tranches(times: Milliseconds, known: Milliseconds, ends: Milliseconds, horizon: int) -> Ints:
    """Decisions within one horizon, as known at each of one symbol's decisions: `horizon` of them where every bar is
    an origin (one less where labels end at an open), fewer where origins are further apart.
    """
    usual, longest = _label_bars(times, known, ends, horizon)
    if (times[1:] <= known[:-1]).any():
        # Behind a weekend alone it shows which of the last two bars a label ends with.
        return np.where(longest == usual - 1, np.maximum(longest, 1), usual)
    runs = np.searchsorted(known, ends) - np.arange(len(known))
    complete = ends <= known.max(initial=0)
    exact = complete & np.isin(ends, known)
    most = runs[exact if exact.any() else complete].max(initial=0)
    return np.minimum(usual, most) if most else usual


@njit(cache=True)
def _label_bars(
    times: Milliseconds, known: Milliseconds, ends: Milliseconds, horizon: int
) -> tuple[Ints, Ints]:
    """What the labels seen so far say of their length, at each decision: bars between the close of the origin and the
    end (at most `horizon`; a gap only lengthens it), and the most decisions between a decision and its end.
    """
    bars, decisions = np.empty(len(times), np.int64), np.empty(len(times), np.int64)
    fewest, most, oldest = horizon, 0, 0
    for i in range(len(times)):
        length = known[i] - times[i]
        if length > 0:
            fewest = min(fewest, max(1, round((ends[i] - known[i]) / length)))
        while oldest < i and ends[oldest] < known[i]:
            oldest += 1
        if ends[oldest] == known[i]:
            most = max(most, i - oldest)
        bars[i], decisions[i] = fewest, most
    return bars, decisions


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
def _one_at_a_time(
    weights: Floats,
    known: Milliseconds,
    ends: Milliseconds,
    own: Ints,
    tranches: Ints,
    out: Floats,
) -> None:
    held, until, decided, begun = 0.0, known[0], -1, -1
    for r in range(len(weights)):
        if decided + 1 < len(own) and own[decided + 1] == r:
            decided += 1
        if known[r] >= until or (decided >= 0 and decided - begun >= tranches[decided]):
            fresh = ends[r] > 0 and weights[r] == weights[r]
            held = weights[r] if fresh else 0.0
            until = ends[r] if fresh else known[r]
            begun = decided
        out[r] = held


@njit(cache=True)
def _ladder(
    weights: Floats,
    known: Milliseconds,
    ends: Milliseconds,
    own: Ints,
    tranches: Ints,
    out: Floats,
) -> None:
    decided = -1
    for r in range(len(weights)):
        if decided + 1 < len(own) and own[decided + 1] == r:
            decided += 1
        total = 0.0
        for k in range(max(0, decided + 1 - tranches[decided]), decided + 1):
            q = own[k]
            if weights[q] == weights[q] and ends[q] > known[r]:
                total += weights[q]
        out[r] = total / tranches[decided] if decided >= 0 else 0.0


def within_gross_of(held: Floats, asked: Floats) -> Floats:
    """Rows of `held` scaled to the largest Σ|weight| of any row of `asked` so far, or to 1 where that is less."""
    most = np.maximum(1.0, np.maximum.accumulate(np.nansum(np.abs(asked), axis=1)))
    gross = np.abs(held).sum(axis=1)
    return held * (most / np.maximum(gross, most))[:, None]


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
