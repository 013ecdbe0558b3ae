"""Where an experiment's data come from, in one typed section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from longtape.core.calendars import require_calendar
from longtape.core.clock import ALWAYS_OPEN, Interval, to_milliseconds
from longtape.core.errors import UserError, unknown_name
from longtape.core.instrument import CATEGORIES, Instrument, check_category
from longtape.core.iso_time import IsoTime
from longtape.market.bars import Bars
from longtape.market.book_files import read_books
from longtape.market.books import Books
from longtape.market.files import FileConfig, read_bars, read_files
from longtape.market.rows import Rows
from longtape.market.series import usual_name
from longtape.market.sources import sample
from longtape.market.store import Store
from longtape.market.trade_files import read_trades
from longtape.market.trades import Trades

# A key, and the values of another one with which it has an effect. With others it is an error.
_GOES_WITH = (
    ("path", "source", ("file",)),
    ("calendar", "source", ("file",)),
    ("category", "source", ("file", "store")),
    ("store", "source", ("store",)),
    ("store_source", "source", ("store",)),
    ("funding_path", "source", ("file", "store")),
    ("funding_path", "category", ("linear", None)),  # of a store series it may be left open
    ("read", "source", ("file",)),
    ("read", "kind", ("candles",)),
    ("interval", "kind", ("candles",)),
    ("drop_last", "kind", ("candles",)),
    ("depth", "kind", ("books",)),
)
_NEEDED = {"file": "path", "store": "store"}
R = TypeVar("R", bound=Rows)


class DataConfig(BaseModel):
    """`source: sample` (embedded S&P 500 and NASDAQ days), `file` or `store`; `kind: candles`, `books` or `trades`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Literal["sample", "file", "store"] = Field(
        "sample",
        description="the embedded S&P 500 and NASDAQ days, files, or a store that fetch and import fill",
    )
    kind: Literal["candles", "books", "trades"] = Field(
        "candles", description="a row is a candle, an update of the order book, or a trade"
    )
    symbols: list[str] = Field(default=[], description="what to read; SP500 by default of the samples")
    interval: str | None = Field(None, description="for candles: their length, 1d by default")
    depth: int | None = Field(
        None, ge=1, description="for books: levels of each side, by default all there are (20 of a log)"
    )
    path: str | None = Field(
        None, description="for file: the file, a folder or a pattern; {symbol} stands for each symbol"
    )
    read: FileConfig | None = Field(
        None,
        description="for file: how it is written, where it does not tell; the options of longtape import",
    )
    store: str | None = Field(None, description="for store: its folder or URL")
    store_source: str | None = Field(None, description="for store: the source, where a symbol is not unique")
    category: str | None = Field(
        None,
        description=f"for file (spot by default), and for store where a symbol is not unique: {', '.join(CATEGORIES)}",
    )
    calendar: str | None = Field(
        None, description="for file: 24/7 (the default), 24/5 or an exchange code such as XNYS"
    )
    funding_path: str | None = Field(
        None,
        description="for perpetuals: recorded funding (timestamp, symbol, rate) where the store has none; {symbol} as"
        " in path",
    )
    since: IsoTime | None = Field(None, description="first bar or event to take (UTC)")
    until: IsoTime | None = Field(None, description="bars and events before this time are taken (UTC)")
    drop_last: bool = Field(False, description="for candles: leave out the newest, which may be unfinished")

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, given: Any) -> Any:
        """Defaults that hold for one source or kind only."""
        if not isinstance(given, Mapping):
            return given
        defaults: dict[str, Any] = {}
        if given.get("source", "sample") == "sample":
            defaults["symbols"] = ["SP500"]
        if given.get("kind", "candles") == "candles":
            defaults["interval"] = "1d"
        if given.get("source") == "file":
            defaults |= {"category": "spot", "calendar": ALWAYS_OPEN}
        return {**given, **{key: value for key, value in defaults.items() if given.get(key) is None}}

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> DataConfig:
        for key, what, values in _GOES_WITH:
            if getattr(self, key) and getattr(self, what) not in values:
                only = " and ".join(value for value in values if value)
                raise ValueError(
                    f"{key} has no effect with {what} '{getattr(self, what)}', only with {only}; leave it away"
                )
        needed = _NEEDED.get(self.source)
        if needed and not getattr(self, needed):
            raise ValueError(f"source '{self.source}' needs the key '{needed}'")
        return self

    @model_validator(mode="after")
    def _names_what_there_is(self) -> DataConfig:
        if self.category is not None:
            check_category(self.category)
        if self.calendar is not None:
            require_calendar(self.calendar)
        if self.source == "sample":
            self._is_a_sample()
        if self.source != "store":
            describe(self)
        return self

    @model_validator(mode="after")
    def _symbols_fit(self) -> DataConfig:
        if not self.symbols:
            raise ValueError(f"source '{self.source}' needs the key 'symbols'")
        repeated = next((name for i, name in enumerate(self.symbols) if name in self.symbols[:i]), None)
        if repeated is not None:
            raise ValueError(f"symbol '{repeated}' is listed twice")
        if self.kind != "candles" and len(self.symbols) > 1:
            raise ValueError(f"{self.kind} are read of one symbol, not of {len(self.symbols)}; name one")
        return self

    @model_validator(mode="after")
    def _times_fit(self) -> DataConfig:
        if self.interval is not None:
            Interval.parse(self.interval)
        since, until = _period(self)
        if since is not None and until is not None and since >= until:
            raise ValueError(
                f"since ({self.since}) is not before until ({self.until}); nothing would be read"
            )
        return self

    def _is_a_sample(self) -> None:
        if self.kind != "candles":
            raise ValueError(f"the samples are candles; kind '{self.kind}' is for source file and store")
        if usual_name(Interval.parse(str(self.interval))).name != "1d":
            raise ValueError(f"the samples are daily candles (1d), not of {self.interval}")

    def resolve_paths(self, folder: Path) -> DataConfig:
        """The same with relative paths taken from `folder`, the experiment file's."""
        moved = {}
        for key in ("path", "store", "funding_path"):
            value = getattr(self, key)
            if value is not None and "://" not in value:
                moved[key] = str((folder / value).resolve())
        return self.model_copy(update=moved)


