"""Every model that trains, with its options, from the experiment file to the report: audited, loaded, resumed."""

import os
import signal

import numpy as np
import polars as pl
import pytest

from longtape.core.files import read_json
from longtape.experiment import load_experiment
from longtape.training.loop import Trainer
from longtape.workflow import load_run, run, train
from tests.candles import candle_frame

EXPERIMENT = """
name: models
data: {source: file, path: "{symbol}.parquet", symbols: [AAA, BBB], interval: 1h}
features: [log_return, volatility(10), hour]
targets: [return(1), volatility(4)]
model: {lookback: 24, attention: flash, d_model: 8, n_heads: 2, n_layers: 1, dropout: 0.2}
training: {epochs: 2, batch_size: 32, stride: 4, patience: 9}
backtest: {signal: {target: return(1)}, costs: {fee: 0.0005}}
"""
CASES = {
    "encoder with inputs": {
        "positions": "rotary", "calendar": True, "window_norm": True, "reversible": True, "pooling": "class",
        "static": ["volatility(10)"], "auxiliary": {"volatility(8)": 0.3, "up(2)": 0.1}, "patch": 3,
    },
    "encoder, dense": {
        "dense": 0.3, "attention": "bigbird", "attention_options": {"causal": True, "block_size": 4},
        "heads": {"volatility": {"name": "volatility", "clip": 1.5}},
    },
    "informer": {
        "kind": "informer", "attention": "probsparse", "attention_options": {"factor": 1}, "lookback": 25,
        "n_layers": 3, "replicas": 2, "auxiliary": {"path(3)": 0.2},
    },
    "channels": {"kind": "channels", "attention": "performer"},
    "portfolio, joint": {
        "kind": "portfolio", "attention": "bigbird", "attention_options": {"block_size": 2}, "calendar": True,
        "heads": {"return": {"name": "sharpe", "block": 8, "turnover_cost": 0.0005}}, "gradient_checkpointing": True,
    },
    "portfolio, axial": {
        "kind": "portfolio", "layout": "axial", "attention": "linformer", "pooling": "mean", "patch": 5,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed, symbol in enumerate(("AAA", "BBB")):
        candle_frame(600, seed).write_parquet(folder / f"{symbol}.parquet")
    holes = np.r_[120:150, 300:304, 520:560]
    candle_frame(600, 2).filter(~pl.int_range(600).is_in(holes)).write_parquet(folder / "CCC.parquet")
    (folder / "models.yaml").write_text(EXPERIMENT)
    return folder


def experiment_of(folder, name):
    given = [f"model.{key}={value}" for key, value in CASES[name].items()]
    if "heads" in CASES[name] and "return" in CASES[name]["heads"]:
        given.append("backtest.signal.name=allocation")
    if name == "portfolio, axial":  # one of whose assets is not always there
        given += ["data.symbols=[AAA, CCC]", "missing=mask"]
    return load_experiment(folder / "models.yaml", given)


@pytest.fixture(scope="module", params=CASES)
def made(request, folder, tmp_path_factory):
    return request.param, run(experiment_of(folder, request.param), tmp_path_factory.mktemp("run") / "out")


def test_it_walks_the_whole_way(made):
    _, walked = made
    audit = read_json(walked.path("audit.json"))
    assert audit["passed"], [check for check in audit["checks"] if not check["passed"]]
    frame = pl.read_parquet(walked.path("forecast.parquet"))
    assert set(frame["target"]) == set(walked.experiment.targets)  # and no auxiliary ones
    assert frame["mean"].is_finite().all()
    skill = read_json(walked.path("metrics.json"))["skill"]
    assert len(skill) == 2 * len(walked.experiment.targets)
    assert "Evidence" in walked.path("report.html").read_text("utf-8")


def test_it_trains(made):
    _, walked = made
    history = walked.folder.histories[0]
    assert len(history) == 3
    assert history[-1]["train"] != history[-2]["train"]


def test_it_is_loaded_again_with_its_options_and_forecasts_the_same_bits(made):
    _, walked = made
    again = load_run(walked.root)
    assert again.experiment == walked.experiment
    assert again.forecast().equals(walked.forecast())


def test_it_resumes_exactly(made, folder, tmp_path, monkeypatch):
    name, whole = made
    step, steps = Trainer._step, []

    def stopping(self, *given):
        steps.append(given)
        if len(steps) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *given)

    monkeypatch.setattr(Trainer, "_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(experiment_of(folder, name), tmp_path / "cut")
    monkeypatch.undo()
    resumed = train(experiment_of(folder, name), tmp_path / "cut", resume=True)
    same = [one.path("model.safetensors").read_bytes() for one in (whole, resumed)]
    assert same[0] == same[1]
