"""What stands beside a strategy: buy & hold, flat, momentum, mean reversion, and chance with the same habits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longtape.backtest.replay import weights_in_force, with_weights
from longtape.backtest.result import BacktestResult
from longtape.backtest.statistics import period_sharpe
from longtape.backtest.summary import summarise
from longtape.core.arrays import Floats, Ints

HOLD, FLAT, MOMENTUM, REVERSION = "buy & hold", "flat", "momentum", "mean reversion"
_PLACES = 400  # bars at which the equity of random strategies is kept


@dataclass(frozen=True)
class Lookbacks:
    """Bars that the momentum and the mean-reversion strategy look back."""

    momentum: int
    reversion: int


def lookbacks_of(result: BacktestResult) -> Lookbacks:
    """A month of bars for momentum and a week for reversion; at least 2, at most a quarter of the record."""
    per_year, most = result.periods_per_year, max(len(result.clock) // 4, 2)
    if not np.isfinite(per_year):
        return Lookbacks(2, 2)
    month, week = (min(max(round(per_year / parts), 2), most) for parts in (12, 52))
    return Lookbacks(month, week)


def benchmark_results(result: BacktestResult, lookbacks: Lookbacks) -> dict[str, BacktestResult]:
    """The simple strategies in the account of `result`: every symbol has an equal share of the equity.

    Buy & hold buys once and knows neither stop nor target; flat is what a forecast of zero trades. Momentum holds the
    sign of a symbol's return over the lookback (Moskowitz, Ooi and Pedersen 2012), long or short; mean reversion its
    opposite (Lehmann 1990). Both decide at each close, are flat until the lookback is there, and are traded back to
    their share at every bar: a short that is left alone grows with its losses.
    """
    closes = _filled(result.setup.prices.close)
    share = 1 / len(result.symbols)
    kept = result.setup.rules._replace(every_bar=True)
    held = kept._replace(every_bar=False, stop_loss=0.0, take_profit=0.0)
    return {
        HOLD: with_weights(result, np.full(closes.shape, share), held),
        FLAT: with_weights(result, np.zeros(closes.shape)),
        MOMENTUM: with_weights(result, share * _signs(closes, lookbacks.momentum), kept),
        REVERSION: with_weights(result, -share * _signs(closes, lookbacks.reversion), kept),
    }


def _filled(closes: Floats) -> Floats:
    """The last close known at each bar [T, S]; NaN before the first."""
    seen = np.where(np.isnan(closes), 0, np.arange(len(closes))[:, None])
    return np.take_along_axis(closes, np.maximum.accumulate(seen, axis=0), axis=0)


def _signs(closes: Floats, lookback: int) -> Floats:
    out = np.zeros(closes.shape)
    out[lookback:] = np.nan_to_num(np.sign(closes[lookback:] - closes[:-lookback]))
    return out


@dataclass(frozen=True, eq=False)
class RandomStrategies:
    """Strategies with the habits of the judged one and no knowledge of the market, [n] each."""

    sharpe: Floats  # a year
    total_return: Floats
    turnover: Floats  # a year
    exposure: Floats  # mean gross exposure over equity
    own_sharpe: float
    own_return: float
    bars: Ints  # [P] some bars, evenly spaced, the last among them
    equity: Floats  # [n, P] there, over the initial capital

    @property
    def sharpe_percentile(self) -> float:
        """Share of the random strategies whose Sharpe ratio is below the strategy's, in percent; equals count half."""
        return _percentile(self.sharpe, self.own_sharpe)

    @property
    def return_percentile(self) -> float:
        """The same by total return."""
        return _percentile(self.total_return, self.own_return)


def _percentile(values: Floats, own: float) -> float:
    if np.isnan(own) or len(values) == 0:
        return float("nan")
    return float(100 * ((values < own).mean() + (values == own).mean() / 2))


def random_strategies(result: BacktestResult, count: int, seed: int) -> RandomStrategies:
    """`count` accounts of the strategy's own path of weights, begun at a random bar and wrapped round its end, in half
    the cases run backwards: turnover, exposure and holding times are kept, but for the one seam where the ends meet;
    any connection with the market is lost. (A randomisation test by cyclic shifts.)
    """
    draw = np.random.default_rng(seed)
    path = np.asarray(weights_in_force(result))
    last = len(result.clock) - 1
    bars = np.unique(np.linspace(0, last, min(_PLACES, last + 1)).round().astype(np.int64))
    rows, equity = [], np.empty((count, len(bars)))
    for number in range(count):
        drawn = with_weights(result, _shuffled(path, draw))
        rows.append(_figures(drawn))
        equity[number] = drawn.history.equity[bars] / drawn.initial_capital
    sharpe, total, turnover, exposure = np.array(rows).reshape(count, 4).T
    own = _figures(result)
    # Accounts that never moved have no Sharpe ratio; among the others they stand at nothing gained.
    return RandomStrategies(np.nan_to_num(sharpe), total, turnover, exposure, own[0], own[1], bars, equity)


def _shuffled(path: Floats, draw: np.random.Generator) -> Floats:
    moved = np.roll(path, int(draw.integers(1, max(len(path), 2))), axis=0)
    return moved[::-1] if draw.random() < 0.5 else moved


def _figures(result: BacktestResult) -> tuple[float, float, float, float]:
    """Sharpe ratio a year, total return, turnover a year, mean exposure."""
    sharpe = period_sharpe(result.returns, result.risk_free_return) * np.sqrt(result.periods_per_year)
    return sharpe, summarise(result.returns).total, result.turnover, result.exposure.mean()
