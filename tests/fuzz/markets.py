"""Markets of known truth: bars as files hold them, and beside them what nobody who only sees the bars can know.

The return of a bar is `s_t √g_t u_t`: `s` a pattern over the day that is fixed, `g` a GARCH(1,1) variance (Bollerslev
1986) with mean 1, `u` of unit variance: normal, Student t, or partly foretold by the bar before (a planted edge). So
the expected variance of any span of bars to come is known at every close, whatever bars the file leaves out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

Floats = npt.NDArray[np.float64]
Times = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
TIME = pl.Datetime("ms", "UTC")
STEPS = {"1m": MINUTE, "5m": 5 * MINUTE, "30m": 30 * MINUTE, "1h": HOUR, "4h": 4 * HOUR, "1d": DAY}
CLOCKS = (
    ("24/7", "1m"), ("24/7", "5m"), ("24/7", "1h"), ("XNYS", "1h"), ("24/7", "1d"), ("24/5", "1h"), ("XNYS", "1d"),
    ("24/7", "4h"), ("XNYS", "4h"), ("CMES", "1h"), ("XNYS", "30m"),
)  # fmt: skip
LAWS = ("normal", "garch", "student", "lag of returns", "normal", "garch", "lag of volume")
SYMBOLS = ("AAA", "BBB", "CCC")
STRENGTH = 0.5  # correlation of a foretold return with what foretells it
ALPHA, BETA = 0.08, 0.88
WARM = 200  # bars that come before the file's: the variance has settled, and they can be put in front
FAT = 6.0  # degrees of freedom of the Student t


@dataclass(frozen=True)
class MarketSpec:
    """What kind of market is made."""

    calendar: str = "24/7"
    interval: str = "1h"
    law: str = "normal"
    bars: int = 800
    symbols: int = 1
    price: float = 100.0
    volatility: float = 0.01  # of a bar
    pattern: bool = False  # volatility follows the hour of the local day
    gaps: int = 0  # holes of one to six bars
    silent: float = 0.0  # share of bars without volume
    late: bool = False  # the last symbol was listed later
    twins: bool = False  # the first two symbols have the same bars
    stray: bool = False  # one bar on a day on which the market is closed
    clock_change: float = (
        0.75  # where in the file daylight saving begins or ends, on an exchange; beyond 1: nowhere
    )
    jump: float = 1.0  # factor on the volatility from the middle of the file on


@dataclass(frozen=True, eq=False)
class Asset:
    """Every bar that was due, WARM bars before the file included, and which of them the file holds."""

    opens: Times
    closes: Times
    frame: pl.DataFrame  # all bars due
    kept: Flags  # bars that are in the file, or in front of it
    pattern: Floats  # s² of each bar
    state: Floats  # g of each bar, known at the close before it
    start: int  # row at which the file begins

    @property
    def bars(self) -> pl.DataFrame:
        """What the file holds."""
        return self.frame.slice(self.start).filter(pl.Series(self.kept[self.start :]))

    @property
    def bars_and_before(self) -> pl.DataFrame:
        """The same with the bars that came before it."""
        return self.frame.filter(pl.Series(self.kept))

    def expected_variance(self, known: Times, ends: Times) -> Floats:
        """Of each span from the newest bar known at `known` to the newest known at `ends`: E Σ r² [n]."""
        present = np.flatnonzero(self.kept)
        first = present[np.searchsorted(self.closes[present], known, side="right") - 1]
        last = present[np.searchsorted(self.closes[present], ends, side="right") - 1]
        return np.array([self._span(a, b) for a, b in zip(first, last, strict=True)])

    def _span(self, first: int, last: int) -> float:
        if last <= first:
            return 0.0
        fade = (ALPHA + BETA) ** np.arange(last - first)
        state = 1.0 + fade * (self.state[first + 1] - 1.0)
        return float(self.pattern[first + 1 : last + 1] @ state)


@dataclass(frozen=True, eq=False)
class Market:
    """Assets on one clock."""

    spec: MarketSpec
    assets: dict[str, Asset]
    bars_per_year: float = field(default=float("nan"))

    @property
    def symbols(self) -> list[str]:
        """Names of the assets."""
        return list(self.assets)

    @property
    def step(self) -> int:
        """Length of a bar in milliseconds."""
        return STEPS[self.spec.interval]

    @property
    def whole(self) -> bool:
        """No bar is missing and each one can be traded on."""
        spec = self.spec
        return not (spec.gaps or spec.silent or spec.late or spec.stray)

    @property
    def no_edge(self) -> bool:
        """Nothing foretells a return."""
        return not self.spec.law.startswith("lag")

    @property
    def exchangeable(self) -> bool:
        """Returns are alike at all times, so that coverage is promised and not only hoped for."""
        spec = self.spec
        return spec.law in ("normal", "student") and not spec.pattern and not spec.gaps and spec.jump == 1.0

    def shared_opens(self) -> Times:
        """Opens from when the last symbol is there, of all bars that some file holds."""
        files = [asset.bars["timestamp"].dt.timestamp("ms").to_numpy() for asset in self.assets.values()]
        first = max(times[0] for times in files)
        union = np.unique(np.concatenate(files))
        return union[union >= first]

    def write(self, folder: Path, ending: str = "parquet") -> None:
        """One file for each symbol."""
        write_frames({symbol: asset.bars for symbol, asset in self.assets.items()}, folder, ending)


def write_frames(frames: dict[str, pl.DataFrame], folder: Path, ending: str) -> None:
    """One file for each symbol's bars."""
    for symbol, frame in frames.items():
        write_bars(frame, folder / f"{symbol}.{ending}")


