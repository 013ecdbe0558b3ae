"""`longtape data`: what the store holds, what is wrong with it, mending it, and taking data out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longtape.cli.file_options import as_config, with_file_options
from longtape.core.clock import ALWAYS_OPEN, iso
from longtape.core.errors import CheckFailed, UserError

if TYPE_CHECKING:
    from longtape.market.quality import QualityReport
    from longtape.market.series import Series
    from longtape.market.store import Entry, Store

app = typer.Typer(help="The store: list, check, repair, export.", no_args_is_help=True, rich_markup_mode=None)

StoreOption = Annotated[
    str, typer.Option("--store", help="Folder of the store, or a URL such as s3://bucket/path.")
]
SymbolOption = Annotated[str | None, typer.Option(help="Only this symbol.")]
IntervalOption = Annotated[str | None, typer.Option(help="Only bars of this length: 1m, 5m, 1h, 1d, …")]
SourceOption = Annotated[str | None, typer.Option(help="Only this source, where a symbol has several.")]
CategoryOption = Annotated[str | None, typer.Option(help="Only this category: spot, linear, …")]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on standard output instead of a table.")]


@app.command("list")
def list_(store: StoreOption, json: JsonOption = False) -> None:
    """What is in the store: one line for each series.

    Example: longtape data list --store data
    """
    entries = _opened(store).entries()
    if json:
        _print_json({"store": store, "series": [entry.to_dict() for entry in entries]})
        return
    _print_table(
        {
            "series": e.instrument.key,
            "kind": e.kind,
            "interval": str(e.interval or ""),
            "rows": e.rows,
            "first": _iso(e.first),
            "last": _iso(e.last),
            "size": f"{e.size / 1e6:.1f} MB",
            "": ", ".join(filter(None, [_damaged(e), "stamped at its close" if e.stamp == "close" else ""])),
        }
        for e in entries
    )


def _damaged(entry: Entry) -> str:
    return f"{len(entry.damaged)} damaged" if entry.damaged else ""


@app.command("check")
@with_file_options
def check(
    *,
    read: dict[str, Any],
    files: Annotated[
        list[Path] | None, typer.Argument(help="Candle files to check instead of a store.")
    ] = None,
    store: Annotated[str | None, typer.Option("--store", help="Folder or URL of the store.")] = None,
    symbol: SymbolOption = None,
    interval: IntervalOption = None,
    source: SourceOption = None,
    category: CategoryOption = None,
    calendar: Annotated[str, typer.Option(help="For files: 24/7, 24/5 or an exchange code.")] = ALWAYS_OPEN,
    json: JsonOption = False,
) -> None:
    """Look for gaps, duplicates, disorder, impossible values, damaged files. Exit code 1 if there is an error.

    Outliers, jumps, open or close outside of low to high, and an unfinished last bar are warnings. Options that say how
    a table is written are those of longtape import.

    Example: longtape data check --store data --symbol BTCUSDT --json

    Example: longtape data check btc.csv --interval 1h --decimal , --time-zone Europe/Berlin
    """
    from longtape.market import quality

    if bool(files) == (store is not None):
        raise UserError("name either a store (--store DIR) or files to check")
    if store is not None:
        if read:
            raise UserError("how a table is written is said of files, not of a store")
        stored, chosen = _chosen(store, symbol, interval, source, category)
        reports = quality.check_store(stored, chosen)
    else:
        if interval is None:
            raise UserError("--interval is needed to check a file")
        config = as_config(read)
        checked = (quality.check_file(file, interval, calendar, symbol, config) for file in files or [])
        reports = [report for of_file in checked for report in of_file]
    _show_reports(reports, json)
    wrong = sum(not report.ok for report in reports)
    if wrong:
        raise CheckFailed(f"{wrong} of {len(reports)} series have errors")


@app.command("repair")
def repair(
    store: StoreOption,
    symbol: SymbolOption = None,
    interval: IntervalOption = None,
    source: SourceOption = None,
    category: CategoryOption = None,
    service: Annotated[
        str | None, typer.Option("--from", help="Service to fetch from, where it is not the stored source.")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(help="Address of the service, where it is not the usual.")
    ] = None,
    last: Annotated[
        bool, typer.Option("--last", help="Fetch the last bar again too, and take the new one.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Fetch what is missing again: gaps, and the periods of damaged files, which are set aside.

    Exit code 1 if bars are still missing afterwards: what the service does not have stays missing.

    Example: longtape data repair --store data --symbol BTCUSDT --interval 1h
    """
    from longtape.market.repair import repair
    from longtape.market.sources import open_source

    stored, chosen = _chosen(store, symbol, interval, source, category)
    results = []
    for series in (series for series in chosen if series.interval):
        opened = open_source(service or _service_of(series), base_url)
        try:
            results.append(repair(stored, series, opened, last=last))
        finally:
            opened.close()
    _show_repairs([result.to_dict() for result in results], json)
    still = sum(result.missing for result in results)
    if still:
        raise CheckFailed(f"{still:,} bars are still missing: the service has none there")


