"""What trades and books are read from beside candles: one Parquet file, and a check of its symbols."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from longtape.core.errors import UserError

PARQUET = (".parquet", ".pq")


def read_parquet(path: Path) -> pl.DataFrame:
    """The table of one Parquet file; UserError where it is absent or cannot be read."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return pl.read_parquet(path, hive_partitioning=False, glob=False)
    except (pl.exceptions.PolarsError, OSError):
        raise UserError(f"{path}: not a readable Parquet file; it may be cut off, write it again") from None


def refuse_other_symbols(frame: pl.DataFrame, symbol: str, what: str, path: str | Path) -> None:
    """UserError where a column `symbol` names another one than `symbol`."""
    if "symbol" not in frame.columns:
        return
    found = frame["symbol"].cast(pl.String).unique().sort()
    if found.to_list() != [symbol]:
        raise UserError(f"{path}: holds {what} of {', '.join(map(str, found[:5]))}, not of '{symbol}' alone")
