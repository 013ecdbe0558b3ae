"""Intervals: the head's own, or from the errors on windows of a period that serves nothing else.

A conformal interval (`forecasting.conformal`) is as wide as the errors of the calibration period say. Errors of returns
are scaled by the volatility forecast of their asset, where the model makes one (that of the nearest horizon), so that
intervals breathe with the market; errors of volatility are log ratios, each side with half of what the level leaves.
`adaptive` moves the level by the misses since. `cqr` (Romano, Patterson & Candès 2019) widens or narrows the head's own
interval by the errors of its bounds. `mc_dropout` adds the errors of the calibration period to the spread of passes
with dropout. Where the rows are too few for a level, only an infinite bound is valid, and it is given. Coverage is
promised for exchangeable data (by `adaptive` for any, in the long run); markets are not, so it is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from longtape.features.panel import TargetColumn
from longtape.forecasting.config import Method, bounds_of
from longtape.forecasting.conformal import (
    RATE,
    adaptive_bounds,
    conformal_quantile,
    conformal_rank,
    error_bounds,
)
from longtape.forecasting.predict import Predicted

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Bounds = tuple[Array, Array]  # lower and upper [n, K], original units
_GRID = 200  # values that stand for the errors which mc_dropout adds
_METHOD: Literal["inverted_cdf"] = (
    "inverted_cdf"  # one of the errors, not a value between two: that of a volatility of 0 is −∞
)


@dataclass(frozen=True)
class TargetCalibration:
    """What the calibration period says of one target."""

    method: Method | None  # None: no interval, as for classes
    bounds: tuple[
        tuple[float, float], ...
    ] = ()  # of the error, for each level; ∓∞ where the rows are too few
    scaled_by: int | None = None  # the target whose forecast scales the error
    rows: int = 0  # calibration windows that it was made from
    threshold: float = 0.0  # the size of forecast below which nothing is traded
    errors: tuple[float, ...] = ()  # adaptive: in order of time; mc_dropout: their quantiles


@dataclass(frozen=True)
class Calibration:
    """Levels of the intervals, the usual one first, and what makes them for each target."""

    levels: tuple[float, ...]
    targets: tuple[TargetCalibration, ...]

    @property
    def quantiles(self) -> tuple[float, ...]:
        """The probabilities below all bounds, for the heads that state them."""
        return tuple(p for level in self.levels for p in bounds_of(level))

    @property
    def takes_quantiles(self) -> bool:
        """True where an interval is made from the head's own quantiles."""
        return any(target.method in ("cqr", "quantile", "student_t") for target in self.targets)

    def uses(self, method: Method) -> bool:
        """True where some interval is made in this way."""
        return any(target.method == method for target in self.targets)

    def shortages(self, targets: Sequence[TargetColumn]) -> list[str]:
        """A line for each target whose interval is infinite for want of calibration rows."""
        lines = []
        for target, made in zip(targets, self.targets, strict=True):
            wide = [
                f"{level:.0%}"
                for level, pair in zip(self.levels, made.bounds, strict=False)
                if np.isinf(pair).any()
            ]
            if wide:
                verb = "begins" if made.method == "adaptive" else "is"
                lines.append(
                    f"The interval of {target.asset} {target.name} {verb} infinite: {made.rows} calibration rows are"
                    f" too few for {' and '.join(wide)}."
                )
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; infinity is written as text."""
        kept = [asdict(target) for target in self.targets]
        for one in kept:
            one["bounds"] = [[_written(v) for v in pair] for pair in one["bounds"]]
            one["errors"] = [_written(v) for v in one["errors"]]
        return {"levels": list(self.levels), "targets": kept}

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> Calibration:
        """Back from JSON."""
        targets = []
        for one in kept["targets"]:
            bounds = tuple((float(low), float(high)) for low, high in one["bounds"])
            errors = tuple(float(error) for error in one["errors"])
            targets.append(TargetCalibration(**{**one, "bounds": bounds, "errors": errors}))
        return cls(tuple(kept["levels"]), tuple(targets))


def _written(value: float) -> float | str:
    """As JSON has it: infinity as text."""
    return str(value) if np.isinf(value) else value


@dataclass(frozen=True, eq=False)
class Course:
    """What adaptive intervals follow: n consecutive forecasts in order of time."""

    made: npt.NDArray[np.int64]  # [n] when each is made
    known: npt.NDArray[np.int64]  # [n, K] when its labels are there
    actual: Array  # [n, K], NaN where not known
    since: Flags  # [n] made after the calibration period


def calibrate(
    targets: Sequence[TargetColumn],
    methods: Sequence[Method | None],
    predicted: Predicted,
    actual: Array,
    levels: Sequence[float],
    traded: float | None = None,
) -> Calibration:
    """From forecasts and labels [n, K] of calibration windows. `traded`: the share of the largest forecasts that is to
    trade.
    """
    made = []
    for column, (target, method) in enumerate(zip(targets, methods, strict=True)):
        one = _calibrated(targets, column, method, predicted, actual, levels)
        if traded is not None and target.is_traded and not target.auxiliary:
            threshold = float(np.quantile(np.abs(predicted.mean[:, column]), 1 - traded))
            one = TargetCalibration(**{**vars(one), "threshold": threshold})
        made.append(one)
    return Calibration(tuple(levels), tuple(made))


def _calibrated(
    targets: Sequence[TargetColumn],
    column: int,
    method: Method | None,
    predicted: Predicted,
    actual: Array,
    levels: Sequence[float],
) -> TargetCalibration:
    known = np.isfinite(actual[:, column])
    rows, y = int(known.sum()), actual[known, column]
    if method in (None, "quantile", "student_t"):
        return TargetCalibration(method, rows=rows)
    if method == "cqr":
        return TargetCalibration(
            method, tuple(_own_errors(predicted, y, known, column, p) for p in levels), rows=rows
        )
    two_sided, scaled_by = _two_sided(targets[column]), _scale_of(targets, column)
    errors = _errors(targets[column], y, predicted.mean[known], column, scaled_by)
    bounds = tuple(error_bounds(errors, level, two_sided) for level in levels)
    if method == "mc_dropout":
        bounds = tuple(_too_few(rows, level) for level in levels)
        errors = np.quantile(errors, (np.arange(_GRID) + 0.5) / _GRID, method=_METHOD) if rows else errors
    kept = tuple(errors.tolist()) if method in ("mc_dropout", "adaptive") else ()
    return TargetCalibration(method, bounds, scaled_by, rows, errors=kept)


def _own_errors(
    predicted: Predicted, y: Array, known: Flags, column: int, level: float
) -> tuple[float, float]:
    """How far labels lie beyond the head's own bounds at a level, as a conformal quantile."""
    low, high = (predicted.quantiles[p][known, column] for p in bounds_of(level))
    reach = conformal_quantile(np.maximum(low - y, y - high), level)
    return -reach, reach


