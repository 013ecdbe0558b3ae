"""`longtape init`: a file for the user's own candles that runs as it is written."""

import numpy as np
import polars as pl
import pytest
import yaml

from longtape.cli.main import execute
from longtape.core.clock import Interval
from longtape.experiment import load_experiment
from longtape.workflow import run
from longtape.workflow.init import horizon_of, init, interval_of, lookback_of
from tests.candles import candle_frame
from tests.workflow.test_reference import mistakes, plain

DAY = 86_400_000


@pytest.fixture
def folder(tmp_path):
    candle_frame(900).write_csv(tmp_path / "btcusdt_1h.csv")
    return tmp_path


def test_the_file_says_what_it_saw_and_runs_as_it_is_written(folder, capsys):
    out = folder / "mine.yaml"
    assert execute(["init", "--from", str(folder / "btcusdt_1h.csv"), "--out", str(out)]) == 0
    assert "BTCUSDT: 900 bars of 1h, 2020-09-13 00:00Z to 2020-10-20 11:00Z" in capsys.readouterr().out
    text = out.read_text("utf-8")
    assert text.startswith("# yaml-language-server: $schema=")
    assert mistakes(plain(text)) == []
    made = load_experiment(out)
    assert (made.data.symbols, made.data.interval, made.data.calendar) == (["BTCUSDT"], "1h", "24/7")
    assert plain(text)["data"]["path"] == "btcusdt_1h.csv"  # beside it
    assert made.model.lookback == 32
    assert made.targets == ["return(24)", "volatility(24)"]
    assert str(made.split.train_until) == "2020-10-09T06:00"
    finished = run(out, folder / "run", overrides=["training.epochs=1", "training.stride=8"])
    assert finished.forecast()["symbol"].unique().to_list() == ["BTCUSDT"]
    assert (folder / "run" / "report.html").exists()


def test_days_without_weekends_gaps_and_columns_that_are_not_there(folder):
    days = np.arange(0, 900) * DAY + 1_600_041_600_000
    frame = candle_frame(900).with_columns(timestamp=pl.Series(days).cast(pl.Datetime("ms", "UTC")))
    weekdays = frame.filter(pl.col("timestamp").dt.weekday() < 6).filter(pl.int_range(pl.len()) != 300)
    weekdays.select("timestamp", "close").write_csv(folder / "ACME.csv")
    said = init(folder / "ACME.csv", folder / "acme.yaml", category="stock")
    assert "ACME: 643 bars of 1d" in said
    made = load_experiment(folder / "acme.yaml")
    assert made.data.calendar == "24/5"
    assert made.missing == "forward_fill"
    assert "missing while the market was open: 1." in (folder / "acme.yaml").read_text("utf-8")
    assert made.features == [
        "log_return",
        "volatility(20)",
        "volatility(50)",
        "momentum(20)",
        "weekday",
    ]
    assert made.targets == ["return(5)", "volatility(5)"]
    assert made.backtest.fill == "next_close"


def test_a_table_of_several_symbols_and_how_it_is_written(folder):
    frames = [
        candle_frame(700, seed).with_columns(ticker=pl.lit(name)) for seed, name in enumerate(("A/B", "C"))
    ]
    pl.concat(frames).write_csv(folder / "all.csv")
    words = ["-o", "data.read.symbol_column=ticker", "-o", "data.read.stamp=close", "--category", "linear"]
    assert (
        execute(["init", "--from", str(folder / "all.csv"), "--out", str(folder / "all.yaml"), *words]) == 0
    )
    made = load_experiment(folder / "all.yaml")
    assert made.data.symbols == ["AB", "C"]
    assert made.data.read.stamp == "close"
    assert made.backtest.costs.funding == "excluded"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--from", "none.csv"], "no such file"),
        (["--from", "few.csv"], "240 are the fewest"),
        (["--from", "btcusdt_1h.csv", "-o", "model.lookback=4"], "says how the file is written"),
        (["--from", "btcusdt_1h.csv", "--interval", "7q"], "interval '7q'"),
        (["--from", "btcusdt_1h.csv", "--out", "there.yaml"], "is there already"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(folder, words, why, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    candle_frame(50).write_csv("few.csv")
    (folder / "there.yaml").write_text("mine")
    assert execute(["init", "--out", "new.yaml", *words]) == 2
    assert why in capsys.readouterr().err
    assert not (folder / "new.yaml").exists()
    assert (folder / "there.yaml").read_text() == "mine"


def test_lengths_follow_from_the_bars():
    assert [lookback_of(n) for n in (240, 700, 3_000, 10**6)] == [16, 32, 128, 512]
    horizons = {"1m": 60, "5m": 12, "15m": 96, "1h": 24, "4h": 6, "12h": 2, "1d": 5, "1w": 4, "1M": 4}
    assert {name: horizon_of(Interval.parse(name)) for name in horizons} == horizons
    months = np.array(["2020-01", "2020-02", "2020-03", "2020-04"], "datetime64[ms]").astype(np.int64)
    assert interval_of(months).name == "1M"


def test_values_are_written_as_yaml_reads_them(folder):
    candle_frame(400).write_csv(folder / "0123: x.csv")
    init(folder / "0123: x.csv", folder / "odd.yaml", symbol="0123")
    assert yaml.safe_load((folder / "odd.yaml").read_text("utf-8"))["data"]["symbols"] == ["0123"]
