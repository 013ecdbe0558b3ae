"""Order books rebuilt from their logs: equal to recorded books, sorted, never crossed, broken chains named."""

import gzip
import json
import random
import zipfile

import polars as pl
import pytest

from longtape.core.errors import UserError
from longtape.market.orderbook import (
    OrderBook,
    Update,
    level_columns,
    read_binance,
    read_binance_trades,
    read_bybit,
    read_log,
    rebuild,
)
from tests.shared_data import shared


def test_equal_to_the_recorded_books():
    rebuilt = rebuild(read_log(shared("lob/raw/btcusdt_20240808.gz"), "BTCUSDT"))
    expected = pl.read_parquet(shared("lob/binance_perp_BTCUSDT_2024-08-08_top20.parquet"))
    assert rebuilt.breaks == ()
    got = rebuilt.frame.rename({"timestamp": "transaction_time", "received_ns": "local_receive_ns"})
    got = got.with_columns(pl.col("transaction_time").cast(pl.Datetime("ms", "UTC")))
    assert got.equals(expected)


def test_trades_of_the_log_equal_the_recorded_ones():
    got = read_binance_trades(shared("lob/raw/btcusdt_20240808.gz"))
    expected = pl.read_parquet(shared("trades/BTCUSDT_binance_perp_2024-08-08.parquet"))
    assert got["price"].equals(expected["price"])
    assert got["size"].equals(expected["size"])
    assert got["id"].cast(pl.Int64).equals(expected["trade_id"], check_names=False)
    assert got["timestamp"].dt.timestamp("ms").equals(expected["timestamp"].dt.timestamp("ms"))
    assert (got["side"] == "sell").equals(expected["buyer_is_maker"], check_names=False)


def test_a_bybit_archive():
    path = shared("lob/bybit_linear_XRPUSDT_2024-12-01_ob500.data.zip")
    rebuilt = rebuild(read_log(path, "XRPUSDT"), depth=500)
    assert rebuilt.breaks == ()
    assert rebuilt.frame.height == 50
    assert_books(rebuilt.frame, 450)
    expected = naive(path)
    for row, (bids, asks) in zip(rebuilt.frame.iter_rows(named=True), expected, strict=True):
        best = [(row[f"bid_price_{i}"], row[f"bid_size_{i}"]) for i in range(1, 101)]
        assert best == bids[:100]
        assert [(row[f"ask_price_{i}"], row[f"ask_size_{i}"]) for i in range(1, 101)] == asks[:100]
    with pytest.raises(UserError, match="about XRPUSDT, not about 'BTCUSDT'"):
        next(read_log(path, "BTCUSDT"))


def naive(path):
    """The book after each message by sorting dictionaries anew."""
    sides = {"b": {}, "a": {}}
    with zipfile.ZipFile(path) as archive:
        lines = archive.read(archive.namelist()[0]).splitlines()
    for line in lines:
        message = json.loads(line)
        for side, levels in sides.items():
            if message["type"] == "snapshot":
                levels.clear()
            for price, size in message["data"][side]:
                levels[float(price)] = float(size)
        yield (
            sorted(((p, s) for p, s in sides["b"].items() if s), reverse=True),
            sorted((p, s) for p, s in sides["a"].items() if s),
        )


def assert_books(frame, depth):
    """Prices run away from the middle, and the sides do not meet."""
    for i in range(1, depth):
        assert (frame[f"bid_price_{i}"] > frame[f"bid_price_{i + 1}"]).all()
        assert (frame[f"ask_price_{i}"] < frame[f"ask_price_{i + 1}"]).all()
    assert (frame["bid_price_1"] < frame["ask_price_1"]).all()


def test_random_updates_agree_with_sorting_anew():
    rng = random.Random(0)
    book, bids, asks = OrderBook(), {}, {}
    for _ in range(500):
        levels = [(round(rng.uniform(90, 99), 1), rng.choice([0.0, rng.random()])) for _ in range(20)]
        others = [(round(rng.uniform(101, 110), 1), rng.choice([0.0, rng.random()])) for _ in range(20)]
        book.update(levels, others)
        bids |= dict(levels)
        asks |= dict(others)
        top = book.top(15)
        assert top[0] == sorted(((p, s) for p, s in bids.items() if s), reverse=True)[:15]
        assert top[1] == sorted((p, s) for p, s in asks.items() if s)[:15]
        assert not book.is_crossed


def bybit(u, kind="delta", bids=(), asks=(), time=None):
    when = 1_700_000_000_000 + (u if time is None else time)
    return Update(when, when, None, kind == "snapshot", u, u, None, list(bids), list(asks))


SNAPSHOT = bybit(10, "snapshot", [(99.0, 1.0), (98.0, 2.0)], [(101.0, 1.0), (102.0, 2.0)])


def ids(rebuilt):
    return rebuilt.frame["update_id"].to_list()


def test_a_missing_update_breaks_the_chain_until_the_next_snapshot():
    again = bybit(20, "snapshot", [(97.0, 1.0)], [(103.0, 1.0)])
    stream = [SNAPSHOT, bybit(11), bybit(13), bybit(14), again, bybit(21, bids=[(97.5, 3.0)])]
    rebuilt = rebuild(stream, depth=1)
    assert ids(rebuilt) == [10, 11, 20, 21]
    assert rebuilt.frame["bid_price_1"].to_list() == [99.0, 99.0, 97.0, 97.5]
    (broken,) = rebuilt.breaks
    assert (broken.update_id, str(broken)) == (
        13, "2023-11-14 22:13:20.013000Z, update 13: updates are missing: expected 12 next, found 13",
    )  # fmt: skip


