"""Measures of a series of simple returns per bar. Undefined values (one bar, no variance, no trade) are NaN,
never a guess.

NaN returns count as a period without a return: they lengthen the time but enter no mean or deviation. Yearly
figures use `periods_per_year`, the number of bars in a year of the market's clock.

Two conventions of Sharpe and Sortino are in use. `arithmetic`, the default: mean excess return × periods over
the deviation × √periods (Sharpe 1994). `geometric`: the compounded annual return over the deviation that
lognormal compounding of the per-period moments gives; it is what backtesting.py prints.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from longtape.backtest import statistics
from longtape.backtest.annual import infer_periods_per_year
from longtape.backtest.frames import as_frame, milliseconds
from longtape.core.errors import UserError

Floats = npt.NDArray[np.float64]
Convention = Literal["arithmetic", "geometric"]
NAN = float("nan")


def as_returns(returns: Any) -> Floats:
    """A series of simple returns from a list, numpy, polars or pandas."""
    return np.asarray(returns.to_numpy() if hasattr(returns, "to_numpy") else returns, dtype=np.float64)


def _known(returns: Any) -> Floats:
    values = as_returns(returns)
    known = values[~np.isnan(values)] if np.isnan(values).any() else values
    return known


def _ratio(numerator: float, deviation: float, size: float) -> float:
    """NaN where the deviation is nothing but rounding of numbers of this size."""
    return numerator / deviation if deviation > 1e-12 * abs(size) else NAN


def total_return(returns: Any) -> float:
    """Π(1 + r) − 1."""
    return float(np.prod(1 + _known(returns)) - 1)


def annual_return(returns: Any, periods_per_year: float) -> float:
    """Compounded return a year; −1 once everything was lost."""
    values = as_returns(returns)
    if len(values) == 0 or np.isnan(values).all():
        return NAN
    end = 1 + total_return(values)
    return float(end ** (periods_per_year / len(values)) - 1) if end > 0 else -1.0


def volatility(returns: Any, periods_per_year: float) -> float:
    """Sample deviation (ddof 1) × √periods."""
    known = _known(returns)
    return float(known.std(ddof=1) * np.sqrt(periods_per_year)) if len(known) > 1 else NAN


def sharpe(
    returns: Any, periods_per_year: float, risk_free: float = 0.0, convention: Convention = "arithmetic"
) -> float:
    """Excess return over deviation, a year. `risk_free` is a rate a year."""
    known = _known(returns)
    if len(known) < 2:
        return NAN
    if convention == "geometric":
        return _ratio(
            annual_return(returns, periods_per_year) - risk_free,
            _geometric_deviation(known, periods_per_year),
            1,
        )
    excess = known - risk_free / periods_per_year
    return _ratio(excess.mean(), known.std(ddof=1), np.abs(known).max()) * float(np.sqrt(periods_per_year))


def _geometric_deviation(known: Floats, periods: float) -> float:
    """√((var + (1+g)²)^n − (1+g)^2n), g the geometric mean return (lognormal compounding of the two moments)."""
    if (known <= -1).any():
        return NAN
    growth = float(np.exp(np.log1p(known).mean()))
    return float(np.sqrt((known.var(ddof=1) + growth**2) ** periods - growth ** (2 * periods)))


def downside_deviation(returns: Any, periods_per_year: float, risk_free: float = 0.0) -> float:
    """√mean(min(excess, 0)²) × √periods."""
    known = _known(returns)
    if len(known) == 0:
        return NAN
    below = np.minimum(known - risk_free / periods_per_year, 0)
    return float(np.sqrt((below**2).mean()) * np.sqrt(periods_per_year))


def sortino(
    returns: Any, periods_per_year: float, risk_free: float = 0.0, convention: Convention = "arithmetic"
) -> float:
    """Excess return over downside deviation, a year (Sortino and van der Meer 1991)."""
    known = _known(returns)
    if len(known) == 0:
        return NAN
    arithmetic = known.mean() * periods_per_year
    gain = arithmetic if convention == "arithmetic" else annual_return(returns, periods_per_year)
    down = downside_deviation(returns, periods_per_year, risk_free)
    return _ratio(float(gain) - risk_free, down, np.abs(known).max())


def drawdowns(returns: Any) -> Floats:
    """Loss since the highest point so far, at or below 0; the start counts as a high point. Returns [len]."""
    values = np.nan_to_num(as_returns(returns))
    curve = np.cumprod(np.concatenate([[1.0], 1 + values]))
    return (curve / np.maximum.accumulate(curve) - 1)[1:]


def max_drawdown(returns: Any) -> float:
    """The deepest drawdown, negative; 0 where there was none."""
    below = drawdowns(returns)
    return float(below.min(initial=0.0)) if len(below) else NAN


def max_drawdown_length(returns: Any) -> int:
    """Most bars in a row below an earlier high."""
    high = np.flatnonzero(np.concatenate([[True], drawdowns(returns) >= 0, [True]]))
    return int(np.diff(high).max() - 1)


def calmar(returns: Any, periods_per_year: float) -> float:
    """Annual return over the size of the deepest drawdown."""
    return _ratio(annual_return(returns, periods_per_year), abs(max_drawdown(returns)), 1)


def value_at_risk(returns: Any, level: float = 0.95) -> float:
    """The (1 − level) quantile of the returns: a return, usually negative."""
    known = _known(returns)
    return float(np.quantile(known, 1 - level)) if len(known) else NAN


def conditional_value_at_risk(returns: Any, level: float = 0.95) -> float:
    """Mean of the returns at or below the value at risk."""
    known = _known(returns)
    return float(known[known <= value_at_risk(known, level)].mean()) if len(known) else NAN


def win_rate(outcomes: Any) -> float:
    """Share of outcomes (returns of trades, or of bars in the market) above zero."""
    known = _known(outcomes)
    return float((known > 0).mean()) if len(known) else NAN


def profit_factor(outcomes: Any) -> float:
    """Sum of gains over sum of losses of returns; infinite without a loss, NaN without any outcome."""
    known = _known(outcomes)
    gains, losses = float(known[known > 0].sum()), float(-known[known < 0].sum())
    if gains == losses == 0:
        return NAN
    return gains / losses if losses else float("inf")


def alpha_beta(
    returns: Any, benchmark: Any, periods_per_year: float, risk_free: float = 0.0
) -> tuple[float, float]:
    """Jensen's alpha a year (arithmetic) and beta against a benchmark's returns of the same bars."""
    ours, theirs = as_returns(returns), as_returns(benchmark)
    if len(ours) != len(theirs):
        raise UserError(f"alpha and beta need returns of the same bars; got {len(ours)} and {len(theirs)}")
    both = ~(np.isnan(ours) | np.isnan(theirs))
    ours, theirs = ours[both], theirs[both]
    if len(ours) < 2:
        return NAN, NAN
    spread = ours.mean() - theirs.mean()
    beta = _ratio(np.cov(ours, theirs)[0, 1], theirs.var(ddof=1), theirs.mean() ** 2)
    rate = risk_free / periods_per_year
    return float((spread + (1 - beta) * (theirs.mean() - rate)) * periods_per_year), float(beta)


def equity_returns(equity: Any) -> Floats:
    """Simple returns [T − 1] of an equity curve [T]; 0 after the account has ended at or below nothing."""
    curve = as_returns(equity)
    if len(curve) == 0:
        raise UserError("equity: the curve is empty")
    before = curve[:-1]
    if (before > 0).all():
        return curve[1:] / before - 1
    return np.divide(curve[1:], before, out=np.ones(len(before)), where=before > 0) - 1


def compute_metrics(
    equity: Any,
    periods_per_year: float | None = None,
    *,
    risk_free: float = 0.0,
    benchmark: Any = None,
    trade_returns: Any = None,
) -> dict[str, float]:
    """All measures of an equity curve [T] (a frame with `timestamp, equity`, or the values).

    `periods_per_year` may be left out where the frame's times tell it. `benchmark` [T] is another equity
    curve of the same bars, for alpha and beta; `trade_returns` are the returns of closed trades. Fractions,
    not percent.
    """
    if not isinstance(equity, pl.DataFrame | pl.LazyFrame) and not hasattr(equity, "columns"):
        if periods_per_year is None:
            raise UserError("periods_per_year is needed: an equity curve without times has no clock")
    else:
        frame = as_frame(equity, "equity", ("timestamp", "equity"))
        if periods_per_year is None:
            periods_per_year, _ = infer_periods_per_year(milliseconds(frame["timestamp"], "equity"))
        equity = frame["equity"]
    curve = as_returns(equity)
    returns = equity_returns(curve)
    table = _of_returns(returns, periods_per_year, risk_free)
    table["start"], table["end"] = float(curve[0]), float(curve[-1])
    if trade_returns is not None:
        table["n_trades"] = float(len(trade_returns))
        table["win_rate"], table["profit_factor"] = win_rate(trade_returns), profit_factor(trade_returns)
    if benchmark is not None:
        rival = equity_returns(benchmark)
        table["alpha"], table["beta"] = alpha_beta(returns, rival, periods_per_year, risk_free)
    return table


def _of_returns(returns: Floats, periods: float, risk_free: float) -> dict[str, float]:
    moving = returns[returns != 0]
    return {
        "bars": float(len(returns) + 1),
        "periods_per_year": periods,
        "total_return": total_return(returns),
        "annual_return": annual_return(returns, periods),
        "volatility": volatility(returns, periods),
        "sharpe": sharpe(returns, periods, risk_free),
        "sharpe_standard_error": statistics.sharpe_standard_error(returns, periods),
        "sharpe_geometric": sharpe(returns, periods, risk_free, "geometric"),
        "probabilistic_sharpe": statistics.probabilistic_sharpe(returns),
        "sortino": sortino(returns, periods, risk_free),
        "sortino_geometric": sortino(returns, periods, risk_free, "geometric"),
        "calmar": calmar(returns, periods),
        "max_drawdown": max_drawdown(returns) if len(returns) else 0.0,
        "max_drawdown_length": float(max_drawdown_length(returns)),
        "value_at_risk": value_at_risk(returns),
        "conditional_value_at_risk": conditional_value_at_risk(returns),
        "skewness": statistics.skewness(returns),
        "kurtosis": statistics.kurtosis(returns),
        "win_rate_bars": win_rate(moving),
        "profit_factor_bars": profit_factor(moving),
    }
