"""One partition: the rows of one series and one period. Their kinds, their columns, and how new ones are merged in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import polars as pl

from longtape.core.clock import DAY, HOUR, MINUTE, Interval
from longtape.core.errors import UserError, unknown_name
from longtape.market.bars import COLUMNS, TIME_TYPE

MICROSECONDS = pl.Datetime("us", "UTC")
OnConflict = Literal["keep", "replace", "refuse"]


@dataclass(frozen=True)
class Kind:
    """A kind of rows: `columns` must be there, `optional` columns have a declared type, others are kept as given.

    Two rows are the same thing where `key` agrees. `period` is the numpy unit of a partition.
    """

    name: str
    columns: dict[str, Any]
    key: tuple[str, ...]
    period: str
    optional: dict[str, Any] = field(default_factory=dict)


_CANDLE = dict.fromkeys(COLUMNS, pl.Float64) | {"timestamp": TIME_TYPE}
CANDLE_KINDS = ("candles", "mark")
KINDS = {
    kind.name: kind
    for kind in (
        Kind("candles", _CANDLE, ("timestamp",), "M"),
        Kind("mark", _CANDLE, ("timestamp",), "M"),
        Kind(
            "trades",
            {"timestamp": MICROSECONDS, "price": pl.Float64, "size": pl.Float64},
            ("id",),  # the time may come in milliseconds from one place and in microseconds from another
            "D",
            {"id": pl.String, "side": pl.String},
        ),
        Kind("books", {"timestamp": MICROSECONDS, "update_id": pl.Int64}, ("timestamp", "update_id"), "h"),
        Kind("funding", {"timestamp": TIME_TYPE, "rate": pl.Float64}, ("timestamp",), "Y"),
    )
}


@dataclass(frozen=True)
class Appended:
    """What an append did with the rows it was given: new, the same as stored, or stored with other values."""

    added: int = 0
    duplicates: int = 0
    conflicts: int = 0

    def __add__(self, other: Appended) -> Appended:
        return Appended(
            self.added + other.added, self.duplicates + other.duplicates, self.conflicts + other.conflicts
        )


def kind_named(name: str) -> Kind:
    """The kind of that name; UserError with the nearest one otherwise."""
    if name not in KINDS:
        raise unknown_name("kind of data", name, KINDS)
    return KINDS[name]


def period_unit(kind: Kind, interval: Interval | None) -> str:
    """The numpy unit of a partition: by the length of the bar, so that a file holds 10³ to 10⁵ bars."""
    if interval is None:
        return kind.period
    if interval.milliseconds < MINUTE:
        return "D"
    if interval.milliseconds < HOUR:
        return "M"
    return "Y" if interval.milliseconds < DAY else "10Y"


def period_name(moment: int, unit: str) -> str:
    """UTC milliseconds → the name of its partition: `2024-01-31`, `2024-01`, `2024`, or `2020` for a decade."""
    return str(np.datetime64(moment, "ms").astype(f"datetime64[{unit}]"))


def period_bounds(name: str, unit: str) -> tuple[int, int]:
    """A partition's name → [first, end) in UTC milliseconds."""
    start = np.datetime64(name).astype(f"datetime64[{unit}]")
    first, end = (moment.astype("datetime64[ms]").astype(np.int64) for moment in (start, start + 1))
    return int(first), int(end)


def by_period(frame: pl.DataFrame, unit: str) -> Iterator[tuple[str, pl.DataFrame]]:
    """Split a frame in order of time into (period, rows)."""
    times = frame["timestamp"].dt.timestamp("ms").to_numpy()
    periods = times.astype("datetime64[ms]").astype(f"datetime64[{unit}]")
    edges = [0, *(np.flatnonzero(periods[1:] != periods[:-1]) + 1).tolist(), len(periods)]
    for start, stop in pairwise(edges):
        if stop > start:
            yield str(periods[start]), frame.slice(start, stop - start)


def conform(frame: pl.DataFrame, kind: Kind, origin: str) -> pl.DataFrame:
    """`frame` with the kind's columns and types, in order of time. UserError naming the column that does not fit."""
    missing = [name for name in kind.columns if name not in frame.columns]
    if missing:
        raise UserError(
            f"{origin}: {kind.name} need the column '{missing[0]}'; there are {', '.join(frame.columns)}"
        )
    declared = kind.columns | {name: t for name, t in kind.optional.items() if name in frame.columns}
    try:
        frame = frame.with_columns(pl.col(name).cast(dtype) for name, dtype in declared.items())
    except pl.exceptions.PolarsError as error:
        raise UserError(
            f"{origin}: {kind.name} do not fit their columns: {str(error).splitlines()[0]}"
        ) from error
    for name in {"timestamp", *kind.key} & kind.columns.keys():
        if frame[name].null_count():
            raise UserError(f"{origin}: row {int(frame[name].is_null().arg_max() or 0) + 1} has no {name}")
    frame = frame.select(*declared, *(name for name in frame.columns if name not in declared))
    return frame if frame["timestamp"].is_sorted() else frame.sort("timestamp", maintain_order=True)


