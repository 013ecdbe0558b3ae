"""The Bybit source against a loopback server: the wire format, paging, and every fault that a service has."""

import json
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from longtape.core.clock import DAY, HOUR, MINUTE
from longtape.core.errors import ServiceError, UserError
from longtape.market.http import RateLimiter
from longtape.market.sources.bybit import Bybit
from tests.market import bybit_server as wire
from tests.market.bybit_server import START, synthetic
from tests.shared_data import shared

NAMES = ["timestamp", "open", "high", "low", "close", "volume"]


@pytest.fixture
def waits():
    return []


@pytest.fixture
def bybit(server, waits):
    source = Bybit(server.url, rate=100_000.0, sleep=waits.append)
    yield source
    source.close()


def collect(pages):
    frames = list(pages)
    if not frames:
        return pl.DataFrame(schema=NAMES)
    frame = pl.concat(sorted(frames, key=lambda page: page["timestamp"][0]))
    assert frame["timestamp"].is_sorted()
    assert not frame["timestamp"].is_duplicated().any()
    return frame.select(NAMES)


def fetched(bybit, since=START, until=START + 5_000 * HOUR, **options):
    return collect(bybit.candles("BTCUSDT", "1h", since, until, "linear", **options))


def test_pages_join_into_exactly_the_served_candles(server, bybit):
    candles = synthetic(4_321)
    server.add("BTCUSDT", candles)
    assert fetched(bybit).equals(candles[:-1])  # the last one was still open
    assert all(int(call["limit"]) <= 1_000 for call in server.calls())
    assert len(server.calls()) == 5


def test_real_candles_arrive_exactly(server, bybit):
    real = pl.read_parquet(shared("candles_1h_bybit_linear/XRPUSDT.parquet"))
    server.add("BTCUSDT", real)
    first = real["timestamp"].dt.timestamp("ms")[0]
    assert fetched(bybit, first, first + 40_000 * HOUR).equals(real[:-1])
    assert collect(bybit.candles("BTCUSDT", "1h", None, None)).equals(real[:-1])


def test_since_is_included_and_until_is_not(server, bybit):
    candles = synthetic(100)
    server.add("BTCUSDT", candles)
    assert fetched(bybit, START + 10 * HOUR, START + 20 * HOUR).equals(candles[10:20])
    assert fetched(bybit, START + 10 * HOUR + 1, START + 20 * HOUR + 1).equals(candles[11:21])


def test_the_whole_history_is_paged_backwards(server, bybit):
    candles = synthetic(3_500)
    server.add("BTCUSDT", candles)
    server.launch_times["BTCUSDT"] = START + 2_000 * HOUR
    assert collect(bybit.candles("BTCUSDT", "1h", None, None)).equals(candles[:-1])
    assert collect(bybit.candles("BTCUSDT", "1h", None, START + 1_500 * HOUR)).equals(candles[:1_500])
    newest = next(iter(bybit.candles("BTCUSDT", "1h", None, None)))
    assert newest["timestamp"].max() == candles["timestamp"][-2]


@pytest.mark.parametrize(
    ("interval", "code", "step"),
    [("1m", "1", MINUTE), ("3m", "3", 3 * MINUTE), ("5m", "5", 5 * MINUTE), ("15m", "15", 15 * MINUTE),
     ("30m", "30", 30 * MINUTE), ("1h", "60", HOUR), ("2h", "120", 2 * HOUR), ("4h", "240", 4 * HOUR),
     ("6h", "360", 6 * HOUR), ("12h", "720", 12 * HOUR), ("1d", "D", DAY), ("1w", "W", 7 * DAY)],
)  # fmt: skip
def test_every_interval(server, bybit, interval, code, step):
    candles = synthetic(1_203, step=step)
    server.add("BTCUSDT", candles, interval=code)
    got = collect(bybit.candles("BTCUSDT", interval, START, START + 2_000 * step, "linear"))
    assert got.equals(candles[:-1])


def test_months_follow_the_calendar(server, bybit):
    months = pl.Series(
        "timestamp", np.arange("2019-01", "2024-06", dtype="datetime64[M]").astype("datetime64[ms]")
    )
    candles = synthetic(len(months)).with_columns(months.dt.replace_time_zone("UTC"))
    server.add("BTCUSDT", candles, interval="M")
    assert collect(bybit.candles("BTCUSDT", "1M", START - 2_000 * DAY, START + 300 * DAY)).equals(
        candles[:-1]
    )
    server.clock = int(months.dt.timestamp("ms")[-1]) + 31 * DAY  # May has ended
    assert collect(bybit.candles("BTCUSDT", "1M", START - 2_000 * DAY, START + 300 * DAY)).equals(candles)


