"""Forecast frames to target weights.

A signal is one function, `(forecasts, **options) -> weights [R, S]`, and one line in `SIGNALS`; its keyword
arguments are its options. Unless a signal says otherwise, each of S symbols gets at most 1/S of the equity,
so that the gross weight stays at 1. How long a forecast over h bars is held is a choice of its own, so that
overlapping returns are never counted twice.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from longtape.backtest import sizing
from longtape.backtest.frames import as_frame, milliseconds
from longtape.backtest.selection import VOLATILITY, Target, candidates, listed, plain
from longtape.backtest.validation import one_line
from longtape.core.arrays import Floats
from longtape.core.calendars import infer_periods_per_year
from longtape.core.clock import Milliseconds, iso
from longtape.core.errors import UserError, unknown_name
from longtape.core.registry import Registry
from longtape.market.bars import TIME_TYPE

SIGNALS = Registry(
    "signal",
    {
        "threshold": "longtape.backtest.signals:threshold",
        "tanh": "longtape.backtest.signals:tanh",
        "proportional": "longtape.backtest.signals:proportional",
        "equal": "longtape.backtest.signals:equal",
        "volatility_target": "longtape.backtest.signals:volatility_target",
        "interval": "longtape.backtest.signals:interval",
        "rank": "longtape.backtest.signals:rank",
        "allocation": "longtape.backtest.signals:allocation",
    },
)

# Signals that divide the whole equity among the symbols that have a forecast; the others give each symbol its share.
ACROSS_SYMBOLS = frozenset({"equal", "rank", "allocation"})

# Of a forecast frame: what it must have, and what counts as null where it is absent.
COLUMNS = ("timestamp", "known_at", "symbol", "target", "kind", "horizon", "end", "mean")
OPTIONAL_COLUMNS = ("lower", "upper", "threshold")


class SignalConfig(BaseModel):
    """How forecasts become weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default="threshold", description="a signal of the registry")
    options: dict[str, FiniteFloat] = Field(default={}, description="the signal's own options, by name")
    target: str | None = Field(
        default=None, description="which target of the frame, where it holds several; spaces do not matter"
    )
    horizon: int | None = Field(
        default=None, ge=1, description="which horizon of the frame, where it holds several"
    )
    holding: Literal["ladder", "hold", "newest"] | None = Field(
        default=None,
        description="h tranches of 1/h each held h bars; the first forecast held h bars; or the newest every bar."
        " By default ladder; newest for weights (allocation), which are held until the next ones",
    )
    long_only: bool = Field(default=False, description="short weights become zero")
    max_weight: float | None = Field(default=None, gt=0, description="cap of |weight| per symbol")
    max_gross: float | None = Field(
        default=None, gt=0, description="cap of Σ|weight|; rows above it are scaled"
    )
    band: float = Field(
        default=0.0, ge=0, description="a symbol is traded when its weight moves by more than this"
    )
    max_turnover: float | None = Field(
        default=None, gt=0, description="cap of Σ|change of weight| a decision"
    )
    cost: float | None = Field(
        default=None,
        ge=0,
        description="trade a symbol when the expected gain of the move exceeds this cost of it",
    )

    @property
    def held(self) -> str:
        """How long a forecast is held."""
        return self.holding or ("newest" if self.name == "allocation" else "ladder")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise one_line(error, "signal", type(self).model_fields) from None

    @field_validator("target")
    @classmethod
    def _without_spaces(cls, target: str | None) -> str | None:
        return None if target is None else plain(target)

    @model_validator(mode="after")
    def _options_are_the_signals_own(self) -> SignalConfig:
        allowed = signal_options(self.name)
        for option in self.options:
            if option not in allowed:
                raise unknown_name("option", option, allowed, f"signal '{self.name}'")
        for option, default in allowed.items():
            if default is None and option not in self.options:
                raise UserError(f"signal '{self.name}' needs its option '{option}'")
        SIGNALS.load(self.name)(_sample_grid(), **self.options)  # refuses the values that it cannot use
        return self


def signal_options(name: str) -> dict[str, float | None]:
    """Options of a signal and their defaults (None = must be given)."""
    parameters = list(inspect.signature(SIGNALS.load(name)).parameters.values())[1:]
    return {p.name: None if p.default is p.empty else p.default for p in parameters}


