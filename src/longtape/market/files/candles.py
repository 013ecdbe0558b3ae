"""Candles from files: container → dialect → columns → times → numbers → bars, each step in a file of its own."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from longtape.core.calendars import require_calendar
from longtape.core.clock import ALWAYS_OPEN, DAY, Interval, Milliseconds, iso
from longtape.core.errors import UserError
from longtape.core.instrument import Instrument
from longtape.market.bars import COLUMNS, PRICES, TIME_TYPE, Bars
from longtape.market.files.columns import Chosen, choose
from longtape.market.files.config import FileConfig, file_config
from longtape.market.files.containers import CONTAINERS, read_table
from longtape.market.files.numbers import numbers
from longtape.market.files.stamps import calendar_is_doubtful, doubtful_ends, opens_of, refuse_local_times
from longtape.market.naming import plain
from longtape.market.timestamps import has_zone, to_utc

_MOST_OUTSIDE = 0.02  # of the rows: a real file may have a few whose close lies outside of low to high
_ROWS_OUTSIDE = 5
_ENDINGS = tuple(ending for one in CONTAINERS.values() for ending in one.endings)
_PACKED = (".gz", ".zip", ".bz2", ".xz", ".zst")


@dataclass(frozen=True, eq=False)
class Read:
    """Bars of one symbol, and how they were read: our columns and the file's, and what the user should know."""

    bars: Bars
    columns: dict[str, str]
    notes: tuple[str, ...]


def read_bars(
    path: str | Path,
    *,
    symbol: str,
    interval: str | Interval,
    source: str = "file",
    category: str = "spot",
    calendar: str = ALWAYS_OPEN,
    config: FileConfig | None = None,
    **options: Any,
) -> Bars:
    """Read candles of one symbol from a file, a folder or a pattern such as `BTC*.csv`.

    CSV, Parquet, Feather, JSON and xlsx in the forms of docs/sources.md; `options` are the fields of `FileConfig`
    (`stamp`, `columns`, `time_format`, `time_zone`, `newest_first`, …). `columns` maps our names to the file's where
    they are others. A column that the file does not have (open, high, low, volume) is null. `adj_close` and `turnover`
    are kept when present. UserError names the file, and the row and column where there is one.
    """
    facts = {"source": source, "category": category, "calendar": calendar}
    config = _with(config, options)
    [found] = read_files(path, symbol=symbol, interval=interval, config=config, **facts)
    return found.bars


def read_files(
    path: str | Path,
    *,
    symbol: str | None = None,
    interval: str | Interval,
    source: str = "file",
    category: str = "spot",
    calendar: str = ALWAYS_OPEN,
    config: FileConfig | None = None,
) -> Iterator[Read]:
    """The same for every symbol of a file, a folder or a pattern, one after the other.

    Without `symbol` they are named by a column of symbols, by the columns of a wide table, or by `{symbol}` in the
    path. Several files of one symbol are put one behind the other.
    """
    config = config or FileConfig()
    interval = Interval.parse(interval)
    files = find_files(path)
    calendar = require_calendar(calendar, str(path))
    facts = {"source": source, "category": category, "calendar": calendar}
    named: dict[str | None, list[Path]] = {}
    for file, own in files:
        named.setdefault(own or symbol, []).append(file)
    if None in named and len(named[None]) > 1:
        raise UserError(
            f"{path}: {len(named[None])} files, and nothing says of which symbol each is; name --symbol where all are"
            " of one, or write {symbol} where its name stands: 'folder/{symbol}.csv'"
        )
    for own, mine in named.items():
        yield from _read_together(mine, own, interval, facts, config)