def merge(
    old: pl.DataFrame | None, new: pl.DataFrame, kind: Kind, on_conflict: OnConflict, where: str
) -> tuple[pl.DataFrame, Appended]:
    """Stored rows with the new ones among them, in order of time, and the count of what happened.

    Rows without an id (some trades) are told apart by all their values and by how often those were seen: adding the
    same rows again adds nothing, and equal trades of one moment are all kept.
    """
    if on_conflict not in get_args(OnConflict):
        raise unknown_name("rule for conflicts", on_conflict, get_args(OnConflict))
    if old is not None and old.schema != new.schema:
        old, new = _same_columns(old, new)
    key = list(kind.key)
    _refuse_ids_on_one_side(old, new, kind, where)
    if not _has_values(new, key):
        return _merge_rows(old, new)
    first = new.select(pl.struct(key).is_first_distinct()).to_series()
    if not first.all():
        merged, counts = merge(old, new.filter(first), kind, on_conflict, where)
        merged, again = merge(merged, new.filter(~first), kind, on_conflict, where)
        return merged, counts + again
    if old is None or ("timestamp" in key and new["timestamp"][0] > old["timestamp"][-1]):
        return _joined(old, new), Appended(added=new.height)
    return _merge_keyed(old, new, key, on_conflict, where)


def _refuse_ids_on_one_side(old: pl.DataFrame | None, new: pl.DataFrame, kind: Kind, where: str) -> None:
    if old is None:
        return
    stored, given = (_has_values(frame, list(kind.key)) for frame in (old, new))
    if stored and not given:
        raise UserError(
            f"{where}: the stored {kind.name} have an id and the new ones have none; give their ids"
        )
    if given and not stored:
        raise UserError(
            f"{where}: the stored {kind.name} have no id, so those with ids cannot be told from them"
        )


def _has_values(frame: pl.DataFrame, names: list[str]) -> bool:
    return all(name in frame.columns and not frame[name].null_count() for name in names)


def _merge_keyed(
    old: pl.DataFrame, new: pl.DataFrame, key: list[str], on_conflict: OnConflict, where: str
) -> tuple[pl.DataFrame, Appended]:
    values = [name for name in new.columns if name not in key]
    stored = old.with_columns(pl.lit(True).alias("_stored"))
    pair = new.join(stored, on=key, how="left", suffix="_stored", maintain_order="left")
    # A value that one side does not have is no contradiction.
    agree = [
        pl.col(n).eq_missing(pl.col(f"{n}_stored")) | pl.col(n).is_null() | pl.col(f"{n}_stored").is_null()
        for n in values
    ]
    known = pair["_stored"].is_not_null()
    conflict = known & ~pair.select(pl.all_horizontal(agree)).to_series() if agree else known & False
    if on_conflict == "refuse" and conflict.any():
        time = new.filter(conflict)["timestamp"][0]
        raise UserError(
            f"{where}: {time:%Y-%m-%d %H:%M:%S}Z is stored with other values ({conflict.sum()} such)"
        )
    counts = Appended(int((~known).sum()), int((known & ~conflict).sum()), int(conflict.sum()))
    if on_conflict == "replace" and counts.conflicts:
        old = old.join(new.filter(conflict), on=key, how="anti", maintain_order="left")
        known = known & ~conflict
    return _joined(old, new.filter(~known)), counts


def _merge_rows(old: pl.DataFrame | None, new: pl.DataFrame) -> tuple[pl.DataFrame, Appended]:
    """Union of two bags of rows: each distinct row as often as in the one that has it more often."""
    if old is None:
        return new, Appended(added=new.height)
    counted = [
        frame.with_columns(pl.int_range(pl.len()).over(new.columns).alias("_nth")) for frame in (old, new)
    ]
    fresh = counted[1].join(
        counted[0], on=[*new.columns, "_nth"], how="anti", nulls_equal=True, maintain_order="left"
    )
    return _joined(old, fresh.drop("_nth")), Appended(fresh.height, new.height - fresh.height)


def _joined(old: pl.DataFrame | None, new: pl.DataFrame) -> pl.DataFrame:
    if old is None or new.is_empty():
        return new if old is None else old
    both = pl.concat([old, new])
    return both if both["timestamp"].is_sorted() else both.sort("timestamp", maintain_order=True)


def _same_columns(old: pl.DataFrame, new: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Both with every column of either, empty where a frame did not have it."""
    both = pl.concat([old, new], how="diagonal_relaxed")
    return both.head(old.height), both.tail(new.height)
