"""Times as files write them → UTC milliseconds. What could be read in two ways is refused, never guessed."""

from __future__ import annotations

import re
from typing import Literal

import numpy as np
import polars as pl

from longtape.core.calendars import time_zone as zone_named
from longtape.core.clock import DAY
from longtape.core.errors import UserError

TimeUnit = Literal["ms", "us"]
UNITS = {"s": 1_000, "ms": 1, "us": -1_000, "ns": -1_000_000}
EXCEL = "excel"  # days since 1899-12-30
_EXCEL_DAYS = 25_569  # from there to 1970
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_FIRST_NUMBER = 3e8  # seconds: 1979; smaller numbers are no times since 1970
_SUMMER_DAYS = 60  # the least between two changes of a clock
_CLOCK = (
    r"(?:[T ]+(?P<hour>\d{1,2}):?(?P<minute>\d{2})(?::?(?P<second>\d{2})(?:[.,](?P<fraction>\d{1,9}))?)?"
    r"\s*(?P<half>[AaPp][Mm])?)?"
)
_ZONE = r"\s*(?P<zone>Z|UTC|GMT|[+-]\d{2}(?::?\d{2})?)?$"
_YEAR_FIRST = rf"^(?P<year>\d{{4}})[-/.]?(?P<a>\d{{2}})[-/.]?(?P<b>\d{{2}}){_CLOCK}{_ZONE}"
_YEAR_LAST = rf"^(?P<a>\d{{1,2}})[-/.](?P<b>\d{{1,2}})[-/.](?P<year>\d{{4}}){_CLOCK}{_ZONE}"
_MONTH_ALONE = (r"^(\d{4})[-/](\d{2})$", r"^([A-Za-z]{3})[a-z]*\.?[ -](\d{4})$")  # 2024-01, Jan 2024
_SHORT = r"^(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})\b(.*)$"  # 2024/1/5
_MONTH_FIRST = r"^(?:[A-Za-z]{3,9},? )?([A-Za-z]{3})[a-z]*\.?[ -](\d{1,2}),?[ -](\d{4}|\d{2}),?(.*)$"
_DAY_FIRST = r"^(?:[A-Za-z]{3,9},? )?(\d{1,2})[ -]([A-Za-z]{3})[a-z]*\.?[ -](\d{4}|\d{2}),?(.*)$"
_DEFAULTS = {"hour": 0, "minute": 0, "second": 0}
_A_TIME = re.compile(
    r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}(\D.*)?|\d{1,2}[-/.]\d{1,2}[-/.](\d{4}|\d{2})(\D.*)?"
    r"|(19|20)\d\d[-/](0[1-9]|1[0-2])|[A-Za-z]{3,9}\.?[ -](19|20)\d\d"
    r"|(19|20)\d{6}([ T]\d{4,6}.*)?|\d{9,19}(\.\d+)?"
    r"|([A-Za-z]{3,9},? )?[A-Za-z]{3,9}\.?[ -]\d{1,2},?[ -]\d{2,4}(\D.*)?"
    r"|([A-Za-z]{3,9},? )?\d{1,2}[ -][A-Za-z]{3,9}\.?[ -]\d{2,4}(\D.*)?"
)


def looks_like_a_time(text: str) -> bool:
    """Whether a cell of a text is a date, a date and time, or a number of seconds or less since 1970."""
    return bool(_A_TIME.fullmatch(text.strip()))


def to_utc(
    times: pl.Series, origin: str, time_format: str | None = None, time_zone: str | None = None
) -> pl.Series:
    """A column of dates, datetimes, numbers or text → Datetime("ms", "UTC"); a time without zone is one of
    `time_zone` (a name such as America/New_York, or an offset such as -05:00), by default UTC.

    `time_format` is a strptime pattern, or `s`, `ms`, `us`, `ns` for numbers since 1970, or `excel` for days since
    1899-12-30; without it the common forms are recognised. UserError names `origin` and the row for a time that is
    empty, not understood, or could be read in two ways (day or month first; rows of different time zones; seconds among
    milliseconds; the hour that a change of the clock leaves out).
    """
    times = times.alias("timestamp")
    if times.dtype == pl.Categorical:
        times = times.cast(pl.String)
    _refuse_empty(times, origin)
    found = _read(times, origin, time_format)
    if found.dtype.time_zone is not None:  # type: ignore[attr-defined]
        if time_zone is not None:
            raise UserError(f"{origin}: times have a zone of their own; leave --time-zone away")
        return in_utc(found)
    return _from_zone(found, time_zone or "UTC", origin)


