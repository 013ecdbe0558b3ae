"""Which column is what: by the names that programs give, or by those that the user names."""

from __future__ import annotations

import re
from dataclasses import dataclass

import polars as pl

from longtape.core.errors import UserError
from longtape.market.files.config import FileConfig
from longtape.market.files.layouts import laid_out
from longtape.market.files.tables import Table
from longtape.market.naming import plain
from longtape.market.timestamps import looks_like_a_time

# How other programs call our columns; names are compared in lower case without blanks and punctuation, and of
# several that are there the one that stands first here is taken.
ALIASES: dict[str, tuple[str, ...]] = {
    "timestamp": ("timestamp", "opentime", "starttime", "timeopen", "datetime", "gmttime", "unixtime", "unix", "ts",
                  "dateutc", "timeutc", "utctime", "localtime", "date", "time", "start", "begin", "startat", "startsat",
                  "timeperiodstart", "observationdate", "tradedate", "day", "t"),
    "open": ("open", "o", "openprice", "priceopen", "openbid", "bidopen", "first", "1open"),
    "high": ("high", "h", "highprice", "pricehigh", "highbid", "bidhigh", "max", "2high"),
    "low": ("low", "l", "lowprice", "pricelow", "lowbid", "bidlow", "min", "3low"),
    "close": ("close", "c", "closeprice", "priceclose", "closelast", "closebid", "bidclose", "last", "lastprice",
              "settle", "price", "4close"),
    "volume": ("volume", "vol", "v", "basevolume", "volumetraded", "totaltradedquantity", "tickvolume",
               "tickvol", "5volume", "6volume"),
    "adj_close": ("adjclose", "adjustedclose", "closeadj", "adjusted", "5adjustedclose"),
    "turnover": ("turnover", "quotevolume", "quoteassetvolume", "amount"),
    "symbol": ("symbol", "ticker", "pair", "instrument", "tic", "ric", "secid", "permno"),
}  # fmt: skip
CLOSE_TIMES = ("closetime", "timeclose", "endtime", "closedate", "timeperiodend", "end", "endat", "endsat")
TICKS = ("tickvolume", "tickvol")
_INDEX = ("", "unnamed0", "index", "level0")
_PRICES = ("open", "high", "low")
_NAMED = 8  # columns that a note lists


@dataclass(frozen=True, eq=False)
class Chosen:
    """Cells under our names; `columns` says which of the file's each was, `zone` what is known of its times.

    `ends`: the times are those at which bars close, by the column's own name. `raw_close` stands beside `close` where
    that is adjusted for dividends and splits. `wide`: an empty cell is a symbol that was not there.
    """

    cells: pl.DataFrame
    columns: dict[str, str]
    notes: tuple[str, ...] = ()
    zone: str | None = None
    ends: bool = False
    wide: bool = False


def choose(table: Table, config: FileConfig, symbol: str | None, origin: str) -> Chosen:
    """Our columns of a table: of candles, of a long table, of a wide one of closes. UserError for what is not there."""
    zone = None
    if not table.has_header:
        table, zone = laid_out(table, config, origin)
    elif config.order is not None:
        raise UserError(f"{origin}: has a header; name its columns one by one (--close-column and the like)")
    names = _Names(table, config, symbol, origin)
    if not names.has_close() and (wide := _wide(table, names, symbol)) is not None:
        return wide
    columns = names.chosen()
    cells = table.cells.select(pl.col(theirs).alias(ours) for ours, theirs in columns.items())
    if (clock := names.clock(columns)) is not None:
        cells = cells.with_columns(_joined(cells["timestamp"], table.cells[clock]))
        columns["timestamp"] = f"{columns['timestamp']} + {clock}"
    notes = (*table.notes, *names.notes, *_left_out(table, {*columns.values(), clock}))
    return Chosen(cells, columns, notes, zone, plain(columns["timestamp"]) in CLOSE_TIMES)


def _left_out(table: Table, used: set[str | None]) -> tuple[str, ...]:
    """A note of the columns that a header names and that became nothing."""
    others = [name for name in table.cells.columns if name not in used and plain(name) not in _INDEX]
    if not table.has_header or not others:
        return ()
    return (f"not read: {', '.join(others[:_NAMED])}{' …' if len(others) > _NAMED else ''}",)


