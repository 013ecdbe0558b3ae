"""From bars to a panel: the features and targets that an experiment names, on one clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from longtape.core.arrays import Flags
from longtape.core.calendars import calendar_features, future_opens, ordinals
from longtape.core.clock import ALWAYS_OPEN, WEEKDAYS_ONLY, Interval, Milliseconds, iso
from longtape.core.errors import UserError, unknown_name
from longtape.features.catalogue import features, find_target, target_horizons
from longtape.features.evaluate import Computed, Evaluator
from longtape.features.expression import Expression, parse
from longtape.features.order_flow import book_imbalance, micro_price_distance
from longtape.features.panel import UNKNOWN_END, Column, Panel, Span, TargetColumn
from longtape.features.rolling import Array
from longtape.features.table import SUMMED, Table
from longtape.features.targets import Label
from longtape.features.trade_features import tape_summary
from longtape.market.align import align
from longtape.market.bars import PRICES, Bars
from longtape.market.books import Books
from longtape.market.rows import Rows as MarketRows
from longtape.market.trades import Trades

BLOCK = 4_096
Scalar = TypeVar("Scalar", bound=np.generic)
EVENTS = Interval(0, "event")  # trades and book snapshots: known when they happen, any distance apart


class PooledConfig(BaseModel):
    """How symbols are made alike for a model that sees one at a time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    own_past: int = Field(512, ge=2, description="Bars of a symbol's own past that tell its level")
    scaled: bool = Field(
        True, description="Features as z-scores of that past; those of the calendar as they are"
    )


class FeaturesConfig(BaseModel):
    """What a model may see and what it is to forecast."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    features: list[str] = Field(
        ["log_return", "volatility(20)", "rsi(14)", "volume_ratio(20)", "range", "hour", "weekday"],
        min_length=1,
        description='Expressions such as volatility(20), zscore(close, 100) or resample("4h").momentum(20)',
    )
    targets: list[str] = Field(
        ["return(1)"],
        min_length=1,
        description="Targets such as return(24), volatility(24), direction(1, 0.001)",
    )
    auxiliary: list[str] = Field([], description="Targets that a model learns beside and does not forecast")
    symbols: list[str] | None = Field(
        None,
        description="Symbols to forecast; the others are only read by of(…) and cross-sections. All by default",
    )
    missing: Literal["error", "forward_fill", "drop", "mask"] = Field(
        "error",
        description="Missing bars: refuse; carry the price with zero volume; leave out the time; or carry it, tell the"
        " model by a column `present`, and learn no label that begins or ends there",
    )
    pooled: PooledConfig | None = Field(
        None, description="Each symbol by itself, from its first bar to its last"
    )


def build(series: Sequence[MarketRows], config: FeaturesConfig) -> Panel:
    """Features and targets of candles of one or many symbols on one clock, or of one symbol's books or trades.

    Columns stand symbol by symbol; what is the same for all comes once, at the end. A row of books or trades is an
    event: any distance from the one before, known at its `known_at`; horizons count events. Their `close` is the middle
    of the book, the price of the trade. UserError with one line for anything that cannot be had.
    """
    bars = [one for one in series if isinstance(one, Bars)]
    if bars or not len(series):
        return _panel(*_tables(bars, config), config)
    events = [one for one in series if isinstance(one, Books | Trades)]
    if len(events) != 1:
        raise UserError(f"features: events are those of one symbol, and there are {len(events)}")
    if config.pooled is not None:
        raise UserError("features: symbols are pooled on bars, not on events, which are those of one symbol")
    if config.missing != "error":
        raise UserError("features: events are where they are; `missing` is for bars")
    table = _events(events[0])
    panel = _panel({table.symbol: table}, table, config)
    of_books = isinstance(events[0], Books)
    return replace(panel, quotes=_quotes(table)) if of_books else replace(panel, tape=tape_summary(table))


def _quotes(table: Table) -> Array:
    """Of books [T, 2]: the imbalance of the best sizes, in [−1, 1], and how far the micro-price is from the mid."""
    return np.stack([book_imbalance(table), micro_price_distance(table)], axis=1)


def _events(series: Books | Trades) -> Table:
    """Columns of numbers: `side` as ±1 (a buyer or a seller took), a level that a book does not have as size 0."""
    frame = series.frame
    if isinstance(series, Trades):
        sides = pl.col("side").replace_strict({"buy": 1.0, "sell": -1.0}, default=None)
        frame = frame.with_columns(pl.col("price").alias("close"), pl.col("size").alias("volume"))
        frame = frame.with_columns(sides) if "side" in frame.columns else frame
    else:
        middle = (pl.col("bid_price_1") + pl.col("ask_price_1")) / 2
        frame = frame.with_columns(pl.col(r"^(bid|ask)_size_\d+$").fill_null(0.0), middle.alias("close"))
    columns = _numbers(frame.drop("update_id", "received_ns", strict=False))
    ids = series.ids
    numbered = ids.to_numpy() if ids is not None and ids.dtype == pl.Int64 else None
    clock = series.timestamps, series.known_at
    return Table(series.symbol, EVENTS, ALWAYS_OPEN, *clock, columns, series.origin, numbered)


def _numbers(frame: pl.DataFrame) -> dict[str, Array]:
    numbers = frame.select(pl.selectors.numeric()).cast(pl.Float64)
    return {name: numbers[name].to_numpy() for name in numbers.columns}


def _tables(bars: Sequence[Bars], config: FeaturesConfig) -> tuple[dict[str, Table], Table]:
    """A table of each symbol and the clock of all. Pooled, a symbol's table runs from its first bar to its last."""
    aligned = align(bars, config.missing, "shared" if config.pooled is None else "union")
    start = (
        int(np.argmax(aligned.present.all(axis=1))) if config.missing == "mask" and not config.pooled else 0
    )
    calendar = _calendar(bars)
    tables = {}
    for s, name in enumerate(aligned.names):
        listed = np.flatnonzero(aligned.present[:, s])
        own = slice(int(listed[0]), int(listed[-1]) + 1) if config.pooled else slice(start, None)
        columns = _columns(aligned.frames[name][own], aligned.present[own, s])
        clock = aligned.timestamps[own], aligned.known_at[own]
        tables[name] = Table(name, aligned.interval, calendar, *clock, columns, name)
    whole = aligned.timestamps[start:], aligned.known_at[start:]
    return tables, Table("", aligned.interval, calendar, *whole, {}, "the shared clock")


