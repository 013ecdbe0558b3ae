"""Files without a header: known orders of columns, told from each other by what a candle's prices can be.

A row says which order it is in: its high is above and its low below the other two prices. Adding a program that writes
another order is one line here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from longtape.core.errors import UserError
from longtape.market.files.config import FileConfig
from longtape.market.files.numbers import numbers
from longtape.market.files.tables import Table

_ORDER = "--columns time,open,high,low,close,volume"
_ENOUGH = 0.98  # of the rows must fit: a real file may have a few that do not


@dataclass(frozen=True)
class Layout:
    """One order of columns; a file of as many or more has it. `first` is what the first cell looks like.

    `zone`: of times that the program writes without one, where it is known.
    """

    program: str
    columns: tuple[str, ...]
    first: str = r".*"
    zone: str | None = None
    widths: tuple[int, ...] = ()


_CANDLE = ("timestamp", "open", "high", "low", "close", "volume")
LAYOUTS: tuple[Layout, ...] = (
    Layout("Binance archive", (*_CANDLE, "close_time", "turnover"), r"\d{13,16}", widths=(8, 9, 10, 11, 12)),
    Layout("MetaTrader", ("date", "time", *_CANDLE[1:]), r"\d{4}[.\-/]\d\d[.\-/]\d\d", widths=(7, 8, 9)),
    Layout("HistData, Eastern time without daylight saving", _CANDLE, r"\d{8} \d{6}", "-05:00", (6,)),
    Layout("time, open, high, low, close, volume", _CANDLE, widths=(6, 7)),
    Layout("Coinbase", ("timestamp", "low", "high", "open", "close", "volume"), r"\d{9,10}", widths=(6,)),
    Layout("Bitfinex", ("timestamp", "open", "close", "high", "low", "volume"), r"\d{9,13}", widths=(6,)),
    Layout(
        "KuCoin",
        ("timestamp", "open", "close", "high", "low", "volume", "turnover"),
        r"\d{9,13}",
        widths=(7,),
    ),
    Layout("Gate.io", ("timestamp", "volume", "close", "high", "low", "open"), r"\d{9,13}", widths=(6, 7)),
    Layout("OKX", (*_CANDLE, "-", "turnover", "-"), r"\d{13}", widths=(9,)),
    Layout("time, open, high, low, close", _CANDLE[:5], widths=(5,)),
    Layout("time and close", ("timestamp", "close"), widths=(2,)),
)


def laid_out(table: Table, config: FileConfig, origin: str) -> tuple[Table, str | None]:
    """A table without a header under our names, and the zone of its times where the program's is known.

    UserError where no known order fits, or several that say different things.
    """
    if config.order is not None:
        return _in_order(table, config.order, origin), None
    shares = {layout: _share_fitting(layout, table, config, origin) for layout in LAYOUTS}
    best_share = max(shares.values())
    fitting = [layout for layout, share in shares.items() if share == best_share]
    if best_share < _ENOUGH:
        raise UserError(
            f"{origin}: no header, {table.cells.width} columns, and no known order of them fits; name it, as in"
            f" {_ORDER}"
        )
    best = fitting[0]
    other = next((one for one in fitting[1:] if _differ(best, one, table)), None)
    if other is not None:
        raise UserError(
            f"{origin}: no header, and its columns may be those of '{best.program}' or of '{other.program}'; name them,"
            f" as in {_ORDER}"
        )
    named = _in_order(table, list(best.columns), origin)
    return named.noted(f"no header: columns of {best.program}"), best.zone


def _in_order(table: Table, order: list[str], origin: str) -> Table:
    if len(order) > table.cells.width:
        raise UserError(f"{origin}: {len(order)} columns are named, and there are {table.cells.width}")
    pairs = [(theirs, ours) for theirs, ours in zip(table.cells.columns, order, strict=False) if ours != "-"]
    return Table(table.cells.select(pl.col(t).alias(o) for t, o in pairs), True, table.notes)


def _share_fitting(layout: Layout, table: Table, config: FileConfig, origin: str) -> float:
    """The share of rows whose prices can be a candle's in this order; 0 where the layout is another one altogether."""
    if table.cells.width not in layout.widths or not table.cells.height:
        return 0.0
    if not re.fullmatch(layout.first, str(table.cells.item(0, 0)).strip()):
        return 0.0
    prices = _prices(layout, table, config, origin)
    if prices is None:
        return 0.0
    if not {"high", "low"} <= prices.keys():
        return 1.0
    body = np.stack([prices["open"], prices["close"]])
    inside = (prices["low"] <= body.min(axis=0)) & (prices["high"] >= body.max(axis=0)) & (prices["low"] > 0)
    return float(inside.mean())


def _prices(
    layout: Layout, table: Table, config: FileConfig, origin: str
) -> dict[str, npt.NDArray[np.float64]] | None:
    """The prices in rows spread over the table, if the layout's columns hold numbers at all."""
    rows = table.cells.gather_every(max(table.cells.height // 5_000, 1))
    order = dict(zip(layout.columns, rows.columns, strict=False))
    chosen = rows.select(
        pl.col(order[name]).alias(name) for name in ("open", "high", "low", "close") if name in order
    )
    try:
        return {
            name: s.to_numpy() for name, s in numbers(chosen, chosen.columns, origin, config.decimal).items()
        }
    except UserError:
        return None


def _differ(one: Layout, other: Layout, table: Table) -> bool:
    """Whether two layouts take other cells for the same thing."""
    places = [{n: i for i, n in enumerate(layout.columns) if n != "-"} for layout in (one, other)]
    columns = table.cells.columns
    return any(
        not table.cells[columns[at]].equals(table.cells[columns[places[1][name]]])
        for name, at in places[0].items()
        if name in places[1] and name in _CANDLE
    )
