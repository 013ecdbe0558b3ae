"""The section `data` of an experiment: it reads what it names; what has no effect or cannot be is refused before."""

import re
from pathlib import Path

import polars as pl
import pytest
import yaml
from pydantic import ValidationError

from longtape.core.errors import UserError
from longtape.core.instrument import CATEGORIES, Instrument
from longtape.experiment import Experiment, parse_experiment
from longtape.market.bars import Bars
from longtape.market.book_files import read_books
from longtape.market.books import Books
from longtape.market.load import DataConfig, describe, load
from longtape.market.store import Store
from longtape.market.trade_files import read_trades
from longtape.market.trades import Trades
from tests.market.event_data import XRP, book_frame, trade_frame, with_cell
from tests.market.store_data import BTC, make_bars
from tests.shared_data import shared

RECORDED = "lob/binance_perp_BTCUSDT_2024-08-08_top20.parquet"
TRADES = "trades/BTCUSDT_binance_perp_2024-08-08.parquet"


@pytest.fixture
def store(tmp_path):
    """Candles, books and trades of one perpetual each."""
    made = Store(tmp_path / "store")
    made.append(make_bars(0, 48))
    made.append_table("books", XRP, book_frame())
    made.append_table("trades", XRP, trade_frame())
    return made


def stored(store: Store, **words) -> DataConfig:
    return DataConfig(source="store", store=store.root, **words)


