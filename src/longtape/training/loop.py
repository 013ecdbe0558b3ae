"""The training loop: plain torch, one device; each step is a function of (seed, epoch, step), so it resumes exactly."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from longtape.core.errors import UserError
from longtape.core.progress import progress
from longtape.features.panel import Panel, Rows
from longtape.features.windows import Sampler
from longtape.models.base import Model
from longtape.models.batch import Batch
from longtape.training.batches import BatchSource, in_blocks, in_order
from longtape.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from longtape.training.config import TrainingConfig
from longtape.training.execution import Execution
from longtape.training.interrupt import Stop, graceful_interrupt
from longtape.training.schedule import rate_factor


@dataclass
class Trainer:
    """Fits a model on some origins of a panel; `fit` returns what was measured in each epoch and leaves the best
    weights in the model. Where and in which precision a step runs is the matter of `Execution`.
    """

    model: Model
    panel: Panel
    train: Rows
    validation: Rows
    config: TrainingConfig
    seed: int
    checkpoint: Path

    def __post_init__(self) -> None:
        self.execution = Execution.of(self.config)
        block = self.model.config.block
        self.blocks, self.checked = in_blocks(self.train, block), in_blocks(self.validation, block)
        size = max(1, self.config.batch_size // block) * self.config.accumulate
        self.sampler = Sampler(len(self.blocks), size, self.seed)
        self.steps = max(1, len(self.sampler) // self.config.stride)

    def fit(self, resume: bool = False) -> list[dict[str, float]]:
        """Train to the end or to early stopping; KeyboardInterrupt after a saved checkpoint when asked to stop."""
        going_on = resume and self.checkpoint.exists()
        if not going_on:
            self.model.fit(self.panel, self.train, self.validation)
        self.source = BatchSource(self.model, self.panel, self.model.config.block, self.train)
        self.model.to(self.execution.device)
        if not self.model.is_trained:
            return self._begun().history
        self.optimizer = self._build_optimizer()
        if going_on:
            best, at = load_checkpoint(self.checkpoint, self.model, self.optimizer)
        else:
            best, at = self._copy(), self._begun()
        with graceful_interrupt() as stop:
            while at.epoch < self.config.epochs and at.epoch - at.best_epoch < self.config.patience:
                self._epoch(at, best, stop)
                best = self._judge(at, best)
                save_checkpoint(self.checkpoint, self.model, self.optimizer, best, at)
        self.model.load_state_dict(best)
        self.model.eval()
        self.model.calibrate(self.source.batches(in_order(self.checked, self.config.batch_size)))
        return at.history

    def _build_optimizer(self) -> torch.optim.Optimizer:
        kind = torch.optim.AdamW if self.config.optimizer == "adamw" else torch.optim.Adam
        return kind(
            self.model.parameters(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay
        )

    def _begun(self) -> TrainingState:
        """Epoch 0 is the closed-form baseline alone: the network is kept only where it beats that."""
        torch.manual_seed(self.seed)
        at = TrainingState(best_loss=self.validate())
        at.history.append({"epoch": 0, "validation": at.best_loss, "seconds": 0.0})
        return at

    def _epoch(self, at: TrainingState, best: dict[str, Tensor], stop: Stop) -> None:
        self.model.train()
        started = saved = time.monotonic()
        coming = self.source.batches(self._order(at.epoch, at.step))
        with progress(f"epoch {at.epoch + 1}/{self.config.epochs}", self.steps, "steps") as bar:
            bar.advance(at.step)
            for step in range(at.step, self.steps):
                at.step = step
                at.epoch_loss += self._step(next(coming), at.epoch * self.steps + at.step)
                bar.advance(1, f"loss {at.epoch_loss / (at.step + 1):.4f}")
                if stop.asked or time.monotonic() - saved > self.config.checkpoint_seconds:
                    self._save_running(at, best, time.monotonic() - started)
                    saved = started = time.monotonic()
                    if stop.asked:
                        raise KeyboardInterrupt
        at.seconds += time.monotonic() - started

    def _save_running(self, at: TrainingState, best: dict[str, Tensor], seconds: float) -> None:
        at.seconds += seconds
        after = TrainingState(**{**vars(at), "step": at.step + 1})
        save_checkpoint(self.checkpoint, self.model, self.optimizer, best, after)

    def _order(self, epoch: int, start: int) -> Iterator[Rows]:
        """Origins of each step. With a stride, that many epochs in a row share one shuffle and visit every window."""
        cycle, part = divmod(epoch, self.config.stride)
        for step in range(start, self.steps):
            at = min(step * self.config.stride + part, len(self.sampler) - 1)
            yield self.blocks[self.sampler.batch(cycle, at)].ravel()

    def _step(self, batch: Batch, number: int) -> float:
        config = self.config
        factor = rate_factor(config.schedule, number, config.epochs * self.steps, self.steps, config.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * factor
        total = 0.0
        for part in batch.split(config.batch_size):
            loss = self._loss(part) * (len(part) / len(batch))
            loss.backward()
            total += float(loss.detach())
        if not np.isfinite(total):
            raise UserError("training: the loss is not finite; lower training.learning_rate")
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def _loss(self, batch: Batch) -> Tensor:
        return self.execution.loss(self.model, batch)

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss over the validation windows."""
        self.model.eval()
        order = in_order(self.checked, self.config.batch_size, self.config.validation_stride)
        total, count = 0.0, 0
        for batch in self.source.batches(order):
            total += float(self._loss(batch)) * len(batch)
            count += len(batch)
        return total / max(1, count)

    def _judge(self, at: TrainingState, best: dict[str, Tensor]) -> dict[str, Tensor]:
        started = time.monotonic()
        loss = self.validate()
        at.epoch, at.step, trained = at.epoch + 1, 0, at.epoch_loss / self.steps
        at.seconds += time.monotonic() - started
        entry = {"epoch": at.epoch, "train": trained, "validation": loss, "seconds": round(at.seconds, 2)}
        at.history.append(entry)
        at.epoch_loss = 0.0
        if loss < at.best_loss:
            at.best_loss, at.best_epoch, best = loss, at.epoch, self._copy()
        return best

    def _copy(self) -> dict[str, Tensor]:
        return {name: t.detach().clone() for name, t in self.model.state_dict().items()}
