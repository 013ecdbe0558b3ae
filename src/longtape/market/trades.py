"""Trades: what was traded of one instrument, trade by trade, in UTC, checked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from longtape.core.clock import Milliseconds, iso
from longtape.core.errors import UserError
from longtape.core.instrument import Instrument
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

COLUMNS = ("timestamp", "price", "size")
OPTIONAL = ("id", "side")
_SIDES = ("buy", "sell")


@dataclass(frozen=True, eq=False, repr=False)
class Trades(Rows):
    """One row a trade: `timestamp` (UTC µs), `price`, `size`, and where they are known `id` (text) and `side`, the
    taker's (`buy`, `sell`, null). Many trades of one moment are normal. Build it with `Trades.checked`.
    """

    instrument: Instrument
    frame: pl.DataFrame
    origin: str = "data"

    @classmethod
    def checked(cls, instrument: Instrument, frame: pl.DataFrame, origin: str = "data") -> Trades:
        """Check and take `frame`; `buyer_is_maker` (Boolean) will do for `side`, other columns are left out.

        UserError naming `origin`, the row and its time for anything that a trade cannot be.
        """
        return cls(instrument, _checked_frame(frame, origin), origin)

    @property
    def known_at(self) -> Milliseconds:
        """When each trade is known [T], UTC milliseconds: when it happens, rounded up."""
        return in_full_milliseconds(self.frame["timestamp"])

    @property
    def ids(self) -> pl.Series | None:
        """The trades' ids [T], Int64 where all of them are whole numbers, else text; None where there are none."""
        if "id" not in self.frame.columns:
            return None
        numbers = self.frame["id"].cast(pl.Int64, strict=False)
        return self.frame["id"] if numbers.null_count() else numbers

    def fingerprint(self) -> str:
        """SHA-256 over times and values: the same data give the same text on every machine."""
        return digest(f"{self.instrument.key}/trades", self.frame)


def side_of_taker(frame: pl.DataFrame) -> dict[str, pl.Series]:
    """`side` in lower case, from `side` or from `buyer_is_maker`: where the buyer was the maker, the seller took."""
    if "side" in frame.columns:
        return {"side": frame["side"].cast(pl.String).str.to_lowercase()}
    if "buyer_is_maker" not in frame.columns:
        return {}
    made = frame["buyer_is_maker"].cast(pl.String).str.to_lowercase().is_in(["true", "1"])
    return {"side": made.replace_strict({True: "sell", False: "buy"}, return_dtype=pl.String)}


def _checked_frame(frame: pl.DataFrame, origin: str) -> pl.DataFrame:
    require_columns(frame, COLUMNS, origin)
    frame = frame.with_columns(
        as_times(frame["timestamp"], origin, "us"),
        *(as_numbers(frame[name], origin) for name in COLUMNS[1:]),
        **side_of_taker(frame),
    )
    if "id" in frame.columns:
        frame = frame.with_columns(pl.col("id").cast(pl.String))
    at = frame["timestamp"].dt.timestamp("ms").to_numpy()
    refuse_disorder(frame["timestamp"].dt.timestamp("us").to_numpy(), at, origin)
    _check_values(frame, at, origin)
    return frame.select(*COLUMNS, *(name for name in OPTIONAL if name in frame.columns))


def _check_values(frame: pl.DataFrame, at: Milliseconds, origin: str) -> None:
    price, size = (frame[name].to_numpy() for name in COLUMNS[1:])
    refuse_values(
        ~((price > 0) & np.isfinite(price)),
        frame["price"],
        "a price must be above zero and finite",
        at,
        origin,
    )
    refuse_values(
        ~((size >= 0) & np.isfinite(size)),
        frame["size"],
        "a size must not be below zero or infinite",
        at,
        origin,
    )
    if "side" in frame.columns:
        _check_side(frame["side"], at, origin)
    if "id" in frame.columns:
        _check_id(frame["id"], at, origin)


def _check_side(side: pl.Series, at: Milliseconds, origin: str) -> None:
    bad = ~side.is_in(_SIDES).fill_null(True)
    if bad.any():
        row = int(bad.arg_max() or 0)
        raise UserError(
            f"{origin}: row {row + 1} ({iso(int(at[row]))}): side '{side[row]}' is neither buy nor sell; leave it"
            " empty where it is not known"
        )


def _check_id(ids: pl.Series, at: Milliseconds, origin: str) -> None:
    for bad, what in ((ids.is_null(), "has no id, others have one; give all ids or none"),
                      (~ids.is_first_distinct(), "repeats the id {}; remove the duplicate, or `longtape import` the"
                       " file, which takes each trade once")):  # fmt: skip
        if bad.any():
            row = int(bad.arg_max() or 0)
            raise UserError(f"{origin}: row {row + 1} ({iso(int(at[row]))}) {what.format(ids[row])}")
