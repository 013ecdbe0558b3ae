"""What cannot be is doubted before it is believed: stamps that do not agree, figures that nobody has, closes alone."""

import numpy as np
import polars as pl
import pytest

from longtape.core.clock import HOUR
from longtape.core.errors import UserError
from longtape.core.files import read_json
from longtape.experiment import parse_experiment
from longtape.market.bars import TIME_TYPE
from longtape.workflow import run, train
from tests.candles import candle_frame

DOCUMENT = {
    "data": {"source": "file", "symbols": ["AAA", "BBB"], "interval": "1h"},
    "features": ["log_return"],
    "targets": ["return(1)"],
    "symbols": ["AAA"],
    "model": {"lookback": 16, "attention": "flash", "d_model": 8, "n_heads": 2, "n_layers": 1},
    "training": {"epochs": 0},
    "audit": False,
}


def experiment(folder, **changes):
    document = {**DOCUMENT, "data": {**DOCUMENT["data"], "path": str(folder / "{symbol}.parquet")}}
    for key, value in changes.items():
        document[key] = {**document.get(key, {}), **value} if isinstance(value, dict) else value
    return parse_experiment(document, "test.yaml")


@pytest.fixture
def mixed(tmp_path):
    """Two markets that agree, the second stamped at its close: its bar of one hour later is the first one's of now."""
    frame = candle_frame(900)
    frame.write_parquet(tmp_path / "AAA.parquet")
    noise = pl.Series(np.exp(np.random.default_rng(1).normal(0, 0.0003, 900).cumsum()))
    other = frame.with_columns(pl.col(name) * noise for name in ("open", "high", "low", "close"))
    earlier = pl.Series("timestamp", frame["timestamp"].dt.timestamp("ms") - HOUR).cast(TIME_TYPE)
    other.with_columns(earlier).write_parquet(tmp_path / "BBB.parquet")
    return tmp_path


def test_symbols_stamped_in_two_ways_are_said_before_training_and_the_verdict_doubts(mixed, capsys):
    described = experiment(mixed, features=["log_return", 'of("BBB").log_return'])
    made = run(described, mixed / "out")
    said = capsys.readouterr().err
    assert "warning: returns of file/spot/AAA agree with those of file/spot/BBB one bar of 1h before" in said
    verdict = read_json(made.path("metrics.json"))["verdict"]
    assert verdict[0].startswith("Implausible: Sharpe ")
    assert "R² 1.00 of AAA return(1)" in verdict[0]
    assert "stamped at its close" in verdict[1]
    page = made.path("report.html").read_text()
    assert page.index("Implausible: Sharpe") < page.index("Gained after costs")


def test_closes_alone_are_traded_at_the_next_close(tmp_path):
    candle_frame(900).select("timestamp", "close").write_parquet(tmp_path / "AAA.parquet")
    data = {"data": {"symbols": ["AAA"]}}
    with pytest.raises(UserError, match=r"no opens to fill at; name backtest.fill: next_close"):
        train(experiment(tmp_path, **data), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    made = run(experiment(tmp_path, **data, backtest={"fill": "next_close"}, audit=True), tmp_path / "out")
    assert "its source reports no volume" in made.results_table()
    assert made.path("report.html").exists()
    assert read_json(made.path("audit.json"))["passed"]
    with pytest.raises(UserError, match="no column 'high'"):
        train(
            experiment(tmp_path, **data, features=["range"], backtest={"fill": "next_close"}), tmp_path / "no"
        )


def test_an_experiment_reads_a_long_table_and_files_that_need_a_word(tmp_path):
    frame = candle_frame(900)
    later = frame.with_columns(pl.col("timestamp") + pl.duration(hours=1))
    long = pl.concat([later.with_columns(name=pl.lit(s)) for s in ("AAA", "BBB")])
    long.write_parquet(tmp_path / "all.parquet")
    data = {"path": str(tmp_path / "all.parquet"), "read": {"stamp": "close", "symbol_column": "name"}}
    made = train(experiment(tmp_path, data=data), tmp_path / "out")
    assert made.data.bars[1].timestamps[0] == frame["timestamp"].dt.timestamp("ms")[0]
    with pytest.raises(UserError, match="unknown symbol 'CCC'"):
        train(experiment(tmp_path, data={**data, "symbols": ["AAA", "CCC"]}), tmp_path / "no")
    with pytest.raises(UserError, match="read has no effect with source 'store'"):
        experiment(tmp_path, data={"source": "store", "store": "x", "path": None, "read": {"stamp": "close"}})
