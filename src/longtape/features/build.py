"""From bars to a panel: the features and targets that an experiment names, on one clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from longtape.core.calendars import future_opens
from longtape.core.clock import ALWAYS_OPEN, WEEKDAYS_ONLY, Interval, Milliseconds, iso
from longtape.core.errors import UserError, unknown_name
from longtape.features.catalogue import find_target
from longtape.features.evaluate import Computed, Evaluator
from longtape.features.expression import Expression, parse
from longtape.features.panel import Panel, TargetColumn
from longtape.features.rolling import Array
from longtape.features.table import SUMMED, Table
from longtape.features.targets import Label
from longtape.market.align import align
from longtape.market.bars import PRICES, Bars

Flags = npt.NDArray[np.bool_]
BLOCK = 4_096
EVENTS = Interval(0, "event")  # trades and book snapshots: known when they happen, any distance apart


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
    symbols: list[str] | None = Field(
        None,
        description="Symbols to forecast; the others are only read by of(…) and cross-sections. All by default",
    )
    missing: Literal["error", "forward_fill", "drop", "mask"] = Field(
        "error",
        description="Missing bars: refuse; carry the price with zero volume; leave out the time; or carry it, tell the"
        " model by a column `present`, and learn no label that begins or ends there",
    )


def build(bars: Sequence[Bars], config: FeaturesConfig) -> Panel:
    """Features and targets of one or many symbols on one clock.

    With several symbols, columns are `SYMBOL:expression`, symbol by symbol; what is the same for all comes
    once, at the end, as written. UserError with one line for anything that cannot be had.
    """
    tables = _one_clock(bars, config.missing)
    return _panel(tables, config)


def build_events(
    frame: pl.DataFrame, config: FeaturesConfig, *, symbol: str, time: str = "timestamp"
) -> Panel:
    """Features and targets of trades, book snapshots or bars of varying length, one row an event.

    `time` names the column of UTC times, in order; equal times are normal. An event is known at once, or at its
    `known_at` where there is such a column. `side` (buy or sell) or `buyer_is_maker` becomes `side`, ±1; a level that
    a book does not have has size 0. Horizons count events. UserError as for `build`.
    """
    if config.missing != "error":
        raise UserError("features: events are where they are; `missing` is for bars")
    times = _event_times(frame, time, symbol)
    known = _event_times(frame, "known_at", symbol) if "known_at" in frame.columns else times
    columns = _numbers(frame.with_columns(*_sides(frame), pl.col(r"^(bid|ask)_size_\d+$").fill_null(0.0)))
    return _panel({symbol: Table(symbol, EVENTS, ALWAYS_OPEN, times, known, columns, symbol)}, config)


def _event_times(frame: pl.DataFrame, name: str, symbol: str) -> Milliseconds:
    if not isinstance(frame.schema.get(name), pl.Datetime):
        raise UserError(
            f"{symbol}: no column '{name}' of dates and times; there are {', '.join(frame.columns)}"
        )
    times = frame[name].dt.timestamp("ms").to_numpy()
    early = np.diff(times) < 0
    if early.any():
        raise UserError(
            f"{symbol}: row {int(np.argmax(early)) + 2} is earlier than the row before; sort by '{name}'"
        )
    return times


def _sides(frame: pl.DataFrame) -> list[pl.Expr]:
    if frame.schema.get("side") == pl.String:
        return [pl.col("side").replace_strict({"buy": 1.0, "sell": -1.0}, default=None)]
    if frame.schema.get("buyer_is_maker") == pl.Boolean:
        return [pl.when("buyer_is_maker").then(-1.0).otherwise(1.0).alias("side")]
    return []


def _numbers(frame: pl.DataFrame) -> dict[str, Array]:
    numbers = frame.select(pl.selectors.numeric()).cast(pl.Float64)
    return {name: numbers[name].to_numpy() for name in numbers.columns}


def _one_clock(bars: Sequence[Bars], missing: str) -> dict[str, Table]:
    aligned = align(bars, missing)
    start = int(np.argmax(aligned.present.all(axis=1))) if missing == "mask" else 0
    present = aligned.present[start:]
    calendar = _calendar(bars)
    tables = {}
    for s, name in enumerate(aligned.names):
        columns = _columns(aligned.frames[name].slice(start), present[:, s])
        clock = aligned.timestamps[start:], aligned.known_at[start:]
        tables[name] = Table(name, aligned.interval, calendar, *clock, columns, name)
    return tables


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


def _panel(tables: Mapping[str, Table], config: FeaturesConfig) -> Panel:
    first = next(iter(tables.values()))
    symbols = tuple(config.symbols or tables)
    for symbol in symbols:
        if symbol not in tables:
            raise unknown_name("symbol", symbol, tables, "features")
    columns, computed = _features(tables, symbols, config)
    values = _matrix([_usable(*column, first) for column in zip(columns, computed, strict=True)])
    targets, target_columns, ends = _targets(tables, symbols, config)
    return Panel(
        timestamps=first.timestamps,
        known_at=first.known_at,
        values=values,
        columns=tuple(columns),
        targets=targets,
        target_columns=target_columns,
        target_ends=ends,
        symbols=symbols,
        interval=first.interval,
        calendar=first.calendar,
        warm_up=max(series.ready for series in computed),
        closes=np.stack([_level(tables[s]) for s in symbols], axis=1),
    )


def _features(
    tables: Mapping[str, Table], symbols: Sequence[str], config: FeaturesConfig
) -> tuple[list[str], list[Computed]]:
    evaluator = Evaluator(tables)
    extra = ["present"] if config.missing == "mask" and "present" not in config.features else []
    expressions = [parse(text) for text in (*config.features, *extra)]
    own = [e for e in expressions if not (len(symbols) > 1 and evaluator.is_shared(e))]
    wanted = [(f"{s}:{e}" if len(symbols) > 1 else str(e), e, s) for s in symbols for e in own]
    wanted += [(str(e), e, symbols[0]) for e in expressions if e not in own]
    names: list[str] = []
    columns: list[Computed] = []
    for name, expression, symbol in wanted:
        found = evaluator.compute(expression, symbol)
        names += [f"{name}.{output}" for output in found.outputs] or [name]
        columns += [Computed((values,), found.ready) for values in found.values]
    repeated = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if repeated:
        raise UserError(f"features: '{repeated}' is listed twice")
    return names, columns


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
    tables: Mapping[str, Table], symbols: Sequence[str], config: FeaturesConfig
) -> tuple[Array, tuple[TargetColumn, ...], Milliseconds]:
    labels = [pair for s in symbols for text in config.targets for pair in _labels(parse(text), tables[s])]
    columns = tuple(column for column, _ in labels)
    first = tables[symbols[0]]
    opens, closes = _clock_ahead(first, max(column.horizon for column in columns))
    ends = [(opens if label.at_open else closes)[label.horizon :][: len(first)] for _, label in labels]
    values = np.stack([label.values for _, label in labels], axis=1)
    if config.missing == "mask":
        _hide_absent(values, columns, tables)
    return values, columns, np.stack(ends, axis=1)


def _labels(expression: Expression, table: Table) -> list[tuple[TargetColumn, Label]]:
    spec = find_target(expression)
    arguments = spec.bind(expression)
    farthest = max(int(arguments[p.name]) for p in spec.parameters if p.annotation == "int")  # type: ignore[arg-type]
    if farthest >= len(table):
        raise UserError(
            f"targets: '{expression}' looks {farthest} bars ahead; {table.origin} has {len(table)}"
        )
    for name in spec.needs:
        table[name]
    labels: Sequence[Label] = spec.function(table, **arguments)
    name = str(expression)
    return [(TargetColumn(name, x.kind, table.symbol, x.horizon, x.options), x) for x in labels]


def _hide_absent(values: Array, columns: Sequence[TargetColumn], tables: Mapping[str, Table]) -> None:
    """No label begins or ends at a bar that is not there."""
    for k, column in enumerate(columns):
        absent = tables[column.symbol]["present"] == 0.0
        values[absent, k] = np.nan
        values[: -column.horizon][absent[column.horizon :], k] = np.nan


def _clock_ahead(table: Table, count: int) -> tuple[Milliseconds, Milliseconds]:
    """Opens and closes of the table's bars and of the `count` bars after them."""
    last = int(table.timestamps[-1])
    if table.interval == EVENTS:
        step = max(1, (last - int(table.timestamps[0])) // max(len(table) - 1, 1))
        later = last + step * np.arange(1, count + 1)
        return np.append(table.timestamps, later), np.append(table.known_at, later)
    later = future_opens(last, count, table.interval, table.calendar)
    return np.append(table.timestamps, later), np.append(table.known_at, table.interval.close_of(later))


def _level(table: Table) -> Array:
    for name in ("close", "price"):
        if name in table.columns:
            return table[name]
    return 0.5 * (table["bid_price_1"] + table["ask_price_1"])