def one_line(words: dict) -> str:
    """What the whole experiment says about such a section."""
    document = {"data": words, "features": ["close"], "targets": ["return(1)"]}
    with pytest.raises(UserError) as caught:
        parse_experiment(document, "e.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


FILE = {"source": "file", "path": "x.parquet", "symbols": ["BTCUSDT"]}
STORE = {"source": "store", "store": "somewhere", "symbols": ["BTCUSDT"]}
BOOKS, TAPE = {"kind": "books"}, {"kind": "trades"}
NO_EFFECT = [
    ({"calendar": "XNYS"}, "calendar has no effect with source 'sample', only with file"),
    ({"category": "index"}, "category has no effect with source 'sample', only with file and store"),
    ({"path": "x.csv"}, "path has no effect with source 'sample'"),
    ({"store": "x"}, "store has no effect with source 'sample'"),
    ({"store_source": "bybit"}, "store_source has no effect with source 'sample'"),
    ({"funding_path": "f.csv"}, "funding_path has no effect with source 'sample'"),
    ({**STORE, "calendar": "XNYS"}, "calendar has no effect with source 'store', only with file"),
    ({**STORE, "path": "x.csv"}, "path has no effect with source 'store'"),
    ({**FILE, "store": "x"}, "store has no effect with source 'file'"),
    ({**FILE, "store_source": "bybit"}, "store_source has no effect with source 'file'"),
    ({**FILE, "funding_path": "f.csv"}, "funding_path has no effect with category 'spot'"),
    ({**STORE, "category": "spot", "funding_path": "f.csv"}, "funding_path has no effect with category 'spot'"),
    ({**FILE, **BOOKS, "interval": "1h"}, "interval has no effect with kind 'books', only with candles"),
    ({**STORE, **TAPE, "interval": "1d"}, "interval has no effect with kind 'trades'"),
    ({**FILE, **TAPE, "drop_last": True}, "drop_last has no effect with kind 'trades'"),
    ({**FILE, "depth": 5}, "depth has no effect with kind 'candles', only with books"),
    ({**FILE, **TAPE, "depth": 5}, "depth has no effect with kind 'trades'"),
]  # fmt: skip
CANNOT_BE = [
    ({"source": "file", "path": "x.parquet"}, "source 'file' needs the key 'symbols'"),
    ({"symbols": []}, "source 'sample' needs the key 'symbols'"),
    ({"source": "file", "symbols": ["A"]}, "source 'file' needs the key 'path'"),
    ({"source": "store", "symbols": ["A"]}, "source 'store' needs the key 'store'"),
    ({**FILE, "category": "perp"}, "unknown category 'perp'; did you mean 'linear'?"),
    ({**STORE, "category": "Futures"}, "unknown category 'Futures'; did you mean 'future'?"),
    ({**FILE, "category": "lineer"}, "unknown category 'lineer'; did you mean 'linear'?"),
    ({**FILE, "category": "xyzzy"}, "unknown category 'xyzzy'; known: crypto, etf"),
    ({**FILE, "calendar": "XNYZ"}, "unknown calendar 'XNYZ'; did you mean"),
    ({**FILE, "symbols": ["BTC/USDT"]}, "symbol 'BTC/USDT' may hold letters"),
    ({**STORE, "symbols": ["A", "B", "A"]}, "symbol 'A' is listed twice"),
    ({**STORE, **BOOKS, "symbols": ["A", "B"]}, "books are read of one symbol, not of 2"),
    ({**FILE, "interval": "1 hour"}, "interval '1 hour' is not understood"),
    ({**FILE, "since": "2024-01-02", "until": "2024-01-02"}, "is not before until"),
    ({**FILE, **BOOKS, "depth": 0}, "data.depth"),
    ({**FILE, "kind": "ticks"}, "data.kind"),
    ({"symbols": ["SP50"]}, "unknown sample 'SP50'; did you mean 'SP500'?"),
    ({"interval": "1h"}, "the samples are daily candles (1d), not of 1h"),
    ({"kind": "trades"}, "the samples are candles; kind 'trades' is for source file and store"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), NO_EFFECT + CANNOT_BE)
def test_what_cannot_be_is_refused_before_anything_is_read(words, message):
    said = one_line(words)
    assert said.startswith("e.yaml: data")
    assert message in said


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_category_may_be_named(category):
    assert DataConfig(**FILE, category=category).category == category


@pytest.mark.parametrize(
    "words", [{}, {**FILE, "calendar": "XNYS"}, {**STORE, **BOOKS, "depth": 5}, {**FILE, **TAPE}]
)
def test_the_written_document_is_read_again(words):
    made = Experiment(data=DataConfig(**words), features=["close"], targets=["return(1)"])
    assert parse_experiment(yaml.safe_load(made.to_yaml()), "e.yaml").data == made.data


def test_defaults_stand_where_they_have_an_effect():
    assert DataConfig().interval == "1d"
    found = DataConfig(**FILE)
    assert (found.interval, found.category, found.calendar) == ("1d", "spot", "24/7")
    found = DataConfig(**STORE, **BOOKS)
    assert (found.interval, found.category, found.calendar) == (None, None, None)


def test_a_relative_path_is_the_experiments(tmp_path):
    found = DataConfig(**FILE, category="linear", funding_path="f.csv").resolve_paths(tmp_path)
    assert (found.path, found.funding_path) == (str(tmp_path / "x.parquet"), str(tmp_path / "f.csv"))
    assert (
        DataConfig(source="store", store="s3://bucket", symbols=["A"]).resolve_paths(tmp_path).store
        == "s3://bucket"
    )


def test_candles_of_the_store(store):
    [bars] = load(
        stored(store, symbols=["BTCUSDT"], interval="60m", since="2024-01-01T02:00", drop_last=True)
    )
    assert isinstance(bars, Bars)
    assert bars.frame.equals(make_bars(2, 45).frame)
    assert bars.instrument == BTC
    assert load(stored(store, symbols=["BTCUSDT"], interval="1h"))[0].frame.equals(make_bars(0, 48).frame)
    with pytest.raises(UserError, match="no candles of BTCUSDT from 2024-01-02T23:00 until the last"):
        load(stored(store, symbols=["BTCUSDT"], interval="1h", since="2024-01-02T23:00", drop_last=True))
    with pytest.raises(UserError, match=r"BTCUSDT has no candles of 1d; there are bybit/linear/BTCUSDT 1h"):
        load(stored(store, symbols=["BTCUSDT"]))


def test_books_and_trades_of_the_store(store):
    [books] = load(stored(store, symbols=["XRPUSDT"], kind="books"))
    assert isinstance(books, Books)
    assert books.frame.equals(book_frame())
    [shallow] = load(stored(store, symbols=["XRPUSDT"], kind="books", depth=1))
    assert shallow.frame.equals(book_frame().select(book_frame().columns[:8]))
    [trades] = load(stored(store, symbols=["XRPUSDT"], kind="trades", until="2024-12-01T00:00:00.001"))
    assert isinstance(trades, Trades)
    assert trades.frame.equals(Trades.checked(XRP, trade_frame()).frame[:2])
    for words, message in [
        ({"kind": "books", "depth": 3}, "books are 2 levels deep, not 3"),
        ({"kind": "books", "since": "2025-01-01"}, "no books of XRPUSDT from 2025-01-01"),
        ({"kind": "trades", "until": "2024-12-01"}, "no trades of XRPUSDT from the first until 2024-12-01"),
    ]:
        with pytest.raises(UserError, match=message):
            load(stored(store, symbols=["XRPUSDT"], **words))
    with pytest.raises(UserError, match="unknown symbol 'BTCUSDT'; did you mean 'XRPUSDT'"):
        load(stored(store, symbols=["BTCUSDT"], kind="books"))


def test_the_store_names_the_instruments_without_reading_a_row(store, monkeypatch):
    monkeypatch.setattr(Store, "_decode", lambda *_: pytest.fail("a row was read"))
    assert describe(stored(store, symbols=["BTCUSDT"], interval="1h")) == [BTC]
    assert describe(stored(store, symbols=["XRPUSDT"], kind="trades")) == [XRP]
    with pytest.raises(UserError, match="did you mean 'BTCUSDT'"):
        describe(stored(store, symbols=["BTCUSD"], interval="1h"))


def test_files_name_their_instruments_as_they_are_read(tmp_path):
    make_bars(0, 48).frame.write_parquet(tmp_path / "BTCUSDT.parquet")
    config = DataConfig(
        source="file",
        path=str(tmp_path / "{symbol}.parquet"),
        symbols=["BTCUSDT"],
        interval="1h",
        category="inverse",
    )
    assert (
        describe(config)
        == [Instrument("file", "inverse", "BTCUSDT")]
        == [one.instrument for one in load(config)]
    )
    stock = DataConfig(source="file", path="x", symbols=["A", "B"][:1], category="stock", calendar="XNYS")
    assert describe(stock) == [Instrument("file", "stock", "A", calendar="XNYS")]
    assert describe(DataConfig())[0] == load(DataConfig())[0].instrument


@pytest.mark.parametrize("name", ["lob/raw/btcusdt_20240808.gz", RECORDED])
def test_recorded_books_by_section(name):
    config = DataConfig(
        source="file", path=str(shared(name)), symbols=["BTCUSDT"], kind="books", depth=10, category="linear",
        since="2024-08-08T23:55", until="2024-08-08T23:56",
    )  # fmt: skip
    [books] = load(config)
    assert isinstance(books, Books)
    [instrument] = describe(config)
    whole = read_books(shared(RECORDED), instrument, 10)
    assert books.instrument == instrument
    assert 500 < len(books) < 2_000
    assert books.fingerprint() == whole.between(1_723_161_300_000, 1_723_161_360_000).fingerprint()


def test_recorded_events_through_the_store_are_the_files(tmp_path):
    by_file = {"source": "file", "symbols": ["BTCUSDT"], "category": "linear"}
    store = Store(tmp_path / "store")
    for kind, name in (("books", RECORDED), ("trades", TRADES)):
        [first] = load(DataConfig(**by_file, kind=kind, path=str(shared(name))))
        store.append_table(kind, first.instrument, first.frame)
        [again] = load(stored(store, symbols=["BTCUSDT"], kind=kind))
        assert again.frame.equals(first.frame)
        assert again.fingerprint() == first.fingerprint()
        assert again.ids is not None
        assert again.ids.equals(first.ids)
    raw = read_trades(shared(TRADES))
    assert again.frame.select(raw.columns).equals(raw)


def test_a_file_of_trades_that_cannot_be_is_one_line(tmp_path):
    path = tmp_path / "t.parquet"
    with_cell(trade_frame(), "price", 2, -1.0).write_parquet(path)
    config = DataConfig(source="file", path=str(path), symbols=["XRPUSDT"], kind="trades")
    with pytest.raises(
        UserError, match=r"t\.parquet: row 3 \(2024-12-01 .*'price': a price must be above zero"
    ):
        load(config)
    trade_frame().with_columns(symbol=pl.lit("ETHUSDT")).write_parquet(path)
    with pytest.raises(UserError, match="holds trades of ETHUSDT, not of 'XRPUSDT' alone"):
        load(config)


def test_sections_are_frozen():
    with pytest.raises(ValidationError):
        DataConfig().kind = "books"


def test_the_sections_of_the_documentation_are_understood():
    page = (Path(__file__).parents[2] / "docs" / "sources.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert {DataConfig(**yaml.safe_load(block)["data"]).kind for block in blocks} == {
        "candles",
        "books",
        "trades",
    }
    assert all(f"`{name}`" in page for name in (*CATEGORIES, *DataConfig.model_fields))
