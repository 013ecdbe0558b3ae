"""A comparison scores every setting on the same test times, counts what it compares, and goes on where it stopped."""

import json

import numpy as np
import polars as pl
import pytest

from longtape.cli.main import execute
from longtape.core.errors import UserError
from longtape.core.memory import peak_memory
from longtape.evaluation.statistics import holm
from longtape.experiment import load_experiment
from longtape.workflow.compare import Cell, Setting, experiment_of, parse_mechanism, run_compare
from tests.candles import candle_frame

EXPERIMENT = """
data: {source: file, path: candles.parquet, symbols: [TEST], interval: 1h}
features: [log_return]
targets: [volatility(6)]
model: {lookback: 32, attention: local, attention_options: {window_size: 5}, d_model: 8, n_heads: 1, n_layers: 1}
training: {epochs: 1, stride: 4}
audit: false
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    candle_frame(700).write_parquet(folder / "candles.parquet")
    (folder / "small.yaml").write_text(EXPERIMENT)
    return folder / "small.yaml"


@pytest.fixture(scope="module")
def made(path, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "compared"
    return run_compare(load_experiment(path), ["local", "linformer:k=4", "linformer:k=8"], [16, 32], 2, out)


def test_every_setting_is_scored_on_the_same_times(made):
    frames = [pl.read_parquet(path) for path in sorted((made.root / "cells").glob("*.parquet"))]
    assert len(frames) == 12
    for frame in frames:
        assert frame.columns == ["timestamp", "TEST volatility(6)"]
        assert frame["timestamp"].equals(frames[0]["timestamp"])
        assert frame["TEST volatility(6)"].is_finite().all()


def test_the_table_compares_with_the_first_and_counts(made):
    settings = [row for row in made.rows if row.get("lookback")]
    assert made.comparisons == 5
    assert made.reference == "local:window_size=5 at lookback 16"
    assert "p" not in settings[0]
    for row in settings[1:]:
        assert row["from"] <= row["difference"] <= row["to"]
        assert row["p, Holm"] >= row["p"]
        assert row["training s"] > 0
    baselines = [row["attention"] for row in made.rows if not row.get("lookback")]
    assert "log-HAR" in baselines
    text = made.text()
    assert "5 comparisons with local:window_size=5 at lookback 16" in text
    assert "k = " in text  # the smallest k of the Linformers, by validation loss


def test_a_stopped_comparison_goes_on_with_what_is_missing(made, path):
    before = made.to_dict()
    gone = made.root / "cells" / "linformer-k4-16-seed0.json"
    gone.unlink()
    done = []

    def count(work, cells):
        done.extend(cells)
        for cell in cells:
            work(cell)

    mechanisms = ["local", "linformer:k=4", "linformer:k=8"]
    again = run_compare(
        load_experiment(path), mechanisms, [16, 32], 2, made.root, resume=True, run_jobs=count
    )
    assert [cell.name for cell in done] == ["linformer-k4-16-seed0"]
    for old, new in zip(before["rows"], again.to_dict()["rows"], strict=True):
        assert old["loss"] == new["loss"]
    with pytest.raises(UserError, match="--resume"):
        run_compare(load_experiment(path), mechanisms, [16, 32], 2, made.root)
    with pytest.raises(UserError, match="was not made by this"):
        run_compare(load_experiment(path), ["local"], [16, 32], 2, made.root, resume=True)


def test_the_command_draws_and_prints(path, tmp_path, capsys):
    arguments = ["compare", str(path), "--lookback", "8,16", "--attention", "local", "--seeds", "1", "--json"]
    assert execute([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert json.loads(capsys.readouterr().out)["comparisons"] == 1
    assert (tmp_path / "out" / "compare.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--attention", "locl"], "did you mean 'local'"),
        (["--attention", "linformer:k"], "name:key=value"),
        (["--attention", "linformer:kk=3"], "has no option 'kk'"),
        (["--lookback", "16,abc"], "numbers of bars"),
        (["--lookback", "16,0"], "at least one bar"),
        (["--lookback", "16,16"], "named twice"),
        (["-o", "model={kind: mean}"], "no attention"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_is_made(path, tmp_path, arguments, why, capsys):
    assert execute(["compare", str(path), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_options_are_the_experiments_where_the_mechanism_is(path):
    experiment = load_experiment(path)
    assert parse_mechanism("local", experiment) == ("local", (("window_size", 5),))
    assert parse_mechanism("bigbird:block_size=4:n_random=1", experiment)[1] == (
        ("block_size", 4),
        ("n_random", 1),
    )
    cell = experiment_of(experiment, Cell(Setting("flash", 64), 7))
    assert (cell.seed, cell.model.lookback, cell.model.attention, cell.model.attention_options) == (
        7,
        64,
        "flash",
        {},
    )


def test_holm_adjusts_for_the_number_of_tests():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_peak_memory_sees_what_was_used_for_a_while():
    with peak_memory() as peak:
        np.ones(20_000_000).sum()
    assert peak.megabytes is None or peak.megabytes > 100
