"""The mean of eight log-HARs, each fitted anew every month on what was known by then.

One log-HAR (`longtape.models.har`) must choose what it reads and how far back it believes in. This takes the mean of
the variances of eight instead (forecasts that err differently err less together: Bates & Granger 1969, "The
Combination of Forecasts"), which read the lags of

    squared returns; squared returns and ranges (Parkinson 1980); ranges and turnover; all three

and learn from a year of rows that count alike, or from all rows, of which those half a year older count half. What a
source does not report is left out.

The forecast of a row is made by the fit of its month, from labels that were known when the month began: it is a
function of that row and of those before it, and needs no fit of its own in advance.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from longtape.core.arrays import Flags, Floats, Ints
from longtape.core.clock import DAY
from longtape.core.scoring import SMALLEST_VARIANCE
from longtape.features.panel import Panel
from longtape.models.gram import Gram, chunks
from longtape.models.har import (
    FLOOR,
    LEAST_PENALTY,
    ROWS_A_LAG,
    WEEKS_OF_CELLS,
    HarDesign,
    shrunk_weights,
    squared_returns,
)

YEAR = 365 * DAY
HALF_LIFE = YEAR / 2
_MADE: WeakKeyDictionary[Panel, dict[tuple[object, ...], Floats]] = WeakKeyDictionary()


def monthly_log_variance(design: HarDesign, panel: Panel, asset: int, columns: Ints, since: int) -> Floats:
    """ln of the expected variance [T, n] of the targets `columns` [n] of one asset.

    Rows known before `since` (UTC ms) are never learnt from, so that data put in front change nothing. Until there are
    rows to fit, the forecast is the mean r² so far, over the horizon. Made once for a panel, which many seeds may ask.
    """
    made, key = _MADE.setdefault(panel, {}), (design, asset, tuple(columns.tolist()), since)
    if key not in made:
        made[key] = _fitted_monthly(design, panel, asset, columns, since)
        made[key].flags.writeable = False
    return made[key]


def _fitted_monthly(design: HarDesign, panel: Panel, asset: int, columns: Ints, since: int) -> Floats:
    rows = _Rows(design, panel, asset, columns, since)
    out = rows.level()
    memories = (_Fading(rows), _Window(rows))
    for month in rows.months():
        known = rows.known_by(int(panel.known_at[month[0]]))
        for memory in memories:
            memory.learn(known, int(panel.known_at[month[0]]))
        fits = [fit for memory in memories for fit in memory.fits()]
        if fits:
            out[month] = np.log(np.mean([np.exp(rows.apply(month, fit)) for fit in fits], axis=0))
    return out


@dataclass(frozen=True, eq=False)
class _Fit:
    """ln f² = inputs · weights + cells[cell] + intercept, the mean of the exponentiated residuals within."""

    weights: Floats  # [P, n]
    cells: Floats  # [cells, n]
    intercept: Floats  # [n]


class _Rows:
    """What the regressions read of each row, and the labels that they explain."""

    def __init__(self, design: HarDesign, panel: Panel, asset: int, columns: Ints, since: int) -> None:
        self.design, self.panel = design, panel
        self.squares = squared_returns(panel, asset)
        self.horizons = np.array([panel.target_columns[k].horizon for k in columns])
        labels = panel.targets[:, columns] ** 2 / self.horizons
        ends = panel.target_ends[:, columns].max(axis=1)
        whole = (
            (panel.known_at >= since)
            & (np.arange(len(panel)) >= design.lags[0])
            & np.isfinite(labels).all(axis=1)
        )
        self.learnable = np.flatnonzero(whole)
        self.ends = ends[self.learnable]
        self.mean = self._mean_so_far(self.squares, since)
        floor = _floor(self.mean)
        self.labels = np.log(np.maximum(labels, np.exp(floor))) + np.log(self.horizons)
        self.inputs, self.sets = self._inputs(asset, floor, since)
        self.cells = design.cells(panel)

    def _mean_so_far(self, values: Floats, since: int) -> Floats:
        """Mean of the bars since `since` [T]."""
        counted = (self.panel.known_at >= since) & np.isfinite(values)
        total = np.cumsum(np.where(counted, values, 0.0))
        return np.maximum(total / np.maximum(np.cumsum(counted), 1), SMALLEST_VARIANCE)

    def _inputs(self, asset: int, floor: Floats, since: int) -> tuple[Floats, list[Flags]]:
        """[T, P] logarithms of lagged means of every source, and which of them each of the regressions reads."""
        present, panel, design = self.panel.present[:, asset], self.panel, self.design
        parts = {"returns": np.maximum(design.log_means(self.squares, present), floor)}
        if panel.ranges is not None:
            parts["ranges"] = np.maximum(design.log_means(panel.ranges[:, asset], present), floor)
        if panel.turnover is not None and panel.turnover[:, asset].any():
            turnover = panel.turnover[:, asset]
            least = _floor(self._mean_so_far(turnover, since))
            parts["turnover"] = np.maximum(design.log_means(turnover, present), least)
        wanted = (("returns",), ("returns", "ranges"), ("ranges", "turnover"), tuple(parts))
        told = [names for names in dict.fromkeys(wanted) if set(names) <= set(parts)]
        names = np.repeat(list(parts), len(design.lags))
        return np.concatenate(list(parts.values()), axis=1), [np.isin(names, chosen) for chosen in told]

    def months(self) -> Iterator[Ints]:
        """Rows of each calendar month (UTC), in order."""
        month = self.panel.known_at.astype("datetime64[ms]").astype("datetime64[M]").astype(np.int64)
        yield from np.split(np.arange(len(month)), np.flatnonzero(np.diff(month)) + 1)

    def known_by(self, time: int) -> Ints:
        """Rows to learn from whose labels are known at `time`."""
        return self.learnable[: int(np.searchsorted(self.ends, time, side="right"))]

    def level(self) -> Floats:
        """ln(mean r² so far · horizon) [T, n]."""
        return np.log(self.mean)[:, None] + np.log(self.horizons)

    def matrix(self, rows: Ints) -> Floats:
        """[m, 1 + P + cells]."""
        n_inputs = self.inputs.shape[1]
        out = np.zeros((len(rows), 1 + n_inputs + self.design.n_cells))
        out[:, 0] = 1.0
        out[:, 1 : 1 + n_inputs] = self.inputs[rows]
        out[np.arange(len(rows)), 1 + n_inputs + self.cells[rows]] = 1.0
        return out

    def apply(self, rows: Ints, fit: _Fit) -> Floats:
        """[m, n]."""
        out: Floats = fit.cells[self.cells[rows]] + fit.intercept
        for column, weights in zip(self.inputs[rows].T, fit.weights, strict=True):
            out += column[:, None] * weights  # a matrix product has other bits in other company
        return out


def _floor(mean: Floats) -> Floats:
    """ln of a small part of a mean [T, 1]: what is below it tells no more in a logarithm."""
    return np.log(np.maximum(FLOOR * mean, SMALLEST_VARIANCE))[:, None]


class _Memory:
    """Sums over the rows that were learnt, how much each of them counts, and the regressions that follow."""

    def __init__(self, rows: _Rows) -> None:
        self.rows, self.learnt, self.now = rows, np.empty(0, np.int64), 0
        self.gram = Gram(1 + rows.inputs.shape[1] + rows.design.n_cells, len(rows.horizons))

    def learn(self, known: Ints, now: int) -> None:
        """Add what became known; forget as time passes."""
        self._forget(now)
        fresh = known[len(self.learnt) :]
        self.learnt, self.now = known, now
        self._add(fresh, self.weights(fresh))

    def weights(self, rows: Ints) -> Floats:
        """How much rows count now, [m]."""
        raise NotImplementedError

    def _forget(self, now: int) -> None:
        raise NotImplementedError

    def _add(self, rows: Ints, weights: Floats) -> None:
        for part in chunks(np.arange(len(rows))):
            of = rows[part]
            self.gram.add(self.rows.matrix(of), self.rows.labels[of], weights[part])

    def fits(self) -> Iterator[_Fit]:
        """One for each set of inputs; none while the shortest lag is not yet told."""
        used, design = self._used(), self.rows.design
        n_lags = sum(lag * ROWS_A_LAG <= len(used) for lag in design.lags)
        if n_lags == 0:
            return
        told = np.tile(np.arange(len(design.lags)) < n_lags, self.rows.inputs.shape[1] // len(design.lags))
        spanned = self.rows.panel.known_at[used[-1]] - self.rows.panel.known_at[used[0]]
        has_cells = bool(spanned >= WEEKS_OF_CELLS * 7 * DAY) or design.n_cells == 1
        for chosen in self.rows.sets:
            penalties = np.where(told & chosen, LEAST_PENALTY, np.inf)
            yield self._fit(shrunk_weights(self.gram, penalties, has_cells), used)

    def _used(self) -> Ints:
        return self.learnt[self.weights(self.learnt) > 0]

    def _fit(self, weights: Floats, used: Ints) -> _Fit:
        n_inputs = self.rows.inputs.shape[1]
        plain = _Fit(weights[1 : 1 + n_inputs], weights[1 + n_inputs :], weights[0])
        count, total = 0.0, np.zeros(len(self.rows.horizons))
        for part in chunks(used):
            own = self.weights(part)
            residual = self.rows.labels[part] - self.rows.apply(part, plain)
            count, total = count + own.sum(), total + (own[:, None] * np.exp(residual)).sum(axis=0)
        return _Fit(
            plain.weights, plain.cells, plain.intercept + np.log(np.maximum(total / count, SMALLEST_VARIANCE))
        )


class _Fading(_Memory):
    """All rows; one that is a half-life older counts half."""

    def weights(self, rows: Ints) -> Floats:
        age: Floats = (self.now - self.rows.panel.known_at[rows]) / HALF_LIFE
        return 0.5**age

    def _forget(self, now: int) -> None:
        self.gram.fade(0.5 ** ((now - self.now) / HALF_LIFE) if self.now else 1.0)


class _Window(_Memory):
    """The rows of the last year, which count alike."""

    def weights(self, rows: Ints) -> Floats:
        return (self.rows.panel.known_at[rows] >= self.now - YEAR).astype(np.float64)

    def _forget(self, now: int) -> None:
        known = self.rows.panel.known_at[self.learnt]
        old = self.learnt[(known >= self.now - YEAR) & (known < now - YEAR)]
        self._add(old, -np.ones(len(old)))
