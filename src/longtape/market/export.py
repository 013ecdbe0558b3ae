"""Stored data out to a file that anything can read."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from longtape.core.errors import UserError
from longtape.core.files import atomic_path
from longtape.market.bars import COLUMNS
from longtape.market.partition import CANDLE_KINDS
from longtape.market.store import Store

FORMATS = (".parquet", ".csv")


def export(
    store: Store,
    symbol: str,
    out: str | Path,
    *,
    interval: str | None = None,
    kind: str = "candles",
    source: str | None = None,
    category: str | None = None,
    since: str | int | None = None,
    until: str | int | None = None,
) -> int:
    """Write a stored series of [since, until) to `out` (.parquet or .csv), whole or not at all; gives its rows.

    Candles have `timestamp` (Parquet `timestamp[ms, tz=UTC]`), open, high, low, close, volume (float64), in order of
    time; the other kinds have all their columns. UserError for another ending, an unknown symbol, an empty period.
    """
    out = Path(out)
    if out.suffix not in FORMATS:
        raise UserError(f"{out}: write to a file that ends in {' or '.join(FORMATS)}")
    if kind in CANDLE_KINDS:
        if interval is None:
            raise UserError(f"--interval is needed to export {kind}")
        bars = store.read(
            symbol, interval, source=source, category=category, kind=kind, since=since, until=until
        )
        frame = bars.frame.select(COLUMNS)
    elif interval is not None:
        raise UserError(f"{kind} have no interval; leave --interval away")
    else:
        frame = store.read_table(kind, symbol, source=source, category=category, since=since, until=until)
    if frame.is_empty():
        raise UserError(
            f"{store.root}: {symbol} has no {kind} between {since} and {until}; nothing was written"
        )
    _write(frame, out)
    return frame.height


def _write(frame: pl.DataFrame, out: Path) -> None:
    with atomic_path(out) as temporary:
        if out.suffix == ".csv":
            frame.write_csv(temporary, datetime_format="%Y-%m-%dT%H:%M:%S%.3fZ")
        else:
            frame.write_parquet(temporary, compression="zstd", use_pyarrow=True)
