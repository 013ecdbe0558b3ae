"""Benchmark files as panels: borders, labels that stay in their part, the ridge start, gates, rows that are kept."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from longtape.core.clock import Interval
from longtape.core.errors import UserError
from longtape.evaluation.ett import (
    Ett,
    borders_of_months,
    borders_of_shares,
    load_ett,
    ridge,
    score,
)
from longtape.evaluation.level_models import LevelEncoder, LevelEncoderConfig
from longtape.evaluation.level_panel import Levels
from longtape.evaluation.level_scores import fitted_gates, scores
from tests.shared_data import shared

ROOT = Path(__file__).parents[2]
HORIZONS = (4, 6)
LOOKBACK = 16


def write_series(path: Path, rows: int = 400, step: str = "15m") -> Path:
    """Three noisy waves, in ETT's form."""
    rng = np.random.default_rng(0)
    minutes = Interval.parse(step).milliseconds // 60_000
    times = np.datetime64("2020-01-01T00:00") + minutes * np.arange(rows)
    waves = np.sin(np.arange(rows)[:, None] / [3.0, 5.0, 8.0]) + 0.1 * rng.standard_normal((rows, 3))
    lines = [
        f"{str(t).replace('T', ' ')}:00,{','.join(f'{v:.6f}' for v in row)}"
        for t, row in zip(times, waves, strict=True)
    ]
    path.write_text("\n".join(["date,a,b,c", *lines]) + "\n")
    return path


@pytest.fixture(scope="module")
def waves(tmp_path_factory: pytest.TempPathFactory) -> Ett:
    return load_ett(write_series(tmp_path_factory.mktemp("series") / "waves.csv"), split=(0.6, 0.2))


@pytest.fixture(scope="module")
def fitted(waves: Ett) -> tuple[LevelEncoder, Levels]:
    levels = Levels(waves, LOOKBACK, HORIZONS, pooled=True)
    config = LevelEncoderConfig(
        lookback=LOOKBACK, patch=4, d_model=8, n_heads=2, n_layers=1, attention="flash", horizons=HORIZONS
    )
    model = LevelEncoder(config, levels.inputs())
    model.fit(levels.panel, levels.origins("train"), levels.origins("validation"))
    return model, levels


def test_months_count_rows_of_the_interval() -> None:
    assert borders_of_months(Interval.parse("1h")) == {
        "train": (0, 8_640),
        "validation": (8_640, 11_520),
        "test": (11_520, 14_400),
    }
    assert borders_of_months(Interval.parse("15m"))["test"] == (46_080, 57_600)


def test_shares_leave_the_rest_for_the_test() -> None:
    assert borders_of_shares(1_000, 0.7, 0.1) == {
        "train": (0, 700),
        "validation": (700, 800),
        "test": (800, 1_000),
    }
    for wrong in ((0.9, 0.1), (0.0, 0.5), (0.5, -0.1)):
        with pytest.raises(UserError, match="below 1 together"):
            borders_of_shares(1_000, *wrong)


def test_any_file_of_the_form(waves: Ett) -> None:
    assert (waves.name, waves.columns, waves.interval.name) == ("waves", ("a", "b", "c"), "15m")
    assert waves.borders["test"] == (320, 400)
    np.testing.assert_allclose(waves.scaled[:240].mean(axis=0), 0, atol=1e-12)


def test_a_file_of_another_form_is_refused(tmp_path: Path) -> None:
    path = write_series(tmp_path / "waves.csv", rows=50)
    lines = path.read_text().splitlines()
    for changed, complaint in (
        ([*lines[:5], lines[3], *lines[5:]], "row 5 is not later"),
        ([*lines[:5], lines[5].replace(",0", ",x", 1).replace(",-", ",x", 1), *lines[6:]], "not a number"),
        (lines, "50 rows, and the benchmark needs 57600"),
        (["time" + lines[0].removeprefix("date"), *lines[1:]], "needs a column 'date'"),
        (lines[:2], "tell no interval"),
    ):
        path.write_text("\n".join(changed) + "\n")
        with pytest.raises(UserError, match=complaint):
            load_ett(path)


@pytest.mark.parametrize("pooled", [True, False])
def test_labels_are_the_rows_after_and_stay_in_their_part(waves: Ett, pooled: bool) -> None:
    levels = Levels(waves, LOOKBACK, HORIZONS, pooled)
    targets = levels.panel.targets
    for part in ("train", "validation", "test"):
        for horizon in HORIZONS:
            x, y = waves.windows(part, LOOKBACK, horizon).batch(
                range(len(waves.windows(part, LOOKBACK, horizon)))
            )
            origins = levels.origins(part, horizon)
            windows = levels.panel.values[origins[:, None] + np.arange(1 - LOOKBACK, 1)]
            if pooled:  # series by series
                x, y = (one.transpose(2, 0, 1).reshape(-1, one.shape[1], 1) for one in (x, y))
            labels = targets[origins].reshape(len(origins), -1, levels.steps).transpose(0, 2, 1)[:, :horizon]
            np.testing.assert_allclose(windows, x, atol=1e-6)
            np.testing.assert_array_equal(labels, y)
        newest = levels.origins(part)[-1]  # knows its first labels only
        assert np.isnan(targets[newest].reshape(-1, levels.steps)[:, min(HORIZONS) :]).all()


