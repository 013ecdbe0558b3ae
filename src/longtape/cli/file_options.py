"""Options that say how a table is written, the same ones for every command that reads the user's candles."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from longtape.market.files import FileConfig

_COLUMNS = ("time", "open", "high", "low", "close", "volume")


def with_file_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with these options behind its own; what they say is handed to it as `read`."""
    asked = inspect.signature(_read).parameters
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "read"]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        read = _read(**{name: given.pop(name) for name in asked})
        command(**given, read=read)

    hints = get_type_hints(command, include_extras=True) | get_type_hints(_read, include_extras=True)
    parameters = [*own, *asked.values()]
    resolved = [p.replace(annotation=hints[p.name], kind=p.KEYWORD_ONLY) for p in parameters]
    run.__signature__ = inspect.Signature(resolved)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: hints[p.name] for p in parameters}
    return run


def as_config(read: dict[str, Any]) -> FileConfig:
    """What the options say. UserError naming the one that cannot be."""
    from longtape.market.files import file_config

    return file_config(**read)


def _read(
    stamp: Annotated[
        str | None, typer.Option(help="Whether times are those at which bars open (the default) or close.")
    ] = None,
    symbol_column: Annotated[
        str | None, typer.Option(help="Of a long table: the file's name for the symbol.")
    ] = None,
    time_column: Annotated[str | None, typer.Option(help="The file's name for the time of a bar.")] = None,
    open_column: Annotated[str | None, typer.Option(help="The file's name for the open.")] = None,
    high_column: Annotated[str | None, typer.Option(help="The file's name for the high.")] = None,
    low_column: Annotated[str | None, typer.Option(help="The file's name for the low.")] = None,
    close_column: Annotated[str | None, typer.Option(help="The file's name for the close.")] = None,
    volume_column: Annotated[str | None, typer.Option(help="The file's name for the volume.")] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            help="Of a file without a header, our names in its order: time,open,high,low,close,volume; - for one to"
            " pass over."
        ),
    ] = None,
    without: Annotated[
        str | None, typer.Option(help="Columns to leave out: open,high,low,volume. They become null.")
    ] = None,
    time_format: Annotated[
        str | None,
        typer.Option(help="How times are written: '%d/%m/%Y %H:%M', or s, ms, us, ns since 1970, or excel."),
    ] = None,
    time_zone: Annotated[
        str | None, typer.Option(help="Of times without one, UTC by default: America/New_York, or -05:00.")
    ] = None,
    decimal: Annotated[str | None, typer.Option(help="The decimal mark: . or ,")] = None,
    sheet: Annotated[str | None, typer.Option(help="The sheet of a workbook.")] = None,
    newest_first: Annotated[
        bool, typer.Option("--newest-first", help="The rows run backwards in time.")
    ] = False,
    drop_empty: Annotated[
        bool, typer.Option("--drop-empty", help="Leave out rows without any price; they become gaps.")
    ] = False,
) -> dict[str, Any]:
    named = zip(
        _COLUMNS,
        (time_column, open_column, high_column, low_column, close_column, volume_column),
        strict=True,
    )
    given = {
        "stamp": stamp, "columns": {_ours(ours): theirs for ours, theirs in named if theirs is not None},
        "order": _list(columns), "symbol_column": symbol_column, "without": _list(without), "time_format": time_format,
        "time_zone": time_zone, "decimal": decimal, "sheet": sheet, "newest_first": newest_first,
        "drop_empty": drop_empty,
    }  # fmt: skip
    return {name: value for name, value in given.items() if value}


def _list(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _ours(name: str) -> str:
    return "timestamp" if name == "time" else name
