"""Yahoo Finance's chart answers (extra `yahoo`), read as they come over the wire.

`open … close` are adjusted for every split up to the moment of the answer, `adj_close` for dividends as well, so both
change backwards in time with each new split or dividend: daily and longer series are fetched anew each time. Limits of
the service: 1m reaches 30 days back (7 days a call), 2m to 30m and 90m 60 days, 1h 730 days, days all history.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import polars as pl

from longtape.core.clock import ALWAYS_OPEN, DAY, WEEKDAYS_ONLY, Interval
from longtape.core.errors import ServiceError, UserError, require
from longtape.core.instrument import Instrument
from longtape.market.bars import PRICES, TIME_TYPE
from longtape.market.http import Answer, Client, RetryableError, Sleep, http_date
from longtape.market.paging import Page, finished_bars
from longtape.market.sources import Source

BASE_URL = "https://query2.finance.yahoo.com"
INTERVALS = {
    "1m": "1m", "2m": "2m", "5m": "5m", "15m": "15m", "30m": "30m", "90m": "90m", "1h": "60m", "60m": "60m",
    "1d": "1d", "1w": "1wk", "1M": "1mo",
}  # fmt: skip
DAYS_BACK = {"1m": 30, "2m": 60, "5m": 60, "15m": 60, "30m": 60, "90m": 60, "60m": 730}
DAYS_A_CALL = {"1m": 7}
_READABLE = frozenset({200, 400, 404, 422})
_TYPES = {
    "EQUITY": "stock", "ETF": "etf", "INDEX": "index", "MUTUALFUND": "fund", "CURRENCY": "fx",
    "CRYPTOCURRENCY": "crypto", "FUTURE": "future",
}  # fmt: skip
_CALENDARS = {
    **dict.fromkeys(("NMS", "NGM", "NCM", "NIM", "NAS", "NYQ", "NYS", "ASE", "PCX", "BTS", "PNK"), "XNYS"),
    **dict.fromkeys(("SNP", "DJI"), "XNYS"),
    **dict.fromkeys(("CMX", "CME", "CBT", "NYM"), "CMES"),
    "GER": "XETR", "FRA": "XFRA", "LSE": "XLON", "PAR": "XPAR", "AMS": "XAMS", "MIL": "XMIL", "EBS": "XSWX",
    "TOR": "XTSE", "JPX": "XTKS", "HKG": "XHKG", "SHH": "XSHG", "ASX": "XASX", "BSE": "XBOM", "SAO": "BVMF",
}  # fmt: skip


@dataclass(frozen=True)
class Chart:
    """One answer: what it says about the symbol, its bars, and the dividends and splits among them.

    `bars`: timestamp (days and longer: the session's date at 00:00 UTC), open, high, low, close, volume, and for days
    and longer adj_close, `dividend` (paid a share, in the scale of `close`) and `split` (new shares for one, else 1).
    """

    meta: Mapping[str, Any]
    bars: pl.DataFrame
    dividends: dict[int, float]
    splits: dict[int, float]


class Yahoo(Source):
    """Daily and intraday bars of what Yahoo lists."""

    name = "yahoo"
    categories: tuple[str, ...] = ("any", *_TYPES.values())

    def __init__(self, base_url: str | None = None, *, tries: int = 8, sleep: Sleep | None = None) -> None:
        """Without `base_url` the calls go through yfinance's session, which Yahoo takes for a browser's."""
        make = Client if base_url else _BrowserClient
        self._client = make(base_url or BASE_URL, rate=2.0, tries=tries, sleep=sleep, readable=_READABLE)

    def close(self) -> None:
        """End waiting and close connections."""
        self._client.close()

    def refuse_interval(self, interval: Interval) -> None:
        """UserError for a length that Yahoo does not have."""
        if interval.name not in INTERVALS:
            raise UserError(f"yahoo has no candles of {interval}; it has candles of {' '.join(INTERVALS)}")

    def restates(self, interval: Interval) -> bool:
        """Days and longer are adjusted anew for each split and dividend."""
        return interval.milliseconds >= DAY

    def instrument(self, symbol: str, category: str = "any") -> Instrument:
        """Kind, currency and exchange calendar; `category="any"` takes the kind that Yahoo gives."""
        chart, _ = self._chart(symbol, {"interval": "1d", "range": "5d"})
        kind = _TYPES.get(str(chart.meta.get("instrumentType")), "other")
        if category not in ("any", kind):
            raise UserError(f"yahoo lists '{symbol}' as {kind}; write --category {kind} or leave it away")
        return Instrument(
            self.name,
            kind,
            symbol,
            calendar=_calendar(chart.meta, kind),
            settlement=chart.meta.get("currency") or None,
        )

    def candles(
        self,
        symbol: str,
        interval: str | Interval,
        since: int | None,
        until: int | None,
        category: str = "any",
        kind: str = "candles",
    ) -> Iterator[pl.DataFrame]:
        """Finished bars of [since, until); a bar of days is finished when its last day is over in UTC."""
        interval = Interval.parse(interval)
        self.refuse_interval(interval)
        if kind != "candles":
            raise UserError(f"yahoo has no {kind}; it has candles of {' '.join(INTERVALS)}")
        code = INTERVALS[interval.name]
        if until is None:
            until = round(time.time() * 1_000)
        if since is None:
            since = until - DAYS_BACK[code] * DAY + DAY if code in DAYS_BACK else 0
        return self._pages(symbol, interval, code, since, until)

    def _pages(
        self, symbol: str, interval: Interval, code: str, since: int, until: int
    ) -> Iterator[pl.DataFrame]:
        step = DAYS_A_CALL.get(code, 1_000_000) * DAY
        for start in range(since, until, step):
            # a day either side: the date of a session in UTC is not the moment at which it opens
            bounds = {"period1": (start - DAY) // 1_000, "period2": (min(start + step, until) + DAY) // 1_000}
            if code in DAYS_BACK:
                bounds = {"period1": start // 1_000, "period2": -(-min(start + step, until) // 1_000)}
            chart, now = self._chart(symbol, {**bounds, "interval": code, "events": "div,split"})
            opens = pl.col("timestamp").dt.timestamp("ms")
            bars = chart.bars.filter((opens >= start) & (opens < min(start + step, until)))
            bars = finished_bars(interval)(Page(bars, now))
            if bars.height:
                yield bars

    def _chart(self, symbol: str, params: Mapping[str, str | int]) -> tuple[Chart, int]:
        def judge(answer: Answer) -> tuple[Chart, int]:
            result = _result(answer, symbol)
            chart = parse_chart(result, symbol)
            date = http_date(answer.headers.get("date", ""))
            now = date.timestamp() if date else float(chart.meta.get("regularMarketTime", 0))
            return chart, round(now * 1_000)

        return self._client.get(f"/v8/finance/chart/{quote(symbol, safe='')}", params, judge)


class _BrowserClient(Client):
    """The same calls through yfinance's session, with its cookie and crumb."""

    def _send(self, path: str, params: Mapping[str, str | int]) -> tuple[int, Mapping[str, str], bytes]:
        library = require("yfinance", "yahoo")
        session = require("yfinance.data", "yahoo").YfData()
        try:
            response = session.get(url=f"{BASE_URL}{path}", params=dict(params), timeout=15)
        except library.exceptions.YFRateLimitError:
            raise RetryableError("HTTP 429 (too many requests)", busy=True) from None
        except OSError as error:  # every error of the session's transport is one
            raise RetryableError(f"out of reach ({type(error).__name__})") from None
        return response.status_code, dict(response.headers), response.content


def _result(answer: Answer, symbol: str) -> Mapping[str, Any]:
    body = answer.body.get("chart") if isinstance(answer.body, dict) else None
    if not isinstance(body, dict):
        raise RetryableError("answered without a chart")
    error = body.get("error")
    if isinstance(error, dict):
        said = str(error.get("description") or error.get("code"))[:200]
        raise UserError(
            f"yahoo refuses '{symbol}': {said}; check the symbol, and the interval's limits in the docs"
        )
    results = body.get("result")
    if not isinstance(results, list) or not results or not isinstance(results[0], dict):
        raise RetryableError("answered without a result")
    return results[0]


def parse_chart(result: Mapping[str, Any], symbol: str) -> Chart:
    """One element of `chart.result`. Raises RetryableError if it is not one, ServiceError naming a bar that cannot be.

    A symbol without data in the range has no `timestamp` at all: the bars are empty then. Rows without any price
    (Yahoo gives them for closed days and halts) are not bars and are left out.
    """
    meta = result.get("meta")
    if not isinstance(meta, dict):
        raise RetryableError("answered a chart without meta")
    seconds = result.get("timestamp") or []
    columns = _columns(result, len(seconds))
    is_long = str(meta.get("dataGranularity", "1d"))[-1] not in ("m", "h")
    events = result.get("events") or {}
    dividends = _events(events.get("dividends"), lambda e: float(e["amount"]))
    splits = _events(events.get("splits"), lambda e: float(e["numerator"]) / float(e["denominator"]))
    frame = pl.DataFrame(columns).with_columns(_opens(seconds, meta, is_long))
    if is_long:
        frame = frame.with_columns(
            dividend=_spread(seconds, dividends, np.add, 0.0),
            split=_spread(seconds, splits, np.multiply, 1.0),
        )
    frame = frame.filter(~pl.all_horizontal(pl.col(PRICES).is_null()))
    return Chart(meta, _checked(frame, symbol), dividends, splits)


def adjusted(bars: pl.DataFrame) -> pl.DataFrame:
    """Open, high, low and close times adj_close/close: the series of somebody who reinvests every dividend."""
    factor = pl.col("adj_close") / pl.col("close")
    return bars.with_columns(*(pl.col(name) * factor for name in PRICES[:3]), close=pl.col("adj_close"))


def _columns(result: Mapping[str, Any], n: int) -> dict[str, pl.Series]:
    try:
        quotes = result["indicators"]["quote"][0]
        adjusted_close = (result["indicators"].get("adjclose") or [{}])[0].get("adjclose")
        lists = {name: quotes.get(name) or [] for name in (*PRICES, "volume")}
        if adjusted_close is not None:
            lists["adj_close"] = adjusted_close
        if any(len(values) != n for values in lists.values()):
            raise ValueError
        return {name: pl.Series(values, dtype=pl.Float64, strict=False) for name, values in lists.items()}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise RetryableError("answered a chart whose columns do not fit its times") from None


def _opens(seconds: list[int], meta: Mapping[str, Any], is_long: bool) -> pl.Series:
    try:
        times = pl.Series("timestamp", seconds, pl.Int64) * 1_000
        zone = str(meta.get("exchangeTimezoneName") or "UTC")
        ZoneInfo(zone)
    except (TypeError, ZoneInfoNotFoundError, ValueError):
        raise RetryableError("answered a chart with times that are none") from None
    moments = times.cast(pl.Datetime("ms")).dt.replace_time_zone("UTC")
    if not is_long:
        return moments.cast(TIME_TYPE)
    days = moments.dt.convert_time_zone(zone).dt.date()
    return days.cast(pl.Datetime("ms")).dt.replace_time_zone("UTC").cast(TIME_TYPE)


def _events(events: Any, value: Any) -> dict[int, float]:
    """Time in UTC seconds → value."""
    try:
        return {int(event["date"]): value(event) for event in (events or {}).values()}
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError):
        raise RetryableError("answered a dividend or split that is none") from None


