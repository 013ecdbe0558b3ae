"""Rows of a header → names of columns. A header of fields over symbols makes a long table with a column `symbol`."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from longtape.market.files.tables import Table, unique_names
from longtape.market.naming import FIELDS, plain, stacked

_LEVELS = frozenset({"price", "ticker", "date", "datetime", "attributes", "symbols", "symbol", ""})


def headed(cells: pl.DataFrame, header: Sequence[Sequence[str]], origin: str) -> Table:
    """Cells under their names: none (called 1, 2, …), one row, or two of fields and symbols as yfinance writes them."""
    rows = [list(row)[: cells.width] for row in header]
    if len(rows) > 1 and not any(cell.strip() for cell in rows[-1][1:]):
        index = rows.pop()  # the index's own name stands in a row of its own
        rows[-1][0] = rows[-1][0] if len(rows) == 1 and plain(rows[-1][0]) not in _LEVELS else index[0]
    if not rows:
        return Table(cells.rename(_numbered(cells)), has_header=False)
    if len(rows) == 1:
        return Table(_named(cells, rows[0]))
    at = next((i for i, row in enumerate(rows) if _are_fields(row[1:])), None)
    if at is None or len(rows) > 2:
        return Table(_named(cells, rows[-1])).noted(f"{len(rows) - 1} rows above the header left out")
    symbols = rows[1 - at][1:]
    if len({*rows[at][1:]}) == len(rows[at][1:]) and len({*symbols}) > 1:  # units, not symbols
        return Table(_named(cells, rows[at])).noted(
            f"a row beside the header left out: {', '.join(symbols[:6])}"
        )
    return Table(stacked(_named(cells, [str(i) for i in range(cells.width)]), rows[at][1:], symbols, origin))


def _are_fields(row: Sequence[str]) -> bool:
    return sum(plain(cell) in FIELDS for cell in row) * 5 >= len(row) * 4


def _named(cells: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    return cells.rename(dict(zip(cells.columns, unique_names(list(names)), strict=True)))


def _numbered(cells: pl.DataFrame) -> dict[str, str]:
    return {name: str(i + 1) for i, name in enumerate(cells.columns)}
