"""A loopback server that speaks Bybit's v5 public wire format, and misbehaves when told to.

Shapes follow the official documentation and recorded answers: pages newest first, numbers as text, errors as `retCode`
in a body of HTTP 200, the open candle included, `start` and `end` inclusive, `limit` 200 unless given and 1,000 at
most.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import polars as pl

HOUR = 3_600_000
START = 1_704_067_200_000  # 2024-01-01 00:00 UTC
KLINE, MARK, FUNDING = "/v5/market/kline", "/v5/market/mark-price-kline", "/v5/market/funding/history"
INSTRUMENTS = "/v5/market/instruments-info"
CODES = {"1", "3", "5", "15", "30", "60", "120", "240", "360", "720", "D", "W", "M"}
JSON = "application/json; charset=utf-8"


def text(value):
    return np.format_float_positional(value, unique=True, trim="-")


def synthetic(n=2_500, start=START, step=HOUR, seed=0):
    """Candles that look like a market's: a random walk on a grid of ticks."""
    rng = np.random.default_rng(seed)
    close = np.round(40_000 * np.exp(np.cumsum(rng.normal(0, 0.005, n))), 1)
    open_ = np.r_[40_000.0, close[:-1]]
    spread = np.round(np.abs(rng.normal(0, 60, (2, n))), 1)
    return pl.DataFrame(
        {
            "timestamp": pl.Series(start + step * np.arange(n)).cast(pl.Datetime("ms", "UTC")),
            "open": open_,
            "high": np.round(np.maximum(open_, close) + spread[0], 1),
            "low": np.round(np.minimum(open_, close) - spread[1], 1),
            "close": close,
            "volume": np.round(rng.gamma(2.0, 300.0, n), 3),
        }
    )


@dataclass
class Reply:
    status: int = 200
    body: bytes = b""
    kind: str = JSON
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: int | None = None  # send so many bytes of the body and drop the connection


