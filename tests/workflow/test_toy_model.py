"""A new model is one file and one line: it trains, forecasts with intervals, is audited, traded and reported."""

import numpy as np
import polars as pl
import pytest

from longtape.core.errors import UserError
from longtape.core.files import read_json
from longtape.experiment import load_experiment
from longtape.models.registry import MODELS
from longtape.workflow import load_run, run
from tests.candles import candle_frame

EXPERIMENT = """
name: toy
data: {source: file, path: candles.parquet, symbols: [TEST], interval: 1h}
features: [log_return]
targets: [return(1)]
model: {kind: mean_of_last, k: 4}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    if "mean_of_last" not in MODELS:
        MODELS.add("mean_of_last", "tests.workflow.mean_of_last:MeanOfLast")
    folder = tmp_path_factory.mktemp("toy")
    candle_frame(1500).write_parquet(folder / "candles.parquet")
    (folder / "toy.yaml").write_text(EXPERIMENT)
    return run(folder / "toy.yaml", folder / "out")


def test_it_forecasts_what_it_says_with_intervals(made):
    frame = pl.read_parquet(made.path("forecast.parquet"))
    closes = made.data.bars[0].column("close")
    rows = np.searchsorted(made.data.panel.timestamps, frame["timestamp"].dt.timestamp("ms").to_numpy())
    expected = np.log(closes[rows] / closes[rows - 4]) / 4
    assert np.allclose(frame["mean"], expected, rtol=1e-4, atol=1e-8)
    known = frame.drop_nulls("actual")
    inside = ((known["lower"] <= known["actual"]) & (known["actual"] <= known["upper"])).mean()
    assert read_json(made.path("metrics.json"))["coverage"][0]["coverage"] == pytest.approx(inside)
    assert inside > 0.5
    assert (frame["lower"] < frame["mean"]).all()


def test_it_is_audited_traded_and_reported(made):
    assert read_json(made.path("audit.json"))["passed"]
    metrics = read_json(made.path("metrics.json"))
    assert metrics["metrics"]["n_fills"] > 0
    assert [row["model"] for row in metrics["skill"]["TEST return(1)"]][:2] == ["longtape", "zero"]
    assert "mean_of_last" in made.path("report.html").read_text("utf-8")


def test_it_is_loaded_again_with_its_options(made):
    again = load_run(made.root)
    assert again.experiment.model.k == 4
    assert again.forecast().equals(made.forecast())


def test_its_options_are_checked_like_any_other(made):
    with pytest.raises(UserError, match=r"model: unknown key 'kk'; did you mean 'k'"):
        load_experiment(made.path("experiment.yaml"), ["model.kk=3"])
    with pytest.raises(UserError, match="unknown model 'mean_of_lst'; did you mean 'mean_of_last'"):
        load_experiment(made.path("experiment.yaml"), ["model.kind=mean_of_lst"])
