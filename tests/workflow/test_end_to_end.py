"""Whole runs: every kind of target with every head that fits it, several symbols together, the walk-forward command."""

from __future__ import annotations

import inspect

import numpy as np
import polars as pl
import pytest

from longtape.cli.main import execute
from longtape.core.files import read_json
from longtape.experiment import parse_experiment
from longtape.features.catalogue import targets
from longtape.features.target_kinds import KINDS, WEIGHT
from longtape.models.heads import HEADS
from longtape.models.registry import MODELS
from longtape.workflow import load_run, run
from tests.candles import candle_frame

CANDLE_COLUMNS = {"open", "high", "low", "close", "volume"}
# Kinds that labels have; a weight is what a head makes of a return.
TARGETED = {spec.kind for spec in targets().values()}
PAIRS = [(kind, head) for kind in KINDS.values() if kind.name in TARGETED for head in kind.heads]
DOCUMENT = {
    "features": ["log_return", "volatility(20)"],
    "model": {"lookback": 16, "attention": "flash", "d_model": 8, "n_heads": 2, "n_layers": 1},
    "training": {"epochs": 1, "learning_rate": 0.01, "patience": 9},
    "audit": False,
}


def a_target_of(kind: str) -> str:
    """The first target of a kind that candles have, over three bars."""
    spec = next(
        spec for spec in targets().values() if spec.kind == kind and set(spec.needs) <= CANDLE_COLUMNS
    )
    given = [3 if p.annotation in (int, "int") else p.default for p in spec.parameters]
    assert inspect.Parameter.empty not in given
    return f"{spec.name}({', '.join(map(str, given))})"


@pytest.fixture(scope="module")
def candles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("candles")
    for seed, name in enumerate(("AAA", "BBB", "CCC")):
        candle_frame(900, seed).write_parquet(folder / f"{name}.parquet")
    return folder


def data(candles, *symbols):
    return {
        "source": "file",
        "path": str(candles / "{symbol}.parquet"),
        "symbols": list(symbols),
        "interval": "1h",
    }


def test_every_head_fits_a_kind_of_target():
    assert {head for _, head in PAIRS} == set(HEADS)


@pytest.mark.parametrize(("kind", "head"), PAIRS, ids=[f"{kind.name}-{head}" for kind, head in PAIRS])
def test_every_kind_of_target_runs_with_every_head(kind, head, candles, tmp_path):
    target = a_target_of(kind.name)
    model = {**DOCUMENT["model"], "heads": {kind.name: head}}
    document = {**DOCUMENT, "data": data(candles, "AAA"), "targets": [target], "model": model}
    as_weight = HEADS.load(head).gives_weights
    said = WEIGHT if as_weight else kind  # what the forecasts are
    if kind.traded:
        document["backtest"] = {"signal": {"name": "allocation" if as_weight else "threshold", "horizon": 3}}
    made = run(parse_experiment(document, "test.yaml"), tmp_path / "out")
    history = made.folder.histories[0]
    assert [entry["epoch"] for entry in history] == [0, 1]
    assert all(np.isfinite(entry["validation"]) for entry in history)
    assert type(made.fitted.model.heads[kind.name]) is HEADS.load(head)
    assert made.forecasts["mean"].is_finite().all()
    assert set(made.forecasts["kind"]) == {said.name}
    results = read_json(made.path("metrics.json"))
    [rows] = results["skill"].values()
    assert np.isfinite(rows[0][said.headline])
    standing = [name for name in said.baselines if MODELS.load(name).reads(made.data.panel)]
    assert len(rows) == 1 + len(standing)
    assert (results["account"] is not None) == kind.traded
    assert made.path("report.html").stat().st_size > 100_000
    assert load_run(made.root).forecast().equals(made.forecast())


def test_several_symbols_run_as_one(candles, tmp_path):
    symbols = ("AAA", "BBB", "CCC")
    document = {**DOCUMENT, "data": data(candles, *symbols), "targets": ["return(3)", "volatility(3)"]}
    document["backtest"] = {"signal": {"name": "tanh", "target": "return(3)", "options": {"gain": 50}}}
    made = run(parse_experiment(document, "test.yaml"), tmp_path / "out")
    panel, frame = made.data.panel, made.forecasts
    assert panel.by_asset.shape[1:] == (3, 2)
    each = frame.group_by("symbol", "target").len()
    assert (each.height, each["len"].n_unique()) == (6, 1)
    assert frame.group_by("timestamp", "target").agg(pl.col("mean").n_unique())["mean"].min() == 3
    closes = {one.symbol: one.column("close") for one in made.data.bars}
    known = frame.filter(pl.col("actual").is_not_null() & (pl.col("target") == "return(3)"))
    rows = np.searchsorted(panel.timestamps, known["timestamp"].dt.timestamp("ms"))
    expected = [
        np.log(closes[s][row + 3] / closes[s][row]) for s, row in zip(known["symbol"], rows, strict=True)
    ]
    assert np.allclose(known["actual"], expected)
    results = read_json(made.path("metrics.json"))
    assert set(results["skill"]) == {f"{s} {target}" for s in symbols for target in document["targets"]}
    positions = pl.read_parquet(made.path("backtest/positions.parquet"))
    assert set(positions.columns) == {"timestamp", *symbols}
    assert all((positions[s] != 0).any() for s in symbols)
    equity = pl.read_parquet(made.path("backtest/equity.parquet"))["equity"]
    assert equity[-1] == pytest.approx(results["account"]["end"])
    assert made.forecast().group_by("symbol").len()["len"].to_list() == [2, 2, 2]


def test_the_walk_forward_command_refits_joins_and_reports(candles, tmp_path, capsys):
    out, file = tmp_path / "folds", tmp_path / "e.yaml"
    document = {**DOCUMENT, "data": data(candles, "AAA", "BBB"), "targets": ["return(3)"]}
    file.write_text(parse_experiment(document, "test.yaml").to_yaml())
    words = ["walk-forward", str(file), "--folds", "2", "--window", "rolling", "--out", str(out), "--quiet"]
    assert execute(words) == 0
    shown = capsys.readouterr().out
    assert all(
        part in shown for part in ("Folds", "Forecast of BBB return(3)", "Backtest", "Verdict", "report.html")
    )
    parts = [pl.read_parquet(out / f"fold-{number:02}.parquet") for number in (1, 2)]
    joined = pl.read_parquet(out / "forecast.parquet")
    assert joined.equals(pl.concat(parts))
    assert parts[0]["timestamp"].max() < parts[1]["timestamp"].min()
    results = read_json(out / "metrics.json")
    assert [fold["fold"] for fold in results["folds"]] == [1, 2]
    assert sum(fold["forecasts"] for fold in results["folds"]) == joined["timestamp"].n_unique()
    assert results["account"]["start"] == 100_000
    assert (out / "report.html").stat().st_size > 100_000
    assert execute(words) == 2
    assert "--resume" in capsys.readouterr().err
    kept = (out / "fold-01.parquet").stat().st_mtime_ns
    assert execute([*words, "--resume"]) == 0
    assert (out / "fold-01.parquet").stat().st_mtime_ns == kept
    assert capsys.readouterr().out == shown
    assert execute([*words[:-1], "--resume", "-o", "seed=1", "--quiet"]) == 2
