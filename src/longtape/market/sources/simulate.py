"""Candles with known truth: a planted lag, regimes, GARCH volatility. For tests and teaching, never for conclusions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from longtape.core.arrays import Floats
from longtape.core.clock import ALWAYS_OPEN, Interval, to_milliseconds
from longtape.core.errors import UserError
from longtape.core.instrument import Instrument
from longtape.market.bars import TIME_TYPE, Bars
from longtape.market.sources import Source

ORIGIN = to_milliseconds("2020-01-01")
LONGEST = 10_000_000


@dataclass(frozen=True)
class Regime:
    """A state of the market: mean log return of a bar, and the factor on its volatility."""

    drift: float = 0.0
    volatility: float = 1.0


@dataclass(frozen=True)
class Simulation:
    """How a market is made. With u the standardised return, z standard normal, s the regime (a Markov chain):

        u_t = ρ·u_{t−k} + √(1 − ρ²)·z_t            the planted lag: k = `lag`, ρ = `strength`
        h_t = (1 − α − β)·v² + α·h_{t−1}·u²_{t−1} + β·h_{t−1}    GARCH(1,1) (Bollerslev 1986), v = `volatility` of a bar
        r_t = drift_s + volatility_s·√h_t·u_t

    Whoever knows the truth explains ρ² of the variance of u. `persistence` is the chance to stay in a regime; leaving,
    all others are equally likely. The same seed gives the same market, and a longer one begins with the shorter.
    """

    lag: int = 24
    strength: float = 0.5
    regimes: tuple[Regime, ...] = (Regime(),)
    persistence: float = 0.99
    volatility: float = 0.005
    alpha: float = 0.08
    beta: float = 0.9
    price: float = 100.0
    volume: float = 1_000.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, fine, rule in [
            ("lag", self.lag >= 1, "1 or more"),
            ("strength", abs(self.strength) < 1, "between -1 and 1"),
            ("regimes", len(self.regimes) >= 1, "one or more"),
            ("persistence", 0 <= self.persistence <= 1, "from 0 to 1"),
            ("volatility", self.volatility > 0, "above 0"),
            (
                "alpha",
                self.alpha >= 0 and self.beta >= 0 and self.alpha + self.beta < 1,
                "with beta, below 1 in sum",
            ),
        ]:
            if not fine:
                raise UserError(f"simulate: {name} = {getattr(self, name)} must be {rule}")


@dataclass(frozen=True)
class Simulated:
    """Bars and the truth behind them, row by row: `mean` and `volatility` of the log return before it happened, its
    value `log_return`, and `regime`.
    """

    bars: Bars
    truth: pl.DataFrame
    simulation: Simulation


def simulate(
    n: int,
    simulation: Simulation | None = None,
    *,
    interval: str | Interval = "1h",
    start: int = ORIGIN,
    symbol: str = "SIM",
) -> Simulated:
    """`n` bars from `start` (UTC ms). High and low have the exact law of a Brownian bridge from open to close."""
    if not 1 <= n <= LONGEST:
        raise UserError(f"simulate: {n:,} bars; from 1 to {LONGEST:,} can be made")
    simulation, interval = simulation or Simulation(), Interval.parse(interval)
    streams = [np.random.default_rng([simulation.seed, i]) for i in range(5)]
    regime = _regimes(streams[0].random(n), simulation)
    u, expected, h = _returns(streams[1].standard_normal(n), simulation)
    scale = np.array([r.volatility for r in simulation.regimes])[regime] * np.sqrt(h)
    drift = np.array([r.drift for r in simulation.regimes])[regime]
    log_return = drift + scale * u
    frame = _candles(log_return, scale, simulation, streams[2:])
    times = _opens(n, interval, start)
    frame = frame.insert_column(0, times)
    noise = math.sqrt(1 - simulation.strength**2)
    truth = pl.DataFrame({
        "timestamp": times, "mean": drift + scale * expected, "volatility": scale * noise, "log_return": log_return,
        "regime": regime,
    })  # fmt: skip
    bars = Bars.checked(_instrument(symbol), interval, frame, f"simulation {symbol}")
    return Simulated(bars, truth, simulation)


def _regimes(draws: Floats, simulation: Simulation) -> npt.NDArray[np.int64]:
    """A Markov chain: each draw says whether to stay, and where to go."""
    count, stay = len(simulation.regimes), simulation.persistence
    steps = np.where(
        draws < stay, 0, 1 + ((draws - stay) / max(1 - stay, 1e-300) * (count - 1)).astype(np.int64)
    )
    return np.cumsum(np.minimum(steps, max(count - 1, 0))) % count


def _returns(z: Floats, simulation: Simulation) -> tuple[Floats, Floats, Floats]:
    """Standardised return, what of it was known before, and its variance, for each bar."""
    lag, rho = simulation.lag, simulation.strength
    noise = math.sqrt(1 - rho**2)
    u = z.copy()  # the first `lag` bars are drawn from the stationary law
    expected = np.zeros_like(z)
    for t in range(lag, len(z), lag):
        stop = min(t + lag, len(z))
        expected[t:stop] = rho * u[t - lag : t - lag + stop - t]
        u[t:stop] = expected[t:stop] + noise * z[t:stop]
    return u, expected, _garch(u, simulation)


def _garch(u: Floats, simulation: Simulation) -> Floats:
    alpha, beta, level = simulation.alpha, simulation.beta, simulation.volatility**2
    h = np.empty_like(u)
    value = level
    for t, squared in enumerate((u * u).tolist()):
        h[t] = value
        value = (1 - alpha - beta) * level + alpha * value * squared + beta * value
    return h


def _candles(log_return: Floats, scale: Floats, simulation: Simulation, streams: list[Any]) -> pl.DataFrame:
    close = math.log(simulation.price) + np.cumsum(log_return)
    open_ = np.r_[math.log(simulation.price), close[:-1]]
    reach = [
        np.sqrt((close - open_) ** 2 - 2 * scale**2 * np.log(1 - s.random(len(close)))) for s in streams[:2]
    ]
    volume = simulation.volume * np.exp(
        np.abs(log_return) / scale - 0.5 + 0.3 * streams[2].standard_normal(len(close))
    )
    return pl.DataFrame({
        "open": np.exp(open_), "high": np.exp((open_ + close + reach[0]) / 2),
        "low": np.exp((open_ + close - reach[1]) / 2), "close": np.exp(close), "volume": volume,
    })  # fmt: skip


def _opens(n: int, interval: Interval, start: int) -> pl.Series:
    if interval.is_month:
        first = np.datetime64(start, "ms").astype("datetime64[M]")
        opens = (first + np.arange(n) * int(interval.name[:-1])).astype("datetime64[ms]").astype(np.int64)
    else:
        opens = start + interval.milliseconds * np.arange(n, dtype=np.int64)
    return pl.Series("timestamp", opens).cast(pl.Datetime("ms")).dt.replace_time_zone("UTC").cast(TIME_TYPE)


def _instrument(symbol: str) -> Instrument:
    return Instrument("simulate", "synthetic", symbol, calendar=ALWAYS_OPEN)


class Simulate(Source):
    """The default simulation as a source. `SIM7` is the market of seed 7; it begins on 2020-01-01."""

    name = "simulate"
    categories: tuple[str, ...] = ("synthetic",)

    def instrument(self, symbol: str, category: str = "synthetic") -> Instrument:
        """UserError for a name that is not SIM and a seed."""
        _seed(symbol)
        return _instrument(symbol)

    def candles(
        self,
        symbol: str,
        interval: str | Interval,
        since: int | None,
        until: int | None,
        category: str = "synthetic",
        kind: str = "candles",
    ) -> Iterator[pl.DataFrame]:
        """Bars of [since, until) as one page; the same bar has the same values whatever range is asked for."""
        interval = Interval.parse(interval)
        if kind != "candles":
            raise UserError(f"simulate has candles, not {kind}")
        if until is None:
            raise UserError("a simulation has no end of its own: name --until")
        n = max(-(-(until - ORIGIN) // interval.milliseconds), 0)
        if n:
            made = simulate(n, Simulation(seed=_seed(symbol)), interval=interval, symbol=symbol).bars
            page = made.between(since, until).frame
            if page.height:
                yield page


def _seed(symbol: str) -> int:
    match = re.fullmatch(r"SIM(\d{1,9})", symbol)
    if not match:
        raise UserError(f"simulate has no symbol '{symbol}'; write SIM and a seed, as in SIM7")
    return int(match[1])
