"""Forecasts do not depend on what else is asked for; intervals hold as often as they say on exchangeable data."""

import numpy as np
import pytest
import torch

from longtape.features.build import FeaturesConfig, build
from longtape.features.panel import TargetColumn
from longtape.forecasting.frame import to_frame
from longtape.forecasting.intervals import Calibration, calibrate, intervals
from longtape.forecasting.predict import predict
from longtape.models.config import ModelConfig
from longtape.models.forecaster import Forecaster, ModelInputs
from tests.candles import candles

RETURN = TargetColumn("return(6)", "return", "TEST", 6)
VOLATILITY = TargetColumn("volatility(6)", "volatility", "TEST", 6)


@pytest.fixture(scope="module")
def panel():
    config = FeaturesConfig(features=["log_return", "volatility(20)"], targets=["return(6)", "volatility(6)"])
    return build([candles(500)], config)


@pytest.fixture(scope="module")
def model(panel):
    torch.manual_seed(0)
    ones = np.ones(2)
    inputs = ModelInputs(panel.columns, panel.target_columns, panel.interval, 0 * ones, 0.01 * ones, ones)
    config = ModelConfig(
        lookback=64, attention="bigbird", attention_options={"block_size": 8}, d_model=16, n_heads=2
    )
    made = Forecaster(config, inputs)
    for group in made.groups:
        torch.nn.init.normal_(group.head.linear.weight)
    return made.eval()


def test_a_forecast_has_the_same_bits_in_any_company(model, panel):
    every = predict(model, panel, np.arange(100, 500), 16)
    for chosen in ([499], [100, 101, 350], list(range(217, 290))):
        alone = predict(model, panel, np.array(chosen), 16)
        assert np.array_equal(alone, every[np.array(chosen) - 100])


def test_a_forecast_past_the_end_has_future_times_and_no_outcome(model, panel):
    newest = np.array([len(panel) - 1])
    kept = Calibration(0.9, (-1.0, -1.0), (1.0, 1.0), (1, None), (0.0, 0.0))
    frame = to_frame(panel, newest, predict(model, panel, newest, 16), kept)
    assert frame["actual"].null_count() == 2
    hour = 3_600_000
    assert (frame["end"].dt.timestamp("ms") == panel.known_at[-1] + 6 * hour).all()
    assert (frame["end"] > frame["known_at"]).all()


def test_history_carries_what_happened(model, panel):
    origins = np.arange(200, 210)
    kept = Calibration(0.9, (-1.0, -1.0), (1.0, 1.0), (1, None), (0.0, 0.0))
    frame = to_frame(panel, origins, predict(model, panel, origins, 16), kept)
    closes = panel.closes[:, 0]
    assert np.allclose(frame["actual"][:10], np.log(closes[origins + 6] / closes[origins]))


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_conformal_intervals_cover_exchangeable_data(level):
    rng = np.random.default_rng(0)
    sigma = rng.uniform(0.5, 3, 20_000)
    actual = np.stack([sigma * rng.standard_t(4, 20_000), sigma * rng.lognormal(0, 0.5, 20_000)], 1)
    predicted = np.stack([np.zeros(20_000), sigma], 1)
    kept = calibrate((RETURN, VOLATILITY), predicted[:5000], actual[:5000], level)
    assert kept.scaled_by == (1, None)
    lower, upper = intervals((RETURN, VOLATILITY), predicted[5000:], kept)
    inside = ((lower <= actual[5000:]) & (actual[5000:] <= upper)).mean(axis=0)
    assert np.allclose(inside, level, atol=0.02)
    assert (lower[:, 1] > 0).all()


def test_calibration_survives_json():
    kept = Calibration(0.9, (-1.5, -0.1), (1.5, 0.2), (1, None), (0.1, 0.0))
    assert Calibration.from_dict(kept.to_dict()) == kept


def test_few_errors_give_the_widest_interval():
    kept = calibrate((RETURN,), np.zeros((5, 1)), np.arange(5.0)[:, None], 0.9)
    assert kept.upper == (4.0,)


def test_the_threshold_lets_the_asked_share_of_validation_forecasts_trade():
    predicted = np.random.default_rng(1).normal(size=(1000, 1))
    kept = calibrate((RETURN,), predicted, predicted, 0.9, traded=0.3)
    assert (np.abs(predicted) > kept.threshold[0]).mean() == pytest.approx(0.3, abs=0.002)
