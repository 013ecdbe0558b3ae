"""Trades from files: Bybit's public archives, Binance's, and any table with a time, a price and a size."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from longtape.core.errors import UserError
from longtape.market import archives
from longtape.market.files import PARQUET, read_parquet, refuse_other_symbols
from longtape.market.timestamps import in_utc, unit_of
from longtape.market.trades import side_of_taker

# Names as files write them, in lower case without punctuation; the first that is there is taken.
ALIASES: dict[str, tuple[str, ...]] = {
    "timestamp": ("timestamp", "time", "transacttime", "date"),
    "price": ("price",),
    "size": ("size", "volume", "qty", "quantity", "amount"),
    "id": ("trdmatchid", "tradeid", "aggtradeid", "execid", "id"),
    "side": ("side",),
    "buyer_is_maker": ("buyerismaker", "isbuyermaker"),
    "symbol": ("symbol",),
}  # fmt: skip
# Binance's archives without a header, spot and futures (https://github.com/binance/binance-public-data).
_BINANCE = ("id", "price", "size", "quote", "timestamp", "buyer_is_maker")
_NEEDED = ("timestamp", "price", "size")
_TO_MICROSECONDS = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}


def read_trades(path: str | Path, symbol: str | None = None) -> pl.DataFrame:
    """Trades of a CSV (also .gz, .zip) or Parquet file, in order of time: timestamp (UTC µs), price, size, id, side.

    Bybit's archives (https://public.bybit.com) write seconds with a fraction for contracts and milliseconds for spot;
    `side` is the taker's, in lower case, where the file has it, as is `id`. Rows of other symbols than `symbol` are an
    error. A file that runs backwards throughout is turned round. UserError names the file, and row and column.
    """
    table = _table(Path(path))
    frame = _chosen(table, path)
    if symbol is not None:
        refuse_other_symbols(frame, symbol, "trades", path)
    numbers = {name: _numbers(frame[name], path) for name in ("price", "size")}
    frame = frame.with_columns(
        _times(frame["timestamp"], path), **numbers, **side_of_taker(frame), **_id(frame)
    )
    frame = frame.select(
        name for name in ("timestamp", "price", "size", "id", "side") if name in frame.columns
    )
    return _in_order(frame, path)


def _table(path: Path) -> pl.DataFrame:
    if path.suffix.lower() in PARQUET:
        return read_parquet(path)
    try:
        raw = archives.read_bytes(path)
        first = next(csv.reader([raw[:4096].decode("utf-8", "replace").partition("\n")[0]]), [])
        headless = bool(first) and first[0].strip().isdigit()
        table = pl.read_csv(raw, has_header=not headless, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path}: not a readable table ({str(error).splitlines()[0]})") from None
    if not headless:
        return table
    if table.width < len(_BINANCE):
        raise UserError(f"{path}: no header and {table.width} columns; a table of trades needs names")
    return table.select(table.columns[: len(_BINANCE)]).rename(
        dict(zip(table.columns, _BINANCE, strict=False))
    )


def _chosen(table: pl.DataFrame, path: str | Path) -> pl.DataFrame:
    there = {"".join(c for c in name.lower() if c.isalnum()): name for name in reversed(table.columns)}
    names: Mapping[str, str] = {
        ours: there[found]
        for ours, aliases in ALIASES.items()
        if (found := next((alias for alias in aliases if alias in there), None)) is not None
    }
    for name in _NEEDED:
        if name not in names:
            raise UserError(f"{path}: column '{name}' is missing; there are {', '.join(table.columns[:20])}")
    if table.height == 0:
        raise UserError(f"{path}: there is no trade in it")
    return table.select(pl.col(theirs).alias(ours) for ours, theirs in names.items())


def _times(times: pl.Series, path: str | Path) -> pl.Series:
    if isinstance(times.dtype, pl.Datetime):
        return in_utc(times, "us")
    numbers = _numbers(times, path)
    factor = _TO_MICROSECONDS[unit_of(numbers, str(path))]
    return (numbers * factor).round().cast(pl.Int64).cast(pl.Datetime("us", "UTC"))


def _numbers(values: pl.Series, path: str | Path) -> pl.Series:
    numbers = values.cast(pl.Float64, strict=False)
    bad = ~numbers.is_finite().fill_null(False)
    if bad.any():
        row = int(bad.arg_max() or 0)
        raise UserError(f"{path}: row {row + 1}, column '{values.name}': '{values[row]}' is not a number")
    return numbers


def _id(frame: pl.DataFrame) -> dict[str, pl.Series]:
    return {"id": frame["id"].cast(pl.String)} if "id" in frame.columns else {}


def _in_order(frame: pl.DataFrame, path: str | Path) -> pl.DataFrame:
    times = frame["timestamp"]
    if times.is_sorted():
        return frame
    if times.is_sorted(descending=True):
        return frame.reverse()
    row = int((times.diff().dt.total_microseconds() < 0).fill_null(False).arg_max() or 0)
    raise UserError(f"{path}: row {row + 1} is earlier than the row before; sort the file by time")
