"""Features of 10⁶ hourly bars, longtape against pandas, paired in one run: `python benchmarks/features.py`."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np
import pandas as pd

from longtape.core.clock import ALWAYS_OPEN, HOUR, Interval
from longtape.core.markdown import markdown_table
from longtape.features.evaluate import Evaluator
from longtape.features.expression import parse
from longtape.features.table import Table

ROWS, REPEATS = 1_000_000, 15
OPENS = np.arange(ROWS) * HOUR
CLOSES = OPENS + HOUR
RESULT = Path(__file__).parent / "results" / "features.md"


def bars() -> dict[str, np.ndarray]:
    """A random walk with ranges and volumes."""
    rng = np.random.default_rng(0)
    close = 100.0 * np.exp(np.cumsum(0.005 * rng.standard_normal(ROWS)))
    width = close * 0.003 * rng.random(ROWS)
    return {
        "open": close,
        "high": close + width,
        "low": close - width,
        "close": close,
        "volume": rng.lognormal(3.0, 1.0, ROWS),
    }


def rsi_in_pandas(frame: pd.DataFrame) -> pd.Series:
    """Wilder's RSI, as it is usually written."""
    change = frame["close"].diff()
    gain = change.clip(lower=0.0).ewm(alpha=1 / 14, adjust=False, min_periods=14).mean()
    loss = (-change.clip(upper=0.0)).ewm(alpha=1 / 14, adjust=False, min_periods=14).mean()
    return 100.0 - 100.0 / (1.0 + gain / loss)


def deviation_in_pandas(frame: pd.DataFrame, n: int) -> pd.Series:
    """Rolling deviation of log returns."""
    return np.log(frame["close"]).diff().rolling(n).std()


def zscore_in_pandas(frame: pd.DataFrame) -> pd.Series:
    """Rolling z-score of the close."""
    window = frame["close"].rolling(100)
    return (frame["close"] - window.mean()) / window.std()


PANDAS: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "log_return": lambda f: np.log(f["close"]).diff(),
    "volatility(20)": lambda f: deviation_in_pandas(f, 20),
    "volatility(50)": lambda f: deviation_in_pandas(f, 50),
    "rsi(14)": rsi_in_pandas,
    "volume_ratio(20)": lambda f: f["volume"] / f["volume"].rolling(20).mean(),
    "range": lambda f: (f["high"] - f["low"]) / f["close"],
    "zscore(close, 100)": zscore_in_pandas,
}


def compute(columns: dict[str, np.ndarray], names: list[str]) -> list[np.ndarray]:
    """The features by longtape, nothing remembered from an earlier call."""
    table = Table("X", Interval.parse("1h"), ALWAYS_OPEN, OPENS, CLOSES, columns)
    evaluator = Evaluator({"X": table})
    return [evaluator.compute(parse(name), "X").values[0] for name in names]


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Measure, check that both sides give the same numbers, write the table."""
    columns = bars()
    frame = pd.DataFrame(columns)
    names = list(PANDAS)
    for name, ours in zip(names, compute(columns, names), strict=True):
        theirs = PANDAS[name](frame).to_numpy()
        np.testing.assert_allclose(ours[1000:], theirs[1000:], rtol=1e-6, atol=1e-9)
    pairs = [(name, PANDAS[name], [name]) for name in names]
    pairs.append(("all seven", lambda f: [PANDAS[name](f) for name in names], names))
    rows = []
    for label, theirs, wanted in pairs:
        times = [
            (seconds(lambda f=theirs: f(frame)), seconds(lambda w=wanted: compute(columns, w)))
            for _ in range(REPEATS)
        ]
        slow, fast = (1e3 * statistics.median(side) for side in zip(*times, strict=True))
        rows.append([f"`{label}`", f"{slow:.1f}", f"{fast:.1f}", f"{slow / fast:.1f}"])
    machine = (
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {platform.python_version()}"
    )
    versions = f"numba {numba.__version__}, numpy {np.__version__}, pandas {pd.__version__}"
    text = "\n".join(
        [
            "# Features",
            "",
            f"{ROWS:,} rows, float64, one thread; medians of {REPEATS} paired runs; `python benchmarks/features.py`.",
            f"Machine: {machine}; {versions}.",
            "",
            markdown_table(["feature", "pandas ms", "longtape ms", "times faster"], rows),
        ]
    )
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
