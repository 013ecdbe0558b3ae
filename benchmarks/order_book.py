"""An order book as 100,000 tokens: 50 levels × 2 sides × 1,000 snapshots, rebuilt from a recorded log.

    python benchmarks/order_book.py LOG SYMBOL [MECHANISM]

LOG: a Binance depth log or a Bybit ob500 archive of a few thousand updates. Prints seconds and the peak of memory of
one forward pass and one training step, and writes benchmarks/results/order_book.md.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch

from longtape.benchmarking.machine import describe_machine, machine_line
from longtape.benchmarking.passes import Row, forward_and_step, passes_table, peak_mib
from longtape.core.files import write_text
from longtape.core.instrument import Instrument
from longtape.features.book_targets import with_classes
from longtape.features.build import FeaturesConfig, build
from longtape.features.panel import Panel
from longtape.features.scaling import Standardizer
from longtape.market.book_files import read_books
from longtape.models.base import ModelInputs
from longtape.models.order_book import OrderBook, OrderBookConfig
from longtape.training.batches import BatchSource

RESULT = Path(__file__).parent / "results" / "order_book.md"
LEVELS, SNAPSHOTS, TRAINED = 50, 1_000, 300
FEATURES = FeaturesConfig(features=[f"book({LEVELS}, 0.1, 0.001)"], targets=["smoothed_direction(50)"])


def build_model(panel: Panel, attention: str) -> OrderBook:
    """Two layers of width 32 over the levels, fitted to the last of the rows."""
    train = np.arange(SNAPSHOTS, SNAPSHOTS + TRAINED)
    scaler = Standardizer.fit(panel.values, np.arange(SNAPSHOTS + TRAINED))
    columns = panel.columns, panel.assets, panel.target_columns, panel.interval, panel.calendar
    config = OrderBookConfig(
        lookback=SNAPSHOTS,
        levels=LEVELS,
        tokens="level",
        attention=attention,
        d_model=32,
        n_heads=2,
        n_layers=2,
    )
    torch.manual_seed(0)
    model = OrderBook(config, ModelInputs(*columns, scaler.mean, scaler.std, np.ones(1)))
    model.fit(panel, train, train)
    return model


def main(log: str, symbol: str, attention: str = "bigbird") -> None:
    """Rebuild, run, write."""
    rows: list[Row] = []
    started = time.perf_counter()
    books = read_books(log, Instrument("file", "linear", symbol), LEVELS)
    rows.append(
        {"step": f"rebuild {len(books):,} books of {LEVELS} levels", "seconds": time.perf_counter() - started}
    )
    panel = build([books.with_frame(books.frame.head(SNAPSHOTS + TRAINED + 100))], FEATURES)
    panel = with_classes(panel, np.arange(SNAPSHOTS, SNAPSHOTS + TRAINED))
    model = build_model(panel, attention)
    batch = BatchSource(model, panel).batch(np.array([SNAPSHOTS + TRAINED - 1]))
    rows[0]["peak MiB"] = peak_mib()
    rows += forward_and_step(model, batch, model.config.n_tokens)
    about = f"{attention}, two layers of width 32, one window, float32, {torch.get_num_threads()} thread(s)."
    text = f"# 100,000 tokens of an order book\n\n{machine_line(describe_machine())}\n{about}\n\n{passes_table(rows)}\n"
    write_text(RESULT, text)
    print(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
