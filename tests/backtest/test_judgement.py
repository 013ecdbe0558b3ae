"""What a sceptic asks of a backtest: same terms for all, chance in the middle, costs by arithmetic, plain sentences."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from longtape.backtest import Costs, Limits, run_backtest
from longtape.backtest.benchmarks import Lookbacks, lookbacks_of, random_strategies
from longtape.backtest.bootstrap import bootstrap_metrics
from longtape.backtest.judgement import judge
from longtape.backtest.metrics import drawdowns, max_drawdown, total_return
from longtape.backtest.overfitting import TrialSet
from longtape.backtest.replay import at_cost, weights_in_force, with_weights
from longtape.backtest.sensitivity import break_even_cost, cost_sensitivity
from longtape.core.clock import DAY
from longtape.core.errors import UserError
from longtape.core.instrument import Instrument
from tests.backtest.markets import bars, random_bars, times, weights

FREE = Costs()


def market(n=400, seed=0, symbols=("A", "B"), missing=0.0):
    draw = np.random.default_rng(seed)
    return pl.concat(random_bars(draw, n, symbol, missing if s else 0.0) for s, symbol in enumerate(symbols))


def calm(n=400, seed=0, drift=0.0, deviation=0.005):
    """One symbol whose bars open where the one before closed."""
    close = 100 * np.exp(np.cumsum(np.random.default_rng(seed).normal(drift, deviation, n)))
    return bars(np.concatenate([[100.0], close[:-1]]), close)


def blocks_of_signs(n, seed, length=10):
    """Long and short for `length` bars at a time, by the toss of a coin."""
    return np.repeat(np.random.default_rng(seed).choice([-1.0, 1.0], size=-(-n // length)), length)[:n]


def foresight(frame):
    """The sign of the next fill-to-fill return: decided at t, filled at open t + 1, held to open t + 2."""
    opens = frame["open"].to_numpy()
    out = np.zeros(len(opens))
    out[:-2] = np.sign(opens[2:] - opens[1:-1])
    return out


# The same account again


def test_weights_in_force_are_the_last_decision_of_each_bar():
    sparse = weights([0.5, -1.0, 0.0]).with_columns(times(10)[[2, 3, 7]].alias("timestamp"))
    result = run_backtest(sparse, calm(10))
    assert weights_in_force(result)[:, 0].tolist() == [0, 0, 0.5, -1, -1, -1, -1, 0, 0, 0]


def test_no_decision_at_all_is_flat():
    result = run_backtest(weights([]), calm(6))
    assert weights_in_force(result).tolist() == [[0.0]] * 6


@pytest.mark.parametrize("fill", ["next_open", "next_close"])
@pytest.mark.parametrize("rebalance", ["on_change", "every_bar"])
def test_replaying_its_own_weights_gives_the_same_books(fill, rebalance):
    draw = np.random.default_rng(1)
    path = pl.DataFrame({"timestamp": times(300), "A": draw.normal(size=300), "B": draw.normal(size=300)})
    result = run_backtest(
        path[::3],
        market(300, missing=0.1),
        costs=Costs(fee=0.001, spread=0.0002, impact=0.1, borrow=0.05),
        fill=fill,
        rebalance=rebalance,
        limits=Limits(max_leverage=1.5, stop_loss=0.05),
        lot_size=0.1,
    )
    again = with_weights(result, weights_in_force(result))
    assert np.array_equal(again.history.equity, result.history.equity)
    assert np.array_equal(again.history.fills, result.history.fills)


def test_other_weights_meet_the_leverage_cap_too():
    capped = run_backtest(weights([1.0] * 50), calm(50), limits=Limits(max_leverage=0.5))
    asked = run_backtest(weights([0.5] * 50), calm(50))
    again = with_weights(capped, np.ones((50, 1)))
    assert np.array_equal(again.history.equity, asked.history.equity)


# What stands beside it


def test_buy_and_hold_pays_the_same_costs_and_is_left_alone_even_if_the_strategy_rebalances():
    frame, costs = market(200), Costs(fee=0.002, spread=0.001)
    result = run_backtest(
        weights([0.3] * 200).with_columns(B=pl.lit(-0.3)), frame, costs=costs, rebalance="every_bar"
    )
    hold = judge(result, n_random=1, n_bootstrap=1).benchmarks["buy & hold"]
    by_hand = run_backtest(weights([0.5] * 200).with_columns(B=pl.lit(0.5)), frame, costs=costs)
    assert np.array_equal(hold.history.equity, by_hand.history.equity)
    assert hold.metrics["n_fills"] == 2


def test_buy_and_hold_knows_no_stop():
    result = run_backtest(weights([1.0] * 200), calm(200), limits=Limits(stop_loss=0.001, take_profit=0.001))
    assert result.trades.height == 1
    hold = judge(result, n_random=1, n_bootstrap=1).benchmarks["buy & hold"]
    free = run_backtest(weights([1.0] * 200), calm(200))
    assert np.array_equal(hold.history.equity, free.history.equity)


def test_momentum_and_reversion_hold_the_sign_of_the_past_return_at_the_next_open():
    frame, costs = market(120, missing=0.2), Costs(fee=0.001)
    result = run_backtest(weights([0.0] * 120).with_columns(B=pl.lit(0.0)), frame, costs=costs)
    judged = judge(result, n_random=1, n_bootstrap=1, lookbacks=Lookbacks(10, 3)).benchmarks
    wide = frame.pivot(on="symbol", index="timestamp", values="close").sort("timestamp")
    wide = wide.with_columns(pl.exclude("timestamp").forward_fill())
    for name, lookback, side in (("momentum", 10, 0.5), ("mean reversion", 3, -0.5)):
        past = pl.exclude("timestamp") - pl.exclude("timestamp").shift(lookback)
        signs = wide.with_columns(past.sign().fill_null(0.0) * side)
        by_hand = run_backtest(signs, frame, costs=costs, rebalance="every_bar")
        assert np.array_equal(judged[name].history.equity, by_hand.history.equity)
        assert judged[name].metrics["n_fills"] > 0


def test_flat_keeps_its_capital():
    judged = judge(run_backtest(weights([1.0] * 30), calm(30)), n_random=1, n_bootstrap=1)
    assert (judged.benchmarks["flat"].history.equity == 100_000).all()


def test_funding_of_a_perpetual_falls_on_buy_and_hold_as_well():
    known = {"A": Instrument("test", "linear", "A")}
    costs = Costs(funding="rate", funding_rate=0.001)
    result = run_backtest(weights([-1.0] * 40), calm(40), costs=costs, instruments=known)
    judged = judge(result, n_random=1, n_bootstrap=1)
    assert result.account["funding"] < 0 < judged.benchmarks["buy & hold"].account["funding"]


@pytest.mark.parametrize(
    ("step", "n", "month", "week"),
    [(DAY, 400, 30, 7), (3_600_000, 8760, 730, 168), (3_600_000, 100, 25, 25), (3_600_000, 4, 2, 2)],
)
def test_lookbacks_are_a_month_and_a_week_of_the_clock(step, n, month, week):
    draw = np.random.default_rng(0)
    result = run_backtest(weights([1.0] * n, step=step), bars(100 + draw.random(n), step=step))
    assert lookbacks_of(result) == Lookbacks(month, week)


# Chance with the same habits


def test_random_paths_keep_exposure_and_turnover():
    n = 2000
    draw = np.random.default_rng(2)
    path = np.repeat(draw.normal(size=(n // 20, 1)), 20, axis=0)
    result = run_backtest(weights(path[:, 0] / 10), calm(n, deviation=1e-6), costs=FREE)
    chance = random_strategies(result, 50, seed=0)
    # A still market: what is left is the seam, and the decisions of the first and last bars.
    assert chance.exposure == pytest.approx(np.full(50, result.exposure.mean()), rel=0.03)
    assert chance.turnover == pytest.approx(np.full(50, result.metrics["turnover"]), rel=0.05)


def test_a_strategy_that_ignores_the_market_stands_anywhere_and_in_the_middle_on_average():
    at = []
    for seed in range(60):
        result = run_backtest(weights(blocks_of_signs(300, seed)), calm(300, 1000 + seed))
        at.append(random_strategies(result, 60, seed).sharpe_percentile)
    at = np.array(at)
    # Uniform on 0 … 100: the mean of 60 has a standard error of 3.7.
    assert 39 < at.mean() < 61
    assert (at < 25).sum() >= 5
    assert (at > 75).sum() >= 5


def test_a_random_shift_of_a_strategy_that_foresees_loses_its_place():
    frame = calm(500, 3)
    seen = foresight(frame)
    best, worst = (run_backtest(weights(side * seen), frame, costs=FREE) for side in (1, -1))
    shifted = run_backtest(weights(np.roll(seen, 137)), frame, costs=FREE)
    assert random_strategies(best, 100, 0).sharpe_percentile == 100
    assert random_strategies(best, 100, 0).return_percentile == 100
    assert random_strategies(worst, 100, 0).sharpe_percentile == 0
    assert 2 < random_strategies(shifted, 100, 0).sharpe_percentile < 98


def test_buying_and_holding_is_its_own_random_strategy_and_stands_at_fifty():
    chance = random_strategies(run_backtest(weights([1.0] * 100), calm(100, 4)), 20, 0)
    assert (chance.sharpe_percentile, chance.return_percentile) == (50, 50)


def test_the_same_seed_gives_the_same_random_strategies():
    result = run_backtest(weights(blocks_of_signs(200, 0)), calm(200))
    first, same, other = (random_strategies(result, 10, seed) for seed in (1, 1, 2))
    assert np.array_equal(first.sharpe, same.sharpe)
    assert not np.array_equal(first.sharpe, other.sharpe)


# Costs


def round_trip(sold_at):
    """Bought at 100, sold at `sold_at`."""
    return run_backtest(weights([1.0, 0.0, 0.0]), bars([90.0, 100.0, sold_at]), costs=Costs(fee=0.001))


def test_break_even_cost_by_arithmetic():
    # 1 unit of equity buys at c and sells 1.1 at c·1.1: 1.1 − c − 1.1c = 1.
    assert break_even_cost(round_trip(110.0)) == pytest.approx(1e4 * 0.1 / 2.1, abs=1e-3)


def test_break_even_at_that_cost_ends_where_it_began():
    frame = calm(300, 5, drift=0.0005)
    result = run_backtest(weights(np.clip(blocks_of_signs(300, 6) + 1, 0, 1)), frame)
    cost = break_even_cost(result)
    assert cost > 0
    assert at_cost(result, cost * 1e-4).history.equity[-1] == pytest.approx(100_000, abs=1)


def test_no_break_even_where_nothing_was_gained_or_nothing_traded():
    assert np.isnan(break_even_cost(round_trip(99.0)))
    assert np.isnan(break_even_cost(run_backtest(weights([0.0] * 9), calm(9))))


def test_a_gain_that_no_cost_takes_away_breaks_even_at_infinity():
    held = run_backtest(weights([1.0] * 3), bars([90.0, 100.0, 300.0], [90.0, 300.0, 300.0]))
    assert break_even_cost(held) == float("inf")


def test_the_cost_table_replaces_fee_spread_and_slippage_together_and_nothing_else():
    frame, path = calm(200, 7), weights(blocks_of_signs(200, 8))
    named = Costs(fee=0.0004, spread=0.0003, slippage=0.0003, borrow=0.1)
    table = cost_sensitivity(run_backtest(path, frame, costs=named))
    assert table.asked == pytest.approx(10)
    assert [row["cost bp a side"] for row in table.rows] == [0, 5, 10, 20]
    for row in table.rows:
        costs = Costs(fee=row["cost bp a side"] * 1e-4, borrow=0.1)
        alone = run_backtest(path, frame, costs=costs).metrics
        assert row["sharpe"] == pytest.approx(alone["sharpe"])
        assert row["costs"] == pytest.approx(alone["costs"])


# The whole


def judged(**options):
    frame = calm(300, 9)
    result = run_backtest(weights(blocks_of_signs(300, 10)), frame)
    return judge(result, **{"n_random": 20, "n_bootstrap": 50, **options})


def test_a_judgement_is_plain_json():
    content = judged().to_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert [row["strategy"] for row in content["strategies"]] == [
        "strategy",
        "buy & hold",
        "flat",
        "momentum",
        "mean reversion",
    ]
    assert content["strategies"][2]["sharpe"] is None


def test_the_same_seed_gives_the_same_judgement():
    assert judged(seed=3).to_dict() == judged(seed=3).to_dict()
    assert judged(seed=3).to_dict() != judged(seed=4).to_dict()


def test_a_perfect_forecaster_is_believed_and_a_coin_is_not():
    frame = calm(500, 11)
    sure = judge(run_backtest(weights(foresight(frame)), frame, costs=FREE), n_random=20, n_bootstrap=50)
    assert sure.statements[0].startswith("Gained after costs, more than buy & hold")
    assert sure.verdict[0].startswith("Implausible: Sharpe ")  # in front of everything
    assert "bars stamped at their close" in sure.verdict[0]
    assert "docs/leakage.md" in sure.verdict[0]
    plain = judge(run_backtest(weights([0.0] * 50), calm(50)), n_random=2, n_bootstrap=2)
    assert plain.verdict == plain.statements
    assert "percentile 100 by Sharpe" in sure.statements[1]
    assert judged().statements[0].startswith("No edge after costs")


def test_a_gain_below_that_of_holding_is_said_to_be():
    frame = calm(2000, 12, drift=0.002)
    half = judge(run_backtest(weights([0.0, 1.0] * 1000), frame, costs=FREE), n_random=2, n_bootstrap=20)
    assert half.statements[0].startswith("Gained after costs, but buy & hold would have done better")


def test_an_account_that_never_traded_has_no_edge_and_no_standing():
    verdict = judge(run_backtest(weights([0.0] * 50), calm(50)), n_random=2, n_bootstrap=2).verdict
    assert verdict[0] == "No edge: the strategy never traded."
    assert verdict[1] == "No standing among random strategies: the account never moved."


@pytest.mark.parametrize("values", [[0.0] * 50, [1.0] * 50, [-30.0] * 50], ids=["flat", "held", "ruined"])
def test_no_sentence_holds_a_figure_that_does_not_exist_or_that_nobody_could_earn(values):
    result = run_backtest(weights(values), random_bars(np.random.default_rng(0), 50))
    verdict = judge(result, n_random=2, n_bootstrap=50).verdict
    text = " ".join(verdict)
    assert not re.search(r"\b(nan|inf)\b", text)
    assert max(len(word) for word in text.split()) < 30  # no thousand billions of percent


def test_a_resample_of_a_ruined_account_loses_no_more_than_the_account_did():
    returns = run_backtest(weights([-30.0] * 50), random_bars(np.random.default_rng(0), 50)).returns
    assert returns.min() < -1
    found = bootstrap_metrics(returns, 8760, resamples=300)["max_drawdown"]
    gain = (
        1 + np.maximum(returns, 0).sum()
    )  # not even from the highest point that it could have reached first
    assert found.lower >= returns.min() * gain
    twice = np.array([0.1, -1.5, -1.5, 0.2])
    assert max_drawdown(twice) == drawdowns(twice).min() == pytest.approx(-1.5)
    assert total_return(twice) == pytest.approx(1.1 * -0.5 - 1)


def test_excluded_funding_is_in_the_verdict():
    known = {"A": Instrument("test", "linear", "A")}
    costs = Costs(funding="excluded")
    result = run_backtest(weights([1.0] * 50), calm(50), costs=costs, instruments=known)
    verdict = judge(result, n_random=2, n_bootstrap=2).verdict
    assert "Funding of perpetuals is excluded." in verdict


def test_one_configuration_is_said_to_be_one():
    one = judged()
    assert "One configuration was tried" in one.statements[4]
    assert "folds are not trials" in one.statements[4]
    assert one.overfitting is None
    assert one.deflated.deflated_sharpe == one.deflated.probabilistic_sharpe


def test_many_configurations_deflate_and_are_cross_validated_where_their_series_were_kept():
    draw = np.random.default_rng(0)
    kept = TrialSet.of_returns({f"trial {i}": draw.normal(0, 0.01, 299) for i in range(8)})
    many = judged(trials=kept)
    assert many.deflated.trials == 8
    assert many.deflated.deflated_sharpe < many.deflated.probabilistic_sharpe
    assert many.overfitting is not None
    assert f"probability of overfitting {many.overfitting.probability:.1%}" in many.statements[4]
    bare = judged(trials=TrialSet.of_sharpes(kept.names, list(kept.sharpes)))
    assert bare.deflated == many.deflated
    assert bare.overfitting is None
    assert "return series were not kept" in bare.statements[4]


def test_two_bars_are_no_record():
    with pytest.raises(UserError, match="2 bars are no record"):
        judge(run_backtest(weights([1.0, 1.0]), calm(2)))


def test_no_random_strategy_is_refused():
    with pytest.raises(UserError, match="n_random must be at least 1"):
        judged(n_random=0)


@pytest.mark.parametrize("seed", range(40))
def test_odd_accounts_are_judged_in_plain_json_too(seed):
    """Ruined, delisted, silent, with holes, levered, a few bars long."""
    draw = np.random.default_rng(seed)
    n, symbols = int(draw.integers(3, 60)), "ABC"[: draw.integers(1, 4)]
    frames = [random_bars(draw, n, symbols[0])]
    frames += [
        random_bars(draw, n, name, 0.3, 0.3, int(draw.integers(0, n)) if draw.random() < 0.5 else None)
        for name in symbols[1:]
    ]
    size = draw.choice([0.0, 1.0, 20.0])
    path = pl.DataFrame({"timestamp": times(n), **{name: draw.normal(size=n) * size for name in symbols}})
    path = path.filter(pl.Series(draw.random(n) < draw.choice([0.1, 1.0])))
    costs = Costs(fee=0.001, borrow=0.1, impact=0.1)
    rebalance = str(draw.choice(["on_change", "every_bar"]))
    result = run_backtest(path, pl.concat(frames), costs=costs, rebalance=rebalance)
    found = judge(result, n_random=3, n_bootstrap=10)
    assert json.dumps(found.to_dict(), allow_nan=False)
    assert len(found.verdict) >= 5


def test_a_short_record_that_compounds_beyond_any_number_is_infinite_and_not_a_crash():
    result = run_backtest(weights([1.0] * 4), bars([90.0, 100.0, 300.0, 500.0]), costs=FREE)
    assert result.metrics["annual_return"] == float("inf")
    assert judge(result, n_random=2, n_bootstrap=2).to_dict()["strategies"][0]["annual_return"] is None


def test_an_equity_that_multiplies_a_hundredfold_in_a_year_is_doubted():
    result = run_backtest(weights([1.0] * 400), calm(400))
    history = result.history._replace(equity=np.geomspace(100_000, 101_000, 400))
    quiet = replace(
        judge(result, n_random=2, n_bootstrap=2),
        result=replace(result, history=history, periods_per_year=365),
    )
    assert not [figure for figure in quiet.doubts if "equity" in figure]
    history = result.history._replace(equity=np.geomspace(100_000, 30_000_000, 400))
    wild = replace(quiet, result=replace(result, history=history, periods_per_year=365))
    assert any("an equity that multiplies" in figure for figure in wild.doubts)
