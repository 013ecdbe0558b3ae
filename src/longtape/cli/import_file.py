"""`longtape import`: candles, trades and order books from files into the store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longtape.cli.file_options import as_config, with_file_options
from longtape.core.clock import ALWAYS_OPEN, Interval, iso
from longtape.core.errors import UserError

if TYPE_CHECKING:
    from longtape.core.instrument import Instrument
    from longtape.market.files import FileConfig, Read
    from longtape.market.partition import Appended
    from longtape.market.store import Store

_LISTED = 6  # series that a block names


@with_file_options
def import_file(
    *,
    read: dict[str, Any],
    files: Annotated[
        list[str],
        typer.Argument(
            help="CSV, Parquet, Feather, JSON or xlsx, also compressed; a folder; a pattern with * or {symbol}. For"
            " books Parquet, an ob500 ZIP or a log."
        ),
    ],
    store: Annotated[str, typer.Option(help="Folder of the store, or a URL such as s3://bucket/path.")],
    symbol: Annotated[
        str | None,
        typer.Option(help="The symbol in the store; of a table of many, the one to take (without it: all)."),
    ] = None,
    interval: Annotated[str | None, typer.Option(help="Length of the candles: 1m, 5m, 1h, 1d, …")] = None,
    kind: Annotated[str, typer.Option(help="candles, trades or books.")] = "candles",
    source: Annotated[str, typer.Option(help="Where the data came from; part of the key.")] = "file",
    category: Annotated[str, typer.Option(help="spot, linear, inverse, stock, …; part of the key.")] = "spot",
    calendar: Annotated[str, typer.Option(help="24/7, 24/5 or an exchange code such as XNYS.")] = ALWAYS_OPEN,
    depth: Annotated[
        int | None,
        typer.Option(min=1, help="For books: levels to keep of each side (20 of a log, all of Parquet)."),
    ] = None,
) -> None:
    """Bring files into the store. The same file again adds nothing; bars that differ from stored ones are counted.

    Example: longtape import btc.csv --symbol BTCUSDT --interval 1h --store data

    Example: longtape import 'hourly/{symbol}.csv' --interval 1h --stamp close --store data

    Example: longtape import stocks.csv --symbol-column ticker --interval 1d --calendar XNYS --store data

    Example: longtape import 2024-12-01_XRPUSDT_ob500.data.zip --kind books --symbol XRPUSDT --category linear
    --source bybit --store data
    """
    from longtape.core.calendars import require_calendar
    from longtape.core.instrument import check_category
    from longtape.market.store import Store

    check_category(category)
    calendar = require_calendar(calendar, "--calendar")
    facts = {"source": source, "category": category, "calendar": calendar}
    if kind == "candles":
        if depth is not None:
            raise UserError("--depth is for books")
        _candles(files, Store(store), symbol, interval, as_config(read), facts)
        return
    if interval or read:
        raise UserError(f"--interval and what says how a table is written are for candles, not for {kind}")
    _events(files, Store(store), kind, symbol, facts, depth)


def _candles(
    files: list[str],
    store: Store,
    symbol: str | None,
    interval: str | None,
    config: FileConfig,
    facts: dict[str, str],
) -> None:
    from longtape.market.files import read_files

    if interval is None:
        raise UserError(f"candles need --interval{_step_of(files[0], config)}")
    done: list[tuple[Read, Appended]] = []
    try:
        for file in files:
            for read in read_files(file, symbol=symbol, interval=interval, config=config, **facts):
                done.append((read, store.append(read.bars)))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_stopped([read.bars.symbol for read, _ in done])) from None
    except UserError as error:
        if not done:
            raise
        stored = f"{len(done)} series are stored, up to {done[-1][0].bars.symbol}"
        raise UserError(f"{error} ({stored}; the same command again goes on)") from None
    typer.echo("\n".join(_block(done)))


def _stopped(symbols: list[str]) -> str:
    stored = f"{len(symbols)} series are stored, up to {symbols[-1]}" if symbols else "nothing was stored"
    return f"{stored}; run the same command again, and only what is missing is added"


def _step_of(file: str, config: FileConfig) -> str:
    """`: the rows are 60 minutes apart, so --interval 1h`, where that can be told."""
    from longtape.core.calendars import usual_step
    from longtape.market.files import find_files, read_raw
    from longtape.market.series import usual_name

    try:
        times = (
            read_raw(find_files(file)[0][0], config)["timestamp"]
            .unique()
            .dt.timestamp("ms")
            .sort()
            .to_numpy()
        )
    except UserError:
        return ", such as 1h"
    step = usual_step(times) if len(times) > 2 else 0
    if step < 1_000:
        return ", such as 1h"
    name = usual_name(Interval(step // 1_000 * 1_000, f"{step // 1_000}s")).name
    return f"; the rows are {step / 60_000:g} minutes apart, so perhaps --interval {name}"


def _events(
    files: list[str], store: Store, kind: str, symbol: str | None, facts: dict[str, str], depth: int | None
) -> None:
    from longtape.core.instrument import Instrument

    if kind not in ("trades", "books"):
        raise UserError(f"unknown kind '{kind}'; known: candles, trades, books")
    if kind != "books" and depth is not None:
        raise UserError("--depth is for books")
    if symbol is None:
        raise UserError(f"{kind} need --symbol")
    instrument = Instrument(facts["source"], facts["category"], symbol, calendar=facts["calendar"])
    done = 0
    try:
        for file in files:
            appended = (
                _trades(file, store, instrument)
                if kind == "trades"
                else _books(file, store, instrument, depth)
            )
            typer.echo(_line(instrument, kind, appended))
            done += 1
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"{done} of {len(files)} files are stored; run the same command again, and only what is missing is added"
        ) from None


def _trades(file: str, store: Store, instrument: Instrument) -> Appended:
    from longtape.market.trade_files import read_trades

    return store.append_table("trades", instrument, read_trades(file, instrument.symbol))


def _books(file: str, store: Store, instrument: Instrument, depth: int | None) -> Appended:
    from longtape.market.book_files import read_books

    return store.append_table("books", instrument, read_books(Path(file), instrument, depth).frame)


def _line(instrument: Instrument, kind: str, appended: Appended) -> str:
    return f"{instrument.key}: {', '.join(_counts(appended, kind))}"


def _counts(appended: Appended, kind: str) -> Iterator[str]:
    yield f"{appended.added:,} new {kind}"
    if appended.duplicates:
        yield f"{appended.duplicates:,} already there"
    if appended.conflicts:
        yield f"{appended.conflicts:,} differ from the stored ones, which were kept"


def _block(done: list[tuple[Read, Appended]]) -> list[str]:
    """What came in: rows, span, interval, gaps, columns, calendar, stamp, and what is to be known beside."""
    from longtape.market.partition import Appended

    reads = [read for read, _ in done]
    total = sum((appended for _, appended in done), Appended())
    bars = [read.bars for read in reads]
    first, last = min(int(b.timestamps[0]) for b in bars), max(int(b.timestamps[-1]) for b in bars)
    rows: list[tuple[str, str]] = [
        ("rows", f"{sum(map(len, bars)):,}: {', '.join(_counts(total, 'candles'))}"),
        ("span", f"{iso(first)} to {iso(last)}"),
        ("interval", bars[0].interval.name),
        *_checked(bars),
        ("columns", ", ".join(f"{ours} = {theirs}" for ours, theirs in reads[0].columns.items())),
        ("calendar", bars[0].instrument.calendar),
        ("stamp", "times are those at which bars " + ("close" if bars[0].stamp == "close" else "open")),
        *(("note", note) for note in dict.fromkeys(note for read in reads for note in read.notes)),
    ]
    return [_named([b.instrument.key for b in bars]), *(f"  {name:<9} {text}" for name, text in rows)]


def _named(keys: list[str]) -> str:
    if len(keys) == 1:
        return keys[0]
    return f"{len(keys)} series: {', '.join(keys[:_LISTED])}{' …' if len(keys) > _LISTED else ''}"


def _checked(bars: list[Any]) -> Iterator[tuple[str, str]]:
    """Gaps, and every error or warning that `data check` will have."""
    from longtape.market import quality

    reports = [quality.check(one) for one in bars]
    holed = [report for report in reports if report.missing]
    where = f", first {iso(holed[0].gaps[0].first)}" if holed else ""
    of = f" of {', '.join(r.name.split('/')[-1] for r in holed[:_LISTED])}" if holed and len(bars) > 1 else ""
    missing = sum(report.missing for report in holed)
    yield (
        "gaps",
        f"{sum(len(r.gaps) for r in holed):,}, {missing:,} bars missing{of}{where}" if holed else "none",
    )
    for report in reports:
        for finding in report.findings:
            if finding.severity != "note" and finding.name not in ("gaps", "outliers"):
                of = f"{report.name.split('/')[-1]}: " if len(bars) > 1 else ""
                first = f", first {iso(finding.times[0])}" if finding.times else ""
                yield finding.severity, f"{of}{finding.name}: {finding.meaning} ({finding.count:,}){first}"
