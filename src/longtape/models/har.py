"""Log-HAR: the logarithm of the coming variance from logarithms of past ones, with a level for every hour of the week.

Corsi (2009), "A Simple Approximate Long-Memory Model of Realized Volatility", in logarithms:

    ln y² = a + Σ_l b_l · ln(mean r² over lag l) + c(hour of the week)

Hours are the market's own, so that a change of its clock moves none. The levels c are drawn from N(0, τ²), so they are
shrunk towards zero by the ratio of the residuals' variance to τ², which the data say (empirical Bayes, by moments): a
market without hours gets none, and an hour that training lacks is forecast at the general level. A lag that the
training rows do not hold four times over is left out, so that no forecast reads beyond the data; the levels are left
out of training that is shorter than four weeks, where an hour cannot be told from the weather of its day.

The expected variance is e^(fit) times the mean of the exponentiated residuals (Duan 1983, "Smearing estimate"), which
is right whatever their distribution; e^(s²/2) is right for normal ones only, and a squared return of one bar is far
from that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from longtape.core.arrays import Flags
from longtape.core.calendars import bars_per_day, hour_of_week, market_dates
from longtape.core.clock import ALWAYS_OPEN, DAY, HOUR, WEEK, Interval
from longtape.core.errors import UserError
from longtape.core.scoring import SMALLEST_VARIANCE
from longtape.features.panel import Panel, Rows
from longtape.features.rolling import rolling_mean
from longtape.models.gram import Gram, chunks

Array = npt.NDArray[np.float64]
ROWS_A_LAG = 4  # training rows for each bar of a lag: fewer do not tell a month's volatility from its level
WEEKS_OF_CELLS = 4
FLOOR = (
    1e-4  # of the mean variance: a bar without a move tells no more in a logarithm than one that hardly moved
)
LEAST_PENALTY = 1e-8  # of a lag: none, but that two alike share their weight
LEAST_PRIOR, MOST_PRIOR = 1e-3, 1e9  # rows without an effect that count for each cell beside its own
MINUTES = (1 / 288, 1 / 96, 1 / 24)  # 5, 15 and 60 minutes, where they are three bars or more
DAYS_OPEN = (
    1 / 8,
    1 / 4,
    1 / 2,
    1,
    3,
    7,
    30,
)  # lags of intraday bars where the market never closes: 3 h to 720 h
DAYS_SESSIONS = (1 / 8, 1 / 4, 1 / 2, 1, 3, 5, 21)  # the same week and month in sessions
DAILY = (1, 2, 5, 10, 22, 66, 252)  # bars of a day
LONGER = (1, 2, 4, 13, 26, 52)  # bars of a week or more
EVENTS = (10, 30, 100, 300, 1_000)


@dataclass(frozen=True)
class HarDesign:
    """Lags in bars, and the cells of the week: 168 hours, 7 days, or one."""

    lags: tuple[int, ...]
    n_cells: int

    @classmethod
    def of(cls, interval: Interval, calendar: str) -> HarDesign:
        """The lags that suit bars of this length in this market."""
        step = interval.milliseconds
        if step == 0:
            return cls(EVENTS, 1)
        if step >= DAY:
            return cls(DAILY, 7) if step < WEEK else cls(LONGER, 1)
        per_day = bars_per_day(interval, calendar)
        short = [round(24 * HOUR / step * lag) for lag in MINUTES]
        lags = DAYS_OPEN if calendar == ALWAYS_OPEN else DAYS_SESSIONS
        found = [bars for bars in short if bars >= 3] + [max(1, round(per_day * lag)) for lag in lags]
        return cls(tuple(sorted(set(found))), 168)

    def within(self, reach: int | None) -> HarDesign:
        """The lags of at most `reach` bars. UserError where there is none."""
        if reach is None:
            return self
        lags = tuple(lag for lag in self.lags if lag <= reach)
        if not lags:
            raise UserError(f"model.volatility_reach: {reach} is below the shortest lag, {self.lags[0]} bars")
        return HarDesign(lags, self.n_cells)

    def used(self, n_rows: int) -> int:
        """How many lags, the shortest first, so many training rows can tell of: all, but where the data are short."""
        return max(sum(lag * ROWS_A_LAG <= n_rows for lag in self.lags), 1)

    def lagged(self, panel: Panel, asset: int) -> Array:
        """ln(mean r² over each lag) [T, L] (`log_means`); of pooled rows in the unit of their labels."""
        parts = [self.log_means(squared_returns(one, asset), one.present[:, asset]) for one in panel.series]
        found = np.concatenate(parts)
        return found if panel.unit is None else found - 2 * np.log(panel.unit)[:, None]

    def log_means(self, values: Array, present: Flags) -> Array:
        """ln of the mean of `values` [T] over each lag, [T, L]; where the data begin, over what there is.

        A price that was carried over a missing bar did not stand still: such bars do not count. A lag that holds
        none but such bars says what the next longer one says.
        """
        there = present.astype(np.float64)
        counted = np.nan_to_num(values) * there
        out = np.empty((len(values), len(self.lags)))
        longer = np.full(len(values), SMALLEST_VARIANCE)
        for at in reversed(range(len(self.lags))):
            bars = trailing_mean(there, self.lags[at])
            longer = np.where(
                bars > 0, trailing_mean(counted, self.lags[at]) / np.where(bars > 0, bars, 1), longer
            )
            out[:, at] = longer
        return np.log(np.maximum(out, SMALLEST_VARIANCE))

    def cells(self, panel: Panel) -> Rows:
        """The hour (bars of a day: the day) of the week in which each label begins, [T]."""
        if self.n_cells == 1:
            return np.zeros(len(panel), np.int64)
        if self.n_cells == 7:
            return (market_dates(panel.timestamps, panel.interval, panel.calendar) + 3) % 7
        return hour_of_week(panel.known_at, panel.calendar)


def squared_returns(panel: Panel, asset: int) -> Array:
    """r² of every bar [T], NaN for the first."""
    with np.errstate(invalid="ignore"):
        returns: Array = np.diff(np.log(panel.closes[:, asset]), prepend=np.nan)
    return returns**2


def trailing_mean(values: Array, width: int) -> Array:
    """Mean over the last `width` values, over fewer where there are fewer."""
    growing = np.cumsum(values[: width - 1]) / np.arange(1, min(width, len(values) + 1))
    if len(values) < width:
        return growing
    out = rolling_mean(np.ascontiguousarray(values), width)
    out[: width - 1] = growing
    return out


@dataclass(frozen=True, eq=False)
class LogHarFit:
    """ln f² = intercept + smearing + lags · lag_weights + cell_weights[cell], for n horizons."""

    lag_weights: Array  # [L, n]
    cell_weights: Array  # [cells, n]
    intercept: Array  # [n]
    smearing: Array  # [n], ln of the mean exponentiated residual
    normal: Array  # [n], s²/2, what a normal residual would ask for instead
    log_floor: float  # the least ln(mean r²) that is told apart

    def log_variance(self, lagged: Array, cells: Rows) -> Array:
        """[m, n]."""
        told = np.maximum(lagged, self.log_floor)
        return told @ self.lag_weights + self.cell_weights[cells] + self.intercept + self.smearing


def fit_log_har(design: HarDesign, panel: Panel, asset: int, columns: Rows, origins: Rows) -> LogHarFit:
    """Least squares on the origins whose labels `columns` [n] are known and whose lags lie in the data."""
    rows = HarRows(design, panel, asset, columns, origins)
    gram = rows.gram()
    for part in chunks(origins):
        rows.add(gram, part)
    return rows.fitted(gram, origins)


def shrunk_weights(gram: Gram, penalties: Array, has_cells: bool) -> Array:
    """Weights [1 + P + cells, n] of an intercept, P inputs with their penalties, and cells.

    The cells of each output are shrunk by the prior that its own residuals say; without `has_cells` they are 0.
    """

    def penalty(prior: float) -> Array:
        return np.concatenate([[0.0], penalties, np.full(len(gram.xx) - 1 - len(penalties), prior)])

    if not has_cells:
        return gram.solve(penalty(np.inf))
    loose = gram.solve(penalty(LEAST_PRIOR))
    priors = _priors(gram, loose, 1 + len(penalties))
    return np.stack([gram.solve(penalty(prior))[:, k] for k, prior in enumerate(priors)], axis=1)


def _priors(gram: Gram, weights: Array, first: int) -> list[float]:
    """s²/τ² of each output: τ² is what the levels vary by beyond what chance gives levels of so many rows."""
    rows, cells = np.diag(gram.xx)[first:], weights[first:]
    seen = int((rows > 0).sum())
    noise = gram.errors(weights) / max(gram.count - first - seen, 1)
    variance = (rows[:, None] * cells**2).sum(axis=0) / max(gram.count, 1)
    beyond = np.maximum(variance - noise * max(seen - 1, 0) / max(gram.count, 1), 0.0)
    ratio = noise / np.maximum(beyond, noise / MOST_PRIOR)
    return [
        float(np.clip(r, LEAST_PRIOR, MOST_PRIOR)) if n > 0 else LEAST_PRIOR
        for r, n in zip(ratio, noise, strict=True)
    ]


class HarRows:
    """The design of one asset on a panel, read in chunks: 1, lags, one column for each cell."""

    def __init__(self, design: HarDesign, panel: Panel, asset: int, columns: Rows, origins: Rows) -> None:
        self.design, self.columns, self.panel = design, columns, panel
        self.n_lags = design.used(len(origins))
        span = np.ptp(panel.timestamps[origins])
        self.has_cells = bool(span >= WEEKS_OF_CELLS * WEEK) or design.n_cells == 1
        self.horizons = np.array([panel.target_columns[k].horizon for k in columns])
        self.log_floor = self._log_floor(origins)
        self.lagged = np.maximum(design.lagged(panel, asset), self.log_floor)
        self.cells = design.cells(panel)

    def gram(self) -> Gram:
        """Sums that hold no row yet."""
        return Gram(1 + len(self.design.lags) + self.design.n_cells, len(self.columns))

    def add(self, gram: Gram, origins: Rows) -> None:
        """Add the origins whose labels are known."""
        known = self._known(origins)
        gram.add(self._design(known), self._labels(known))

    def fitted(self, gram: Gram, origins: Rows) -> LogHarFit:
        """The regression that `gram` gives, its residuals taken over `origins`."""
        n_lags = len(self.design.lags)
        weights = self.solve(gram)
        count, exponentials, squares = 0, np.zeros(len(self.columns)), np.zeros(len(self.columns))
        for part in chunks(origins):
            known = self._known(part)
            residual = self._labels(known) - self._apply(known, weights)
            count += len(known)
            exponentials += np.exp(residual).sum(axis=0)
            squares += (residual**2).sum(axis=0)
        intercept, lags, cells = weights[0], weights[1 : 1 + n_lags], weights[1 + n_lags :]
        smearing = np.log(np.maximum(exponentials / max(count, 1), SMALLEST_VARIANCE))
        return LogHarFit(lags, cells, intercept, smearing, squares / max(count, 1) / 2, self.log_floor)

    def solve(self, gram: Gram) -> Array:
        """Weights [1 + L + cells, n] (`shrunk_weights`)."""
        lags = np.where(np.arange(len(self.design.lags)) < self.n_lags, LEAST_PENALTY, np.inf)
        return shrunk_weights(gram, lags, self.has_cells)

    def _log_floor(self, origins: Rows) -> float:
        squares = self.panel.targets[origins][:, self.columns] ** 2 / self.horizons
        mean = float(np.nanmean(squares)) if np.isfinite(squares).any() else 0.0
        return float(np.log(max(FLOOR * mean, SMALLEST_VARIANCE)))

    def _labels(self, origins: Rows) -> Array:
        """ln y² [m, n], at least as much as the floor says of so many bars."""
        squares = self.panel.targets[origins][:, self.columns] ** 2 / self.horizons
        floored: Array = np.maximum(np.log(np.maximum(squares, SMALLEST_VARIANCE)), self.log_floor)
        return floored + np.log(self.horizons)

    def _known(self, origins: Rows) -> Rows:
        whole = origins[self.panel.row_in_series[origins] >= self.design.lags[self.n_lags - 1]]
        return whole[np.isfinite(self.panel.targets[whole][:, self.columns]).all(axis=1)]

    def _design(self, origins: Rows) -> Array:
        out = np.zeros((len(origins), 1 + len(self.design.lags) + self.design.n_cells))
        out[:, 0] = 1.0
        out[:, 1 : 1 + len(self.design.lags)] = self.lagged[origins]
        out[np.arange(len(origins)), 1 + len(self.design.lags) + self.cells[origins]] = 1.0
        return out

    def _apply(self, origins: Rows, weights: Array) -> Array:
        n_lags = len(self.design.lags)
        of_cells: Array = weights[1 + n_lags :][self.cells[origins]]
        return weights[0] + self.lagged[origins] @ weights[1 : 1 + n_lags] + of_cells