def test_spot_inverse_and_mark_price(server, bybit):
    for category, seed in [("spot", 1), ("inverse", 2)]:
        server.add("BTCUSDT", synthetic(300, seed=seed), category)
        got = collect(bybit.candles("BTCUSDT", "1h", START, None, category))
        assert got.equals(synthetic(300, seed=seed)[:-1])
    mark = synthetic(300, seed=3)
    server.add("BTCUSDT", mark, "linear", kind=wire.MARK)
    got = fetched(bybit, kind="mark")
    assert got.equals(mark[:-1].with_columns(volume=pl.lit(0.0)))
    with pytest.raises(UserError, match="not for category 'spot'"):
        bybit.candles("BTCUSDT", "1h", START, None, "spot", "mark")


def test_recorded_and_documented_answers_parse(server, bybit):
    recorded = json.loads(shared("api_responses/bybit_v5_recorded/market_recorded.json").read_text())
    kline = recorded["recordings"][0]["response"]
    kline |= {"retCode": int(kline["retCode"]), "time": int(kline["time"])}
    server.add("BTCUSDT", synthetic(10))
    server.fail(lambda *_: server.good(kline))
    got = next(bybit.candles("BTCUSDT", "1h", 1706630400000, 1706637600001))
    assert got["timestamp"].dt.timestamp("ms").to_list() == [1706630400000, 1706634000000, 1706637600000]
    assert got["close"].to_list() == [43488.0, 43376.1, 43352.8]
    assert got["turnover"].to_list() == [58117391.4117, 138878389.2519, 68345898.1407]
    documented = json.loads(shared("api_responses/bybit_v5_docs/market_mark-price-kline.json").read_text())
    server.fail(lambda *_: server.good(documented), path=wire.MARK)
    page = next(bybit.candles("BTCUSDT", "1h", 1670608800000, 1670612400000, "linear", "mark"))
    assert page.select("open", "high", "low", "close", "volume").row(0) == (
        17164.16,
        17164.16,
        17121.5,
        17131.64,
        0.0,
    )


def test_the_servers_answers_have_the_shape_of_the_documented_ones(server):
    server.add("BTCUSDT", synthetic(10))
    server.add("BTCUSDT", synthetic(10), kind=wire.MARK)
    server.add("BTCUSDT", synthetic(10), "spot")
    server.funding["linear", "BTCUSDT"] = [(START, "0.0001")]
    base = {"category": "linear", "symbol": "BTCUSDT", "interval": "60"}
    for name, path, params in [
        ("market_kline", wire.KLINE, base),
        ("market_mark-price-kline", wire.MARK, base),
        ("market_funding_history", wire.FUNDING, base),
        ("market_time", "/v5/market/time", {}),
        ("market_orderbook", "/v5/market/orderbook", base),
        ("market_recent-trade", "/v5/market/recent-trade", base),
        ("market_instruments-info_linear_BTCUSDT", wire.INSTRUMENTS, base),
        ("market_instruments-info_spot_BTCUSDT", wire.INSTRUMENTS, base | {"category": "spot"}),
    ]:
        documented = json.loads(shared(f"api_responses/bybit_v5_docs/{name}.json").read_text())
        assert_shape(server.body(path, params), documented, name)


