"""Losses of forecasts, by label: what a kind of target is judged by. NumPy arrays [n] in and out.

Each is consistent for what the forecast states (Gneiting 2011, "Making and Evaluating Point Forecasts"): no forecast
can expect to score better by saying anything else than what it believes.
"""

from __future__ import annotations

import numpy as np

from longtape.core.arrays import Floats

SMALLEST_VARIANCE = 1e-12  # a window without any move still has a finite logarithm
SMALLEST_PROBABILITY = 1e-12


def squared_error(actual: Floats, forecast: Floats) -> Floats:
    """(y − f)²: strictly consistent for the mean."""
    return (actual - forecast) ** 2


def absolute_error(actual: Floats, forecast: Floats) -> Floats:
    """|y − f|: consistent for the median."""
    return np.abs(actual - forecast)


def variance_ratio(actual: Floats, forecast: Floats) -> Floats:
    """y²/f² of volatilities y and f, both squares at least 10⁻¹²."""
    ratio: Floats = np.maximum(actual**2, SMALLEST_VARIANCE) / np.maximum(forecast**2, SMALLEST_VARIANCE)
    return ratio


def qlike(actual: Floats, forecast: Floats) -> Floats:
    """y²/f² − ln(y²/f²) − 1 of volatilities y and f: consistent for the variance (Patton 2011)."""
    ratio = variance_ratio(actual, forecast)
    return ratio - np.log(ratio) - 1


def pinball(actual: Floats, quantile: Floats, level: float) -> Floats:
    """(y − q)·(level − 1[y < q]): consistent for the quantile at `level` (Koenker and Bassett 1978)."""
    return (actual - quantile) * (level - (actual < quantile))


def interval_score(actual: Floats, lower: Floats, upper: Floats, level: float) -> Floats:
    """Width + 2/(1 − level) · the distance outside (Gneiting & Raftery 2007, section 6.2)."""
    outside = np.maximum(lower - actual, 0.0) + np.maximum(actual - upper, 0.0)
    width: Floats = upper - lower
    return width + 2 / (1 - level) * outside


def negative_return(actual: Floats, share: Floats) -> Floats:
    """−w·(e^y − 1): what a share w of the equity loses on a log return y."""
    return -share * np.expm1(actual)


def log_loss(actual: Floats, probabilities: Floats) -> Floats:
    """−ln p of the class that came, from classes [n] and probabilities [n, M] (Good 1952)."""
    hit = probabilities[np.arange(len(actual)), actual.astype(np.int64)]
    return -np.log(np.maximum(hit, SMALLEST_PROBABILITY))


def brier(actual: Floats, probabilities: Floats) -> Floats:
    """Σ (p_m − 1[y = m])² over the classes (Brier 1950), from classes [n] and probabilities [n, M]."""
    came = actual[:, None] == np.arange(probabilities.shape[1])
    total: Floats = ((probabilities - came) ** 2).sum(axis=1)
    return total
