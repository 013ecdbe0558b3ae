"""Candles from files: CSV of the common dialects and Parquet → Bars."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from longtape.core.calendars import require_calendar
from longtape.core.clock import ALWAYS_OPEN, Interval
from longtape.core.errors import UserError
from longtape.core.instrument import Instrument
from longtape.market import archives
from longtape.market.bars import COLUMNS, PRICES, Bars
from longtape.market.timestamps import to_utc

# How other programs call our columns; names are compared in lower case without blanks and punctuation, and of
# several that are there the one that stands first here is taken.
ALIASES: dict[str, tuple[str, ...]] = {
    "timestamp": ("timestamp", "opentime", "starttime", "datetime", "gmttime", "unixtime", "unix", "ts",
                  "dateutc", "timeutc", "date", "time", "start", "begin"),
    "open": ("open", "o", "openprice", "priceopen", "first"),
    "high": ("high", "h", "highprice", "pricehigh", "max"),
    "low": ("low", "l", "lowprice", "pricelow", "min"),
    "close": ("close", "c", "closeprice", "priceclose", "closelast", "last"),
    "volume": ("volume", "vol", "v", "basevolume", "tickvolume", "tickvol"),
    "adj_close": ("adjclose", "adjustedclose", "closeadj"),
    "turnover": ("turnover", "quotevolume", "quoteassetvolume", "amount"),
    "symbol": ("symbol", "ticker", "pair", "instrument"),
}  # fmt: skip
PARQUET = (".parquet", ".pq")
_OPTIONAL = ("adj_close", "turnover")
_BINANCE = ("timestamp", "open", "high", "low", "close", "volume", "close_time", "turnover")
_EMPTY = ("", "nan", "null", "none", "na", "n/a", "-")


def read_bars(
    path: str | Path,
    *,
    symbol: str,
    interval: str | Interval,
    source: str = "file",
    category: str = "spot",
    calendar: str = ALWAYS_OPEN,
    columns: Mapping[str, str] | None = None,
    time_format: str | None = None,
    newest_first: bool = False,
    drop_empty: bool = False,
) -> Bars:
    """Read candles from CSV (also .gz, .zip) or Parquet.

    Recognised: comma, semicolon, tab or bar between fields, decimal comma, a header or Binance's columns without
    one, date and time in two columns, a long table with a symbol column (its rows of `symbol` are taken), and the
    names in `ALIASES`. `columns` maps our names to the file's where they are others. `adj_close` and `turnover` are
    kept when present. `newest_first` turns a file that runs backwards; `drop_empty` leaves out rows without any
    price, which then are gaps. UserError names the file, and the row and column where there is one.
    """
    origin = str(path)
    instrument = Instrument(source, category, symbol, calendar=require_calendar(calendar, origin))
    table = read_table(Path(path))
    frame = _renamed(table, columns or {}, symbol, origin)
    mine = only_symbol(frame, symbol, origin)
    frame, origin = mine, origin if mine.height == frame.height else f"{origin}, rows of {symbol}"
    if frame.height == 0:
        raise UserError(f"{origin}: there is no row in it")
    frame = frame.with_columns(
        numbers(frame, name, origin) for name in frame.columns if name not in ("timestamp", "symbol")
    )
    frame = frame.with_columns(to_utc(frame["timestamp"], origin, time_format)).drop("symbol", strict=False)
    if drop_empty:
        frame = frame.filter(~pl.all_horizontal(pl.col(PRICES).is_null() | pl.col(PRICES).is_nan()))
    _refuse_empty_cells(frame, origin)
    return Bars.checked(instrument, Interval.parse(interval), _in_order(frame, newest_first, origin), origin)


def read_raw(path: str | Path) -> pl.DataFrame:
    """The candles of a file as they stand, unchecked: our column names, UTC times, float64, every symbol's rows.

    For a quality report of a file that `read_bars` would refuse.
    """
    origin = str(path)
    frame = _renamed(read_table(Path(path)), {}, "", origin)
    values = [numbers(frame, name, origin) for name in frame.columns if name not in ("timestamp", "symbol")]
    symbols = [pl.col("symbol").cast(pl.String)] if "symbol" in frame.columns else []
    return frame.with_columns(to_utc(frame["timestamp"], origin), *values, *symbols)


def read_table(path: Path) -> pl.DataFrame:
    """The table of a CSV (also .gz, .zip) or Parquet file, cells of a CSV as text; UserError where unreadable."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return read_parquet(path) if path.suffix.lower() in PARQUET else _read_csv(path)


