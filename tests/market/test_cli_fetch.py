"""`longtape fetch` and `longtape import`: exit codes, one line for a mistake, and the way into the store."""

import polars as pl
import pytest
import typer
from typer.testing import CliRunner

from longtape.cli.fetch import fetch
from longtape.cli.import_file import import_file
from longtape.core.clock import HOUR
from longtape.core.errors import LongtapeError
from longtape.market.store import Store
from tests.market import bybit_server as wire
from tests.market.bybit_server import START, BybitServer, synthetic
from tests.market.event_data import book_frame
from tests.shared_data import shared

app = typer.Typer()
app.command("fetch")(fetch)
app.command("import")(import_file)
NAMES = ["timestamp", "open", "high", "low", "close", "volume"]


def run(*arguments):
    """Exit code and what was said: errors become exit codes as in the command line's own entry point."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    error = result.exception
    if isinstance(error, LongtapeError):
        return error.exit_code, str(error)
    if error is not None and not isinstance(error, SystemExit):
        raise error
    return result.exit_code, result.output


@pytest.fixture
def server():
    with BybitServer() as running:
        running.add("BTCUSDT", synthetic(1_500))
        running.add("ETHUSDT", synthetic(1_500, seed=1))
        yield running


@pytest.fixture
def fetch_(server, tmp_path):
    def call(*more, symbols="BTCUSDT,ETHUSDT", url=server.url):
        return run(
            "fetch", "bybit", "--symbols", symbols, "--store", tmp_path / "store", "--base-url", url, *more
        )

    return call


def test_fetch_takes_since_and_not_until(fetch_, tmp_path):
    code, said = fetch_(
        "--interval", "1h", "--since", "2024-01-01", "--until", "2024-02-01", "--category", "linear"
    )
    assert code == 0
    assert "bybit/linear/BTCUSDT: 744 new candles; stored 2024-01-01 00:00Z to 2024-01-31 23:00Z" in said
    frame = Store(tmp_path / "store").read("ETHUSDT", "1h").frame
    assert frame.select(NAMES).equals(synthetic(1_500, seed=1)[:744])


def test_fetch_tells_gaps(server, fetch_):
    server.add("BTCUSDT", synthetic(1_500).filter(~pl.int_range(pl.len()).is_between(100, 104)))
    code, said = fetch_("--interval", "1h", "--since", "2024-01-01", symbols="BTCUSDT")
    assert code == 0
    assert "1 gaps, 5 missing, first at 2024-01-05 04:00Z" in said


def test_mistakes_have_exit_code_2_and_are_named(fetch_):
    for more, symbols, words in [
        (["--interval", "1h", "--since", "2024-01-01"], "BTCUSDT,NOSUCH", "NOSUCH"),
        (["--interval", "7m", "--since", "2024-01-01"], "BTCUSDT", "7m"),
        (["--interval", "1h", "--since", "yesterday"], "BTCUSDT", "--since"),
        (["--interval", "1h", "--since", "2024-02-01", "--until", "2024-01-01"], "BTCUSDT", "--until"),
        (["--since", "2024-01-01"], "BTCUSDT", "--interval"),
        (["--interval", "1h", "--kind", "quotes"], "BTCUSDT", "quotes"),
        (["--interval", "1h", "--category", "option"], "BTCUSDT", "option"),
        (["--interval", "1h"], " , ", "no symbol"),
        (["--interval", "1h"], "../../etc", "etc"),
    ]:
        code, said = fetch_(*more, symbols=symbols)
        assert (code, words in said) == (2, True), said
    code, said = run("fetch", "bybitt", "--symbols", "BTCUSDT", "--store", "x", "--interval", "1h")
    assert (code, "did you mean 'bybit'" in said) == (2, True)
    assert run("fetch", "ccxt", "--symbols", "BTCUSDT", "--store", "x", "--interval", "1h")[0] == 2
    assert (
        run("fetch", "sample", "--symbols", "SP500", "--store", "x", "--base-url", "http://127.0.0.1:9")[0]
        == 2
    )


def test_a_service_out_of_reach_has_exit_code_1(fetch_, monkeypatch):
    monkeypatch.setattr("longtape.market.http.LONGEST_BACKOFF", 0.0)
    code, said = fetch_("--interval", "1h", "--since", "2024-01-01", url="http://127.0.0.1:9")
    assert code == 1
    assert "127.0.0.1:9" in said
    assert "out of reach" in said


def test_a_broken_fetch_is_taken_up_again(server, fetch_, tmp_path, monkeypatch):
    monkeypatch.setattr("longtape.market.http.LONGEST_BACKOFF", 0.0)
    server.fail(*[wire.status(502)] * 8, after=1)
    more = ("--interval", "1h", "--since", "2024-01-01")
    code, said = fetch_(*more, symbols="BTCUSDT")
    assert (code, "HTTP 502" in said) == (1, True)
    assert len(Store(tmp_path / "store").read("BTCUSDT", "1h")) == 1_000
    assert fetch_(*more, symbols="BTCUSDT")[0] == 0
    assert Store(tmp_path / "store").read("BTCUSDT", "1h").frame.select(NAMES).equals(synthetic(1_500)[:-1])


def test_sample_days_go_into_the_store(tmp_path):
    code, said = run(
        "fetch", "sample", "--symbols", "SP500,NASDAQ", "--interval", "1d", "--store", tmp_path / "store"
    )
    assert code == 0, said
    assert len(Store(tmp_path / "store").read("NASDAQ", "1d")) == 5_031


def test_import_candles(tmp_path):
    candles = synthetic(100)
    file = tmp_path / "btc.csv"
    candles.rename({"timestamp": "when"}).with_columns(then=pl.col("when")).write_csv(file)
    more = ("--symbol", "BTCUSDT", "--interval", "1h", "--store", tmp_path / "store")
    code, said = run("import", file, *more)
    assert (code, "'timestamp' is missing" in said, "--time-column" in said) == (2, True, True)
    code, said = run(
        "import", file, *more, "--time-column", "when", "--category", "linear", "--source", "bybit"
    )
    assert code == 0
    assert "bybit/linear/BTCUSDT\n  rows      100: 100 new candles" in said
    assert Store(tmp_path / "store").read("BTCUSDT", "1h").frame.equals(candles)
    code, said = run(
        "import", file, *more, "--time-column", "when", "--category", "linear", "--source", "bybit"
    )
    assert "0 new candles, 100 already there" in said
    candles.with_columns(close=pl.col("close") + 0.1, high=pl.col("high") + 0.1).write_parquet(
        tmp_path / "b.parquet"
    )
    code, said = run("import", tmp_path / "b.parquet", *more, "--category", "linear", "--source", "bybit")
    assert "100 differ from the stored ones, which were kept" in said


def test_import_trades_and_books(tmp_path):
    trades = tmp_path / "BTCUSDT2024-01-01.csv"
    trades.write_text(
        "timestamp,symbol,side,size,price,tickDirection,trdMatchID,grossValue,homeNotional,foreignNotional\n"
        "1704067200.0647,BTCUSDT,Sell,0.005,42324.9,ZeroMinusTick,a-1,2.1e10,0.005,211.6\n"
        "1704067200.1,BTCUSDT,Buy,0.1,42325,PlusTick,a-2,4.2e11,0.1,4232.5\n"
    )
    store = tmp_path / "store"
    code, said = run("import", trades, "--symbol", "BTCUSDT", "--kind", "trades", "--store", store)
    assert (code, "2 new trades" in said) == (0, True), said
    frame = Store(store).read_table("trades", "BTCUSDT")
    assert frame.select("price", "size", "id", "side").rows() == [
        (42324.9, 0.005, "a-1", "sell"), (42325.0, 0.1, "a-2", "buy")]  # fmt: skip
    assert frame["timestamp"].dt.timestamp("us").to_list() == [1704067200064700, 1704067200100000]
    assert (
        run(
            "import", trades, "--symbol", "BTCUSDT", "--interval", "1h", "--kind", "trades", "--store", store
        )[0]
        == 2
    )
    assert run("import", trades, "--symbol", "BTCUSDT", "--store", store)[0] == 2
    assert START % HOUR == 0


def test_import_books_of_parquet_and_of_a_log(tmp_path):
    book_frame().write_parquet(tmp_path / "books.parquet")
    words = ("--kind", "books", "--symbol", "XRPUSDT", "--source", "bybit", "--store", tmp_path / "store")
    code, said = run("import", tmp_path / "books.parquet", *words, "--category", "perp")
    assert (code, "unknown category 'perp'; did you mean 'linear'?" in said) == (2, True)
    code, said = run("import", tmp_path / "books.parquet", *words, "--category", "linear")
    assert (code, "bybit/linear/XRPUSDT: 6 new books" in said) == (0, True), said
    assert Store(tmp_path / "store").read_books("XRPUSDT").frame.equals(book_frame())
    archive = shared("lob/bybit_linear_XRPUSDT_2024-12-01_ob500.data.zip")
    code, said = run("import", archive, *words, "--category", "spot")
    assert (code, "bybit/spot/XRPUSDT: 50 new books" in said) == (0, True), said
    assert Store(tmp_path / "store").read_books("bybit/spot/XRPUSDT").depth == 20


def test_an_import_ends_with_one_block(tmp_path):
    candles = synthetic(400)[[*range(100), *range(110, 400)]].with_columns(volume=pl.lit(0.0))
    file = tmp_path / "x.csv"
    candles.rename({"close": "last"}).write_csv(file, datetime_format="%Y-%m-%d %H:%M")
    code, said = run("import", file, "--symbol", "X", "--interval", "1h", "--store", tmp_path / "s")
    assert code == 0, said
    lines = dict(line.split(maxsplit=1) for line in said.splitlines()[1:])
    assert said.splitlines()[0] == "file/spot/X"
    assert lines["rows"] == "390: 390 new candles"
    assert lines["span"].endswith(" to 2024-01-17 15:00Z")
    assert lines["interval"] == "1h"
    assert lines["gaps"] == "1, 10 bars missing, first 2024-01-05 04:00Z"
    assert "close = last" in lines["columns"]
    assert lines["calendar"] == "24/7"
    assert lines["stamp"] == "times are those at which bars open"
    for note in ("volume is 0 throughout: taken as not reported", "times have no zone: taken as UTC"):
        assert note in said


def test_an_import_of_many_symbols_is_one_block(tmp_path):
    long = pl.concat([synthetic(60, seed=i).with_columns(tic=pl.lit(f"S{i}")) for i in range(9)])
    long.write_parquet(tmp_path / "x.parquet")
    code, said = run(
        "import",
        tmp_path / "x.parquet",
        "--symbol-column",
        "tic",
        "--interval",
        "1h",
        "--store",
        tmp_path / "s",
    )
    assert code == 0, said
    assert said.startswith("9 series: file/spot/S0, file/spot/S1")
    assert "rows      540: 540 new candles" in said
    assert len(Store(tmp_path / "s").entries()) == 9


def test_what_is_implausible_is_said_at_once(tmp_path):
    high = pl.when(pl.int_range(pl.len()) == 7).then(pl.col("high") * 100).otherwise("high")
    synthetic(60).with_columns(high.alias("high")).write_parquet(tmp_path / "x.parquet")
    words = ("--symbol", "X", "--interval", "1h", "--store", tmp_path / "s")
    code, said = run("import", tmp_path / "x.parquet", *words)
    assert code == 0
    assert "error     implausible: a price 10 times beyond" in said
    code, said = run("import", tmp_path / "x.parquet", "--symbol", "X", "--store", tmp_path / "s")
    assert (code, "60 minutes apart, so perhaps --interval 1h" in said) == (2, True)
    code, said = run("import", tmp_path / "x.parquet", *words, "--calendar", "XNYSE")
    assert (code, "unknown calendar 'XNYSE'; did you mean 'XNYS'" in said) == (2, True)
