"""Names of columns as they are compared, and columns of (field, symbol) as rows of symbols."""

from __future__ import annotations

import re
from collections.abc import Sequence

import polars as pl

from longtape.core.errors import UserError

FIELDS = frozenset({"open", "high", "low", "close", "adjclose", "volume", "dividends", "stocksplits", "capitalgains",
                    "repaired", "price"})  # fmt: skip


def plain(name: str) -> str:
    """A name as it is compared: lower case, letters and digits."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def stacked(cells: pl.DataFrame, fields: Sequence[str], symbols: Sequence[str], origin: str) -> pl.DataFrame:
    """Columns of (field, symbol) behind a first one of times → a long table `timestamp, symbol, field …`."""
    if len(fields) != cells.width - 1:
        raise UserError(
            f"{origin}: the header names {len(fields)} columns and the rows have {cells.width - 1}"
        )
    parts = []
    for symbol in dict.fromkeys(symbols):
        own = [i for i, name in enumerate(symbols) if name == symbol]
        columns = [cells.to_series(i + 1).alias(fields[i]) for i in own]
        part = pl.DataFrame([cells.to_series(0).alias("timestamp"), *columns])
        empty = pl.all_horizontal(pl.col(c.name).is_null() for c in columns)  # not listed then
        parts.append(part.filter(~empty).with_columns(pl.lit(str(symbol)).alias("symbol")))
    return pl.concat(parts, how="diagonal_relaxed")