def describe(config: DataConfig) -> list[Instrument]:
    """The instruments that `load` would read, symbol by symbol, without reading a row: from the section itself, or from
    the store's facts. UserError for what the store does not have.
    """
    if config.source == "sample":
        return [sample.instrument(symbol) for symbol in config.symbols]
    if config.source == "file":
        facts = str(config.category), str(config.calendar)
        return [Instrument("file", facts[0], symbol, calendar=facts[1]) for symbol in config.symbols]
    store = Store(str(config.store))
    where = (config.kind, _interval(config), config.store_source, config.category)
    return [store.instrument(store.find(symbol, *where)) for symbol in config.symbols]


def load(config: DataConfig) -> list[Bars] | list[Books] | list[Trades]:
    """What the section names, symbol by symbol, checked. UserError in one line where something is missing."""
    instruments = describe(config)
    if config.kind == "candles":
        together = config.source == "file" and len(instruments) > 1 and "{symbol}" not in str(config.path)
        bars = _of_one_table(config, instruments) if together else [_bars(config, one) for one in instruments]
        return [_of_period(one, config) for one in bars]
    if config.kind == "trades":
        return [_of_period(_trades(config, one), config) for one in instruments]
    books = [_of_period(_books(config, one), config) for one in instruments]
    return books if config.depth is None else [one.top(config.depth) for one in books]


def _bars(config: DataConfig, instrument: Instrument) -> Bars:
    if config.source == "sample":
        return sample.load(instrument.symbol)
    since, until = _period(config)
    if config.source == "store":
        interval = str(config.interval)
        return Store(str(config.store)).read(instrument.key, interval, since=since, until=until)
    return read_bars(
        _path(config, instrument),
        symbol=instrument.symbol,
        interval=str(config.interval),
        category=instrument.category,
        calendar=instrument.calendar,
        config=config.read,
    )


def _of_one_table(config: DataConfig, instruments: Sequence[Instrument]) -> list[Bars]:
    """Several symbols of one long or wide table, or of the files of a folder that are such tables."""
    facts = {"category": instruments[0].category, "calendar": instruments[0].calendar}
    found = read_files(str(config.path), interval=str(config.interval), config=config.read, **facts)
    by_symbol = {read.bars.symbol: read.bars for read in found}
    for one in instruments:
        if one.symbol not in by_symbol:
            raise unknown_name("symbol", one.symbol, by_symbol, str(config.path))
    return [by_symbol[one.symbol] for one in instruments]


def _books(config: DataConfig, instrument: Instrument) -> Books:
    since, until = _period(config)
    if config.source == "store":
        return Store(str(config.store)).read_books(instrument.key, since=since, until=until)
    return read_books(_path(config, instrument), instrument, config.depth)


def _trades(config: DataConfig, instrument: Instrument) -> Trades:
    since, until = _period(config)
    if config.source == "store":
        return Store(str(config.store)).read_trades(instrument.key, since=since, until=until)
    path = _path(config, instrument)
    return Trades.checked(instrument, read_trades(path, instrument.symbol), path)


def _path(config: DataConfig, instrument: Instrument) -> str:
    return str(config.path).replace("{symbol}", instrument.symbol)


def _interval(config: DataConfig) -> Interval | None:
    return None if config.interval is None else usual_name(Interval.parse(config.interval))


def _period(config: DataConfig) -> tuple[int | None, int | None]:
    since = None if config.since is None else to_milliseconds(config.since, "data.since")
    until = None if config.until is None else to_milliseconds(config.until, "data.until")
    return since, until


def _of_period(rows: R, config: DataConfig) -> R:
    cut = rows.between(*_period(config))
    if config.drop_last and len(cut):
        cut = cut.with_frame(cut.frame.head(len(cut) - 1))
    if not len(cut):
        between = f"from {config.since or 'the first'} until {config.until or 'the last'}"
        raise UserError(f"{rows.origin}: no {config.kind} of {rows.symbol} {between}")
    return cut
