"""A small training run, built the same in any process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from longtape.features.build import FeaturesConfig, build
from longtape.features.panel import Panel
from longtape.models.encoder import EncoderConfig, EncoderForecaster
from longtape.training.config import TrainingConfig
from longtape.training.loop import Trainer
from longtape.training.processes import ALONE, Processes
from tests.candles import candles
from tests.models.inputs import inputs_of

ROWS, VALIDATION = np.arange(60, 400), np.arange(410, 500)


def make_panel() -> Panel:
    config = FeaturesConfig(features=["log_return", "volatility(20)"], targets=["return(6)", "volatility(6)"])
    return build([candles(700)], config)


def trainer(
    panel: Panel,
    folder: Path,
    attention: str = "bigbird",
    model: dict[str, Any] | None = None,
    processes: Processes = ALONE,
    **options: Any,
) -> Trainer:
    """One layer of width 8 over 32 bars; `options` are the training section's."""
    torch.manual_seed(3)
    block = {"block_size": 4} if attention == "bigbird" else {}
    small = {"lookback": 32, "d_model": 8, "n_heads": 2, "n_layers": 1, "dropout": 0.2, **(model or {})}
    config = EncoderConfig(attention=attention, attention_options=block, **small)
    training = TrainingConfig(**{"epochs": 3, "batch_size": 16, "patience": 9, **options})
    built = EncoderForecaster(config, inputs_of(panel, ROWS))
    where = folder / "checkpoint.safetensors"
    return Trainer(built, panel, ROWS, VALIDATION, training, 5, where, processes=processes)


def losses(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """What a history says of the numbers, not of the machine."""
    return [{k: entry[k] for k in ("epoch", "train", "validation") if k in entry} for entry in history]
