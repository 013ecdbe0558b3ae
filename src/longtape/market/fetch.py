"""From a source into the store: what is missing there is fetched, and what was fetched is kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from longtape.core.clock import ALWAYS_OPEN, Interval, Milliseconds
from longtape.core.errors import LongtapeError, ServiceError, UserError
from longtape.core.instrument import Instrument
from longtape.core.progress import Progress, progress
from longtape.market.bars import Bars
from longtape.market.gaps import Gap, group, missing_times
from longtape.market.partition import Appended, OnConflict
from longtape.market.sources import Source
from longtape.market.store import Store

CANDLES = ("candles", "mark")
HISTORIES = (*CANDLES, "funding")
SNAPSHOTS = {"trades": "trades", "books": "order_book"}
KINDS = (*HISTORIES, *SNAPSHOTS)

Span = tuple[int | None, int | None]


@dataclass(frozen=True)
class FetchRequest:
    """What to fetch of each symbol: `kind` of rows in [since, until), UTC ms.

    `since=None` is from the first there is, `until=None` up to now. Candles need an interval; `trades` and `books` are
    what the service gives at this moment, and take no times.
    """

    kind: str = "candles"
    interval: Interval | None = None
    since: int | None = None
    until: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"unknown kind '{self.kind}'; known: {', '.join(KINDS)}")
        if (self.interval is not None) != (self.kind in CANDLES):
            raise UserError(f"{self.kind} {'need' if self.kind in CANDLES else 'take no'} --interval")
        if self.kind in SNAPSHOTS and (self.since, self.until) != (None, None):
            raise UserError(f"{self.kind} are those of this moment; leave --since and --until away")
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise UserError("--since is not before --until; nothing would be fetched")


@dataclass(frozen=True)
class FetchResult:
    """What came of one symbol: rows new to the store, rows it had, and rows it had with other values.

    Those stay as they were stored, save for a source that restates its history. For candles also the first and last
    stored bar of the range and the gaps between them.
    """

    instrument: Instrument
    stored: Appended
    first: int | None = None
    last: int | None = None
    gaps: tuple[Gap, ...] = ()

    @property
    def missing(self) -> int:
        """Bars that the source does not have between the first and the last."""
        return sum(gap.missing for gap in self.gaps)


def fetch(
    source: Source,
    store: Store,
    symbols: Iterable[str],
    wanted: FetchRequest,
    category: str,
    workers: int = 4,
) -> list[FetchResult]:
    """Fetch several symbols at once into the store, each from where the store ends.

    Each page is stored as it comes, so after a failure the next call goes on from there. Raises UserError for
    what the source does not know, before anything is fetched, and ServiceError where it fails; the other symbols are
    finished first.
    """
    names = list(dict.fromkeys(symbols))
    if not names:
        raise UserError("no symbol is named; write --symbols BTCUSDT,ETHUSDT")
    method = SNAPSHOTS.get(wanted.kind, "candles" if wanted.kind in CANDLES else wanted.kind)
    if not hasattr(source, method):
        raise UserError(f"{source.name} has no {wanted.kind}")
    if wanted.interval is not None:
        source.refuse_interval(wanted.interval)
    jobs = [_Job(source, store, source.instrument(name, category), wanted) for name in names]
    with progress(f"fetch {source.name}", _expected(jobs), "rows") as bar:
        _run(jobs, bar, source, workers)
    return [job.outcome() for job in jobs]


def _run(jobs: Sequence[_Job], bar: Progress, source: Source, workers: int) -> None:
    lock = threading.Lock()

    def advance(rows: int, symbol: str) -> None:
        with lock:
            bar.advance(rows, symbol)

    with ThreadPoolExecutor(min(workers, len(jobs))) as pool:
        futures = [pool.submit(job.run, advance) for job in jobs]
        try:
            while wait(futures, timeout=0.2).not_done:
                pass  # wake up now and then, so that Ctrl-C is heard whichever thread it reaches
            failures = [error for future in futures if (error := future.exception())]
        except BaseException as stop:
            source.close()  # ends all waiting, so that the threads come to their end
            pool.shutdown(cancel_futures=True)
            if isinstance(stop, KeyboardInterrupt):
                raise KeyboardInterrupt(_stopped(jobs)) from None
            raise
    if len(failures) > 1 and all(isinstance(error, LongtapeError) for error in failures):
        raise type(failures[0])("; ".join(dict.fromkeys(str(error) for error in failures)))
    if failures:
        raise failures[0]


def _stopped(jobs: Sequence[_Job]) -> str:
    """What was stored before the work was interrupted, and how it goes on."""
    done = ", ".join(f"{job.stored.added:,} of {job.instrument.symbol}" for job in jobs if job.stored.added)
    return f"{done or 'nothing'} stored; run the same command again, and only what is missing is fetched"


@dataclass
class _Job:
    """One symbol's way into the store."""

    source: Source
    store: Store
    instrument: Instrument
    wanted: FetchRequest
    stored: Appended = field(default_factory=Appended)
    spans: list[Span] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.spans = self._missing()

    def run(self, advance: Callable[[int, str], None]) -> None:
        """Fetch, and store each page as it comes."""
        for page in self._pages():
            self._store(page)
            advance(page.height, self.instrument.symbol)

    def outcome(self) -> FetchResult:
        """What is in the store now."""
        if self.wanted.kind not in CANDLES or self.wanted.interval is None:
            return FetchResult(self.instrument, self.stored)
        times = self._stored_times()
        if not len(times):
            return FetchResult(self.instrument, self.stored)
        missing = missing_times(times, self.wanted.interval, self.instrument.calendar)
        return FetchResult(self.instrument, self.stored, int(times[0]), int(times[-1]), group(missing, times))

    def _pages(self) -> Iterator[pl.DataFrame]:
        source: Any = self.source
        symbol, category, wanted = self.instrument.symbol, self.instrument.category, self.wanted
        if wanted.kind in SNAPSHOTS:
            yield getattr(source, SNAPSHOTS[wanted.kind])(symbol, category)
            return
        for since, until in self.spans:
            if wanted.kind == "funding":
                yield from source.funding(symbol, since, until, category)
            else:
                yield from source.candles(symbol, wanted.interval, since, until, category, wanted.kind)

    def _store(self, frame: pl.DataFrame) -> None:
        if self.wanted.kind not in CANDLES or self.wanted.interval is None:
            self.stored += self.store.append_table(self.wanted.kind, self.instrument, frame)
            return
        label = f"{self.instrument.key} {self.wanted.interval}"
        try:
            bars = Bars.checked(self.instrument, self.wanted.interval, frame, label)
        except UserError as error:
            raise ServiceError(f"{self.source.name} sent what cannot be: {error}") from error
        rule: OnConflict = "replace" if self._restated() else "keep"
        self.stored += self.store.append(bars, kind=self.wanted.kind, on_conflict=rule)

    def _restated(self) -> bool:
        return self.wanted.interval is not None and self.source.restates(self.wanted.interval)

    def _missing(self) -> list[Span]:
        """Spans that are not stored. The last stored row is asked for again: it may have been an unfinished one."""
        since, until = self.wanted.since, self.wanted.until
        if self.wanted.kind in SNAPSHOTS:
            return []
        if self._restated():
            times = self._stored_times(whole=True)
            return [(since if since is None or not len(times) else min(since, int(times[0])), until)]
        times = self._stored_times()
        if not len(times):
            return [(since, until)]
        spans: list[Span] = []
        if since is None or since < times[0]:
            spans.append((since, int(times[0])))
        interval = self.wanted.interval
        if interval is not None and self.instrument.calendar == ALWAYS_OPEN:
            gaps = group(missing_times(times, interval, ALWAYS_OPEN), times)
            spans += [(gap.first, gap.last + 1) for gap in gaps]
        end = int(times[-1]) if interval is None else int(interval.close_of(times[-1:])[0])
        if until is None or end < until:
            spans.append((int(times[-1]), until))
        return spans

    def _stored_times(self, whole: bool = False) -> Milliseconds:
        """Times of the stored rows, all of them or those in the range."""
        key, wanted = self.instrument, self.wanted
        if self.store.last(key, wanted.interval, wanted.kind) is None:
            return np.empty(0, dtype=np.int64)
        where: dict[str, Any] = {"source": key.source, "category": key.category}
        if not whole:
            where |= {"since": wanted.since, "until": wanted.until}
        if wanted.interval is not None:
            return self.store.read(key.symbol, wanted.interval, kind=wanted.kind, **where).timestamps
        return (
            self.store.read_table(wanted.kind, key.symbol, **where)["timestamp"].dt.timestamp("ms").to_numpy()
        )


def _expected(jobs: Sequence[_Job]) -> int | None:
    """Rows to come, where the range says."""
    interval = jobs[0].wanted.interval
    if interval is None:
        return None
    now = round(time.time() * 1_000)
    spans = [span for job in jobs for span in job.spans]
    if any(since is None for since, _ in spans):
        return None
    return sum(
        max(min(until or now, now) - (since or 0), 0) // interval.milliseconds for since, until in spans
    )
