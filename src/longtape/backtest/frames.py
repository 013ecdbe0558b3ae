"""Frames to arrays: weights and bars as users have them, checked, on one clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from numba import njit

from longtape.backtest.account import Ints, Prices
from longtape.core.clock import Milliseconds, iso
from longtape.core.errors import UserError, unknown_name
from longtape.market.bars import Bars

Floats = npt.NDArray[np.float64]
PRICES = ("open", "high", "low", "close")
FIELDS = (*PRICES, "volume")


@dataclass(frozen=True, eq=False)
class Market:
    """Bars of several symbols on the union of their clocks."""

    clock: Milliseconds  # [T] opens, UTC milliseconds, strictly increasing
    symbols: tuple[str, ...]
    prices: Prices  # [T, S] each, NaN where a symbol has no bar

    @property
    def traded(self) -> npt.NDArray[np.bool_]:
        """[T, S], True where a symbol has a bar."""
        return ~np.isnan(self.prices.close)


def as_frame(data: Any, what: str, columns: Sequence[str]) -> pl.DataFrame:
    """A polars frame from polars or pandas (a time index becomes `timestamp`), holding at least `columns`."""
    if isinstance(data, pl.LazyFrame):
        data = data.collect()
    if not isinstance(data, pl.DataFrame):
        data = _from_pandas(data, what)
    missing = [name for name in columns if name not in data.columns]
    if missing:
        raise UserError(
            f"{what}: column '{missing[0]}' is missing; there are {', '.join(data.columns) or 'none'}"
        )
    return data


def _from_pandas(data: Any, what: str) -> pl.DataFrame:
    if type(data).__module__.split(".")[0] != "pandas":
        raise UserError(f"{what}: expected a polars or pandas frame, not {type(data).__name__}")
    if "timestamp" not in data.columns:
        data = data.rename_axis(index="timestamp").reset_index()
    data.columns = [str(name) for name in data.columns]
    return pl.from_pandas(data, nan_to_null=False)


def milliseconds(times: pl.Series, what: str) -> Milliseconds:
    """Times (date, datetime of any unit and zone, naive = UTC, or integer milliseconds) → UTC milliseconds."""
    if times.null_count():
        raise UserError(f"{what}: row {int(times.is_null().arg_max() or 0) + 1} has no timestamp")
    if times.dtype.is_integer():
        return times.cast(pl.Int64).to_numpy()
    if not times.dtype.is_temporal() or times.dtype in (pl.Time, pl.Duration):
        raise UserError(f"{what}: column 'timestamp' is {times.dtype}, not a date and time")
    return times.cast(pl.Datetime("ms", getattr(times.dtype, "time_zone", None))).to_physical().to_numpy()


def read_market(bars: Any, wanted: Sequence[str]) -> Market:
    """Long bars (`timestamp, symbol, open, high, low, close, volume`) → `Market` of the wanted symbols.

    The clock holds every time at which any symbol has a bar. Raises UserError naming row, symbol and time for
    prices that are missing, not finite or not above zero, for a high below a low, and for times out of order
    within a symbol.
    """
    frame = as_frame(bars, "bars", ("timestamp", "symbol", *FIELDS))
    if frame.height == 0:
        raise UserError("bars: the frame is empty")
    times = milliseconds(frame["timestamp"], "bars")
    symbols = frame["symbol"]
    _refuse_unknown(symbols, wanted)
    columns = [_numbers(frame[name], "bars") for name in FIELDS]
    if len(wanted) == 1 and bool((symbols == wanted[0]).all()):
        matrices = [column.reshape(-1, 1) for column in columns]
        clock, codes = times, np.zeros(0, np.int64)
    else:
        codes = _codes(symbols, wanted)
        clock = np.unique(times)
        matrices = [np.full((len(clock), len(wanted)), np.nan) for _ in FIELDS]
    _check_bars(times, codes, symbols, columns)
    if len(codes):
        _scatter(frozen(times), frozen(codes), clock, np.stack(columns), tuple(matrices))
    return Market(clock, tuple(wanted), Prices(*(frozen(matrix) for matrix in matrices)))


def _refuse_unknown(symbols: pl.Series, wanted: Sequence[str]) -> None:
    known = [str(symbols[0])] if bool((symbols == symbols[0]).all()) else symbols.unique().to_list()
    for symbol in wanted:
        if symbol not in known:
            raise unknown_name("symbol", symbol, [str(name) for name in known], "weights")


def _numbers(values: pl.Series, what: str) -> Floats:
    try:
        numbers = values.cast(pl.Float64)
    except pl.exceptions.PolarsError:
        raise UserError(f"{what}: column '{values.name}' holds {values.dtype}, not numbers") from None
    return (numbers.fill_null(float("nan")) if numbers.null_count() else numbers).to_numpy()


def _codes(symbols: pl.Series, wanted: Sequence[str]) -> Ints:
    """Position of each row's symbol in `wanted`, −1 for the others."""
    order = {symbol: code for code, symbol in enumerate(wanted)}
    runs = symbols.cast(pl.String).rle().struct.unnest()
    if runs.height <= 4 * len(wanted):
        codes = np.array([order.get(name, -1) for name in runs["value"].to_list()], np.int64)
        return np.repeat(codes, runs["len"].to_numpy())
    return symbols.cast(pl.String).replace_strict(order, default=-1, return_dtype=pl.Int64).to_numpy()