@dataclass
class Series:
    times: np.ndarray
    rows: list[list[str]]


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that goes away is nothing to report."""


class BybitServer:
    """`with BybitServer() as server: server.add("BTCUSDT", synthetic())`, then fetch from `server.url`."""

    def __init__(self, now=None):
        self.series: dict[tuple[str, str, str, str], Series] = {}
        self.funding: dict[tuple[str, str], list[tuple[int, str]]] = {}
        self.launch_times: dict[str, int] = {}
        self.unlisted: set[str] = set()
        self.clock = now  # the server's own clock, UTC ms; None: just after the newest candle opened
        self.cap = 1_000
        self.limit_headers: dict[str, str] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self._faults: dict[str, deque] = {}
        self._pages: list[list] = []
        self._lock = threading.Lock()

    def add(self, symbol, frame, category="linear", interval="60", kind=KLINE):
        """Serve these candles; the last one counts as still open unless `clock` says otherwise."""
        times = frame["timestamp"].dt.timestamp("ms").to_numpy()
        columns = [frame[c].to_numpy() for c in ("open", "high", "low", "close", "volume")]
        turnover = columns[3] * columns[4]
        columns = columns[:4] if kind == MARK else [*columns, turnover]
        rows = [[str(t), *map(text, values)] for t, *values in zip(times, *columns, strict=True)]
        self.series[kind, category, symbol, interval] = Series(times, rows)

    def fail(self, *faults, path=KLINE, after=0):
        """Answer the next calls of `path` with these faults, one each, after so many good answers."""
        self._faults.setdefault(path, deque()).extend([None] * after + list(faults))

    @property
    def url(self):
        return f"http://127.0.0.1:{self._http.server_port}"

    @property
    def now(self):
        if self.clock is not None:
            return self.clock
        newest = max((int(s.times[-1]) for s in self.series.values()), default=START)
        return newest + 30_000

    def calls(self, path=KLINE):
        return [params for asked, params in self.requests if asked == path]

    def __enter__(self):
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                server._serve(self)

            def log_message(self, *_):
                pass

        self._http = _Quiet(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _serve(self, handler):
        url = urlsplit(handler.path)
        params = dict(parse_qsl(url.query))
        with self._lock:
            self.requests.append((url.path, params))
            queue = self._faults.get(url.path)
            fault = queue.popleft() if queue else None
            body = self.body(url.path, params)
            reply = fault(self, params, body) if fault else self.good(body)
        time.sleep(reply.delay)
        try:
            self._send(handler, reply)
        except (BrokenPipeError, ConnectionResetError):
            handler.close_connection = True

    def good(self, body, **options):
        return Reply(body=json.dumps(body).encode(), headers=dict(self.limit_headers), **options)

    @staticmethod
    def _send(handler, reply):
        if reply.status == 0:  # hang up without a word
            handler.close_connection = True
            handler.connection.close()
            return
        handler.send_response(reply.status)
        for name, value in {
            "Content-Type": reply.kind,
            "Content-Length": len(reply.body),
            **reply.headers,
        }.items():
            handler.send_header(name, str(value))
        handler.end_headers()
        handler.wfile.write(reply.body[: reply.cut])
        if reply.cut is not None:
            handler.close_connection = True

    def envelope(self, result, code=0, message="OK"):
        return {"retCode": code, "retMsg": message, "result": result, "retExtInfo": {}, "time": self.now}

    def body(self, path, params):
        answers = {
            "/v5/market/time": self._time,
            KLINE: lambda p: self._candles(KLINE, p),
            MARK: lambda p: self._candles(MARK, p),
            FUNDING: self._funding,
            INSTRUMENTS: self._instruments,
            "/v5/market/recent-trade": self._trades,
            "/v5/market/orderbook": self._book,
        }
        return answers[path](params) if path in answers else self.envelope({}, 10404, "op type is not found")

    def _knows(self, category, symbol):
        return (
            any((c, s) == (category, symbol) for _, c, s, _ in self.series)
            or (category, symbol) in self.funding
        )

    def _time(self, _):
        return self.envelope({"timeSecond": str(self.now // 1000), "timeNano": str(self.now * 10**6)})

    def _candles(self, kind, params):
        category, symbol = params.get("category"), params.get("symbol")
        if not self._knows(category, symbol):
            return self.envelope({}, 10001, "Not supported symbols")
        if params.get("interval") not in CODES:
            return self.envelope({}, 10001, "params error: interval invalid")
        series = self.series.get((kind, category, symbol, params["interval"]))
        page = [] if series is None else self._page(series, params)
        self._pages.append(page)
        return self.envelope({"symbol": symbol, "category": category, "list": page})

    def _page(self, series, params):
        low = np.searchsorted(series.times, int(params.get("start", 0)))
        high = np.searchsorted(series.times, min(int(params.get("end", 2**62)), self.now), side="right")
        limit = min(int(params.get("limit", 200)), self.cap)
        if "start" in params and "end" not in params:
            high = min(high, low + limit)
        else:
            low = max(low, high - limit)
        return series.rows[low:high][::-1]

    def _funding(self, params):
        key = (params.get("category"), params.get("symbol"))
        if "startTime" in params and "endTime" not in params:
            return self.envelope({}, 10001, "params error: endTime is required with startTime")
        if not self._knows(*key):
            return self.envelope({}, 10001, "params error: symbol invalid")
        low, high = int(params.get("startTime", 0)), min(int(params.get("endTime", 2**62)), self.now)
        rows = [(t, rate) for t, rate in self.funding.get(key, []) if low <= t <= high]
        rows = rows[-min(int(params.get("limit", 200)), 200) :][::-1]
        listed = [{"symbol": key[1], "fundingRate": rate, "fundingRateTimestamp": str(t)} for t, rate in rows]
        return self.envelope({"category": key[0], "list": listed})

    def _instruments(self, params):
        category, wanted = params.get("category"), params.get("symbol")
        known = sorted({s for _, c, s, _ in self.series if c == category} - self.unlisted)
        if wanted is not None and wanted not in known:
            return self.envelope(
                {"category": "", "list": [], "nextPageCursor": ""}, 10001, "params error: symbol invalid"
            )
        listed = known if wanted is None else [wanted]
        begin, limit = int(params.get("cursor", 0)), int(params.get("limit", 500))
        cut = listed[begin : begin + limit]
        result = {"category": category, "list": [self.facts(category, symbol) for symbol in cut]}
        if category != "spot":
            result["nextPageCursor"] = str(begin + limit) if begin + limit < len(listed) else ""
        return self.envelope(result)

    def facts(self, category, symbol):
        facts = {"symbol": symbol, "status": "Trading", "baseCoin": symbol[:-4], "quoteCoin": "USDT",
                 "priceFilter": {"tickSize": "0.10"}}  # fmt: skip
        if category == "spot":
            return facts | {"lotSizeFilter": {"basePrecision": "0.000001", "minOrderQty": "0.000011"}}
        return facts | {
            "contractType": "LinearPerpetual",
            "launchTime": str(self.launch_times.get(symbol, START)),
            "deliveryTime": "0",
            "lotSizeFilter": {"qtyStep": "0.001", "minOrderQty": "0.001"},
            "fundingInterval": 480,
            "settleCoin": "USDT",
        }

    def _trades(self, params):
        symbol = params.get("symbol")
        if not self._knows(params.get("category"), symbol):
            return self.envelope({}, 10001, "params error: symbol invalid")
        rows = [
            {"execId": f"2100-{i}", "symbol": symbol, "price": text(16_618.5 + i / 2), "size": "0.012",
             "side": "Buy" if i % 3 else "Sell", "time": str(self.now - 1_000 + i // 2), "isBlockTrade": False,
             "isRPITrade": False, "seq": str(i)}
            for i in range(min(int(params.get("limit", 500)), 1_000))
        ]  # fmt: skip
        return self.envelope({"category": params["category"], "list": rows[::-1]})

    def _book(self, params):
        symbol = params.get("symbol")
        if not self._knows(params.get("category"), symbol):
            return self.envelope({}, 10001, "params error: symbol invalid")
        depth = int(params.get("limit", 25))
        sides = {s: [[text(100 + sign * (i + 1) * 0.5), text(1.5 + i)] for i in range(depth)]
                 for s, sign in (("b", -1), ("a", 1))}  # fmt: skip
        return self.envelope(
            {"s": symbol, **sides, "ts": self.now - 5, "u": 342_690, "seq": 1, "cts": self.now - 9}
        )


# Faults: each takes (server, params, body) and gives the Reply.


def slow(seconds):
    return lambda server, params, body: server.good(body, delay=seconds)


def dropped(server, params, body):
    return Reply(status=0)


def cut_off(server, params, body):
    """The connection breaks in the middle of the body."""
    return server.good(body, cut=len(json.dumps(body)) // 2)


def half_json(server, params, body):
    """Half of the JSON, with a length that fits."""
    whole = json.dumps(body).encode()
    return Reply(body=whole[: len(whole) // 2])


def wrong_type(server, params, body):
    return Reply(body=b"<html><body>Bad gateway</body></html>", kind="text/html")


def status(code, words="", **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda server, params, body: Reply(code, words.encode(), "text/plain", named)


def ret_code(code, message, result=None, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    def reply(server, params, body):
        answer = server.envelope({} if result is None else result, code, message)
        return Reply(body=json.dumps(answer).encode(), headers=named)

    return reply


def with_result(result):
    return lambda server, params, body: server.good(body | {"result": result})


def with_rows(change):
    """The page as `change(rows)` makes it."""

    def reply(server, params, body):
        rows = change([list(row) for row in body["result"]["list"]])
        return server.good(body | {"result": body["result"] | {"list": rows}})

    return reply


def repeated(server, params, body):
    """The first page, once more."""
    return server.good(body | {"result": body["result"] | {"list": server._pages[0]}})


def huge(server, params, body):
    return Reply(body=b'{"retCode": 0, "junk": "' + b"x" * (17 << 20) + b'"}')
