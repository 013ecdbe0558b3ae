"""Rows of a long range from a service that gives them in pages: none lost, none twice, none invented.

`ask(start, end, limit)` gives the rows of [start, end] (both inclusive, UTC ms; None: open) that the service has, or
only some of them where they are more than fit on a page. Nothing is assumed about which ones: what may be missing is
asked for again, so that a service that gives 200 rows where 1,000 were asked for, the newest or the oldest, is read
whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import polars as pl

from longtape.core.clock import Interval, iso
from longtape.core.errors import ServiceError

_TRIES = 3


@dataclass(frozen=True)
class Page:
    """Rows in order of time, and the service's own clock (UTC ms) when it gave them."""

    rows: pl.DataFrame
    now: int

    @property
    def first(self) -> int:
        """Time of the first row."""
        return _time(self.rows, 0)

    @property
    def last(self) -> int:
        """Time of the last row."""
        return _time(self.rows, -1)


Ask = Callable[[int | None, int | None, int], Page]
Finished = Callable[[Page], pl.DataFrame]


@dataclass(frozen=True)
class Pager:
    """Pages of one series: `size` rows in a `window` of ms, `step` ms apart or more.

    `finished` leaves out what may still change. A window that holds more rows than fit costs more calls, no rows.
    """

    ask: Ask
    window: int
    step: int
    size: int
    finished: Finished
    label: str

    def forward(self, since: int, until: int) -> Iterator[pl.DataFrame]:
        """Rows of [since, until) in order of time; raises ServiceError if a row comes again with other values.

        Each page begins at the last row of the one before, so that a changed value is seen.
        """
        start, known = since, pl.DataFrame()
        while start < until:
            page = self._consistent_page(known, start, min(start + self.window, until) - 1)
            fresh = _after(page.rows, known)
            if fresh.is_empty():
                found = (
                    None if start + self.window >= until else self._first_from(start + self.window, until - 1)
                )
                if found is None:
                    return
                start, known = found, pl.DataFrame()
                continue
            done = self.finished(Page(fresh, page.now))
            if done.height:
                yield done
            if done.height < fresh.height or page.last + self.step >= until:
                return
            known, start = page.rows, page.last

    def backward(self, since: int | None, until: int | None) -> Iterator[pl.DataFrame]:
        """Rows before `until` (None: up to now) back to `since` or to the first there is, the newest page first."""
        end, known = None if until is None else until - 1, pl.DataFrame()
        while True:
            page = self._consistent_page(known, since, end, whole=False)
            fresh = _before(page.rows, known)
            if fresh.is_empty() and page.rows.height and end is not None:
                # so few rows fit on a page that the known one filled it
                page = self.ask(since, end - 1, self.size)
                fresh = page.rows
            if fresh.is_empty():
                return
            done = self.finished(Page(fresh, page.now))
            if done.height:
                yield done
            known, end = page.rows, page.first

    def _consistent_page(
        self, known: pl.DataFrame, start: int | None, end: int | None, whole: bool = True
    ) -> Page:
        """A page whose rows agree with those of the page before."""
        changed = 0
        for _ in range(_TRIES):
            page = (
                self._complete_page(start, end)
                if whole and start is not None
                else self.ask(start, end, self.size)
            )
            differs = _changed(known, page.rows)
            if differs is None:
                return page
            changed = differs
        raise ServiceError(
            f"{self.label}: the row of {iso(changed)} came twice with different values; what came before is kept,"
            " run it again later"
        )

    def _complete_page(self, start: int, end: int | None) -> Page:
        """All rows of [start, end]'s first part: where the page begins later than asked, its front is asked for."""
        page = self.ask(start, end, self.size)
        rows = page.rows
        while rows.height and _time(rows, 0) > start:
            front = self.ask(start, _time(rows, 0) - 1, self.size).rows
            if front.is_empty():
                break
            rows = pl.concat([front, rows])
        return Page(rows, page.now)

    def _first_from(self, low: int, high: int) -> int | None:
        """A time not after the first row of [low, high] and at most a window before it; None if there is no row."""
        page = self.ask(low, high, 1)
        if page.rows.is_empty():
            return None
        found = page.first
        while found - low >= self.window:
            middle = low + (found - low) // 2
            page = self.ask(low, middle, 1)
            if page.rows.is_empty():
                low = middle + 1
            else:
                found = page.first
        return low


def bar_pager(ask: Ask, interval: Interval, size: int, label: str) -> Pager:
    """Pages of bars; a bar is finished when it had closed by the service's own clock."""
    step = interval.milliseconds // 30 * 28 if interval.is_month else interval.milliseconds
    return Pager(ask, step * size, step, size, finished_bars(interval), label)


def finished_bars(interval: Interval) -> Finished:
    """Bars that had closed by the service's own clock."""

    def keep(page: Page) -> pl.DataFrame:
        opens = page.rows["timestamp"].dt.timestamp("ms").to_numpy()
        return page.rows.filter(pl.Series(interval.close_of(opens) <= page.now))

    return keep


def _time(rows: pl.DataFrame, at: int) -> int:
    return int(rows["timestamp"].dt.timestamp("ms")[at])


def _after(rows: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    return rows if known.is_empty() else rows.filter(pl.col("timestamp") > known["timestamp"][-1])


def _before(rows: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    return rows if known.is_empty() else rows.filter(pl.col("timestamp") < known["timestamp"][0])


def _changed(known: pl.DataFrame, rows: pl.DataFrame) -> int | None:
    """Time of the first row that both have with different values."""
    if known.is_empty() or rows.is_empty():
        return None
    again = rows.join(known.select("timestamp"), on="timestamp", how="semi")
    before = known.join(rows.select("timestamp"), on="timestamp", how="semi")
    same = again.equals(before)
    if same:
        return None
    differs = ~pl.all_horizontal(
        pl.col(c).eq_missing(pl.col(f"{c}_before")) for c in rows.columns if c != "timestamp"
    )
    return _time(again.join(before, on="timestamp", suffix="_before").filter(differs), 0)
