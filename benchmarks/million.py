"""A whole run over 1,000,000 one-minute bars with lookback 2,048, step by step: seconds, and the peak of memory.

    python benchmarks/million.py [BARS]

Bars are made up (GARCH-like volatility, 24/7). Audit and baselines are included. Writes benchmarks/results/million.md.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl

from longtape.benchmarking.machine import describe_machine, machine_line
from longtape.core.clock import MINUTE, to_milliseconds
from longtape.core.files import write_text
from longtape.core.markdown import markdown_table
from longtape.experiment import Experiment, parse_experiment
from longtape.workflow import train
from longtape.workflow.data import RunData

RESULT = Path(__file__).parent / "results" / "million.md"
T = TypeVar("T")
FEATURES = [
    "log_return",
    "volatility(60)",
    "volatility(1440)",
    "rsi(14)",
    "volume_ratio(60)",
    "range",
    "momentum(60)",
    "hour",
]


def candles(n: int) -> pl.DataFrame:
    """A walk whose volatility comes in waves of a day and a month."""
    draw = np.random.default_rng(0)
    at = np.arange(n)
    spread = 4e-4 * np.exp(0.4 * np.sin(at / 229) + 0.4 * np.sin(at / 6_900))
    close = 30_000 * np.exp(np.cumsum(spread * draw.standard_t(5, n)))
    opens = np.concatenate([[30_000.0], close[:-1]])
    reach = 1 + np.abs(draw.normal(0, 1, (2, n))) * spread
    times = pl.Series(to_milliseconds("2022-01-01") + MINUTE * at).cast(pl.Datetime("ms", "UTC"))
    high, low = np.maximum(opens, close) * reach[0], np.minimum(opens, close) / reach[1]
    columns = {"open": opens, "high": high, "low": low, "close": close, "volume": draw.lognormal(3, 1, n)}
    return pl.DataFrame({"timestamp": times, **columns})


def experiment(path: Path) -> Experiment:
    """Eight features, patches of 16 minutes, return and volatility of the next hour."""
    return parse_experiment(
        {
            "name": "one million minutes",
            "data": {"source": "file", "path": str(path), "symbols": ["X"], "interval": "1m"},
            "features": FEATURES,
            "targets": ["return(60)", "volatility(60)"],
            "model": {"lookback": 2048, "patch": 16, "attention": "bigbird", "d_model": 32, "n_heads": 2}
            | {"attention_options": {"block_size": 16}, "n_layers": 2},
            "training": {"epochs": 2, "stride": 64, "validation_stride": 16, "learning_rate": 5e-4},
            "backtest": {"signal": {"target": "return(60)"}, "traded": 0.1},
        },
        "million",
    )


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    rows: list[tuple[str, float, float]] = []

    def timed(what: str, step: Callable[[], T]) -> T:
        started = time.perf_counter()
        result = step()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rows.append((what, time.perf_counter() - started, peak))
        print(f"{what}: {rows[-1][1]:.1f} s, {peak:,.0f} MiB", flush=True)
        return result

    with tempfile.TemporaryDirectory() as folder:
        candles(n).write_parquet(Path(folder) / "candles.parquet")
        described = experiment(Path(folder) / "candles.parquet")
        timed("load, features, split (alone)", lambda: RunData.of(described).split)
        made = timed(
            "train: the same, closed forms, network, calibration", lambda: train(described, f"{folder}/run")
        )
        timed("forecast of the test period", lambda: made.forecast(history=True))
        timed("baselines, scores, account, judgement", made.backtest)
        timed("audit", made.audit)
        timed("report", made.report)
        windows = made.folder.facts["windows"]
    lines = ["# A whole run over one million minutes", "", machine_line(describe_machine()), ""]
    lines += [f"{n:,} bars; windows: " + ", ".join(f"{v:,} {k}" for k, v in windows.items()) + ".", ""]
    rows.append(("all", sum(row[1] for row in rows), rows[-1][2]))
    cells = [[what, f"{seconds:,.0f}", f"{peak:,.0f}"] for what, seconds, peak in rows]
    lines.append(markdown_table(["step", "seconds", "peak MiB so far"], cells))
    write_text(RESULT, "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