def _too_few(rows: int, level: float) -> tuple[float, float]:
    infinite = conformal_rank(rows, level) > rows
    return (float("-inf"), float("inf")) if infinite else (0.0, 0.0)


def _two_sided(target: TargetColumn) -> bool:
    return target.of_kind.error == "log ratio"


def _errors(target: TargetColumn, y: Array, mean: Array, column: int, scaled_by: int | None) -> Array:
    """Errors [n] of labels y [n] and forecasts [n, K]: log ratios, or differences in units of their volatility."""
    if _two_sided(target):
        with np.errstate(divide="ignore"):
            return np.log(y / mean[:, column])
    return (y - mean[:, column]) / _scale(mean, scaled_by)


def intervals(
    targets: Sequence[TargetColumn],
    predicted: Predicted,
    kept: Calibration,
    course: Course | None = None,
    draws: Iterable[Array] = (),
    rate: float = RATE,
) -> dict[float, Bounds]:
    """Lower and upper bounds [n, K] of each level in original units; NaN for targets that have no interval.

    `course`: for adaptive intervals, which then hold consecutive forecasts. `draws`: for mc_dropout, point forecasts
    [passes, K] of each window.
    """
    shape = predicted.mean.shape
    found = {level: (np.full(shape, np.nan), np.full(shape, np.nan)) for level in kept.levels}
    for column, made in enumerate(kept.targets):
        if made.method in (None, "mc_dropout"):
            continue
        for at, level in enumerate(kept.levels):
            if made.method in ("cqr", "quantile", "student_t"):
                pair = _around_own(predicted, made, column, at, level)
            else:
                errors = _error_bounds(targets, predicted, made, column, at, level, course, rate)
                pair = _around_mean(targets[column], predicted.mean, column, made.scaled_by, errors)
            found[level][0][:, column], found[level][1][:, column] = pair
    if kept.uses("mc_dropout"):
        _fill_from_draws(found, targets, predicted, kept, draws)
    return found


