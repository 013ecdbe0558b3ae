"""Books from files: Parquet with a column for each level, and the logs that a book is rebuilt from."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from longtape.core.errors import UserError
from longtape.core.instrument import Instrument
from longtape.core.progress import say
from longtape.market.books import Books
from longtape.market.files import PARQUET, read_parquet, refuse_other_symbols
from longtape.market.orderbook import DEPTH, read_log, rebuild

# Names as files write them; the first that is there is taken.
ALIASES: dict[str, tuple[str, ...]] = {
    "timestamp": ("timestamp", "transaction_time", "event_time"),
    "received_ns": ("received_ns", "local_receive_ns"),
}


def read_books(path: str | Path, instrument: Instrument, depth: int | None = None) -> Books:
    """Books of a Parquet file, a Bybit `ob500` archive or a Binance depth log, checked.

    Parquet has `timestamp` (or `transaction_time`, or `event_time` alone), `bid_price_i, bid_size_i, ask_price_i,
    ask_size_i` for i = 1 …, and may have `event_time`, `received_ns` (or `local_receive_ns`) and `update_id`. `depth`
    levels are taken: by default all of a Parquet file and 20 of a log. Where a log's chain of updates is broken is said
    on standard error. UserError names the file, and the row and its time where there is one.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        raise UserError(
            f"{path}: books are read from Parquet, a Bybit ob500 archive or a Binance depth log, not from CSV"
        )
    if path.suffix.lower() not in PARQUET:
        return _rebuilt(path, instrument, depth or DEPTH)
    frame = read_parquet(path)
    refuse_other_symbols(frame, instrument.symbol, "books", path)
    if frame.is_empty():
        raise UserError(f"{path}: there is no book in it")
    books = Books.checked(instrument, _renamed(frame), str(path))
    return books if depth is None else books.top(depth)


def _renamed(frame: pl.DataFrame) -> pl.DataFrame:
    for ours, theirs in ALIASES.items():
        found = next((name for name in theirs if name in frame.columns), ours)
        if found != ours:
            frame = frame.with_columns(pl.col(found).alias(ours))
    return frame


def _rebuilt(path: Path, instrument: Instrument, depth: int) -> Books:
    rebuilt = rebuild(read_log(path, instrument.symbol), depth)
    for broken in rebuilt.breaks:
        say(f"{path}: the chain of updates is broken at {broken}; no rows until the next snapshot")
    if rebuilt.frame.is_empty():
        raise UserError(f"{path}: no book of '{instrument.symbol}' can be rebuilt from it; check the symbol")
    return Books.checked(instrument, rebuilt.frame, str(path))
