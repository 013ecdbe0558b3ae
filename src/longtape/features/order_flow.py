"""Features of order flow: who traded, and what waits in the book.

Bars from trades carry `buy_volume` beside `volume`. Books carry `bid_price_i, bid_size_i, ask_price_i,
ask_size_i`, i = 1 the best. Trades carry `price, size` and, where it is known who the aggressor was,
`side`: +1 a buyer, −1 a seller.
"""

from __future__ import annotations

import numpy as np

from longtape.features.registry import feature, refuse_unless, window_rows
from longtape.features.rolling import Array, divide, kernel, lagged, rolling_sum
from longtape.features.table import Table

TOP = ("bid_price_1", "bid_size_1", "ask_price_1", "ask_size_1")
HASBROUCK = "Hasbrouck (2007), Empirical Market Microstructure"
STOIKOV = (
    "Gatheral & Oomen (2010), Zero-Intelligence Realized Variance Estimation; Stoikov (2018), The Micro-Price"
)
CONT = "Cont, Kukanov & Stoikov (2014), The Price Impact of Order Book Events"


@feature(
    "Σ(buy − sell) / Σ(buy + sell) over n bars",
    "Chordia & Subrahmanyam (2004), Order Imbalance and Individual Stock Returns",
    needs=("buy_volume", "volume"),
    warm_up=window_rows,
)
def trade_imbalance(table: Table, n: int = 1) -> Array:
    """Imbalance of volume by aggressor, in [−1, 1]; 0 where nothing was traded."""
    total = rolling_sum(table["volume"], n)
    return divide(2.0 * rolling_sum(table["buy_volume"], n) - total, total, 0.0)


@feature("side · size", HASBROUCK, needs=("side", "size"))
def signed_size(table: Table) -> Array:
    """Size of each trade, above zero where the buyer was the aggressor."""
    return table["side"] * table["size"]


@kernel
def _tick_signs(price: Array, n: int) -> Array:
    out = np.zeros(len(price))
    changed = 0
    for t in range(1, len(price)):
        change = price[t] - price[t - 1]
        changed = t if change != 0.0 else changed
        kept = out[t - 1] if t - changed < n else 0.0
        out[t] = 1.0 if change > 0.0 else (-1.0 if change < 0.0 else kept)
    return out


@feature(
    "sign of the last change of price",
    "Lee & Ready (1991), Inferring Trade Direction from Intraday Data",
    needs=("price",),
    warm_up=lambda table, n: n,
)
def tick_rule(table: Table, n: int = 100) -> Array:
    """+1 after a rise, −1 after a fall, kept while the price stands still; 0 once that has lasted n trades."""
    return _tick_signs(table["price"], n)


def _side(table: Table, side: str, levels: int) -> Array:
    total = table[f"{side}_size_1"].copy()
    for level in range(2, levels + 1):
        total += table[f"{side}_size_{level}"]
    return total


def _mid(table: Table) -> Array:
    return 0.5 * (table["bid_price_1"] + table["ask_price_1"])


@feature("(bid_1 + ask_1) / 2", HASBROUCK, needs=TOP)
def mid_price(table: Table) -> Array:
    """Middle between the best bid and the best ask."""
    return _mid(table)


@feature("ask_1 − bid_1", HASBROUCK, needs=TOP)
def spread(table: Table) -> Array:
    """Quoted spread, in units of price."""
    return table["ask_price_1"] - table["bid_price_1"]


@feature("(ask_1 − bid_1) / mid", HASBROUCK, needs=TOP)
def relative_spread(table: Table) -> Array:
    """Quoted spread as a fraction of the mid price."""
    return spread(table) / _mid(table)


@feature("(ask_1·q_bid + bid_1·q_ask) / (q_bid + q_ask)", STOIKOV, needs=TOP)
def micro_price(table: Table) -> Array:
    """Mid price weighted by the sizes on the opposite sides; the mid price where both are empty."""
    bid, ask = table["bid_size_1"], table["ask_size_1"]
    weighted = divide(table["ask_price_1"] * bid + table["bid_price_1"] * ask, bid + ask, 0.0)
    return np.where(bid + ask == 0.0, _mid(table), weighted)


@feature("micro_price / mid − 1", STOIKOV, needs=TOP)
def micro_price_distance(table: Table) -> Array:
    """How far the micro-price stands from the mid price."""
    return micro_price(table) / _mid(table) - 1.0


@feature("(Σ q_bid − Σ q_ask) / (Σ q_bid + Σ q_ask) over the best levels", CONT, needs=TOP)
def book_imbalance(table: Table, levels: int = 1) -> Array:
    """Imbalance of waiting sizes, in [−1, 1]; 0 where the levels are empty."""
    bid, ask = _side(table, "bid", levels), _side(table, "ask", levels)
    return divide(bid - ask, bid + ask, 0.0)


@feature("Σ q_bid + Σ q_ask over the best levels", HASBROUCK, needs=TOP)
def depth(table: Table, levels: int = 5) -> Array:
    """Size that waits on both sides."""
    return _side(table, "bid", levels) + _side(table, "ask", levels)


def _is_a_side(side: str, **_: object) -> None:
    refuse_unless(side in ("bid", "ask"), 'side must be "bid" or "ask"')


@feature("price_i / mid − 1", HASBROUCK, needs=TOP, check=_is_a_side)
def level_distance(table: Table, side: str, level: int = 1) -> Array:
    """How far a level of the "bid" or the "ask" side stands from the mid price."""
    return table[f"{side}_price_{level}"] / _mid(table) - 1.0


@feature("size_i", HASBROUCK, needs=TOP, check=_is_a_side)
def level_size(table: Table, side: str, level: int = 1) -> Array:
    """Size that waits at a level of the "bid" or the "ask" side."""
    return table[f"{side}_size_{level}"].copy()


@feature(
    "Σ over n events of 1{b≥b₋}q_b − 1{b≤b₋}q_b₋ − 1{a≤a₋}q_a + 1{a≥a₋}q_a₋",
    CONT,
    needs=TOP,
    warm_up=lambda table, n: n,
)
def order_flow_imbalance(table: Table, n: int = 1) -> Array:
    """Net size added to the best bid and taken from the best ask, over n snapshots."""
    bid, ask = table["bid_price_1"], table["ask_price_1"]
    q_bid, q_ask = table["bid_size_1"], table["ask_size_1"]
    bid_before, ask_before = lagged(bid, 1), lagged(ask, 1)
    demand = (bid >= bid_before) * q_bid - (bid <= bid_before) * lagged(q_bid, 1)
    supply = (ask <= ask_before) * q_ask - (ask >= ask_before) * lagged(q_ask, 1)
    return rolling_sum(demand - supply, n)