def write_bars(frame: pl.DataFrame, path: Path) -> None:
    """Bars to CSV or Parquet, by the name's ending."""
    if path.suffix == ".csv":
        frame.with_columns(pl.col("timestamp").dt.strftime("%Y-%m-%dT%H:%M:%SZ")).write_csv(path)
    else:
        frame.write_parquet(path)


# --- clocks ---


def opens_of(calendar: str, interval: str, since: int, until: int) -> Times:
    """Opens of every bar that is due in [since, until), UTC milliseconds."""
    step = STEPS[interval]
    grid = np.arange(-(-since // step) * step, until, step, dtype=np.int64)
    if calendar == "24/7":
        return grid
    if calendar == "24/5":
        return grid[_currency_open(grid, step)]
    sessions = _sessions(calendar, since // DAY, until // DAY)
    if step >= DAY:
        days = np.array([day for day, _, _ in sessions], dtype=np.int64)
        return days[(days >= since) & (days < until)]
    bars = np.concatenate([np.arange(first, last, step, dtype=np.int64) for _, first, last in sessions])
    return bars[(bars >= since) & (bars < until)]


def _currency_open(grid: Times, step: int) -> Flags:
    """Currencies: days end at 17:00 in New York; Monday to Friday, without 25 December and 1 January."""
    moments = pl.Series(grid).cast(pl.Datetime("ms", "UTC")).dt.convert_time_zone("America/New_York")
    ends = pl.Series(grid + step - 1).cast(pl.Datetime("ms", "UTC")).dt.convert_time_zone("America/New_York")
    return _trading_day(moments) | _trading_day(ends)


def _trading_day(local: pl.Series) -> Flags:
    day = local.dt.replace_time_zone(None).dt.offset_by("7h")
    holiday = ((day.dt.month() == 12) & (day.dt.day() == 25)) | ((day.dt.month() == 1) & (day.dt.day() == 1))
    return np.asarray(((day.dt.weekday() <= 5) & ~holiday).to_numpy())


@lru_cache(maxsize=64)
def _sessions(calendar: str, first_day: int, last_day: int) -> list[tuple[int, int, int]]:
    """(day, open, close) of an exchange's sessions in UTC milliseconds; half days and holidays as they were.

    The library's whole day of CME's includes the hour of maintenance that ends it.
    """
    import exchange_calendars as calendars

    span = [str(np.datetime64(day, "D")) for day in (first_day - 7, last_day + 7)]
    schedule = calendars.get_calendar(calendar, start=span[0], end=span[1]).schedule
    moments = (schedule.index, *(schedule[name].dt.tz_convert(None) for name in ("open", "close")))
    days, opens, closes = (
        one.to_numpy().astype("datetime64[ms]").astype(np.int64).tolist() for one in moments
    )
    pause = HOUR if calendar == "CMES" else 0
    return [
        (day, first, last - pause * (last - first == DAY))
        for day, first, last in zip(days, opens, closes, strict=True)
    ]


@lru_cache(maxsize=64)
def bars_per_year(calendar: str, interval: str) -> float:
    """Counted over four years of the market's own clock."""
    first, last = (int(np.datetime64(day, "ms").astype(np.int64)) for day in ("2019-01-01", "2023-01-01"))
    return len(opens_of(calendar, interval, first, last)) / 4


def _clock(spec: MarketSpec, rng: np.random.Generator) -> Times:
    """Opens of WARM + spec.bars bars."""
    wanted = WARM + spec.bars
    if spec.calendar == "24/7":
        start = int(np.datetime64("2021-01-01", "ms").astype(np.int64)) + int(rng.integers(0, 700)) * DAY
        return start + STEPS[spec.interval] * np.arange(wanted, dtype=np.int64)
    days = ["2021-03-14", "2021-11-07", "2022-03-13", "2022-11-06"]
    change = np.datetime64(str(rng.choice(days[1::2] if spec.clock_change > 1 else days)), "ms")
    middle = int(change.astype(np.int64))
    reach = int(2.2 * wanted / bars_per_year(spec.calendar, spec.interval) * 366 + 30) * DAY
    opens = opens_of(spec.calendar, spec.interval, middle - reach, middle + reach)
    first = int(np.searchsorted(opens, middle)) - WARM - round(spec.clock_change * spec.bars)
    return opens[max(first, 0) :][:wanted]


# --- bars ---


def make_market(spec: MarketSpec, seed: int) -> Market:
    """The market of `spec` and `seed`."""
    rng = np.random.default_rng([seed, 1])
    opens = _clock(spec, rng)
    if spec.stray:
        opens = _with_stray(opens)
    common = rng.standard_normal(len(opens))
    assets: dict[str, Asset] = {}
    for number, symbol in enumerate(SYMBOLS[: spec.symbols]):
        if spec.twins and number == 1:
            assets[symbol] = assets[SYMBOLS[0]]
            continue
        assets[symbol] = _asset(spec, opens, common, number, np.random.default_rng([seed, 2, number]))
    return Market(spec, assets, bars_per_year(spec.calendar, spec.interval))


def _with_stray(opens: Times) -> Times:
    """One bar on a Saturday two thirds on."""
    day = opens[2 * len(opens) // 3] // DAY
    saturday = (day + (2 - day) % 7) * DAY  # 1970-01-03 was a Saturday
    return np.unique(np.append(opens, saturday + opens[0] % DAY))


def _asset(spec: MarketSpec, opens: Times, common: Floats, number: int, rng: np.random.Generator) -> Asset:
    count = len(opens)
    pattern = _pattern(spec, opens)
    u, volume = _shocks(spec, common, number, rng)
    state = _garch(u) if spec.law == "garch" else np.ones(count)
    returns = np.sqrt(pattern * state) * u
    frame = _candles(spec, opens, returns, np.sqrt(pattern * state), volume, number, rng)
    start = WARM + (spec.bars // 4 if spec.late and number == spec.symbols - 1 and number else 0)
    kept = np.ones(count, bool)
    if spec.gaps and number == 0:
        kept = _holes(count, WARM, spec.gaps, rng)
    if spec.late and number and number == spec.symbols - 1:
        kept[:start] = False
    return Asset(opens, opens + STEPS[spec.interval], frame, kept, pattern, state, start)


def _pattern(spec: MarketSpec, opens: Times) -> Floats:
    """s²: the spec's variance, in a U over the trading day or a wave over 24 hours, and higher after a jump."""
    level = np.full(len(opens), spec.volatility**2)
    if spec.pattern and STEPS[spec.interval] < DAY:
        if spec.calendar in ("24/7", "24/5"):
            level *= np.exp(0.8 * np.sin(2 * np.pi * (opens % DAY) / DAY))
        else:
            begins = np.flatnonzero(np.diff(opens, prepend=opens[0] - DAY) > STEPS[spec.interval])
            place = (
                np.arange(len(opens))
                - begins[np.searchsorted(begins, np.arange(len(opens)), side="right") - 1]
            )
            level *= np.exp(1.2 - 0.5 * np.minimum(place, 4))
    if spec.jump != 1.0:
        level[WARM + spec.bars // 2 :] *= spec.jump**2
    return level


def _shocks(spec: MarketSpec, common: Floats, number: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """u [T] of unit variance, and the logarithm of the volume [T]."""
    count = len(common)
    own = rng.standard_normal(count)
    z = own if spec.symbols == 1 else np.sqrt(0.4) * common + np.sqrt(0.6) * own
    if spec.law == "student":
        z = z * np.sqrt((FAT - 2) / rng.chisquare(FAT, count))
    told = rng.standard_normal(count)  # the part of the volume that may tell of the next return
    if spec.law == "lag of returns":
        for t in range(1, count):
            z[t] = STRENGTH * z[t - 1] + np.sqrt(1 - STRENGTH**2) * z[t]
    if spec.law == "lag of volume":
        z[1:] = STRENGTH * told[:-1] + np.sqrt(1 - STRENGTH**2) * z[1:]
    return z, 3.0 + 0.7 * told


def _garch(u: Floats) -> Floats:
    """g_t = (1 − α − β) + α g_{t−1} u²_{t−1} + β g_{t−1}."""
    state = np.ones(len(u))
    for t in range(1, len(u)):
        state[t] = (1 - ALPHA - BETA) + ALPHA * state[t - 1] * u[t - 1] ** 2 + BETA * state[t - 1]
    return state


def _candles(
    spec: MarketSpec,
    opens: Times,
    returns: Floats,
    scale: Floats,
    volume: Floats,
    number: int,
    rng: np.random.Generator,
) -> pl.DataFrame:
    """Bars that close where the returns lead; a part of each return is a step between close and open."""
    price = spec.price * 7.3**number
    close = price * np.exp(np.cumsum(returns) - np.cumsum(returns)[0])
    before = np.append(price, close[:-1])
    overnight = np.diff(opens, prepend=opens[0]) > STEPS[spec.interval]
    share = np.where(overnight, 0.5, 0.02)
    step = share * returns + np.sqrt(share * (1 - share)) * scale * rng.standard_normal(len(opens))
    open_ = before * np.exp(step)
    reach = 0.3 * scale * np.abs(rng.standard_normal((2, len(opens))))
    traded = np.where(rng.random(len(opens)) < spec.silent, 0.0, np.exp(volume))
    return pl.DataFrame(
        {
            "timestamp": pl.Series(opens).cast(TIME),
            "open": open_,
            "high": np.maximum(open_, close) * np.exp(reach[0]),
            "low": np.minimum(open_, close) * np.exp(-reach[1]),
            "close": close,
            "volume": traded,
        }
    )


def _holes(count: int, start: int, holes: int, rng: np.random.Generator) -> Flags:
    """Holes spread over the file, one of them in its last tenth."""
    kept = np.ones(count, bool)
    length = count - start
    places = [
        *rng.integers(20, int(0.85 * length), holes - 1),
        int(rng.integers(int(0.9 * length), length - 12)),
    ]
    for place in places:
        kept[start + place : start + place + int(rng.integers(1, 7))] = False
    return kept


# --- drawing ---


def draw_spec(rng: np.random.Generator, seed: int) -> MarketSpec:
    """A market at random; clock and law go round with the seed, so that a few seeds meet all of them."""
    calendar, interval = CLOCKS[seed % len(CLOCKS)]
    law = LAWS[seed % len(LAWS)]
    symbols = int(rng.choice([1, 1, 1, 2, 3]))
    around_the_clock = calendar == "24/7"
    short = (calendar, interval) == (
        "XNYS",
        "4h",
    ) and rng.random() < 0.5  # a summer's bars, no clock change in them
    return MarketSpec(
        calendar=calendar,
        interval=interval,
        law=law,
        bars=310 if short else int(rng.integers(450, 1400)),
        symbols=symbols,
        price=float(rng.choice([1e-6, 0.03, 1.0, 100.0, 1e5])),
        volatility=float(rng.choice([0.001, 0.01, 0.03])) * (0.3 if STEPS[interval] < HOUR else 1.0),
        pattern=bool(rng.random() < 0.4) and STEPS[interval] < DAY and not law.startswith("lag"),
        gaps=int(rng.choice([0, 0, 3, 6])) if around_the_clock or symbols > 1 else 0,
        silent=float(rng.choice([0.0, 0.0, 0.0, 0.02])),
        late=bool(symbols > 1 and rng.random() < 0.25),
        twins=bool(symbols == 3 and rng.random() < 0.4),
        stray=bool(interval == "1d" and not around_the_clock and rng.random() < 0.4),
        clock_change=1.01 if short else float(rng.uniform(0.55, 0.95)),
    )


def describe(spec: MarketSpec) -> dict[str, Any]:
    """What the summary counts."""
    extras = {
        "gaps": spec.gaps > 0, "silent bars": spec.silent > 0, "late listing": spec.late, "twins": spec.twins,
        "stray bar": spec.stray, "daily pattern": spec.pattern,
    }  # fmt: skip
    return {
        "market": f"{spec.calendar} {spec.interval}",
        "law": spec.law,
        "symbols": spec.symbols,
        "extras": [name for name, there in extras.items() if there],
    }