def read_parquet(path: Path) -> pl.DataFrame:
    """The table of one Parquet file; UserError where it is absent or cannot be read."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return pl.read_parquet(path, hive_partitioning=False, glob=False)
    except (pl.exceptions.PolarsError, OSError):
        raise UserError(f"{path}: not a readable Parquet file; it may be cut off, write it again") from None


def refuse_other_symbols(frame: pl.DataFrame, symbol: str, what: str, path: str | Path) -> None:
    """UserError where a column `symbol` names another one than `symbol`."""
    if "symbol" not in frame.columns:
        return
    found = frame["symbol"].cast(pl.String).unique().sort()
    if found.to_list() != [symbol]:
        raise UserError(f"{path}: holds {what} of {', '.join(map(str, found[:5]))}, not of '{symbol}' alone")


def _read_csv(path: Path) -> pl.DataFrame:
    raw = archives.read_bytes(path)
    text = _decoded(raw, path)
    lines = [line for line in text[:65_536].splitlines()[:50] if line.strip()]
    if not lines:
        raise UserError(f"{path}: the file is empty")
    # the comma comes last: beside another separator it is a decimal comma
    separator = next((mark for mark in ";\t|" if lines[-1].count(mark) >= 4), ",")
    skip = _lines_before_header(text, separator)
    first = next(csv.reader([text.splitlines()[skip] if skip else lines[0]], delimiter=separator))
    headless = all(_is_number(cell) for cell in first)
    try:
        table = pl.read_csv(
            io.StringIO(text),
            separator=separator,
            has_header=not headless,
            infer_schema=False,
            skip_lines=skip,
        )
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{path}: not a readable table ({str(error).splitlines()[0]})") from None
    table = table.filter(~pl.all_horizontal(pl.all().is_null()))
    return _headless(table, path) if headless else table


def _decoded(raw: bytes, path: Path) -> str:
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: byte {error.start} is not text; give a CSV in UTF-8, or a Parquet file"
        ) from None


def _lines_before_header(text: str, separator: str) -> int:
    """Comments and titles (a line without the separator) stand before the header in some downloads."""
    for number, line in enumerate(io.StringIO(text[:65_536])):
        if line.strip() and not line.startswith("#") and separator in line:
            return number
    return 0


def _is_number(cell: str) -> bool:
    return bool(re.fullmatch(r"\s*[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?\s*", cell))


def _headless(table: pl.DataFrame, path: Path) -> pl.DataFrame:
    if table.width < 6:
        raise UserError(
            f"{path}: no header and {table.width} columns; six at least: time, open, high, low, close, volume"
        )
    names = _BINANCE if table.width >= 8 else _BINANCE[:6]
    return table.select(table.columns[: len(names)]).rename(dict(zip(table.columns, names, strict=False)))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _renamed(table: pl.DataFrame, named: Mapping[str, str], symbol: str, origin: str) -> pl.DataFrame:
    there = {_plain(name): name for name in reversed(table.columns)}
    chosen: dict[str, str] = {}
    for ours, alias in ALIASES.items():
        theirs = named.get(ours) or next((there[name] for name in alias if name in there), None)
        if theirs is not None:
            chosen[ours] = theirs
    if "volume" not in chosen and (base := _volume_of_base(there, symbol)):
        chosen["volume"] = base
    _refuse_bad_names(table, named, chosen, origin)
    frame = table.select(pl.col(theirs).alias(ours) for ours, theirs in chosen.items())
    if "timestamp" not in named and _plain(chosen["timestamp"]) == "date" and "time" in there:
        return frame.with_columns(_joined(table[chosen["timestamp"]], table[there["time"]]))
    return frame


def _joined(day: pl.Series, clock: pl.Series) -> pl.Series:
    """Date and time in two columns, as MetaTrader writes them."""
    return (day.cast(pl.String) + " " + clock.cast(pl.String)).alias("timestamp")


def _volume_of_base(there: Mapping[str, str], symbol: str) -> str | None:
    """`Volume BTC` beside `Volume USDT` for BTCUSDT: the base coin's is the volume."""
    plain = _plain(symbol)
    fits = [name for name in there if name.startswith("volume") and plain.startswith(name[6:]) and name[6:]]
    return there[fits[0]] if fits else None


