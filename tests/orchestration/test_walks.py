"""Walk-forward over folds, symbols and seeds: the same on every engine, done once; and the list of runs."""

import shutil

import polars as pl
import pytest

from longtape.cli.main import execute
from longtape.core.errors import UserError
from longtape.experiment import parse_experiment
from longtape.features.splits import WalkForwardConfig
from longtape.orchestration.engines import InProcess, ProcessPool
from longtape.orchestration.listing import list_runs
from longtape.orchestration.walks import refuse_shared_features, run_walks, walks_of, walks_table
from longtape.workflow import train
from longtape.workflow.folds import run_walk_forward
from tests.candles import candle_frame

FOLDS = WalkForwardConfig(n_folds=2)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for number, symbol in enumerate(("AAA", "BBB")):
        candle_frame(500, seed=number).write_parquet(folder / f"{symbol}.parquet")
    return parse_experiment(
        {
            "data": {"source": "file", "path": str(folder / "{symbol}.parquet"), "symbols": ["AAA", "BBB"],
                     "interval": "1h"},
            "features": ["log_return", "volatility(20)"],
            "targets": ["return(3)"],
            "model": {"lookback": 16, "attention": "flash", "d_model": 8, "n_heads": 2, "n_layers": 1},
            "training": {"epochs": 1, "stride": 4},
            "audit": False,
        },
        "test",
    )  # fmt: skip


def test_folds_on_a_pool_are_those_of_one_process(experiment, tmp_path):
    whole = run_walk_forward(experiment, FOLDS, tmp_path / "whole")
    walks = walks_of(experiment, tmp_path / "pool")
    (made,) = run_walks(walks, FOLDS, tmp_path / "pool", ProcessPool(2, 1))
    assert made.walked.forecasts.equals(whole.walked.forecasts)
    assert (tmp_path / "pool" / "report.html").exists()


def test_symbols_and_seeds_are_walked_alone_and_once(experiment, tmp_path, capsys):
    walks = walks_of(experiment, tmp_path, per_symbol=True, seeds=2)
    assert [walk.name for walk in walks] == ["AAA/seed-0", "AAA/seed-1", "BBB/seed-0", "BBB/seed-1"]
    made = run_walks(walks, FOLDS, tmp_path, InProcess(1))
    rows = walks_table(walks, made)
    assert [row["walk"] for row in rows] == [walk.name for walk in walks]
    assert made[2].walked.forecasts["symbol"].unique().to_list() == ["BBB"]
    shutil.rmtree(tmp_path / "jobs" / "BBB" / "seed-1")  # one walk was interrupted
    (tmp_path / "BBB" / "seed-1" / "fold-02.parquet").unlink()
    before = pl.read_parquet(tmp_path / "BBB" / "seed-1" / "forecast.parquet")
    again = run_walks(walks, FOLDS, tmp_path, InProcess(1), resume=True)
    assert "6 of 8 jobs were done before" in capsys.readouterr().err
    assert again[3].walked.forecasts.equals(before)
    with pytest.raises(UserError, match="--resume"):
        run_walks(walks, FOLDS, tmp_path, InProcess(1))


def test_a_symbol_that_reads_another_cannot_walk_alone(experiment):
    other = experiment.model_copy(update={"features": ["log_return", "of(BBB, log_return)"]})
    with pytest.raises(UserError, match="per-symbol"):
        refuse_shared_features(other)


def test_runs_are_listed_with_what_differs(experiment, tmp_path, capsys):
    train(experiment, tmp_path / "one")
    wider = experiment.model.model_copy(update={"d_model": 16})
    train(experiment.model_copy(update={"model": wider, "seed": 3}), tmp_path / "sub" / "two")
    rows = list_runs(tmp_path)
    assert [row["run"] for row in rows] == ["one", "sub/two"]
    assert [(row["seed"], row["model.d_model"]) for row in rows] == [(0, 8), (3, 16)]
    assert set(rows[0]) - {"run", "status", "seconds", "validation", "Sharpe", "annual return %"} == {
        "max drawdown %", "seed", "model.d_model"
    }  # fmt: skip
    assert rows[0]["validation"] > 0
    assert execute(["runs", str(tmp_path)]) == 0
    assert "model.d_model" in capsys.readouterr().out
    assert execute(["runs", str(tmp_path / "nowhere")]) == 2
