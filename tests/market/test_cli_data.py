"""`longtape data` lists, checks, repairs and exports, with the exit codes it promises."""

import json
import re

import polars as pl
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from longtape.cli.data import app
from longtape.core.clock import iso
from longtape.core.errors import CheckFailed, UserError
from longtape.core.instrument import Instrument
from longtape.market.bars import COLUMNS, Bars
from longtape.market.store import Store
from tests.candles import START, candle_frame
from tests.market.bybit_server import BybitServer, synthetic
from tests.market.store_data import BTC, HOUR, make_bars, make_trades
from tests.shared_data import shared


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    store.append(make_bars(0, 9000))
    return store


def data(*words: str):
    """Run `longtape data …`: (standard output, the error it ends with)."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.stdout, result.exception


def test_list(store):
    store.append_table("trades", BTC, make_trades(100))
    text, error = data("list", "--store", store.root)
    assert error is None
    lines = text.splitlines()
    assert lines[0].split() == ["series", "kind", "interval", "rows", "first", "last", "size"]
    assert lines[2].startswith(
        "bybit/linear/BTCUSDT  candles  1h        9,000  2024-01-01 00:00Z  2025-01-09 23:00Z"
    )
    assert "trades" in lines[3]
    found = json.loads(data("list", "--store", store.root, "--json")[0])
    assert [(s["kind"], s["interval"], s["rows"]) for s in found["series"]] == [
        ("candles", "1h", 9000),
        ("trades", None, 100),
    ]


def test_check_of_sound_data(store):
    text, error = data("check", "--store", store.root, "--json")
    assert error is None
    found = json.loads(text)
    assert found["ok"] is True
    assert (found["series"][0]["symbol"], found["series"][0]["gaps"]) == ("BTCUSDT", 0)


def test_check_that_finds_something_ends_with_one(store):
    store.append(
        Bars.checked(Instrument("bybit", "linear", "ETHUSDT"), HOUR, make_bars(0, 50).frame[[*range(20), 40]])
    )
    text, error = data("check", "--store", store.root)
    assert isinstance(error, CheckFailed)
    assert error.exit_code == 1
    assert str(error) == "1 of 2 series have errors"
    assert "gaps: bars are missing although the market was open (20 bars), first 2024-01-01 20:00Z" in text
    assert data("check", "--store", store.root, "--symbol", "BTCUSDT")[1] is None
    assert isinstance(data("check", "--store", store.root, "--json")[1], CheckFailed)


def test_outliers_do_not_set_the_exit_code(tmp_path):
    frame = make_bars(0, 300).frame.with_columns(
        pl.when(pl.int_range(300) == 50).then(pl.col(name) * 2).otherwise(pl.col(name)).alias(name)
        for name in ("open", "high", "low", "close")
    )
    store = Store(tmp_path)
    store.append(Bars.checked(BTC, HOUR, frame))
    text, error = data("check", "--store", store.root)
    assert error is None
    assert re.search(r"warning +2  outliers: ", text)


def test_check_names_a_damaged_file(store, tmp_path):
    path = tmp_path / "store/bybit/linear/BTCUSDT/1h/2024.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    text, error = data("check", "--store", store.root, "--json")
    assert isinstance(error, CheckFailed)
    [series] = json.loads(text)["series"]
    assert series["damaged"] == 1
    assert str(path) in series["findings"][0]["meaning"]
    assert "1 damaged" in data("list", "--store", store.root)[0]


def test_check_of_real_files():
    text, error = data(
        "check", shared("candles_1h_binance_spot/ETHUSDT.parquet"), "--interval", "1h", "--json"
    )
    assert isinstance(error, CheckFailed)
    [found] = json.loads(text)["series"]
    assert (found["gaps"], found["missing"], found["zero_volume"]) == (27, 122, 3)
    longest = max(found["gap_list"], key=lambda gap: gap["missing"])
    assert longest == {"first": "2018-02-08 01:00Z", "last": "2018-02-09 09:00Z", "missing": 33}
    assert data("check", shared("candles_1h_bybit_linear/BTCUSDT.parquet"), "--interval", "1h")[1] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("check",), "either a store"),
        (("check", "a.csv"), "--interval is needed"),
        (("check", "a.csv", "--interval", "1h"), "a.csv: no such file"),
        (("check", "--store", "{store}", "--symbol", "BTCUSD"), "did you mean 'BTCUSDT'"),
        (
            ("check", "--store", "{store}", "--interval", "5m"),
            "nothing stored fits; there are bybit/linear/BTCUSDT 1h",
        ),
        (
            ("export", "--store", "{store}", "--symbol", "X", "--interval", "1h", "--out", "o.parquet"),
            "unknown symbol",
        ),
        (
            ("export", "--store", "{store}", "--symbol", "BTCUSDT", "--out", "o.parquet"),
            "--interval is needed",
        ),
        (
            ("export", "--store", "{store}", "--symbol", "BTCUSDT", "--interval", "1h", "--out", "o.xls"),
            "ends in",
        ),
        (("repair", "--store", "{store}", "--from", "nowhere"), "unknown source 'nowhere'"),
    ],
)
def test_a_users_mistake_is_one_line(store, words, message):
    _, error = data(*(word.format(store=store.root) for word in words))
    assert isinstance(error, UserError)
    assert error.exit_code == 2
    assert message in str(error)
    assert "\n" not in str(error)


def test_export_of_candles(store, tmp_path):
    out = tmp_path / "btc.parquet"
    store.append(Bars.checked(BTC, HOUR, make_bars(9000, 5).frame.with_columns(turnover=pl.lit(1.0))))
    _, error = data("export", "--store", store.root, "--symbol", "BTCUSDT", "--interval", "1h", "--out", out)
    assert error is None
    schema = pq.read_schema(out)
    assert schema.names == list(COLUMNS)
    assert str(schema.field("timestamp").type) == "timestamp[ms, tz=UTC]"
    assert {str(schema.field(name).type) for name in COLUMNS[1:]} == {"double"}
    assert pl.read_parquet(out).equals(make_bars(0, 9005).frame)


def test_export_of_a_period_as_csv_and_of_trades(store, tmp_path):
    out = tmp_path / "btc.csv"
    period = ("--since", "2024-02-01", "--until", "2024-02-02")
    data("export", "--store", store.root, "--symbol", "BTCUSDT", "--interval", "1h", "--out", out, *period)
    lines = out.read_text().splitlines()
    assert (len(lines), lines[1][:24]) == (25, "2024-02-01T00:00:00.000Z")
    store.append_table("trades", BTC, make_trades(100))
    out = tmp_path / "trades.parquet"
    _, error = data("export", "--store", store.root, "--symbol", "BTCUSDT", "--kind", "trades", "--out", out)
    assert error is None
    assert pl.read_parquet(out).height == 100


def test_export_where_the_symbol_is_not_unique(store, tmp_path):
    store.append(make_bars(0, 7, instrument=Instrument("binance", "spot", "BTCUSDT")))
    words = (
        "export",
        "--store",
        store.root,
        "--symbol",
        "BTCUSDT",
        "--interval",
        "1h",
        "--out",
        tmp_path / "o.parquet",
    )
    assert "binance/spot/BTCUSDT 1h, bybit/linear/BTCUSDT 1h" in str(data(*words)[1])
    assert data(*words, "--source", "binance", "--category", "spot")[0].endswith("7 rows\n")


def test_repair(tmp_path):
    candles = synthetic(500)
    store = Store(tmp_path)
    store.append(Bars.checked(BTC, HOUR, candles[[*range(100), *range(150, 300)]]))
    with BybitServer() as server:
        server.add("BTCUSDT", candles)
        words = ("repair", "--store", store.root, "--base-url", server.url, "--json")
        text, error = data(*words)
        assert error is None
        [result] = json.loads(text)["series"]
        assert (result["missing_before"], result["fetched"], result["missing"]) == (50, 50, 0)
        server.add("BTCUSDT", candles[[*range(300), *range(350, 500)]])
        store.append(Bars.checked(BTC, HOUR, candles[400:450]))
        text, error = data(*words[:-1])
    assert isinstance(error, CheckFailed)
    assert str(error) == "50 bars are still missing: the service has none there"
    assert "2024-01-13 12:00Z" in text


def test_a_file_is_checked_as_it_is_written(tmp_path):
    """The options that say how a table is written are those of import, and a store has none of them."""
    frame = candle_frame(60).with_columns(pl.col("timestamp") + pl.duration(hours=1))
    path = tmp_path / "x.csv"
    frame.reverse().rename({"close": "schluss"}).write_csv(path, separator=";", decimal_comma=True)
    written = ("--newest-first", "--close-column", "schluss", "--decimal", ",")
    for stamp, opened in (((), START + HOUR.milliseconds), (("--stamp", "close"), START)):
        text, error = data("check", path, "--interval", "1h", *stamp, *written, "--json")
        assert error is None
        [report] = json.loads(text)["series"]
        assert report["ok"]
        assert report["rows"] == 60
        assert report["first"] == iso(opened)
    _, error = data("check", "--store", tmp_path / "store", "--stamp", "close")
    assert isinstance(error, UserError)
    assert "of files, not of a store" in str(error)
