"""The local store: market data in Parquet, one folder per series, one file per period.

    ROOT/store.json                                        the schema version
    ROOT/<source>/<category>/<symbol>/instrument.json      the facts about the instrument
    ROOT/<source>/<category>/<symbol>/<series>/<period>.parquet

A series is `1h` (candles of an hour), `mark-1h` (mark-price candles), `trades`, `books` or `funding`; so the candles of
one symbol and period are one seek. An append rewrites the partitions it touches, each from the old file to the new one
in one rename, under a lock of the series: a stored row is never torn and never lost.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
import pyarrow.fs as pafs

from longtape.core.calendars import require_calendar
from longtape.core.clock import Interval, iso, to_milliseconds
from longtape.core.errors import LongtapeError, UserError, unknown_name
from longtape.core.instrument import Instrument
from longtape.core.shown import Shown
from longtape.market import codec, partition
from longtape.market.bars import Bars
from longtape.market.books import Books
from longtape.market.codec import DamagedFile
from longtape.market.partition import CANDLE_KINDS, Appended, OnConflict
from longtape.market.series import Series, series_of, usual_name
from longtape.market.storage import open_storage
from longtape.market.trades import Trades

_STORE = "store.json"
_INSTRUMENT = "instrument.json"
_SERIES = "series.json"
_READERS = 4
T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """One series as it is stored: rows, the times of the first and the last (UTC ms), bytes, and damaged files."""

    instrument: Instrument
    kind: str
    interval: Interval | None
    rows: int
    first: int | None
    last: int | None
    size: int
    damaged: tuple[str, ...] = ()
    stamp: str = "open"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, times in ISO form."""
        return {
            "source": self.instrument.source,
            "category": self.instrument.category,
            "symbol": self.instrument.symbol,
            "kind": self.kind,
            "interval": None if self.interval is None else self.interval.name,
            "rows": self.rows,
            "first": None if self.first is None else iso(self.first),
            "last": None if self.last is None else iso(self.last),
            "bytes": self.size,
            "stamp": self.stamp,
            "damaged": list(self.damaged),
        }


