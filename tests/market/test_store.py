"""The store keeps what it is given, once, and gives it back exactly."""

import json
import tempfile

import polars as pl
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtape.core.clock import Interval
from longtape.core.errors import LongtapeError, UserError
from longtape.core.instrument import Instrument
from longtape.market.bars import Bars
from longtape.market.books import Books
from longtape.market.partition import Appended, by_period, period_bounds
from longtape.market.store import Store
from longtape.market.trades import Trades
from tests.market.event_data import XRP, book_frame, trade_frame, with_cell
from tests.market.store_data import BTC, HOUR, START, make_bars, make_trades
from tests.shared_data import shared

SPOT = Instrument("binance", "spot", "BTCUSDT", calendar="24/5", multiplier=0.1, lot=0.001, tick=0.01)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def changed(bars: Bars, row: int, **values: float) -> Bars:
    frame = bars.frame.with_columns(
        pl.when(pl.int_range(pl.len()) == row).then(value).otherwise(pl.col(name)).alias(name)
        for name, value in values.items()
    )
    return Bars.checked(bars.instrument, bars.interval, frame)


def test_round_trip_is_exact_over_partitions(store):
    bars = make_bars(0, 3 * 8784)  # three years of hours
    assert store.append(bars) == Appended(added=len(bars))
    again = Store(store.root).read("BTCUSDT", "1h")
    assert again.frame.equals(bars.frame)
    assert again.fingerprint() == bars.fingerprint()
    assert again.instrument == BTC
    files = store.storage.names("bybit/linear/BTCUSDT/1h")[1]
    assert files == ["2024.parquet", "2025.parquet", "2026.parquet", "2027.parquet"]


@pytest.mark.parametrize(
    ("interval", "period"),
    [
        ("1s", "2024-01-01"),
        ("1m", "2024-01"),
        ("30m", "2024-01"),
        ("4h", "2024"),
        ("1d", "2020"),
        ("1M", "2020"),
    ],
)
def test_partition_follows_the_length_of_the_bar(store, interval, period):
    interval = Interval.parse(interval)
    store.append(make_bars(0, 1, interval))
    [series] = store.series()
    assert series.interval == interval
    assert store.storage.names(series.folder)[1] == [f"{period}.parquet"]
    first, end = period_bounds(period, series.unit)
    assert first <= START < end


def test_months_and_minutes_do_not_share_a_folder_where_case_is_not_told_apart(store):
    store.append(make_bars(0, 3, Interval.parse("1m")))
    store.append(make_bars(0, 1, Interval.parse("1M")))
    names = [series.name for series in store.series()]
    assert len({name.lower() for name in names}) == 2


def test_same_bars_again_are_duplicates_and_write_nothing(store):
    store.append(make_bars(0, 100))
    path = store.storage.path("bybit/linear/BTCUSDT/1h/2024.parquet")
    before = pafs.LocalFileSystem().get_file_info(path).mtime_ns
    assert store.append(make_bars(20, 50)) == Appended(duplicates=50)
    assert pafs.LocalFileSystem().get_file_info(path).mtime_ns == before


def test_overlap_before_behind_and_in_a_hole(store):
    store.append(make_bars(100, 50))
    store.append(make_bars(200, 50))
    assert store.append(make_bars(90, 170)) == Appended(added=70, duplicates=100)
    assert store.read("BTCUSDT", "1h").frame.equals(make_bars(90, 170).frame)


@pytest.mark.parametrize(("rule", "volume"), [("keep", None), ("replace", 77.0)])
def test_conflict_follows_the_rule_and_is_counted(store, rule, volume):
    bars = make_bars(0, 10)
    store.append(bars)
    other = changed(make_bars(5, 10), 2, volume=77.0)
    assert store.append(other, on_conflict=rule) == Appended(added=5, duplicates=4, conflicts=1)
    stored = store.read("BTCUSDT", "1h")
    assert len(stored) == 15
    assert stored.column("volume")[7] == (volume or bars.column("volume")[7])


def test_conflict_refused_changes_nothing(store):
    store.append(make_bars(0, 10))
    with pytest.raises(
        UserError, match=r"2024\.parquet: 2024-01-01 07:00:00Z is stored with other values \(1 such\)"
    ):
        store.append(changed(make_bars(5, 10), 2, close=100.1), on_conflict="refuse")
    assert store.read("BTCUSDT", "1h").frame.equals(make_bars(0, 10).frame)