def _calendar(bars: Sequence[Bars]) -> str:
    """The calendar of the shared clock: with one exchange among markets that never close, the exchange's."""
    found = list(dict.fromkeys(one.instrument.calendar for one in bars))
    exchanges = [calendar for calendar in found if calendar not in (ALWAYS_OPEN, WEEKDAYS_ONLY)]
    if len(exchanges) > 1:
        raise UserError(
            f"features: symbols of {' and '.join(exchanges)} have no common sessions; build them apart"
        )
    return exchanges[0] if exchanges else (WEEKDAYS_ONLY if WEEKDAYS_ONLY in found else ALWAYS_OPEN)


def _columns(frame: pl.DataFrame, present: Flags) -> dict[str, Array]:
    """Numeric columns and `present`. In a bar that is not there the price stands and nothing is traded."""
    columns = _numbers(frame)
    if not present.all():
        newest = np.maximum.accumulate(np.where(present, np.arange(len(present)), 0))
        close = columns["close"]
        for name, values in columns.items():
            carried = close[newest] if name in PRICES else values[newest]
            columns[name] = np.where(present, values, 0.0 if name in SUMMED else carried)
    return columns | {"present": present.astype(np.float64)}


def _panel(tables: Mapping[str, Table], clock: Table, config: FeaturesConfig) -> Panel:
    assets = tuple(config.symbols or tables)
    for asset in assets:
        if asset not in tables:
            raise unknown_name("symbol", asset, tables, "features")
    columns, computed = _features(tables, assets, config)
    own = [tables[column.asset or assets[0]] for column in columns]
    series = [_usable(str(c), found, table) for c, found, table in zip(columns, computed, own, strict=True)]
    spans = _spans(clock, [tables[asset] for asset in assets], columns, computed, config)
    targets, target_columns, ends = _targets(tables, clock, assets, config)
    return Panel(
        timestamps=clock.timestamps,
        known_at=clock.known_at,
        ordinals=_ordinals(clock),
        values=_matrix([_placed(values, table, clock) for values, table in zip(series, own, strict=True)]),
        columns=tuple(columns),
        assets=assets,
        present=_beside(tables, clock, assets, _presence),
        targets=targets,
        target_columns=target_columns,
        target_ends=ends,
        interval=clock.interval,
        calendar=clock.calendar,
        warm_up=min(span.ready for span in spans) if spans else max(found.ready for found in computed),
        closes=_beside(tables, clock, assets, lambda table: table["close"]),
        ranges=_of_each(tables, clock, assets, ("high", "low"), _parkinson),
        turnover=_of_each(tables, clock, assets, ("volume", "close"), np.multiply),
        calendar_values=_calendar_values(clock, max(column.horizon for column in target_columns)),
        spans=spans,
    )