def test_begins_at_the_ridge_of_each_horizon(waves: Ett, fitted: tuple[LevelEncoder, Levels]) -> None:
    model, levels = fitted
    got = scores(model, levels, "test", dict.fromkeys(HORIZONS, 1.0))
    first = min(HORIZONS)
    forecaster, _ = ridge(*(waves.windows(part, LOOKBACK, first) for part in ("train", "validation")))
    wanted = score(forecaster, waves.windows("test", LOOKBACK, first))
    assert got[first].mse == pytest.approx(wanted.mse, rel=1e-4)
    assert got[first].mae == pytest.approx(wanted.mae, rel=1e-4)


def test_the_loss_is_the_mean_over_the_horizons(fitted: tuple[LevelEncoder, Levels]) -> None:
    model, _ = fitted
    weights = model.loss_weights
    wanted = [1 / 4 + 1 / 6] * 4 + [1 / 6] * 2
    torch.testing.assert_close(weights, torch.tensor(wanted))


def test_gates_keep_what_helps_and_drop_what_harms(fitted: tuple[LevelEncoder, Levels]) -> None:
    model, levels = fitted
    bias = model.heads["path"].linear.bias
    with torch.no_grad():
        assert fitted_gates(model, levels) == dict.fromkeys(HORIZONS, 0.0)  # it adds nothing
        origins = levels.origins("validation", levels.steps)
        batch_mean = levels.panel.targets[origins].mean() - _start_mean(model, levels)
        bias.fill_(2 * batch_mean)
        helped = fitted_gates(model, levels)
        bias.fill_(-2 * batch_mean)
        harmed = fitted_gates(model, levels)
        bias.zero_()
    assert helped[levels.steps] == pytest.approx(0.5, abs=0.05)
    assert harmed[levels.steps] == 0.0


def _start_mean(model: LevelEncoder, levels: Levels) -> float:
    rows = levels.origins("validation", levels.steps)
    windows = levels.panel.values[rows[:, None] + np.arange(1 - LOOKBACK, 1)]
    (baseline,) = model.baselines.values()
    return float(baseline(torch.from_numpy(windows), torch.empty(0)).mean())


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    made = importlib.import_module("ett")
    small = {"lookback": 16, "patch": 4, "d_model": 8, "n_heads": 2, "n_layers": 1}
    short = {"epochs": 1, "stride": 1}
    monkeypatch.setattr(made, "ENCODER", made.ENCODER | small)
    monkeypatch.setattr(made, "TRAINING", made.TRAINING | short)
    monkeypatch.setattr(made, "DLINEAR", made.DLINEAR | {"lookback": 16})
    monkeypatch.setattr(made, "DLINEAR_TRAINING", made.DLINEAR_TRAINING | short)
    return made


def test_the_script_resumes_row_by_row(
    tmp_path: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_series(tmp_path / "waves.csv", rows=3_600, step="1h")
    given = [str(data), "--split", "0.6,0.2", "--horizons", "4,6", "--out", str(tmp_path / "table.md")]
    script.main([*given, "--attention", "flash"])
    first = (tmp_path / "table.jsonl").read_text()
    rows = [json.loads(line) for line in first.splitlines()]
    models = (*script.CLOSED, "DLinear", "flash")
    assert {(row["model"], row["horizon"]) for row in rows} == {(name, h) for name in models for h in (4, 6)}
    assert len(capsys.readouterr().out.splitlines()) == len(rows)
    script.main([*given, "--attention", "flash,bigbird"])
    again = (tmp_path / "table.jsonl").read_text()
    assert again.startswith(first)
    assert [json.loads(line)["model"] for line in again.splitlines()[len(rows) :]] == ["bigbird"] * 2
    table = (tmp_path / "table.md").read_text()
    assert "| bigbird | 1 |" in table
    assert "ahead of the ridge" in table.lower()


def test_the_script_says_what_it_cannot_read(tmp_path: Path, script: ModuleType) -> None:
    (tmp_path / "table.jsonl").write_text('{"model": "flash"}\n')
    with pytest.raises(UserError, match="line 1 is no row"):
        script.rows_in(tmp_path / "table.jsonl")
    with pytest.raises(UserError, match="did you mean 'flash'"):
        script._names("flush")


def test_ridge_on_etth1() -> None:
    """The average over 96, 192, 336 and 720 steps is .4036; here the one that is quick."""
    data = load_ett(shared("ett/ETTh1.csv"))
    parts = [data.windows(part, 512, 96) for part in ("train", "validation")]
    forecaster, penalty = ridge(*parts)
    assert penalty == 0.1
    assert dataclasses.astuple(score(forecaster, data.windows("test", 512, 96)))[0] < 0.375
