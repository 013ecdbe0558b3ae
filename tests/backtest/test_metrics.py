"""Measures of return series, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import polars as pl
import pytest

from longtape.backtest import Costs, metrics, run_backtest, statistics
from longtape.core.errors import UserError
from tests.backtest.markets import bars, times, weights

HAND = [0.1, -0.05, 0.02]  # mean 0.07/3, Σd² = 0.0129 − 0.0049/3
DEVIATION = math.sqrt((0.0129 - 0.0049 / 3) / 2)


def test_three_returns_by_hand():
    total = 1.1 * 0.95 * 1.02 - 1
    assert metrics.total_return(HAND) == pytest.approx(total)
    assert metrics.annual_return(HAND, 12) == pytest.approx((1 + total) ** 4 - 1)
    assert metrics.volatility(HAND, 12) == pytest.approx(DEVIATION * math.sqrt(12))
    assert metrics.sharpe(HAND, 12) == pytest.approx(0.07 / 3 / DEVIATION * math.sqrt(12))
    assert metrics.sharpe(HAND, 12, risk_free=0.12) == pytest.approx(
        (0.07 / 3 - 0.01) / DEVIATION * math.sqrt(12)
    )
    assert metrics.downside_deviation(HAND, 12) == pytest.approx(math.sqrt(0.0025 / 3 * 12))
    assert metrics.sortino(HAND, 12) == pytest.approx(0.07 / 3 * 12 / math.sqrt(0.0025 / 3 * 12))
    assert metrics.max_drawdown(HAND) == pytest.approx(-0.05)
    assert metrics.max_drawdown_length(HAND) == 2
    assert metrics.calmar(HAND, 12) == pytest.approx(((1 + total) ** 4 - 1) / 0.05)
    assert metrics.win_rate(HAND) == pytest.approx(2 / 3)
    assert metrics.profit_factor(HAND) == pytest.approx(0.12 / 0.05)


def test_both_conventions_of_sharpe_and_sortino():
    total = 1.1 * 0.95 * 1.02 - 1
    annual, growth = (1 + total) ** 4 - 1, (1 + total) ** (1 / 3)
    spread = math.sqrt((DEVIATION**2 + growth**2) ** 12 - growth**24)
    assert metrics.sharpe(HAND, 12, convention="geometric") == pytest.approx(annual / spread)
    assert metrics.sortino(HAND, 12, convention="geometric") == pytest.approx(
        annual / math.sqrt(0.0025 / 3 * 12)
    )


def test_drawdowns_count_the_start_as_a_high():
    assert metrics.drawdowns([-0.5, 1.0, 0.5, -0.2]) == pytest.approx([-0.5, 0.0, 0.0, -0.2])
    assert metrics.max_drawdown([0.1, 0.1]) == 0.0


def test_value_at_risk_is_the_quantile_and_its_tail_the_mean_below():
    returns = np.arange(-10, 11) / 100
    assert metrics.value_at_risk(returns, 0.9) == pytest.approx(-0.08)
    assert metrics.conditional_value_at_risk(returns, 0.9) == pytest.approx(-0.09)


def test_alpha_and_beta_of_a_scaled_benchmark():
    market = np.array([0.01, -0.02, 0.03, 0.0])
    alpha, beta = metrics.alpha_beta(0.001 + 2 * market, market, 252)
    assert (alpha, beta) == (pytest.approx(0.252), pytest.approx(2.0))
    assert all(math.isnan(v) for v in metrics.alpha_beta(market, np.zeros(4), 252))
    with pytest.raises(UserError, match="same bars; got 4 and 3"):
        metrics.alpha_beta(market, market[:3], 252)


UNDEFINED_ALONE = ("volatility", "sharpe", "sharpe_geometric", "skewness", "probabilistic_sharpe")


def test_one_bar_has_no_return_and_no_measure():
    table = run_backtest(weights([1.0]), bars([100.0])).metrics
    assert table["bars"] == 1
    assert table["total_return"] == 0
    for name in (*UNDEFINED_ALONE, "annual_return", "value_at_risk", "sortino", "win_rate", "calmar"):
        assert math.isnan(table[name]), name


def test_no_trade_is_no_win_rate_and_no_sharpe():
    table = run_backtest(weights([0.0] * 5), bars([100, 90, 120, 80, 100])).metrics
    assert (table["n_trades"], table["turnover"], table["costs"]) == (0, 0, 0)
    assert (table["total_return"], table["annual_return"], table["max_drawdown"]) == (0, 0, 0)
    for name in ("win_rate", "profit_factor", "sharpe", "sharpe_geometric", "sortino", "calmar"):
        assert math.isnan(table[name]), name


def test_one_trade_by_hand():
    # Bought at 110 and sold at 121, both with 1 % of the value.
    frame = bars([100, 110, 120, 121, 50], [105, 115, 125, 121, 50])
    result = run_backtest(
        weights([1, 1, 0, 0, 0]), frame, costs=Costs(fee=0.01), initial_capital=1100, periods_per_year=365
    )
    assert result.equity["equity"].to_list() == pytest.approx(
        [1100, 1089 + 50, 1089 + 150, 1089 + 110 - 12.1, 1186.9]
    )
    assert result.metrics["n_trades"] == 1
    assert result.metrics["win_rate"] == 1
    assert result.metrics["profit_factor"] == math.inf
    assert result.trade_returns == pytest.approx([(110 - 11 - 12.1) / 1100])
    assert result.metrics["costs"] == result.metrics["fees"] == pytest.approx(11 + 12.1)
    assert result.metrics["turnover"] == pytest.approx(
        (1100 + 1210) / np.mean(result.history.equity) * 365 / 5
    )


def test_nothing_but_losses():
    losses = [-0.1, -0.2, -0.3]
    assert metrics.win_rate(losses) == 0
    assert metrics.profit_factor(losses) == 0
    assert metrics.max_drawdown(losses) == pytest.approx(0.9 * 0.8 * 0.7 - 1)
    assert metrics.max_drawdown_length(losses) == 3
    assert metrics.sharpe(losses, 252) < 0
    assert metrics.calmar(losses, 252) == pytest.approx(metrics.annual_return(losses, 252) / (1 - 0.504))


def test_a_constant_return_has_no_variance_however_it_rounds():
    for value in (0.0, 0.001, 1 / 3, -0.01):
        assert math.isnan(metrics.sharpe([value] * 100, 252)), value
        assert math.isnan(metrics.sharpe([value] * 100, 252, convention="geometric"))
    assert math.isnan(metrics.sortino([0.001] * 100, 252))


def test_ruin_is_a_loss_of_everything():
    returns = metrics.equity_returns([100, 50, -20, -20])
    assert returns == pytest.approx([-0.5, -1.4, 0.0])
    assert metrics.annual_return(returns, 252) == -1
    assert math.isnan(metrics.sharpe(returns, 252, convention="geometric"))
    assert metrics.max_drawdown(returns) == pytest.approx(-1.2)
    assert math.isfinite(metrics.sharpe(returns, 252))


def test_nan_returns_lengthen_the_time_and_nothing_else():
    full, holed = [0.01, -0.02, 0.03], [0.01, np.nan, -0.02, np.nan, 0.03]
    for measure in (metrics.sharpe, metrics.sortino, metrics.volatility):
        assert measure(holed, 252) == measure(full, 252)
    assert metrics.total_return(holed) == metrics.total_return(full)
    assert metrics.value_at_risk(holed) == metrics.value_at_risk(full)
    assert metrics.annual_return(holed, 252) == pytest.approx(metrics.annual_return(full, 252 * 3 / 5))
    assert math.isnan(metrics.annual_return([np.nan] * 3, 252))
    assert math.isnan(metrics.sharpe([np.nan] * 3, 252))


def test_series_of_any_library_are_accepted():
    for series in (np.array(HAND), pl.Series(HAND), pd.Series(HAND), tuple(HAND)):
        assert metrics.sharpe(series, 12) == metrics.sharpe(HAND, 12)


def test_all_measures_of_a_frame_and_of_values():
    equity = [100.0, 110.0, 104.5, 106.59]
    frame = pl.DataFrame({"timestamp": times(4), "equity": equity})
    table = metrics.compute_metrics(frame, benchmark=equity, trade_returns=[0.1, -0.05])
    assert table["periods_per_year"] == 8760
    assert table == metrics.compute_metrics(
        equity, 8760, benchmark=pl.Series(equity), trade_returns=[0.1, -0.05]
    )
    assert table["beta"] == pytest.approx(1)
    assert (table["start"], table["end"], table["n_trades"]) == (100, 106.59, 2)
    assert table["profit_factor"] == pytest.approx(2)
    assert table["sharpe"] == pytest.approx(metrics.sharpe(HAND, 8760))
    with pytest.raises(UserError, match="periods_per_year is needed"):
        metrics.compute_metrics(equity)
    with pytest.raises(UserError, match="curve is empty"):
        metrics.compute_metrics([], 252)


def test_moments_agree_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    returns = np.random.default_rng(5).standard_t(4, 500) * 0.01
    table = metrics.compute_metrics(np.cumprod(np.concatenate([[1.0], 1 + returns])), 252)
    assert table["skewness"] == pytest.approx(stats.skew(returns))
    assert table["kurtosis"] == pytest.approx(stats.kurtosis(returns, fisher=False))


def test_the_standard_error_of_a_sharpe_ratio_by_hand():
    sharpe = statistics.period_sharpe(HAND)
    assert sharpe == pytest.approx(0.07 / 3 / DEVIATION)
    assert statistics.sharpe_standard_error(HAND, 12) == pytest.approx(
        math.sqrt((1 + sharpe**2 / 2) / 3 * 12)
    )


def test_the_deflated_sharpe_of_the_published_example():
    """Bailey and López de Prado (2014), numerical example: 100 trials, Sharpe 2.5 a year of 250 days over
    1,250 days, skewness −3, kurtosis 10, variance of the trials' annual Sharpes 1/2: 0.1132 per day, 0.9004.
    """
    best = statistics.expected_best_sharpe(100, 0.5 / 250)
    assert best == pytest.approx(0.1132, abs=5e-5)
    deflated = statistics.deflated_sharpe(2.5 / math.sqrt(250), 1250, -3, 10, 100, 0.5 / 250)
    assert deflated == pytest.approx(0.9004, abs=5e-5)
    single = statistics.deflated_sharpe(0.1, 1250, 0, 3, 1, 0.5)
    assert single == statistics.probabilistic_sharpe_of(0.1, 1250, 0, 3)


@pytest.mark.parametrize("kind", ["normal", "ties", "falling", "mostly zero"])
def test_the_tail_of_many_returns_is_the_quantile(kind):
    """Above 100,000 returns the tail is found in a part of them, with the same result."""
    draws = np.random.default_rng(4).normal(0, 0.01, 150_001)
    returns = {
        "normal": draws,
        "ties": np.round(draws, 2),
        "falling": np.sort(draws)[::-1],
        "mostly zero": np.where(np.arange(len(draws)) % 50 == 0, draws, 0.0),
    }[kind]
    lowest = np.quantile(returns, 0.05)
    assert metrics.value_at_risk(returns) == pytest.approx(lowest, rel=1e-12, abs=1e-18)
    tail = returns[returns <= lowest].mean()
    assert metrics.conditional_value_at_risk(returns) == pytest.approx(tail, rel=1e-9, abs=1e-18)