def assert_shape(ours, theirs, where):
    """Every value that we serve has the same name and type in the documentation's example."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        for key in ours:
            assert_shape(ours[key], theirs[key], f"{where}.{key}")
    if isinstance(ours, list) and ours:
        assert_shape(ours[0], theirs[0], f"{where}[0]")


def test_instruments(server, bybit):
    server.add("BTCUSDT", synthetic(10))
    server.add("BTCUSDT", synthetic(10), "spot")
    found = bybit.instrument("BTCUSDT", "linear")
    assert (found.key, found.settlement, found.lot, found.tick, found.funding_hours) == (
        "bybit/linear/BTCUSDT", "USDT", 0.001, 0.1, 8.0,
    )  # fmt: skip
    assert (found.is_perpetual, found.calendar) == (True, "24/7")
    spot = bybit.instrument("BTCUSDT", "spot")
    assert (spot.lot, spot.tick, spot.funding_hours) == (1e-6, 0.1, None)
    for i in range(2_345):
        server.series[wire.KLINE, "linear", f"COIN{i}USDT", "60"] = server.series[
            wire.KLINE, "linear", "BTCUSDT", "60"
        ]
    assert len({i.symbol for i in bybit.instruments("linear")}) == 2_346


@pytest.mark.parametrize("name", ["BTCUSDT", "BIOUSDT"])
def test_documented_instruments_parse(server, bybit, name):
    documented = json.loads(
        shared(f"api_responses/bybit_v5_docs/market_instruments-info_linear_{name}.json").read_text()
    )
    server.fail(lambda *_: server.good(documented), path=wire.INSTRUMENTS)
    facts = documented["result"]["list"][0]
    found = bybit.instrument(name)
    assert found.tick == float(facts["priceFilter"]["tickSize"])
    assert found.lot == float(facts["lotSizeFilter"]["qtyStep"])
    assert found.funding_hours == facts["fundingInterval"] / 60


def test_a_delisted_symbol_still_has_candles_and_an_unknown_one_is_named(server, bybit):
    server.add("LUNAUSDT", synthetic(10), interval="D")
    server.unlisted.add("LUNAUSDT")
    assert bybit.instrument("LUNAUSDT").tick is None
    with pytest.raises(UserError, match="no linear symbol 'LUNAUSTD'"):
        bybit.instrument("LUNAUSTD")
    with pytest.raises(UserError, match="LUNAUSTD"):
        next(bybit.candles("LUNAUSTD", "1h", START, START + HOUR))
    server.series[wire.KLINE, "spot", "BTCUSDT", "60"] = server.series[wire.KLINE, "linear", "LUNAUSDT", "D"]
    with pytest.raises(UserError, match="'LUNAUSDT'"):
        bybit.instrument("LUNAUSDT", "spot")


def test_funding_trades_book_and_time(server, bybit):
    server.add("BTCUSDT", synthetic(10))
    server.clock = START + 9_000 * HOUR
    rates = [(START + 8 * HOUR * i, wire.text(round(np.sin(i) / 1e4, 8))) for i in range(777)]
    server.funding["linear", "BTCUSDT"] = rates
    expected = [(t, float(rate)) for t, rate in rates]
    for since in (START - 5_000 * HOUR, None):
        frames = sorted(
            bybit.funding("BTCUSDT", since, START + 9_000 * HOUR), key=lambda page: page["timestamp"][0]
        )
        got = pl.concat(frames)
        assert list(zip(got["timestamp"].dt.timestamp("ms"), got["rate"], strict=True)) == expected
    trades = bybit.trades("BTCUSDT")
    assert trades.height == 1_000
    assert trades.columns == ["timestamp", "price", "size", "id", "side"]
    assert trades["timestamp"].is_sorted()
    assert trades["id"].to_list() == [f"2100-{i}" for i in range(1_000)]
    assert set(trades["side"]) == {"buy", "sell"}
    book = bybit.order_book("BTCUSDT", depth=5)
    assert book.height == 1
    assert book.select("bid_price_1", "bid_size_1", "ask_price_5", "update_id").row(0) == (
        99.5,
        1.5,
        102.5,
        342_690,
    )
    assert bybit.server_time() == server.now


def test_funding_at_shorter_intervals_than_the_usual_is_whole(server, bybit):
    server.add("BTCUSDT", synthetic(10))
    server.clock = START + 9_000 * HOUR
    server.funding["linear", "BTCUSDT"] = [(START + HOUR * i, "0.0001") for i in range(1_500)]
    got = pl.concat(bybit.funding("BTCUSDT", START, START + 1_500 * HOUR))
    assert got.height == 1_500
    assert got["timestamp"].is_sorted()


# What may fail


PASSING = {
    "slow": [wire.slow(0.05)],
    "dropped": [wire.dropped],
    "cut off": [wire.cut_off],
    "half a JSON": [wire.half_json],
    "wrong content type": [wire.wrong_type],
    "429": [wire.status(429, "System level frequency protection. Please retry when encounter this")],
    "403": [wire.status(403, "403, access too frequent")],
    "500": [wire.status(500)],
    "502": [wire.status(502, "<html>Bad gateway</html>")],
    "10006": [wire.ret_code(10006, "Too many visits!")],
    "10016": [wire.ret_code(10016, "Request timeout, please try again later")],
    "result {}": [wire.with_result({})],
    "result null": [wire.with_result(None)],
    "repeats": [wire.repeated],
    "another symbol": [wire.with_result({"symbol": "ETHUSDT", "category": "linear", "list": []})],
    "not numbers": [wire.with_rows(lambda rows: [[row[0], "x", *row[2:]] for row in rows])],
    "NaN": [wire.with_rows(lambda rows: [[*row[:4], "NaN", *row[5:]] for row in rows])],
    "negative price": [wire.with_rows(lambda rows: [[*row[:4], "-1", *row[5:]] for row in rows])],
    "short rows": [wire.with_rows(lambda rows: [row[:3] for row in rows])],
    "two values for one time": [wire.with_rows(lambda rows: [[*rows[0][:4], "1", *rows[0][5:]], *rows])],
    "seven in a row": [wire.dropped, wire.half_json, wire.status(500), wire.wrong_type, wire.status(429),
                       wire.ret_code(10006, "Too many visits!"), wire.with_result(None)],
}  # fmt: skip


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_leaves_no_trace(server, bybit, waits, fault):
    candles = synthetic(2_500)
    server.add("BTCUSDT", candles)
    server.fail(*PASSING[fault], after=1)
    assert fetched(bybit).equals(candles[:-1])
    assert all(wait <= 5.0 for wait in waits)
    if fault != "slow":
        assert len(waits) >= len(PASSING[fault])


HARMLESS = {
    "out of order": wire.with_rows(lambda rows: rows[::2] + rows[1::2]),
    "oldest first": wire.with_rows(lambda rows: rows[::-1]),
    "rows twice": wire.with_rows(lambda rows: rows + rows[:50]),
    "rows not asked for": wire.with_rows(
        lambda rows: [*rows, [str(START - 9 * HOUR), "1", "1", "1", "1", "1", "1"]]
    ),
    "numbers as numbers": wire.with_rows(lambda rows: [[int(row[0]), *map(float, row[1:])] for row in rows]),
}


@pytest.mark.parametrize("oddity", HARMLESS)
def test_an_odd_page_is_read_right(server, bybit, waits, oddity):
    candles = synthetic(2_500)
    server.add("BTCUSDT", candles)
    server.fail(HARMLESS[oddity], after=1)
    assert fetched(bybit).equals(candles[:-1])
    assert waits == []


LASTING = {
    "dropped": (wire.dropped, "the connection broke"),
    "half a JSON": (wire.half_json, "broken JSON"),
    "wrong content type": (wire.wrong_type, "text/html instead of JSON"),
    "429": (wire.status(429, "System level frequency protection"), r"HTTP 429 \(System level"),
    "403": (wire.status(403, "403, access too frequent"), "HTTP 403"),
    "502": (wire.status(502, "<html>Bad gateway</html>"), r"HTTP 502 \("),
    "10006": (wire.ret_code(10006, "Too many visits!"), "Too many visits"),
    "10016": (wire.ret_code(10016, "Request timeout"), "Request timeout"),
    "result null": (wire.with_result(None), "without a result"),
    "repeats": (wire.repeated, "not asked for"),
    "too big": (wire.huge, "more than 16 MiB"),
    "not an answer": (lambda server, params, body: server.good([1, 2]), "without a retCode"),
    "no time": (lambda server, params, body: server.good({k: body[k] for k in body if k != "time"}), "its time"),
}  # fmt: skip


@pytest.mark.parametrize("fault", [name for name in LASTING if name != "502"])
def test_a_fault_that_lasts_ends_in_one_clear_line(server, bybit, waits, fault):
    server.add("BTCUSDT", synthetic(2_500))
    reply, words = LASTING[fault]
    server.fail(*[reply] * 20, after=1)
    pages = bybit.candles("BTCUSDT", "1h", START, START + 2_400 * HOUR)
    assert next(pages).height == 1_000
    with pytest.raises(ServiceError, match=words) as caught:
        next(pages)
    assert "\n" not in str(caught.value)
    assert "/v5/market/kline" in str(caught.value)
    assert len(server.calls()) == 1 + 8
    assert len([wait for wait in waits if wait > 0]) >= 7
    assert max(waits) <= 5.0


@pytest.mark.parametrize(
    ("reply", "words", "error"),
    [(wire.ret_code(10001, "params error: symbol invalid"), "10001.*symbol invalid", UserError),
     (wire.ret_code(10001, "Not supported symbols"), "BTCUSDT.*Not supported symbols", UserError),
     (wire.ret_code(12345, "something else"), "12345.*something else", ServiceError),
     (wire.status(404, "nothing here"), "HTTP 404.*base URL", ServiceError),
     (wire.status(302, "", Location="http://127.0.0.1:1/"), "HTTP 302", ServiceError)],
)  # fmt: skip
def test_what_no_further_try_can_mend_is_not_tried_again(server, bybit, reply, words, error):
    server.add("BTCUSDT", synthetic(100))
    server.fail(reply)
    with pytest.raises(error, match=words):
        fetched(bybit)
    assert len(server.calls()) == 1


@pytest.mark.parametrize(
    ("reply", "expected"),
    [(wire.status(429, "wait", Retry_After="7"), 7.0),
     (wire.status(403, "wait", Retry_After="600"), 600.0),
     (wire.ret_code(10006, "Too many visits!", Retry_After="3"), 3.0),
     (wire.ret_code(10006, "Too many visits!", X_Bapi_Limit_Reset_Timestamp=str(START + 9_000)), 9.0)],
)  # fmt: skip
def test_waits_as_long_as_the_service_says(server, bybit, waits, reply, expected):
    server.clock = START
    server.add("BTCUSDT", synthetic(100))
    server.fail(reply)
    assert fetched(bybit).is_empty()
    assert max(waits) == pytest.approx(expected)


def test_a_wait_of_hours_is_said_and_not_waited(server, bybit, waits):
    server.add("BTCUSDT", synthetic(100))
    server.fail(wire.status(429, "wait", Retry_After="7200"))
    with pytest.raises(ServiceError, match="asks to wait 7,200 s"):
        fetched(bybit)
    assert waits == []


def test_limit_headers_are_not_needed_and_not_in_the_way(server, bybit, waits):
    candles = synthetic(2_500)
    server.add("BTCUSDT", candles)
    server.limit_headers = {"X-Bapi-Limit": "600", "X-Bapi-Limit-Status": "599",
                            "X-Bapi-Limit-Reset-Timestamp": str(server.now)}  # fmt: skip
    assert fetched(bybit).equals(candles[:-1])
    assert waits == []


def test_no_call_is_made_when_the_headers_say_that_none_is_left(server, bybit, waits):
    server.clock = START + 3_000 * HOUR
    server.add("BTCUSDT", synthetic(1_500))
    server.limit_headers = {"X-Bapi-Limit": "600", "X-Bapi-Limit-Status": "0",
                            "X-Bapi-Limit-Reset-Timestamp": str(server.clock + 2_000)}  # fmt: skip
    assert fetched(bybit, until=START + 1_500 * HOUR).height == 1_500
    assert max(waits) == pytest.approx(2.0, abs=0.2)


def test_a_mirror_that_serves_candles_alone(server, bybit):
    server.fail(wire.status(404), path=wire.INSTRUMENTS)
    assert bybit.instrument("BTCUSDT").key == "bybit/linear/BTCUSDT"


def test_a_call_is_never_made_faster_than_the_rate(monkeypatch, waits):
    monkeypatch.setattr("longtape.market.http.time", SimpleNamespace(monotonic=lambda: 100.0))
    limiter = RateLimiter(10.0, waits.append)
    for _ in range(4):
        limiter.wait()
    limiter.hold(5.0)
    limiter.wait()
    assert waits == pytest.approx([0.1, 0.2, 0.3, 5.0])


def test_empty_pages_mean_no_candles_and_are_not_tried_again(server, bybit, waits):
    server.add("BTCUSDT", synthetic(100))
    assert fetched(bybit, START - 5_000 * HOUR, START).is_empty()
    assert waits == []
    assert len(server.calls()) == 2


def test_a_symbol_that_was_listed_late(server, bybit):
    candles = synthetic(1_500)
    server.add("BTCUSDT", candles)
    years = 9 * 365 * 24
    assert fetched(bybit, START - years * HOUR).equals(candles[:-1])
    assert len(server.calls()) < 20  # found by halving, not by 79 empty pages
    server.requests.clear()
    minutes = synthetic(1_500, step=MINUTE)
    server.add("BTCUSDT", minutes, interval="1")
    got = collect(bybit.candles("BTCUSDT", "1m", START - years * HOUR, START + 5_000 * MINUTE))
    assert got.equals(minutes)
    assert len(server.calls()) < 25


@pytest.mark.parametrize("hours", [1, 7, 999, 1_000, 1_001, 3_333])
@pytest.mark.parametrize("since_first", [True, False])
def test_a_market_that_was_closed(server, bybit, hours, since_first):
    candles = synthetic(6_000)
    open_ = candles.filter(~pl.int_range(pl.len()).is_between(777, 777 + hours - 1))
    server.add("BTCUSDT", open_)
    since = START if since_first else None
    assert collect(bybit.candles("BTCUSDT", "1h", since, START + 9_999 * HOUR)).equals(open_[:-1])


@pytest.mark.parametrize("cap", [1, 7, 200])
def test_fewer_rows_on_a_page_than_asked_for(server, bybit, cap):
    candles = synthetic({1: 20, 7: 150, 200: 3_000}[cap])
    server.add("BTCUSDT", candles)
    server.cap = cap
    for since in (START, None):
        got = collect(bybit.candles("BTCUSDT", "1h", since, START + 20_000 * HOUR))
        assert got.equals(candles[:-1])


def test_a_changed_value_in_an_overlapping_page(server, bybit):
    server.add("BTCUSDT", synthetic(2_500))

    def raise_oldest(rows):
        rows[-1][4] = rows[-1][2] = "99999.9"
        return rows

    server.fail(wire.with_rows(raise_oldest), after=1)
    assert fetched(bybit).equals(synthetic(2_500)[:-1])  # once: asked again
    server.fail(*[wire.with_rows(raise_oldest)] * 9, after=1)
    pages = bybit.candles("BTCUSDT", "1h", START, START + 2_400 * HOUR)
    assert next(pages).height == 1_000
    with pytest.raises(
        ServiceError, match=r"BTCUSDT: the row of 2024-02-11 15:00Z came twice with different values"
    ):
        next(pages)


def test_the_unfinished_candle_goes_by_the_services_clock(server, bybit):
    candles = synthetic(50)
    server.add("BTCUSDT", candles)
    opened = START + 49 * HOUR
    for clock, finished in [
        (opened, 49),
        (opened + HOUR - 1, 49),
        (opened + HOUR, 50),
        (START + 99 * DAY, 50),
    ]:
        server.clock = clock
        assert fetched(bybit).equals(candles[:finished])
        assert collect(bybit.candles("BTCUSDT", "1h", None, None)).equals(candles[:finished])


@pytest.mark.parametrize("off", [-400 * DAY, 400 * DAY])
def test_a_clock_that_is_off_changes_nothing_but_what_is_finished(server, bybit, off):
    """The service's own clock is the measure, wherever ours stands."""
    candles = synthetic(1_300, start=START + off)
    server.add("BTCUSDT", candles)
    assert fetched(bybit, START + off, START + off + 5_000 * HOUR).equals(candles[:-1])


