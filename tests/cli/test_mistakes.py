"""Mistakes at the keyboard: one line and exit code 2; Ctrl-C says what was saved; help is help."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from longtape.cli.main import execute
from longtape.experiment import parse_experiment
from longtape.market.store import Store
from longtape.workflow import Run, load_run, run
from tests.candles import candle_frame
from tests.market.bybit_server import BybitServer, synthetic
from tests.market.store_data import make_bars

DOCUMENT = {
    "data": {"source": "file", "symbols": ["TEST"], "interval": "1h"},
    "features": ["log_return", "volatility(20)"],
    "targets": ["return(3)"],
    "model": {"lookback": 16, "attention": "flash", "d_model": 8, "n_heads": 2, "n_layers": 1},
    "training": {"epochs": 0},
    "audit": False,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    candle_frame(900).write_parquet(folder / "candles.parquet")
    document = {**DOCUMENT, "data": {**DOCUMENT["data"], "path": str(folder / "candles.parquet")}}
    import yaml

    (folder / "e.yaml").write_text(yaml.safe_dump(document))
    return run(parse_experiment(document, "test.yaml"), folder / "run")


def fails(capsys, *words):
    """The one line on standard error of a command that ends with 2."""
    capsys.readouterr()
    code = execute([*map(str, words), "--quiet"])
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line]
    assert (code, len(lines), said.out) == (2, 1, ""), said
    return lines[0]


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_in_training(capsys, made, monkeypatch, tmp_path):
    """safetensors has an exception of its own for it."""
    from safetensors import SafetensorError

    def save(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("longtape.training.checkpoint.save_file", save)
    line = fails(
        capsys, "train", made.root.parent / "e.yaml", "--out", tmp_path / "out", "-o", "training.epochs=1"
    )
    assert "the disk is full" in line
    assert str(tmp_path / "out") in line


def test_a_full_disk_in_parquet_writing(capsys, made, monkeypatch, tmp_path):
    def write(*_, **__):
        raise pl.exceptions.ComputeError("IO error: No space left on device (os error 28)")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", write)
    line = fails(capsys, "forecast", made.root, "--out", tmp_path / "f.parquet")
    assert f"{tmp_path}/f.parquet: the disk is full" in line
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_folder_is_named_by_the_users_file(capsys, made, monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / ".r.html.d626p8tn.partial"))

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    line = fails(capsys, "report", made.root, "--out", tmp_path / "r.html")
    assert f"{tmp_path}/r.html: cannot be written (Permission denied)" in line
    assert "partial" not in line


def test_endings_are_refused_before_anything_is_computed(capsys, made, monkeypatch, tmp_path):
    monkeypatch.setattr(Run, "forecast", full)
    monkeypatch.setattr(Run, "report", full)
    assert "ends in .parquet or .csv" in fails(capsys, "forecast", made.root, "--out", tmp_path / "x.xlsx")
    assert "ends in .html" in fails(capsys, "report", made.root, "--out", tmp_path / "x.pdf")


@pytest.mark.parametrize("command", ["list", "check", "repair"])
def test_a_store_that_is_not_there(capsys, tmp_path, command):
    assert "nope: there is no store here" in fails(capsys, "data", command, "--store", tmp_path / "nope")
    assert not (tmp_path / "nope").exists()


def test_repair_of_imported_bars_names_the_way(capsys, tmp_path):
    candle_frame(100).write_parquet(tmp_path / "c.parquet")
    words = ("--interval", "1h", "--store", tmp_path / "store")
    assert execute(["import", *map(str, (tmp_path / "c.parquet", "--symbol", "X", *words))]) == 0
    line = fails(capsys, "data", "repair", "--store", tmp_path / "store")
    assert "imported from a file" in line
    assert "--from" in line


def test_an_interval_that_a_service_does_not_have_is_said_without_the_network(capsys, tmp_path):
    with BybitServer() as server:
        words = (
            "fetch",
            "bybit",
            "--symbols",
            "BTCUSDT",
            "--store",
            tmp_path / "s",
            "--base-url",
            server.url,
        )
        assert "bybit has no candles of 7m; it has 1m 3m" in fails(capsys, *words, "--interval", "7m")
        assert server.requests == []
    assert "daily" in fails(
        capsys, "fetch", "sample", "--symbols", "SP500", "--interval", "7m", "--store", tmp_path / "s"
    )
    words = ("fetch", "ccxt-kraken", "--symbols", "X", "--interval", "7m", "--store", tmp_path / "s")
    pytest.importorskip("ccxt")
    assert "ccxt-kraken has no candles of 7m" in fails(capsys, *words)


def test_an_unknown_symbol_of_a_service(capsys, tmp_path):
    with BybitServer() as server:
        server.add("BTCUSDT", synthetic(50))
        words = ("--interval", "1h", "--store", tmp_path / "s", "--base-url", server.url)
        assert "NOSUCH" in fails(capsys, "fetch", "bybit", "--symbols", "BTCUSDT,NOSUCH", *words)
    words = ("--interval", "1d", "--store", tmp_path / "s")
    assert "did you mean 'NASDAQ'" in fails(capsys, "fetch", "sample", "--symbols", "NASDAC", *words)
    assert "SIM" in fails(
        capsys, "fetch", "simulate", "--symbols", "BTCUSDT", "--until", "2024-01-01", *words
    )


def stop(*_, **__):
    raise KeyboardInterrupt


def stopped(capsys, *words):
    capsys.readouterr()
    code = execute([*map(str, words), "--quiet"])
    [line] = capsys.readouterr().err.strip().splitlines()
    assert code == 130
    return line


def test_ctrl_c_in_training_says_how_to_go_on(capsys, made, monkeypatch, tmp_path):
    monkeypatch.setattr("longtape.training.loop.Trainer._step", stop)
    words = ("train", made.root.parent / "e.yaml", "--out", tmp_path / "out", "-o", "training.epochs=1")
    line = stopped(capsys, *words)
    assert line.startswith(f"longtape: stopped: {tmp_path}/out holds what was trained so far")
    assert "--resume" in line


def test_ctrl_c_in_an_import_says_what_is_stored(capsys, monkeypatch, tmp_path):
    for name in ("AAA", "BBB"):
        candle_frame(50).write_parquet(tmp_path / f"{name}.parquet")
    append, calls = Store.append, []

    def second(self, bars, **options):
        calls.append(bars)
        return append(self, bars, **options) if len(calls) == 1 else stop()

    monkeypatch.setattr(Store, "append", second)
    line = stopped(
        capsys, "import", f"{tmp_path}/{{symbol}}.parquet", "--interval", "1h", "--store", tmp_path / "s"
    )
    assert line == (
        "longtape: stopped: 1 series are stored, up to AAA; run the same command again, and only what is missing is"
        " added"
    )


def test_ctrl_c_in_a_fetch_says_what_is_stored(capsys, monkeypatch, tmp_path):
    import longtape.market.fetch as module

    monkeypatch.setattr(module, "wait", stop)
    with BybitServer() as server:
        server.add("BTCUSDT", synthetic(50))
        words = ("--interval", "1h", "--store", tmp_path / "s", "--base-url", server.url)
        line = stopped(capsys, "fetch", "bybit", "--symbols", "BTCUSDT", *words)
    assert line.endswith("stored; run the same command again, and only what is missing is fetched")


def test_resuming_with_other_options_names_the_key(capsys, made, monkeypatch, tmp_path):
    words = ("train", made.root.parent / "e.yaml", "--out", tmp_path / "out", "-o", "training.epochs=1")
    with monkeypatch.context() as patch:
        patch.setattr("longtape.training.loop.Trainer._step", stop)
        stopped(capsys, *words)
    line = fails(capsys, *words, "-o", "training.learning_rate=0.5", "--resume")
    assert "training.learning_rate = " in line
    assert "is asked to go on with 0.5" in line


@pytest.mark.parametrize("words", [[], ["data"], ["bench"], ["-h"], ["data", "-h"], ["import", "-h"]])
def test_help_is_help(capsys, words):
    assert execute(words) == 0
    said = capsys.readouterr()
    assert said.out.startswith("Usage: longtape")
    assert said.err == ""


def test_version(capsys):
    import longtape

    assert execute(["--version"]) == 0
    assert capsys.readouterr().out == f"longtape {longtape.__version__}\n"


def test_the_shell_completes():
    settings = {
        **os.environ,
        "_LONGTAPE_COMPLETE": "complete_bash",
        "COMP_WORDS": "longtape da",
        "COMP_CWORD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", "from longtape.cli.main import main; main()"],
        env=settings, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.split() == ["data"]


# --- data that grow and differ ---


def test_newer_candles_are_forecast_and_traded_and_nothing_is_kept(capsys, made, tmp_path):
    candle_frame(1000).write_csv(tmp_path / "newer.csv", datetime_format="%Y-%m-%dT%H:%M:%SZ")
    before = {path: path.stat().st_mtime_ns for path in made.root.rglob("*")}
    assert (
        execute(
            [
                "forecast",
                str(made.root),
                "--data",
                str(tmp_path / "newer.csv"),
                "--out",
                str(tmp_path / "f.csv"),
            ]
        )
        == 0
    )
    newest = pl.read_csv(tmp_path / "f.csv")["timestamp"][0]
    assert newest.startswith(str(candle_frame(1000)["timestamp"][-1])[:10])
    assert execute(["backtest", str(made.root), "--data", str(tmp_path / "newer.csv")]) == 0
    said = capsys.readouterr()
    assert "the data have changed since training" in said.err
    assert "Verdict" in said.out
    assert (
        execute(
            [
                "report",
                str(made.root),
                "--data",
                str(tmp_path / "newer.csv"),
                "--out",
                str(tmp_path / "n.html"),
            ]
        )
        == 0
    )
    assert "Evidence" in (tmp_path / "n.html").read_text()
    assert {path: path.stat().st_mtime_ns for path in made.root.rglob("*")} == before
    line = fails(capsys, "report", made.root, "--data", tmp_path / "newer.csv")
    assert "--out" in line.splitlines()[-1]


def test_options_change_the_account_and_not_the_model(capsys, made):
    assert execute(["backtest", str(made.root), "-o", "backtest.costs.fee=0.01", "--quiet"]) == 0
    assert "fee 1%" in capsys.readouterr().out
    assert load_run(made.root).experiment.backtest.costs.fee == 0.001
    for key in (
        "model.lookback=8",
        "features=[close]",
        "backtest.traded=0.5",
        "data.symbols=[X]",
        "missing=mask",
    ):
        line = fails(capsys, "backtest", made.root, "-o", key)
        assert f"{key.partition('=')[0]}: belongs to the trained model" in line
    assert "has no effect on a forecast" in fails(capsys, "forecast", made.root, "-o", "backtest.costs.fee=0")
    assert "no such file" in fails(capsys, "forecast", made.root, "--data", "nowhere.csv")


def test_a_store_that_has_grown_past_a_gap_names_it(capsys, tmp_path):
    store = Store(tmp_path / "store")
    store.append(make_bars(0, 900))
    data = {"source": "store", "store": str(tmp_path / "store"), "symbols": ["BTCUSDT"], "interval": "1h"}
    document = {**DOCUMENT, "data": data, "backtest": {"costs": {"fee": 0.001, "funding": "excluded"}}}
    grown = run(parse_experiment(document, "test.yaml"), tmp_path / "run")
    store.append(make_bars(905, 100))
    line = fails(capsys, "backtest", grown.root)
    assert "5 in a row to 2024-02-07 16:00Z" in line
    assert "longtape data repair" in line
    assert execute(["backtest", str(grown.root), "-o", "missing=forward_fill", "--quiet"]) == 0


def test_paths_of_mistakes_leave_nothing(tmp_path):
    assert list(Path(tmp_path).iterdir()) == []


def test_ctrl_c_in_a_walk_forward_says_how_to_go_on(capsys, made, monkeypatch, tmp_path):
    monkeypatch.setattr("longtape.workflow.pipeline.ExperimentPipeline.fit_in", stop)
    words = ("walk-forward", made.root.parent / "e.yaml", "--folds", "2", "--out", tmp_path / "folds")
    line = stopped(capsys, *words)
    assert line.startswith(f"longtape: stopped: {tmp_path}/folds/jobs holds 0 of 2 jobs")
    assert "--resume" in line


def test_a_run_that_can_have_no_folder_is_one_line(capsys, made, tmp_path, monkeypatch):
    def refuse(self, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    document = made.root.parent / "e.yaml"
    monkeypatch.setattr(Path, "mkdir", refuse)
    line = fails(capsys, "train", document, "--out", tmp_path / "run")
    assert f"{tmp_path}/run: cannot be written (Read-only file system); name another place" in line