def _check_bars(times: Milliseconds, codes: Ints, symbols: pl.Series, columns: Sequence[Floats]) -> None:
    def refuse(row: int, what: str) -> None:
        raise UserError(f"bars: row {row + 1} ({symbols[row]}, {iso(int(times[row]))}): {what}")

    rows = len(codes) or len(times)
    if len(codes) == 0:
        late = np.flatnonzero(times[1:] <= times[:-1]) + 1
    else:
        late = _out_of_order(frozen(times), frozen(codes), int(codes.max(initial=0)) + 1)
    if len(late):
        refuse(int(late[0]), "not later than the symbol's row before; sort by time and remove duplicates")
    for name, values in zip(FIELDS, columns, strict=True):
        # One pass finds NaN as well: a comparison with it is False.
        good = (values >= 0) & (values < np.inf) if name == "volume" else (values > 0) & (values < np.inf)
        if not good.all():
            row = int(np.argmin(good))
            rule = "at least zero" if name == "volume" else "above zero"
            refuse(row, f"{name} is {values[row]:g}, it must be a number {rule}; mend or remove the row")
    if rows and (crossed := columns[1] < columns[2]).any():
        refuse(int(np.argmax(crossed)), "high is below low")


@njit(cache=True)
def _out_of_order(times: Milliseconds, codes: Ints, symbols: int) -> Ints:
    """The first row that is not later than its symbol's row before, or nothing. Rows of other symbols (−1)
    are skipped.
    """
    last = np.full(symbols, np.iinfo(np.int64).min, np.int64)
    for row in range(len(times)):
        code = codes[row]
        if code >= 0:
            if times[row] <= last[code]:
                return np.array([row])
            last[code] = times[row]
    return np.zeros(0, np.int64)


@njit(cache=True)
def _scatter(
    times: Milliseconds, codes: Ints, clock: Milliseconds, rows: Floats, matrices: tuple[Floats, ...]
) -> None:
    """Write each row's values to its bar and symbol; every symbol walks the clock once."""
    at = np.zeros(matrices[0].shape[1], np.int64)
    for row in range(len(times)):
        code = codes[row]
        if code < 0:
            continue
        bar = at[code]
        while clock[bar] < times[row]:
            bar += 1
        at[code] = bar
        for field in range(len(matrices)):
            matrices[field][bar, code] = rows[field, row]


def frozen(matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Read-only, so that arrays borrowed from polars and our own are one type to the compiler."""
    view = np.ascontiguousarray(matrix).view()
    view.flags.writeable = False
    return view


def read_weights(weights: Any) -> tuple[Milliseconds, tuple[str, ...], Floats]:
    """Weights frame → times [R], symbols, weights [R, S]. UserError for NaN, disorder or no symbol at all."""
    frame = as_frame(weights, "weights", ("timestamp",))
    symbols = tuple(name for name in frame.columns if name != "timestamp")
    if not symbols:
        raise UserError("weights: no symbol; give one column per symbol beside 'timestamp'")
    times = milliseconds(frame["timestamp"], "weights")
    if len(late := np.flatnonzero(times[1:] <= times[:-1])):
        row = int(late[0]) + 1
        raise UserError(
            f"weights: row {row + 1} ({iso(int(times[row]))}) is not later than the row before; sort by time"
        )
    columns = [_numbers(frame[name], "weights") for name in symbols]
    for name, values in zip(symbols, columns, strict=True):
        if not (good := np.isfinite(values)).all():
            row = int(np.argmin(good))
            raise UserError(
                f"weights: row {row + 1} ({iso(int(times[row]))}), '{name}': the weight is {values[row]:g};"
                " give a number, or leave the row out to keep the last decision"
            )
    matrix = columns[0].reshape(-1, 1) if len(columns) == 1 else np.column_stack(columns)
    return times, symbols, frozen(matrix)


def rows_on_clock(times: Milliseconds, clock: Milliseconds) -> Ints:
    """For each bar the row of weights decided at it, −1 for none; empty where row t belongs to bar t."""
    if len(times) == len(clock) and np.array_equal(times, clock):
        return frozen(np.zeros(0, np.int64))
    at = np.searchsorted(clock, times)
    if len(times) and times[-1] > clock[-1]:
        raise UserError(
            f"weights: {iso(int(times[-1]))} is after the last bar ({iso(int(clock[-1]))}); drop those rows"
        )
    strange = clock[np.minimum(at, len(clock) - 1)] != times
    if strange.any():
        row = int(np.argmax(strange))
        raise UserError(
            f"weights: row {row + 1} ({iso(int(times[row]))}) is the time of no bar; use the bars' times"
        )
    rows = np.full(len(clock), -1, np.int64)
    rows[at] = np.arange(len(times))
    return frozen(rows)


def long_bars(bars: Sequence[Bars]) -> pl.DataFrame:
    """The long frame of several `Bars`."""
    names = ("timestamp", *FIELDS)
    return pl.concat(b.frame.select(names).with_columns(pl.lit(b.symbol).alias("symbol")) for b in bars)
