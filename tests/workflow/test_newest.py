"""The newest forecast reads the rows it needs and no others, to the same bits; what `longtape forecast` shows of it."""

import json

import numpy as np
import polars as pl
import pytest

from longtape.cli.main import execute
from longtape.core.errors import UserError
from longtape.experiment import parse_experiment
from longtape.features.catalogue import features
from longtape.workflow import load_run, train
from longtape.workflow.pipeline import ExperimentPipeline
from tests.candles import candle_frame, candles
from tests.features.tables import as_bars, columns

ROWS = 12_000
CALLS = {"lag": "lag(close, 3)", "difference": "difference(close, 3)", "log": "log(close)", "mean": "mean(close)",
         "std": "std(close)", "highest": "highest(close)", "lowest": "lowest(close)", "ratio": "ratio(volume)",
         "zscore": "zscore(close)", "ema": "ema(close)", "distance": "distance(vwap_session)",
         "correlation": "correlation(close, volume)", "beta": "beta(log_return, volume)", "rank": "rank(close)",
         "others": "others(close)",
         "average": "average(log_return)", "dispersion": "dispersion(log_return)", "relative": "relative(log_return)",
         "level_size": 'level_size("bid")', "level_distance": 'level_distance("ask")'}  # fmt: skip
MORE = [
    "volatility(720)",
    'resample("4h").rsi',
    'resample("1d").volatility(5)',
    'vwap_cumulative("week")',
    "ema(rsi, 9)",
]
MODEL = {
    "lookback": 64,
    "attention": "bigbird",
    "attention_options": {"block_size": 8},
    "d_model": 8,
    "n_heads": 1,
}


def document(**changes):
    data = {"source": "file", "path": "none.parquet", "symbols": ["TEST"], "interval": "1h"}
    return {"data": data, "features": ["log_return"], "targets": ["return(1)"], "model": MODEL, **changes}


@pytest.fixture(scope="module")
def long_history():
    values = columns(ROWS)
    return [as_bars(values, "TEST"), as_bars(columns(ROWS, seed=1), "B")]


@pytest.mark.parametrize("text", [*sorted(CALLS.get(name, name) for name in features()), *MORE])
def test_the_last_rows_of_every_feature_have_the_bits_of_the_whole(text, long_history):
    symbols = {"source": "file", "path": "{symbol}.parquet", "symbols": ["TEST", "B"], "interval": "1h"}
    pipeline = ExperimentPipeline(parse_experiment(document(data=symbols, features=[text]), "test"))
    newest = pipeline.newest_panel(long_history, 64)
    assert len(newest) < ROWS / 2
    whole = pipeline.panel(long_history)
    assert (
        newest.values[newest.warm_up :].tobytes()
        == whole.values[len(whole) - len(newest) + newest.warm_up :].tobytes()
    )
    assert newest.known_at[-1] == whole.known_at[-1]
    assert (newest.target_ends[-1] == whole.target_ends[-1]).all()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("newest")
    candle_frame(3_000).write_parquet(folder / "candles.parquet")
    data = {"source": "file", "path": str(folder / "candles.parquet"), "symbols": ["TEST"], "interval": "1h"}
    features = ["log_return", "volatility(20)", "rsi(14)", "zscore(close, 50)", "volume_ratio(20)", "hour"]
    targets = ["path(6)", "volatility(6)", "direction(6, 0.001)"]
    described = document(
        data=data, features=features, targets=targets, training={"epochs": 1, "stride": 4}, audit=False,
        forecast={"levels": [0.5]}, backtest={"signal": {"target": "path(6)", "horizon": 6}},
    )  # fmt: skip
    return train(parse_experiment(described, "test"), folder / "run")


def test_the_newest_forecast_reads_few_rows_and_has_the_bits_of_history(made, monkeypatch):
    seen = []
    panel = ExperimentPipeline.panel
    monkeypatch.setattr(
        ExperimentPipeline, "panel", lambda self, bars: seen.append(len(bars[0])) or panel(self, bars)
    )
    newest = load_run(made.root).forecast()
    assert max(seen) < 1_500
    history = made.forecast(history=True)
    assert newest.equals(history.filter(history["timestamp"] == newest["timestamp"][0]))


def test_everything_is_marked_with_its_period(made):
    frame = made.forecast(everything=True)
    assert set(frame["period"]) == {"training", "validation", "calibration", "test"}
    tested = frame.filter(pl.col("period") == "test")
    assert tested.equals(made.forecast(history=True).filter(pl.col("period") == "test"))


def test_prices_are_what_the_returns_mean(made):
    frame = made.forecast()
    path = frame.filter(pl.col("kind") == "path")
    assert np.allclose(path["price"], path["close"] * path["mean"].exp())
    assert (path["price_lower"] < path["price"]).all()
    assert path["close"].n_unique() == 1
    assert frame.filter(pl.col("kind") != "path")["price"].null_count() == 2
    assert (path["q0.25"] > path["lower"]).all()


def test_the_command_prints_draws_and_writes(made, tmp_path, capsys):
    png, svg, out = (tmp_path / name for name in ("f.png", "f.svg", "f.csv"))
    assert execute(["forecast", str(made.root), "--picture", str(png), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert len(said["forecasts"]) == 8
    assert said["forecasts"][0]["end"].endswith("Z")
    assert execute(["forecast", str(made.root), "--history", "--picture", str(svg), "--out", str(out)]) == 0
    assert png.stat().st_size > 10_000
    assert svg.read_text().lstrip().startswith("<?xml")
    assert pl.read_csv(out).height > 8
    assert execute(["forecast", str(made.root)]) == 0
    table = capsys.readouterr().out
    for word in ("path(6)", "price_lower", "q0.25", "p2"):
        assert word in table


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (lambda frame: frame.filter(pl.int_range(pl.len()) != frame.height - 20), "1h bars missing"),
        (lambda frame: frame.tail(400), "lookback 64"),
        (lambda frame: frame.with_columns(volume=pl.lit(None, dtype=pl.Float64)), "volume"),
    ],
)
def test_what_the_newest_window_lacks_is_said_in_one_line(made, rows, why):
    bars = candles(3_000)
    with pytest.raises(UserError, match=why):
        made.forecast(bars.with_frame(rows(bars.frame)))


def test_a_gap_before_the_rows_that_are_needed_does_no_harm(made):
    bars = candles(3_000)
    holed = bars.with_frame(bars.frame.filter(pl.int_range(pl.len()) != 200))
    assert made.forecast(holed).equals(made.forecast(bars))


def test_a_picture_has_a_known_ending(made, tmp_path, capsys):
    assert execute(["forecast", str(made.root), "--picture", str(tmp_path / "f.gif")]) == 2
    assert ".png or .svg" in capsys.readouterr().err