def find_files(path: str | Path) -> list[tuple[Path, str | None]]:
    """The files of a path, a folder or a pattern with * and {symbol}, in order of name, and the symbols in their names.

    UserError where there is none.
    """
    text = str(path)
    if Path(text).is_file():
        return [(Path(text), None)]
    if Path(text).is_dir():
        inside = sorted(file for file in Path(text).iterdir() if _is_table(file))
        if not inside:
            raise UserError(f"{path}: no file of candles in this folder ({', '.join(_ENDINGS)})")
        return [(file, None) for file in inside]
    pattern = re.sub(r"\\\{symbol\\\}", r"(?P<symbol>[^/]+?)", re.escape(text), count=1).replace(
        r"\{symbol\}", "(?P=symbol)"
    )
    pattern = pattern.replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
    found = []
    for name in sorted(glob.glob(text.replace("{symbol}", "*"))):
        match = re.fullmatch(pattern, name)
        if match and Path(name).is_file():
            found.append((Path(name), match.groupdict().get("symbol")))
    if not found:
        raise UserError(
            f"{path}: no such file" + (" fits this pattern" if "*" in text or "{" in text else "")
        )
    return found


def read_raw(path: str | Path, config: FileConfig | None = None) -> pl.DataFrame:
    """The candles of a file as they stand, unchecked: our column names, UTC times, float64, every symbol's rows.

    For a quality report of a file that `read_bars` would refuse. Columns that are not there are null.
    """
    origin, config = str(path), config or FileConfig()
    chosen = choose(read_table(path, config), config, None, origin)
    frame = _valued(chosen, config, origin)
    times = to_utc(frame["timestamp"], origin, config.time_format, config.time_zone or chosen.zone)
    symbols = [pl.col("symbol").cast(pl.String)] if "symbol" in frame.columns else []
    frame = _complete(frame.with_columns(times, *symbols))
    if config.drop_empty:
        frame = _with_a_price(frame)
    return frame.reverse() if config.newest_first else frame


def only_symbol(frame: pl.DataFrame, symbol: str, origin: str) -> pl.DataFrame:
    """The rows of `symbol`, however it is punctuated; all where there is no column of symbols. UserError for none."""
    if "symbol" not in frame.columns:
        return frame
    names = frame["symbol"].cast(pl.String)
    rows = names.str.replace_all(r"[^A-Za-z0-9]", "").str.to_lowercase() == plain(symbol)
    if not rows.any():
        known = names.unique(maintain_order=True).drop_nulls().to_list()
        raise UserError(
            f"{origin}: no row of '{symbol}'; its symbols are {', '.join(known[:10])}{' …' * (len(known) > 10)}"
        )
    return frame.filter(rows)


def _with(config: FileConfig | None, options: dict[str, Any]) -> FileConfig:
    if config is not None and options:
        raise UserError("read_bars: give either config or its fields as options")
    return config or file_config(**options)


def _is_table(file: Path) -> bool:
    name = file.with_suffix("") if file.suffix.lower() in _PACKED else file
    known = name.suffix.lower() in _ENDINGS or file.suffix.lower() in _PACKED
    return file.is_file() and known and not file.name.startswith(".")


def _read_together(
    files: list[Path], symbol: str | None, interval: Interval, facts: dict[str, str], config: FileConfig
) -> Iterator[Read]:
    """The bars of files that belong together: one symbol's, or all of a long or wide table."""
    parts = [_read_one(file, symbol, config) for file in files]
    chosen, origin = (
        parts[0][0],
        str(files[0]) if len(files) == 1 else f"{files[0].parent} ({len(files)} files)",
    )
    if len(parts) == 1:
        frame = parts[0][1]
    else:
        parts.sort(key=lambda part: part[1]["timestamp"][0], reverse=config.newest_first)
        frame = pl.concat([part for _, part in parts], how="diagonal_relaxed").unique(maintain_order=True)
    if symbol is None and "symbol" not in frame.columns:
        raise UserError(f"{origin}: nothing in it says of which symbol it is; name it with --symbol")
    if symbol is not None:
        label = origin if "symbol" not in frame.columns else f"{origin}, rows of {symbol}"
        yield _as_bars(frame, chosen, symbol, interval, facts, config, label)
        return
    names = _symbols(frame, origin)
    for rows in frame.partition_by("symbol", maintain_order=True):
        own = str(rows["symbol"][0])
        yield _as_bars(rows, chosen, names[own], interval, facts, config, f"{origin}, rows of {own}")