@dataclass(frozen=True, eq=False)
class ForecastGrid:
    """Forecasts of one target on one grid of origins: [R, S] each, NaN where a symbol has no forecast at that
    origin.
    """

    times: Milliseconds  # [R] opens of the origin bars
    known: Milliseconds  # [R] their closes
    ends: npt.NDArray[np.int64]  # [R, S] when the forecast has run out
    symbols: tuple[str, ...]
    mean: Floats
    lower: Floats
    upper: Floats
    volatility: Floats  # of the same horizon, where the frame forecasts it
    threshold: Floats  # the frame's own threshold, 0 where it has none
    horizon: int
    periods_per_year: float | None  # None: to be read from the origins' times

    @property
    def share(self) -> float:
        """Each symbol's part of the equity."""
        return 1.0 / len(self.symbols)

    @property
    def bars_per_year(self) -> float:
        """Bars in a year; UserError where the origins are further apart than bars and do not tell it."""
        if self.periods_per_year is not None:
            return self.periods_per_year
        if len(self.times) > 1 and not (self.times[1:] <= self.known[:-1]).any():
            raise UserError(
                "forecast: not every bar is an origin, so their times do not say how many bars a year has;"
                " give periods_per_year"
            )
        return infer_periods_per_year(self.times)[0]


def _sample_grid() -> ForecastGrid:
    """One origin of two symbols about which nothing is foreseen."""
    zero, moment = np.zeros((1, 2)), np.zeros(1, np.int64)
    return ForecastGrid(
        times=moment,
        known=moment + 1,
        ends=np.full((1, 2), 2),
        symbols=("A", "B"),
        mean=zero,
        lower=zero,
        upper=zero,
        volatility=zero + 1,
        threshold=zero,
        horizon=1,
        periods_per_year=1.0,
    )


def _refuse_unless(holds: bool, signal: str, rule: str, given: float) -> None:
    if not holds:
        raise UserError(f"signal '{signal}': {rule} (given: {given})")


def threshold(forecasts: ForecastGrid, threshold: float = 0.0) -> Floats:
    """Long above the threshold (or the frame's own, if it is higher), short below its negative, flat between."""
    _refuse_unless(threshold >= 0, "threshold", "threshold must be at least 0", threshold)
    return (
        forecasts.share
        * np.sign(forecasts.mean)
        * (np.abs(forecasts.mean) > np.maximum(threshold, forecasts.threshold))
    )


def tanh(forecasts: ForecastGrid, gain: float) -> Floats:
    """tanh(mean × gain)."""
    return forecasts.share * np.tanh(forecasts.mean * gain)


def proportional(forecasts: ForecastGrid, gain: float) -> Floats:
    """mean × gain, at most fully invested."""
    return forecasts.share * np.clip(forecasts.mean * gain, -1, 1)


def equal(forecasts: ForecastGrid, threshold: float = 0.0) -> Floats:
    """The whole equity in equal parts over the symbols whose forecast is beyond the threshold (or the frame's own)."""
    _refuse_unless(threshold >= 0, "equal", "threshold must be at least 0", threshold)
    side = np.sign(forecasts.mean) * (np.abs(forecasts.mean) > np.maximum(threshold, forecasts.threshold))
    chosen = np.nansum(np.abs(side), axis=1, keepdims=True)
    return side / np.maximum(chosen, 1)


def volatility_target(forecasts: ForecastGrid, volatility: float, max_leverage: float = 1.0) -> Floats:
    """sign(mean) × target / forecast volatility, both a year, at most `max_leverage` times the symbol's
    share.

    The frame must forecast `volatility` of the same horizon (√ of the summed squared returns).
    """
    _refuse_unless(volatility > 0, "volatility_target", "volatility must be above 0", volatility)
    _refuse_unless(max_leverage > 0, "volatility_target", "max_leverage must be above 0", max_leverage)
    if np.isnan(forecasts.volatility).all():
        raise UserError("signal 'volatility_target' needs forecasts of kind 'volatility' beside the returns")
    yearly = forecasts.volatility * np.sqrt(forecasts.bars_per_year / forecasts.horizon)
    return (
        forecasts.share
        * np.sign(forecasts.mean)
        * np.minimum(volatility / np.maximum(yearly, 1e-12), max_leverage)
    )


