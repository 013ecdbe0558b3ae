"""Mending what is stored: damaged files and gaps are fetched from the source again."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from longtape.core.clock import iso
from longtape.core.errors import UserError
from longtape.core.progress import progress, say
from longtape.market import gaps
from longtape.market.bars import Bars
from longtape.market.gaps import Gap
from longtape.market.partition import OnConflict
from longtape.market.series import Series
from longtape.market.sources import Source
from longtape.market.store import Store

Span = tuple[int, int]


@dataclass(frozen=True)
class Repaired:
    """What a repair did: bars missing before and after, bars fetched, files set aside, a last bar replaced."""

    name: str
    interval: str
    missing_before: int
    fetched: int
    missing: int
    set_aside: int
    replaced: int
    first_missing: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def repair(store: Store, series: Series, source: Source, *, last: bool = False) -> Repaired:
    """Set damaged files of a stored series of bars aside, and fetch their periods and every gap again.

    Each page is stored as it comes, so a repair that was stopped goes on where it ended. A stored bar is not changed,
    but with `last` the last one is fetched again and replaced, as it may have been stored before it was over. Raises
    UserError for a series without bars, ServiceError if the source fails; what the source does not have stays missing.
    """
    if series.interval is None:
        raise UserError(
            f"{series.key}: {series.name} have no fixed step, so no gap can be told; fetch them again"
        )
    damaged = store.set_aside_damaged(series)
    before = _gaps(store, series)
    fetched = _fetch_all(store, series, source, damaged + [(gap.first, gap.last + 1) for gap in before])
    newest = store.last(store.instrument(series), series.interval, series.kind.name) if last else None
    replaced = 0
    if newest is not None:
        replaced = _fetch(store, series, source, (newest, newest + 1), "replace")[1]
    after = _gaps(store, series)
    return Repaired(
        name=series.key,
        interval=series.interval.name,
        missing_before=sum(gap.missing for gap in before),
        fetched=fetched,
        missing=sum(gap.missing for gap in after),
        set_aside=len(damaged),
        replaced=replaced,
        first_missing=iso(after[0].first) if after else None,
    )


def _fetch_all(store: Store, series: Series, source: Source, spans: list[Span]) -> int:
    """Bars added that open in the spans."""
    fetched = 0
    with progress(f"repair {series.key} {series.interval}", len(spans), "gaps") as bar:
        for span in spans:
            fetched += _fetch(store, series, source, span, "keep")[0]
            bar.advance(note=iso(span[0]))
    return fetched


def _gaps(store: Store, series: Series) -> tuple[Gap, ...]:
    if series not in store.series() or series.interval is None:
        return ()
    bars = store.read(series.key, series.interval, kind=series.kind.name)
    times = bars.timestamps
    return gaps.group(gaps.missing_times(times, series.interval, bars.instrument.calendar), times)


def _fetch(
    store: Store, series: Series, source: Source, span: Span, on_conflict: OnConflict
) -> tuple[int, int]:
    """Bars added and bars that differed from stored ones, of those that open in the span."""
    assert series.interval is not None  # noqa: S101 — `repair` has refused the others
    instrument = store.instrument(series)
    added = conflicts = 0
    for page in source.candles(series.symbol, series.interval, *span, series.category, kind=series.kind.name):
        bars = Bars.checked(
            instrument, series.interval, page, f"{source.name}: {series.symbol} from {iso(span[0])}"
        )
        done = store.append(bars, kind=series.kind.name, on_conflict=on_conflict)
        added, conflicts = added + done.added, conflicts + done.conflicts
    if conflicts:
        taken = "the source's was taken" if on_conflict == "replace" else "the stored one was kept"
        say(f"{series.key} {series.interval}: {conflicts:,} bars differ from the source's; {taken}")
    return added, conflicts