def _spans(
    clock: Table,
    tables: Sequence[Table],
    columns: Sequence[Column],
    computed: Sequence[Computed],
    config: FeaturesConfig,
) -> tuple[Span, ...]:
    """Where each symbol is listed and its features, and the level that its own past tells, are there."""
    if config.pooled is None:
        return ()
    found = []
    for table in tables:
        of_asset = [one.ready for c, one in zip(columns, computed, strict=True) if c.asset == table.symbol]
        start = int(np.searchsorted(clock.timestamps, table.timestamps[0]))
        ready = max(config.pooled.own_past, *of_asset)
        found.append(Span(start, start + ready, start + len(table)))
    return tuple(found)


def _placed(values: npt.NDArray[Scalar], table: Table, clock: Table) -> npt.NDArray[Scalar]:
    """Values of a table's rows at their places on the shared clock; NaN, or False, where the table has no row."""
    if len(table) == len(clock):
        return values
    out = np.full(len(clock), False if values.dtype == np.bool_ else np.nan, values.dtype)
    start = int(np.searchsorted(clock.timestamps, table.timestamps[0]))
    out[start : start + len(table)] = values
    return out


def _beside(
    tables: Mapping[str, Table],
    clock: Table,
    assets: Sequence[str],
    made: Callable[[Table], npt.NDArray[Scalar]],
) -> npt.NDArray[Scalar]:
    """What is made of every asset's table, [T, A] on the shared clock."""
    return np.stack([_placed(made(tables[asset]), tables[asset], clock) for asset in assets], axis=1)


def _of_each(
    tables: Mapping[str, Table],
    clock: Table,
    assets: Sequence[str],
    names: tuple[str, str],
    formula: Callable[[Array, Array], Array],
) -> Array | None:
    """A formula over two columns of every asset [T, A]; None where one of them lacks a column or its numbers."""
    for asset in assets:
        if any(np.isfinite(tables[asset].columns.get(name, np.nan)).sum() == 0 for name in names):
            return None
    return _beside(tables, clock, assets, lambda table: formula(*(table.columns[name] for name in names)))


def _parkinson(high: Array, low: Array) -> Array:
    variance: Array = np.log(high / low) ** 2 / (4 * np.log(2))
    return variance


def _ordinals(table: Table) -> Milliseconds:
    """The calendar's number of a bar, the id of an event; without ids, its time and its place among equal times."""
    if table.interval != EVENTS:
        return ordinals(table.timestamps, table.interval)
    if table.ids is not None:
        return table.ids
    first = np.searchsorted(table.timestamps, table.timestamps)
    return table.timestamps + np.arange(len(table)) - first


def _presence(table: Table) -> Flags:
    return table.columns["present"] > 0 if "present" in table.columns else np.ones(len(table), bool)


def _calendar_values(table: Table, ahead: int) -> npt.NDArray[np.float32]:
    """The calendar of the rows and of those to come; events come at no fixed time, so theirs has no columns."""
    if table.interval == EVENTS:
        return np.empty((len(table), 0), np.float32)
    opens, _ = _clock_ahead(table, ahead)
    return calendar_features(opens, table.interval, table.calendar)


def _features(
    tables: Mapping[str, Table], assets: Sequence[str], config: FeaturesConfig
) -> tuple[list[Column], list[Computed]]:
    evaluator = Evaluator(tables, own_clocks=config.pooled is not None)
    extra = ["present"] if config.missing == "mask" and "present" not in config.features else []
    expressions = [parse(text) for text in (*config.features, *extra)]
    # Of symbols on clocks of their own nothing stands once for all.
    shared = [] if config.pooled else [e for e in expressions if evaluator.is_shared(e)]
    wanted = [(asset, e, asset) for asset in assets for e in expressions if e not in shared]
    columns: list[Column] = []
    computed: list[Computed] = []
    for asset, expression, reader in [*wanted, *((None, e, assets[0]) for e in shared)]:
        found = evaluator.compute(_scaled(expression, config.pooled), reader)
        names = [f"{expression}.{output}" for output in found.outputs] or [str(expression)]
        columns += [Column(asset, name) for name in names]
        computed += [Computed((values,), found.ready) for values in found.values]
    repeated = next((column for i, column in enumerate(columns) if column in columns[:i]), None)
    if repeated:
        raise UserError(f"features: '{repeated.name}' is listed twice")
    return columns, computed


