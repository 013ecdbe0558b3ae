"""Every head on every kind of target that it fits, from the experiment file to the report."""

import numpy as np
import polars as pl
import pytest

from longtape.core.errors import UserError
from longtape.core.files import read_json
from longtape.experiment import load_experiment
from longtape.features.target_kinds import KINDS
from longtape.workflow import run, train
from tests.candles import candle_frame

EXPERIMENT = """
name: heads
data: {source: file, path: "{symbol}.parquet", symbols: [AAA, BBB], interval: 1h}
features: [log_return, volatility(10)]
targets: [return(1), path(2), volatility(2), "direction(2, 0.002)", up(1)]
model: {lookback: 16, attention: flash, d_model: 8, n_heads: 2, n_layers: 1}
training: {epochs: 1, batch_size: 32, stride: 4}
backtest: {signal: {target: return(1)}, costs: {fee: 0.0005}}
audit: false
"""
TARGETS = {kind: kind for kind in ("return", "path", "volatility", "direction", "up")}
ROUNDS = max(len(kind.heads) for kind in KINDS.values())
OPTIONS = {
    "volatility": [{"clip": 1.5}, {}],
    "allocation": [{}, {"turnover_cost": 0.001, "long_only": True, "block": 16}],
    "sharpe": [{"block": 16, "turnover_cost": 0.0005}, {"block": 16}],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    for seed, symbol in enumerate(("AAA", "BBB")):
        candle_frame(700, seed).write_parquet(folder / f"{symbol}.parquet")
    (folder / "heads.yaml").write_text(EXPERIMENT)
    return folder


def heads_of(number):
    """In each round another head of every kind of target, so that all rounds together hold every one."""
    chosen = {}
    for at, kind in enumerate(TARGETS):
        names = KINDS[kind].heads
        name = names[(number + at) % len(names)]
        options = OPTIONS.get(name, [{}])
        chosen[kind] = {"name": name, **options[number % len(options)]}
    return chosen


def test_all_rounds_hold_every_head_of_every_kind():
    seen = {(kind, head["name"]) for number in range(ROUNDS) for kind, head in heads_of(number).items()}
    assert seen == {(kind, head) for kind in TARGETS for head in KINDS[kind].heads}


@pytest.mark.parametrize("number", range(ROUNDS))
def test_every_head_walks_the_whole_way(folder, tmp_path, number):
    heads = heads_of(number)
    signal = "allocation" if heads["return"]["name"] in ("allocation", "sharpe") else "threshold"
    given = [f"model.heads={heads}", f"backtest.signal.name={signal}"]
    made = run(load_experiment(folder / "heads.yaml", given), tmp_path / "out")
    frame = pl.read_parquet(made.path("forecast.parquet"))
    assert frame["mean"].is_finite().all()
    metrics = read_json(made.path("metrics.json"))
    assert len(metrics["skill"]) == 10
    for name, rows in metrics["skill"].items():
        kind = name.split(" ")[1].split("(")[0]
        weights = heads[kind]["name"] in ("allocation", "sharpe")
        assert ("return a row, bp" in rows[0]) == weights, name
        assert len(rows) > 1
    for kind, head in heads.items():
        own = frame.filter(pl.col("target").str.starts_with(kind))
        if head["name"] in ("allocation", "sharpe"):
            judge_weights(own, head.get("long_only", False))
        elif kind not in ("direction", "up"):
            assert own["lower"].null_count() == 0
            assert (own["lower"] < own["upper"]).all()
    if signal == "allocation":
        weights = made.pipeline.weights(made.forecasts)
        said = frame.filter(pl.col("target") == "return(1)").pivot("symbol", index="timestamp", values="mean")
        assert np.allclose(weights["BBB"], said["BBB"], atol=1e-9)  # to the account as they are
    assert made.path("report.html").exists()


def judge_weights(own, long_only):
    assert (own["kind"] == "weight").all()
    assert own["lower"].null_count() == own.height
    gross = own.group_by("timestamp", "target", "horizon").agg(pl.col("mean").abs().sum())
    assert gross["mean"].max() <= 1 + 1e-6
    assert not long_only or own["mean"].min() >= 0


def test_a_resumed_run_in_blocks_goes_on_to_the_same_bits(folder, tmp_path, monkeypatch):
    from longtape.training.loop import Trainer

    heads = {"return": {"name": "sharpe", "block": 8}, "volatility": {"name": "volatility", "clip": 1.0}}
    given = [
        f"model.heads={heads}",
        "backtest.signal.name=allocation",
        "training.epochs=2",
        "model.dropout=0.2",
    ]
    whole = train(load_experiment(folder / "heads.yaml", given), tmp_path / "whole")
    step, steps = Trainer._step, []

    def stopping(self, *given):
        steps.append(given)
        if len(steps) == 3:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *given)

    monkeypatch.setattr(Trainer, "_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(load_experiment(folder / "heads.yaml", given), tmp_path / "cut")
    monkeypatch.undo()
    resumed = train(load_experiment(folder / "heads.yaml", given), tmp_path / "cut", resume=True)
    same = [one.path("model.safetensors").read_bytes() for one in (whole, resumed)]
    assert same[0] == same[1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["model.heads={return: {name: allocation, block: 8}}"], "block has no effect without turnover_cost"),
        (["model.heads={return: {name: sharpe, blok: 8}}"], "unknown option 'blok'; did you mean 'block'"),
        (["model.heads={volatility: {name: volatility, clip: -1}}"], "heads: volatility: clip"),
        (["model.heads={return: {long_only: true}}"], "name a head"),
        (["model.heads={return: allocation}"], "the head of return(1) gives weights; name allocation"),
        (["backtest.signal.name=allocation"], "takes weights; give return(1) a head of weights"),
        (
            ["model.heads={return: {name: sharpe, block: 10}}", "backtest.signal.name=allocation"],
            "training.batch_size: 32 windows do not hold whole blocks of 10",
        ),
        (
            ["model.heads={return: {name: sharpe, block: 16}, path: {name: sharpe, block: 8}}"],
            "blocks of one batch have one length",
        ),
    ],
)
def test_what_does_not_go_together_is_said_before_anything_is_read(folder, given, said):
    with pytest.raises(UserError) as error:
        load_experiment(folder / "heads.yaml", given)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_block_longer_than_the_validation_is_refused(folder, tmp_path):
    given = ["model.heads={return: {name: sharpe, block: 256}}", "training.batch_size=256"]
    experiment = load_experiment(folder / "heads.yaml", [*given, "backtest.signal.name=allocation"])
    with pytest.raises(UserError, match="256 consecutive windows"):
        train(experiment, tmp_path / "out")
