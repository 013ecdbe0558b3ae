"""Books and trades as values: real recordings pass, every row that cannot be is named, times and cuts are exact."""

from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from longtape.core.errors import UserError
from longtape.core.instrument import Instrument
from longtape.market.book_files import read_books
from longtape.market.books import Books
from longtape.market.orderbook import level_columns
from longtape.market.trade_files import read_trades
from longtape.market.trades import Trades
from tests.market.event_data import START, XRP, book_frame, trade_frame, with_cell
from tests.shared_data import shared

MS = START // 1_000


def books(frame: pl.DataFrame | None = None) -> Books:
    return Books.checked(XRP, book_frame() if frame is None else frame, "made")


def trades(frame: pl.DataFrame | None = None) -> Trades:
    return Trades.checked(XRP, trade_frame() if frame is None else frame, "made")


def test_books_have_their_times_ids_and_depth():
    found = books()
    assert (len(found), found.symbol, found.depth, found.origin) == (6, "XRPUSDT", 2, "made")
    assert found.timestamps.tolist() == [MS, MS, MS + 1, MS + 1, MS + 3, MS + 3]
    assert found.ids is not None
    assert found.ids.to_list() == [7, 8, 9, 10, 11, 12]
    assert found.frame.schema["timestamp"] == pl.Datetime("us", "UTC")
    assert found.column("ask_price_2")[:5].tolist() == [1.3] * 5
    assert np.isnan(found.column("ask_price_2")[5])


def test_a_book_is_known_when_its_message_is_sent_and_never_before_the_one_before_it():
    assert books().known_at.tolist() == [MS, MS + 2, MS + 4, MS + 6, MS + 8, MS + 10]
    without = books(book_frame().drop("event_time"))
    assert without.known_at.tolist() == [MS, MS, MS + 2, MS + 2, MS + 3, MS + 3]  # 1.5 ms: within the second
    late = with_cell(book_frame(), "event_time", 1, book_frame()["event_time"][5])
    assert books(late).known_at.tolist() == [MS, *[MS + 10] * 5]
    sparse = with_cell(book_frame(), "event_time", 5, None)
    assert books(sparse).known_at.tolist() == [MS, MS + 2, MS + 4, MS + 6, MS + 8, MS + 8]


def test_fewer_levels_may_be_taken_and_more_are_refused():
    top = books().top(1)
    assert top.depth == 1
    assert top.frame.columns == book_frame().columns[:8]
    assert books().top(2).frame.equals(books().frame)
    with pytest.raises(UserError, match="made: books are 2 levels deep, not 3"):
        books().top(3)


def test_trades_have_their_times_ids_and_sides():
    found = trades()
    assert found.timestamps.tolist() == [MS, MS, MS + 1, MS + 1, MS + 3, MS + 3]
    assert found.known_at.tolist() == [MS, MS, MS + 2, MS + 2, MS + 3, MS + 3]
    assert found.ids is not None
    assert found.ids.to_list() == [100, 101, 102, 103, 104, 105]
    assert found.frame["side"].to_list() == ["buy", "sell"] * 3
    bare = trades(trade_frame().drop("id", "side"))
    assert bare.ids is None
    assert bare.frame.columns == ["timestamp", "price", "size"]


def test_ids_that_are_no_numbers_stay_text():
    named = trade_frame().with_columns(id=pl.lit("9f-") + pl.col("id"))
    found = trades(named).ids
    assert found is not None
    assert found.to_list() == named["id"].to_list()


def test_the_side_follows_from_who_made_the_price():
    maker = trade_frame().drop("side").with_columns(buyer_is_maker=pl.Series([True, False, None] * 2))
    assert trades(maker).frame["side"].to_list() == ["sell", "buy", None] * 2
    assert trades(trade_frame().with_columns(pl.col("side").str.to_titlecase())).frame["side"][0] == "buy"


@pytest.mark.parametrize("make", [books, trades])
def test_cut_by_time_half_open(make):
    found = make()
    assert len(found.between(MS + 1, MS + 3)) == 2
    assert len(found.between(MS + 1)) == 4
    assert len(found.between(None, MS + 1)) == 2
    assert len(found.between(MS + 9, MS + 4)) == 0
    assert found.between(MS + 1).origin == "made"


