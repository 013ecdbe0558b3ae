"""A whole pipeline in numpy, bars → features → ridge → sign → trades at the next open, that leaks nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
import polars as pl

from longtape.core.clock import DAY, HOUR, Interval, to_milliseconds
from longtape.core.instrument import Instrument
from longtape.features.marks import Events, MarksConfig, build_marks
from longtape.features.panel import Column, Panel, Rows, TargetColumn
from longtape.features.scaling import Standardizer
from longtape.features.splits import (
    Periods,
    Split,
    SplitConfig,
    WalkForwardConfig,
    chronological,
    walk_forward,
)
from longtape.features.windows import Windows
from longtape.market.bars import TIME_TYPE, Bars

HORIZON = 6
WARM_UP = 24
FOLDED = SplitConfig(train=0.5, validation=0.1)
START = to_milliseconds("2024-01-01")


def random_bars(n: int = 1500, symbols: tuple[str, ...] = ("AAA", "BBB"), seed: int = 3) -> list[Bars]:
    """Hourly bars with two holes of three hours and some hours without volume."""
    return [_walk(symbol, n, np.random.default_rng(seed + i)) for i, symbol in enumerate(symbols)]


def _walk(symbol: str, n: int, draw: np.random.Generator) -> Bars:
    close = 100 * np.exp(np.cumsum(draw.normal(0, 0.01, n)))
    opens = np.concatenate([[100.0], close[:-1]])
    frame = pl.DataFrame(
        {
            "timestamp": pl.Series(START + HOUR * np.arange(n)).cast(TIME_TYPE),
            "open": opens,
            "high": np.maximum(opens, close) * 1.002,
            "low": np.minimum(opens, close) * 0.998,
            "close": close,
            "volume": np.where(draw.random(n) < 0.01, 0.0, draw.lognormal(3, 1, n)),
        }
    )
    hole = np.ones(n, bool)
    hole[700:703] = hole[1400:1403] = False
    return Bars.checked(
        Instrument("test", "spot", symbol), Interval.parse("1h"), frame.filter(pl.Series(hole))
    )


Series = np.ndarray[Any, np.dtype[np.float64]]


def trailing(values: Series, width: int) -> Series:
    """Windows [T, width] that end at each row; NaN where there are fewer rows."""
    padded = np.concatenate([np.full(width - 1, np.nan), values])
    return np.lib.stride_tricks.sliding_window_view(padded, width)


def shift(values: Series, by: int) -> Series:
    """The value `by` rows earlier (later, if negative); NaN where there is none."""
    out = np.full(len(values), np.nan)
    out[max(by, 0) : len(values) + min(by, 0)] = values[max(-by, 0) : len(values) - max(by, 0)]
    return out


@dataclass(frozen=True)
class Ridge:
    """Coefficients over flattened scaled windows."""

    scaler: Standardizer
    coefficients: np.ndarray[Any, Any]
    lookback: int
    events: Events | None = None

    @property
    def reach(self) -> int:
        return self.lookback

    def inputs(self, panel: Panel, origins: Rows) -> Mapping[str, np.ndarray[Any, Any]]:
        x, _ = Windows(panel, self.lookback, origins).batch(np.arange(len(origins)))
        given: dict[str, np.ndarray[Any, Any]] = {"x": self.scaler.transform(x)}
        if self.events is not None:
            marks = build_marks(panel, MarksConfig(events="events.csv", limit=4), self.events)
            given["marks"] = marks.positions(origins, self.lookback)
        return given

    def forecast(self, panel: Panel, origins: Rows) -> pl.DataFrame:
        return self.to_frame(panel, origins, self.predict(self.inputs(panel, origins)["x"]))

    def predict(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """A sum per window, so that no other window can touch its bits."""
        rows = x.reshape(len(x), -1).astype(np.float64)
        return np.array([[np.sum(row * one) for one in self.coefficients.T] for row in rows])

    def to_frame(self, panel: Panel, origins: Rows, mean: np.ndarray[Any, Any]) -> pl.DataFrame:
        return pl.concat(
            pl.DataFrame(
                {
                    "timestamp": panel.timestamps[origins],
                    "symbol": target.asset,
                    "target": target.name,
                    "mean": mean[:, k],
                    "actual": panel.targets[origins, k],
                }
            )
            for k, target in enumerate(panel.target_columns)
        ).with_columns(pl.col("timestamp").cast(TIME_TYPE))


@dataclass(frozen=True)
class RidgePipeline:
    """Each step is one method, so that a test can plant a leak by overriding one of them."""

    lookback: int = 12
    events: Events | None = None

    def clock(self, bars: Sequence[Bars]) -> np.ndarray[Any, Any]:
        first, last = max(b.timestamps[0] for b in bars), min(b.timestamps[-1] for b in bars)
        return np.arange(first, last + 1, HOUR)

    def fill_holes(self, values: Series) -> Series:
        """Forward."""
        seen = np.maximum.accumulate(np.where(np.isnan(values), 0, np.arange(len(values))))
        return values[seen]

    def columns(self, bars: Bars, clock: np.ndarray[Any, Any]) -> dict[str, Series]:
        at = np.searchsorted(bars.timestamps, clock)
        here = bars.timestamps[np.minimum(at, len(bars) - 1)] == clock
        return {
            name: self.fill_holes(np.where(here, bars.column(name)[np.minimum(at, len(bars) - 1)], np.nan))
            for name in ("open", "high", "low", "close", "volume")
        }

    def features(self, bar: dict[str, Series], clock: np.ndarray[Any, Any]) -> dict[str, Series]:
        close = np.log(bar["close"])
        mean = trailing(bar["volume"], 10).mean(axis=1)
        return {
            "return": close - shift(close, 1),
            "distance": close - trailing(close, 20).mean(axis=1),
            "volume": bar["volume"] / np.where(mean > 0, mean, 1.0),
            "slow": self.slow(close, clock),
        }

    def slow(self, close: Series, clock: np.ndarray[Any, Any]) -> Series:
        """Change over the last completed four hours: known when the four hours are over."""
        done = (clock + HOUR) % (4 * HOUR) == 0
        last = np.where(done, close - shift(close, 4), np.nan)
        seen = np.maximum.accumulate(np.where(done, np.arange(len(close)), -1))
        return np.where(seen >= 0, last[seen], np.nan)

    def event_ahead(self, known_at: np.ndarray[Any, Any]) -> Series:
        """1 while an event that has been announced lies within the next day."""
        events = self.events
        assert events is not None
        ahead = (events.times[:, None] > known_at) & (events.times[:, None] <= known_at + DAY)
        return (ahead & (events.announced[:, None] <= known_at)).any(axis=0).astype(np.float64)

    def target(self, close: Series) -> Series:
        return shift(np.log(close), -HORIZON) - np.log(close)

    def target_ends(self, known_at: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return known_at + HORIZON * HOUR

    def panel(self, bars: Sequence[Bars]) -> Panel:
        clock = self.clock(bars)
        known_at = clock + HOUR
        values: dict[Column, Series] = {}
        closes = []
        for one in bars:
            columns = self.columns(one, clock)
            closes.append(columns["close"])
            values |= {Column(one.symbol, name): v for name, v in self.features(columns, clock).items()}
        if self.events is not None:
            values[Column(None, "event_ahead")] = self.event_ahead(known_at)
        targets = np.stack([self.target(close) for close in closes], axis=1)
        return Panel(
            timestamps=clock,
            known_at=known_at,
            values=np.stack(list(values.values()), axis=1).astype(np.float32),
            ordinals=clock // HOUR,
            columns=tuple(values),
            present=np.ones((len(clock), len(bars)), bool),
            targets=targets,
            target_columns=tuple(
                TargetColumn(f"return({HORIZON})", "return", b.symbol, HORIZON) for b in bars
            ),
            target_ends=np.repeat(self.target_ends(known_at)[:, None], len(bars), axis=1),
            assets=tuple(b.symbol for b in bars),
            interval=Interval.parse("1h"),
            calendar="24/7",
            warm_up=WARM_UP,
            closes=np.stack(closes, axis=1),
            calendar_values=np.zeros((len(clock), 0), np.float32),
        )

    def split(self, panel: Panel, periods: Periods | None = None) -> Split:
        return chronological(panel, self.lookback, periods or SplitConfig(train=0.6, validation=0.1))

    def scaler(self, panel: Panel, train: Rows) -> Standardizer:
        return Standardizer.fit(panel.values, np.arange(train[0] - self.lookback + 1, train[-1] + 1))

    def folds(self, panel: Panel, config: WalkForwardConfig) -> list[Split]:
        return walk_forward(panel, self.lookback, FOLDED, config)

    def fit(self, panel: Panel, split: Split) -> Ridge:
        train = split.train
        scaler = self.scaler(panel, train)
        x, y = Windows(panel, self.lookback, train).batch(np.arange(len(train)))
        x = scaler.transform(x).reshape(len(x), -1).astype(np.float64)
        coefficients = np.linalg.solve(x.T @ x + 10 * np.eye(x.shape[1]), x.T @ y)
        return self.model(scaler, coefficients)

    def model(self, scaler: Standardizer, coefficients: np.ndarray[Any, Any]) -> Ridge:
        return Ridge(scaler, coefficients, self.lookback, self.events)

    def rescaled(self, fitted: Ridge, panel: Panel, train: Rows) -> Ridge:
        return self.model(self.scaler(panel, train), fitted.coefficients)

    def weights(self, forecast: pl.DataFrame) -> pl.DataFrame:
        first = forecast.filter(pl.col("target") == pl.col("target").first())
        wide = first.pivot(on="symbol", index="timestamp", values="mean")
        return wide.with_columns(pl.exclude("timestamp").sign() * 0.5)

    def fills(self, weights: pl.DataFrame, bars: Sequence[Bars]) -> pl.DataFrame:
        """Each change of weight is traded at the open of the next bar."""
        trades = [self.trades(weights.select("timestamp", pl.col(b.symbol).alias("weight")), b) for b in bars]
        return reduce(pl.DataFrame.vstack, trades).sort("timestamp", "symbol")

    def trades(self, weights: pl.DataFrame, bars: Bars) -> pl.DataFrame:
        decided = weights.with_columns(pl.col("weight").diff().fill_null(pl.col("weight")).alias("units"))
        decided = decided.filter(pl.col("units") != 0).sort("timestamp")
        nexts = bars.frame.select("timestamp", price="open").with_columns(pl.lit(bars.symbol).alias("symbol"))
        return self.executed(decided, nexts)

    def executed(self, decided: pl.DataFrame, nexts: pl.DataFrame) -> pl.DataFrame:
        known = decided.with_columns(pl.col("timestamp") + pl.duration(hours=1)).sort("timestamp")
        at = known.join_asof(
            nexts.with_columns(pl.col("timestamp").alias("bar")), on="timestamp", strategy="forward"
        )
        return at.drop_nulls("bar").select(pl.col("bar").alias("timestamp"), "symbol", "units", "price")

    def as_of(self, time: int) -> RidgePipeline:
        return self if self.events is None else replace(self, events=self.events.as_of(time))
