"""How sure one can be of a Sharpe ratio, and of a strategy that was chosen among many."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np

from longtape.backtest.summary import Summary, summarise

NAN = float("nan")
EULER_GAMMA = 0.5772156649015329
_NORMAL = NormalDist()


def period_sharpe(returns: Any, risk_free: float = 0.0) -> float:
    """Mean excess over sample deviation (ddof 1), per bar, as is `risk_free`; NaN without variance."""
    return _per_bar(summarise(returns), risk_free)


def _per_bar(s: Summary, risk_free: float) -> float:
    return (s.mean - risk_free) / s.deviation if s.deviation > 0 else NAN


def sharpe_standard_error(returns: Any, periods_per_year: float, risk_free: float = 0.0) -> float:
    """Standard error of the annual Sharpe ratio of independent returns: √((1 + S²/2)/n) × √periods (Lo 2002).

    `risk_free` is a rate a year.
    """
    return standard_error_of(summarise(returns), periods_per_year, risk_free)


def standard_error_of(s: Summary, periods_per_year: float, risk_free: float = 0.0) -> float:
    """`sharpe_standard_error` of a summarised series."""
    if s.known < 2:
        return NAN
    sharpe = _per_bar(s, risk_free / periods_per_year)
    return float(np.sqrt((1 + sharpe**2 / 2) / s.known * periods_per_year))


def probabilistic_sharpe(returns: Any, benchmark: float = 0.0, risk_free: float = 0.0) -> float:
    """P(true per-bar Sharpe > `benchmark`) by length, skewness and kurtosis (Bailey and López de Prado 2012).

    `risk_free` is a rate per bar.
    """
    return probability_of(summarise(returns), benchmark, risk_free)


def probability_of(s: Summary, benchmark: float = 0.0, risk_free: float = 0.0) -> float:
    """`probabilistic_sharpe` of a summarised series."""
    return probabilistic_sharpe_of(_per_bar(s, risk_free), s.known, s.skewness, s.kurtosis, benchmark)


def probabilistic_sharpe_of(
    sharpe: float, length: int, skew: float, kurt: float, benchmark: float = 0.0
) -> float:
    """Φ((S − S*)·√(n − 1) / √(1 − γ₃S + (γ₄ − 1)/4·S²)); `kurt` is 3 for a normal distribution, S per bar."""
    spread = 1 - skew * sharpe + (kurt - 1) / 4 * sharpe**2
    if not spread > 0 or length < 2:
        return NAN
    return _NORMAL.cdf((sharpe - benchmark) * float(np.sqrt(length - 1)) / float(np.sqrt(spread)))


def expected_best_sharpe(trials: int, variance: float) -> float:
    """Highest per-bar Sharpe to expect from `trials` worthless configurations whose Sharpes have this
    variance: √V·((1 − γ)·Φ⁻¹(1 − 1/N) + γ·Φ⁻¹(1 − 1/(N·e))) (Bailey and López de Prado 2014). 0 for a single
    trial.
    """
    if trials < 2:
        return 0.0
    first, second = _NORMAL.inv_cdf(1 - 1 / trials), _NORMAL.inv_cdf(1 - 1 / (trials * np.e))
    return float(np.sqrt(variance) * ((1 - EULER_GAMMA) * first + EULER_GAMMA * second))


def deflated_sharpe(
    sharpe: float, length: int, skew: float, kurt: float, trials: int, variance: float
) -> float:
    """P(true Sharpe > the best that chance would give among the configurations tried).

    All per bar; `trials` counts configurations and `variance` is that of their Sharpe ratios. Folds are not
    trials.
    """
    return probabilistic_sharpe_of(sharpe, length, skew, kurt, expected_best_sharpe(trials, variance))