class _Names:
    """The columns of one table, looked up by what programs call them."""

    def __init__(self, table: Table, config: FileConfig, symbol: str | None, origin: str) -> None:
        self.table, self.config, self.symbol, self.origin = table, config, symbol, origin
        self.notes: list[str] = []
        self.there = _by_plain_name(table.cells.columns)
        self.named = dict(config.columns)
        if config.symbol_column is not None:
            self.named["symbol"] = config.symbol_column
        for theirs in self.named.values():
            if theirs not in table.cells.columns:
                raise UserError(f"{origin}: no column '{theirs}'; there are {self.listed}")

    @property
    def listed(self) -> str:
        """The file's names, for a message."""
        return ", ".join(self.table.cells.columns[:20])

    def find(self, ours: str) -> str | None:
        """The file's name of one of our columns."""
        if ours in self.named:
            return self.named[ours]
        found = next((self.there[name] for name in ALIASES[ours] if name in self.there), None)
        if f"{found} (2)" in self.table.cells.columns and ours not in self.config.without:
            option = f"--{'time' if ours == 'timestamp' else ours}-column"
            raise UserError(
                f"{self.origin}: two columns are called '{found}'; name one: {option} '{found} (2)' or '{found}'"
            )
        return found

    def has_close(self) -> bool:
        """Whether any column of prices has a known name."""
        return any(self.find(name) is not None for name in ("close", *_PRICES, "adj_close"))

    def chosen(self) -> dict[str, str]:
        """Our names and the file's. UserError for a column that a bar needs and that is not there."""
        found = {ours: theirs for ours in ALIASES if (theirs := self.find(ours)) is not None}
        for name in self.config.without:
            found.pop(name, None)
        found["timestamp"] = self.time()
        self._choose_volume(found)
        self._choose_close(found)
        self._refuse_half_a_bar(found)
        return found

    def time(self) -> str:
        """The column of times: with --stamp close that of close times where there is one."""
        ends = next((self.there[name] for name in CLOSE_TIMES if name in self.there), None)
        if "timestamp" in self.named:
            return self.named["timestamp"]
        if ends is not None and self.config.stamp == "close":
            return ends
        if (opens := self.find("timestamp")) is not None:
            return opens
        if ends is not None:
            return ends
        index = next((self.there[name] for name in _INDEX if name in self.there), None)
        if index is None:
            index = _only_time(self.table.cells)
        if index is None:
            raise self._missing("timestamp", "time")
        return index

    def clock(self, columns: dict[str, str]) -> str | None:
        """The column with the time of day, where the chosen one has the date alone, as MetaTrader writes them."""
        clock = self.there.get("time") or self.there.get("timestr")
        is_date = plain(columns["timestamp"]) in ("date", "day", "dtyyyymmdd")
        if not is_date or clock is None or "timestamp" in self.named or not self.table.cells.height:
            return None
        day, time = (str(self.table.cells[name][0]).strip() for name in (columns["timestamp"], clock))
        return clock if ":" not in day and re.fullmatch(r"\d{1,2}:\d{2}.*|\d{1,6}", time) else None

    def _choose_volume(self, found: dict[str, str]) -> None:
        if "volume" in self.named or "volume" in self.config.without:
            return
        cells = self.table.cells
        ticks = next((self.there[name] for name in TICKS if name in self.there), None)
        if "volume" in found and ticks not in (None, found["volume"]) and _is_zero(cells[found["volume"]]):
            self.notes.append(f"'{found['volume']}' is 0 throughout: volume is '{ticks}', a count of ticks")
            found["volume"] = str(ticks)
        others = [name for name in self.there if name.startswith("volume")]
        if "volume" not in found and others:
            mine = [name for name in others if self.symbol and plain(self.symbol).startswith(name[6:])]
            if len(mine or others) > 1:
                listed = ", ".join(self.there[name] for name in others)
                raise UserError(
                    f"{self.origin}: several columns of volume ({listed}); name one with --volume-column"
                )
            found["volume"] = self.there[(mine or others)[0]]

    def _choose_close(self, found: dict[str, str]) -> None:
        """An adjusted close that is taken for the close brings the raw one along, for the ratio."""
        if "close" not in found:
            raise self._missing("close")
        if "close" not in self.named or plain(found["close"]) not in ALIASES["adj_close"]:
            return
        raw = next((self.there[name] for name in ALIASES["close"] if name in self.there), None)
        found.pop("adj_close", None)
        if raw is not None:
            found["raw_close"] = raw
        elif any(name in found for name in _PRICES):
            raise UserError(
                f"{self.origin}: '{found['close']}' is adjusted, and there is no raw close whose ratio adjusts open,"
                " high and low; leave these out with --without open,high,low"
            )

    def _refuse_half_a_bar(self, found: dict[str, str]) -> None:
        """Open, high and low are there together or not at all, unless the user leaves one out."""
        missing = [name for name in _PRICES if name not in found and name not in self.config.without]
        if missing and len(missing) + sum(n in self.config.without for n in _PRICES) < len(_PRICES):
            raise self._missing(missing[0])

    def _missing(self, ours: str, option: str | None = None) -> UserError:
        other = f", or leave it out with --without {ours}" if ours in _PRICES else ""
        return UserError(
            f"{self.origin}: column '{ours}' is missing; there are {self.listed}; name it with"
            f" --{option or ours}-column{other}"
        )


