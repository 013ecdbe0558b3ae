"""The store and bars from trades measured on this machine."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from longtape.benchmarking.machine import describe_machine, machine_line
from longtape.core.clock import DAY, MINUTE, Interval
from longtape.core.files import write_text
from longtape.core.instrument import Instrument
from longtape.core.markdown import markdown_table
from longtape.market import quality
from longtape.market.bars import COLUMNS, TIME_TYPE, Bars
from longtape.market.store import Store
from longtape.market.trade_bars import dollar_bars, tick_bars, time_bars, volume_bars

COIN = Instrument("bench", "spot", "COIN")
START = 946_684_800_000  # 2000-01-01
ROWS = 10_000_000

Timing = tuple[str, int, list[float]]  # what, rows touched, seconds of each run


def bench(rows: int = ROWS, repeats: int = 5, out: Path | None = None) -> str:
    """Time the store and bars from trades with `rows` rows each; the table, also written to `out`/data.md."""
    timings = [*_store(rows, repeats), *_trades(rows, repeats)]
    rows_of_table = []
    for label, touched, times in timings:
        middle = statistics.median(times)
        cells = [f"{touched:,}", f"{middle:.3f}", f"{min(times):.3f}", f"{touched / middle:,.0f}"]
        rows_of_table.append([label, *cells])
    lines = [
        "# Data",
        "",
        f"{rows:,} candles of a minute and {rows:,} trades, wall-clock seconds of {repeats} runs; the files are in the",
        "page cache, and compilation by numba is done before. `longtape bench data`, `python benchmarks/data.py`.",
        f"Machine: {machine_line(describe_machine())}; polars {pl.__version__}, pyarrow {pa.__version__}.",
        "",
        markdown_table(["", "rows", "median s", "least s", "rows per second"], rows_of_table),
    ]
    text = "\n".join(lines) + "\n"
    if out is not None:
        write_text(out / "data.md", text)
    return text


def candles(rows: int) -> Bars:
    """A random walk of minutes, in ticks of 0.1."""
    rng = np.random.default_rng(0)
    close = np.round(30_000 * np.exp(np.cumsum(rng.normal(0, 1e-4, rows))), 1)
    opens = np.r_[30_000.0, close[:-1]]
    spread = np.round(rng.exponential(5, (2, rows)), 1)
    frame = pl.DataFrame(
        {
            "timestamp": pl.Series(START + np.arange(rows) * MINUTE).cast(TIME_TYPE),
            "open": opens,
            "high": np.maximum(opens, close) + spread[0],
            "low": np.maximum(np.minimum(opens, close) - spread[1], 0.1),
            "close": close,
            "volume": np.round(rng.exponential(3, rows), 3),
        }
    )
    return Bars.checked(COIN, Interval.parse("1m"), frame)


def trades(rows: int) -> pl.DataFrame:
    """Trades of a month, several in one millisecond."""
    rng = np.random.default_rng(1)
    times = START + np.sort(rng.integers(0, 30 * 24 * 60 * MINUTE, rows))
    return pl.DataFrame(
        {
            "timestamp": pl.Series(times).cast(TIME_TYPE),
            "price": 30_000 + np.round(np.cumsum(rng.normal(0, 0.1, rows)), 1),
            "size": np.round(rng.exponential(0.1, rows), 3) + 0.001,
            "side": rng.choice(np.array(["buy", "sell"]), rows),
        }
    )


def _store(rows: int, repeats: int) -> Iterator[Timing]:
    bars = candles(rows)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        yield "append to an empty store (fsync)", rows, [_seconds(lambda: store.append(bars))]
        yield "read into columns", rows, _repeat(repeats, lambda: _columns(store))
        yield "the same files by polars.read_parquet", rows, _repeat(repeats, lambda: _by_polars(folder))
        middle = int(bars.timestamps[rows // 2])
        yield "read one day in the middle", 1440, _repeat(repeats, lambda: _day(store, middle))
        yield (
            "append the last 1,000 bars again",
            1000,
            _repeat(repeats, lambda: store.append(_tail(bars, 1000))),
        )
        yield "data check", rows, _repeat(repeats, lambda: quality.check(bars))


def _trades(rows: int, repeats: int) -> Iterator[Timing]:
    ticks = trades(rows)
    work: dict[str, Callable[[], object]] = {
        "bars of 1 minute from trades": lambda: time_bars(ticks, COIN, "1m"),
        "bars of 1,000 trades": lambda: tick_bars(ticks, 1_000),
        "bars of 100 coins": lambda: volume_bars(ticks, 100.0),
        "bars of 3,000,000 in value": lambda: dollar_bars(ticks, 3e6),
    }
    for label, make in work.items():
        make()
        yield label, rows, _repeat(repeats, make)


def _columns(store: Store) -> list[object]:
    bars = store.read("COIN", "1m")
    return [bars.timestamps, *(bars.column(name) for name in COLUMNS[1:])]


def _day(store: Store, moment: int) -> Bars:
    return store.read("COIN", "1m", since=moment, until=moment + DAY)


def _by_polars(folder: str) -> list[object]:
    frame = pl.read_parquet(sorted(Path(folder).rglob("*.parquet"))).rechunk()
    return [frame[name].to_numpy() for name in COLUMNS[1:]]


def _tail(bars: Bars, n: int) -> Bars:
    return Bars(bars.instrument, bars.interval, bars.frame.tail(n))


def _repeat(repeats: int, work: Callable[[], object]) -> list[float]:
    return [_seconds(work) for _ in range(repeats)]


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
