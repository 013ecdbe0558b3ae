"""The training loop: plain torch. Each step is a function of (seed, epoch, step) and of the state in the checkpoint."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor

from longtape.features.panel import Panel, Rows
from longtape.features.windows import Sampler, prefetch
from longtape.models.base import Model
from longtape.models.batch import Batch
from longtape.training.batches import BatchSource, in_blocks, in_order
from longtape.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from longtape.training.config import TrainingConfig
from longtape.training.execution import Execution
from longtape.training.guards import LossNotFinite, check_batch, step_guard
from longtape.training.interrupt import Stop, graceful_interrupt
from longtape.training.observers import Observer, Observers, StepReport, peak_memory
from longtape.training.processes import ALONE, Processes, without_sync
from longtape.training.schedule import Schedule
from longtape.training.update import WeightUpdate, under


@dataclass
class Trainer:
    """Fits a model on some origins of a panel; `fit` returns what was measured in each epoch and leaves the best
    weights in the model. Device, precision and compilation are the matter of `Execution`, the processes that share a
    batch that of `Processes`, optimiser, clipping and averaging that of `WeightUpdate`.
    """

    model: Model
    panel: Panel
    train: Rows
    validation: Rows
    config: TrainingConfig
    seed: int
    checkpoint: Path
    observers: Sequence[Observer] = ()
    processes: Processes = ALONE

    def __post_init__(self) -> None:
        self.execution = Execution.of(self.config, self.processes.local_rank)
        block = self.model.config.block
        self.blocks, self.checked = in_blocks(self.train, block), in_blocks(self.validation, block)
        self.batch_blocks = max(1, self.config.batch_size // block)
        self.sampler = Sampler(len(self.blocks), self.batch_blocks * self.config.accumulate, self.seed)
        self.steps = max(1, len(self.sampler) // self.config.stride)
        self.schedule = Schedule(self.config, self.steps)
        self.watchers = Observers(self.observers)

    def fit(self, resume: bool = False) -> list[dict[str, float]]:
        """Train to the end or to early stopping; KeyboardInterrupt after a saved checkpoint when asked to stop."""
        at = self._resumed() if resume and self.checkpoint.exists() else self._begun()
        if not self.model.is_trained:
            return at.history
        with self.watchers.watching(at, self.schedule.total, self.steps), graceful_interrupt() as stop:
            while not self._is_over(at):
                self._epoch(at, stop)
                self._judge(at)
                self._save(at)
        self.model.load_state_dict(self.best)
        self.model.eval()
        self.model.calibrate(self.source.batches(in_order(self.checked, self.config.batch_size)))
        return at.history

    def _is_over(self, at: TrainingState) -> bool:
        stale = at.epoch - at.best_epoch
        done = at.epoch >= self.config.epochs or stale >= self.config.patience
        return self._agreed(done or self.watchers.has_seen_enough)[0]

    def _begun(self) -> TrainingState:
        """Epoch 0 is the closed-form baseline alone: the network is kept only where it beats that."""
        self.model.fit(self.panel, self.train, self.validation)
        self._prepare()
        torch.manual_seed(self.seed + 1_000_003 * self.processes.rank)  # each process has its own dropout
        at = TrainingState(best_loss=self.validate())
        at.history.append({"epoch": 0, "validation": at.best_loss, "seconds": 0.0})
        return at

    def _resumed(self) -> TrainingState:
        self._prepare()
        state, at = load_checkpoint(self.checkpoint, self.processes)
        self.model.load_state_dict(under("model.", state))
        self.update.load_state(state)
        self.best = under("best.", state)
        return at

    def _prepare(self) -> None:
        self.source = BatchSource(self.model, self.panel, self.model.config.block, self.train)
        self.model.to(self.execution.device)
        self.judged = self.model
        if self.model.is_trained:
            self.update = WeightUpdate(self.model, self.config)
            self.judged = self.update.judged
            self.stepped = self.processes.wrap(self.execution.prepare(self.model))
        self.validated = self.execution.prepare(self.judged)
        self.best = self._copy()

    def _epoch(self, at: TrainingState, stop: Stop) -> None:
        self.model.train()
        started = saved = time.monotonic()
        for blocks, batch in self._batches(at.epoch, at.step):
            with step_guard(self.config, self.panel, at.epoch, at.step, blocks.ravel()):
                report = self._step(batch, blocks, at)
            at.step, at.epoch_loss = at.step + 1, at.epoch_loss + report.loss
            self.watchers.on_step(report)
            due = time.monotonic() - saved > self.config.checkpoint_seconds
            save, halt = self._agreed(due, stop.asked)
            if save or halt:
                at.seconds += time.monotonic() - started
                self._save(at)
                saved = started = time.monotonic()
            if halt:
                raise KeyboardInterrupt
        at.seconds += time.monotonic() - started

    def _step(self, batch: Batch, blocks: Rows, at: TrainingState) -> StepReport:
        number = at.epoch * self.steps + at.step
        rate = self.schedule.rate(number, at.losses)
        loss = self._backward(batch, blocks)
        norm = self.update.step(rate)
        mean = (at.epoch_loss + loss) / (at.step + 1)
        return StepReport(number, at.epoch, loss, mean, rate, norm, blocks.size)

    def _backward(self, batch: Batch, blocks: Rows) -> float:
        """Gradient of the mean loss over the step's windows, part by part; returns that loss."""
        parts = list(batch.split(-(-self.batch_blocks // self.processes.size) * blocks.shape[1]))
        counts = len(self.processes.share(blocks)) > 0  # otherwise a block stands in, and weighs nothing
        total = 0.0
        for number, part in enumerate(parts):
            with nullcontext() if number == len(parts) - 1 else without_sync(self.stepped):
                loss = self._loss(part) * (len(part) / blocks.size if counts else 0.0)
                self.update.backward(loss * self.processes.size)  # processes average their gradients
            total += float(loss.detach())
        (total,) = self.processes.sum(total)
        if not isfinite(total):
            raise LossNotFinite(total)
        return total

    def _loss(self, batch: Batch) -> Tensor:
        return self.execution.loss(self.stepped, batch)

    def _batches(self, epoch: int, start: int) -> Iterator[tuple[Rows, Batch]]:
        """The blocks of windows of each step, and this process's share of them, read ahead by a thread."""
        return prefetch(self._batch, self._order(epoch, start))

    def _batch(self, blocks: Rows) -> tuple[Rows, Batch]:
        own = self.processes.share(blocks)
        rows = (own if len(own) else blocks[:1]).ravel()
        return blocks, check_batch(self.source.batch(rows), self.panel, rows)

    def _order(self, epoch: int, start: int) -> Iterator[Rows]:
        """Blocks [n, block] of origins of each step; with a stride, so many epochs share one shuffle and visit all."""
        cycle, part = divmod(epoch, self.config.stride)
        for step in range(start, self.steps):
            at = min(step * self.config.stride + part, len(self.sampler) - 1)
            yield self.blocks[self.sampler.batch(cycle, at)]

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss over the validation windows."""
        self.judged.eval()
        self.processes.share_buffers(self.judged)
        order = list(in_order(self.checked, self.config.batch_size, self.config.validation_stride))
        total, count = 0.0, 0
        for batch in self.source.batches(order[self.processes.rank :: self.processes.size]):
            total += float(self.execution.loss(self.validated, batch)) * len(batch)
            count += len(batch)
        total, windows = self.processes.sum(total, count)
        return total / max(1, windows)

    def _judge(self, at: TrainingState) -> None:
        started = time.monotonic()
        loss = self.validate()
        at.seconds += time.monotonic() - started
        at.epoch, at.step, trained = at.epoch + 1, 0, at.epoch_loss / self.steps
        at.epoch_loss = 0.0
        at.history.append(
            {
                "epoch": at.epoch,
                "train": trained,
                "validation": loss,
                "seconds": round(at.seconds, 2),
                "peak_mib": round(peak_memory()),
            }
        )
        if loss < at.best_loss:
            at.best_loss, at.best_epoch, self.best = loss, at.epoch, self._copy()
        self.watchers.on_epoch(at.history)

    def _agreed(self, *asked: bool) -> list[bool]:
        """True where any process asks for it: all of them save, and stop, after the same step."""
        return [count > 0 for count in self.processes.sum(*asked)]

    def _save(self, at: TrainingState) -> None:
        state = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        state |= {f"best.{name}": t for name, t in self.best.items()}
        save_checkpoint(self.checkpoint, state | self.update.state(), at, self.processes)

    def _copy(self) -> dict[str, Tensor]:
        return {name: t.detach().clone() for name, t in self.judged.state_dict().items()}
