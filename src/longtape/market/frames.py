"""Frames of other libraries at the door: polars and pandas in, pandas out."""

from __future__ import annotations

from typing import Any

import polars as pl

from longtape.core.errors import UserError, require
from longtape.market.naming import FIELDS, plain, stacked

_TIMES = ("timestamp", "datetime", "date", "time", "opentime", "index")


def as_frame(data: Any, what: str) -> pl.DataFrame:
    """A polars frame with a column `timestamp` from a polars or pandas one, whose time is in a column or the index.

    Times with a zone keep their moment, those without are UTC. Columns that are ours but for their case (`Open`) get
    our names; pandas columns of two levels (field, symbol), as yfinance gives them, become a long frame. UserError for
    anything else.
    """
    if isinstance(data, pl.LazyFrame):
        data = data.collect()
    if not isinstance(data, pl.DataFrame):
        data = _from_pandas(data, what)
    if "timestamp" in data.columns:
        return data
    named = {plain(name): name for name in reversed(data.columns)}
    time = next((named[name] for name in _TIMES if name in named), None)
    return data if time is None else data.rename({time: "timestamp"})


def lower_case(frame: pl.DataFrame, names: tuple[str, ...]) -> pl.DataFrame:
    """Columns that are `names` but for case and blanks under those names: `Open` is open, `Adj Close` adj_close."""
    there = {plain(name): name for name in reversed(frame.columns)}
    wanted = {plain(name): name for name in names if name not in frame.columns}
    return frame.rename({there[key]: name for key, name in wanted.items() if key in there})


def _from_pandas(data: Any, what: str) -> pl.DataFrame:
    if type(data).__module__.split(".")[0] != "pandas" or not hasattr(data, "columns"):
        raise UserError(f"{what}: expected a polars or pandas frame, not {type(data).__name__}")
    if getattr(data.columns, "nlevels", 1) > 1:
        return _long(data, what)
    names = [str(name) for name in data.columns]
    if not any(plain(name) in _TIMES for name in names):
        if not hasattr(data.index, "tz") and str(data.index.dtype).startswith(("int", "range")):
            raise UserError(f"{what}: no column of times; name one 'timestamp', or make it the index")
        data = data.rename_axis(index="timestamp").reset_index()
    return _converted(data, what)


def _converted(data: Any, what: str) -> pl.DataFrame:
    data = data.copy(deep=False)
    data.columns = [str(name) for name in data.columns]
    try:
        return pl.from_pandas(data, nan_to_null=False)
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"{what}: the pandas frame cannot be taken ({str(error).splitlines()[0]})") from None


def _long(data: Any, what: str) -> pl.DataFrame:
    """(field, symbol) or (symbol, field) over times → `timestamp, symbol, open …`."""
    if data.columns.nlevels > 2:
        raise UserError(
            f"{what}: columns of {data.columns.nlevels} levels; two are understood: field and symbol"
        )
    levels = [[str(name[i]) for name in data.columns] for i in (0, 1)]
    fields, symbols = levels if all(plain(name) in FIELDS for name in levels[0]) else levels[::-1]
    flat = data.copy(deep=False)
    flat.columns = [str(i) for i in range(len(fields))]
    cells = _converted(flat.rename_axis(index="timestamp").reset_index(), what)
    return stacked(cells, fields, symbols, what)


def to_pandas(frame: pl.DataFrame) -> Any:
    """A pandas frame; a column `timestamp` becomes its index, in UTC."""
    require("pandas", "pandas")
    made = frame.to_pandas()
    return made.set_index("timestamp") if "timestamp" in frame.columns else made
