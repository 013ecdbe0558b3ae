"""Whether one forecast is better than another by more than luck: skill scores, Diebold–Mariano, bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from longtape.backtest.bootstrap import ConfidenceInterval, block_length, stationary_bootstrap
from longtape.core.arrays import Floats
from longtape.core.errors import UserError
from longtape.features.target_kinds import TargetKind

Kernel = Literal["bartlett", "rectangular"]
_TINY = 1e-12
_ROUNDING = 1e-5  # of the mean loss: what float32 leaves of one forecast computed in two ways


def skill_score(losses: Any, baseline: Any) -> float:
    """1 − mean loss over the baseline's mean loss; above 0 is better, NaN where the baseline loses nothing."""
    own, other = _pairs(losses, baseline)
    return float(1 - own.mean() / other.mean()) if other.mean() > 0 else float("nan")


@dataclass(frozen=True)
class DieboldMariano:
    """Test of equal expected loss."""

    difference: float  # mean loss of the first less that of the second: negative, the first is better
    statistic: float  # with the small-sample factor, Student t with n − 1 degrees of freedom
    p_value: float  # two-sided
    lags: int
    pairs: int


def diebold_mariano(
    losses: Any, baseline: Any, *, horizon: int = 1, kernel: Kernel = "bartlett", lags: int | None = None
) -> DieboldMariano:
    """Diebold and Mariano (1995) with the factor and the t distribution of Harvey, Leybourne and Newbold (1997).

    losses, baseline: [n] losses of two forecasts of the same labels in order of time, each `horizon` steps ahead; pairs
    with a NaN are left out, and losses that differ by rounding alone tie (statistic 0, p 1). Overlapping horizons make
    the difference dependent over horizon − 1 steps at least: `rectangular` weighs these lags equally, as in 1995, and
    is refused where the variance comes out negative; `bartlett` (Newey and West 1987) is always positive, and takes
    max(2·horizon, √n) lags unless `lags` says so.
    """
    own, other = _pairs(losses, baseline)
    n = len(own)
    if horizon < 1 or n <= 2 * horizon:
        raise UserError(
            f"diebold_mariano: {n} pairs are too few for a horizon of {horizon}; more than twice it are needed"
        )
    usual = horizon - 1 if kernel == "rectangular" else max(2 * horizon, int(np.ceil(np.sqrt(n))))
    lags = min(usual, n - 1) if lags is None else lags
    if not 0 <= lags < n:
        raise UserError(f"diebold_mariano: lags {lags} must be from 0 to {n - 1}")
    difference = _difference(own, other)
    mean = float(difference.mean())
    variance = long_run_variance(difference, lags, kernel) / n
    factor = (n + 1 - 2 * horizon + horizon * (horizon - 1) / n) / n
    statistic = _studentised(mean, variance) * float(np.sqrt(factor))
    return DieboldMariano(mean, statistic, student_two_sided(statistic, n - 1), lags, n)


def _difference(own: Floats, other: Floats) -> Floats:
    """own − other [n]; zeros where all of it is rounding, which has a sign of its own and would pass for certainty."""
    difference = own - other
    scale = (np.abs(own) + np.abs(other)).mean() / 2
    return difference if np.sqrt((difference**2).mean()) > _ROUNDING * scale else np.zeros_like(difference)


def _studentised(mean: float, variance: float) -> float:
    if variance > _TINY * mean**2:
        return mean / float(np.sqrt(variance))
    if variance < 0:
        raise UserError("diebold_mariano: the rectangular variance is negative here; take kernel='bartlett'")
    return 0.0 if mean == 0 else float(np.copysign(np.inf, mean))


def long_run_variance(values: Floats, lags: int, kernel: Kernel) -> float:
    """γ₀ + 2·Σ w(k)·γ_k over k = 1 … lags; w = 1 − k/(lags + 1) for `bartlett`, 1 for `rectangular`."""
    d, n = values - values.mean(), len(values)
    covariance = np.array([d[: n - k] @ d[k:] for k in range(lags + 1)]) / n
    weights = np.ones(lags) if kernel == "rectangular" else 1 - np.arange(1, lags + 1) / (lags + 1)
    return float(covariance[0] + 2 * weights @ covariance[1:])


