"""Forecasts to weights: every signal, every way of holding, and every limit, by hand."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtape.backtest import Costs, run_backtest
from longtape.backtest.signals import SIGNALS, SignalConfig, signal_options, weights_from_forecast
from longtape.core.errors import UserError
from tests.backtest.markets import HOUR, START, bars

NAN = math.nan
TIME = pl.Datetime("ms", "UTC")


def forecast(means, h=1, symbols=None, kind="return", every=1, **columns):
    """A forecast frame of means [R] or [R, S], origins `every` bars apart; NaN leaves the row out."""
    means = np.asarray(means, float).reshape(len(means), -1)
    symbols = symbols or [chr(65 + s) for s in range(means.shape[1])]
    frames = []
    for s, symbol in enumerate(symbols):
        opens = START + np.arange(len(means)) * every * HOUR
        frame = pl.DataFrame(
            {
                "timestamp": pl.Series(opens).cast(TIME),
                "known_at": pl.Series(opens + HOUR).cast(TIME),
                "symbol": symbol,
                "target": f"{kind}({h})",
                "kind": kind,
                "horizon": h,
                "end": pl.Series(opens + (h + 1) * HOUR).cast(TIME),
                "mean": means[:, s],
                **{name: np.asarray(values, float).reshape(means.shape)[:, s] for name, values in columns.items()},
            }
        )  # fmt: skip
        frames.append(frame.filter(pl.col("mean").is_not_nan()))
    return pl.concat(frames)


def config(name="threshold", holding="newest", **options):
    sizing = {k: options.pop(k) for k in list(options) if k in SignalConfig.model_fields}
    return SignalConfig(name=name, options=options, holding=holding, **sizing)


def weigh(frame, *args, **options):
    out = weights_from_forecast(frame, config(*args, **options))
    return out.drop("timestamp").to_numpy().tolist()


def column(frame, *args, **options):
    return [row[0] for row in weigh(frame, *args, **options)]


def test_threshold_is_long_flat_or_short():
    means = [0.02, 0.005, 0.0, -0.005, -0.02]
    assert column(forecast(means), threshold=0.01) == [1, 0, 0, 0, -1]
    assert column(forecast(means)) == [1, 1, 0, -1, -1]
    assert column(forecast(means, threshold=[0.03, 0.001, 0, 0.001, 0.001])) == [0, 1, 0, -1, -1]
    assert column(forecast(means), long_only=True) == [1, 1, 0, 0, 0]


def test_tanh_and_proportional():
    means = [0.01, -0.02, 0.5]
    assert column(forecast(means), "tanh", gain=50) == pytest.approx(np.tanh([0.5, -1.0, 25]))
    assert column(forecast(means), "proportional", gain=10) == pytest.approx([0.1, -0.2, 1.0])


def test_symbols_share_the_equity():
    means = [[0.02, -0.02], [0.02, 0.0]]
    assert weigh(forecast(means)) == [[0.5, -0.5], [0.5, 0.0]]
    assert weigh(forecast(means), "equal") == [[0.5, -0.5], [1.0, 0.0]]
    assert weigh(forecast([[0.0, 0.0]]), "equal") == [[0.0, 0.0]]


def test_volatility_target_by_hand():
    returns = forecast([0.01, -0.01, 0.01], h=4, periods=[0, 0, 0]).drop("periods")
    spread = forecast([0.02, 0.01, 1e-9], h=4, kind="volatility")
    yearly = 0.02 * math.sqrt(8760 / 4)
    got = weights_from_forecast(
        pl.concat([returns, spread]), config("volatility_target", volatility=0.5, max_leverage=1.5), 8760
    )["A"]
    assert got.to_list() == pytest.approx([0.5 / yearly, -0.5 / (yearly / 2), 1.5])
    with pytest.raises(UserError, match="needs forecasts of kind 'volatility'"):
        weigh(returns, "volatility_target", volatility=0.5)


def test_interval_must_exclude_zero():
    frame = forecast([0.01, 0.01, -0.01], lower=[0.001, -0.1, -0.05], upper=[0.1, 0.1, -0.001])
    assert column(frame, "interval") == [1, 0, -1]
    with pytest.raises(UserError, match="needs forecasts with lower and upper"):
        column(forecast([0.1]), "interval")


def test_rank_is_neutral_across_symbols():
    means = [[0.03, 0.01, -0.01, -0.02, 0.02], [NAN, 0.01, NAN, -0.02, 0.02], [NAN, NAN, 0.01, NAN, NAN]]
    got = weigh(forecast(means), "rank", quantile=0.4)
    assert got[0] == [0.25, 0, -0.25, -0.25, 0.25]
    assert got[1] == [0, 0, 0, -0.5, 0.5]  # those without a forecast are left
    assert got[2] == got[1]  # one forecast has no rank
    for quantile in (0.0, 0.6):
        with pytest.raises(UserError, match=r"quantile must lie in \(0, 0.5\]"):
            weigh(forecast(means), "rank", quantile=quantile)
    with pytest.raises(UserError, match="compares symbols"):
        weigh(forecast([0.1]), "rank")


def test_ties_at_the_border_of_a_rank_share_what_is_left_of_their_side():
    got = weigh(
        forecast([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.1, -0.1], [0.1, 0.1, 0.1, -0.1]]), "rank", quantile=0.5
    )
    assert got == [pytest.approx(row) for row in ([0] * 4, [0, 0, 0.25, -0.25], [1 / 12] * 3 + [-0.25])]
    # Two places for three that tie, and two more below for the same three: they are neither long nor short.
    assert weigh(forecast([[0.2, 0.2, 0.2]]), "rank", quantile=0.5) == [[0, 0, 0]]
    two = weigh(forecast([[0.2, 0.2, 0.1, 0.0, -0.1]]), "rank", quantile=0.2)
    assert two == [pytest.approx([0.25, 0.25, 0, 0, -0.5])]


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(2, 9),
    levels=st.integers(1, 4),
    absent=st.sampled_from([0.0, 0.3]),
    quantile=st.sampled_from([0.01, 0.2, 0.34, 0.5]),
)
def test_a_rank_does_not_hang_on_the_order_of_the_symbols(seed, count, levels, absent, quantile):
    rng = np.random.default_rng(seed)
    means = rng.integers(0, levels, (6, count)) / 10
    means[rng.random((6, count)) < absent] = NAN
    means[0] = np.arange(count)  # every symbol is there once
    moved = rng.permutation(count)
    names = np.array([chr(65 + s) for s in range(count)])
    there = weights_from_forecast(forecast(means), config("rank", quantile=quantile))
    again = forecast(means[:, moved], symbols=names[moved].tolist())
    assert weights_from_forecast(again, config("rank", quantile=quantile)).select(there.columns).equals(there)
    values = there.drop("timestamp").to_numpy()
    assert values.sum(axis=1) == pytest.approx(np.zeros(len(values)), abs=1e-9)
    assert (np.abs(values).sum(axis=1) <= 1 + 1e-9).all()


def test_allocation_is_taken_as_it_is():
    assert weigh(forecast([[0.7, 0.3], [-0.2, 0.9]]), "allocation") == [[0.7, 0.3], [-0.2, 0.9]]


def test_a_symbol_without_a_forecast_keeps_its_weight():
    means = [[NAN, 0.1], [0.1, NAN], [NAN, -0.1]]
    assert weigh(forecast(means)) == [[0.0, 0.5], [0.5, 0.5], [0.5, -0.5]]


def test_overlapping_forecasts_are_held_replaced_or_laddered():
    frame = forecast([0.1, -0.1, -0.1, 0.1, 0.1, -0.1], h=3)
    assert column(frame, holding="newest") == [1, -1, -1, 1, 1, -1]
    assert column(frame, holding="hold") == [1, 1, 1, 1, 1, 1]
    assert column(frame, holding="ladder") == pytest.approx(np.array([1, 0, -1, -1, 1, 1]) / 3)


def test_a_forecast_runs_out():
    gap = forecast([0.1, NAN, NAN, NAN, NAN, NAN], h=2)
    other = forecast([0.0] * 6, h=2, symbols=["B"])
    frame = pl.concat([gap, other])
    assert [row[0] for row in weigh(frame, holding="hold")] == [0.5, 0.5, 0, 0, 0, 0]
    assert [row[0] for row in weigh(frame, holding="ladder")] == [0.25, 0.25, 0, 0, 0, 0]
    assert [row[0] for row in weigh(frame, holding="newest")] == [0.5] * 6


@pytest.mark.parametrize("holding", ["hold", "ladder"])
def test_a_forecast_of_one_bar_runs_out_too(holding):
    alone = forecast([0.1, NAN, NAN, -0.1], h=1)
    frame = pl.concat([alone, forecast([0.0] * 4, h=1, symbols=["B"])])
    assert [row[0] for row in weigh(frame, holding=holding)] == [0.5, 0, 0, -0.5]


def test_a_ladder_of_sparse_origins_has_one_tranche_an_origin():
    frame = forecast([0.1, -0.1, 0.1, 0.1, -0.1], h=4, every=2)
    assert column(frame, holding="ladder") == pytest.approx([0.5, 0, 0, 1, 0])
    alone = forecast([0.1, -0.1, 0.1], h=4, every=4)
    assert column(alone, holding="ladder") == [1, -1, 1]


def test_the_sum_of_a_ladder_does_not_change_by_rounding():
    rng = np.random.default_rng(0)
    means = rng.normal(size=(3000, 5))
    got = weights_from_forecast(forecast(means, h=7), config(holding="ladder")).drop("timestamp").to_numpy()
    moves = np.abs(np.diff(got, axis=0))
    assert moves[moves > 0].min() > 0.02  # a fifth of a seventh


def on_clock(opens, means, h, at_open, symbol="A", origins=None):
    """A forecast frame of means [n] for hourly or longer bars that open at `opens` [n + h + 1] (hours), labels h rows
    ahead: to that row's close, or (`at_open`) from the next open to the open h rows after it.
    """
    opens = START + np.asarray(opens, np.int64) * HOUR
    closes = opens + np.diff(opens).min()
    n = len(opens) - h - 1
    rows = np.arange(n) if origins is None else np.asarray(origins)
    return pl.DataFrame(
        {
            "timestamp": pl.Series(opens[rows]).cast(TIME),
            "known_at": pl.Series(closes[rows]).cast(TIME),
            "symbol": [symbol] * len(rows),
            "target": [f"{'open_' if at_open else ''}return({h})"] * len(rows),
            "kind": ["return"] * len(rows),
            "horizon": [h + at_open] * len(rows),
            "end": pl.Series(opens[rows + h + 1] if at_open else closes[rows + h]).cast(TIME),
            "mean": np.asarray(means, float)[rows],
        }
    )


def weekdays(n):
    """Opens of daily bars, Monday to Friday, in hours."""
    return [24 * (7 * (day // 5) + day % 5) for day in range(n)]


def sessions(n, bars=7):
    """Opens of hourly bars, seven a session from 14:00, Monday to Friday."""
    return [24 * (7 * (k // bars // 5) + k // bars % 5) + 14 + k % bars for k in range(n)]


@pytest.mark.parametrize("clock", [weekdays, sessions, range], ids=["days", "sessions", "always"])
@pytest.mark.parametrize("at_open", [False, True], ids=["close", "open"])
@pytest.mark.parametrize("h", [1, 2, 3, 5, 9, 12])
def test_a_full_ladder_is_the_mean_of_the_last_h_forecasts_on_any_clock(clock, at_open, h):
    rng = np.random.default_rng(h)
    n = 140
    means = rng.normal(size=n)
    frame = on_clock(clock(n + h + 1), means, h, at_open)
    got = np.array(column(frame, "allocation", holding="ladder"))
    expected = np.convolve(means, np.ones(h) / h)[:n]
    # Where every label spans a gap, the first of them to end shows whether labels end at an open.
    begun = h + 7 if at_open and clock is not range else 0
    assert got[begun:] == pytest.approx(expected[begun:], abs=1e-11)
    held = np.array(column(frame, "allocation", holding="hold"))
    changes = np.flatnonzero(np.diff(held, prepend=np.nan))
    changes = changes[changes >= begun]
    assert set(np.diff(changes)) == {h}
    assert held[changes] == pytest.approx(means[changes], abs=1e-11)


@pytest.mark.parametrize("holding", ["hold", "ladder"])
def test_what_is_held_does_not_hang_on_the_forecasts_to_come(holding):
    rng = np.random.default_rng(0)
    for h in (1, 3, 8):
        for clock in (weekdays, sessions, range):
            for at_open in (False, True):
                frame = on_clock(clock(80 + h), rng.normal(size=79), h, at_open)
                whole = column(frame, "allocation", holding=holding)
                for cut in (2, 3, h + 1, 20, 50):
                    assert column(frame[:cut], "allocation", holding=holding) == whole[:cut]


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 60),
    h=st.integers(1, 15),
    count=st.integers(1, 3),
    at_open=st.booleans(),
    kept=st.sampled_from([1.0, 0.8, 0.3]),
    gaps=st.sampled_from([0.0, 0.1, 0.6]),
    holding=st.sampled_from(["newest", "hold", "ladder"]),
)
def test_no_weight_exceeds_the_largest_that_was_asked_for(seed, n, h, count, at_open, kept, gaps, holding):
    """Random clocks of each symbol, holes among the origins, every horizon."""
    rng = np.random.default_rng(seed)
    frames, largest = [], []
    for s in range(count):
        steps = np.where(rng.random(n + h + 1) < gaps, rng.integers(2, 80, n + h + 1), 1)
        steps[0] = 1
        rows = np.flatnonzero(rng.random(n) < kept)
        rows = rows if len(rows) else np.array([0])
        means = rng.normal(size=n)
        frames.append(on_clock(np.cumsum(steps), means, h, at_open, "ABC"[s], rows))
        largest.append(np.abs(means[rows]).max())
    frame = pl.concat(frames)
    own = np.array(weigh(frame, "allocation", holding=holding))
    assert (np.abs(own) <= np.array(largest) + 1e-9).all()
    signs = np.array(weigh(frame, "threshold", holding=holding))
    assert np.abs(signs).sum(axis=1).max() <= 1 + 1e-9
    shared = np.array(weigh(frame, "equal", holding=holding))
    assert np.abs(shared).sum(axis=1).max() <= 1 + 1e-9


@pytest.mark.parametrize("holding", ["newest", "hold", "ladder"])
def test_a_foreseen_open_return_is_earned_once_and_never_levered(holding):
    """1 % from open to open on weekdays, foreseen: the account earns it and its exposure is never above 1."""
    n, h = 60, 1
    opens = np.array(weekdays(n + h + 1))
    frame = on_clock(opens, np.full(n, math.log1p(0.01)), h, at_open=True)
    prices = 100 * 1.01 ** np.arange(n)
    clock = {"timestamp": frame["timestamp"]}
    market = bars(prices, prices * 1.01).with_columns(**clock)
    weights = weights_from_forecast(frame, config(holding=holding))
    result = run_backtest(weights, market, costs=Costs(), rebalance="every_bar")
    assert result.exposure.max() <= 1 + 1e-9
    assert result.equity["equity"][-1] == pytest.approx(100_000 * 1.01 ** (n - 1))


@pytest.mark.parametrize("holding", ["newest", "hold", "ladder"])
def test_a_perfectly_foreseen_market_pays_its_return_once(holding):
    """1 % a bar, foreseen over six bars (6 % each time): long throughout, the account earns 1 % a bar."""
    n, h, rate = 60, 6, 0.01
    prices = 100 * (1 + rate) ** np.arange(n + 1)
    frame = bars(prices[:-1], prices[1:])  # opens where the last one closed
    weights = weights_from_forecast(forecast([h * math.log1p(rate)] * n, h=h), config(holding=holding))
    result = run_backtest(weights, frame, costs=Costs(), rebalance="every_bar")
    got = result.equity["equity"].to_numpy() / 100_000
    if holding == "ladder":  # a sixth more each bar, until all six are there
        invested = np.minimum(np.arange(n) / h, 1.0)
        assert got == pytest.approx(np.cumprod(1 + rate * invested))
    else:
        assert got == pytest.approx((1 + rate) ** np.arange(n))
        assert result.fills.height == 1


@pytest.mark.parametrize("holding", ["hold", "ladder"])
def test_each_forecast_is_paid_over_its_own_bars_and_no_others(holding):
    """Only the bars t+1 … t+h that a forecast speaks of earn: a market that moves in one block of h bars."""
    h, n = 4, 20
    moves = np.zeros(n)
    moves[9:13] = 0.1  # foreseen at the close of bar 8
    closes = 100 * np.cumprod(1 + moves)
    opens = np.concatenate([[100.0], closes[:-1]])
    means = np.zeros(n)
    means[8] = 4 * math.log1p(0.1)
    means[[4, 0]] = -1e-9 if holding == "hold" else 0.0
    weights = weights_from_forecast(forecast(means, h=h), config(holding=holding))
    result = run_backtest(weights, bars(opens, closes), costs=Costs())
    part = 1.0 if holding == "hold" else 0.25
    assert result.equity["equity"][-1] == pytest.approx(100_000 * (1 + part * (1.1**4 - 1)))
    assert result.trades["bars"].to_list()[-1] == h


def test_caps_of_weight_and_gross():
    means = [[0.9, -0.6], [0.1, 0.1]]
    assert weigh(forecast(means), "allocation", max_weight=0.5) == [[0.5, -0.5], [0.1, 0.1]]
    assert weigh(forecast(means), "allocation", max_gross=0.75) == [
        pytest.approx([0.45, -0.3]),
        [0.1, 0.1],
    ]


def test_a_band_leaves_small_moves_alone():
    means = [0.5, 0.55, 0.6, 0.45, 0.75]
    assert column(forecast(means), "allocation", band=0.1) == [0.5, 0.5, 0.5, 0.5, 0.75]


def test_turnover_is_limited_per_decision():
    means = [[0.5, 0.5], [-0.5, 0.5], [-0.5, 0.5]]
    got = weigh(forecast(means), "allocation", max_turnover=0.5)
    assert got[0] == pytest.approx([0.25, 0.25])
    assert got[1] == pytest.approx([0.25 - 0.375, 0.25 + 0.125])
    assert np.abs(np.diff(np.array([[0, 0], *got]), axis=0)).sum(axis=1).max() <= 0.5 + 1e-12


def test_a_move_must_be_worth_its_cost():
    means = np.log1p([0.003, 0.0005, -0.0005, -0.003])
    assert column(forecast(means), cost=0.001) == [1, 1, 1, -1]
    assert column(forecast(means), cost=0.0) == [1, 1, -1, -1]
    assert column(forecast(means), cost=0.01) == [0, 0, 0, 0]


def test_one_target_and_horizon_must_be_meant():
    both = pl.concat([forecast([0.1, 0.2], h=1), forecast([-0.1, -0.2], h=4)])
    with pytest.raises(UserError, match=r"return\(1\) at 1 bars, return\(4\) at 4 bars"):
        weigh(both)
    assert column(both, horizon=4) == [-1, -1]
    assert column(both, target="return(1)") == [1, 1]
    with pytest.raises(UserError, match="none that fits"):
        weigh(both, horizon=9)


def test_forecasts_that_cannot_be():
    good = forecast([0.1, 0.2])
    holed = good.with_columns(pl.Series("mean", [0.1, None]))
    for bad, message in (
        (good.clear(), "the frame is empty"),
        (good.drop("end"), "column 'end' is missing"),
        (holed, r"no finite mean for A at 2024-01-01 01:00Z \(1 such rows\)"),
        (pl.concat([good, good]), "two forecasts at one time"),
    ):
        with pytest.raises(UserError, match=message):
            weigh(bad)


def test_a_forecast_frame_of_pandas_gives_the_same_weights():
    frame = forecast([[0.1, -0.2], [0.0, 0.3]])
    assert weigh(frame.to_pandas()) == weigh(frame)


def test_a_target_is_meant_whatever_its_spaces():
    both = pl.concat([forecast([0.1, 0.2], h=1), forecast([-0.1, -0.2], h=4)])
    assert column(both, target=" return( 4 )") == [-1, -1]
    written = both.with_columns(pl.col("target").str.replace("4", " 4 "))
    assert column(written, target="return(4)") == [-1, -1]
    assert SignalConfig(target="return( 4 )") == SignalConfig(target="return(4)")


@pytest.mark.parametrize("kind", ["volatility", "direction", "up"])
def test_what_is_no_forecast_of_a_return_is_not_traded(kind):
    """The mean of a volatility is above zero, and so would the weight be, always."""
    alone = forecast([0.1, 0.2], h=4, kind=kind)
    for options in ({}, {"target": f"{kind}(4)"}):
        with pytest.raises(UserError, match=rf"none that fits among {kind}\(4\) \({kind}\)"):
            weigh(alone, **options)
    beside = pl.concat([alone, forecast([-0.1, -0.2], h=4)])
    assert column(beside) == [-1, -1]


def test_bars_in_a_year_are_not_read_from_origins_that_are_further_apart():
    """Daily origins of hourly bars: their times say 365 a year, the volatility is of 24 of 8,760."""
    returns, spread = (
        forecast([0.01] * 9, h=24, every=24),
        forecast([0.05] * 9, h=24, every=24, kind="volatility"),
    )
    both, options = pl.concat([returns, spread]), config("volatility_target", volatility=0.2)
    with pytest.raises(UserError, match=r"not every bar is an origin.*give periods_per_year"):
        weights_from_forecast(both, options)
    got = weights_from_forecast(both, options, 8760)["A"].to_list()
    assert got == pytest.approx([0.2 / (0.05 * math.sqrt(365))] * 9)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"name": "tanh"}, "signal 'tanh' needs its option 'gain'"),
        ({"name": "proportional"}, "signal 'proportional' needs its option 'gain'"),
        ({"name": "volatility_target"}, "signal 'volatility_target' needs its option 'volatility'"),
        (
            {"name": "volatility_target", "options": {"volatility": 0.0}},
            "volatility must be above 0 (given: 0.0)",
        ),
        (
            {"name": "volatility_target", "options": {"volatility": 0.1, "max_leverage": -1}},
            "max_leverage must be above 0",
        ),
        ({"name": "threshold", "options": {"threshold": -0.1}}, "threshold must be at least 0"),
        ({"name": "equal", "options": {"threshold": -0.1}}, "threshold must be at least 0"),
        ({"name": "rank", "options": {"quantile": 0.7}}, "quantile must lie in (0, 0.5] (given: 0.7)"),
        (
            {"name": "tanh", "options": {"gain": math.inf}},
            "signal.options.gain: Input should be a finite number",
        ),
        ({"name": "rang"}, "unknown signal 'rang'; did you mean 'rank'?"),
        ({"nmae": "rank"}, "signal.nmae: Extra inputs are not permitted; did you mean 'name'?"),
        ({"holding": "ladders"}, "signal.holding: Input should be 'ladder', 'hold' or 'newest'"),
    ],
)
def test_what_the_file_alone_shows_is_refused_when_the_document_is_made(document, message):
    with pytest.raises(UserError) as caught:
        SignalConfig(**document)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="signal"):
        SignalConfig.model_validate(document)


def test_every_signal_has_its_options_and_refuses_others():
    assert signal_options("tanh") == {"gain": None}
    with pytest.raises(UserError, match="needs its option 'gain'"):
        weigh(forecast([0.1]), "tanh")
    with pytest.raises(ValueError, match="unknown signal 'tan'; did you mean 'tanh'"):
        SignalConfig(name="tan")
    with pytest.raises(ValueError, match="unknown option 'gains'; did you mean 'gain'"):
        SignalConfig(name="tanh", options={"gains": 1.0})
    for name in SIGNALS:
        assert SIGNALS.load(name).__doc__