def has_zone(times: pl.Series) -> bool:
    """Whether the times say themselves which moment they are; dates and times without a zone do not."""
    if times.dtype == pl.String:
        numbers = times.str.strip_chars().cast(pl.Float64, strict=False)
        if numbers.is_not_null().all():
            return not _looks_like_dates(times.str.strip_chars())
        return bool(times.str.contains(r":\d{2}.*(Z|UTC|GMT|[+-]\d{2}(:?\d{2})?)$").any())
    return bool(times.dtype.is_numeric() or getattr(times.dtype, "time_zone", None))


def _read(times: pl.Series, origin: str, time_format: str | None) -> pl.Series:
    """Datetimes, with a zone where the times say it."""
    if times.dtype == pl.Date:
        return times.cast(pl.Datetime("ms"))
    if isinstance(times.dtype, pl.Datetime):
        return times.cast(pl.Datetime("ms", times.dtype.time_zone))
    if times.dtype.is_numeric():
        return _from_numbers(times, origin, time_format)
    if times.dtype != pl.String:
        raise UserError(f"{origin}: column 'timestamp' is {times.dtype}, not a time")
    text = times.str.strip_chars()
    if time_format and time_format not in (*UNITS, EXCEL):
        return _from_format(text, origin, time_format)
    numbers = text.cast(pl.Float64, strict=False)
    if numbers.is_not_null().all() and not (time_format is None and _looks_like_dates(text)):
        return _from_numbers(text.cast(pl.Int64, strict=False).fill_null(numbers), origin, time_format)
    if time_format:
        raise UserError(f"{origin}: time '{text[0]}' is not a number of {time_format} since 1970")
    return _from_text(text, origin)


def _from_zone(times: pl.Series, zone: str, origin: str) -> pl.Series:
    """Times of a wall clock → UTC. In autumn an hour comes twice: the first of two equal times is the earlier one."""
    if zone == "UTC":
        return times.dt.replace_time_zone("UTC")
    if re.fullmatch(r"[+-]\d\d:\d\d", zone):
        minutes = (1 if zone[0] == "+" else -1) * (int(zone[1:3]) * 60 + int(zone[4:]))
        return _shifted(times, minutes)
    zone_named(zone)
    second = ~times.is_first_distinct()
    which = pl.select(
        pl.when(pl.lit(second)).then(pl.lit("latest")).otherwise(pl.lit("earliest"))
    ).to_series()
    local = times.dt.replace_time_zone(zone, ambiguous=which, non_existent="null")
    if local.null_count():
        row = _first(local.is_null())
        raise UserError(
            f"{origin}: row {row}: there is no such time as {times[row - 1]} in {zone}; its clock changed"
        )
    return in_utc(local)


def _shifted(times: pl.Series, minutes: int) -> pl.Series:
    moved = times.cast(pl.Int64) - minutes * 60_000
    return moved.cast(pl.Datetime("ms")).dt.replace_time_zone("UTC")


def _refuse_empty(times: pl.Series, origin: str) -> None:
    empty = times.is_null()
    if times.dtype == pl.String:
        empty = empty | (times.str.strip_chars() == "").fill_null(True)
    if empty.any():
        raise UserError(f"{origin}: row {_first(empty)} has no time; remove the row or name the time column")


def in_utc(times: pl.Series, unit: TimeUnit = "ms") -> pl.Series:
    """Datetimes in UTC and in `unit`; a time without zone is UTC."""
    zone = times.dtype.time_zone  # type: ignore[attr-defined]
    utc = times.dt.replace_time_zone("UTC") if zone is None else times.dt.convert_time_zone("UTC")
    return utc.cast(pl.Datetime(unit, "UTC"))


def _looks_like_dates(text: pl.Series) -> bool:
    """`20240131` is a day, not the 234th day of 1970 in seconds."""
    return bool(text.str.contains(r"^(19|20)\d{2}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])$").all())