def test_update_1_starts_the_book_anew():
    fresh = bybit(1, "delta", [(50.0, 1.0)], [(51.0, 1.0)], time=30)
    rebuilt = rebuild([SNAPSHOT, bybit(11), fresh, bybit(2, asks=[(50.5, 2.0)], time=31)], depth=2)
    assert rebuilt.breaks == ()
    assert ids(rebuilt) == [10, 11, 1, 2]
    assert rebuilt.frame.select(level_columns(2)).row(3) == (50.0, 1.0, 50.5, 2.0, None, None, 51.0, 1.0)


def test_old_updates_change_nothing():
    rebuilt = rebuild(
        [SNAPSHOT, bybit(11), bybit(11, bids=[(100.5, 9.0)]), bybit(9, bids=[(100.5, 9.0)]), bybit(12)]
    )
    assert rebuilt.breaks == ()
    assert ids(rebuilt) == [10, 11, 12]
    assert rebuilt.frame["bid_price_1"].to_list() == [99.0] * 3


def test_a_crossed_book_is_a_break():
    rebuilt = rebuild([SNAPSHOT, bybit(11, bids=[(101.5, 1.0)]), bybit(12)])
    assert ids(rebuilt) == [10]
    assert "not below the best ask" in str(rebuilt.breaks[0])


def test_updates_without_a_snapshot_are_not_a_book():
    with pytest.raises(UserError, match="no snapshot"):
        rebuild([bybit(11), bybit(12)])


def log(tmp_path, messages, name="log.gz"):
    lines = [
        f"{1_700_000_000_000_000_000 + i * 10**6} {json.dumps(message)}" for i, message in enumerate(messages)
    ]
    path = tmp_path / name
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    return path


def depth(first, last, previous=None, bids=(), asks=(), symbol="BTCUSDT"):
    data = {"e": "depthUpdate", "E": 1_700_000_000_000 + last, "s": symbol, "U": first, "u": last,
            "b": [list(map(str, level)) for level in bids], "a": [list(map(str, level)) for level in asks]}  # fmt: skip
    if previous is not None:
        data |= {"pu": previous, "T": data["E"] - 3}
    return {"stream": "btcusdt@depth@100ms", "data": data}


REST = {"lastUpdateId": 105, "bids": [["99", "1"]], "asks": [["101", "1"]]}


def test_the_rest_snapshot_joins_the_stream(tmp_path):
    stream = [
        depth(90, 95, 89), depth(96, 104, 95), depth(105, 108, 104, bids=[(99.5, 4)]), REST,
        depth(109, 111, 108, bids=[(99, 0)]), depth(112, 112, 111), depth(120, 121, 119),
    ]  # fmt: skip
    rebuilt = rebuild(read_binance(log(tmp_path, stream)), depth=2)
    assert ids(rebuilt) == [111, 112]
    assert rebuilt.frame.select(level_columns(2)).row(0) == (99.5, 4.0, 101.0, 1.0, None, None, None, None)
    assert [b.update_id for b in rebuilt.breaks] == [121]
    assert "expected 112 before it, found 119" in str(rebuilt.breaks[0])


def test_spot_streams_count_from_update_to_update(tmp_path):
    stream = [REST, depth(104, 107), depth(108, 109), depth(111, 112), depth(113, 114)]
    rebuilt = rebuild(read_binance(log(tmp_path, stream)))
    assert ids(rebuilt) == [107, 109]
    assert "expected 110 next, found 111" in str(rebuilt.breaks[0])
    late = rebuild(read_binance(log(tmp_path, [REST, depth(110, 112)])))
    assert ids(late) == []
    assert len(late.breaks) == 1


def test_one_symbol_of_several(tmp_path):
    path = log(tmp_path, [REST, depth(106, 106), depth(7, 9, symbol="ETHUSDT"), depth(107, 107)])
    assert ids(rebuild(read_binance(path, "BTCUSDT"))) == [106, 107]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b'{"type": "delta"}\n', "line 1 is not a Bybit"),
     (b'{"type": "other", "ts": 1, "data": {"s": "X", "u": 1, "b": [], "a": []}}\n', "line 1 is not a Bybit"),
     (b'{"type": "delta", "ts"', "line 1 is not a JSON"),
     (b"1700000000000000000 {\"data\": {\"e\": \"depthUpdate\", \"s\": \"X\"}}\n", "line 1 is not a Binance"),
     (b"1700000000000000000 [1]\n", "line 1 is not a JSON"),
     (b"", "no snapshot")],
)  # fmt: skip
def test_broken_logs_are_named_by_line(tmp_path, content, words):
    path = tmp_path / "log.data"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        rebuild(read_log(path))


def test_a_line_without_receive_time(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b'1700000000000000000 {"data": {"e": "trade"}}\nnow {}\n')
    with pytest.raises(UserError, match="line 2 does not begin"):
        list(read_binance(path))
    assert list(read_bybit(log(tmp_path, []))) == []
