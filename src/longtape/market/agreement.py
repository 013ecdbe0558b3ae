"""Whether series of one store tell the same time: returns that agree a bar too early or too late."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from longtape.core.clock import DAY, Interval
from longtape.market.bars import Bars

CLEAR = 0.3  # the least |correlation| of returns that says anything
MORE = 0.1  # by which that of neighbouring bars exceeds that of the same bar
_LEAST, _MOST = 100, 200_000  # common moments: fewer prove nothing, more take memory

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Lead:
    """`follower` agrees with `leader` one bar before: |correlation| of returns `shifted`; `same` at the same bar."""

    leader: str
    follower: str
    interval: Interval
    shifted: float
    same: float

    @property
    def text(self) -> str:
        """One line with the way out."""
        hours = (
            ""
            if self.interval.milliseconds < DAY
            else ", or their markets close at different hours of the day"
        )
        return (
            f"returns of {self.follower} agree with those of {self.leader} one bar of {self.interval} before"
            f" (correlation {self.shifted:.3f}, of the same bar {self.same:.3f}): {self.follower} may be stamped at its"
            f" close (import it again with --stamp close){hours}; a forecast of the one from the other would see the"
            " future"
        )


def leads(bars: Sequence[Bars]) -> list[Lead]:
    """Pairs of series of one interval whose log returns agree more with a neighbouring bar than with the same one.

    That is where |correlation| at lag ±1 is above `CLEAR` and exceeds that at lag 0 by `MORE`, over at least 100 common
    moments; of the two the one that more pairs name is taken for the late one. The same market at two exchanges, one of
    them stamped at its close, agrees at .99 after a shift by one bar and not at all before.
    """
    by_interval: dict[Interval, list[Bars]] = {}
    for one in bars:
        if len(one) > _LEAST:
            by_interval.setdefault(one.interval, []).append(one)
    return [lead for interval, group in by_interval.items() for lead in _leads_of(group, interval)]


def _leads_of(bars: Sequence[Bars], interval: Interval) -> list[Lead]:
    if len(bars) < 2:
        return []
    returns, there = _returns(bars)
    same = _correlation(returns, there, returns, there)
    later = _correlation(returns[:-1], there[:-1], returns[1:], there[1:])  # [leader, follower]
    names = [one.instrument.key for one in bars]
    found = [
        Lead(names[i], names[j], interval, float(abs(later[i, j])), float(abs(same[i, j])))
        for i, j in zip(*np.nonzero((later > CLEAR) | (later < -CLEAR)), strict=True)
        if i != j and abs(later[i, j]) > abs(same[i, j]) + MORE and abs(later[i, j]) >= abs(later[j, i])
    ]
    return found


def _returns(bars: Sequence[Bars]) -> tuple[Matrix, Matrix]:
    """Log returns less their mean [T, S] on the union of the clocks, 0 where there is none; 1 where there is one."""
    clock = np.unique(np.concatenate([one.timestamps for one in bars]))[-_MOST:]
    returns, there = np.zeros((len(clock), len(bars))), np.zeros((len(clock), len(bars)))
    for s, one in enumerate(bars):
        own = one.between(int(clock[0]))
        rows = np.searchsorted(clock, own.timestamps)
        moves = np.diff(np.log(own.column("close")))
        known = np.diff(rows) == 1  # a return over a hole belongs to no single bar
        returns[rows[1:][known], s] = moves[known] - (moves[known].mean() if known.any() else 0.0)
        there[rows[1:][known], s] = 1.0
    return returns, there


def _correlation(x: Matrix, x_there: Matrix, y: Matrix, y_there: Matrix) -> Matrix:
    """Correlation of each column of x with each of y [S, S] over the rows both have; 0 where these are too few."""
    spread = np.sqrt((x**2).T @ y_there) * np.sqrt(x_there.T @ y**2)
    enough = (x_there.T @ y_there >= _LEAST) & (spread > 0)
    found: Matrix = np.where(enough, x.T @ y / np.where(spread > 0, spread, 1.0), 0.0)
    return found


def named_most(found: Sequence[Lead]) -> list[tuple[str, list[Lead]]]:
    """Leads by the series that most of them name, each once: one series that is late leads to one entry."""
    counts = Counter(name for lead in found for name in (lead.follower, lead.leader))
    groups: dict[str, list[Lead]] = {}
    for lead in found:
        late = lead.follower if counts[lead.follower] >= counts[lead.leader] else lead.leader
        groups.setdefault(late, []).append(lead)
    return list(groups.items())
