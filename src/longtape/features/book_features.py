"""The order book itself, level by level: what a model of books reads."""

from __future__ import annotations

import numpy as np

from longtape.core.errors import UserError
from longtape.features.registry import feature, refuse_unless
from longtape.features.rolling import Array
from longtape.features.table import Table

SIRIGNANO = "Sirignano & Cont (2019), Universal Features of Price Formation in Financial Markets"
SIDES = ("bid", "ask")


def book_columns(levels: int, **_: object) -> tuple[str, ...]:
    """`bid_ticks_1, bid_log_size_1, ask_ticks_1, …`: four columns for each level, best first."""
    return tuple(
        f"{side}_{what}_{i + 1}" for i in range(levels) for side in SIDES for what in ("ticks", "log_size")
    )


def _units_are_positive(levels: int, tick: float, lot: float) -> None:
    refuse_unless(tick > 0 and lot > 0, "tick and lot must be above 0")


@feature(
    "(price_i − mid) / tick away from the mid, ln(1 + size_i / lot)",
    SIRIGNANO,
    needs=("bid_price_1", "bid_size_1", "ask_price_1", "ask_size_1"),
    outputs=book_columns,
    check=_units_are_positive,
)
def book(table: Table, levels: int = 5, tick: float = 0.01, lot: float = 0.001) -> tuple[Array, ...]:
    """Distance from the mid in ticks and size in logarithms of the best levels of both sides. A level that is not there
    has size 0, one tick beyond the level before.
    """
    mid = 0.5 * (table["bid_price_1"] + table["ask_price_1"])
    found: list[Array] = []
    before = {side: np.zeros(len(table)) for side in SIDES}
    for i in range(1, levels + 1):
        for side in SIDES:
            before[side], size = _level(table, side, i, mid, tick, before[side])
            found += [before[side].copy(), np.log1p(size / lot)]
    return tuple(found)


def _level(table: Table, side: str, i: int, mid: Array, tick: float, before: Array) -> tuple[Array, Array]:
    """Ticks away from the mid, and size [T]."""
    name = f"{side}_price_{i}"
    if name not in table.columns:
        raise UserError(f"features: {table.origin}: books are {i - 1} levels deep; name fewer levels in book")
    away = (table.columns[name] - mid) / tick * (1.0 if side == "ask" else -1.0)
    return np.where(np.isnan(away), before + 1.0, away), table[f"{side}_size_{i}"]
