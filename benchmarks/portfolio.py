"""100 assets × 2,048 bars as one sequence of 204,800 tokens.

    python benchmarks/portfolio.py [MECHANISM]

Prints seconds and the peak of memory of one forward pass and one training step of the joint portfolio model on
simulated assets, and writes benchmarks/results/portfolio.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from longtape.benchmarking.machine import describe_machine, machine_line
from longtape.benchmarking.passes import forward_and_step, passes_table
from longtape.core.files import write_text
from longtape.features.build import FeaturesConfig, build
from longtape.features.panel import Panel
from longtape.features.scaling import Standardizer
from longtape.market.sources.simulate import Simulation, simulate
from longtape.models.base import ModelInputs
from longtape.models.portfolio import Portfolio, PortfolioConfig
from longtape.training.batches import BatchSource

RESULT = Path(__file__).parent / "results" / "portfolio.md"
ASSETS, LOOKBACK, TRAINED = 100, 2_048, 100
FEATURES = FeaturesConfig(features=["log_return", "volatility(20)"], targets=["return(24)"])


def simulated() -> Panel:
    """Hourly bars of every asset, a window and some training rows long."""
    bars = [
        simulate(LOOKBACK + TRAINED + 100, Simulation(seed=n), interval="1h", symbol=f"SIM{n:03}").bars
        for n in range(ASSETS)
    ]
    return build(bars, FEATURES)


def build_model(panel: Panel, attention: str) -> Portfolio:
    """Four layers of width 128, fitted to the last of the rows."""
    train = np.arange(len(panel) - TRAINED, len(panel) - 24)
    scaler = Standardizer.fit(panel.values, np.arange(100, len(panel)))
    columns = panel.columns, panel.assets, panel.target_columns, panel.interval, panel.calendar
    config = PortfolioConfig(lookback=LOOKBACK, attention=attention, d_model=128, n_heads=2, n_layers=4)
    torch.manual_seed(0)
    inputs = ModelInputs(*columns, scaler.mean, scaler.std, np.nanstd(panel.targets, axis=0))
    model = Portfolio(config, inputs)
    model.fit(panel, train, train)
    return model


def main(attention: str = "bigbird") -> None:
    """Build, run, write."""
    panel = simulated()
    model = build_model(panel, attention)
    batch = BatchSource(model, panel).batch(np.array([len(panel) - 30]))
    rows = forward_and_step(model, batch, ASSETS * LOOKBACK)
    about = (
        f"{attention}, four layers of width 128, 2 heads, one window, {torch.get_num_threads()} thread(s)."
    )
    head = f"# {ASSETS} assets × {LOOKBACK:,} bars as one sequence"
    text = f"{head}\n\n{machine_line(describe_machine())}\n{about}\n\n{passes_table(rows)}\n"
    write_text(RESULT, text)
    print(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
