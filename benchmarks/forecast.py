"""Latency of the newest forecast of a warm process, by length of the history that stands before it.

`python benchmarks/forecast.py`: one symbol, lookback 2,048, width 64, 2 layers; median and 99th percentile of the whole
call (rows, features, model, intervals, frame) and of the model alone.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import torch

from longtape.core.clock import Interval
from longtape.core.instrument import Instrument
from longtape.experiment import parse_experiment
from longtape.forecasting.predict import predict
from longtape.market.bars import Bars
from longtape.workflow import train

HISTORIES = (5_000, 50_000, 500_000)
CALLS = 200
RESULT = Path(__file__).parent / "results" / "forecast.md"
FEATURES = [
    "log_return",
    "volatility(20)",
    "volatility(50)",
    "rsi(14)",
    "volume_ratio(20)",
    "range",
    "momentum(20)",
    "hour",
]


def candles(rows: int) -> pl.DataFrame:
    """A random walk of hourly candles."""
    rng = np.random.default_rng(0)
    close = 100 * np.exp(np.cumsum(0.004 * rng.standard_normal(rows)))
    before = np.append(100.0, close[:-1])
    reach = 0.002 * np.abs(rng.standard_normal((2, rows)))
    frame = {
        "timestamp": 1_600_000_000_000 // 86_400_000 * 86_400_000 + 3_600_000 * np.arange(rows),
        "open": before,
        "high": np.maximum(before, close) * (1 + reach[0]),
        "low": np.minimum(before, close) * (1 - reach[1]),
        "close": close,
        "volume": rng.lognormal(3, 1, rows),
    }
    return pl.DataFrame(frame).with_columns(pl.col("timestamp").cast(pl.Datetime("ms", "UTC")))


def document(path: Path, attention: str) -> dict[str, object]:
    """An experiment whose closed-form start is kept: the speed of a forecast does not depend on the weights."""
    return {
        "data": {"source": "file", "path": str(path), "symbols": ["X"], "interval": "1h"},
        "features": FEATURES,
        "targets": ["return(24)", "volatility(24)"],
        "model": {"lookback": 2_048, "attention": attention, "d_model": 64, "n_heads": 4, "n_layers": 2},
        "training": {"epochs": 0},
        "backtest": {"signal": {"target": "return(24)"}},
        "audit": False,
    }


def times(work: Callable[[], object]) -> tuple[float, float]:
    """Median and 99th percentile of a call, ms, after ten that warm up."""
    for _ in range(10):
        work()
    found = []
    for _ in range(CALLS):
        start = time.perf_counter()
        work()
        found.append(1e3 * (time.perf_counter() - start))
    return float(np.median(found)), float(np.quantile(found, 0.99))


def main() -> None:
    """Measure, and write the table."""
    instrument, interval = Instrument("file", "spot", "X"), Interval.parse("1h")
    bars = {rows: Bars.checked(instrument, interval, candles(rows), "made-up") for rows in HISTORIES}
    lines = ["| mechanism | part | bars of history | median ms | p99 ms |", "|---|---|---|---|---|"]
    for attention in ("bigbird", "flash"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "candles.parquet"
            candles(4_000).write_parquet(path)
            made = train(parse_experiment(document(path, attention), "latency"), Path(folder) / "run")
            for rows, one in bars.items():
                whole = times(lambda m=made, b=one: m.forecast(b))
                lines.append(f"| {attention} | whole forecast | {rows:,} | {whole[0]:.1f} | {whole[1]:.1f} |")
            panel, model = made.data.panel, made.fitted.model
            newest, together = np.array([len(panel) - 1]), made.fitted.windows_together
            alone = times(lambda: predict(model, panel, newest, together))  # noqa: B023
            lines.append(f"| {attention} | model | | {alone[0]:.1f} | {alone[1]:.1f} |")
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    head = [
        "# Latency of the newest forecast",
        "",
        f"{CALLS} calls each; `python benchmarks/forecast.py`.",
        "",
    ]
    text = "\n".join([*head, f"Machine: {machine}; torch {torch.__version__}.", "", *lines])
    RESULT.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
