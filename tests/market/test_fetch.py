"""From the service into the store: resumed, complete, several at once, and nothing lost when it breaks."""

import numpy as np
import polars as pl
import pytest

from longtape.core.clock import HOUR, Interval
from longtape.core.errors import ServiceError, UserError
from longtape.core.instrument import Instrument
from longtape.market.bars import Bars
from longtape.market.fetch import FetchRequest, fetch
from longtape.market.store import Store
from tests.market import bybit_server as wire
from tests.market.bybit_server import START, synthetic

HOURLY = Interval.parse("1h")
NAMES = ["timestamp", "open", "high", "low", "close", "volume"]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def hourly(since=START, until=START + 9_000 * HOUR, kind="candles"):
    return FetchRequest(kind, HOURLY, since, until)


def stored(store, symbol="BTCUSDT", **options):
    return store.read(symbol, "1h", **options).frame.select(NAMES)


def test_several_symbols_arrive_whole(server, bybit, store):
    served = {f"COIN{i}USDT": synthetic(2_300 + i, seed=i) for i in range(6)}
    for symbol, candles in served.items():
        server.add(symbol, candles)
    server.clock = START + 5_000 * HOUR
    results = fetch(bybit, store, served, hourly(), "linear")
    assert [result.instrument.symbol for result in results] == list(served)
    for result, (symbol, candles) in zip(results, served.items(), strict=True):
        assert stored(store, symbol).equals(candles)
        assert (result.stored.added, result.stored.conflicts, result.gaps) == (candles.height, 0, ())
        assert (result.first, result.last) == (START, START + (candles.height - 1) * HOUR)
    assert store.read("COIN0USDT", "1h").instrument.funding_hours == 8.0


def test_a_fetch_goes_on_where_the_store_ends(server, bybit, store):
    candles = synthetic(5_000)
    server.add("BTCUSDT", candles)
    fetch(bybit, store, ["BTCUSDT"], hourly(until=START + 3_000 * HOUR), "linear")
    server.requests.clear()
    result = fetch(bybit, store, ["BTCUSDT"], hourly(), "linear")[0]
    assert result.stored.added == 1_999
    assert min(int(call["start"]) for call in server.calls()) == START + 2_999 * HOUR
    assert stored(store).equals(candles[:-1])
    server.requests.clear()
    again = fetch(bybit, store, ["BTCUSDT"], hourly(until=START + 4_000 * HOUR), "linear")[0]
    assert again.stored.added == 0
    assert server.calls() == []


def test_what_lies_before_and_between_is_fetched_too(server, bybit, store):
    candles = synthetic(5_000)
    server.add("BTCUSDT", candles)
    for since, until in [(2_000, 2_500), (3_500, 3_700)]:
        fetch(bybit, store, ["BTCUSDT"], hourly(START + since * HOUR, START + until * HOUR), "linear")
    fetch(bybit, store, ["BTCUSDT"], hourly(), "linear")
    assert stored(store).equals(candles[:-1])


def test_all_history_goes_on_to_its_beginning_after_a_break(server, bybit, store):
    candles = synthetic(4_500)
    server.add("BTCUSDT", candles)
    server.fail(*[wire.dropped] * 8, after=2)
    with pytest.raises(ServiceError, match="the connection broke"):
        fetch(bybit, store, ["BTCUSDT"], FetchRequest("candles", HOURLY), "linear")
    assert stored(store).equals(candles[-1_999:-1])
    fetch(bybit, store, ["BTCUSDT"], FetchRequest("candles", HOURLY), "linear")
    assert stored(store).equals(candles[:-1])


@pytest.mark.parametrize("fault", [wire.status(500), wire.half_json, wire.ret_code(10016, "Request timeout")])
def test_what_was_fetched_before_a_fault_is_kept(server, bybit, store, fault):
    candles = synthetic(5_000)
    server.add("BTCUSDT", candles)
    server.fail(*[fault] * 8, after=3)
    with pytest.raises(ServiceError):
        fetch(bybit, store, ["BTCUSDT"], hourly(), "linear")
    kept = stored(store)
    assert kept.height == 1_000 + 2 * 999
    assert kept.equals(candles[: kept.height])
    fetch(bybit, store, ["BTCUSDT"], hourly(), "linear")
    assert stored(store).equals(candles[:-1])


def test_one_symbol_failing_does_not_stop_the_others(server, bybit, store):
    candles = {symbol: synthetic(1_500, seed=seed) for seed, symbol in enumerate(["AUSDT", "BUSDT", "CUSDT"])}
    for symbol, frame in candles.items():
        server.add(symbol, frame)

    def fail_b(running, params, body):
        return wire.Reply(status=0) if params["symbol"] == "BUSDT" else running.good(body)

    server.fail(*[fail_b] * 40)
    with pytest.raises(ServiceError, match="broke"):
        fetch(bybit, store, candles, hourly(), "linear", workers=3)
    assert stored(store, "AUSDT").equals(candles["AUSDT"][:-1])
    assert stored(store, "CUSDT").equals(candles["CUSDT"][:-1])


