"""Log-HAR: the published regression, right at every horizon, and sane in hours that training never saw."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from longtape.core.clock import DAY, HOUR, Interval, to_milliseconds
from longtape.core.instrument import Instrument
from longtape.features.build import FeaturesConfig, build
from longtape.features.splits import SplitConfig, chronological
from longtape.forecasting.baselines import baseline_forecast
from longtape.market.bars import Bars
from longtape.market.files import read_bars
from longtape.models.base import ModelInputs
from longtape.models.har import HarDesign, fit_log_har, trailing_mean
from tests.models.inputs import inputs_of
from tests.shared_data import shared


def bars_at(times, moves, interval="1h", calendar="24/7"):
    close = 100 * np.exp(np.cumsum(moves))
    frame = pl.DataFrame({"timestamp": times, "open": close, "high": close, "low": close, "close": close})
    frame = frame.with_columns(pl.col("timestamp").cast(pl.Datetime("ms", "UTC")), volume=pl.lit(1.0))
    return Bars.checked(Instrument("test", "spot", "X", calendar=calendar), Interval.parse(interval), frame)


def panel_of(bars, horizon):
    return build([bars], FeaturesConfig(features=["log_return"], targets=[f"volatility({horizon})"]))


def sessions(first, days):
    """Seven hourly bars from 9:30 New York on every weekday."""
    zone = "America/New_York"
    begin = pl.datetime(*map(int, first.split("-")), time_zone=zone)
    hours = pl.select(pl.datetime_range(begin, begin + pl.duration(days=days), "30m", time_zone=zone))
    local = hours.to_series()
    inside = (local.dt.minute() == 30) & local.dt.hour().is_between(9, 15) & (local.dt.weekday() < 6)
    return local.filter(inside).dt.timestamp("ms").to_numpy()


def test_trained_in_winter_it_forecasts_after_the_clock_change():
    """An hour that training lacks has the general level: not 30 to 190 times the truth."""
    times = sessions("2023-11-08", 180)
    moves = np.random.default_rng(0).normal(0, 0.004, len(times))
    panel = panel_of(bars_at(times, moves, calendar="XNYS"), 7)
    rows = np.arange(200, len(panel) - 8)
    winter, summer = (rows[panel.known_at[rows] < to_milliseconds("2024-03-01")], rows[-100:])
    assert panel.timestamps[summer[0]] > to_milliseconds("2024-03-11")
    found = baseline_on(panel, winter, summer)
    truth = 0.004 * np.sqrt(7)
    assert np.all((found > 0.5 * truth) & (found < 2 * truth))


def test_hours_that_training_lacks_have_the_general_level():
    """Trained on Mondays to Wednesdays of a market that never closes, asked on Saturdays."""
    times = to_milliseconds("2024-01-01") + HOUR * np.arange(24 * 7 * 12)
    panel = panel_of(bars_at(times, np.random.default_rng(1).normal(0, 0.01, len(times))), 1)
    weekday = (panel.known_at // DAY + 3) % 7
    rows = np.arange(800, len(panel) - 2)
    found = baseline_on(panel, rows[weekday[rows] < 3], rows[weekday[rows] == 5])
    assert np.all((found > 0.006) & (found < 0.016))


def baseline_on(panel, train, origins):
    """One fit on `train`, forecasts at `origins`."""
    design = HarDesign.of(panel.interval, panel.calendar)
    fitted = fit_log_har(design, panel, 0, np.array([0]), train)
    found = fitted.log_variance(design.lagged(panel, 0)[origins], design.cells(panel)[origins])
    return np.exp(0.5 * found[:, 0])


@pytest.mark.parametrize("horizon", [1, 2, 5, 24])
def test_the_expected_variance_is_right_at_every_horizon(horizon):
    """Independent normal returns: s²/2 gave 3.2 to 3.6 times the variance of one bar."""
    draw, ratios = np.random.default_rng(horizon), []
    for _ in range(4):
        times = to_milliseconds("2020-01-01") + HOUR * np.arange(6_000)
        panel = panel_of(bars_at(times, draw.normal(0, 0.01, 6_000)), horizon)
        found = baseline_on(panel, np.arange(800, 4_000), np.arange(4_100, 5_900))
        ratios.append((found**2).mean() / (0.01**2 * horizon))
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.08)


@pytest.mark.parametrize("horizon", [1, 6])
def test_bars_without_a_move_do_not_blow_it_up(horizon):
    """A third of the bars stand still, as where prices are carried forward."""
    draw = np.random.default_rng(4)
    times = to_milliseconds("2024-01-01") + HOUR * np.arange(4_000)
    moves = draw.normal(0, 0.01, 4_000) * (draw.random(4_000) > 1 / 3)
    panel = panel_of(bars_at(times, moves), horizon)
    found = baseline_on(panel, np.arange(3_000), np.arange(3_100, 3_900))
    assert np.median(found) / (0.01 * np.sqrt(horizon * 2 / 3)) == pytest.approx(1.0, abs=0.25)


def test_the_regression_is_least_squares_with_shrunk_cells():
    """Volatility twice as high at noon: a direct solution with the prior that the levels say."""
    times = to_milliseconds("2024-01-01") + HOUR * np.arange(3_000)
    loud = np.where(np.arange(3_000) % 24 == 12, 2.0, 1.0)
    panel = panel_of(bars_at(times, loud * np.random.default_rng(3).normal(0, 0.01, 3_000)), 3)
    design, rows = HarDesign.of(panel.interval, panel.calendar), np.arange(2_900)
    fitted = fit_log_har(design, panel, 0, np.array([0]), rows)
    rows = rows[rows >= 720]  # whose lags lie in the data
    cells = np.eye(168)[design.cells(panel)[rows]]
    floor = 1e-4 * (panel.targets[:2_900, 0] ** 2 / 3).mean()
    lagged = np.maximum(design.lagged(panel, 0)[rows], np.log(floor))
    x = np.concatenate([np.ones((len(rows), 1)), lagged, cells], axis=1)
    y = np.log(np.maximum(panel.targets[rows, 0] ** 2, 3 * floor))
    loose = np.linalg.solve(x.T @ x + np.diag([0.0] * 8 + [1e-3] * 168), x.T @ y)
    noise = ((y - x @ loose) ** 2).sum() / (len(y) - 176)
    beyond = ((cells @ loose[8:]) ** 2).mean() - noise * 167 / len(y)
    assert beyond > 0
    weights = np.linalg.solve(x.T @ x + np.diag([0.0] * 8 + [noise / beyond] * 168), x.T @ y)
    assert fitted.lag_weights.all()
    made = np.concatenate([fitted.intercept, fitted.lag_weights[:, 0], fitted.cell_weights[:, 0]])
    assert np.allclose(made, weights, atol=1e-6)
    residual = y - x @ weights
    assert fitted.smearing[0] == pytest.approx(np.log(np.exp(residual).mean()), abs=1e-9)
    assert fitted.normal[0] == pytest.approx((residual**2).mean() / 2, rel=1e-9)


@pytest.mark.parametrize(
    ("interval", "calendar", "lags"),
    [
        ("1h", "24/7", (3, 6, 12, 24, 72, 168, 720)),
        ("1m", "24/7", (5, 15, 60, 180, 360, 720, 1440, 4320, 10080, 43200)),
        ("5m", "24/7", (3, 12, 36, 72, 144, 288, 864, 2016, 8640)),
        ("1h", "XNYS", (1, 2, 4, 7, 21, 35, 147)),
        ("1d", "XNYS", (1, 2, 5, 10, 22, 66, 252)),
        ("1w", "24/7", (1, 2, 4, 13, 26, 52)),
    ],
)
def test_lags_are_those_of_the_markets_own_days(interval, calendar, lags):
    assert HarDesign.of(Interval.parse(interval), calendar).lags == lags


def test_means_over_what_there_is_where_the_data_begin():
    values = np.arange(1.0, 8.0)
    assert np.allclose(trailing_mean(values, 3), [1, 1.5, 2, 3, 4, 5, 6])
    assert np.allclose(trailing_mean(values, 20), [1, 1.5, 2, 2.5, 3, 3.5, 4])
    assert np.array_equal(trailing_mean(values, 1), values)


def test_the_training_mean_of_a_volatility_is_the_root_mean_square():
    times = to_milliseconds("2024-01-01") + HOUR * np.arange(900)
    panel = panel_of(bars_at(times, np.random.default_rng(3).standard_t(3, 900) * 0.01), 6)
    split = chronological(panel, 1, SplitConfig())
    found = baseline_forecast("mean", inputs_of(panel, split.train), panel, split)
    expected = np.sqrt((panel.targets[split.train, 0] ** 2).mean())
    assert np.allclose(found.mean, expected, rtol=1e-5)


def refuse_the_future(name, panel, cut):
    """What the baseline says up to `cut`, on these data and where everything after `cut` is another."""
    split = chronological(panel, 1, SplitConfig())
    split = replace(split, test=np.arange(split.test[0], cut + 1))
    inputs: ModelInputs = inputs_of(panel, split.train)
    kind = panel.target_columns[0].kind
    closes, targets = panel.closes.copy(), panel.targets.copy()
    closes[cut + 1 :] *= 3
    targets[panel.target_ends > panel.known_at[cut]] = 7.0
    changed = replace(panel, closes=closes, targets=targets)
    return [baseline_forecast(name, inputs.only(kind), each, split).mean for each in (panel, changed)]


@pytest.mark.parametrize("name", ["mean", "last_value", "log_har"])
def test_baselines_see_nothing_after_the_origin(name):
    times = to_milliseconds("2024-01-01") + HOUR * np.arange(2_000)
    panel = panel_of(bars_at(times, np.random.default_rng(3).normal(0, 0.01, 2_000)), 6)
    before, after = refuse_the_future(name, panel, 1_900)
    assert np.array_equal(before, after)


def test_prices_carried_over_missing_bars_did_not_stand_still():
    times = to_milliseconds("2024-01-01") + HOUR * np.arange(500)
    moves = np.random.default_rng(3).normal(0, 0.01, 500)
    moves[300:330] = 0.0
    panel = panel_of(bars_at(times, moves), 6)
    present = np.ones((500, 1), bool)
    present[300:330] = False
    design = HarDesign.of(panel.interval, panel.calendar)
    carried = design.lagged(replace(panel, present=present), 0)
    squares = np.append(0.0, moves[1:] ** 2)
    assert carried[331, 1] == pytest.approx(np.log(squares[330:332].mean()))  # of six bars, two are there
    assert carried[329, 0] == carried[329, 3] == pytest.approx(np.log(squares[258:300].mean()), abs=0.2)
    assert np.array_equal(carried[:300], design.lagged(panel, 0)[:300])


def test_the_baseline_follows_a_market_whose_volatility_doubles():
    """Before the test period it doubles and halves now and then; there it doubles once, and stays."""
    draw, rows = np.random.default_rng(0), np.arange(6_000)
    times = to_milliseconds("2024-01-01") + HOUR * rows
    switches = np.cumsum(draw.random(6_000) < 1 / 200)
    calm = np.where(rows < 4_800, switches % 2 == 0, rows <= 5_400)
    panel = panel_of(bars_at(times, draw.normal(0, 1, 6_000) * np.where(calm, 0.01, 0.02)), 24)
    split = chronological(panel, 1, SplitConfig())
    found = baseline_forecast("log_har", inputs_of(panel, split.train), panel, split).mean[:, 0]
    for period, truth in ((split.test < 5_400, 0.01), (split.test > 5_500, 0.02)):
        assert period.sum() > 200
        assert found[period].mean() / (truth * np.sqrt(24)) == pytest.approx(1.0, abs=0.15)


def test_hourly_bitcoin_agrees_with_the_trials():
    """QLIKE of the monthly refitted log-HAR: .3638 with e^(s²/2), .367 with smearing, levels unshrunk."""
    bars = read_bars(shared("candles_1h_bybit_linear/BTCUSDT.parquet"), symbol="BTCUSDT", interval="1h")
    panel = panel_of(bars.between(until=int(bars.timestamps[-1])), 24)
    dates = SplitConfig(train_until="2023-01-01", validation_until="2023-07-01")
    split = chronological(panel, 1, dates)
    assert len(split.test) == 16_119
    split = replace(split, train=split.train[split.train > 720])  # as there: whole lags only
    found = baseline_forecast("log_har", inputs_of(panel, split.train), panel, split).mean[:, 0]
    ratio = np.maximum(panel.targets[split.test, 0] ** 2, 1e-12) / found**2
    assert (ratio - np.log(ratio) - 1).mean() == pytest.approx(0.367, abs=0.0015)
    assert torch.isfinite(torch.from_numpy(found)).all()
