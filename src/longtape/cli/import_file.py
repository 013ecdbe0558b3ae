"""`longtape import`: candles, trades and order books from files into the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longtape.core.clock import ALWAYS_OPEN
from longtape.core.errors import UserError

if TYPE_CHECKING:
    from longtape.core.instrument import Instrument
    from longtape.market.partition import Appended
    from longtape.market.store import Store

_COLUMNS = ("time", "open", "high", "low", "close", "volume")


def import_file(
    file: Annotated[
        Path,
        typer.Argument(help="CSV (also .gz, .zip) or Parquet; for books Parquet, an ob500 ZIP or a log."),
    ],
    symbol: Annotated[str, typer.Option(help="The symbol in the store; of a long table, the rows to take.")],
    store: Annotated[str, typer.Option(help="Folder of the store, or a URL such as s3://bucket/path.")],
    interval: Annotated[str | None, typer.Option(help="Length of the candles: 1m, 5m, 1h, 1d, …")] = None,
    kind: Annotated[str, typer.Option(help="candles, trades or books.")] = "candles",
    source: Annotated[str, typer.Option(help="Where the data came from; part of the key.")] = "file",
    category: Annotated[str, typer.Option(help="spot, linear, inverse, stock, …; part of the key.")] = "spot",
    calendar: Annotated[str, typer.Option(help="24/7, 24/5 or an exchange code such as XNYS.")] = ALWAYS_OPEN,
    time_column: Annotated[
        str | None, typer.Option(help="The file's name for the time at which a bar opens.")
    ] = None,
    open_column: Annotated[str | None, typer.Option(help="The file's name for the open.")] = None,
    high_column: Annotated[str | None, typer.Option(help="The file's name for the high.")] = None,
    low_column: Annotated[str | None, typer.Option(help="The file's name for the low.")] = None,
    close_column: Annotated[str | None, typer.Option(help="The file's name for the close.")] = None,
    volume_column: Annotated[str | None, typer.Option(help="The file's name for the volume.")] = None,
    time_format: Annotated[
        str | None, typer.Option(help="How times are written: '%d/%m/%Y %H:%M', or s, ms, us, ns since 1970.")
    ] = None,
    newest_first: Annotated[
        bool, typer.Option("--newest-first", help="The rows run backwards in time.")
    ] = False,
    drop_empty: Annotated[
        bool, typer.Option("--drop-empty", help="Leave out rows without any price; they become gaps.")
    ] = False,
    depth: Annotated[
        int | None,
        typer.Option(min=1, help="For books: levels to keep of each side (20 of a log, all of Parquet)."),
    ] = None,
) -> None:
    """Bring a file into the store. The same file again adds nothing; bars that differ from stored ones are counted.

    Example: longtape import btc.csv --symbol BTCUSDT --interval 1h --store data

    Example: longtape import 2024-12-01_XRPUSDT_ob500.data.zip --kind books --symbol XRPUSDT --category linear
    --source bybit --store data
    """
    from longtape.core.instrument import Instrument, check_category
    from longtape.market.store import Store

    check_category(category)
    named = (time_column, open_column, high_column, low_column, close_column, volume_column)
    columns = {ours: theirs for ours, theirs in zip(_COLUMNS, named, strict=True) if theirs is not None}
    instrument = Instrument(source, category, symbol, calendar=calendar)
    words = (columns, time_format, newest_first, drop_empty)
    if kind != "candles" and (interval or any(words)):
        raise UserError(f"--interval, column names and --time-format are for candles, not for {kind}")
    if kind != "books" and depth is not None:
        raise UserError("--depth is for books")
    if kind == "candles":
        appended = _candles(file, Store(store), instrument, interval, *words)
    elif kind == "trades":
        appended = _trades(file, Store(store), instrument)
    elif kind == "books":
        appended = _books(file, Store(store), instrument, depth)
    else:
        raise UserError(f"unknown kind '{kind}'; known: candles, trades, books")
    typer.echo(_line(instrument, kind, appended))


def _candles(
    file: Path,
    store: Store,
    instrument: Instrument,
    interval: str | None,
    columns: dict[str, str],
    time_format: str | None,
    newest_first: bool,
    drop_empty: bool,
) -> Appended:
    from longtape.market.files import read_bars

    if interval is None:
        raise UserError("candles need --interval")
    bars = read_bars(
        file, symbol=instrument.symbol, interval=interval, source=instrument.source, category=instrument.category,
        calendar=instrument.calendar, columns={_ours(name): theirs for name, theirs in columns.items()},
        time_format=time_format, newest_first=newest_first, drop_empty=drop_empty,
    )  # fmt: skip
    return store.append(bars)


def _ours(name: str) -> str:
    return "timestamp" if name == "time" else name


def _trades(file: Path, store: Store, instrument: Instrument) -> Appended:
    from longtape.market.trade_files import read_trades

    return store.append_table("trades", instrument, read_trades(file, instrument.symbol))


def _books(file: Path, store: Store, instrument: Instrument, depth: int | None) -> Appended:
    from longtape.market.book_files import read_books

    return store.append_table("books", instrument, read_books(file, instrument, depth).frame)


def _line(instrument: Instrument, kind: str, appended: Appended) -> str:
    parts = [f"{instrument.key}: {appended.added:,} new {kind}"]
    if appended.duplicates:
        parts.append(f"{appended.duplicates:,} already there")
    if appended.conflicts:
        parts.append(f"{appended.conflicts:,} differ from the stored ones, which were kept")
    return ", ".join(parts)