def _spread(seconds: list[int], events: Mapping[int, float], combine: np.ufunc, empty: float) -> pl.Series:
    """Each event at the bar in which it falls."""
    values = np.full(len(seconds), empty)
    for when, value in events.items():
        at = int(np.searchsorted(seconds, when, side="right")) - 1
        if at >= 0:
            values[at] = combine(values[at], value)
    return pl.Series(values)


def _checked(frame: pl.DataFrame, symbol: str) -> pl.DataFrame:
    incomplete = frame.filter(pl.any_horizontal(pl.all().is_null()))
    if incomplete.height:
        raise ServiceError(
            f"yahoo sent a bar of {symbol} with a part missing, at {incomplete['timestamp'][0]}"
        )
    frame = frame.sort("timestamp", maintain_order=True)
    # the bar of the running session comes a second time with the time of the last trade; the later one is newer
    return frame.unique("timestamp", keep="last", maintain_order=True)


def _calendar(meta: Mapping[str, Any], kind: str) -> str:
    if kind == "crypto":
        return ALWAYS_OPEN
    if kind == "fx":
        return WEEKDAYS_ONLY
    exchange = str(meta.get("exchangeName"))
    if exchange not in _CALENDARS:
        known = ", ".join(sorted(_CALENDARS))
        raise UserError(
            f"yahoo's exchange '{exchange}' has no calendar here; known: {known}; import a file instead"
        )
    return _CALENDARS[exchange]