def _scaled(expression: Expression, pooled: PooledConfig | None) -> Expression:
    """The expression as the z-score of the symbol's own past, but what the calendar tells of every symbol alike."""
    spec = features().get(expression.name)
    if pooled is None or not pooled.scaled or (spec is not None and spec.family == "calendar"):
        return expression
    return Expression("zscore", (expression, pooled.own_past))


def _usable(name: str, series: Computed, table: Table) -> Array:
    values = series.values[0]
    bad = ~np.isfinite(values[series.ready :])
    if bad.any():
        row = series.ready + int(np.argmax(bad))
        raise UserError(
            f"features: '{name}' is {values[row]} at row {row + 1} ({iso(int(table.timestamps[row]))});"
            f" {int(bad.sum())} such"
        )
    return values


def _matrix(series: Sequence[Array]) -> npt.NDArray[np.float32]:
    """Columns side by side, written in blocks of rows that stay in the cache."""
    values = np.empty((len(series[0]), len(series)), np.float32)
    for start in range(0, len(values), BLOCK):
        for c, column in enumerate(series):
            values[start : start + BLOCK, c] = column[start : start + BLOCK]
    return values


def _targets(
    tables: Mapping[str, Table], clock: Table, assets: Sequence[str], config: FeaturesConfig
) -> tuple[Array, tuple[TargetColumn, ...], Milliseconds]:
    asked = [(text, False) for text in config.targets] + [(text, True) for text in config.auxiliary]
    labels = [
        (replace(column, auxiliary=auxiliary), label)
        for asset in assets
        for text, auxiliary in asked
        for column, label in _labels(parse(text), tables[asset])
    ]
    columns = tuple(column for column, _ in labels)
    opens, closes = _clock_ahead(clock, max(column.horizon for column in columns))
    ends = [(opens if label.at_open else closes)[label.horizon :][: len(clock)] for _, label in labels]
    values = np.stack(
        [_placed(label.values, tables[column.asset], clock) for column, label in labels], axis=1
    )
    if config.missing == "mask":
        _hide_absent(
            values,
            columns,
            {asset: _placed(_presence(tables[asset]), tables[asset], clock) for asset in assets},
        )
    return values, columns, np.stack(ends, axis=1)


def _labels(expression: Expression, table: Table) -> list[tuple[TargetColumn, Label]]:
    spec = find_target(expression)
    arguments = spec.bind(expression)
    farthest = target_horizons(expression)[-1]
    if farthest >= len(table):
        raise UserError(
            f"targets: '{expression}' looks {farthest} bars ahead; {table.origin} has {len(table)}"
        )
    for name in spec.needs:
        table[name]
    labels: Sequence[Label] = spec.function(table, **arguments)
    name = str(expression)
    return [(TargetColumn(name, spec.kind, table.symbol, x.horizon, x.options, x.at_open), x) for x in labels]


def _hide_absent(values: Array, columns: Sequence[TargetColumn], present: Mapping[str, Flags]) -> None:
    """No label begins or ends at a bar that is not there."""
    for k, column in enumerate(columns):
        absent = ~present[column.asset]
        values[absent, k] = np.nan
        values[: -column.horizon][absent[column.horizon :], k] = np.nan


def _clock_ahead(table: Table, count: int) -> tuple[Milliseconds, Milliseconds]:
    """Opens and closes of the table's bars and of the `count` bars after them."""
    last = int(table.timestamps[-1])
    if table.interval == EVENTS:
        later = np.full(count, UNKNOWN_END)
        return np.append(table.timestamps, later), np.append(table.known_at, later)
    later = future_opens(last, count, table.interval, table.calendar)
    return np.append(table.timestamps, later), np.append(table.known_at, table.interval.close_of(later))