def _from_numbers(numbers: pl.Series, origin: str, unit: str | None) -> pl.Series:
    if unit is None and _looks_like_dates(numbers.cast(pl.String)):
        return _from_text(numbers.cast(pl.String), origin)
    if unit == EXCEL:
        seconds = ((numbers.cast(pl.Float64) - _EXCEL_DAYS) * (DAY // 1_000)).round()
        return (seconds.cast(pl.Int64) * 1_000).cast(pl.Datetime("ms"))
    if unit is not None and unit not in UNITS:
        raise UserError(
            f"{origin}: times are numbers; --time-format takes {', '.join((*UNITS, EXCEL))}, not '{unit}'"
        )
    if unit is None and bool((numbers.abs() < _FIRST_NUMBER).all()):
        raise UserError(
            f"{origin}: time {numbers[0]} would be in 1970; name what it counts, as in --time-format excel (days of a"
            " spreadsheet), or the column of times with --time-column"
        )
    factor = UNITS[unit or unit_of(numbers, origin)]
    whole = numbers * factor if factor > 0 else numbers // -factor
    return whole.cast(pl.Int64).cast(pl.Datetime("ms")).dt.replace_time_zone("UTC")


def unit_of(numbers: pl.Series, origin: str) -> str:
    """`s`, `ms`, `us` or `ns` since 1970, by size: 1e11 seconds are the year 5138, 1e11 milliseconds 1973.

    UserError naming the row where rows differ in unit.
    """
    steps = pl.Series(np.searchsorted([1e11, 1e14, 1e17], numbers.abs().to_numpy(), side="right"))
    mixed = steps != steps[0]
    if mixed.any():
        names = list(UNITS)
        row = _first(mixed)
        raise UserError(
            f"{origin}: row {row}: time {numbers[row - 1]} is in {names[steps[row - 1]]}, the rows before in"
            f" {names[steps[0]]}; split the file or bring the times to one unit"
        )
    return list(UNITS)[steps[0]]


def _from_format(text: pl.Series, origin: str, time_format: str) -> pl.Series:
    try:
        parsed = text.str.to_datetime(time_format, time_unit="ms", strict=False)
    except pl.exceptions.PolarsError as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{origin}: time format '{time_format}' is not understood ({first})") from None
    if parsed.null_count():
        row = _first(parsed.is_null())
        raise UserError(
            f"{origin}: row {row}: time '{text[row - 1]}' does not fit the format '{time_format}'"
        )
    return parsed


def _from_text(given: pl.Series, origin: str) -> pl.Series:
    text = _in_digits(given)
    year_first = _most(text.str.contains(r"^\d{4}"))
    parts = text.str.extract_groups(_YEAR_FIRST if year_first else _YEAR_LAST).struct.unnest()
    if parts["year"].null_count():
        row = _first(parts["year"].is_null())
        raise UserError(
            f"{origin}: row {row}: time '{given[row - 1]}' is not understood; name the format, such as"
            " --time-format '%d/%m/%Y %H:%M'"
        )
    numbers = parts.with_columns(
        pl.col("year", "a", "b", "hour", "minute", "second").cast(pl.Int32, strict=False)
    )
    month, day = ("a", "b") if year_first else _day_and_month(numbers, text, origin)
    moments = _assemble(numbers, month, day, given, origin)
    _refuse_mixed_zones(parts["zone"], moments, given, origin)
    return moments.dt.replace_time_zone("UTC") if parts["zone"][0] is not None else moments


def _most(rows: pl.Series) -> bool:
    """Whether a form is that of most rows, so that the others can be named."""
    return 2 * int(rows.sum()) > len(rows)


def _in_digits(text: pl.Series) -> pl.Series:
    """`Jan 31, 2024`, `31-Jan-24`, `2024/1/5` as 2024-01-31 and 2024-01-05; two digits are a year of 1970 to 2069."""
    if text.str.contains(_MONTH_ALONE[0]).all():
        return text.str.replace("/", "-") + "-01"
    if text.str.contains(_MONTH_ALONE[1]).all():
        text = text.str.replace(_MONTH_ALONE[1], "01 $1 $2")
    if _most(text.str.contains(_SHORT)):
        year, month, day, rest = (text.str.extract(_SHORT, i) for i in (1, 2, 3, 4))
    elif _most(text.str.contains(_MONTH_FIRST)):
        month, day, year, rest = (text.str.extract(_MONTH_FIRST, i) for i in (1, 2, 3, 4))
    elif _most(text.str.contains(_DAY_FIRST)):
        day, month, year, rest = (text.str.extract(_DAY_FIRST, i) for i in (1, 2, 3, 4))
    else:
        return text
    if not month.str.contains(r"\d").any():
        names = dict(zip(_MONTHS, (f"{i:02}" for i in range(1, 13)), strict=True))
        month = month.str.to_lowercase().replace_strict(names, default=None, return_dtype=pl.String)
    years = pl.lit(year)
    early = pl.when(years < "70").then(pl.lit("20")).otherwise(pl.lit("19"))
    century = pl.when(years.str.len_chars() > 2).then(pl.lit("")).otherwise(early)
    whole = pl.concat_str(century, years, pl.lit("-"), pl.lit(month.str.zfill(2)), pl.lit("-"),
                          pl.lit(day.str.zfill(2)), pl.lit(rest))  # fmt: skip
    found = pl.select(whole.alias(text.name)).to_series()
    return found.zip_with(found.is_not_null(), text)


def _assemble(parts: pl.DataFrame, month: str, day: str, text: pl.Series, origin: str) -> pl.Series:
    afternoon = pl.col("half").str.to_lowercase() == "pm"
    hour = pl.when(pl.col("half").is_null()).then("hour").otherwise(pl.col("hour") % 12 + 12 * afternoon)
    zone = pl.col("zone").str.replace(":", "")
    sign = pl.when(zone.str.starts_with("-")).then(-1).otherwise(1)
    offset = sign * (
        zone.str.slice(1, 2).cast(pl.Int64, strict=False) * 60
        + zone.str.slice(3, 2).cast(pl.Int64, strict=False).fill_null(0)
    )
    fraction = pl.col("fraction").str.pad_end(3, "0").str.slice(0, 3).cast(pl.Int64).fill_null(0)
    filled = parts.with_columns(pl.col(name).fill_null(value) for name, value in _DEFAULTS.items())
    valid = (
        pl.col(month).is_between(1, 12)
        & (pl.col("hour") < 24)
        & (pl.col("minute") < 60)
        & (pl.col("second") < 60)
        & (pl.col(day) <= pl.date("year", pl.col(month).clip(1, 12), 1).dt.month_end().dt.day())
        & (pl.col(day) >= 1)
    )
    bad = filled.select(~valid).to_series()
    if bad.any():
        row = _first(bad)
        raise UserError(f"{origin}: row {row}: there is no such time as '{text[row - 1]}'")
    moment = pl.datetime("year", month, day, hour, "minute", "second", time_unit="ms")
    shift = pl.duration(milliseconds=fraction - offset.fill_null(0) * 60_000, time_unit="ms")
    return filled.select((moment + shift).cast(pl.Datetime("ms")).alias("timestamp")).to_series()


def _refuse_mixed_zones(zones: pl.Series, moments: pl.Series, text: pl.Series, origin: str) -> None:
    """Rows of one zone; or of two offsets an hour apart that change as a clock does between winter and summer."""
    names = (
        zones.str.replace(":", "").str.pad_end(5, "0").replace(["Z0000", "GMT00", "UTC00", "-0000"], "+0000")
    )
    names = names.fill_null("none")
    mixed = names != names[0]
    if not mixed.any() or _is_one_clock(names, moments):
        return
    row = _first(mixed)
    raise UserError(
        f"{origin}: row {row}: time '{text[row - 1]}' has another time zone than row 1 ('{text[0]}'); bring"
        " them to one, or, where every row's own offset is right, name it: --time-format '%Y-%m-%d %H:%M:%S%z'"
    )


def _is_one_clock(names: pl.Series, moments: pl.Series) -> bool:
    two = names.unique().to_list()
    if len(two) != 2 or "none" in two:
        return False
    minutes = [(-1 if name[0] == "-" else 1) * (int(name[1:3]) * 60 + int(name[3:5])) for name in two]
    changes = moments.filter((names != names.shift(1)).fill_null(False)).dt.timestamp("ms").to_numpy()
    return abs(minutes[0] - minutes[1]) == 60 and bool((np.abs(np.diff(changes)) > _SUMMER_DAYS * DAY).all())


def _day_and_month(parts: pl.DataFrame, text: pl.Series, origin: str) -> tuple[str, str]:
    """Which of the first two numbers is the month: dots mean day first, else one above 12 somewhere tells."""
    first, second = parts["a"], parts["b"]
    dotted = bool(text.str.contains(r"^\d+\.").all())
    if dotted or (first > 12).any():
        return "b", "a"
    if (second > 12).any():
        return "a", "b"
    raise UserError(
        f"{origin}: '{text[0]}' may be day or month first; name the format: --time-format '%d/%m/%Y'"
        " or '%m/%d/%Y' (with %H:%M:%S if it has a time)"
    )


def _first(mask: pl.Series) -> int:
    """Row number, from 1, of the first True."""
    return int(mask.fill_null(True).arg_max() or 0) + 1