def _refuse_bad_names(
    table: pl.DataFrame, named: Mapping[str, str], chosen: Mapping[str, str], origin: str
) -> None:
    listed = ", ".join(table.columns[:20])
    for ours, theirs in named.items():
        if ours not in ALIASES:
            raise UserError(f"{origin}: '{ours}' is not one of our columns ({', '.join(ALIASES)})")
        if theirs not in table.columns:
            raise UserError(f"{origin}: no column '{theirs}'; there are {listed}")
    for ours in COLUMNS:
        if ours not in chosen:
            option = f"--{'time' if ours == 'timestamp' else ours}-column"
            raise UserError(
                f"{origin}: column '{ours}' is missing; there are {listed}; name it with {option}"
            )


def only_symbol(frame: pl.DataFrame, symbol: str, origin: str) -> pl.DataFrame:
    """The rows of `symbol`, however it is punctuated; all where there is no column of symbols. UserError for none."""
    if "symbol" not in frame.columns:
        return frame
    names = frame["symbol"].cast(pl.String)
    rows = names.str.replace_all(r"[^A-Za-z0-9]", "").str.to_lowercase() == _plain(symbol)
    if not rows.any():
        known = names.unique(maintain_order=True).drop_nulls().to_list()
        raise UserError(
            f"{origin}: no row of '{symbol}'; its symbols are {', '.join(known[:10])}{' …' * (len(known) > 10)}"
        )
    return frame.filter(rows)


def numbers(frame: pl.DataFrame, name: str, origin: str) -> pl.Series:
    """A column as Float64, null where a cell is empty. UserError naming the row for a cell that is no number."""
    values = frame[name]
    if values.dtype != pl.String:
        return values.cast(pl.Float64, strict=False) if values.dtype.is_numeric() else values
    text = values.str.strip_chars()
    text = text.set(text.str.to_lowercase().is_in(_EMPTY), None)
    if text.str.contains(r"^-?\d+,\d+$").any():
        # a decimal comma, provided that no cell has a point as well
        text = text.str.replace(",", ".", literal=True) if not text.str.contains(r"\.").any() else text
    numbers = text.cast(pl.Float64, strict=False)
    bad = numbers.is_null() & text.is_not_null()
    if bad.any():
        row = int(bad.arg_max() or 0)
        raise UserError(f"{origin}: row {row + 1}, column '{name}': '{text[row]}' is not a number")
    return numbers


def _refuse_empty_cells(frame: pl.DataFrame, origin: str) -> None:
    for name in COLUMNS[1:]:
        empty = frame[name].is_null()
        if frame[name].dtype == pl.Float64:
            empty = empty | frame[name].is_nan()
        if empty.any():
            row = int(empty.fill_null(True).arg_max() or 0)
            when = frame["timestamp"].dt.strftime("%Y-%m-%d %H:%MZ")[row]
            raise UserError(
                f"{origin}: row {row + 1} ({when}), column '{name}': empty or NaN ({int(empty.sum())} such); mend"
                " the file, or leave rows without any price out with --drop-empty"
            )


def _in_order(frame: pl.DataFrame, newest_first: bool, origin: str) -> pl.DataFrame:
    steps = frame["timestamp"].diff().drop_nulls().dt.total_milliseconds()
    backwards = len(steps) > 0 and bool((steps < 0).all())
    if newest_first:
        if not backwards and len(steps):
            raise UserError(
                f"{origin}: the rows are not newest first throughout; leave --newest-first away or sort it"
            )
        return frame.reverse()
    if backwards:
        raise UserError(f"{origin}: the rows run backwards in time; read it with --newest-first")
    return frame
