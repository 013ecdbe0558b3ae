"""Split-conformal intervals: the errors on the validation windows say how wide an interval must be.

Vovk et al. 2005; the finite-sample level ⌈(n + 1)(1 − α)⌉/n of Lei et al. 2018. Returns are scored by their own
volatility forecast where the model makes one for the same horizon, so that intervals breathe with the market.
Coverage is promised for exchangeable data; markets are not, so it is measured on the test windows and shown.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from longtape.features.panel import TargetColumn

Array = npt.NDArray[np.float64]
_LOG = "volatility"  # kinds whose error is a ratio


@dataclass(frozen=True)
class Calibration:
    """Per target: lower and upper quantile of the score, the target whose prediction scales it (or None), and the
    size of forecast below which nothing is traded.
    """

    level: float
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    scaled_by: tuple[int | None, ...]
    threshold: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> Calibration:
        """Back from JSON."""
        return cls(
            kept["level"], *(tuple(kept[name]) for name in ("lower", "upper", "scaled_by", "threshold"))
        )


def calibrate(
    targets: tuple[TargetColumn, ...],
    predicted: Array,
    actual: Array,
    level: float,
    traded: float | None = None,
) -> Calibration:
    """From validation predictions and labels [n, K]. `traded`: the share of the largest forecasts that is to trade."""
    scaled_by = tuple(_scale_of(targets, column) for column in range(len(targets)))
    lower, upper = [], []
    for column, target in enumerate(targets):
        scores = _score(target, actual[:, column], predicted, column, scaled_by[column])
        scores = scores[np.isfinite(scores)]
        if target.kind == _LOG:
            lower.append(-_conformal_quantile(-scores, (1 + level) / 2))
            upper.append(_conformal_quantile(scores, (1 + level) / 2))
        else:
            reach = _conformal_quantile(np.abs(scores), level)
            lower.append(-reach)
            upper.append(reach)
    sizes = np.zeros(len(targets)) if traded is None else np.quantile(np.abs(predicted), 1 - traded, axis=0)
    return Calibration(level, tuple(lower), tuple(upper), scaled_by, tuple(sizes.tolist()))


def intervals(targets: tuple[TargetColumn, ...], predicted: Array, kept: Calibration) -> tuple[Array, Array]:
    """Lower and upper bounds [n, K] in original units."""
    lower, upper = np.empty_like(predicted), np.empty_like(predicted)
    for column, target in enumerate(targets):
        centre = predicted[:, column]
        if target.kind == _LOG:
            lower[:, column] = centre * np.exp(kept.lower[column])
            upper[:, column] = centre * np.exp(kept.upper[column])
        else:
            scale = _scale(predicted, kept.scaled_by[column])
            lower[:, column] = centre + kept.lower[column] * scale
            upper[:, column] = centre + kept.upper[column] * scale
    return lower, upper


def _scale_of(targets: tuple[TargetColumn, ...], column: int) -> int | None:
    mine = targets[column]
    for other, target in enumerate(targets):
        same = (target.symbol, target.horizon) == (mine.symbol, mine.horizon)
        if target.kind == _LOG and mine.kind == "return" and same:
            return other
    return None


def _scale(predicted: Array, by: int | None) -> Array:
    return np.ones(len(predicted)) if by is None else predicted[:, by]


def _score(target: TargetColumn, actual: Array, predicted: Array, column: int, by: int | None) -> Array:
    if target.kind == _LOG:
        with np.errstate(divide="ignore"):
            return np.log(actual / predicted[:, column])
    return (actual - predicted[:, column]) / _scale(predicted, by)


def _conformal_quantile(scores: Array, level: float) -> float:
    n = len(scores)
    if n == 0:
        return float("nan")
    rank = min(n, int(np.ceil((n + 1) * level)))
    return float(np.sort(scores)[rank - 1])
