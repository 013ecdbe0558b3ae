"""Where a series lies in the store: the folder of one kind of rows of one instrument."""

from __future__ import annotations

from dataclasses import dataclass

from longtape.core.clock import DAY, HOUR, MINUTE, SECOND, WEEK, Interval
from longtape.core.errors import UserError
from longtape.core.instrument import Instrument
from longtape.market import partition
from longtape.market.partition import CANDLE_KINDS, Kind

_MARK_PREFIX = "mark-"


@dataclass(frozen=True)
class Series:
    """One series of one instrument."""

    source: str
    category: str
    symbol: str
    kind: Kind
    interval: Interval | None = None

    @classmethod
    def of(cls, instrument: Instrument, kind: str, interval: Interval | None = None) -> Series:
        """The series of an instrument; UserError for an unknown kind."""
        key = (instrument.source, instrument.category, instrument.symbol)
        return cls(*key, partition.kind_named(kind), None if interval is None else usual_name(interval))

    @property
    def key(self) -> str:
        """`source/category/symbol`."""
        return f"{self.source}/{self.category}/{self.symbol}"

    @property
    def name(self) -> str:
        """The name of its folder. A month is `1mo`: `1M` and `1m` are one folder where case is not told apart."""
        if self.interval is None:
            return self.kind.name
        return (_MARK_PREFIX if self.kind.name == "mark" else "") + self.interval.name.replace("M", "mo")

    @property
    def folder(self) -> str:
        """Its folder below the root."""
        return f"{self.key}/{self.name}"

    @property
    def unit(self) -> str:
        """The numpy unit of its partitions."""
        return partition.period_unit(self.kind, self.interval)


def series_of(source: str, category: str, symbol: str, name: str) -> Series | None:
    """A folder name → its series; None for a folder that is none of ours."""
    if name in partition.KINDS and name not in CANDLE_KINDS:
        return Series(source, category, symbol, partition.KINDS[name])
    kind = "mark" if name.startswith(_MARK_PREFIX) else "candles"
    try:
        interval = Interval.parse(name.removeprefix(_MARK_PREFIX).replace("mo", "M"))
    except UserError:
        return None
    return Series(source, category, symbol, partition.KINDS[kind], interval)


def usual_name(interval: Interval) -> Interval:
    """The same length under the name by which it is stored: `60m` is `1h`."""
    if interval.is_month:
        return interval
    sizes = {"w": WEEK, "d": DAY, "h": HOUR, "m": MINUTE, "s": SECOND}
    unit = next(unit for unit, size in sizes.items() if interval.milliseconds % size == 0)
    return Interval(interval.milliseconds, f"{interval.milliseconds // sizes[unit]}{unit}")
