"""Bybit's public v5 market data (https://bybit-exchange.github.io/docs/v5/market/kline and its neighbours).

The wire: pages run newest first, numbers are text, an error comes as `retCode` in a body of HTTP 200, the last candle
is the one still open, and `launchTime` may be later than the first real candle, so nothing here relies on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from longtape.core.clock import DAY, HOUR, MINUTE, WEEK, Interval
from longtape.core.errors import ServiceError, UserError
from longtape.core.instrument import Instrument
from longtape.market.bars import COLUMNS, TIME_TYPE
from longtape.market.http import Answer, Client, NotFound, RetryableError, Sleep, http_date, retry_after
from longtape.market.orderbook import book_row
from longtape.market.paging import Page, Pager, bar_pager
from longtape.market.sources import Source

BASE_URL = "https://api.bybit.com"
CATEGORIES = ("linear", "spot", "inverse")
CONTRACTS = ("linear", "inverse")
CANDLE_PAGE, FUNDING_PAGE, INSTRUMENT_PAGE = 1_000, 200, 1_000
_FOREVER = 2**62
_MINUTES = (1, 3, 5, 15, 30, 60, 120, 240, 360, 720)
_CODES = {n * MINUTE: str(n) for n in _MINUTES} | {DAY: "D", WEEK: "W"}
_BUSY = frozenset({10006, 10018})  # too many visits: of this endpoint, of this address
_TRANSIENT = frozenset({10000, 10016})  # server timeout, internal error
_BAD_SYMBOL = frozenset({10001, 10029, 170121})
_PATHS = {"candles": "/v5/market/kline", "mark": "/v5/market/mark-price-kline"}


class Bybit(Source):
    """Candles, mark-price candles, funding, instruments, recent trades, order book and server time."""

    name = "bybit"
    categories: tuple[str, ...] = CATEGORIES

    def __init__(
        self, base_url: str = BASE_URL, *, rate: float = 50.0, tries: int = 8, sleep: Sleep | None = None
    ) -> None:
        """`rate`: calls a second (the service allows 120 an address); `sleep`: what waits between tries."""
        self._client = Client(base_url, rate=rate, tries=tries, sleep=sleep)

    def close(self) -> None:
        """End waiting and close connections."""
        self._client.close()

    def refuse_interval(self, interval: Interval) -> None:
        """UserError for a length that Bybit does not have."""
        _code(interval)

    def server_time(self) -> int:
        """The service's clock, UTC ms."""
        return self._get("/v5/market/time", {}, lambda result, now: now)

    def instrument(self, symbol: str, category: str = "linear") -> Instrument:
        """Tick, lot, settlement and funding interval; UserError if the service does not know the symbol.

        A symbol that is no longer listed but still has candles gets an instrument without these facts.
        """
        _check_category(category, CATEGORIES)
        try:
            listed = self._get(
                "/v5/market/instruments-info",
                {"category": category, "symbol": symbol},
                lambda result, now: _rows_of(result),
                unknown=[],
            )
        except NotFound:  # a mirror that serves candles alone
            return Instrument(self.name, category, symbol)
        for facts in listed:
            if facts.get("symbol") == symbol:
                return _instrument(facts, category)
        ask: dict[str, str | int] = {"category": category, "symbol": symbol, "interval": "D", "limit": 1}
        if not self._get(_PATHS["candles"], ask, lambda result, now: _rows_of(result), unknown=[]):
            raise UserError(f"bybit has no {category} symbol '{symbol}'; check its name and --category")
        return Instrument(self.name, category, symbol)

    def instruments(self, category: str = "linear") -> list[Instrument]:
        """Every symbol that is traded in a category."""
        _check_category(category, CATEGORIES)
        found: list[Instrument] = []
        cursor = ""
        while True:
            params: dict[str, str | int] = {"category": category, "limit": INSTRUMENT_PAGE}
            rows, following = self._get(
                "/v5/market/instruments-info",
                params | ({"cursor": cursor} if cursor else {}),
                lambda result, now: (_rows_of(result), str(result.get("nextPageCursor") or "")),
            )
            found += [_instrument(facts, category) for facts in rows]
            if not following or following == cursor or not rows:
                return found
            cursor = following

    def candles(
        self,
        symbol: str,
        interval: str | Interval,
        since: int | None,
        until: int | None,
        category: str = "linear",
        kind: str = "candles",
    ) -> Iterator[pl.DataFrame]:
        """Finished candles (`kind="mark"`: of the mark price, without volume) that open in [since, until).

        Columns: timestamp, open, high, low, close, volume, turnover. Volume is in base coins for spot and linear, in
        USD for inverse; it is 0 for the mark price. Finished is judged by the `time` of each answer.
        """
        interval = Interval.parse(interval)
        code = _code(interval)
        if kind not in _PATHS:
            raise UserError(f"bybit has candles and mark, not '{kind}'")
        _check_category(category, CATEGORIES if kind == "candles" else CONTRACTS)
        fixed = {"category": category, "symbol": symbol, "interval": code}

        def ask(start: int | None, end: int | None, limit: int) -> Page:
            return self._page(_PATHS[kind], fixed, ("start", "end"), start, end, limit, _candle)

        pager = bar_pager(ask, interval, CANDLE_PAGE, f"bybit {category} {symbol}")
        return self._pages(pager, since, until)

    def funding(
        self, symbol: str, since: int | None, until: int | None, category: str = "linear"
    ) -> Iterator[pl.DataFrame]:
        """Funding rates that were settled in [since, until): `timestamp`, `rate` (a fraction for the interval)."""
        _check_category(category, CONTRACTS)
        fixed = {"category": category, "symbol": symbol}

        def ask(start: int | None, end: int | None, limit: int) -> Page:
            return self._page(
                "/v5/market/funding/history", fixed, ("startTime", "endTime"), start, end, limit, _funding
            )

        label = f"bybit funding {symbol}"
        pager = Pager(ask, FUNDING_PAGE * 8 * HOUR, HOUR, FUNDING_PAGE, lambda page: page.rows, label)
        return self._pages(pager, since, until)

    def trades(self, symbol: str, category: str = "linear") -> pl.DataFrame:
        """The most recent trades (1,000 for contracts, 60 for spot): timestamp, price, size, id, side of the taker."""
        _check_category(category, CATEGORIES)
        limit = 60 if category == "spot" else 1_000
        rows = self._get(
            "/v5/market/recent-trade",
            {"category": category, "symbol": symbol, "limit": limit},
            lambda result, now: [_trade(row) for row in reversed(_rows_of(result))],
        )
        frame = pl.DataFrame(rows, schema=_TRADES, orient="row").sort("timestamp", maintain_order=True)
        return frame.with_columns(pl.col("timestamp").cast(pl.Datetime("us", "UTC")))

    def order_book(self, symbol: str, category: str = "linear", depth: int = 50) -> pl.DataFrame:
        """The order book now, as one row in the layout of `longtape.market.orderbook`."""
        _check_category(category, CATEGORIES)
        return self._get(
            "/v5/market/orderbook",
            {"category": category, "symbol": symbol, "limit": depth},
            lambda result, now: _book(result, depth),
        )

    def _pages(self, pager: Pager, since: int | None, until: int | None) -> Iterator[pl.DataFrame]:
        if since is None:
            return pager.backward(None, until)
        return pager.forward(since, self.server_time() if until is None else until)

    def _page(
        self,
        path: str,
        fixed: Mapping[str, str],
        names: tuple[str, str],
        start: int | None,
        end: int | None,
        limit: int,
        parse: Any,
    ) -> Page:
        bounds = {name: when for name, when in zip(names, (start, end), strict=True) if when is not None}

        def judge(result: dict[str, Any], now: int) -> Page:
            if result.get("symbol", fixed["symbol"]) != fixed["symbol"]:
                raise RetryableError(
                    f"answered about '{str(result['symbol'])[:40]}' when asked about {fixed['symbol']}"
                )
            return Page(_in_bounds(parse(_rows_of(result)), start, end), now)

        return self._get(path, {**fixed, **bounds, "limit": limit}, judge)

    def _get(self, path: str, params: Mapping[str, str | int], use: Any, unknown: Any = None) -> Any:
        """Ask, see to `retCode`, and give `use(result, time)`; `unknown` instead where there is no such symbol."""

        def judge(answer: Answer) -> Any:
            body = answer.body
            code = _whole(body.get("retCode")) if isinstance(body, dict) else None
            if code is None:
                raise RetryableError("answered without a retCode")
            if code == 0:
                if answer.headers.get("x-bapi-limit-status") == "0":
                    self._client.hold(_asked_wait(answer) or 0.0)
                return use(_result(body), _clock(body))
            if code in _BAD_SYMBOL and unknown is not None:
                return unknown
            raise self._failure(code, answer, path, params)

        return self._client.get(path, params, judge)

    def _failure(self, code: int, answer: Answer, path: str, params: Mapping[str, str | int]) -> Exception:
        message = " ".join(str(answer.body.get("retMsg", "")).split())[:120]
        said = f"retCode {code} ({message})"
        if code in _BUSY:
            return RetryableError(said, _asked_wait(answer), busy=True)
        if code in _TRANSIENT:
            return RetryableError(said)
        what = " ".join(str(params[name]) for name in ("category", "symbol", "interval") if name in params)
        if code in _BAD_SYMBOL:
            return UserError(f"bybit refuses '{what}': {said}; check the symbol and --category")
        return ServiceError(f"{self._client.host}{path}: {what}: {said}")