def _service_of(series: Series) -> str:
    """The source that a series came from, where that is a service; UserError for imported bars."""
    from longtape.market.sources import SOURCES

    if series.source.partition("-")[0] not in SOURCES:
        raise UserError(
            f"{series.key} {series.name} was imported from a file, which cannot be asked for what is missing: import a"
            " better file, or name a service with --from (bybit, ccxt-kraken, yahoo)"
        )
    return series.source


@app.command("export")
def export(
    symbol: Annotated[str, typer.Option(help="Symbol, or source/category/symbol.")],
    store: StoreOption,
    out: Annotated[Path, typer.Option(help="File to write: .parquet or .csv.")],
    interval: IntervalOption = None,
    kind: Annotated[str, typer.Option(help="candles, mark, trades, books or funding.")] = "candles",
    source: SourceOption = None,
    category: CategoryOption = None,
    since: Annotated[str | None, typer.Option(help="First time, UTC.")] = None,
    until: Annotated[str | None, typer.Option(help="Times before this one, UTC.")] = None,
) -> None:
    """Write a stored series to a file, in order of time; candles as timestamp, open, high, low, close, volume.

    Example: longtape data export --symbol BTCUSDT --interval 1h --store data --out btc.parquet
    """
    from longtape.market.export import export

    rows = export(
        _opened(store), symbol, out, interval=interval, kind=kind, source=source, category=category, since=since,
        until=until,
    )  # fmt: skip
    typer.echo(f"{out}: {rows:,} rows")


def _chosen(
    store: str, symbol: str | None, interval: str | None, source: str | None, category: str | None
) -> tuple[Store, list[Series]]:
    """The stored series that the options name; UserError where there is none."""
    stored = _opened(store)
    return stored, stored.select(symbol, interval, source, category)


def _opened(store: str) -> Store:
    """A store that is there; UserError for a folder that is none."""
    from longtape.market.store import Store

    opened = Store(store)
    if not opened.exists:
        raise UserError(f"{store}: there is no store here; make one with longtape fetch or longtape import")
    return opened


def _show_repairs(results: list[dict[str, Any]], json: bool) -> None:
    if json:
        _print_json({"series": results})
        return
    names = (
        "name", "interval", "missing_before", "fetched", "missing", "first_missing", "set_aside", "replaced",
    )  # fmt: skip
    _print_table(
        {name.replace("_", " "): "" if one[name] is None else one[name] for name in names} for one in results
    )


def _show_reports(reports: Sequence[QualityReport], json: bool) -> None:
    if json:
        ok = all(report.ok for report in reports)
        _print_json({"ok": ok, "series": [report.to_dict() for report in reports]})
        return
    _print_table(
        {
            "series": report.name,
            "interval": str(report.interval or ""),
            "rows": report.rows,
            "": finding.severity if finding else "ok",
            "count": finding.count if finding else "",
            "finding": _described(report, finding),
        }
        for report in reports
        for finding in report.findings or (None,)
    )


def _described(report: QualityReport, finding: Any) -> str:
    if finding is None:
        return ""
    missing = f" ({report.missing:,} bars)" if finding.name == "gaps" else ""
    first = f", first {iso(finding.times[0])}" if finding.times else ""
    return f"{finding.name}: {finding.meaning}{missing}{first}"


def _iso(moment: int | None) -> str:
    return "" if moment is None else iso(moment)


def _print_json(value: Any) -> None:
    from json import dumps

    typer.echo(dumps(value, indent=2, allow_nan=False))


def _print_table(rows: Iterable[dict[str, Any]]) -> None:
    from longtape.report.text import TextTable, print_blocks

    listed = list(rows)
    print_blocks(TextTable(listed) if listed else "no series")
