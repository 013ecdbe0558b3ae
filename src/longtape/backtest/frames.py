"""Frames to arrays: weights and bars as users have them, checked, on one clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from numba import njit

from longtape.backtest.account import Prices
from longtape.core.arrays import Floats, Ints
from longtape.core.clock import Milliseconds, iso
from longtape.core.errors import UserError, unknown_name
from longtape.market import frames as market_frames
from longtape.market.bars import Bars

PRICES = ("open", "high", "low", "close")
FIELDS = (*PRICES, "volume")


@dataclass(frozen=True, eq=False)
class Market:
    """Bars of several symbols on the union of their clocks. `absent`: the columns that a symbol's source does not have,
    NaN throughout.
    """

    clock: Milliseconds  # [T] opens, UTC milliseconds, strictly increasing
    symbols: tuple[str, ...]
    prices: Prices  # [T, S] each, NaN where a symbol has no bar
    absent: Mapping[str, frozenset[str]]


def as_frame(data: Any, what: str, columns: Sequence[str]) -> pl.DataFrame:
    """A polars frame from polars or pandas (its time in a column or the index), holding at least `columns`."""
    frame = market_frames.as_frame(data, what)
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise UserError(
            f"{what}: column '{missing[0]}' is missing; there are {', '.join(frame.columns) or 'none'}"
        )
    return frame


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
    frame = _long_frame(bars, wanted)
    if frame.height == 0:
        raise UserError("bars: the frame is empty")
    times = frozen(milliseconds(frame["timestamp"], "bars"))
    symbols = frame["symbol"]
    columns = tuple(frozen(numbers(frame[name], "bars")) for name in FIELDS)
    alone = len(wanted) == 1 and bool((symbols == wanted[0]).all())
    codes = frozen(np.zeros(0, np.int64) if alone else _codes(symbols, wanted))
    absent = _absent(frame, wanted)
    row, fault = _first_fault(times, codes, len(wanted), _stand_ins(columns, absent, codes, wanted))
    if fault >= 0:
        raise UserError(
            f"bars: row {row + 1} ({symbols[row]}, {iso(int(times[row]))}): {_fault(row, fault, columns)}"
        )
    if alone:
        prices = Prices(*(column.reshape(-1, 1) for column in columns))
        return Market(times, tuple(wanted), prices, absent)
    ordered = np.sort(times, kind="stable")  # merges the symbols' runs; np.unique hashes, four times as long
    clock = ordered[np.append(True, ordered[1:] > ordered[:-1])]
    matrices = tuple(np.full((len(clock), len(wanted)), np.nan) for _ in FIELDS)
    _scatter(times, codes, clock, columns, matrices)
    return Market(frozen(clock), tuple(wanted), Prices(*(frozen(matrix) for matrix in matrices)), absent)


def _long_frame(bars: Any, wanted: Sequence[str]) -> pl.DataFrame:
    """A frame of bars with our columns; of one symbol the column `symbol` may be left out."""
    frame = market_frames.lower_case(market_frames.as_frame(bars, "bars"), ("symbol", *FIELDS))
    if "symbol" not in frame.columns and len(wanted) == 1:
        frame = frame.with_columns(pl.lit(wanted[0]).alias("symbol"))
    return as_frame(frame, "bars", ("timestamp", "symbol", *FIELDS))


def _absent(frame: pl.DataFrame, wanted: Sequence[str]) -> dict[str, frozenset[str]]:
    """The columns, other than the close, that are null throughout, by symbol; most frames have none."""
    some = [name for name in FIELDS if name != "close" and frame[name].null_count()]
    if not some:
        return {}
    empty = frame.group_by(pl.col("symbol").cast(pl.String)).agg(pl.col(some).is_null().all())
    found = {row["symbol"]: frozenset(name for name in some if row[name]) for row in empty.to_dicts()}
    return {symbol: found[symbol] for symbol in wanted if found.get(symbol)}


def _stand_ins(
    columns: tuple[Floats, ...], absent: Mapping[str, frozenset[str]], codes: Ints, wanted: Sequence[str]
) -> tuple[Floats, ...]:
    """Columns in which what a source does not have is no fault: the close stands for a price, 0 for a volume."""
    made = [np.array(column) if absent else column for column in columns]
    close = columns[FIELDS.index("close")]
    for symbol, names in absent.items():
        rows = codes == wanted.index(symbol) if len(codes) else np.ones(len(close), bool)
        for name in names:
            made[FIELDS.index(name)][rows] = 0.0 if name == "volume" else close[rows]
    return tuple(frozen(column) for column in made)


def numbers(values: pl.Series, what: str) -> Floats:
    """A column as float64, NaN where it is null; UserError naming `what` and the column if it holds no numbers."""
    try:
        floats = values if values.dtype == pl.Float64 else values.cast(pl.Float64)
    except pl.exceptions.PolarsError:
        raise UserError(f"{what}: column '{values.name}' holds {values.dtype}, not numbers") from None
    return (floats.fill_null(float("nan")) if floats.null_count() else floats).to_numpy()


def _codes(symbols: pl.Series, wanted: Sequence[str]) -> Ints:
    """Position of each row's symbol in `wanted`, −1 for the others; UserError for a wanted symbol without
    rows.
    """
    order = {symbol: code for code, symbol in enumerate(wanted)}
    runs = symbols.rle().struct.unnest().with_columns(pl.col("value").cast(pl.String))
    known = runs["value"].unique().to_list()
    for symbol in wanted:
        if symbol not in known:
            raise unknown_name("symbol", symbol, [str(name) for name in known], "weights")
    codes = runs["value"].replace_strict(order, default=-1, return_dtype=pl.Int64).to_numpy()
    return np.repeat(codes, runs["len"].to_numpy())


def _fault(row: int, fault: int, columns: Sequence[Floats]) -> str:
    if fault == len(FIELDS):
        return "high is below low"
    if fault > len(FIELDS):
        return "not later than the symbol's row before; sort by time and remove duplicates"
    rule = "at least zero" if FIELDS[fault] == "volume" else "above zero"
    return f"{FIELDS[fault]} is {columns[fault][row]:g}, it must be a number {rule}; mend or remove the row"


@njit(cache=True)
def _first_fault(
    times: Milliseconds, codes: Ints, symbols: int, columns: tuple[Floats, ...]
) -> tuple[int, int]:
    """Row and kind of the first fault among the wanted rows (codes ≥ 0; no codes at all = one symbol), else
    (0, −1).

    Kind: the number of the field whose value is none, 5 = high below low, 6 = not later than the row before.
    """
    last = np.full(symbols, np.iinfo(np.int64).min, np.int64)
    opens, highs, lows, closes, volumes = columns
    for row in range(len(times)):
        code = codes[row] if len(codes) else 0
        if code < 0:
            continue
        if times[row] <= last[code]:
            return row, 6
        last[code] = times[row]
        # A comparison with NaN is False, so that NaN is a fault as well.
        good = (opens[row] > 0) & (opens[row] < np.inf) & (closes[row] > 0) & (closes[row] < np.inf)
        good &= (lows[row] > 0) & (lows[row] <= highs[row]) & (highs[row] < np.inf)
        if not (good & (volumes[row] >= 0) & (volumes[row] < np.inf)):
            for field in range(5):
                value = columns[field][row]
                if not (0 <= value < np.inf) or (field < 4 and value == 0):
                    return row, field
            return row, 5
    return 0, -1


@njit(cache=True)
def _scatter(
    times: Milliseconds,
    codes: Ints,
    clock: Milliseconds,
    columns: tuple[Floats, ...],
    matrices: tuple[Floats, ...],
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
            matrices[field][bar, code] = columns[field][row]


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
    columns = [numbers(frame[name], "weights") for name in symbols]
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


def only_at_bars(weights: Any, bars: Any) -> pl.DataFrame:
    """The rows of a weights frame at whose time some symbol of it has a bar; the decision before stands in between.

    What was decided on a clock whose holes were filled, or after the last bar, cannot be traded on.
    UserError where no row is left.
    """
    frame = as_frame(weights, "weights", ("timestamp",))
    several = several_bars(bars)
    traded = as_frame(bars if several is None else long_bars(several), "bars", ("timestamp", "symbol"))
    traded = traded.filter(pl.col("symbol").cast(pl.String).is_in(frame.columns))
    at_bar = np.isin(milliseconds(frame["timestamp"], "weights"), milliseconds(traded["timestamp"], "bars"))
    if frame.height and not at_bar.any():
        raise UserError("weights: no row is at the time of a bar")
    return frame.filter(pl.Series(at_bar))


def several_bars(bars: Any) -> list[Bars] | None:
    """One or several `Bars` as a list; None for a frame. UserError for none at all."""
    several = [bars] if isinstance(bars, Bars) else bars
    if not isinstance(several, Sequence) or not all(isinstance(b, Bars) for b in several):
        return None
    if not several:
        raise UserError("bars: none were given")
    return list(several)


def long_bars(bars: Sequence[Bars]) -> pl.DataFrame:
    """The long frame of several `Bars`."""
    names = ("timestamp", *FIELDS)
    return pl.concat(b.frame.select(names).with_columns(pl.lit(b.symbol).alias("symbol")) for b in bars)