def test_out_of_reach_is_a_service_error(waits):
    source = Bybit("http://127.0.0.1:9", rate=100_000.0, sleep=waits.append)
    with pytest.raises(ServiceError, match=r"127\.0\.0\.1:9/v5/market/time: out of reach \(8 tries\)"):
        source.server_time()
    backoff = [wait for wait in waits if wait >= 0.25]
    assert backoff == [0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0]


def test_no_answer_in_time(server, waits, monkeypatch):
    import httpx

    monkeypatch.setattr("longtape.market.http._TIMEOUT", httpx.Timeout(0.1))
    source = Bybit(server.url, sleep=waits.append, tries=2)
    server.add("BTCUSDT", synthetic(10))
    server.fail(wire.slow(0.5), wire.slow(0.5))
    with pytest.raises(ServiceError, match="no answer in time"):
        fetched(source)


def test_addresses_and_secrets(server):
    for url in ("ftp://example.org", "nonsense", "http://"):
        with pytest.raises(UserError, match="base URL"):
            Bybit(url)
    source = Bybit("http://user:hunter2@127.0.0.1:9", tries=1)
    with pytest.raises(ServiceError) as caught:
        source.server_time()
    assert "hunter2" not in str(caught.value)


def test_wrong_words_from_the_user(bybit):
    for call, words in [
        (lambda: bybit.candles("BTCUSDT", "7m", START, None), "no candles of 7m"),
        (lambda: bybit.candles("BTCUSDT", "2M", START, None), "no candles of 2M"),
        (lambda: bybit.candles("BTCUSDT", "1h", START, None, "option"), "category 'option'"),
        (lambda: bybit.candles("BTCUSDT", "1h", START, None, "linear", "index"), "not 'index'"),
        (lambda: bybit.funding("BTCUSDT", START, None, "spot"), "category 'spot'"),
        (lambda: bybit.instrument("BTCUSDT", "stock"), "category 'stock'"),
    ]:
        with pytest.raises(UserError, match=words):
            call()