def _read_one(file: Path, symbol: str | None, config: FileConfig) -> tuple[Chosen, pl.DataFrame]:
    """What the columns are, and rows of times in UTC (stamps, as the file has them) and numbers."""
    origin = str(file)
    chosen = choose(read_table(file, config), config, symbol, origin)
    cells = chosen.cells
    if symbol is not None and "symbol" in cells.columns:
        cells = only_symbol(cells, symbol, origin)
        chosen = replace(chosen, cells=cells)
        origin = f"{origin}, rows of {symbol}"
    if cells.height == 0:
        raise UserError(f"{origin}: there is no row in it")
    zone = config.time_zone or chosen.zone
    known = has_zone(cells["timestamp"]) or cells["timestamp"].dtype == pl.Date
    notes = (f"times have no zone: taken as {zone}",) if zone else () if known else (_NO_ZONE,)
    frame = _valued(chosen, config, origin)
    frame = frame.with_columns(to_utc(frame["timestamp"], origin, config.time_format, zone))
    return replace(chosen, cells=cells.clear(), zone=zone, notes=(*chosen.notes, *notes)), frame


_NO_ZONE = "times have no zone: taken as UTC (--time-zone names another)"


def _valued(chosen: Chosen, config: FileConfig, origin: str) -> pl.DataFrame:
    """Numbers in the columns that hold them; an adjusted close takes open, high and low along by its ratio."""
    cells = chosen.cells
    names = [name for name in cells.columns if name not in ("timestamp", "symbol")]
    frame = cells.with_columns(**numbers(cells, names, origin, config.decimal))
    if chosen.wide:
        frame = frame.filter(pl.col("close").is_not_null())
    if "raw_close" in frame.columns:
        ratio = pl.col("close") / pl.col("raw_close")
        frame = frame.with_columns(pl.col(n) * ratio for n in PRICES[:3] if n in frame.columns).drop(
            "raw_close"
        )
    return frame


def _symbols(frame: pl.DataFrame, origin: str) -> dict[str, str]:
    """Symbols as a file writes them, and as the store can: BTC/USDT is BTCUSDT. UserError where two become one."""
    if frame["symbol"].null_count():
        row = int(frame["symbol"].is_null().arg_max() or 0) + 1
        raise UserError(
            f"{origin}: row {row} has no symbol; remove the row or name the column with --symbol-column"
        )
    written = frame["symbol"].cast(pl.String).unique(maintain_order=True).to_list()
    names = {name: re.sub(r"[^A-Za-z0-9._\-^=+]", "-", re.sub(r"[/:]", "", name.strip())) for name in written}
    for name in written:
        same = [other for other in written if names[other] == names[name]]
        if len(same) > 1:
            raise UserError(
                f"{origin}: symbols {', '.join(map(repr, same))} would have one name; import them with --symbol"
            )
    return names


def _as_bars(
    frame: pl.DataFrame,
    chosen: Chosen,
    symbol: str,
    interval: Interval,
    facts: dict[str, str],
    config: FileConfig,
    origin: str,
) -> Read:
    """Rows of one symbol → bars, every step that can fail naming the row."""
    instrument = Instrument(facts["source"], facts["category"], symbol, calendar=facts["calendar"])
    frame = _complete(frame.drop("symbol", strict=False))
    if config.drop_empty:
        frame = _with_a_price(frame)
    if frame.height == 0:
        raise UserError(f"{origin}: no row of it has a price")
    frame, silence = _without_silence(frame)
    _refuse_empty_cells(frame, origin)
    frame = _in_order(frame, config.newest_first, origin)
    stamps = frame["timestamp"].dt.timestamp("ms").to_numpy()
    if _NO_ZONE in chosen.notes:
        refuse_local_times(stamps, interval, instrument.calendar, origin)
    opens = opens_of(stamps, interval, instrument.calendar, config.stamp, chosen.ends, origin)
    if not np.array_equal(opens, stamps):
        frame = frame.with_columns(pl.Series("timestamp", opens).cast(TIME_TYPE))
    bars = Bars(instrument, interval, frame, origin, config.stamp or "open")
    _refuse_outside(bars)
    dates = interval.milliseconds >= DAY and bool((stamps % DAY == 0).all())
    notes = [note for note in chosen.notes if not (dates and note == _NO_ZONE)]
    return Read(
        bars, chosen.columns, (*notes, *silence, *_notes_on_times(bars, stamps), *_notes_on_columns(bars))
    )


