"""The backtest against vectorbt and backtesting.py, paired in one run: `python benchmarks/backtest.py`.

All take the same arrays and the same decisions (0.9 long or flat, filled at the next open, 0.1 % a side), everything
compiled beforehand, and must end with the same equity. The peers are outside measures only.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from longtape.backtest import BacktestResult, Costs, run_backtest
from longtape.backtest.engine import simulate_account
from longtape.backtest.sweep import sweep
from longtape.benchmarking.machine import describe_machine, machine_line
from longtape.core.markdown import markdown_table

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
RESULT = Path(__file__).parent / "results" / "backtest.md"
BARS, FEE, CASH, LONG = 1_000_000, 0.001, 1_000_000.0, 0.9
COSTS = Costs(fee=FEE)


def walk(bars: int) -> pl.DataFrame:
    """A random walk of hourly bars."""
    rng = np.random.default_rng(0)
    close = 100.0 * np.exp(np.cumsum(0.002 * rng.standard_normal(bars)))
    opens = np.concatenate([[100.0], close[:-1]])
    times = pl.Series(np.arange(bars) * 3_600_000).cast(pl.Datetime("ms", "UTC"))
    high, low = np.maximum(opens, close) * 1.001, np.minimum(opens, close) / 1.001
    columns = {
        "timestamp": times,
        "open": opens,
        "high": high,
        "low": low,
        "close": close,
        "volume": np.ones(bars),
    }
    return pl.DataFrame(columns).with_columns(pl.lit("A").alias("symbol"))


def crossing(close: pl.Series, fast: int, slow: int) -> np.ndarray:
    """0.9 while the fast average is above the slow one."""
    return LONG * (close.ewm_mean(span=fast) > close.ewm_mean(span=slow)).cast(pl.Float64).to_numpy()


def target(frame: pl.DataFrame, decided: np.ndarray, symbols: list[str]) -> pl.DataFrame:
    """The frame of weights, which the peers do not need."""
    times = frame["timestamp"] if len(symbols) == 1 else frame["timestamp"].unique().sort()
    return pl.DataFrame({"timestamp": times, **{name: decided[:, s] for s, name in enumerate(symbols)}})


def ours(frame: pl.DataFrame, weights: pl.DataFrame) -> BacktestResult:
    """One call of `run_backtest`, checks of the input included."""
    return run_backtest(weights, frame, costs=COSTS, initial_capital=CASH)


def kernel(result: BacktestResult) -> float:
    """The account alone, from checked arrays."""
    return float(simulate_account(*result.setup[:3]).equity[-1])


def vectorbt(engine: str, opens: np.ndarray, close: np.ndarray, decided: np.ndarray) -> float:
    """`from_orders` with the orders moved to the next open; final equity, the whole curve computed."""
    import vectorbt as vbt

    size = np.full(decided.shape, np.nan)
    changed = np.diff(decided, axis=0, prepend=0.0)[:-1] != 0
    size[1:][changed] = decided[:-1][changed]
    portfolio = vbt.Portfolio.from_orders(
        close, size, size_type="targetpercent", price=opens, fees=FEE, init_cash=CASH, freq="1h",
        cash_sharing=decided.shape[1] > 1, group_by=decided.shape[1] > 1 or None, engine=engine,
    )  # fmt: skip
    return float(np.asarray(portfolio.value())[-1].sum())


def backtesting(frame: pl.DataFrame, decided: np.ndarray) -> float:
    """The same in backtesting.py, which gives statistics with every run."""
    from backtesting import Backtest, Strategy

    class Follow(Strategy):
        def init(self) -> None:
            pass

        def next(self) -> None:
            wanted = decided[len(self.data) - 1]
            if wanted and not self.position:
                self.buy(size=LONG)
            elif not wanted and self.position:
                self.position.close()

    table = frame.drop("symbol", "timestamp").to_pandas().rename(columns=str.title)
    table.index = frame["timestamp"].dt.replace_time_zone(None).to_pandas()
    return float(Backtest(table, Follow, cash=CASH, commission=FEE).run()["Equity Final [$]"])


def paired(rounds: int, runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median milliseconds of each, called in turn."""
    took: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            took[name].append(1e3 * (time.perf_counter() - begun))
    return {name: statistics.median(values) for name, values in took.items()}


def one_asset(lines: list[str]) -> None:
    """A million bars of one asset."""
    frame = walk(BARS)
    decided = crossing(frame["close"], 20, 100)[:, None]
    arrays = frame["open"].to_numpy()[:, None], frame["close"].to_numpy()[:, None], decided
    weights = target(frame, decided, ["A"])
    mine = ours(frame, weights)
    for engine in ("numba", "rust"):
        np.testing.assert_allclose(vectorbt(engine, *arrays), mine.history.equity[-1], rtol=1e-9)
    runs = {
        "longtape `run_backtest`": lambda: ours(frame, weights),
        "longtape, the account alone": lambda: kernel(mine),
        "vectorbt, numba": lambda: vectorbt("numba", *arrays),
        "vectorbt, rust": lambda: vectorbt("rust", *arrays),
    }
    took = paired(7, runs)
    took |= paired(1, {"backtesting.py": lambda: backtesting(frame, decided[:, 0])})
    base = took["longtape `run_backtest`"]
    lines += ["", f"## {BARS:,} bars, one asset, {mine.fills.height:,} fills", ""]
    rows = [[name, f"{ms:,.1f}", f"{ms / base:.1f}×"] for name, ms in took.items()]
    measures = paired(5, {"metrics": lambda: forget(mine).metrics})["metrics"]
    rows.append(["all measures of the result, beside the run", f"{measures:.1f}", f"{measures / base:.2f}×"])
    lines.append(markdown_table(["", "ms", "of longtape"], rows))


