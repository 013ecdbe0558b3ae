"""Any exchange that ccxt knows (extra `ccxt`): candles and recent trades, paging hidden."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import polars as pl

from longtape.core.clock import Interval
from longtape.core.errors import ServiceError, UserError, require, unknown_name
from longtape.core.instrument import Instrument
from longtape.market.bars import COLUMNS, TIME_TYPE
from longtape.market.http import TRIES, RetryableError, Sleep, http_date, retry
from longtape.market.paging import Page, bar_pager
from longtape.market.sources import Source

PAGE = 500
T = TypeVar("T")


class Ccxt(Source):
    """One exchange. Its symbols are written as the exchange's own ids (BTCUSDT) or as ccxt's (BTC/USDT:USDT)."""

    categories: tuple[str, ...] = ("spot", "linear", "inverse")

    def __init__(
        self, exchange: Any, base_url: str | None = None, *, tries: int = TRIES, sleep: Sleep = time.sleep
    ) -> None:
        """`exchange`: an exchange's name in ccxt, or an exchange object of ccxt. `base_url` replaces its hosts."""
        self._library = require("ccxt", "ccxt")
        if isinstance(exchange, str):
            if exchange not in self._library.exchanges:
                raise unknown_name("exchange", exchange, self._library.exchanges)
            exchange = getattr(self._library, exchange)({"enableRateLimit": True, "timeout": 15_000})
        if base_url is not None:
            exchange.urls["api"] = _pointed_at(exchange.urls["api"], base_url)
        self._exchange, self._tries, self._sleep = exchange, tries, sleep
        self.name = f"ccxt-{exchange.id}"

    def instrument(self, symbol: str, category: str = "spot") -> Instrument:
        """Tick, lot, contract size and settlement; UserError if the exchange does not list it in the category."""
        market = self._market(symbol, category)
        precision = market.get("precision") or {}
        is_size = getattr(self._exchange, "precisionMode", None) == self._library.TICK_SIZE
        return Instrument(
            self.name,
            category,
            str(market["id"]),
            settlement=market.get("settle") or market.get("quote"),
            multiplier=float(market.get("contractSize") or 1.0),
            lot=_positive(precision.get("amount")) if is_size else None,
            tick=_positive(precision.get("price")) if is_size else None,
        )

    def refuse_interval(self, interval: Interval) -> None:
        """UserError for a length that the exchange does not have."""
        frames = getattr(self._exchange, "timeframes", None) or {}
        if interval.name not in frames:
            raise UserError(f"{self.name} has no candles of {interval}; it has candles of {' '.join(frames)}")

    def candles(
        self,
        symbol: str,
        interval: str | Interval,
        since: int | None,
        until: int | None,
        category: str = "spot",
        kind: str = "candles",
    ) -> Iterator[pl.DataFrame]:
        """Finished candles of [since, until); finished is judged by the exchange's clock. `since` is needed."""
        interval = Interval.parse(interval)
        self.refuse_interval(interval)
        if kind != "candles":
            raise UserError(f"{self.name} has no {kind}, it has candles")
        if since is None:
            raise UserError(f"{self.name} pages forward only: name --since")
        unified = self._market(symbol, category)["symbol"]
        clock = self._clock()

        def ask(start: int | None, end: int | None, limit: int) -> Page:
            options = {} if end is None else {"until": end}
            rows = self._call("fetch_ohlcv", unified, interval.name, start, limit, options)
            return Page(_candles(rows, start or 0, end), clock())

        pager = bar_pager(ask, interval, self._page_size(), f"{self.name} {unified}")
        return pager.forward(since, clock() if until is None else until)

    def trades(self, symbol: str, category: str = "spot") -> pl.DataFrame:
        """The most recent trades that the exchange gives: timestamp (UTC µs), price, size, id, side of the taker."""
        rows = self._call("fetch_trades", self._market(symbol, category)["symbol"])
        schema = {
            "timestamp": pl.Int64,
            "price": pl.Float64,
            "size": pl.Float64,
            "id": pl.String,
            "side": pl.String,
        }
        values = [(r["timestamp"] * 1_000, r["price"], r["amount"], r.get("id"), r.get("side")) for r in rows]
        frame = pl.DataFrame(values, schema=schema, orient="row").sort("timestamp", maintain_order=True)
        return frame.with_columns(pl.col("timestamp").cast(pl.Datetime("us", "UTC")))

    def _page_size(self) -> int:
        features = getattr(self._exchange, "features", None) or {}
        limit = ((features.get("spot") or {}).get("fetchOHLCV") or {}).get("limit")
        return int(limit) if limit else PAGE

    def _market(self, symbol: str, category: str) -> dict[str, Any]:
        if category not in self.categories:
            raise UserError(f"{self.name} has {', '.join(self.categories)}, not category '{category}'")
        if not getattr(self._exchange, "markets", None):
            self._call("load_markets")
        for market in self._exchange.markets.values():
            if symbol in (market["id"], market["symbol"]) and market.get(category):
                return dict(market)
        raise UserError(f"{self.name} has no {category} symbol '{symbol}'; check its name and --category")

    def _clock(self) -> Callable[[], int]:
        """The exchange's clock: read once, then carried on by ours."""
        start = time.monotonic()
        if (getattr(self._exchange, "has", None) or {}).get("fetchTime"):
            now = int(self._call("fetch_time"))
        else:
            headers = getattr(self._exchange, "last_response_headers", None) or {}
            date = http_date(str(headers.get("Date", "")))
            if date is None:
                raise ServiceError(f"{self.name} tells no time; what is finished cannot be judged")
            now = round(date.timestamp() * 1_000)
        return lambda: now + round((time.monotonic() - start) * 1_000)

    def _call(self, method: str, *arguments: Any) -> Any:
        library = self._library

        def call() -> Any:
            try:
                return getattr(self._exchange, method)(*arguments)
            except library.NetworkError as error:  # rate limits and time-outs are among them
                raise RetryableError(f"{type(error).__name__}") from None
            except library.BadSymbol:
                raise UserError(f"{self.name} does not know '{arguments[0]}'") from None
            except library.BaseError as error:
                said = " ".join(str(error).split())[:120]
                raise ServiceError(f"{self.name}: {method}: {type(error).__name__}: {said}") from None

        return retry(call, f"{self.name} {method}", self._tries, lambda seconds, busy: self._sleep(seconds))


def _candles(rows: list[list[Any]], start: int, end: int | None) -> pl.DataFrame:
    inside = [row[:6] for row in rows if row[0] >= start and (end is None or row[0] <= end)]
    schema = {"timestamp": pl.Int64} | dict.fromkeys(COLUMNS[1:], pl.Float64)
    frame = pl.DataFrame(inside, schema=schema, orient="row", strict=False)
    frame = frame.with_columns(
        pl.col("timestamp").cast(pl.Datetime("ms")).dt.replace_time_zone("UTC").cast(TIME_TYPE)
    )
    frame = frame.unique(maintain_order=True).sort("timestamp")
    if frame["timestamp"].is_duplicated().any():
        raise ServiceError("the exchange gave two values for one time")
    return frame


def _pointed_at(urls: Any, base_url: str) -> Any:
    """The same addresses with another scheme and host."""
    if isinstance(urls, dict):
        return {name: _pointed_at(value, base_url) for name, value in urls.items()}
    path = str(urls).partition("://")[2].partition("/")[2]
    return base_url.rstrip("/") + (f"/{path}" if path else "")


def _positive(value: Any) -> float | None:
    return float(value) if value else None