def _notes_on_times(bars: Bars, stamps: Milliseconds) -> Iterator[str]:
    """What is to be known of how stamps became opens, and what looks odd in them."""
    calendar, opens = bars.instrument.calendar, bars.timestamps
    if bars.stamp == "open" and opens[0] != stamps[0]:
        yield f"days are the sessions of {calendar}: {iso(int(stamps[0]))} is {iso(int(opens[0]))}"
    if calendar_is_doubtful(opens, bars.interval, calendar):
        yield "no bar falls on a weekend: name the market's calendar (--calendar 24/5, XNYS, …)"
    if bars.stamp == "open" and (doubt := doubtful_ends(stamps, bars.interval)) is not None:
        yield doubt


def _notes_on_columns(bars: Bars) -> Iterator[str]:
    if bars.absent:
        yield f"no {', '.join(bars.absent)}: null"


def _complete(frame: pl.DataFrame) -> pl.DataFrame:
    """Columns that the file does not have are null."""
    return frame.with_columns(
        pl.lit(None, pl.Float64).alias(n) for n in COLUMNS[1:] if n not in frame.columns
    )


def _with_a_price(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.filter(~pl.all_horizontal(pl.col(PRICES).is_null() | pl.col(PRICES).is_nan()))


def _without_silence(frame: pl.DataFrame) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """A volume of 0 in every row is that of a source that reports none."""
    if frame.height > 1 and bool((frame["volume"] == 0).all()) and not frame["volume"].null_count():
        note = "volume is 0 throughout: taken as not reported"
        return frame.with_columns(pl.lit(None, pl.Float64).alias("volume")), (note,)
    return frame, ()


def _refuse_empty_cells(frame: pl.DataFrame, origin: str) -> None:
    for name in COLUMNS[1:]:
        empty = frame[name].is_null() | frame[name].is_nan().fill_null(True)
        if name != "close" and empty.all():
            continue
        if empty.any():
            row = int(empty.arg_max() or 0)
            when = frame["timestamp"].dt.strftime("%Y-%m-%d %H:%MZ")[row]
            way = f", or the column with --without {name}" if name != "close" else ""
            raise UserError(
                f"{origin}: row {row + 1} ({when}), column '{name}': empty or NaN ({int(empty.sum())} such); mend"
                f" the file, or leave rows without any price out with --drop-empty{way}"
            )


def _refuse_outside(bars: Bars) -> None:
    """UserError where opens or closes lie outside of low to high so often that the columns are not of one kind."""
    if bars.lacks("high") or bars.lacks("low"):
        return
    high, low = bars.column("high") * (1 + 1e-6), bars.column("low") * (1 - 1e-6)
    for name in ("open", "close"):
        values = bars.column(name)
        outside = (values > high) | (values < low)
        if outside.sum() >= _ROWS_OUTSIDE and outside.mean() > _MOST_OUTSIDE:
            row = int(np.argmax(outside))
            raise UserError(
                f"{bars.origin}: {name} lies outside of low to high in {outside.mean():.0%} of the rows, first in row"
                f" {row + 1} ({iso(int(bars.timestamps[row]))}): columns are mixed up, or one is adjusted and the"
                " others are not; name them, or leave some out with --without open,high,low"
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