def test_an_unknown_symbol_is_named_before_anything_is_fetched(server, bybit, store):
    server.add("BTCUSDT", synthetic(100))
    with pytest.raises(UserError, match="'NOSUCH'"):
        fetch(bybit, store, ["BTCUSDT", "NOSUCH"], hourly(), "linear")
    assert store.entries() == []


def test_gaps_of_the_market_are_reported_and_not_filled(server, bybit, store):
    candles = synthetic(3_000)
    rows = np.r_[0:500, 512:1_200, 1_203:3_000]
    server.add("BTCUSDT", candles[rows])
    result = fetch(bybit, store, ["BTCUSDT"], hourly(), "linear")[0]
    assert stored(store).equals(candles[rows][:-1])
    assert [(gap.first, gap.missing) for gap in result.gaps] == [
        (START + 500 * HOUR, 12),
        (START + 1_200 * HOUR, 3),
    ]
    assert result.missing == 15


def test_a_changed_bar_is_counted_and_the_stored_one_kept(server, bybit, store):
    candles = synthetic(1_000)
    server.add("BTCUSDT", candles)
    fetch(bybit, store, ["BTCUSDT"], hourly(until=START + 500 * HOUR), "linear")
    server.add("BTCUSDT", candles.with_columns(volume=pl.col("volume") + 1))
    result = fetch(bybit, store, ["BTCUSDT"], hourly(), "linear")[0]
    assert (result.stored.added, result.stored.conflicts) == (499, 1)
    assert stored(store)[:500].equals(candles[:500])


def test_bars_that_cannot_be_are_the_services_fault(server, bybit, store):
    candles = synthetic(100)
    late = candles.with_columns(pl.col("timestamp") + pl.duration(minutes=pl.when(pl.int_range(pl.len()) > 50).then(7)
                                                                 .otherwise(0)))  # fmt: skip
    server.add("BTCUSDT", late)
    with pytest.raises(ServiceError, match="does not fit bars of 1h"):
        fetch(bybit, store, ["BTCUSDT"], hourly(), "linear")


def test_mark_price_funding_trades_and_books_are_series_of_their_own(server, bybit, store):
    server.add("BTCUSDT", synthetic(1_200))
    server.add("BTCUSDT", synthetic(1_200, seed=5), kind=wire.MARK)
    rates = [(START + 8 * HOUR * i, f"{0.0001 * (i % 3)}") for i in range(300)]
    server.funding["linear", "BTCUSDT"] = rates
    fetch(bybit, store, ["BTCUSDT"], hourly(kind="mark"), "linear")
    assert stored(store, kind="mark")["close"].equals(synthetic(1_200, seed=5)["close"][:-1])
    until = START + 8 * HOUR * 120
    fetch(bybit, store, ["BTCUSDT"], FetchRequest("funding", None, START, until), "linear")
    fetch(bybit, store, ["BTCUSDT"], FetchRequest("funding", None, START), "linear")
    funding = store.read_table("funding", "BTCUSDT")
    expected = [(t, float(rate)) for t, rate in rates if t < server.now]
    assert list(zip(funding["timestamp"].dt.timestamp("ms"), funding["rate"], strict=True)) == expected
    for _ in range(2):
        fetch(bybit, store, ["BTCUSDT"], FetchRequest("trades"), "linear")
        fetch(bybit, store, ["BTCUSDT"], FetchRequest("books"), "linear")
    assert store.read_table("trades", "BTCUSDT").height == 1_000
    assert store.read_table("books", "BTCUSDT").height == 1


def test_an_unfinished_bar_that_was_stored_is_noticed(server, bybit, store):
    candles = synthetic(100)
    server.add("BTCUSDT", candles)
    half = candles[:50].with_columns(
        volume=pl.when(pl.int_range(pl.len()) == 49).then(0.5).otherwise(pl.col("volume"))
    )
    store.append(Bars.checked(Instrument("bybit", "linear", "BTCUSDT"), HOURLY, half))
    assert fetch(bybit, store, ["BTCUSDT"], hourly(), "linear")[0].stored.conflicts == 1


def test_wishes_that_make_no_sense(bybit, store):
    for make, words in [
        (lambda: FetchRequest("candles"), "candles need --interval"),
        (lambda: FetchRequest("funding", HOURLY), "funding take no --interval"),
        (lambda: FetchRequest("trades", None, START), "--since"),
        (lambda: FetchRequest("candles", HOURLY, START, START), "not before"),
        (lambda: FetchRequest("ticks"), "unknown kind 'ticks'"),
        (lambda: fetch(bybit, store, [], hourly(), "linear"), "no symbol"),
    ]:
        with pytest.raises(UserError, match=words):
            make()


def test_progress_tells_rows_and_time_left(server, bybit, store, capsys, monkeypatch):
    monkeypatch.setattr("longtape.core.progress._SILENT", False)
    server.add("BTCUSDT", synthetic(2_000))
    fetch(bybit, store, ["BTCUSDT"], hourly(until=START + 1_500 * HOUR), "linear")
    shown = capsys.readouterr().err
    assert "fetch bybit: 1,500/1,500 rows" in shown
    assert "/s" in shown
    assert "BTCUSDT" in shown