class Store(Shown):
    """Market data in a folder, or at a URL that pyarrow can open (`s3://bucket/path`; one writer at a time there)."""

    def __init__(self, root: str | Path, filesystem: pafs.FileSystem | None = None) -> None:
        """Open; nothing is created before the first append. UserError for data of a newer longtape."""
        self.storage = open_storage(root, filesystem)
        self.root = str(root)
        text = self.storage.get(_STORE)
        if text is not None:
            codec.check_version(self._version(text), self.storage.where(_STORE))

    @property
    def title(self) -> str:
        """Its root."""
        return self.root

    def facts(self) -> dict[str, Any]:
        """What a reader of its repr sees."""
        every = self.series()
        listed = ", ".join(f"{one.symbol} {one.name}" for one in every[:8]) + (" …" if len(every) > 8 else "")
        return {"series": len(every), "among them": listed} if every else {"series": 0}

    @property
    def exists(self) -> bool:
        """Whether anything was ever stored here."""
        return self._prepared

    def append(
        self,
        bars: Bars | Any,
        *,
        kind: str = "candles",
        on_conflict: OnConflict = "keep",
        symbol: str | None = None,
        interval: str | Interval | None = None,
        **facts: str,
    ) -> Appended:
        """Add candles (`kind="mark"`: mark-price candles) to what is stored, and say what was new.

        A bar stored before with the same values is a duplicate. With other values it is a conflict: `keep` (the
        default) leaves the stored bar, `replace` takes the new one, `refuse` raises UserError; it is always counted.
        A polars or pandas frame needs its `symbol` and `interval`, and may have source, category and calendar.
        """
        if kind not in CANDLE_KINDS:
            raise unknown_name("kind of candles", kind, CANDLE_KINDS)
        if not isinstance(bars, Bars):
            if symbol is None or interval is None:
                raise UserError(
                    "append: a frame needs symbol and interval: append(frame, symbol=…, interval=…)"
                )
            bars = Bars.of(bars, symbol, interval, **facts)
        elif symbol is not None or interval is not None or facts:
            raise UserError(
                "append: bars have a symbol and an interval of their own; give those for a frame only"
            )
        series = Series.of(bars.instrument, kind, bars.interval)
        self._keep_stamp(series, bars)
        return self._append(series, bars.instrument, bars.frame, on_conflict, bars.origin)

    def append_table(
        self, kind: str, instrument: Instrument, frame: pl.DataFrame, *, on_conflict: OnConflict = "keep"
    ) -> Appended:
        """Add trades, books or funding; the columns of each kind are in `partition.KINDS`. Conflicts as in `append`.

        Trades are told apart by `id`; without ids, equal trades of one moment are all kept, and
        adding the same rows again adds nothing.
        """
        return self._append(
            Series.of(instrument, kind), instrument, frame, on_conflict, f"{kind} of {instrument.key}"
        )

    def read(
        self,
        symbol: str,
        interval: str | Interval,
        *,
        source: str | None = None,
        category: str | None = None,
        kind: str = "candles",
        since: str | int | None = None,
        until: str | int | None = None,
    ) -> Bars:
        """Candles that open in [since, until), UTC. `symbol` alone will do where it is unique, as will its key.

        Raises UserError listing the choices or the nearest name, LongtapeError naming a damaged file.
        """
        interval = usual_name(Interval.parse(interval))
        series = self.find(symbol, kind, interval, source, category)
        rows, stamp = self._rows(series, since, until), self.stamp(series)
        return Bars.stored(self.instrument(series), interval, rows, self._origin(series), stamp)

    def read_books(
        self,
        symbol: str,
        *,
        source: str | None = None,
        category: str | None = None,
        since: str | int | None = None,
        until: str | int | None = None,
    ) -> Books:
        """Order books of [since, until), checked. Errors as in `read`, and UserError for a row that cannot be."""
        series = self.find(symbol, "books", None, source, category)
        rows = self._rows(series, since, until).sort("timestamp", "update_id")
        return Books.checked(self.instrument(series), rows, self._origin(series))

    def read_trades(
        self,
        symbol: str,
        *,
        source: str | None = None,
        category: str | None = None,
        since: str | int | None = None,
        until: str | int | None = None,
    ) -> Trades:
        """Trades of [since, until), checked. Errors as in `read_books`."""
        series = self.find(symbol, "trades", None, source, category)
        rows = self._rows(series, since, until)
        return Trades.checked(self.instrument(series), rows, self._origin(series))

    def read_table(
        self,
        kind: str,
        symbol: str,
        *,
        source: str | None = None,
        category: str | None = None,
        since: str | int | None = None,
        until: str | int | None = None,
    ) -> pl.DataFrame:
        """Trades, books or funding in [since, until), in order of time. Errors as in `read`."""
        return self._rows(self.find(symbol, kind, None, source, category), since, until)

    def last(self, instrument: Instrument, interval: Interval | None, kind: str = "candles") -> int | None:
        """The time of the last stored row (UTC ms), from which a fetch resumes; None where nothing is stored.

        For writers: a torn file is set aside, and LongtapeError names it; the next call goes on without it.
        """
        series = Series.of(instrument, kind, interval)
        if not (names := self._files(series)):
            return None
        with self.storage.lock(series.folder):
            ranges = [self._writable(name, partial(self._range, name)) for name in names]
        return max(last for _, _, last in ranges)

    def entries(self) -> list[Entry]:
        """Every series in the store, by source, category, symbol and name."""
        return [self.entry(series) for series in self.series()]

    def entry(self, series: Series) -> Entry:
        """What is stored of a series, from the footers of its files."""
        ranges, size, damaged = [], 0, []
        for name in self._files(series):
            size += self.storage.size(name) or 0
            try:
                ranges.append(self._range(name))
            except DamagedFile:
                damaged.append(self.storage.where(name))
        return Entry(
            instrument=self.instrument(series),
            kind=series.kind.name,
            interval=series.interval,
            rows=sum(count for count, _, _ in ranges),
            first=ranges[0][1] if ranges else None,
            last=ranges[-1][2] if ranges else None,
            size=size,
            damaged=tuple(damaged),
            stamp=self.stamp(series),
        )

    def series(self) -> list[Series]:
        """Where every series lies; reads folder names only."""
        return [
            series
            for source in self.storage.names()[0]
            for category in self.storage.names(source)[0]
            for symbol in self.storage.names(f"{source}/{category}")[0]
            for name in self.storage.names(f"{source}/{category}/{symbol}")[0]
            if (series := series_of(source, category, symbol, name)) and self._files(series)
        ]

    def instruments(self) -> list[Instrument]:
        """Every instrument that the store knows facts about."""
        return [
            self._read_instrument(key)
            for source in self.storage.names()[0]
            for category in self.storage.names(source)[0]
            for symbol in self.storage.names(f"{source}/{category}")[0]
            if self.storage.size(f"{(key := f'{source}/{category}/{symbol}')}/{_INSTRUMENT}") is not None
        ]

    def instrument(self, series: Series) -> Instrument:
        """The facts about a stored series' instrument."""
        return self._read_instrument(series.key)

    def stamp(self, series: Series) -> str:
        """How the source of a series wrote its times: those at which bars open, or close. The store has opens."""
        text = self.storage.get(f"{series.folder}/{_SERIES}")
        return str(json.loads(text)["stamp"]) if text is not None else "open"

    def _keep_stamp(self, series: Series, bars: Bars) -> None:
        """UserError where earlier rows of the series were stamped in the other way."""
        kept = self.stamp(series)
        if kept != bars.stamp and self._files(series):
            raise UserError(
                f"{bars.origin}: {series.key} {series.name} is stored from bars stamped at their {kept}; say --stamp"
                f" {kept}, or import these under another --source"
            )
        if kept != bars.stamp:
            self._prepare()
            self.storage.put(f"{series.folder}/{_SERIES}", json.dumps({"stamp": bars.stamp}).encode())

    def put_instrument(self, instrument: Instrument) -> None:
        """Store the facts about an instrument; one that is left at its default (no lot, 24/7) leaves the stored one."""
        self._prepare()
        require_calendar(instrument.calendar, instrument.key)
        name = f"{instrument.key}/{_INSTRUMENT}"
        if self.storage.size(name) is not None:
            stored = self._read_instrument(instrument.key)
            blank = Instrument(instrument.source, instrument.category, instrument.symbol)
            said = {name: fact for name, fact in asdict(instrument).items() if fact != getattr(blank, name)}
            instrument = replace(stored, **said)
            if instrument == stored:
                return
        text = json.dumps(instrument.to_dict(), indent=2, allow_nan=False)
        self.storage.put(name, text.encode())

    def find(
        self,
        symbol: str,
        kind: str = "candles",
        interval: Interval | None = None,
        source: str | None = None,
        category: str | None = None,
    ) -> Series:
        """The one stored series that the words name; UserError listing the choices or the nearest name."""
        if symbol.count("/") == 2:
            source, category, symbol = symbol.split("/")
        if source is not None and category is not None:
            exact = Series(source, category, symbol, partition.kind_named(kind), interval)
            if self._files(exact):
                return exact
        every = [series for series in self.series() if series.kind == partition.kind_named(kind)]
        same = [series for series in every if series.symbol == symbol]
        if not same:
            raise self._unknown(symbol, kind, every)
        fits = [s for s in same if source in (None, s.source) and category in (None, s.category)]
        if not fits:
            raise UserError(f"{self.root}: {symbol} is stored as {_listed(same)}; name one of these")
        right = [series for series in fits if series.interval == interval]
        if not right:
            raise UserError(f"{self.root}: {symbol} has no {kind} of {interval}; there are {_listed(fits)}")
        if len(right) > 1:
            raise UserError(
                f"{self.root}: '{symbol}' is not unique: {_listed(right)}; name --source and --category"
            )
        return right[0]

    def select(
        self,
        symbol: str | None = None,
        interval: str | Interval | None = None,
        source: str | None = None,
        category: str | None = None,
    ) -> list[Series]:
        """Every stored series that fits what is named; UserError where none does."""
        every = self.series()
        if symbol is not None and symbol.count("/") == 2:
            source, category, symbol = symbol.split("/")
        if not every or (symbol is not None and symbol not in {series.symbol for series in every}):
            raise self._unknown(symbol or "", "any kind", every)
        length = None if interval is None else usual_name(Interval.parse(interval))
        fits = [
            s
            for s in every
            if symbol in (None, s.symbol)
            and length in (None, s.interval)
            and source in (None, s.source)
            and category in (None, s.category)
        ]
        if not fits:
            raise UserError(f"{self.root}: nothing stored fits; there are {_listed(every)}")
        return fits

    def damaged(self, series: Series) -> list[str]:
        """The files of a series that cannot be read whole, by their names below the root; reads every byte."""
        return [name for name in self._files(series) if not self._is_whole(name)]

    def set_aside_damaged(self, series: Series) -> list[tuple[int, int]]:
        """Rename every damaged file of a series; gives the periods [since, until) to fetch again, UTC ms."""
        with self.storage.lock(series.folder):
            damaged = self.damaged(series)
            for name in damaged:
                self.storage.set_aside(name)
        return [partition.period_bounds(_period(name), series.unit) for name in damaged]

    def _append(
        self,
        series: Series,
        instrument: Instrument,
        frame: pl.DataFrame,
        on_conflict: OnConflict,
        origin: str,
    ) -> Appended:
        frame = partition.conform(frame, series.kind, origin)
        self.put_instrument(instrument)
        total = Appended()
        with self.storage.lock(series.folder):
            for period, rows in partition.by_period(frame, series.unit):
                total += self._append_partition(series, period, rows, on_conflict)
        return total

    def _append_partition(
        self, series: Series, period: str, rows: pl.DataFrame, on_conflict: OnConflict
    ) -> Appended:
        name = f"{series.folder}/{period}.parquet"
        stored = (
            self._writable(name, partial(self._decode, name)) if self.storage.size(name) is not None else None
        )
        merged, counts = partition.merge(stored, rows, series.kind, on_conflict, self.storage.where(name))
        if counts.added or (counts.conflicts and on_conflict == "replace"):
            self.storage.put(name, codec.encode(merged, series.folder))
        return counts

    def _writable(self, name: str, read: Callable[[], T]) -> T:
        """What `read` gives; a damaged file is set aside, so that the next run can go on, and named."""
        try:
            return read()
        except DamagedFile as error:
            aside = self.storage.set_aside(name)
            raise LongtapeError(
                f"{self.storage.where(name)}: damaged ({error}); set aside as {aside.rpartition('/')[2]}, its period is"
                " now a gap: run the command again, then `longtape data repair`"
            ) from error

    def _rows(self, series: Series, since: str | int | None, until: str | int | None) -> pl.DataFrame:
        low = None if since is None else to_milliseconds(since, "since")
        high = None if until is None else to_milliseconds(until, "until")
        names = _within(self._files(series), series.unit, low, high)
        with ThreadPoolExecutor(_READERS) as pool:
            frames = list(pool.map(self._readable, names))
        if not frames:
            return pl.DataFrame(schema=series.kind.columns)
        frame = frames[0] if len(frames) == 1 else pl.concat(frames, how="diagonal_relaxed", rechunk=True)
        return _between(frame, low, high)

    def _origin(self, series: Series) -> str:
        return f"{self.root}: {series.key} {series.interval or series.name}"

    def _readable(self, name: str) -> pl.DataFrame:
        try:
            return self._decode(name)
        except DamagedFile as error:
            raise LongtapeError(
                f"{self.storage.where(name)}: damaged ({error}); `longtape data repair` sets it aside and fetches its"
                " period again"
            ) from error

    def _decode(self, name: str) -> pl.DataFrame:
        with self.storage.open(name) as file:
            return codec.decode(file, self.storage.where(name))

    def _range(self, name: str) -> tuple[int, int, int]:
        with self.storage.open(name) as file:
            return codec.time_range(file, self.storage.where(name))

    def _is_whole(self, name: str) -> bool:
        try:
            self._decode(name)
        except DamagedFile:
            return False
        return True

    def _files(self, series: Series) -> list[str]:
        """Partitions in order of time."""
        files = self.storage.names(series.folder)[1]
        return [f"{series.folder}/{name}" for name in files if name.endswith(".parquet")]

    def _read_instrument(self, key: str) -> Instrument:
        name = f"{key}/{_INSTRUMENT}"
        text = self.storage.get(name)
        try:
            return Instrument(**json.loads(text or ""))
        except (ValueError, TypeError) as error:
            raise LongtapeError(
                f"{self.storage.where(name)}: missing or damaged; remove it and fetch or import the symbol again"
            ) from error

    def _unknown(self, symbol: str, kind: str, every: Iterable[Series]) -> UserError:
        known = {series.symbol for series in every}
        if not known:
            return UserError(
                f"{self.root}: there is no such data ({kind}) here; bring some in with longtape fetch or import"
            )
        return unknown_name("symbol", symbol, known, self.root)

    def _version(self, text: bytes) -> int:
        try:
            return int(json.loads(text)["schema"])
        except (ValueError, TypeError, KeyError) as error:
            raise LongtapeError(
                f'{self.storage.where(_STORE)}: damaged; write {{"schema": {codec.SCHEMA_VERSION}}} into it'
            ) from error

    def _prepare(self) -> None:
        """Write the schema version where there is none yet."""
        if not self._prepared:
            self.storage.put(_STORE, json.dumps({"schema": codec.SCHEMA_VERSION}).encode())
            self.__dict__["_prepared"] = True

    @cached_property
    def _prepared(self) -> bool:
        return self.storage.size(_STORE) is not None


def _period(name: str) -> str:
    return name.rpartition("/")[2].removesuffix(".parquet")


def _within(names: list[str], unit: str, low: int | None, high: int | None) -> list[str]:
    """The partitions that can hold rows of [low, high)."""
    first = "" if low is None else partition.period_name(low, unit)
    last = "~" if high is None else partition.period_name(high - 1, unit)
    return [name for name in names if first <= _period(name) <= last]


def _between(frame: pl.DataFrame, low: int | None, high: int | None) -> pl.DataFrame:
    times = frame["timestamp"].dt.timestamp("ms").to_numpy()
    start = 0 if low is None else int(np.searchsorted(times, low))
    stop = len(times) if high is None else int(np.searchsorted(times, high))
    return frame.slice(start, max(stop - start, 0))


def _listed(series: Iterable[Series]) -> str:
    return ", ".join(sorted(f"{s.key} {s.name}" for s in series))