def test_unknown_rule_is_refused(store):
    with pytest.raises(UserError, match="did you mean 'replace'"):
        store.append(make_bars(0, 10), on_conflict="replac")


def test_a_column_that_one_side_lacks_is_no_conflict(store):
    bars = make_bars(0, 10)
    store.append(bars)
    wider = Bars.checked(BTC, HOUR, make_bars(0, 12).frame.with_columns(turnover=pl.col("volume") * 100))
    assert store.append(wider) == Appended(added=2, duplicates=10)
    stored = store.read("BTCUSDT", "1h").frame
    assert stored["turnover"].null_count() == 10
    assert stored.drop("turnover").equals(make_bars(0, 12).frame)


pages = st.lists(
    st.tuples(
        st.integers(8700, 8850), st.integers(1, 60), st.integers(0, 2), st.sampled_from(["keep", "replace"])
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=25, deadline=None)
@given(pages)
def test_any_sequence_of_pages_equals_a_dictionary(pages):
    """The specification: a dictionary by time, over a change of year."""
    model: dict = {}
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        for first, n, version, rule in pages:
            frame = make_bars(first, n).frame.with_columns(pl.col("volume") + version)
            counts = {"added": 0, "duplicates": 0, "conflicts": 0}
            for row in frame.iter_rows():
                old = model.setdefault(row[0], row)
                new = old is row
                counts["added" if new else "duplicates" if old == row else "conflicts"] += 1
                if rule == "replace":
                    model[row[0]] = row
            assert store.append(Bars.checked(BTC, HOUR, frame), on_conflict=rule) == Appended(**counts)
        assert store.read("BTCUSDT", "1h").frame.rows() == [model[time] for time in sorted(model)]


def test_since_and_until_are_half_open_and_read_only_their_partitions(store):
    store.append(make_bars(0, 3 * 8784))
    with open(store.storage.path("bybit/linear/BTCUSDT/1h/2024.parquet"), "wb"):
        pass  # a partition outside of the period is not touched
    part = store.read("BTCUSDT", "1h", since="2025-02-01", until="2025-03-01")
    assert len(part) == 28 * 24
    assert part.frame["timestamp"][0].isoformat() == "2025-02-01T00:00:00+00:00"
    assert part.frame["timestamp"][-1].isoformat() == "2025-02-28T23:00:00+00:00"
    assert len(store.read("BTCUSDT", "1h", since="2031-01-01")) == 0


def test_bare_symbol_where_unique_else_the_choices(store):
    store.append(make_bars(0, 5))
    assert len(store.read("BTCUSDT", "1h")) == 5
    store.append(make_bars(0, 7, instrument=SPOT))
    with pytest.raises(UserError) as raised:
        store.read("BTCUSDT", "1h")
    assert "binance/spot/BTCUSDT 1h, bybit/linear/BTCUSDT 1h" in str(raised.value)
    assert raised.value.exit_code == 2
    assert len(store.read("BTCUSDT", "1h", category="spot")) == 7
    assert len(store.read("BTCUSDT", "1h", source="bybit")) == 5
    assert len(store.read("binance/spot/BTCUSDT", "1h")) == 7
    with pytest.raises(UserError, match="is stored as"):
        store.read("BTCUSDT", "1h", source="kraken")


def test_a_symbol_is_unique_per_interval(store):
    store.append(make_bars(0, 5))
    store.append(make_bars(0, 7, Interval.parse("1d"), SPOT))
    assert store.read("BTCUSDT", "1d").instrument == SPOT


def test_unknown_names_are_the_users_mistake(store):
    with pytest.raises(UserError, match="there is no such data"):
        store.read("BTCUSDT", "1h")
    store.append(make_bars(0, 5))
    with pytest.raises(UserError, match="did you mean 'BTCUSDT'"):
        store.read("BTCUSD", "1h")
    with pytest.raises(UserError, match="no candles of 4h; there are bybit/linear/BTCUSDT 1h"):
        store.read("BTCUSDT", "4h")
    with pytest.raises(UserError, match="unknown kind of data 'trade'"):
        store.read_table("trade", "BTCUSDT")
    with pytest.raises(UserError, match="unknown kind of candles"):
        store.append(make_bars(0, 5), kind="trades")


def test_resume_from_the_last_bar(store):
    assert store.last(BTC, HOUR) is None
    store.append(make_bars(0, 9000))
    assert store.last(BTC, HOUR) == START + 8999 * HOUR.milliseconds


def test_mark_candles_lie_beside_the_traded_ones(store):
    store.append(make_bars(0, 5))
    store.append(make_bars(0, 9), kind="mark")
    assert len(store.read("BTCUSDT", "1h")) == 5
    assert len(store.read("BTCUSDT", "1h", kind="mark")) == 9


def test_entries_say_what_is_there(store):
    store.append(make_bars(0, 9000))
    store.append_table("trades", SPOT, make_trades(50))
    candles, trades = sorted(store.entries(), key=lambda entry: entry.kind)
    assert (candles.rows, candles.first, candles.last) == (9000, START, START + 8999 * HOUR.milliseconds)
    assert (candles.instrument, candles.kind, candles.interval) == (BTC, "candles", HOUR)
    assert (trades.instrument, trades.kind, trades.interval, trades.rows) == (SPOT, "trades", None, 50)
    assert candles.size > 0
    json.dumps(candles.to_dict())


def test_facts_about_an_instrument_are_kept(store):
    store.append(make_bars(0, 5, instrument=SPOT))
    store.append(make_bars(5, 5, instrument=Instrument("binance", "spot", "BTCUSDT", lot=0.5)))
    expected = Instrument("binance", "spot", "BTCUSDT", calendar="24/5", multiplier=0.1, lot=0.5, tick=0.01)
    assert Store(store.root).read("BTCUSDT", "1h").instrument == expected
    store.put_instrument(BTC)
    assert store.instruments() == [expected, BTC]


def test_trades_with_ids(store):
    trades = make_trades(500)
    assert store.append_table("trades", BTC, trades.head(300)) == Appended(added=300)
    assert store.append_table("trades", BTC, trades.tail(300)) == Appended(added=200, duplicates=100)
    again = store.read_table("trades", "BTCUSDT")
    assert again.select(trades.columns).equals(
        trades.with_columns(pl.col("timestamp").cast(pl.Datetime("us", "UTC")))
    )
    wrong = trades.with_columns(pl.col("price") + 1)
    assert store.append_table("trades", BTC, wrong) == Appended(conflicts=500)


def test_one_trade_with_a_coarse_and_a_fine_time_is_one(store):
    trades = make_trades(50)
    store.append_table("trades", BTC, trades)
    finer = trades.with_columns(
        pl.col("timestamp").cast(pl.Datetime("us", "UTC")) + pl.duration(microseconds=300)
    )
    assert store.append_table("trades", BTC, finer) == Appended(conflicts=50)


def test_trades_with_and_without_ids_do_not_mix(store):
    store.append_table("trades", BTC, make_trades(50))
    with pytest.raises(UserError, match="stored trades have an id and the new ones have none"):
        store.append_table("trades", BTC, make_trades(50, ids=False))
    store.append_table("trades", SPOT, make_trades(50, ids=False))
    with pytest.raises(UserError, match="stored trades have no id"):
        store.append_table("trades", SPOT, make_trades(50))


def test_one_length_under_two_names_is_one_series(store):
    store.append(make_bars(0, 10))
    assert store.append(make_bars(5, 10, Interval.parse("60m"))) == Appended(added=5, duplicates=5)
    assert len(store.read("BTCUSDT", "60m")) == len(store.read("BTCUSDT", "1h")) == 15
    assert store.last(BTC, Interval.parse("60m")) == START + 14 * HOUR.milliseconds
    assert len(store.select(interval="60m")) == 1


def test_equal_trades_of_one_moment_are_all_kept_without_ids(store):
    trades = make_trades(500, ids=False)
    assert trades.is_duplicated().any()
    store.append_table("trades", BTC, trades)
    assert store.append_table("trades", BTC, trades) == Appended(duplicates=500)
    assert store.append_table("trades", BTC, trades[100:200]) == Appended(duplicates=100)
    again = store.read_table("trades", "BTCUSDT").select(trades.columns)
    assert again.equals(trades.with_columns(pl.col("timestamp").cast(pl.Datetime("us", "UTC"))))


def test_rows_repeated_in_one_table_count_as_duplicates(store):
    trades = make_trades(50)
    assert store.append_table("trades", BTC, pl.concat([trades, trades])) == Appended(added=50, duplicates=50)


def test_books_and_funding(store):
    times = make_bars(0, 60, Interval.parse("1m")).frame.select("timestamp")
    books = times.with_columns(update_id=pl.int_range(60), bid_price_1=1.0, ask_price_1=pl.lit(1.1))
    assert store.append_table("books", BTC, books) == Appended(added=60)
    assert store.read_table("books", "BTCUSDT").columns == books.columns
    funding = make_bars(0, 10).frame.select("timestamp", rate=pl.col("close") / 1e6)
    store.append_table("funding", BTC, funding)
    assert store.read_table("funding", "BTCUSDT", since="2024-01-01T05:00").height == 5
    assert store.append_table("funding", BTC, funding.head(0)) == Appended()


def test_tables_that_do_not_fit_are_refused(store):
    with pytest.raises(UserError, match="trades need the column 'size'"):
        store.append_table("trades", BTC, make_trades(5).drop("size"))
    with pytest.raises(UserError, match="trades do not fit their columns"):
        store.append_table("trades", BTC, make_trades(5).with_columns(price=pl.lit("cheap")))
    with pytest.raises(UserError, match="row 1 has no timestamp"):
        store.append_table("trades", BTC, make_trades(5).with_columns(timestamp=None))
    assert store.entries() == []


def test_files_are_zstd_with_the_declared_types(store):
    store.append(make_bars(0, 50))
    parquet = pq.ParquetFile(store.storage.path("bybit/linear/BTCUSDT/1h/2024.parquet"))
    assert str(parquet.schema_arrow.field("timestamp").type) == "timestamp[ms, tz=UTC]"
    assert parquet.metadata.row_group(0).column(1).compression == "ZSTD"


def test_newer_schema_is_refused_in_store_and_file(store, monkeypatch):
    monkeypatch.setattr("longtape.market.codec.SCHEMA_VERSION", 2)
    store.append(make_bars(0, 50))
    monkeypatch.undo()
    with pytest.raises(
        UserError, match=r"store\.json: written with store schema 2, .* reads up to 1; upgrade"
    ):
        Store(store.root)
    with pytest.raises(UserError, match=r"2024\.parquet: written with store schema 2"):
        store.read("BTCUSDT", "1h")


def test_foreign_parquet_is_named(store):
    store.append(make_bars(0, 50))
    make_bars(0, 5).frame.write_parquet(store.storage.path("bybit/linear/BTCUSDT/1h/2023.parquet"))
    with pytest.raises(UserError, match=r"2023\.parquet: not written by longtape"):
        store.read("BTCUSDT", "1h")


@pytest.mark.parametrize("name", ["store.json", "bybit/linear/BTCUSDT/instrument.json"])
def test_broken_json_is_named(store, name):
    store.append(make_bars(0, 50))
    with open(store.storage.path(name), "w") as file:
        file.write('{"sche')
    with pytest.raises(LongtapeError, match=name):
        Store(store.root).read("BTCUSDT", "1h")


def test_a_file_is_no_store(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="a store is a folder"):
        Store(tmp_path / "file")


def test_strange_folders_are_left_alone(store, tmp_path):
    store.append(make_bars(0, 50))
    (tmp_path / "store/notes/of/mine/2024").mkdir(parents=True)
    (tmp_path / "store/.hidden").mkdir()
    assert len(store.entries()) == 1


@pytest.mark.parametrize("kind", ["mock", "sub", "url"])
def test_any_file_system_through_the_same_code(kind, tmp_path):
    if kind == "mock":  # an object store in memory
        filesystem, root = pafs.FileSystem.from_uri("mock:///")[0], "bucket/path"
    elif kind == "sub":
        root, filesystem = "", pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    else:
        root, filesystem = f"file://{tmp_path}", None
    store = Store(root, filesystem)
    assert store.append(make_bars(0, 9000)) == Appended(added=9000)
    assert store.append(make_bars(8990, 20)) == Appended(added=10, duplicates=10)
    assert Store(root, filesystem).read("BTCUSDT", "1h").frame.equals(make_bars(0, 9010).frame)
    assert store.entries()[0].rows == 9010


def test_a_url_that_cannot_be_opened_is_named():
    with pytest.raises(UserError, match="store 'gopher://x' cannot be opened"):
        Store("gopher://x")


def test_by_period_splits_without_loss():
    frame = make_bars(0, 9000).frame
    parts = list(by_period(frame, "M"))
    assert [name for name, _ in parts][:2] == ["2024-01", "2024-02"]
    assert pl.concat([part for _, part in parts]).equals(frame)
    assert list(by_period(frame.head(0), "M")) == []


def test_real_trades_without_ids_are_all_kept_and_kept_once(store):
    trades = pl.read_parquet(shared("trades/SPY_2013-10-08.parquet"))
    half = trades.height // 2
    assert store.append_table("trades", BTC, trades.head(half + 5000)) == Appended(added=half + 5000)
    again = store.append_table("trades", BTC, trades.tail(half + 5000))
    assert again.added + again.duplicates == half + 5000
    stored = store.read_table("trades", "BTCUSDT").select(trades.columns)
    assert stored.height == trades.height
    assert stored["price"].equals(trades["price"])
    assert stored["sale_condition"].cast(pl.String).equals(trades["sale_condition"].cast(pl.String))


def test_real_trades_with_ids_and_real_books_round_trip(store):
    trades = pl.read_parquet(shared("trades/BTCUSDT_binance_perp_2024-08-08.parquet"))
    trades = trades.with_columns(
        id=pl.col("trade_id").cast(pl.String), timestamp=pl.col("timestamp").dt.cast_time_unit("us")
    )
    store.append_table("trades", BTC, trades[:15_000])
    assert store.append_table("trades", BTC, trades[10_000:]).duplicates == 5_000
    assert (
        store.read_table("trades", "BTCUSDT")
        .select("id", "timestamp", "price")
        .equals(trades.select("id", "timestamp", "price"))
    )
    books = pl.read_parquet(shared("lob/binance_perp_BTCUSDT_2024-08-08_top20.parquet"))
    books = books.rename({"transaction_time": "timestamp"}).with_columns(
        pl.col("timestamp").dt.cast_time_unit("us")
    )
    assert store.append_table("books", BTC, books) == Appended(added=books.height)
    assert store.append_table("books", BTC, books) == Appended(duplicates=books.height)
    assert store.read_table("books", "BTCUSDT").select(books.columns).equals(books)
    [series] = store.select(interval=None, symbol="BTCUSDT", source="bybit", category="linear")[:1]
    assert store.storage.names(series.folder)[1] == ["2024-08-08T23.parquet", "2024-08-09T00.parquet"]


def test_books_and_trades_come_back_as_they_were(store):
    books = Books.checked(XRP, book_frame())
    trades = Trades.checked(XRP, trade_frame())
    store.append_table("books", XRP, books.frame)
    store.append_table("trades", XRP, trades.frame)
    for stored, made in ((store.read_books("XRPUSDT"), books), (store.read_trades(XRP.key), trades)):
        assert stored.frame.equals(made.frame)
        assert stored.instrument == XRP
        assert stored.fingerprint() == made.fingerprint()
        assert stored.origin == f"{store.root}: {XRP.key} {type(made).__name__.lower()}"
    cut = store.read_trades("XRPUSDT", since=trades.timestamps[2].item(), until=trades.timestamps[4].item())
    assert cut.frame.equals(trades.frame[2:4])
    assert len(store.read_books("XRPUSDT", since="2025-01-01")) == 0
    with pytest.raises(UserError, match="did you mean 'XRPUSDT'"):
        store.read_books("XRPUSD")


def test_updates_of_one_moment_are_in_order_whichever_came_first(store):
    frame = book_frame()
    for rows in (frame[1:], frame[:1]):
        store.append_table("books", XRP, rows)
    assert store.read_books("XRPUSDT").frame.equals(Books.checked(XRP, frame).frame)


def test_stored_rows_that_no_book_can_have_are_named_when_read(store):
    store.append_table("books", XRP, with_cell(book_frame(), "bid_price_1", 2, 9.0))
    with pytest.raises(UserError, match=r"bybit/linear/XRPUSDT books: row 3 .* the best bid is not below"):
        store.read_books("XRPUSDT")
