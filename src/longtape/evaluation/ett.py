"""ETTh1, the customary long-sequence benchmark: two years of hourly transformer loads and oil temperature.

Borders, scaling and windows as in Zhou et al., "Informer" (AAAI 2021): 12, 4 and 4 months of 30 days for training,
validation and test, inputs reaching back over the border, mean and population deviation of the training rows, metrics
on scaled values. Every window is counted: no loader drops a last batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from longtape.core.arrays import Floats
from longtape.core.clock import Milliseconds
from longtape.core.errors import UserError, unknown_name
from longtape.features.scaling import Standardizer

Part = Literal["train", "validation", "test"]
COLUMNS = ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
BORDERS: dict[Part, tuple[int, int]] = {
    "train": (0, 8_640),
    "validation": (8_640, 11_520),
    "test": (11_520, 14_400),
}
DAY = 24  # rows
Forecaster = Callable[[Floats], Floats]  # x [B, L, C] → [B, H, C]


@dataclass(frozen=True, eq=False)
class Ett:
    """`values` [T, C] as in the file, and the scaler of the training rows."""

    timestamps: Milliseconds
    values: Floats
    columns: tuple[str, ...]
    scaler: Standardizer

    def windows(self, part: Part, lookback: int, horizon: int) -> EttWindows:
        """All windows of a part, stride 1. UserError where there is none."""
        begin, end = BORDERS[part]
        first = max(begin, lookback) if part == "train" else begin
        if first < lookback or end - horizon < first:
            raise UserError(f"ETTh1: no {part} window of lookback {lookback} and horizon {horizon}")
        scaled = (self.values - self.scaler.mean) / self.scaler.std
        return EttWindows(scaled, lookback, horizon, range(first, end - horizon + 1))


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


def load_ett(path: str | Path, columns: tuple[str, ...] = COLUMNS) -> Ett:
    """Read `ETTh1.csv` (times without zone, taken as UTC). UserError for another file or an unknown column."""
    try:
        frame = pl.read_csv(path, schema_overrides=dict.fromkeys(COLUMNS, pl.Float64))
        times = frame["date"].str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="ms").dt.timestamp("ms")
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{path}: cannot be read as ETTh1.csv ({str(error).splitlines()[0]})") from None
    for name in columns:
        if name not in frame.columns:
            raise unknown_name("column", name, COLUMNS, str(path))
    if len(frame) < BORDERS["test"][1]:
        raise UserError(f"{path}: {len(frame)} rows, and the benchmark needs {BORDERS['test'][1]}")
    values = frame.select(columns).to_numpy()
    return Ett(times.to_numpy(), values, columns, Standardizer.fit(values, slice(*BORDERS["train"]), columns))


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
