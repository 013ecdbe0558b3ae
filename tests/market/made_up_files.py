# ruff: noqa: E501  a format a line
"""A small made-up file of every format that docs/sources.md names, and what is typed to read it.

The same twelve bars stand in each of them: of hours, or of days where a format has only days.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

N = 12
HOURS = [datetime(2024, 1, 31, 20, tzinfo=UTC) + timedelta(hours=i) for i in range(N)]
DAYS = [d for i in range(40) if (d := datetime(2024, 3, 4, tzinfo=UTC) + timedelta(days=i)).weekday() < 5][:N]
OPEN = [6800.25, 6856.01, 6840.5, 6862.75, 6871.0, 6859.3, 6866.66, 6880.1, 6874.2, 6891.9, 6903.15, 6899.4]
CLOSE = [6856.014, 6840.5, 6862.75, 6871.0, 6859.3, 6866.66, 6880.1, 6874.2, 6891.9, 6903.15, 6899.4, 6912.0]
HIGH = [max(o, c) + 3.5 for o, c in zip(OPEN, CLOSE, strict=True)]
LOW = [min(o, c) - 2.25 for o, c in zip(OPEN, CLOSE, strict=True)]
VOLUME = [
    103_412.0,
    6_860.0,
    12_500.0,
    7_000.0,
    9_120.0,
    15_250.0,
    8_000.0,
    4_100.0,
    3_900.0,
    22_000.0,
    5_050.0,
    640.0,
]
MS = [round(t.timestamp() * 1000) for t in HOURS]


@dataclass
class Made:
    """One file: its name and content, what is typed, and which of our columns must come out."""

    name: str
    content: str | bytes
    options: dict[str, Any] = field(default_factory=dict)
    times: list[datetime] = field(default_factory=lambda: HOURS)
    has: tuple[str, ...] = ("open", "high", "low", "close", "volume")
    interval: str = "1h"
    calendar: str = "24/7"
    symbols: tuple[str, ...] = ("X",)
    symbol: str | None = "X"


def rows(
    times: list[str],
    columns: str = "tohlcv",
    separator: str = ",",
    header: str | None = None,
    form: str = "{}",
):
    """Lines of a text: `t` the time, o h l c v the candle, `0` a zero, `x` a word; `form` writes a number."""
    values = {"o": OPEN, "h": HIGH, "l": LOW, "c": CLOSE, "v": VOLUME}
    lines = [header] if header else []
    for i, time in enumerate(times):
        cells = {
            "t": time,
            "0": "0",
            "x": "word",
            "1": "17",
            **{k: form.format(v[i]) for k, v in values.items()},
        }
        lines.append(separator.join(cells[mark] for mark in columns))
    return "\n".join(lines) + "\n"


def said(pattern: str, times: list[datetime] = HOURS) -> list[str]:
    return [time.strftime(pattern) for time in times]


ISO = said("%Y-%m-%d %H:%M:%S")
DATES = said("%Y-%m-%d", DAYS)
HEAD = "timestamp,open,high,low,close,volume"


def frame() -> pl.DataFrame:
    return pl.DataFrame(
        {"timestamp": HOURS, "open": OPEN, "high": HIGH, "low": LOW, "close": CLOSE, "volume": VOLUME}
    ).with_columns(pl.col("timestamp").cast(pl.Datetime("ms", "UTC")))


def packed(*members: tuple[str, str]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return out.getvalue()


def feather() -> bytes:
    out = io.BytesIO()
    frame().rename({"timestamp": "date"}).write_ipc(out, compression="lz4")
    return out.getvalue()


def parquet(table: pl.DataFrame) -> bytes:
    out = io.BytesIO()
    table.write_parquet(out)
    return out.getvalue()


def german(x: str) -> str:
    return x.replace(",", "\0").replace(".", ",").replace("\0", ".")


def yfinance() -> str:
    head = "Price,Close,High,Low,Open,Volume\nTicker,X,X,X,X,X\nDate,,,,,\n"
    return head + rows(DATES, "tchlov")


def two_tickers() -> str:
    head = "Ticker,AAA,AAA,BBB,BBB\nPrice,Close,Volume,Close,Volume\nDate,,,,\n"
    return head + rows(DATES, "tcvcv")


def wide() -> str:
    return rows(DATES, "tcc", header="Date,AAA,BBB")


def long_table() -> str:
    lines = ["ticker,date,open,high,low,close,volume"]
    for symbol in ("AAA", "BBB"):
        lines += [f"{symbol},{line}" for line in rows(DATES).splitlines()]
    return "\n".join(lines)


def alpha_vantage() -> str:
    names = ("1. open", "2. high", "3. low", "4. close", "5. volume")
    table = {
        date: dict(zip(names, map(str, values), strict=True))
        for date, *values in zip(DATES, OPEN, HIGH, LOW, CLOSE, VOLUME, strict=True)
    }
    return json.dumps({"Meta Data": {"1. Information": "Daily Prices"}, "Time Series (Daily)": table})


RECORDS = [
    dict(zip(HEAD.split(","), values, strict=True))
    for values in zip(ISO, OPEN, HIGH, LOW, CLOSE, VOLUME, strict=True)
]
ARRAYS = [[str(ms), *map(str, v)] for ms, *v in zip(MS, OPEN, HIGH, LOW, CLOSE, VOLUME, strict=True)]
SECONDS = [str(ms // 1000) for ms in MS]
CLOSES = said("%Y-%m-%d %H:%M:%S.999", [t + timedelta(hours=1, milliseconds=-1000) for t in HOURS])
LOCAL = [time.strftime("%Y-%m-%d 00:00:00") + ("-05:00" if time.day < 10 else "-04:00") for time in DAYS]
DAILY = {"interval": "1d", "times": DAYS, "calendar": "XNYS"}

FILES: dict[str, Made] = {
    "CSV with a header": Made("x.csv", rows(ISO, header=HEAD)),
    "semicolons and decimal commas": Made("x.csv", rows(ISO, separator=";", header=HEAD.replace(",", ";"), form="{:.3f}").replace(".", ",")),
    "German thousands": Made(
        "x.csv", "\n".join([HEAD.replace(",", ";"), *(
            ";".join([t, *(german(f"{x:.3f}") for x in v[:4]), german(f"{v[4]:,.0f}")])
            for t, *v in zip(ISO, OPEN, HIGH, LOW, CLOSE, VOLUME, strict=True))]),
    ),
    "quoted thousands and $": Made(
        "x.csv", "\n".join(["Date,Close/Last,Volume,Open,High,Low", *(
            f'{d},"${c:,.3f}","{v:,.0f}","${o:,.2f}","${h:,.3f}","${low:,.3f}"'
            for d, o, h, low, c, v in zip(said("%m/%d/%Y", DAYS), OPEN, HIGH, LOW, CLOSE, VOLUME, strict=True))]),
        **DAILY,
    ),
    "Investing.com": Made(
        "x.csv", "\ufeff" + "\n".join(['"Date","Price","Open","High","Low","Vol.","Change %"', *reversed([
            f'"{d}","{c:,.3f}","{o:,.2f}","{h:,.3f}","{low:,.3f}","{v / 1000:.3f}K","0.5%"'
            for d, o, h, low, c, v in zip(said("%b %d, %Y", DAYS), OPEN, HIGH, LOW, CLOSE, VOLUME, strict=True)])]),
        {"newest_first": True}, **DAILY,
    ),
    "pandas to_csv, unnamed index": Made("x.csv", rows(ISO, header=",open,high,low,close,volume")),
    "pandas to_csv, numbered index": Made(
        "x.csv", "\n".join([f",{HEAD}", *(f"{i},{line}" for i, line in enumerate(rows(ISO).splitlines()))])
    ),
    "yfinance, three rows of header": Made("x.csv", yfinance(), **DAILY),
    "yfinance, several tickers": Made("x.csv", two_tickers(), has=("close", "volume"), symbols=("AAA", "BBB"), symbol=None, **DAILY),
    "yfinance, history() of one ticker": Made(
        "x.csv", rows(LOCAL, "tohlcv00", header="Date,Open,High,Low,Close,Volume,Dividends,Stock Splits"), **DAILY
    ),
    "Yahoo, with its adjusted close": Made("x.csv", rows(DATES, "tohlccv", header="Date,Open,High,Low,Close,Adj Close,Volume"), **DAILY),
    "Binance archive, no header": Made(
        "x.csv", "\n".join(f"{line},{ms + 3599999},5000,17,1,1,0" for ms, line in zip(MS, rows([str(m) for m in MS]).splitlines(), strict=True))
    ),
    "Binance archive, microseconds": Made(
        "x.csv", "\n".join(f"{line},{ms}999999,5000,17,1,1,0" for ms, line in zip(MS, rows([f"{m}000" for m in MS]).splitlines(), strict=True))
    ),
    "Coinbase, no header": Made("x.csv", rows(SECONDS, "tlhocv")),
    "Kraken, no header": Made("x.csv", rows(SECONDS, "tohlcv1")),
    "Bitfinex, no header": Made("x.csv", rows([str(m) for m in MS], "tochlv")),
    "KuCoin, no header": Made("x.csv", rows(SECONDS, "tochlvv")),
    "Gate.io, no header": Made("x.csv", rows(SECONDS, "tvchlo")),
    "any other order, no header": Made(
        "x.csv", rows(SECONDS, "tvohlc"), {"order": ["time", "volume", "open", "high", "low", "close"]}
    ),
    "MetaTrader 4, no header": Made(
        "x.csv", rows([f"{t:%Y.%m.%d},{t:%H:%M}" for t in HOURS])
    ),
    "MetaTrader 5": Made(
        "x.csv", rows([f"{t:%Y.%m.%d}\t{t:%H:%M:%S}" for t in HOURS], "tohlcv01", "\t",
                      "<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<TICKVOL>\t<VOL>\t<SPREAD>"),
    ),
    "HistData, no header": Made(
        "x.csv", rows(said("%Y%m%d %H%M%S", [t - timedelta(hours=5) for t in HOURS]), "tohlc0", ";"),
        has=("open", "high", "low", "close"),
    ),
    "Stooq": Made("x.txt", "\n".join([
        "<TICKER>,<PER>,<DATE>,<TIME>,<OPEN>,<HIGH>,<LOW>,<CLOSE>,<VOL>,<OPENINT>",
        *(f"X.US,60,{t:%Y%m%d},{t:%H%M%S},{o},{h},{low},{c},{v},0"
          for t, o, h, low, c, v in zip(HOURS, OPEN, HIGH, LOW, CLOSE, VOLUME, strict=True))]), symbol="X.US", symbols=("X.US",)),
    "CryptoDataDownload": Made("x.csv", "https://www.CryptoDataDownload.com\n" + "\n".join([
        "unix,date,symbol,open,high,low,close,Volume X,Volume USDT",
        *(f"{ms},{t},X/USDT,{o},{h},{low},{c},{v},999" for ms, t, o, h, low, c, v in
          zip(MS, ISO, OPEN, HIGH, LOW, CLOSE, VOLUME, strict=True))]), symbol="XUSDT", symbols=("XUSDT",)),
    "quantmod": Made("x.csv", rows(DATES, "tohlcvc", header='"","X.Open","X.High","X.Low","X.Close","X.Volume","X.Adjusted"'), **DAILY),
    "Dukascopy": Made("x.csv", rows(said("%d.%m.%Y %H:%M:%S.000"), header="Gmt time,Open,High,Low,Close,Volume")),
    "a footer line": Made("x.csv", rows(ISO, header=HEAD) + '\n"Downloaded from Barchart.com as of 11-21-2026 09:00am CST"\n'),
    "columns with units": Made("x.csv", rows(SECONDS, "tohlcv0", header="Timestamp,Open,High,Low,Close,Volume_(BTC),Weighted_Price")),
    "blanks between fields": Made("x.prn", rows(said("%Y-%m-%d", DAYS), "tohlcv", "   ", "date   open   high   low   close   volume"), **DAILY),
    "ZIP made on a Mac": Made("x.zip", packed(("x.csv", rows(ISO, header=HEAD)), ("__MACOSX/._x.csv", "\0\1"))),
    "Parquet": Made("x.parquet", parquet(frame())),
    "Feather": Made("x.feather", feather()),
    "JSON records": Made("x.json", json.dumps(RECORDS)),
    "JSON lines": Made("x.jsonl", "\n".join(map(json.dumps, RECORDS))),
    "JSON columns": Made("x.json", json.dumps({name: [row[name] for row in RECORDS] for name in HEAD.split(",")})),
    "JSON of pandas": Made("x.json", json.dumps({
        name: {str(ms): row[name] for ms, row in zip(MS, RECORDS, strict=True)} for name in HEAD.split(",")[1:]})),
    "JSON of pandas, split": Made("x.json", frame().to_pandas().set_index("timestamp").to_json(orient="split", date_format="iso")),
    "JSON of pandas, table": Made("x.json", frame().to_pandas().set_index("timestamp").to_json(orient="table")),
    "JSON arrays of an exchange": Made("x.json", json.dumps({"retCode": 0, "result": {"symbol": "X", "list": ARRAYS}})),
    "Alpha Vantage": Made("x.json", alpha_vantage(), **DAILY),
    "a long table of many symbols": Made("x.csv", long_table(), symbols=("AAA", "BBB"), symbol=None, **DAILY),
    "a wide table of closes": Made("x.csv", wide(), has=("close",), symbols=("AAA", "BBB"), symbol=None, **DAILY),
    "closes alone": Made("x.csv", rows(DATES, "tc", header="Date,Close"), has=("close",), **DAILY),
    "no volume": Made("x.csv", rows(ISO, "tohlc", header="time,open,high,low,close"), has=("open", "high", "low", "close")),
    "times a hair before the close": Made("x.csv", rows(CLOSES, header=HEAD), {"stamp": "close"}),
    "only a close_time": Made("x.csv", rows(said("%Y-%m-%dT%H:%M:%SZ", [t + timedelta(hours=1) for t in HOURS]), header=HEAD.replace("timestamp", "close_time")), {"stamp": "close"}),
    "local times": Made("x.csv", rows(said("%Y-%m-%d %H:%M", [t - timedelta(hours=5) for t in HOURS]), header=HEAD), {"time_zone": "America/New_York"}),
    "days of a spreadsheet": Made("x.csv", rows([str((d - datetime(1899, 12, 30, tzinfo=UTC)).days) for d in DAYS], header=HEAD), {"time_format": "excel"}, **DAILY),
    "times since 1970": Made("x.csv", rows([f"{s}.0" for s in SECONDS], header=HEAD)),
    "Latin-1": Made("x.csv", ("# Börse Zürich\n" + rows(ISO, header=HEAD)).encode("cp1252")),
}  # fmt: skip
