"""Books: the order book of one instrument after each of its updates, in UTC, checked."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count, takewhile

import numpy as np
import polars as pl

from longtape.core.arrays import Flags, Floats
from longtape.core.clock import Milliseconds, iso
from longtape.core.errors import UserError
from longtape.core.instrument import Instrument
from longtape.market.orderbook import CROSSED, level_columns
from longtape.market.rows import (
    Rows,
    as_numbers,
    as_times,
    digest,
    in_full_milliseconds,
    refuse_disorder,
    refuse_values,
    require_columns,
)

OPTIONAL = ("event_time", "received_ns", "update_id")
_ABOVE_ZERO = "above zero and finite"


@dataclass(frozen=True, eq=False, repr=False)
class Books(Rows):
    """One row an update: `timestamp` (the matching engine's, UTC µs), where they are known `event_time` (UTC ms),
    `received_ns` and `update_id`, and `bid_price_i, bid_size_i, ask_price_i, ask_size_i`, i = 1 … depth, best first,
    null where the book is not that deep. Many updates of one moment are normal. Build it with `Books.checked`.
    """

    instrument: Instrument
    frame: pl.DataFrame
    origin: str = "data"

    @classmethod
    def checked(cls, instrument: Instrument, frame: pl.DataFrame, origin: str = "data") -> Books:
        """Check and take `frame`; other columns are left out. UserError naming `origin`, the row and its time for
        anything that a book cannot be: crossed, a level out of order or behind an empty one, a price or size not above
        zero, updates of one moment out of order.
        """
        return cls(instrument, _checked_frame(frame, origin), origin)

    @property
    def depth(self) -> int:
        """Levels of each side."""
        return _depth(self.frame)

    @property
    def known_at(self) -> Milliseconds:
        """When each book is known [T], UTC milliseconds: when its message was sent (`event_time`, else the matching
        engine's time, rounded up), and not before the update that came before it.

        The time of receipt is no part of it: it is another clock's, seconds off in real recordings.
        """
        known = in_full_milliseconds(self.frame["timestamp"])
        if "event_time" in self.frame.columns:
            sent = self.frame["event_time"].dt.timestamp("ms").fill_null(pl.Series(known)).to_numpy()
            known = np.maximum(known, sent)
        return np.maximum.accumulate(known)

    @property
    def ids(self) -> pl.Series | None:
        """The updates' ids [T] (Int64); None where there are none."""
        return self.frame["update_id"] if "update_id" in self.frame.columns else None

    def top(self, depth: int) -> Books:
        """The best `depth` levels of each side; UserError where there are fewer."""
        if depth > self.depth:
            raise UserError(
                f"{self.origin}: books are {self.depth} levels deep, not {depth}; name a lower depth"
            )
        deeper = set(level_columns(self.depth)) - set(level_columns(depth))
        return self.with_frame(self.frame.drop(deeper))

    def fingerprint(self) -> str:
        """SHA-256 over times and values: the same data give the same text on every machine."""
        return digest(f"{self.instrument.key}/books", self.frame)


def _depth(frame: pl.DataFrame) -> int:
    return sum(1 for _ in takewhile(lambda i: f"bid_price_{i}" in frame.columns, count(1)))


def _checked_frame(frame: pl.DataFrame, origin: str) -> pl.DataFrame:
    # a period without rows has no levels either
    levels = level_columns(max(_depth(frame), min(frame.height, 1)))
    require_columns(frame, ("timestamp", *levels), origin)
    numbers = [as_numbers(frame[name], origin).fill_nan(None) for name in levels]
    frame = frame.with_columns(
        as_times(frame["timestamp"], origin, "us"), *numbers, *_optional(frame, origin)
    )
    at = frame["timestamp"].dt.timestamp("ms").to_numpy()
    times = frame["timestamp"].dt.timestamp("us").to_numpy()
    refuse_disorder(times, at, origin)
    if "update_id" in frame.columns:
        _check_ids(frame["update_id"], np.diff(times) == 0, at, origin)
    for side in ("bid", "ask"):
        _check_side(frame, side, _depth(frame), at, origin)
    _check_crossed(frame, at, origin)
    return frame.select("timestamp", *(name for name in OPTIONAL if name in frame.columns), *levels)


def _optional(frame: pl.DataFrame, origin: str) -> list[pl.Series]:
    return [
        as_times(frame[name], origin, sparse=True)
        if name == "event_time"
        else as_numbers(frame[name], origin, pl.Int64)
        for name in OPTIONAL
        if name in frame.columns
    ]


def _check_ids(ids: pl.Series, same_time: Flags, at: Milliseconds, origin: str) -> None:
    if ids.null_count():
        raise UserError(f"{origin}: row {int(ids.is_null().arg_max() or 0) + 1} has no update_id")
    bad = same_time & (np.diff(ids.to_numpy()) <= 0)
    if bad.any():
        row = int(np.argmax(bad)) + 1
        raise UserError(
            f"{origin}: row {row + 1} ({iso(int(at[row]))}): update {ids[row]} does not come after update"
            f" {ids[row - 1]} of the same time; sort by timestamp and update_id, each update once"
        )


def _check_side(frame: pl.DataFrame, side: str, depth: int, at: Milliseconds, origin: str) -> None:
    """Each level has a price and a size above zero, or neither; prices run away from the middle without a hole."""
    sign, behind = (-1.0, "below") if side == "bid" else (1.0, "above")
    nearer: Floats | None = None
    for i in range(1, depth + 1):
        prices, sizes = frame[f"{side}_price_{i}"], frame[f"{side}_size_{i}"]
        price, size = prices.to_numpy(), sizes.to_numpy()  # NaN where there is no level
        there = ~np.isnan(price)
        refuse_values((price <= 0) | np.isinf(price), prices, f"a price must be {_ABOVE_ZERO}", at, origin)
        refuse_values((size <= 0) | np.isinf(size), sizes, f"a size must be {_ABOVE_ZERO}", at, origin)
        refuse_values(there & np.isnan(size), prices, "a price without a size", at, origin)
        refuse_values(~there & ~np.isnan(size), sizes, "a size without a price", at, origin)
        if nearer is not None:
            refuse_values(there & np.isnan(nearer), prices, "the level before it is empty", at, origin)
            out_of_order = sign * price <= sign * nearer
            refuse_values(out_of_order, prices, f"not {behind} the level before it", at, origin)
        nearer = price


def _check_crossed(frame: pl.DataFrame, at: Milliseconds, origin: str) -> None:
    if _depth(frame):
        crossed = frame["bid_price_1"].to_numpy() >= frame["ask_price_1"].to_numpy()
        refuse_values(crossed, frame["bid_price_1"], CROSSED, at, origin)