@pytest.mark.parametrize("make", [books, trades])
def test_the_fingerprint_follows_every_value(make):
    frame = make().frame
    same = make(frame.with_columns(pl.col("timestamp").dt.replace_time_zone(None)))
    assert make().fingerprint() == same.fingerprint()
    changes = {
        "timestamp": frame["timestamp"][4] + timedelta(microseconds=1),
        "received_ns": 1,
        "update_id": 99,
        "id": "9",
        "side": "buy",
    }
    if make is books:
        changes["event_time"] = frame["event_time"][5] + timedelta(milliseconds=1)
    found = {make().fingerprint(), make(frame.head(5)).fingerprint()}
    changed = [name for name in frame.columns if not name.endswith("_2")]
    for name in changed:
        value = changes[name] if name in changes else 1.01 * frame[name][5]
        found.add(make(with_cell(frame, name, 5, value)).fingerprint())
    assert len(found) == len(changed) + 2


NAN, INF = float("nan"), float("inf")
BROKEN_BOOKS = {
    "price zero": ("bid_price_1", 3, 0.0, r"row 4 \(2024-12-01 .*, column 'bid_price_1': a price must be above"),
    "price below zero": ("ask_price_2", 0, -1.0, r"row 1 .*'ask_price_2': a price must be .* \(-1\)"),
    "price infinite": ("ask_price_1", 2, INF, r"row 3 .*'ask_price_1': a price must be above zero and finite"),
    "size zero": ("bid_size_2", 1, 0.0, r"row 2 .*'bid_size_2': a size must be above zero"),
    "size without price": ("bid_price_2", 1, None, r"row 2 .*'bid_size_2': a size without a price"),
    "price without size": ("ask_size_2", 1, None, r"row 2 .*'ask_price_2': a price without a size"),
    "bids out of order": ("bid_price_2", 2, 1.5, r"row 3 .*'bid_price_2': not below the level before it"),
    "asks out of order": ("ask_price_2", 2, 1.1, r"row 3 .*'ask_price_2': not above the level before it"),
    "crossed": ("bid_price_1", 4, 1.5, r"row 5 .*'bid_price_1': the best bid is not below the best ask"),
    "locked": ("ask_price_1", 4, 1.04, r"row 5 .*the best bid is not below the best ask"),
    "no time": ("timestamp", 1, None, r"row 2 has no timestamp"),
    "no id": ("update_id", 1, None, r"row 2 has no update_id"),
    "id repeated": ("update_id", 1, 7, r"row 2 \(2024-12-01 00:00Z\): update 7 does not come after update 7"),
    "id falls": ("update_id", 1, 3, r"row 2 .*: update 3 does not come after update 7 of the same time"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN_BOOKS)
def test_a_book_that_cannot_be_is_named(name):
    column, row, value, message = BROKEN_BOOKS[name]
    with pytest.raises(UserError, match=f"^made: {message}") as caught:
        books(with_cell(book_frame(), column, row, value))
    assert "\n" not in str(caught.value)


def test_a_hole_between_levels_is_named():
    third = {name: 0.5 if name.startswith("bid") else 2.0 for name in ("bid_price_3", "ask_price_3")}
    sizes = {"bid_size_3": 1.0, "ask_size_3": 1.0}
    frame = book_frame().with_columns(pl.lit(value).alias(name) for name, value in (third | sizes).items())
    with pytest.raises(UserError, match=r"row 6 .*'bid_price_3': the level before it is empty"):
        books(frame)


def test_columns_of_books_are_needed_level_by_level():
    with pytest.raises(UserError, match="column 'ask_size_2' is missing"):
        books(book_frame().drop("ask_size_2"))
    with pytest.raises(UserError, match="column 'bid_price_1' is missing"):
        books(book_frame().select("timestamp", "update_id"))
    with pytest.raises(UserError, match="column 'timestamp' is missing"):
        books(book_frame().drop("timestamp"))
    with pytest.raises(UserError, match="column 'bid_size_1' holds"):
        books(book_frame().with_columns(bid_size_1=pl.lit("many")))
    assert len(books(book_frame().select("timestamp", "update_id").head(0))) == 0


def test_books_need_not_have_ids_or_empty_levels_as_null():
    assert books(book_frame().drop("update_id", "received_ns")).ids is None
    nan = book_frame().with_columns(pl.selectors.float().fill_null(NAN))
    assert books(nan).fingerprint() == books().fingerprint()
    one_sided = book_frame().with_columns(
        [pl.lit(None, pl.Float64).alias(f"ask_{what}_{i}") for what in ("price", "size") for i in (1, 2)]
    )
    assert len(books(one_sided)) == 6


BROKEN_TRADES = {
    "price zero": ("price", 3, 0.0, r"row 4 \(2024-12-01 .*, column 'price': a price must be above zero"),
    "price empty": ("price", 3, None, r"row 4 .*'price': a price must be above zero and finite \(empty\)"),
    "size below zero": ("size", 0, -1.0, r"row 1 .*'size': a size must not be below zero"),
    "size NaN": ("size", 0, NAN, r"row 1 .*'size': a size must not be below zero .* \(nan\)"),
    "no time": ("timestamp", 1, None, r"row 2 has no timestamp"),
    "a third side": ("side", 2, "both", r"row 3 .*: side 'both' is neither buy nor sell"),
    "no id": ("id", 2, None, r"row 3 .* has no id, others have one"),
    "id repeated": ("id", 2, "100", r"row 3 .* repeats the id 100"),
}


@pytest.mark.parametrize("name", BROKEN_TRADES)
def test_a_trade_that_cannot_be_is_named(name):
    column, row, value, message = BROKEN_TRADES[name]
    with pytest.raises(UserError, match=f"^made: {message}") as caught:
        trades(with_cell(trade_frame(), column, row, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [books, trades])
def test_rows_out_of_order_are_named_to_the_microsecond(make):
    frame = make().frame
    early = frame["timestamp"].to_list()
    early[4] = early[3].replace(microsecond=early[3].microsecond - 1)
    with pytest.raises(
        UserError, match=r"^made: row 5 \(2024-12-01 00:00:00.001000Z\) is earlier than the row before"
    ):
        make(frame.with_columns(timestamp=pl.Series(early, dtype=frame.schema["timestamp"])))
    with pytest.raises(UserError, match="column 'timestamp' is Int64, not a date and time"):
        make(frame.with_columns(pl.col("timestamp").cast(pl.Int64)))


BTC = Instrument("binance", "linear", "BTCUSDT")
RECORDED = "lob/binance_perp_BTCUSDT_2024-08-08_top20.parquet"


@pytest.mark.parametrize("name", [RECORDED, "lob/binance_spot_BTCUSDT_2024-08-08_09_top20.parquet"])
def test_recorded_books_come_through_exactly(name):
    expected, got = pl.read_parquet(shared(name)), read_books(shared(name), BTC)
    assert (len(got), got.depth) == (expected.height, 20)
    assert got.timestamps.tolist() == expected["transaction_time"].dt.timestamp("ms").to_list()
    assert got.frame.select(level_columns(20)).equals(expected.select(level_columns(20)))
    assert got.ids is not None
    assert got.ids.equals(expected["update_id"])
    assert got.frame["received_ns"].equals(expected["local_receive_ns"], check_names=False)
    assert (got.known_at == expected["event_time"].dt.timestamp("ms").to_numpy()).all()
    assert (got.known_at >= got.timestamps).all()


def test_a_log_gives_the_recorded_books():
    log = read_books(shared("lob/raw/btcusdt_20240808.gz"), BTC)
    recorded = read_books(shared(RECORDED), BTC)
    assert log.frame.equals(recorded.frame)
    assert log.fingerprint() == recorded.fingerprint()
    five = read_books(shared("lob/raw/btcusdt_20240808.gz"), BTC, depth=5)
    assert five.frame.equals(read_books(shared(RECORDED), BTC, depth=5).frame)


def test_a_bybit_archive_gives_books():
    path = shared("lob/bybit_linear_XRPUSDT_2024-12-01_ob500.data.zip")
    got = read_books(path, XRP, depth=400)
    assert (len(got), got.depth) == (50, 400)
    assert read_books(path, XRP).frame.equals(got.top(20).frame)
    with pytest.raises(UserError, match="about XRPUSDT, not about 'BTCUSDT'"):
        read_books(path, BTC)


@pytest.mark.parametrize(
    ("name", "size"),
    [("trades/BTCUSDT_binance_perp_2024-08-08.parquet", "size"),
     ("trades/XRPETH_binance_2019-10.parquet", "amount"),
     ("trades/SPY_2013-10-08.parquet", "size"),
     ("lob/binance_spot_BTCUSDT_2024-08-08_09_trades.parquet", "size")],
)  # fmt: skip
def test_recorded_trades_come_through_exactly(name, size):
    expected = pl.read_parquet(shared(name))
    got = Trades.checked(BTC, read_trades(shared(name)), name)
    assert (
        got.timestamps.tolist() == got.known_at.tolist() == expected["timestamp"].dt.timestamp("ms").to_list()
    )
    assert got.frame["price"].equals(expected["price"])
    assert got.frame["size"].equals(expected[size].cast(pl.Float64), check_names=False)
    if "trade_id" in expected.columns:
        assert got.ids is not None
        assert got.ids.equals(expected["trade_id"], check_names=False)


def test_files_that_give_no_books_are_one_line(tmp_path, capsys):
    frame = book_frame()
    frame.with_columns(symbol=pl.lit("ETHUSDT")).write_parquet(tmp_path / "other.parquet")
    frame.head(0).write_parquet(tmp_path / "empty.parquet")
    frame.rename({"timestamp": "when", "event_time": "sent"}).write_parquet(tmp_path / "timeless.parquet")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    (tmp_path / "books.csv").write_text("timestamp,bid_price_1\n")
    depth = (
        '{"e":"depthUpdate","E":2,"T":2,"s":"BTCUSDT","U":11,"u":12,"pu":10,"b":[["1","1"]],"a":[["2","1"]]}'
    )
    snapshot = '{"lastUpdateId":11,"E":1,"T":1,"bids":[["1","1"]],"asks":[["2","1"]]}'
    (tmp_path / "log").write_text(f"1 {snapshot}\n2 {depth}\n")
    cases = {
        "other.parquet": "holds books of ETHUSDT, not of 'XRPUSDT' alone",
        "empty.parquet": "there is no book in it",
        "timeless.parquet": "column 'timestamp' is missing",
        "torn.parquet": "not a readable Parquet file",
        "absent.parquet": "no such file",
        "books.csv": "not from CSV",
        "log": "no book of 'XRPUSDT' can be rebuilt from it",
    }
    for name, message in cases.items():
        with pytest.raises(UserError, match=message) as caught:
            read_books(tmp_path / name, XRP)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
        assert "\n" not in str(caught.value)


def test_a_broken_chain_of_a_log_is_said(tmp_path, capsys):
    lines = [
        '1 {"lastUpdateId":11,"E":1,"T":1,"bids":[["1","1"]],"asks":[["2","1"]]}',
        '2 {"e":"depthUpdate","E":2,"T":2,"s":"XRPUSDT","U":11,"u":12,"pu":10,"b":[["1","2"]],"a":[]}',
        '3 {"e":"depthUpdate","E":3,"T":3,"s":"XRPUSDT","U":14,"u":15,"pu":13,"b":[["1","2"]],"a":[]}',
    ]
    (tmp_path / "log").write_text("\n".join(lines))
    assert len(read_books(tmp_path / "log", XRP)) == 1
    assert "log: the chain of updates is broken at 1970-01-01 00:00:00.003" in capsys.readouterr().err


def test_books_whose_only_time_is_the_event_are_taken_at_it(tmp_path):
    book_frame().drop("timestamp").write_parquet(tmp_path / "b.parquet")
    got = read_books(tmp_path / "b.parquet", XRP)
    assert got.timestamps.tolist() == got.known_at.tolist() == [MS + 2 * i for i in range(6)]
