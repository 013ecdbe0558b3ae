"""Trades one by one: what a model of the tape reads, a token for each trade."""

from __future__ import annotations

import numpy as np

from longtape.features.book_features import SIRIGNANO
from longtape.features.order_flow import tick_rule
from longtape.features.registry import feature, refuse_unless
from longtape.features.rolling import Array, divide, rolling_sum
from longtape.features.table import Table

IMBALANCE_TRADES = 100  # over which a baseline counts who took
RULE_TRADES = 100  # for how long the tick rule remembers a change of price


def taker(table: Table) -> Array:
    """Who took [T], +1 a buyer, −1 a seller: as recorded, and by the tick rule where that is not known."""
    guessed = tick_rule(table, RULE_TRADES)
    return guessed if "side" not in table.columns else _first_known(table.columns["side"], guessed)


def _first_known(values: Array, otherwise: Array) -> Array:
    return np.where(np.isnan(values), otherwise, values)


def _units_are_positive(tick: float, lot: float) -> None:
    refuse_unless(tick > 0 and lot > 0, "tick and lot must be above 0")


@feature(
    "Δprice / tick, ln(1 + size / lot), side, ln(1 + ms since the trade before)",
    SIRIGNANO,
    needs=("price", "size"),
    outputs=("ticks", "log_size", "side", "log_wait"),
    warm_up=lambda table, tick, lot: RULE_TRADES,
    check=_units_are_positive,
)
def tape(table: Table, tick: float = 0.01, lot: float = 0.001) -> tuple[Array, ...]:
    """A trade as a token: by how many ticks the price changed, how much was traded, who took, and after what wait (0
    for trades of one moment). Where it is not recorded who took, the tick rule says it.
    """
    price = table["price"]
    changed = np.diff(price, prepend=price[0]) / tick
    wait = np.diff(table.timestamps, prepend=table.timestamps[0]).astype(np.float64)
    return changed, np.log1p(table["size"] / lot), taker(table), np.log1p(wait)


def tape_summary(table: Table) -> Array:
    """[T, 2]: who took in the newest trade, and the imbalance of taken sizes over the last hundred, in [−1, 1]."""
    sides, size = taker(table), table["size"]
    imbalance = divide(rolling_sum(sides * size, IMBALANCE_TRADES), rolling_sum(size, IMBALANCE_TRADES), 0.0)
    return np.stack([sides, np.nan_to_num(imbalance)], axis=1)
