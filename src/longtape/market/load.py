"""Where an experiment's bars come from, in one typed section."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from longtape.core.clock import ALWAYS_OPEN, Interval, to_milliseconds
from longtape.core.errors import UserError
from longtape.core.when import When
from longtape.market.bars import Bars


class DataConfig(BaseModel):
    """`source: sample` (embedded S&P 500 and NASDAQ days), `file` (CSV or Parquet) or `store`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Literal["sample", "file", "store"] = "sample"
    symbols: list[str] = Field(default_factory=lambda: ["SP500"], min_length=1)
    interval: str = "1d"
    path: str | None = Field(None, description="for file: the file; {symbol} stands for each symbol")
    store: str | None = Field(None, description="for store: its folder or URL")
    store_source: str | None = Field(None, description="for store: the source, where a symbol is not unique")
    category: str | None = Field(None, description="spot, linear, inverse, stock, index, …")
    calendar: str = Field(ALWAYS_OPEN, description="for file: 24/7, 24/5 or an exchange code such as XNYS")
    since: When | None = Field(None, description="first bar to take (UTC)")
    until: When | None = Field(None, description="bars before this time are taken (UTC)")
    drop_last: bool = Field(False, description="leave out the newest bar, which may be unfinished")

    @model_validator(mode="after")
    def _complete(self) -> DataConfig:
        for source, key in (("file", "path"), ("store", "store")):
            if (self.source == source) != (getattr(self, key) is not None):
                raise ValueError(f"source '{source}' and the key '{key}' go together")
        if self.source == "file" and len(self.symbols) > 1 and "{symbol}" not in (self.path or ""):
            raise ValueError("path needs {symbol} where there are several symbols")
        Interval.parse(self.interval)
        return self

    def beside(self, folder: Path) -> DataConfig:
        """The same with relative paths taken from `folder`, the experiment file's."""
        moved = {}
        for key in ("path", "store"):
            value = getattr(self, key)
            if value is not None and "://" not in value:
                moved[key] = str((folder / value).resolve())
        return self.model_copy(update=moved)


def load(config: DataConfig) -> list[Bars]:
    """The bars of every symbol of the section, checked. UserError in one line where something is missing."""
    return [_shortened(_read(config, symbol), config) for symbol in config.symbols]


def _read(config: DataConfig, symbol: str) -> Bars:
    if config.source == "sample":
        from longtape.market.sources import sample

        return sample.load(symbol)
    if config.source == "store":
        from longtape.market.store import Store

        store = Store(str(config.store))
        return store.read(symbol, config.interval, source=config.store_source, category=config.category)
    from longtape.market.files import read_bars

    return read_bars(
        str(config.path).replace("{symbol}", symbol),
        symbol=symbol,
        interval=config.interval,
        category=config.category or "spot",
        calendar=config.calendar,
    )


def _shortened(bars: Bars, config: DataConfig) -> Bars:
    since = None if config.since is None else to_milliseconds(config.since, "data.since")
    until = None if config.until is None else to_milliseconds(config.until, "data.until")
    if bars.interval != Interval.parse(config.interval):
        raise UserError(f"data.interval: {bars.origin} has bars of {bars.interval}, not {config.interval}")
    bars = bars.between(since, until)
    if config.drop_last and len(bars):
        bars = Bars(bars.instrument, bars.interval, bars.frame.head(len(bars) - 1), bars.origin)
    if not len(bars):
        raise UserError(f"{bars.origin}: no bars of {bars.symbol} between {config.since} and {config.until}")
    return bars