def _around_own(predicted: Predicted, made: TargetCalibration, column: int, at: int, level: float) -> Bounds:
    low, high = (predicted.quantiles[p][:, column] for p in bounds_of(level))
    if made.method == "cqr":
        low, high = low + made.bounds[at][0], high + made.bounds[at][1]
    return _not_crossed(low, high)


def _not_crossed(low: Array, high: Array) -> Bounds:
    """An empty interval, narrowed beyond its middle, as that point."""
    with np.errstate(invalid="ignore"):
        middle = 0.5 * (low + high)
    return np.where(low > high, middle, low), np.where(low > high, middle, high)


def _error_bounds(
    targets: Sequence[TargetColumn],
    predicted: Predicted,
    made: TargetCalibration,
    column: int,
    at: int,
    level: float,
    course: Course | None,
    rate: float,
) -> Array:
    """Bounds [n, 2] of the errors of n forecasts."""
    bounds = np.tile(made.bounds[at], (len(predicted.mean), 1))
    if made.method == "adaptive":
        if course is None:
            raise ValueError("adaptive intervals need the course of the forecasts")
        errors = _errors(targets[column], course.actual[:, column], predicted.mean, column, made.scaled_by)
        since = course.since
        bounds[since] = adaptive_bounds(
            errors[since], course.made[since], course.known[since, column], np.array(made.errors), level,
            rate=rate, two_sided=_two_sided(targets[column]),
        )  # fmt: skip
    # An empty interval is shown as the point in its middle.
    empty = bounds[:, 0] > bounds[:, 1]
    bounds[empty] = np.where(np.isfinite(bounds[empty]), bounds[empty].mean(axis=1, keepdims=True), 0.0)
    return bounds


def _around_mean(
    target: TargetColumn, mean: Array, column: int, scaled_by: int | None, errors: Array
) -> Bounds:
    centre = mean[:, column]
    if _two_sided(target):
        return centre * np.exp(errors[:, 0]), centre * np.exp(errors[:, 1])
    scale = _scale(mean, scaled_by)
    return centre + errors[:, 0] * scale, centre + errors[:, 1] * scale


def _fill_from_draws(
    found: Mapping[float, Bounds],
    targets: Sequence[TargetColumn],
    predicted: Predicted,
    kept: Calibration,
    draws: Iterable[Array],
) -> None:
    columns = [k for k, made in enumerate(kept.targets) if made.method == "mc_dropout"]
    for row, drawn in enumerate(draws):
        for column in columns:
            made, two_sided = kept.targets[column], _two_sided(targets[column])
            own = np.log(drawn[:, column]) if two_sided else drawn[:, column]
            errors = np.array(made.errors)
            if not two_sided:
                errors = errors * _scale(predicted.mean[row : row + 1], made.scaled_by)
            for at, (lower, upper) in enumerate(found.values()):
                if np.isinf(made.bounds[at]).any():
                    pair = np.array(made.bounds[at])
                else:
                    pair = np.quantile(np.add.outer(own, errors), bounds_of(kept.levels[at]), method=_METHOD)
                lower[row, column], upper[row, column] = np.exp(pair) if two_sided else pair


def _scale_of(targets: Sequence[TargetColumn], column: int) -> int | None:
    """The volatility forecast of the same asset and the nearest horizon, for an error that is a difference."""
    mine = targets[column]
    if mine.of_kind.error != "difference":
        return None
    of_asset = [k for k, one in enumerate(targets) if one.asset == mine.asset and _two_sided(one)]
    return min(of_asset, key=lambda k: abs(np.log(targets[k].horizon / mine.horizon)), default=None)


def _scale(predicted: Array, by: int | None) -> Array:
    return np.ones(len(predicted)) if by is None else predicted[:, by]
