"""Targets whose classes are set on the training rows: down, flat, up of a smoothed price."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from longtape.core.errors import UserError
from longtape.features.panel import Panel, Rows, TargetColumn
from longtape.features.registry import target
from longtape.features.rolling import Array, rolling_mean
from longtape.features.table import Table
from longtape.features.target_kinds import TERCILES
from longtape.features.targets import Label, ahead

BORDERS = ("down_below", "up_above")  # options of a target column whose classes are set
_ROUNDING = 1e-12  # of a running mean: a price that stood still has not moved


@target(
    "0, 1, 2: lower, middle, upper tercile of the training rows' (mean of the next k prices) / price_t − 1",
    "Ntakaris et al. (2018), Benchmark Dataset for Mid-Price Forecasting; Zhang, Zohren & Roberts (2019), DeepLOB",
    TERCILES.name,
    horizons=lambda k: (k,),
)
def smoothed_direction(table: Table, k: int = 10) -> Sequence[Label]:
    """Down (0), flat (1) or up (2): the mean price of the next k rows against the price now (of books the mid). Flat
    lies between the terciles of the training rows' moves, borders included.
    """
    price = table["close"]
    moves = ahead(rolling_mean(price, k), k) / price - 1.0
    return [Label(np.where(np.abs(moves) < _ROUNDING, 0.0, moves), k)]


def with_classes(panel: Panel, train: Rows) -> Panel:
    """Moves become classes, by the terciles of the moves at `train`; what has its classes already keeps them."""
    columns = [
        replace(column, options=_terciles(panel, k, train)) if _is_open(column) else column
        for k, column in enumerate(panel.target_columns)
    ]
    return classed_as(panel, columns)


def classed_as(panel: Panel, columns: Sequence[TargetColumn]) -> Panel:
    """The panel with its moves in the classes of these target columns, a run's."""
    borders = {column.key: column for column in columns if column.kind == TERCILES.name}
    targets, named = panel.targets, list(panel.target_columns)
    for k, column in enumerate(panel.target_columns):
        if _is_open(column) and column.key in borders:
            targets = targets.copy() if targets is panel.targets else targets
            named[k] = borders[column.key]
            targets[:, k] = _classes(panel.targets[:, k], named[k])
    return panel if targets is panel.targets else replace(panel, targets=targets, target_columns=tuple(named))


def _is_open(column: TargetColumn) -> bool:
    return column.kind == TERCILES.name and not column.options


def _terciles(panel: Panel, k: int, train: Rows) -> tuple[tuple[str, float], ...]:
    moves = panel.targets[train, k]
    if not np.isfinite(moves).any():
        raise UserError(f"targets: '{panel.target_columns[k].name}': no move of the training rows is known")
    low, high = np.nanquantile(moves, [1 / 3, 2 / 3])
    return tuple(zip(BORDERS, (float(low), float(high)), strict=True))


def _classes(moves: Array, column: TargetColumn) -> Array:
    low, high = (dict(column.options)[name] for name in BORDERS)
    return np.where(np.isnan(moves), np.nan, 1.0 + (moves > high) - (moves < low))
