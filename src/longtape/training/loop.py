"""The training loop: plain torch, one device; each step is a function of (seed, epoch, step), so it resumes exactly."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import tee
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from longtape.core.errors import UserError
from longtape.core.progress import progress
from longtape.features.windows import Sampler, Windows, prefetch
from longtape.models.forecaster import Batch, Forecaster
from longtape.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from longtape.training.config import TrainingConfig
from longtape.training.interrupt import Stop, polite_interrupt
from longtape.training.schedule import rate_factor


def batches(windows: Windows, order: Iterable[npt.NDArray[np.int64]]) -> Iterator[Batch]:
    """x [B, L, C], when [B], marks [B, G], y [B, K] of the windows that `order` names, read ahead by a thread."""
    panel, (named, read) = windows.panel, tee(order)
    for chosen, (x, y) in zip(named, prefetch(windows, read), strict=True):
        rows = windows.rows(chosen)
        when, marks = panel.known_at[rows], panel.mark_positions(rows, windows.lookback)
        yield (
            torch.from_numpy(x),
            torch.from_numpy(when),
            torch.from_numpy(marks),
            torch.from_numpy(y).float(),
        )


def in_order(n_windows: int, batch_size: int, stride: int = 1) -> Iterator[npt.NDArray[np.int64]]:
    """Every `stride`-th window, in order of time."""
    rows = np.arange(0, n_windows, stride, dtype=np.int64)
    return (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))


@dataclass
class Trainer:
    """Fits a model; `fit` returns what was measured in each epoch and leaves the best weights in the model."""

    model: Forecaster
    train: Windows
    validation: Windows
    config: TrainingConfig
    seed: int
    checkpoint: Path

    def __post_init__(self) -> None:
        if self.config.device == "cuda" and not torch.cuda.is_available():
            raise UserError("training.device: 'cuda' was named, but there is no CUDA device here")
        self.device = torch.device(self.config.device)
        self.model.to(self.device)
        kind = torch.optim.AdamW if self.config.optimizer == "adamw" else torch.optim.Adam
        self.optimizer = kind(
            self.model.parameters(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        size = self.config.batch_size * self.config.accumulate
        self.sampler = Sampler(len(self.train), size, self.seed)
        self.steps = max(1, len(self.sampler) // self.config.stride)

    def fit(self, resume: bool = False) -> list[dict[str, float]]:
        """Train to the end or to early stopping; KeyboardInterrupt after a saved checkpoint when asked to stop."""
        if resume and self.checkpoint.exists():
            best, at = load_checkpoint(self.checkpoint, self.model, self.optimizer)
        else:
            best, at = self._start()
        with polite_interrupt() as stop:
            while at.epoch < self.config.epochs and at.epoch - at.best_epoch < self.config.patience:
                self._epoch(at, best, stop)
                best = self._judge(at, best)
                save_checkpoint(self.checkpoint, self.model, self.optimizer, best, at)
        self.model.load_state_dict(best)
        self.model.eval()
        return at.history

    def _start(self) -> tuple[dict[str, Tensor], Progress]:
        """Epoch 0 is the skip alone: the network is kept only where it beats that."""
        every, checked = in_order(len(self.train), 256), in_order(len(self.validation), 256)
        self.model.fit_skips(batches(self.train, every), batches(self.validation, checked))
        torch.manual_seed(self.seed)
        at = Progress(best_loss=self.validate())
        at.history.append({"epoch": 0, "validation": at.best_loss, "seconds": 0.0})
        return self._copy(), at

    def _epoch(self, at: Progress, best: dict[str, Tensor], stop: Stop) -> None:
        self.model.train()
        started = saved = time.monotonic()
        coming = batches(self.train, self._order(at.epoch, at.step))
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

    def _save_running(self, at: Progress, best: dict[str, Tensor], seconds: float) -> None:
        at.seconds += seconds
        after = Progress(**{**vars(at), "step": at.step + 1})
        save_checkpoint(self.checkpoint, self.model, self.optimizer, best, after)

    def _order(self, epoch: int, start: int) -> Iterator[npt.NDArray[np.int64]]:
        """Windows of each step. With a stride, that many epochs in a row share one shuffle and visit every window."""
        cycle, part = divmod(epoch, self.config.stride)
        for step in range(start, self.steps):
            yield self.sampler.batch(cycle, min(step * self.config.stride + part, len(self.sampler) - 1))

    def _step(self, batch: Batch, number: int) -> float:
        config = self.config
        factor = rate_factor(config.schedule, number, config.epochs * self.steps, self.steps, config.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * factor
        total = 0.0
        parts = zip(*(t.split(config.batch_size) for t in batch), strict=True)
        for part in parts:
            loss = self._loss(*part) * (len(part[0]) / len(batch[0]))
            loss.backward()
            total += float(loss.detach())
        if not np.isfinite(total):
            raise UserError("training: the loss is not finite; lower training.learning_rate")
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def _loss(self, *batch: Tensor) -> Tensor:
        x, when, marks, y = (part.to(self.device) for part in batch)
        half = self.config.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            parameters = self.model(x, when, marks)
        return self.model.loss(parameters, y)

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss over the validation windows."""
        self.model.eval()
        order = in_order(len(self.validation), self.config.batch_size, self.config.validation_stride)
        total, count = 0.0, 0
        for batch in batches(self.validation, order):
            total += float(self._loss(*batch)) * len(batch[0])
            count += len(batch[0])
        return total / max(1, count)

    def _judge(self, at: Progress, best: dict[str, Tensor]) -> dict[str, Tensor]:
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
