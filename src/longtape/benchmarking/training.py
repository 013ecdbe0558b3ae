"""Where the time of a training step goes: attention, feed-forward, norms, dropout, optimiser, data, rest."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from longtape.attention.base import Attention
from longtape.attention.dropout import GeluDropout
from longtape.benchmarking.data import candles
from longtape.benchmarking.machine import describe_machine, machine_line
from longtape.core.files import write_text
from longtape.features.build import FeaturesConfig, build
from longtape.features.panel import Panel
from longtape.features.scaling import Standardizer
from longtape.models.base import ModelInputs
from longtape.models.encoder import EncoderConfig, EncoderForecaster
from longtape.models.transformer import EncoderLayer
from longtape.training.batches import BatchSource
from longtape.training.config import TrainingConfig
from longtape.training.execution import Execution
from longtape.training.update import WeightUpdate

PARTS = ("attention", "feed-forward", "norms", "dropout", "optimiser", "data", "rest")


class StepClock:
    """Time within parts of a step, forward and backward, each without what it holds of another part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = time.perf_counter()

    def start(self) -> None:
        """Nothing is counted yet."""
        self.seconds, self._since = defaultdict(float), time.perf_counter()

    def stop(self) -> dict[str, float]:
        """Seconds of each part since the start."""
        self._book()
        return dict(self.seconds)

    def enter(self, part: str) -> None:
        """From now on the time is this part's."""
        self._book()
        self._open.append(part)

    def leave(self) -> None:
        """It goes back to what was open before."""
        self._book()
        self._open.pop()

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        """`enter` and `leave`."""
        self.enter(part)
        try:
            yield
        finally:
            self.leave()

    def watch(self, module: nn.Module, part: str) -> None:
        """Forward and backward of a module are this part's."""
        module.register_forward_pre_hook(lambda *_: self.enter(part))
        module.register_forward_hook(lambda *_: self.leave())
        module.register_full_backward_pre_hook(lambda *_: self.enter(part))
        module.register_full_backward_hook(lambda *_: self.leave())

    def _book(self) -> None:
        now = time.perf_counter()
        self.seconds[self._open[-1] if self._open else "rest"] += now - self._since
        self._since = now


def bench(
    attention: str = "bigbird",
    lookback: int = 512,
    d_model: int = 64,
    batch_size: int = 32,
    repeats: int = 10,
    out: Path | None = None,
    **options: Any,
) -> str:
    """Table of a step's parts, median of `repeats`; also written to `out`/training.md. `options`: of the model."""
    run = Step(attention, lookback, d_model, batch_size, options)
    for _ in range(2):  # compilation, first touches
        run.step()
    rounds = [run.step() for _ in range(repeats)]
    total = statistics.median(sum(one.values()) for one in rounds)
    lines = [
        "# A training step",
        "",
        f"{attention} over {lookback:,} bars, d {d_model}, batch {batch_size}, two layers: median of {repeats} steps,"
        f" {1e3 * total:.0f} ms ({batch_size / total:,.0f} windows/s). `longtape bench training`.",
        f"Machine: {machine_line(describe_machine())}.",
        "",
        "| part | ms | share |",
        "|---|---:|---:|",
    ]
    for part in PARTS:
        seconds = statistics.median(one.get(part, 0.0) for one in rounds)
        lines.append(f"| {part} | {1e3 * seconds:.1f} | {seconds / total:.1%} |")
    text = "\n".join(lines) + "\n"
    if out is not None:
        write_text(out / "training.md", text)
    return text


class Step:
    """A step as the training loop takes it, with a clock on its parts."""

    def __init__(
        self, attention: str, lookback: int, d_model: int, batch_size: int, options: dict[str, Any]
    ) -> None:
        torch.manual_seed(0)
        config = EncoderConfig(attention=attention, lookback=lookback, d_model=d_model, **options)
        training = TrainingConfig(batch_size=batch_size)
        panel = _panel(lookback + 4 * batch_size)
        self.model = EncoderForecaster(config, _inputs(panel)).train()
        self.source, self.size = BatchSource(self.model, panel), batch_size
        self.rows = np.arange(lookback, lookback + batch_size)
        self.execution, self.update = Execution.of(training), WeightUpdate(self.model, training)
        self.module, self.clock = self.execution.prepare(self.model), StepClock()
        for module in self.model.modules():
            part = _part_of(module)
            if part is not None:
                self.clock.watch(module, part)
            if isinstance(module, EncoderLayer):
                self.clock.watch(module.feed_forward, "feed-forward")

    def step(self) -> dict[str, float]:
        """Seconds of each part of one step. Data are made within it, which the loop does ahead in a thread."""
        clock = self.clock
        clock.start()
        with clock.within("data"):
            batch = self.source.batch(self.rows)
        self.update.backward(self.execution.loss(self.module, batch))
        with clock.within("optimiser"):
            self.update.step(1e-3)
        return clock.stop()


def _part_of(module: nn.Module) -> str | None:
    if isinstance(module, Attention):
        return "attention"
    if isinstance(module, nn.LayerNorm):
        return "norms"
    # What drops within GELU's pass belongs to the feed-forward.
    return "dropout" if isinstance(module, nn.Dropout) and not isinstance(module, GeluDropout) else None


def _panel(n: int) -> Panel:
    """One input column and one target of made-up minutes."""
    return build([candles(n)], FeaturesConfig(features=["log_return"], targets=["return(1)"]))


def _inputs(panel: Panel) -> ModelInputs:
    scaler = Standardizer.fit(panel.values, np.arange(panel.warm_up, len(panel)))
    return ModelInputs(
        panel.columns, panel.assets, panel.target_columns, panel.interval, panel.calendar,
        scaler.mean, scaler.std, np.nanstd(panel.targets, axis=0),
    )  # fmt: skip
