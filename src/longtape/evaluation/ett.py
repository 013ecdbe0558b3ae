"""ETTh1, the customary long-sequence benchmark, and any file of its form: a column `date`, then columns of values.

Borders, scaling and windows as in Zhou et al., "Informer" (AAAI 2021): 12, 4 and 4 months of 30 days for training,
validation and test, inputs reaching back over the border, mean and population deviation of the training rows, metrics
on scaled values. Every window is counted: no loader drops a last batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from longtape.core.arrays import Floats
from longtape.core.calendars import usual_step
from longtape.core.clock import DAY as DAY_MS
from longtape.core.clock import Interval, Milliseconds
from longtape.core.errors import UserError, unknown_name
from longtape.features.scaling import Standardizer
from longtape.market.series import usual_name
from longtape.market.timestamps import to_utc
from longtape.models.gram import Gram

Part = Literal["train", "validation", "test"]
Borders = Mapping[Part, tuple[int, int]]  # rows [first, end) of each part
MONTHS = {"train": 12, "validation": 4, "test": 4}  # of 30 days
DAY = 24  # rows
PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # of the ridge, times the number of rows
Forecaster = Callable[[Floats], Floats]  # x [B, L, C] → [B, H, C]


def borders_of_months(interval: Interval) -> Borders:
    """12, 4 and 4 months of 30 days, one after the other from the first row."""
    ends = [sum(list(MONTHS.values())[: n + 1]) * 30 * DAY_MS // interval.milliseconds for n in range(3)]
    return _borders(ends)


def borders_of_shares(n_rows: int, train: float, validation: float) -> Borders:
    """Shares of all rows, what is left for the test; UserError where a part would be empty."""
    if not (train > 0 and validation > 0 and train + validation < 1):
        raise UserError(
            f"split {train:g},{validation:g}: shares of training and validation, below 1 together"
        )
    test = int(
        n_rows * round(1 - train - validation, 9)
    )  # cut off, as the training rows are; validation has the rest
    return _borders([int(n_rows * train), n_rows - test, n_rows])


def _borders(ends: list[int]) -> Borders:
    return {"train": (0, ends[0]), "validation": (ends[0], ends[1]), "test": (ends[1], ends[2])}


@dataclass(frozen=True, eq=False)
class Ett:
    """`values` [T, C] as in the file, and the scaler of the training rows."""

    timestamps: Milliseconds
    values: Floats
    columns: tuple[str, ...]
    scaler: Standardizer
    borders: Borders
    interval: Interval
    name: str = "ETTh1"

    @cached_property
    def scaled(self) -> Floats:
        """[T, C]: less the mean and over the deviation of the training rows."""
        return (self.values - self.scaler.mean) / self.scaler.std

    def windows(self, part: Part, lookback: int, horizon: int) -> EttWindows:
        """All windows of a part, stride 1. UserError where there is none."""
        begin, end = self.borders[part]
        first = max(begin, lookback) if part == "train" else begin
        if first < lookback or end - horizon < first:
            raise UserError(f"{self.name}: no {part} window of lookback {lookback} and horizon {horizon}")
        return EttWindows(self.scaled, lookback, horizon, range(first, end - horizon + 1))


def earlier_fold(data: Ett) -> Ett:
    """The same with the last third of the training rows for validation, and what is before it for training."""
    end = data.borders["train"][1]
    borders: Borders = {
        "train": (0, end * 2 // 3),
        "validation": (end * 2 // 3, end),
        "test": data.borders["validation"],
    }
    scaler = Standardizer.fit(data.values, slice(*borders["train"]), data.columns)
    return replace(data, borders=borders, scaler=scaler, name=f"{data.name}, earlier")


@dataclass(frozen=True, eq=False)
class EttWindows:
    """Views: `starts` are the first rows that are to be forecast."""

    scaled: Floats
    lookback: int
    horizon: int
    starts: range

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, indices: npt.ArrayLike) -> tuple[Floats, Floats]:
        """Scaled inputs [B, lookback, C] and what follows them [B, horizon, C], float64."""
        rows = np.asarray(indices, np.int64) + self.starts.start
        x = np.stack([self.scaled[row - self.lookback : row] for row in rows])
        return x, np.stack([self.scaled[row : row + self.horizon] for row in rows])


def load_ett(
    path: str | Path, columns: tuple[str, ...] | None = None, split: tuple[float, float] | None = None
) -> Ett:
    """Read a file of ETTh1's form (times without zone, taken as UTC): all its columns, or some of them.

    `split`: shares of the rows for training and validation, in the place of ETT's months. UserError for a file that is
    none of that form or too short, for an unknown column and for a cell that is no number.
    """
    frame, times = _read(path)
    known = [name for name in frame.columns if name != "date"]
    for name in columns or ():
        if name not in known:
            raise unknown_name("column", name, known, str(path))
    chosen = columns or tuple(known)
    values = _numbers(frame.select(chosen), path)
    interval = usual_name(Interval(usual_step(times), ""))
    borders = borders_of_months(interval) if split is None else borders_of_shares(len(frame), *split)
    needed = borders["test"][1]
    if len(frame) < needed:
        raise UserError(
            f"{path}: {len(frame)} rows, and the benchmark needs {needed}; name a split by shares"
        )
    scaler = Standardizer.fit(values, slice(*borders["train"]), chosen)
    return Ett(times, values, chosen, scaler, borders, interval, Path(path).stem)


def _read(path: str | Path) -> tuple[pl.DataFrame, Milliseconds]:
    try:
        frame = pl.read_csv(path, infer_schema_length=None)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None
    if "date" not in frame.columns or len(frame.columns) < 2:
        raise UserError(f"{path}: cannot be read: it needs a column 'date' and columns of values beside it")
    if len(frame) < 2:
        raise UserError(f"{path}: {len(frame)} rows tell no interval; the benchmark needs more")
    times: Milliseconds = to_utc(frame["date"], str(path)).dt.timestamp("ms").to_numpy()
    late = np.flatnonzero(np.diff(times) <= 0)
    if len(late):
        raise UserError(f"{path}: row {late[0] + 2} is not later than the row before it")
    return frame, times


def _numbers(frame: pl.DataFrame, path: str | Path) -> Floats:
    """[T, C] float64. UserError for a cell that holds no finite number."""
    values: Floats = np.column_stack([one.cast(pl.Float64, strict=False).to_numpy() for one in frame])
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        raise UserError(f"{path}: row {row + 1}, column '{frame.columns[column]}': not a number")
    return values


@dataclass(frozen=True)
class Score:
    """Mean squared and mean absolute error over every window, step and column, in scaled units."""

    mse: float
    mae: float


def score(forecaster: Forecaster, windows: EttWindows, batch_size: int = 128) -> Score:
    """Score over all windows; the batch size does not matter."""
    squared = absolute = 0.0
    count = 0
    for first in range(0, len(windows), batch_size):
        x, y = windows.batch(np.arange(first, min(first + batch_size, len(windows))))
        error = forecaster(x) - y
        squared += float(np.vdot(error, error))
        absolute += float(np.abs(error).sum())
        count += error.size
    return Score(squared / count, absolute / count)


def repeat(horizon: int) -> Forecaster:
    """The last value, again and again."""
    return lambda x: np.repeat(x[:, -1:], horizon, axis=1)


def seasonal_naive(horizon: int, season: int = DAY) -> Forecaster:
    """The last `season` rows, again and again."""
    return lambda x: x[:, x.shape[1] - season + np.arange(horizon) % season]


def ridges(data: Ett, lookback: int, horizons: Sequence[int]) -> tuple[dict[int, Forecaster], float]:
    """For each horizon a ridge on windows less their last value, y − l = (x − l) W + b, and the penalty of all.

    It is the one of `PENALTIES` whose mean squared error, averaged over the horizons, is least on validation. One W and
    b for all columns.
    """
    parts: tuple[Part, Part] = ("train", "validation")
    grams = {h: [centred_gram(data.windows(part, lookback, h)) for part in parts] for h in horizons}
    fitted, checked = ([two[i] for two in grams.values()] for i in (0, 1))
    penalty, weights = least_on_validation(fitted, checked, [np.full(h, 1 / h) for h in horizons])
    return {h: _centred_forecaster(own) for h, own in zip(horizons, weights, strict=True)}, penalty


def _centred_forecaster(weights: Floats) -> Forecaster:
    def forecast(x: Floats) -> Floats:
        last = x[:, -1:]
        flat = weights[0] + _by_column(x - last) @ weights[1:]
        return flat.reshape(len(x), x.shape[2], -1).transpose(0, 2, 1) + last

    return forecast


def centred_gram(windows: EttWindows) -> Gram:
    """Sums of products of windows less their last value, a one in front of each, and of what follows them."""
    gram = Gram(windows.lookback + 1, windows.horizon)
    for first in range(0, len(windows), 512):
        x, y = windows.batch(np.arange(first, min(first + 512, len(windows))))
        last = x[:, -1:]
        ones = np.ones((len(x) * x.shape[2], 1))
        gram.add(np.concatenate([ones, _by_column(x - last)], axis=1), _by_column(y - last))
    return gram


def least_on_validation(
    fitted: Sequence[Gram], checked: Sequence[Gram], steps: Sequence[Floats]
) -> tuple[float, list[Floats]]:
    """The penalty of `PENALTIES` of least validation error over several regressions, and the weights [1 + F, n] of
    each; `steps` [n] of each say what the mean squared error of an output counts.
    """
    made = {penalty: [gram.ridge(penalty) for gram in fitted] for penalty in PENALTIES}

    def error(penalty: float) -> float:
        each = zip(checked, made[penalty], steps, strict=True)
        return float(sum(gram.errors(weights) @ counts / gram.count for gram, weights, counts in each))

    best = min(made, key=error)
    return best, made[best]


def ols(windows: EttWindows) -> Forecaster:
    """Least squares, closed form: (y − m) = (x − m) W + b with m the window's mean, one W and b for all columns.

    Fitted over every window and column of `windows`; a b per step lets it learn the drift of the training rows.
    """
    size = windows.lookback + 1
    gram, cross = np.zeros((size, size)), np.zeros((size, windows.horizon))
    for first in range(0, len(windows), 512):
        x, y = windows.batch(np.arange(first, min(first + 512, len(windows))))
        mean = x.mean(axis=1, keepdims=True)
        known, wanted = _with_one(_by_column(x - mean)), _by_column(y - mean)
        gram += known.T @ known
        cross += known.T @ wanted
    # centring leaves one direction empty: of all solutions the shortest
    weights = np.asarray(np.linalg.lstsq(gram, cross)[0], np.float64)

    def forecast(x: Floats) -> Floats:
        mean = x.mean(axis=1, keepdims=True)
        flat = _with_one(_by_column(x - mean)) @ weights  # [B·C, H]
        return flat.reshape(len(x), x.shape[2], -1).transpose(0, 2, 1) + mean

    return forecast


def _by_column(x: Floats) -> Floats:
    """[B, L, C] → [B·C, L]."""
    return np.ascontiguousarray(x.transpose(0, 2, 1)).reshape(-1, x.shape[1])


def _with_one(rows: Floats) -> Floats:
    return np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