def _by_plain_name(columns: list[str]) -> dict[str, str]:
    """Plain names and the file's own; `Open (USD)` is `open` too, and so is `AAPL.Open` where all have that prefix."""
    there = {plain(name): name for name in reversed(columns)}
    shorter = {plain(re.sub(r"\(.*?\)|\[.*?\]", "", name)): name for name in reversed(columns)}
    parts = [re.split(r"[._: ]", name) for name in columns if re.search(r"[._: ]", name)]
    fields = [
        part for part in parts if plain(part[-1]) in ("open", "high", "low", "close", "volume", "adjusted")
    ]
    prefix = {part[0] for part in fields}
    if len(prefix) == 1 and len(fields) > 1:
        shorter |= {plain(part[-1]): "".join(_rejoined(columns, part)) for part in parts if part[0] in prefix}
    return {**{name: theirs for name, theirs in shorter.items() if name}, **there}


def _rejoined(columns: list[str], parts: list[str]) -> str:
    return next(name for name in columns if re.split(r"[._: ]", name) == parts)


def _is_zero(cells: pl.Series) -> bool:
    return bool((cells.cast(pl.Float64, strict=False) == 0).all())


def _only_time(cells: pl.DataFrame) -> str | None:
    """The one column whose first cells are times, where no name says so."""
    times = [
        name
        for name, dtype in cells.schema.items()
        if dtype in (pl.Date, pl.Datetime) or (cells.height and looks_like_a_time(str(cells[name][0] or "")))
    ]
    return times[0] if len(times) == 1 else None


def _joined(day: pl.Series, clock: pl.Series) -> pl.Series:
    """Date and time in two columns, as MetaTrader writes them."""
    day = day.cast(pl.String) if day.dtype != pl.Date else day.dt.strftime("%Y-%m-%d")
    return (day + " " + clock.cast(pl.String)).alias("timestamp")


def _wide(table: Table, names: _Names, symbol: str | None) -> Chosen | None:
    """A table of closes, a column for each symbol: long rows of (timestamp, symbol, close), empty ones left out."""
    try:
        time = names.time()
    except UserError:
        return None
    symbols = [
        name for name in table.cells.columns if name != time and not re.fullmatch(r"Unnamed: \d+|", name)
    ]
    symbols = [name for name in symbols if plain(name) not in _INDEX]
    if not symbols or (symbol is not None and plain(symbol) not in {plain(name) for name in symbols}):
        return None
    if len(symbols) == 1 and symbol is None:
        return None  # a column of who knows what
    if symbol is not None:
        symbols = [name for name in symbols if plain(name) == plain(symbol)]
    parts = [
        table.cells.select(
            pl.col(time).alias("timestamp"), pl.lit(name).alias("symbol"), pl.col(name).alias("close")
        )
        for name in symbols
    ]
    cells = pl.concat(parts, how="vertical_relaxed")
    note = "a wide table: a column of closes for each symbol"
    columns = {"timestamp": time, "close": symbols[0] if len(symbols) == 1 else "each symbol's"}
    return Chosen(cells, columns, (*table.notes, note), None, plain(time) in CLOSE_TIMES, wide=True)
