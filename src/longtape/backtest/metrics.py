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
import polars as pl

from longtape.backtest import statistics
from longtape.backtest.frames import as_frame, milliseconds
from longtape.backtest.summary import Summary, as_returns, summarise
from longtape.core.arrays import Floats
from longtape.core.calendars import infer_periods_per_year
from longtape.core.errors import UserError

Convention = Literal["arithmetic", "geometric"]
NAN = float("nan")


def _over(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else NAN


def total_return(returns: Any) -> float:
    """Π(1 + r) − 1, up to the return that takes everything."""
    return summarise(returns).total


def annual_return(returns: Any, periods_per_year: float) -> float:
    """Compounded return a year; −1 once everything was lost."""
    return annual_return_of(summarise(returns), periods_per_year)


def annual_return_of(s: Summary, periods: float) -> float:
    """`annual_return` of a summarised series; infinite where a short record compounds beyond any number."""
    if s.known == 0:
        return NAN
    return -1.0 if s.ruined or s.total <= -1 else _power(1 + s.total, periods / s.length) - 1


def volatility(returns: Any, periods_per_year: float) -> float:
    """Sample deviation (ddof 1) × √periods."""
    return float(summarise(returns).deviation * np.sqrt(periods_per_year))


def sharpe(
    returns: Any, periods_per_year: float, risk_free: float = 0.0, convention: Convention = "arithmetic"
) -> float:
    """Excess return over deviation, a year. `risk_free` is a rate a year. NaN without variance."""
    return sharpe_of(summarise(returns), periods_per_year, risk_free, convention)


def sharpe_of(
    s: Summary, periods: float, risk_free: float = 0.0, convention: Convention = "arithmetic"
) -> float:
    """`sharpe` of a summarised series."""
    if convention == "geometric":
        return _over(annual_return_of(s, periods) - risk_free, _geometric_deviation(s, periods))
    return _over(s.mean - risk_free / periods, s.deviation) * float(np.sqrt(periods))


def _geometric_deviation(s: Summary, periods: float) -> float:
    """√((var + (1+g)²)^n − (1+g)^2n), g the geometric mean return (lognormal compounding of the two moments)."""
    if s.known < 2 or s.ruined or s.deviation == 0:
        return NAN
    growth = (1 + s.total) ** (1 / s.known)
    return float(np.sqrt(_power(s.deviation**2 + growth**2, periods) - _power(growth, 2 * periods)))


def _power(base: float, exponent: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.power(base, exponent))


def downside_deviation(returns: Any, periods_per_year: float, risk_free: float = 0.0) -> float:
    """√mean(min(excess, 0)²) × √periods."""
    return float(summarise(returns, risk_free / periods_per_year).downside * np.sqrt(periods_per_year))


def sortino(
    returns: Any, periods_per_year: float, risk_free: float = 0.0, convention: Convention = "arithmetic"
) -> float:
    """Excess return over downside deviation, a year (Sortino and van der Meer 1991)."""
    return _sortino(summarise(returns, risk_free / periods_per_year), periods_per_year, risk_free, convention)


def _sortino(s: Summary, periods: float, risk_free: float, convention: Convention) -> float:
    gain = s.mean * periods if convention == "arithmetic" else annual_return_of(s, periods)
    return _over(gain - risk_free, s.downside * float(np.sqrt(periods)))


def drawdowns(returns: Any) -> Floats:
    """Loss since the highest point so far, at or below 0; the start counts as a high point. Returns [len]."""
    values = np.nan_to_num(as_returns(returns))
    lost = np.flatnonzero(values <= -1)
    values[lost[0] + 1 if len(lost) else len(values) :] = 0.0  # the account has ended
    curve = np.cumprod(np.concatenate([[1.0], 1 + values]))
    return (curve / np.maximum.accumulate(curve) - 1)[1:]


def max_drawdown(returns: Any) -> float:
    """The deepest drawdown, negative; 0 where there was none."""
    return summarise(returns).drawdown


def max_drawdown_length(returns: Any) -> int:
    """Most bars in a row below an earlier high."""
    return summarise(returns).drawdown_length


def calmar(returns: Any, periods_per_year: float) -> float:
    """Annual return over the size of the deepest drawdown; NaN where there was none."""
    s = summarise(returns)
    return _over(annual_return_of(s, periods_per_year), -s.drawdown)


def value_at_risk(returns: Any, level: float = 0.95) -> float:
    """The (1 − level) quantile of the returns: a return, usually negative."""
    return _tail(returns, level)[0]


def conditional_value_at_risk(returns: Any, level: float = 0.95) -> float:
    """Mean of the returns at or below the value at risk."""
    return _tail(returns, level)[1]


def _tail(returns: Any, level: float) -> tuple[float, float]:
    values = as_returns(returns)
    if np.isnan(values).any():
        values = values[~np.isnan(values)]
    if len(values) == 0:
        return NAN, NAN
    low, place = _lowest(values, 1 - level)
    below = int(place)
    low.partition((below, min(below + 1, len(low) - 1)))
    first, second = low[below], low[min(below + 1, len(low) - 1)]
    border = float(first + (second - first) * (place - below))
    return border, float(low[low <= border].mean())


def _lowest(values: Floats, share: float) -> tuple[Floats, float]:
    """A copy of the values that holds at least all up to the `share` quantile and one beyond, and the place
    (with its fraction) of that quantile among them in order. Of many values a few thousand tell which to leave out.
    """
    place = share * (len(values) - 1)
    if len(values) > 100_000:
        bound = np.quantile(values[:: len(values) // 10_000], min(1.0, share + 0.05))
        low = values[values <= bound]
        if len(low) >= place + 2:
            return low, place
    return values.copy(), place


def win_rate(outcomes: Any) -> float:
    """Share of outcomes (returns of trades) above zero."""
    s = summarise(outcomes)
    return _over(s.wins, s.known)


def profit_factor(outcomes: Any) -> float:
    """Sum of gains over sum of losses of returns; infinite without a loss, NaN without gain or loss."""
    s = summarise(outcomes)
    return _factor(s)


def _factor(s: Summary) -> float:
    if s.lost > 0:
        return s.gained / s.lost
    return float("inf") if s.gained > 0 else NAN


def alpha_beta(
    returns: Any, benchmark: Any, periods_per_year: float, risk_free: float = 0.0
) -> tuple[float, float]:
    """Jensen's alpha a year (arithmetic) and beta against a benchmark's returns of the same bars."""
    ours, theirs = as_returns(returns), as_returns(benchmark)
    if len(ours) != len(theirs):
        raise UserError(f"alpha and beta need returns of the same bars; got {len(ours)} and {len(theirs)}")
    both = ~(np.isnan(ours) | np.isnan(theirs))
    ours, theirs = ours[both], theirs[both]
    if len(ours) < 2 or summarise(theirs).deviation == 0:
        return NAN, NAN
    beta = np.cov(ours, theirs)[0, 1] / theirs.var(ddof=1)
    rate = risk_free / periods_per_year
    alpha = ours.mean() - rate - beta * (theirs.mean() - rate)
    return float(alpha * periods_per_year), float(beta)


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
    curve of the same bars, for alpha and beta; `trade_returns` are the returns of closed trades; `risk_free` is a
    rate a year. Fractions, not percent.
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
    s = summarise(returns, risk_free / periods)
    border, beyond = _tail(returns, 0.95)
    return {
        "bars": float(len(returns) + 1),
        "periods_per_year": periods,
        "risk_free_rate": risk_free,
        "total_return": s.total,
        "annual_return": annual_return_of(s, periods),
        "volatility": float(s.deviation * np.sqrt(periods)),
        "sharpe": sharpe_of(s, periods, risk_free, "arithmetic"),
        "sharpe_standard_error": statistics.standard_error_of(s, periods, risk_free),
        "sharpe_geometric": sharpe_of(s, periods, risk_free, "geometric"),
        "probabilistic_sharpe": statistics.probability_of(s, risk_free=risk_free / periods),
        "sortino": _sortino(s, periods, risk_free, "arithmetic"),
        "sortino_geometric": _sortino(s, periods, risk_free, "geometric"),
        "calmar": _over(annual_return_of(s, periods), -s.drawdown),
        "max_drawdown": s.drawdown,
        "max_drawdown_length": float(s.drawdown_length),
        "value_at_risk": border,
        "conditional_value_at_risk": beyond,
        "skewness": s.skewness,
        "kurtosis": s.kurtosis,
        "win_rate_bars": _over(s.wins, s.wins + s.losses),
        "profit_factor_bars": _factor(s),
    }
