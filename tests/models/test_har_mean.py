"""The mean of log-HARs: its running sums against fits from scratch, nothing from the future, right on the average."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from longtape.core.clock import DAY, HOUR, Interval, to_milliseconds
from longtape.core.errors import UserError
from longtape.core.instrument import Instrument
from longtape.features.build import FeaturesConfig, build
from longtape.market.bars import Bars
from longtape.market.files import read_bars
from longtape.models.gram import Gram
from longtape.models.har import LEAST_PENALTY, HarDesign, shrunk_weights
from longtape.models.har_mean import HALF_LIFE, YEAR, _Rows, monthly_log_variance
from longtape.models.linear_baseline import MonthlyHar
from longtape.workflow import run
from tests.candles import candle_frame
from tests.shared_data import shared
from tests.workflow.test_faults import experiment, metrics

COLUMNS = np.array([0])


def candles_of(frame, interval="1h"):
    return Bars.checked(Instrument("test", "spot", "TEST"), Interval.parse(interval), frame)


def panel_of(bars, horizon=24):
    return build([bars], FeaturesConfig(features=["log_return"], targets=[f"volatility({horizon})"]))


@pytest.fixture(scope="module")
def panel():
    """Two years of hours."""
    return panel_of(candles_of(candle_frame(17_000)))


@pytest.fixture(scope="module")
def found(panel):
    return forecast(panel)


def forecast(panel, since=None):
    design = HarDesign.of(panel.interval, panel.calendar)
    return monthly_log_variance(
        design, panel, 0, COLUMNS, int(panel.known_at[720]) if since is None else since
    )


def test_sums_that_run_along_are_those_of_a_fit_from_scratch(panel, found):
    design = HarDesign.of(panel.interval, panel.calendar)
    rows = _Rows(design, panel, 0, COLUMNS, int(panel.known_at[720]))
    month = list(rows.months())[20]
    now = int(panel.known_at[month[0]])
    known = rows.known_by(now)
    assert panel.target_ends[known].max() <= now < panel.target_ends[known[-1] + 1].max()
    age = now - panel.known_at[known]
    variances = []
    for counted in (0.5 ** (age / HALF_LIFE), (age <= YEAR).astype(float)):
        for chosen in rows.sets:
            variances.append(fit_from_scratch(rows, known, counted, chosen, month))
    assert len(variances) == 8
    assert np.allclose(found[month], np.log(np.mean(variances, axis=0)), atol=1e-8)


def fit_from_scratch(rows, known, counted, chosen, month):
    """Expected variance of the month's rows by one weighted regression."""
    x, y = rows.matrix(known), rows.labels[known]
    gram = Gram(x.shape[1], 1)
    gram.add(x, y, counted)
    weights = shrunk_weights(gram, np.where(chosen, LEAST_PENALTY, np.inf), True)
    smearing = np.average(np.exp(y - x @ weights), axis=0, weights=counted)
    return np.exp(rows.matrix(month) @ weights) * smearing


def test_the_future_changes_no_bit(panel, found):
    cut = 9_000
    closes, targets = panel.closes.copy(), panel.targets.copy()
    closes[cut:] *= 3.0
    targets[panel.target_ends[:, 0] > panel.known_at[cut - 1]] *= 7.0
    changed = replace(
        panel,
        closes=closes,
        targets=targets,
        ranges=panel.ranges * np.where(np.arange(17_000) < cut, 1, 5)[:, None],
    )
    again = forecast(changed)
    assert np.array_equal(again[:cut], found[:cut])
    assert not np.array_equal(again[cut + 800 :], found[cut + 800 :])


def test_bars_added_in_front_change_nothing(panel, found):
    shorter = panel_of(candles_of(candle_frame(17_000)[3_000:]))
    since = int(panel.known_at[3_720])
    whole, part = forecast(panel, since)[3_720:], forecast(shorter, since)[720:]
    assert np.allclose(whole, part, atol=1e-7)


def test_a_lag_that_training_rows_do_not_hold_is_left_out_for_good():
    """Years later there are rows enough for it, but the first of them would see more of it with bars put in front."""
    frame = candle_frame(1_600, step=DAY)
    panel, front = (panel_of(candles_of(rows, "1d"), 5) for rows in (frame[200:], frame))
    start = MonthlyHar(HarDesign.of(panel.interval, panel.calendar), np.array([[0]]))
    start.fit(panel, np.array([[0]]), np.arange(80, 580), np.arange(590, 700), None)
    assert int(start.n_lags) < len(start.har.lags)
    alone, behind = (start.row_inputs(one) for one in (panel, front))
    assert np.allclose(alone[100:], behind[300:], atol=1e-7)


@pytest.mark.parametrize("horizon", [1, 24])
def test_the_expected_variance_is_right_on_the_average(horizon):
    moves = np.random.default_rng(horizon).normal(0, 0.01, 12_000)
    frame = candle_frame(12_000).with_columns(close=100 * np.exp(np.cumsum(moves)))
    frame = frame.with_columns(open=frame["close"], high=frame["close"] * 1.001, low=frame["close"] * 0.999)
    made = panel_of(candles_of(frame), horizon)
    ratio = np.exp(forecast(made)[4_000:, 0]).mean() / (horizon * 1e-4)
    assert 0.9 < ratio < 1.1