def interval(forecasts: ForecastGrid) -> Floats:
    """Long or short only where the whole interval lies on one side of zero."""
    if np.isnan(forecasts.lower).all():
        raise UserError("signal 'interval' needs forecasts with lower and upper bounds")
    missing = np.where(np.isnan(forecasts.mean), np.nan, 0.0)
    return forecasts.share * ((forecasts.lower > 0) * 1.0 - (forecasts.upper < 0) * 1.0) + missing


def rank(forecasts: ForecastGrid, quantile: float = 0.2) -> Floats:
    """Across symbols: long the top quantile with half the equity, short the bottom one with the other half.

    Forecasts that tie at the border of a side share the places that are left of it; where both sides ask for them,
    what is long and short at once is left out.
    """
    _refuse_unless(0 < quantile <= 0.5, "rank", "quantile must lie in (0, 0.5]", quantile)
    if len(forecasts.symbols) < 2:
        raise UserError("signal 'rank' compares symbols; the forecasts hold one only")
    present = (~np.isnan(forecasts.mean)).sum(axis=1, keepdims=True)
    count = np.maximum(np.floor(present * quantile + 1e-9), 1)
    first, last = _tied_places(forecasts.mean)
    ties = last - first + 1
    top, bottom = (np.clip((count - before) / ties, 0, 1) for before in (present - 1 - last, first))
    return np.where(
        present < 2, np.nan, np.where(np.isnan(forecasts.mean), 0.0, 0.5 * (top - bottom) / count)
    )


def _tied_places(values: Floats) -> tuple[Floats, Floats]:
    """First and last place, from 0 for the lowest, of the values that equal each one in its row [R, S]; NaN is last."""
    order = np.argsort(values, axis=1)
    ordered = np.take_along_axis(values, order, axis=1)
    place = np.broadcast_to(np.arange(values.shape[1]), values.shape)
    begins, ends = np.ones(values.shape, bool), np.ones(values.shape, bool)
    begins[:, 1:] = ends[:, :-1] = ordered[:, 1:] != ordered[:, :-1]
    first = np.maximum.accumulate(np.where(begins, place, 0), axis=1)
    last = np.minimum.accumulate(np.where(ends, place, values.shape[1])[:, ::-1], axis=1)[:, ::-1]
    out = np.empty(values.shape), np.empty(values.shape)
    for where, places in zip(out, (first, last), strict=True):
        np.put_along_axis(where, order, places, axis=1)
    return out


def allocation(forecasts: ForecastGrid) -> Floats:
    """The forecasts are weights already (an allocation head)."""
    return forecasts.mean


def weights_from_forecast(
    forecast: Any, config: SignalConfig = SignalConfig(), periods_per_year: float | None = None
) -> pl.DataFrame:
    """Forecast frame → weights frame: `timestamp` and one column per symbol, decided at each origin's close.

    A symbol without a forecast at an origin keeps what it holds; where the others divide the whole equity among
    themselves (`equal`, `rank`, `allocation`), the row is scaled to the gross weight that the signal has asked for so
    far, at least 1. `periods_per_year` serves the volatility target; left out, it is read from the origins' times.
    UserError where the frame holds several targets or horizons and none is named, or no forecast of returns.
    """
    forecasts = read_forecast(forecast, config.target, config.horizon, periods_per_year)
    raw = SIGNALS.load(config.name)(forecasts, **config.options)
    if config.long_only:
        raw = np.where(raw < 0, 0.0, raw)
    held = sizing.hold(raw, forecasts.times, forecasts.known, forecasts.ends, forecasts.horizon, config.held)
    if config.name in ACROSS_SYMBOLS:
        held = sizing.within_gross_of(held, raw)
    capped = sizing.cap(held, config.max_weight, config.max_gross)
    if config.band or config.max_turnover or config.cost is not None:
        expected = np.expm1(np.nan_to_num(forecasts.mean))
        limit = config.max_turnover or np.inf
        capped = sizing.restrain(
            capped, expected, config.band, limit, -np.inf if config.cost is None else config.cost
        )
    capped = np.round(capped, 12)  # sums of tranches differ in the last digit, which is no change of weight
    columns = {symbol: capped[:, s] for s, symbol in enumerate(forecasts.symbols)}
    return pl.DataFrame({"timestamp": pl.Series(forecasts.times).cast(TIME_TYPE), **columns})