def student_two_sided(statistic: float, freedom: int) -> float:
    """P(|t| ≥ |statistic|) for an integer number of degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    if np.isinf(statistic):
        return 0.0
    angle = np.arctan(abs(statistic) / np.sqrt(freedom))
    sine, cosine = np.sin(angle), np.cos(angle)
    odd = freedom % 2 == 1
    # Terms of the series in cos²: ratios 2/3, 4/5, … for odd degrees of freedom, 1/2, 3/4, … for even ones.
    steps = np.arange(1, (freedom - 1) // 2 if odd else freedom // 2)
    ratios = 2 * steps / (2 * steps + 1) if odd else (2 * steps - 1) / (2 * steps)
    series = 1 + np.cumprod(ratios * cosine**2).sum()
    inside = 2 / np.pi * (angle + (sine * cosine * series if freedom > 1 else 0.0)) if odd else sine * series
    return float(np.clip(1 - inside, 0.0, 1.0))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, adjusted so that all of them together err with the level of one (Holm 1979)."""
    order = np.argsort(p_values)
    adjusted = np.empty(len(p_values))
    largest = 0.0
    for rank, at in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * float(p_values[at])))
        adjusted[at] = largest
    return [float(p) for p in adjusted]


def mean_difference_interval(
    losses: Any,
    baseline: Any,
    *,
    horizon: int = 1,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> ConfidenceInterval:
    """Stationary-bootstrap interval of the mean of losses − baseline; below 0, the first is better.

    Blocks as long as Politis and White say for the differences, at least `horizon`.
    """
    own, other = _pairs(losses, baseline)
    difference = _difference(own, other)
    block = max(block_length(difference), float(horizon))
    drawn = stationary_bootstrap(difference, np.mean, block=block, resamples=resamples, seed=seed)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return ConfidenceInterval(float(difference.mean()), float(low), float(high), level, block, resamples)


def score_intervals(
    kind: TargetKind, actual: Floats, forecast: Floats, horizon: int, *, resamples: int = 500, seed: int = 0
) -> dict[str, float]:
    """Stationary-bootstrap 95 % intervals of a kind's `resampled` scores, each as "NAME 2.5 %" and "NAME 97.5 %".

    Labels [n] in order of time and forecasts [n, …] are drawn in blocks as long as Politis and White say for the
    losses, at least `horizon`, because labels overlap over that many rows.
    """
    if len(actual) < 2:
        return {}

    def scored(rows: Floats) -> list[float]:
        drawn = rows.astype(np.int64)
        found = kind.scores(actual[drawn], forecast[drawn])
        return [found[name] for name in kind.resampled]

    block = max(block_length(kind.loss(actual, forecast)), float(horizon))
    drawn = stationary_bootstrap(np.arange(len(actual)), scored, block=block, resamples=resamples, seed=seed)
    bounds = np.nanquantile(drawn, [0.025, 0.975], axis=0).T
    named = zip(kind.resampled, bounds, strict=True)
    return {
        f"{name} {side}": float(bound)
        for name, own in named
        for side, bound in zip(("2.5 %", "97.5 %"), own, strict=True)
    }


def compare(losses: Any, baseline: Any, *, horizon: int = 1, seed: int = 0) -> dict[str, float]:
    """One row: both mean losses, the skill score, Diebold–Mariano and the bootstrap interval of the difference."""
    test = diebold_mariano(losses, baseline, horizon=horizon)
    interval = mean_difference_interval(losses, baseline, horizon=horizon, seed=seed)
    own, other = _pairs(losses, baseline)
    return {
        "loss": float(own.mean()),
        "baseline": float(other.mean()),
        "skill": skill_score(own, other),
        "statistic": test.statistic,
        "p_value": test.p_value,
        "lower": interval.lower,
        "upper": interval.upper,
        "pairs": float(test.pairs),
    }


def _pairs(losses: Any, baseline: Any) -> tuple[Floats, Floats]:
    own, other = np.asarray(losses, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if own.shape != other.shape or own.ndim != 1:
        raise UserError(f"losses must be of the same labels, [n] each; got {own.shape} and {other.shape}")
    known = np.isfinite(own) & np.isfinite(other)
    if not known.any():
        raise UserError("losses: no label has a loss of both forecasts")
    return own[known], other[known]
