"""Forecasts do not depend on what else is asked for; intervals hold as often as they say on exchangeable data."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from longtape.core.errors import UserError
from longtape.core.instrument import Instrument
from longtape.features.build import FeaturesConfig, build
from longtape.features.panel import TargetColumn
from longtape.features.splits import Periods
from longtape.forecasting.config import ForecastConfig, bounds_of
from longtape.forecasting.frame import to_frame
from longtape.forecasting.intervals import Calibration, TargetCalibration, calibrate, intervals
from longtape.forecasting.predict import Predicted, predict
from longtape.market.trades import Trades
from longtape.models.encoder import EncoderConfig, EncoderForecaster
from tests.candles import candles
from tests.models.inputs import inputs_of

RETURN = TargetColumn("return(6)", "return", "TEST", 6)
VOLATILITY = TargetColumn("volatility(6)", "volatility", "TEST", 6)
ONE = ((-1.0, 1.0),)
KEPT = Calibration((0.9,), (TargetCalibration("conformal", ONE, 1), TargetCalibration("conformal", ONE)))


def panel_of(bars):
    config = FeaturesConfig(features=["log_return", "volatility(20)"], targets=["return(6)", "volatility(6)"])
    return build([bars], config)


@pytest.fixture(scope="module")
def panel():
    return panel_of(candles(500))


@pytest.fixture(scope="module")
def model(panel):
    return model_on(panel)


def model_on(panel, **options):
    torch.manual_seed(0)
    block = {"attention": "bigbird", "attention_options": {"block_size": 8}}
    config = EncoderConfig(**{"lookback": 64, "d_model": 16, "n_heads": 2, **block, **options})
    made = EncoderForecaster(config, inputs_of(panel, np.arange(100, 400)))
    made.fit(panel, np.arange(100, 350), np.arange(360, 400))
    for head in made.heads.values():
        torch.nn.init.normal_(head.linear.weight)
    return made.eval()


def frame_of(panel, origins, predicted, kept=KEPT, periods=None):
    bounds = intervals(panel.target_columns, predicted, kept)
    return to_frame(panel, origins, predicted, bounds, kept, periods)


def points(mean):
    return Predicted(mean, {}, None)


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_a_forecast_has_the_same_bits_in_any_company(model, panel, batch_size):
    every = predict(model, panel, np.arange(100, 500), batch_size).mean
    for chosen in ([499], [100, 101, 350], list(range(217, 290))):
        alone = predict(model, panel, np.array(chosen), batch_size).mean
        assert np.array_equal(alone, every[np.array(chosen) - 100])


def test_bars_in_front_of_the_data_change_no_bit(model):
    """A window's place in its batch follows from the calendar, not from its row number."""
    bars = candles(500)
    later = bars.with_frame(bars.frame[3:])
    whole, cut = (panel_of(one) for one in (bars, later))
    same = replace(cut, values=whole.values[3:], closes=whole.closes[3:])  # rounding of rolling sums aside
    rows = np.arange(440, 500)
    cut_model = model_on(whole)
    a, b = (predict(cut_model, p, r).mean for p, r in ((whole, rows), (same, rows - 3)))
    assert np.array_equal(a[:, 0], b[:, 0])


def test_the_newest_window_alone_costs_four(model, panel, monkeypatch):
    seen = []
    forward = EncoderForecaster.forward
    monkeypatch.setattr(
        EncoderForecaster, "forward", lambda self, batch: seen.append(len(batch)) or forward(self, batch)
    )
    predict(model, panel, np.array([499]))
    assert seen == [4]


def test_events_of_one_moment_are_all_forecast(model):
    times = pl.Series(np.repeat(np.arange(300) * 40, 2)).cast(pl.Datetime("ms", "UTC"))
    draw = np.random.default_rng(0)
    price = 100 * np.exp(np.cumsum(draw.normal(0, 1e-4, 600)))
    frame = pl.DataFrame({"timestamp": times, "price": price, "size": draw.lognormal(0, 1, 600)})
    trades = Trades.checked(Instrument("test", "spot", "TEST"), frame)
    config = FeaturesConfig(features=["log_return", "size"], targets=["return(5)"])
    events = build([trades], config)
    made = model_on(events)
    every = predict(made, events, np.arange(100, 600)).mean
    assert np.isfinite(every).all()
    assert np.array_equal(predict(made, events, np.array([333, 420])).mean, every[[233, 320]])


def test_a_forecast_past_the_end_has_future_times_and_no_outcome(model, panel):
    newest = np.array([len(panel) - 1])
    frame = frame_of(panel, newest, predict(model, panel, newest))
    assert frame["actual"].null_count() == 2
    hour = 3_600_000
    assert (frame["end"].dt.timestamp("ms") == panel.known_at[-1] + 6 * hour).all()
    assert (frame["end"] > frame["known_at"]).all()