def forget(result: BacktestResult) -> BacktestResult:
    """The result as if nothing had been asked of it."""
    for name in ("metrics", "returns", "account"):
        result.__dict__.pop(name, None)
    return result


def many_assets(lines: list[str]) -> None:
    """Stocks with daily weights."""
    frame = pl.read_parquet(DATA / "stocks_1d" / "us_stocks_2012-2017.parquet").rename({"date": "timestamp"})
    frame = frame.with_columns(pl.col("symbol").cast(pl.String)).sort("symbol", "timestamp")
    frame = frame.drop_nulls().filter(pl.all_horizontal(pl.col("open", "high", "low", "close").is_not_nan()))
    symbols = frame["symbol"].unique(maintain_order=True).to_list()
    days = frame["timestamp"].n_unique()
    decided = np.abs(np.random.default_rng(1).normal(size=(days, len(symbols))))
    decided *= LONG / decided.sum(axis=1, keepdims=True)
    opens, close = (
        frame.pivot(on="symbol", index="timestamp", values=name).sort("timestamp").select(symbols).to_numpy()
        for name in ("open", "close")
    )
    weights = target(frame, decided, symbols)
    mine, name = ours(frame, weights), "longtape `run_backtest`"
    runs = {
        name: lambda: ours(frame, weights),
        "longtape, the account alone": lambda: kernel(mine),
        "vectorbt, numba": lambda: vectorbt("numba", opens, close, decided),
        "vectorbt, rust": lambda: vectorbt("rust", opens, close, decided),
    }
    for run in runs.values():
        run()
    took = paired(15, runs)
    lines += ["", f"## {len(symbols)} stocks × {days:,} days, new weights every day", ""]
    rows = [[label, f"{ms:.1f}", f"{ms / took[name]:.1f}×"] for label, ms in took.items()]
    lines.append(markdown_table(["", "ms", "of longtape"], rows))


def parameter_sets(lines: list[str]) -> None:
    """A thousand crossings on hourly BTC, all measures of each."""
    frame = pl.read_parquet(DATA / "candles_1h_bybit_linear" / "BTCUSDT.parquet")
    frame = frame.with_columns(pl.lit("A").alias("symbol"))
    pairs = [(fast, slow) for fast in range(5, 45) for slow in range(50, 300, 10)]
    candidates = [crossing(frame["close"], *pair) for pair in pairs]
    base = ours(frame, target(frame, candidates[0][:, None], ["A"]))
    took = paired(3, {"sweep": lambda: sweep(base, candidates)})["sweep"]
    lines += ["", f"## {len(pairs):,} parameter sets × {frame.height:,} bars", ""]
    lines += [
        f"`sweep`, one core, all measures of each: {took / 1e3:.2f} s ({took / len(pairs):.2f} ms a set)."
    ]


FRESH = """
import sys, time; sys.path.insert(0, {folder!r})
begun = time.perf_counter(); import backtest as bench; loaded = time.perf_counter()
frame = bench.walk({bars})
weights = bench.target(frame, bench.crossing(frame["close"], 20, 100)[:, None], ["A"])
def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = status("VmRSS"); ready = time.perf_counter()
result = bench.ours(frame, weights); result.metrics; done = time.perf_counter()
print(loaded - begun, done - ready, (status("VmHWM") - before) / 1024)
"""


def fresh(bars: int) -> tuple[float, float, float]:
    """Seconds of import and of the first call in a new process, and the MiB that the call added to its peak."""
    code = FRESH.format(folder=str(Path(__file__).parent), bars=bars)
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    loaded, called, memory = map(float, out.stdout.split())
    return loaded, called, memory


def first_call(lines: list[str]) -> None:
    """A new process with the compiled code in its cache."""
    small, large = [fresh(1_000) for _ in range(3)], fresh(BARS)
    loaded, called, _ = (statistics.median(column) for column in zip(*small, strict=True))
    lines += ["", "## First call in a new process, compiled code cached", ""]
    lines += [
        f"Imports {loaded:.2f} s, then the first `run_backtest` with all measures {called:.2f} s (1,000 bars)."
    ]
    lines += [
        f"One asset of a million bars adds {large[2]:.0f} MiB to the peak (books included, bars and weights not)."
    ]


def main() -> None:
    """Measure everything and write the table."""
    warnings.filterwarnings("ignore")
    lines = [
        "# Backtest",
        "",
        "Medians of paired runs, compiled beforehand; `python benchmarks/backtest.py`.",
    ]
    lines += [
        "0.9 long or flat, next open, 0.1 % a side; longtape and vectorbt end with the same equity to 1e-9."
    ]
    lines += [f"Machine: {machine_line(describe_machine())}."]
    for part in (one_asset, many_assets, parameter_sets, first_call):
        part(lines)
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