def read_forecast(
    forecast: Any,
    target: str | None = None,
    horizon: int | None = None,
    periods_per_year: float | None = None,
) -> ForecastGrid:
    """The forecasts of one target and horizon as arrays on one grid of origins."""
    frame = as_frame(forecast, "forecast", COLUMNS)
    frame = frame.with_columns(
        pl.lit(None, pl.Float64).alias(name) for name in OPTIONAL_COLUMNS if name not in frame.columns
    )
    if frame.height == 0:
        raise UserError("forecast: the frame is empty")
    chosen = _choose(frame, target, horizon)
    _refuse_nan(chosen)
    times = np.unique(milliseconds(chosen["timestamp"], "forecast"))
    grid = _GridIndex(times, tuple(chosen["symbol"].unique(maintain_order=True).to_list()))
    return ForecastGrid(
        times=times,
        known=np.nanmax(grid.times_in(chosen, "known_at"), axis=1).astype(np.int64),
        ends=np.nan_to_num(grid.times_in(chosen, "end")).astype(np.int64),
        symbols=grid.symbols,
        mean=grid.column(chosen, "mean"),
        lower=grid.column(chosen, "lower"),
        upper=grid.column(chosen, "upper"),
        volatility=grid.column(_volatility_of(chosen, frame), "mean"),
        threshold=np.nan_to_num(grid.column(chosen, "threshold")),
        horizon=int(chosen["horizon"][0]),
        periods_per_year=periods_per_year,
    )


def _volatility_of(chosen: pl.DataFrame, frame: pl.DataFrame) -> pl.DataFrame:
    """The forecasts of volatility at the origins, for the symbols and over the horizon of the chosen ones."""
    of_kind = frame.filter((pl.col("kind") == VOLATILITY) & (pl.col("horizon") == chosen["horizon"][0]))
    return of_kind.join(chosen.select("symbol"), on="symbol", how="semi").join(
        chosen.select("timestamp"), on="timestamp", how="semi"
    )


def _choose(frame: pl.DataFrame, target: str | None, horizon: int | None) -> pl.DataFrame:
    """The rows of the one target and horizon that are meant."""
    rows = frame.select("target", "kind", "horizon").unique().sort("target", "horizon").rows()
    offered = [Target(*row) for row in rows]
    found = candidates(offered, target, horizon)
    if len(found) != 1:
        known = ", ".join(f"{one.text} at {one.horizon} bars" for one in found)
        known = known or f"none that fits among {listed(offered)}"
        raise UserError(f"forecast: name one target and horizon for the signal; there are {known}")
    return frame.filter((pl.col("target") == found[0].text) & (pl.col("horizon") == found[0].horizon))


def _refuse_nan(frame: pl.DataFrame) -> None:
    bad = frame.filter(pl.col("mean").is_null() | ~pl.col("mean").is_finite())
    if bad.height:
        when = iso(int(milliseconds(bad["timestamp"], "forecast")[0]))
        raise UserError(f"forecast: no finite mean for {bad['symbol'][0]} at {when} ({bad.height} such rows)")


@dataclass(frozen=True)
class _GridIndex:
    """Rows of a long frame to places in [R, S]."""

    times: Milliseconds
    symbols: tuple[str, ...]

    def place(self, frame: pl.DataFrame, values: Floats) -> Floats:
        out = np.full((len(self.times), len(self.symbols)), np.nan)
        if frame.height == 0:
            return out
        order = {symbol: s for s, symbol in enumerate(self.symbols)}
        rows = np.searchsorted(self.times, milliseconds(frame["timestamp"], "forecast"))
        columns = frame["symbol"].cast(pl.String).replace_strict(order, return_dtype=pl.Int64).to_numpy()
        if len(np.unique(rows * len(self.symbols) + columns)) < len(rows):
            raise UserError("forecast: a symbol has two forecasts at one time; name the target and horizon")
        out[rows, columns] = values
        return out

    def times_in(self, frame: pl.DataFrame, name: str) -> Floats:
        return self.place(frame, milliseconds(frame[name], "forecast").astype(np.float64))

    def column(self, frame: pl.DataFrame, name: str) -> Floats:
        return self.place(frame, frame[name].cast(pl.Float64).fill_null(float("nan")).to_numpy())
