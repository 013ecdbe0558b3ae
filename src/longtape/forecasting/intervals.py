"""Intervals: the head's own, or from the errors on windows of a period that serves nothing else.

Split conformal (Vovk et al. 2005; the finite-sample rank ⌈(n + 1)·level⌉ of Lei et al. 2018): the interval is as wide
as the errors of the calibration period say. Errors of returns are scaled by their own volatility forecast where the
model makes one for the same horizon, so that intervals breathe with the market; errors of volatility are log ratios,
each side with half of the level. `cqr` (Romano, Patterson & Candès 2019) widens or narrows the head's own interval by
the errors of its bounds. Where the rows are too few for the rank, only an infinite bound is valid, and it is given.
Coverage is promised for exchangeable data; markets are not, so it is measured on the test period and shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from longtape.features.panel import TargetColumn
from longtape.forecasting.config import Method
from longtape.forecasting.predict import Predicted

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TargetCalibration:
    """What the calibration period says of one target."""

    method: Method | None  # None: no interval, as for classes
    lower: float = 0.0  # quantile of the score below, −inf where the rows are too few
    upper: float = 0.0
    scaled_by: int | None = None  # the target whose forecast scales the error
    rows: int = 0  # calibration windows that it was made from
    threshold: float = 0.0  # the size of forecast below which nothing is traded


@dataclass(frozen=True)
class Calibration:
    """Level of the intervals, and what makes them for each target."""

    level: float
    targets: tuple[TargetCalibration, ...]

    @property
    def levels(self) -> tuple[float, float]:
        """The quantiles that bound the interval."""
        return round((1 - self.level) / 2, 12), round((1 + self.level) / 2, 12)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; an infinite bound is written as text."""
        kept = [{k: _text_if_infinite(v) for k, v in asdict(t).items()} for t in self.targets]
        return {"level": self.level, "targets": kept}

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> Calibration:
        """Back from JSON."""
        bounds = ("lower", "upper")
        targets: list[dict[str, Any]] = [
            {k: float(v) if k in bounds else v for k, v in t.items()} for t in kept["targets"]
        ]
        return cls(kept["level"], tuple(TargetCalibration(**t) for t in targets))


def _text_if_infinite(value: Any) -> Any:
    return str(value) if isinstance(value, float) and np.isinf(value) else value


def calibrate(
    targets: Sequence[TargetColumn],
    methods: Sequence[Method | None],
    predicted: Predicted,
    actual: Array,
    level: float,
    traded: float | None = None,
) -> Calibration:
    """From forecasts and labels [n, K] of calibration windows. `traded`: the share of the largest forecasts that is to
    trade.
    """
    made = []
    for column, (target, method) in enumerate(zip(targets, methods, strict=True)):
        known = np.isfinite(actual[:, column])
        scaled_by = _scale_of(targets, column) if method == "conformal" else None
        bounds = _bounds(target, method, predicted, actual, column, scaled_by, level, known)
        mean = np.abs(predicted.mean[:, column])
        trades = target.is_traded and not target.auxiliary
        threshold = 0.0 if traded is None or not trades else float(np.quantile(mean, 1 - traded))
        made.append(TargetCalibration(method, *bounds, scaled_by, int(known.sum()), threshold))
    return Calibration(level, tuple(made))


def _bounds(
    target: TargetColumn,
    method: Method | None,
    predicted: Predicted,
    actual: Array,
    column: int,
    scaled_by: int | None,
    level: float,
    known: npt.NDArray[np.bool_],
) -> tuple[float, float]:
    if method in (None, "quantile", "student_t"):
        return 0.0, 0.0
    y = actual[known, column]
    if method == "cqr":
        low, high = (values[known, column] for values in predicted.quantiles.values())
        reach = conformal_quantile(np.maximum(low - y, y - high), level)
        return -reach, reach
    mean = predicted.mean[known]
    if target.of_kind.error == "log ratio":
        with np.errstate(divide="ignore"):
            scores = np.log(y / mean[:, column])
        side = (1 + level) / 2
        return -conformal_quantile(-scores, side), conformal_quantile(scores, side)
    reach = conformal_quantile(np.abs(y - mean[:, column]) / _scale(mean, scaled_by), level)
    return -reach, reach


def intervals(
    targets: Sequence[TargetColumn], predicted: Predicted, kept: Calibration
) -> tuple[Array, Array]:
    """Lower and upper bounds [n, K] in original units; NaN for targets that have no interval."""
    lower, upper = (np.full_like(predicted.mean, np.nan) for _ in range(2))
    for column, (target, made) in enumerate(zip(targets, kept.targets, strict=True)):
        if made.method is None:
            continue
        centre = predicted.mean[:, column]
        if made.method != "conformal":
            low, high = (values[:, column] for values in predicted.quantiles.values())
            lower[:, column], upper[:, column] = low + made.lower, high + made.upper
        elif target.of_kind.error == "log ratio":
            lower[:, column], upper[:, column] = centre * np.exp(made.lower), centre * np.exp(made.upper)
        else:
            scale = _scale(predicted.mean, made.scaled_by)
            lower[:, column], upper[:, column] = centre + made.lower * scale, centre + made.upper * scale
    return lower, upper


def _scale_of(targets: Sequence[TargetColumn], column: int) -> int | None:
    """The volatility forecast of the same asset and horizon, for an error that is a difference."""
    mine = targets[column]
    if mine.of_kind.error != "difference":
        return None
    for other, target in enumerate(targets):
        same = (target.asset, target.horizon) == (mine.asset, mine.horizon)
        if target.of_kind.error == "log ratio" and same:
            return other
    return None


def _scale(predicted: Array, by: int | None) -> Array:
    return np.ones(len(predicted)) if by is None else predicted[:, by]


def conformal_quantile(scores: Array, level: float) -> float:
    """The ⌈(n + 1)·level⌉-th smallest score; ∞ where there are not so many."""
    rank = int(np.ceil(round((len(scores) + 1) * level, 9)))
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else float("inf")