def test_what_a_source_does_not_report_is_left_out(panel, found):
    closes_only = replace(panel, ranges=None, turnover=None)
    design = HarDesign.of(panel.interval, panel.calendar)
    assert [int(chosen.sum()) for chosen in _Rows(design, closes_only, 0, COLUMNS, 1).sets] == [
        len(design.lags)
    ]
    assert np.isfinite(forecast(closes_only)).all()
    assert not np.allclose(forecast(closes_only)[9_000:], found[9_000:])


def test_bars_without_a_trade_and_the_currency_tell_nothing(panel):
    """Volume of 0 has no logarithm: it counts as little, not as nothing, in whatever unit prices stand."""
    few = candle_frame(4_000).with_columns(
        pl.when(pl.int_range(pl.len()) % 150 < 3).then(0.0).otherwise("volume").alias("volume")
    )
    dear = few.with_columns(pl.col("open", "high", "low", "close") * 1024.0)
    found, other = (forecast(panel_of(candles_of(frame))) for frame in (few, dear))
    assert np.abs(found - other).max() < 1e-6
    assert np.abs(np.diff(found[2_000:, 0])).max() < 1.0


def test_before_there_is_anything_to_fit_it_is_the_mean_so_far(panel, found):
    first = panel.known_at < panel.known_at[720] + DAY
    squares = np.diff(np.log(panel.closes[:, 0]), prepend=np.nan) ** 2
    so_far = squares[720:740].mean() * 24
    assert found[739, 0] == pytest.approx(np.log(so_far), abs=1e-9)
    assert np.isfinite(found[first]).all()


def test_hourly_bitcoin():
    """Below log-HAR's 0.368 on the same 16,118 test origins, refitted monthly too."""
    bars = read_bars(shared("candles_1h_bybit_linear/BTCUSDT.parquet"), symbol="BTCUSDT", interval="1h")
    panel = panel_of(bars.between(until=int(bars.timestamps[-1])))
    since, until = to_milliseconds("2023-07-01"), to_milliseconds("2025-05-02") + 14 * HOUR
    test = np.flatnonzero((panel.timestamps >= since) & (panel.timestamps < until))
    ratio = panel.targets[test, 0] ** 2 / np.exp(forecast(panel)[test, 0])
    assert (ratio - np.log(ratio) - 1).mean() == pytest.approx(0.3396, abs=2e-3)


def test_a_network_begins_at_it(tmp_path):
    model = {"volatility_start": "log_har_mean"}
    made = run(
        experiment(tmp_path, candle_frame(2_500), model=model, targets=["volatility(3)"]), tmp_path / "run"
    )
    rows = {row["model"]: row["QLIKE"] for row in next(iter(metrics(made)["skill"].values()))}
    assert rows["longtape"] == pytest.approx(rows["mean of log-HARs"], rel=1e-4)  # not trained: its start
    with pytest.raises(UserError, match="give it the whole history"):
        made.forecast(candles_of(candle_frame(2_500)[2_000:]))


@pytest.mark.parametrize("chosen", [{"volatility_start": "log_har_mean"}, {"volatility_reach": 24}])
@pytest.mark.parametrize("changes", [{"targets": ["return(3)"]}, {"model": {"skip": False}}])
def test_a_start_without_effect_is_refused(chosen, changes, tmp_path):
    model = chosen | changes.get("model", {})
    with pytest.raises(UserError, match=f"{next(iter(chosen))} has no effect"):
        experiment(tmp_path, **{**changes, "model": model})


def test_a_start_with_a_reach_reads_no_lag_beyond_it():
    design = HarDesign.of(Interval.parse("1h"), "24/7")
    assert design.within(None) == design
    assert design.within(100).lags == (3, 6, 12, 24, 72)
    assert design.within(100).n_cells == design.n_cells
    with pytest.raises(UserError, match="volatility_reach: 2 is below the shortest lag, 3 bars"):
        design.within(2)


def test_a_reach_below_every_lag_leaves_nothing_behind(tmp_path):
    short = experiment(tmp_path, candle_frame(600), model={"volatility_reach": 2}, targets=["volatility(3)"])
    with pytest.raises(UserError, match="volatility_reach: 2 is below the shortest lag"):
        run(short, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_network_with_a_reach_does_not_see_beyond_it(tmp_path):
    """Its start reads the bars of the longest lag that is left, and none before them."""
    model = {"lookback": 8, "volatility_reach": 24}
    made = run(
        experiment(tmp_path, candle_frame(2_500), model=model, targets=["volatility(3)"]), tmp_path / "run"
    )
    start = made.fitted.model.baselines["volatility"]
    assert start.har.lags == (3, 6, 12, 24)
    assert start.reach == 25  # 24 returns, and the close before them
