"""Benchmark files as panels: borders, labels that stay in their part, the ridge start, gates, rows that are kept."""

from __future__ import annotations

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
    PENALTIES,
    Ett,
    borders_of_months,
    borders_of_shares,
    earlier_fold,
    load_ett,
    ridges,
    score,
)
from longtape.evaluation.level_models import LevelEncoder, LevelEncoderConfig
from longtape.evaluation.level_panel import Levels
from longtape.evaluation.level_scores import fitted_ridge, fitted_shares, scores
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
        lookback=LOOKBACK,
        patch=4,
        d_model=8,
        n_heads=2,
        n_layers=1,
        attention="flash",
        window_norm=True,
        reversible=True,
        horizons=HORIZONS,
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


def test_the_earlier_fold_ends_where_training_ends(waves: Ett) -> None:
    before = earlier_fold(waves)
    assert dict(before.borders) == {"train": (0, 160), "validation": (160, 240), "test": (240, 320)}
    np.testing.assert_allclose(before.scaled[:160].mean(axis=0), 0, atol=1e-12)


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


def test_the_ridge_is_that_of_the_windows(waves: Ett, fitted: tuple[LevelEncoder, Levels]) -> None:
    model, levels = fitted
    got = scores(model, levels, "test", fitted_ridge(levels), dict.fromkeys(HORIZONS, 0.0))
    forecasters, penalty = ridges(waves, LOOKBACK, HORIZONS)
    assert penalty in PENALTIES
    first = min(HORIZONS)  # of the longer one the first steps are fitted on more windows
    wanted = score(forecasters[first], waves.windows("test", LOOKBACK, first))
    assert got[first].mse == pytest.approx(wanted.mse, rel=1e-4)
    assert got[first].mae == pytest.approx(wanted.mae, rel=1e-4)


def test_begins_at_the_mean_of_the_window(waves: Ett, fitted: tuple[LevelEncoder, Levels]) -> None:
    got = scores(*fitted, "test")
    for horizon in HORIZONS:
        wanted = score(
            lambda x, h=horizon: x.mean(1, keepdims=True).repeat(h, 1),
            waves.windows("test", LOOKBACK, horizon),
        )
        assert got[horizon].mse == pytest.approx(wanted.mse, rel=1e-5)


def test_the_loss_is_the_mean_over_the_horizons(fitted: tuple[LevelEncoder, Levels]) -> None:
    model, _ = fitted
    weights = model.loss_weights
    wanted = [1 / 4 + 1 / 6] * 4 + [1 / 6] * 2
    torch.testing.assert_close(weights, torch.tensor(wanted))


def test_shares_are_the_best_on_validation(fitted: tuple[LevelEncoder, Levels]) -> None:
    model, levels = fitted
    ridge = fitted_ridge(levels)
    shares = fitted_shares(model, ridge, levels)
    best = scores(model, levels, "validation", ridge, shares)
    for other in np.linspace(0, 1, 11):
        tried = scores(model, levels, "validation", ridge, dict.fromkeys(HORIZONS, float(other)))
        assert all(best[h].mse <= tried[h].mse + 1e-12 for h in HORIZONS)
    assert fitted_shares(model, _Same(model), levels) == dict.fromkeys(HORIZONS, 0.0)  # type: ignore[arg-type]


class _Same:
    """In the place of a ridge: what the model itself says."""

    def __init__(self, model: LevelEncoder) -> None:
        self.model = model

    def __call__(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        (baseline,) = self.model.baselines.values()
        out: torch.Tensor = baseline(x, rows)
        return out


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    made = importlib.import_module("ett")
    small = {"lookback": 16, "patch": 4, "d_model": 8, "n_heads": 2, "n_layers": 1}
    short = {"epochs": 1, "stride": 1}
    monkeypatch.setattr(made, "ENCODER", made.ENCODER | small)
    monkeypatch.setattr(made, "TRAINING", made.TRAINING | short)
    tiny = {"lookback": 8, "label_len": 8, "d_model": 8, "n_heads": 2, "d_ff": 8}
    monkeypatch.setattr(made, "INFORMER_MODEL", made.INFORMER_MODEL | tiny)
    monkeypatch.setattr(made, "INFORMER_TRAINING", made.INFORMER_TRAINING | {"epochs": 1, "stride": 8})
    monkeypatch.setattr(made, "DLINEAR", made.DLINEAR | {"lookback": 16})
    return made


def test_the_script_resumes_row_by_row(
    tmp_path: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_series(tmp_path / "waves.csv", rows=3_600, step="1h")
    given = [str(data), "--split", "0.6,0.2", "--horizons", "4,6", "--out", str(tmp_path / "table.md")]
    script.main([*given, "--attention", "flash"])
    first = (tmp_path / "table.jsonl").read_text()
    rows = [json.loads(line) for line in first.splitlines()]
    models = (*script.CLOSED, "DLinear", "flash", script.LEVEL_SEEN)
    assert {(row["model"], row["horizon"]) for row in rows} == {(name, h) for name in models for h in (4, 6)}
    assert len(capsys.readouterr().out.splitlines()) == len(rows)
    script.main([*given, "--attention", "flash,bigbird", "--informer"])
    again = (tmp_path / "table.jsonl").read_text()
    assert again.startswith(first)
    assert [json.loads(line)["model"] for line in again.splitlines()[len(rows) :]] == [
        script.INFORMER,
        *["bigbird"] * 2,
    ]
    table = (tmp_path / "table.md").read_text()
    assert "| bigbird | 1 |" in table
    assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1
    assert "Informer as published, all series side by side, 24 steps" in table
    assert "ahead of the ridge" in table.lower()


def test_the_table_holds_the_rows_of_the_newest_settings(script: ModuleType) -> None:
    old, new, other = (
        script.Row("waves", model, 4, 0, settings, mse, mse)
        for model, settings, mse in (("flash", "a", 1.0), ("flash", "b", 0.5), ("ridge", "a", 0.7))
    )
    assert script.newest([old, new, other]) == [new, other]


def test_the_script_says_what_it_cannot_read(tmp_path: Path, script: ModuleType) -> None:
    (tmp_path / "table.jsonl").write_text('{"model": "flash"}\n')
    with pytest.raises(UserError, match="line 1 is no row"):
        script.rows_in(tmp_path / "table.jsonl")
    with pytest.raises(UserError, match="did you mean 'flash'"):
        script._names("flush")


def test_ridge_on_etth1() -> None:
    """To the four digits of the record."""
    data = load_ett(shared("ett/ETTh1.csv"))
    forecasters, penalty = ridges(data, 512, (96, 192, 336, 720))
    errors = {h: score(one, data.windows("test", 512, h)).mse for h, one in forecasters.items()}
    assert penalty == 0.3
    assert round(float(np.mean(list(errors.values()))), 4) == 0.4036
