"""A run's intervals by every method, from the experiment to the newest forecast."""

import polars as pl
import pytest

from longtape.core.files import read_json
from longtape.experiment import parse_experiment
from longtape.workflow import load_run, run
from tests.candles import candle_frame

MODEL = {"lookback": 16, "attention": "full", "d_model": 8, "n_heads": 1, "n_layers": 1, "dropout": 0.2}


def made(folder, forecast, rows=700, frame=None, **changes):
    (candle_frame(rows) if frame is None else frame).write_parquet(folder / "candles.parquet")
    data = {"source": "file", "path": str(folder / "candles.parquet"), "symbols": ["TEST"], "interval": "1h"}
    document = {
        "data": data, "features": ["log_return"], "targets": ["return(6)", "volatility(6)"], "model": MODEL,
        "training": {"epochs": 1}, "forecast": forecast, **({"audit": False} | changes),
    }  # fmt: skip
    return run(parse_experiment(document, "test.yaml"), folder / "out")


def test_adaptive_intervals_of_the_newest_forecast_know_the_misses_of_history(tmp_path):
    one = made(tmp_path, {"intervals": "adaptive", "levels": [0.5], "rate": 0.05}, audit=True)
    history, newest = one.forecasts, load_run(one.root).forecast()
    assert newest.equals(history.filter(history["timestamp"] == newest["timestamp"][0]))
    assert read_json(one.path("audit.json"))["passed"]  # no interval knows a label before its time
    width = (history["price_upper"] / history["price"]).drop_nulls().log()
    assert width.n_unique() > 50  # the volatility forecast moves it, and so does the level
    levels = {
        (row["target"], row["level"]): row["coverage"]
        for row in read_json(one.path("metrics.json"))["coverage"]
    }
    assert set(levels) == {(t, p) for t in ("return(6)", "volatility(6)") for p in (0.9, 0.5)}
    assert all(abs(share - level) < 0.15 for (_, level), share in levels.items())
    assert (history["q0.25"] <= history["q0.75"]).all()


def test_an_open_that_is_not_there_yet_moves_no_interval(tmp_path):
    """A return between opens ends at the very moment at which a forecast is made, and is not known then."""
    one = made(
        tmp_path,
        {"intervals": "adaptive", "level": 0.5, "rate": 0.05},
        rows=500,
        targets=["open_return(3)", "volatility(3)"],
        model={**MODEL, "dropout": 0.0},
        training={"epochs": 0},
        audit=True,
    )
    panel = one.data.panel
    assert ((panel.targets_known - panel.target_ends)[:, 0] == 1).all()
    assert ((panel.targets_known - panel.target_ends)[:, 1] == 0).all()
    assert read_json(one.path("audit.json"))["passed"]


def test_a_volatility_of_zero_is_an_error_like_others(tmp_path):
    frame = candle_frame(400)
    still = frame.with_columns(
        pl.col("open", "high", "low", "close").gather([i // 4 * 4 for i in range(400)])
    )
    for method in ("mc_dropout", "adaptive"):
        folder = tmp_path / method
        folder.mkdir()
        one = made(folder, {"intervals": method, "samples": 5 if method == "mc_dropout" else None}, frame=still,
                   targets=["volatility(2)"])  # fmt: skip
        assert not one.forecasts["lower"].is_nan().any()
        assert load_run(one.root).forecast().equals(one.forecasts.tail(1))


def test_dropout_intervals_repeat(tmp_path):
    one = made(tmp_path, {"intervals": "mc_dropout", "samples": 10}, rows=400)
    history, newest = one.forecasts, load_run(one.root).forecast()
    assert newest.equals(history.filter(history["timestamp"] == newest["timestamp"][0]))
    assert history["lower"].is_finite().all()
    assert (history["lower"] < history["upper"]).all()


@pytest.mark.parametrize("method", ["conformal", "adaptive", "mc_dropout"])
def test_too_few_calibration_rows_are_said(tmp_path, method):
    one = made(tmp_path, {"intervals": method, "level": 0.99}, rows=500)
    infinite = one.forecasts["upper"].is_infinite()
    assert infinite[0]
    assert infinite.all() == (method != "adaptive")  # which learns from the test period
    said = [line for line in one.results.verdict if "infinite" in line]
    assert len(said) == 2
    assert "calibration rows are too few for 99%" in said[0]