_TRADES = {
    "timestamp": pl.Int64,
    "price": pl.Float64,
    "size": pl.Float64,
    "id": pl.String,
    "side": pl.String,
}


def _check_category(category: str, known: tuple[str, ...]) -> None:
    if category not in known:
        raise UserError(f"bybit has this for {', '.join(known)}, not for category '{category}'")


def _code(interval: Interval) -> str:
    if interval.name == "1M":
        return "M"
    if interval.is_month or interval.milliseconds not in _CODES:
        known = "1m 3m 5m 15m 30m 1h 2h 4h 6h 12h 1d 1w 1M"
        raise UserError(f"bybit has no candles of {interval}; it has {known}")
    return _CODES[interval.milliseconds]


def _result(body: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(body.get("result"), dict) or not body["result"]:
        raise RetryableError("answered retCode 0 without a result")
    return body["result"]


def _clock(body: dict[str, Any]) -> int:
    now = _whole(body.get("time"))
    if now is None:
        raise RetryableError("answered without its time")
    return now


def _whole(value: Any) -> int | None:
    """A whole number, also as text; None for anything else."""
    return int(value) if isinstance(value, int) or (isinstance(value, str) and value.isdigit()) else None


def _rows_of(result: dict[str, Any]) -> list[Any]:
    rows = result.get("list")
    if not isinstance(rows, list):
        raise RetryableError("answered without a list")
    return rows


def _asked_wait(answer: Answer) -> float | None:
    """Seconds to wait by Retry-After, or by the reset time in the service's own clock."""
    told = retry_after(answer.headers)
    if told is not None:
        return told
    reset = answer.headers.get("x-bapi-limit-reset-timestamp", "")
    date = http_date(answer.headers.get("date", ""))
    now = _whole(answer.body.get("time")) or (date.timestamp() * 1_000 if date else None)
    return max((int(reset) - int(now)) / 1_000, 0.0) if reset.isdigit() and now else None


def _in_bounds(rows: pl.DataFrame, start: int | None, end: int | None) -> pl.DataFrame:
    """Rows of [start, end], sorted. A page mostly of other rows, or with two values for one time, is a wrong page."""
    times = pl.col("timestamp").dt.timestamp("ms")
    inside = rows.filter((times >= (start if start is not None else 0)) & (times <= (end or _FOREVER)))
    if rows.height - inside.height > inside.height:
        raise RetryableError("answered with a page that was not asked for")
    inside = inside.unique(maintain_order=True).sort("timestamp")
    if inside["timestamp"].is_duplicated().any():
        raise RetryableError("answered with two values for one time")
    return inside


def _candle(rows: list[Any]) -> pl.DataFrame:
    width = len(rows[0]) if rows and isinstance(rows[0], list) else 7
    names = [*COLUMNS, "turnover"][: 7 if width >= 7 else 5]
    frame = _columns(rows, names)
    if width < 7:
        frame = frame.with_columns(volume=pl.lit(0.0))
    prices = pl.concat_list("open", "high", "low", "close").list
    wrong = frame.filter((prices.min() <= 0) | (pl.col("high") < pl.col("low")) | (pl.col("volume") < 0))
    if wrong.height:
        raise RetryableError(
            f"answered with a candle that cannot be: {wrong.row(0)[1:6]} at {wrong['timestamp'][0]}"
        )
    return frame


def _funding(rows: list[Any]) -> pl.DataFrame:
    try:
        pairs = [[row["fundingRateTimestamp"], row["fundingRate"]] for row in rows]
    except (TypeError, KeyError):
        raise RetryableError("answered with a row that is not a funding rate") from None
    return _columns(pairs, ["timestamp", "rate"])


def _columns(rows: list[Any], names: list[str]) -> pl.DataFrame:
    """Rows of text → a time and finite numbers."""
    try:
        values = [[float(cell) for cell in row[1 : len(names)]] for row in rows]
        times = [int(row[0]) for row in rows]
        schema = dict.fromkeys(names[1:], pl.Float64)
        frame = pl.DataFrame(values, schema=schema, orient="row") if rows else pl.DataFrame(schema=schema)
        frame.insert_column(
            0, pl.Series("timestamp", times, pl.Int64).cast(pl.Datetime("ms")).dt.replace_time_zone("UTC")
        )
    except (TypeError, ValueError, IndexError, OverflowError, pl.exceptions.PolarsError):
        raise RetryableError(f"answered with a row that is not {', '.join(names)}") from None
    if not frame.select(pl.all_horizontal(pl.col(pl.Float64).is_finite().all())).item():
        raise RetryableError("answered with a number that is not finite")
    return frame.with_columns(pl.col("timestamp").cast(TIME_TYPE))


def _trade(row: Any) -> tuple[int, float, float, str, str]:
    try:
        return (
            int(row["time"]) * 1_000,
            float(row["price"]),
            float(row["size"]),
            row["execId"],
            row["side"].lower(),
        )
    except (TypeError, KeyError, ValueError, AttributeError):
        raise RetryableError("answered with a row that is not a trade") from None


def _book(result: dict[str, Any], depth: int) -> pl.DataFrame:
    try:
        sides = [[(float(price), float(size)) for price, size in result[side]] for side in ("b", "a")]
        return book_row(int(result["ts"]), int(result["u"]), sides[0], sides[1], depth)
    except (TypeError, KeyError, ValueError):
        raise RetryableError("answered with something that is not an order book") from None


def _instrument(facts: Mapping[str, Any], category: str) -> Instrument:
    lots, prices = facts.get("lotSizeFilter") or {}, facts.get("priceFilter") or {}
    minutes = facts.get("fundingInterval")
    return Instrument(
        "bybit",
        category,
        str(facts["symbol"]),
        settlement=str(facts.get("settleCoin") or facts.get("quoteCoin") or "") or None,
        lot=_positive(lots.get("qtyStep") or lots.get("basePrecision")),
        tick=_positive(prices.get("tickSize")),
        funding_hours=minutes / 60 if isinstance(minutes, int) and minutes > 0 else None,
    )


def _positive(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if value > 0 else None