def test_history_carries_what_happened_and_in_which_period(model, panel):
    origins = np.arange(200, 210)
    borders = Periods(*(int(panel.timestamps[row]) for row in (202, 204, 206, 208)))
    frame = frame_of(panel, origins, predict(model, panel, origins), KEPT, borders)
    closes = panel.closes[:, 0]
    assert np.allclose(frame["actual"][:10], np.log(closes[origins + 6] / closes[origins]))
    named = ["training", "validation", "calibration", "test", "after the test"]
    assert frame["period"][:10].to_list() == [name for name in named for _ in range(2)]


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_conformal_intervals_cover_exchangeable_data(level):
    rng = np.random.default_rng(0)
    sigma = rng.uniform(0.5, 3, 20_000)
    actual = np.stack([sigma * rng.standard_t(4, 20_000), sigma * rng.lognormal(0, 0.5, 20_000)], 1)
    predicted = np.stack([np.zeros(20_000), sigma], 1)
    targets, methods = (RETURN, VOLATILITY), ("conformal", "conformal")
    kept = calibrate(targets, methods, points(predicted[:5000]), actual[:5000], [level])
    assert [one.scaled_by for one in kept.targets] == [1, None]
    lower, upper = intervals(targets, points(predicted[5000:]), kept)[level]
    inside = ((lower <= actual[5000:]) & (actual[5000:] <= upper)).mean(axis=0)
    assert np.allclose(inside, level, atol=0.02)
    assert (lower[:, 1] > 0).all()


def test_conformalised_quantiles_cover_where_the_heads_own_are_wrong():
    rng = np.random.default_rng(1)
    sigma = rng.uniform(0.5, 3, 20_000)
    actual = (sigma * rng.standard_normal(20_000))[:, None]
    too_narrow = {0.05: -sigma[:, None], 0.95: sigma[:, None]}
    given = Predicted(np.zeros((20_000, 1)), too_narrow, None)

    def part(rows):
        return Predicted(given.mean[rows], {p: q[rows] for p, q in too_narrow.items()}, None)

    shares = {}
    for method in ("quantile", "cqr"):
        kept = calibrate((RETURN,), (method,), part(slice(0, 5000)), actual[:5000], [0.9])
        lower, upper = intervals((RETURN,), part(slice(5000, None)), kept)[0.9]
        shares[method] = ((lower <= actual[5000:]) & (actual[5000:] <= upper)).mean()
    assert shares["quantile"] == pytest.approx(0.683, abs=0.01)  # one deviation to either side
    assert shares["cqr"] == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("head", ["quantile", "student_t"])
def test_a_heads_own_interval_is_the_one_that_is_shown(panel, head):
    made = model_on(panel, heads={"return": head})
    rows = np.arange(420, 440)
    config = ForecastConfig()
    predicted = predict(made, panel, rows, levels=bounds_of(config.level))
    methods = (config.method(head), config.method("volatility"))
    assert methods == (head, "conformal")
    kept = calibrate(panel.target_columns, methods, predicted, panel.targets[rows], [0.9])
    frame = frame_of(panel, rows, predicted, kept).filter(pl.col("kind") == "return")
    assert np.array_equal(frame["lower"].to_numpy(), predicted.quantiles[0.05][:, 0])
    assert np.array_equal(frame["upper"].to_numpy(), predicted.quantiles[0.95][:, 0])


def test_an_interval_that_the_head_cannot_give_is_refused():
    with pytest.raises(UserError, match="needs the head 'quantile'"):
        ForecastConfig(intervals="quantile").method("regression")
    with pytest.raises(UserError, match="head with quantiles"):
        ForecastConfig(intervals="cqr").method("huber")


def test_calibration_survives_json():
    infinite = TargetCalibration("adaptive", ((-np.inf, np.inf),), None, 3, 0.1, (0.5, -np.inf, 1e-9))
    kept = Calibration((0.9,), (*KEPT.targets, infinite, TargetCalibration(None)))
    assert Calibration.from_dict(json.loads(json.dumps(kept.to_dict(), allow_nan=False))) == kept


@pytest.mark.parametrize("rows", [0, 5, 8, 9])
def test_too_few_errors_give_an_infinite_interval(rows):
    """The 90 % bound is the ⌈0.9 (n + 1)⌉-th error: nine are the least."""
    actual = np.arange(float(rows))[:, None]
    kept = calibrate((RETURN,), ("conformal",), points(np.zeros((rows, 1))), actual, [0.9])
    assert kept.targets[0].bounds[0][1] == (8.0 if rows == 9 else np.inf)
    assert len(kept.shortages([RETURN])) == (rows != 9)
    assert kept.targets[0].rows == rows


def test_the_threshold_lets_the_asked_share_of_calibration_forecasts_trade():
    predicted = np.random.default_rng(1).normal(size=(1000, 1))
    kept = calibrate((RETURN,), ("conformal",), points(predicted), predicted, [0.9], traded=0.3)
    assert (np.abs(predicted) > kept.targets[0].threshold).mean() == pytest.approx(0.3, abs=0.002)
