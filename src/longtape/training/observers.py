"""Who watches a training run: the live line, the history on disk, TensorBoard. None of them changes a number."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from longtape.core.files import write_text
from longtape.core.progress import Progress
from longtape.training.checkpoint import TrainingState


@dataclass(frozen=True)
class StepReport:
    """What is known after a step."""

    number: int  # counted over all epochs
    epoch: int  # from 0
    loss: float
    mean_loss: float  # of the epoch so far
    rate: float
    gradient_norm: float  # before clipping
    windows: int


class Observer:
    """Is told of every step and every epoch; does nothing with it."""

    def begin(self, at: TrainingState, total_steps: int, steps_per_epoch: int) -> None:
        """Training begins, or goes on, at `at`."""

    def on_step(self, report: StepReport) -> None:
        """A step is done."""

    def on_epoch(self, history: Sequence[Mapping[str, float]]) -> None:
        """An epoch is validated; its entry is the last."""

    def end(self) -> None:
        """Training has ended, one way or another."""

    @property
    def has_seen_enough(self) -> bool:
        """True where training may end with the best weights so far."""
        return False


class Observers(Observer):
    """Several of them."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.observers = observers

    @contextmanager
    def watching(self, at: TrainingState, total_steps: int, steps_per_epoch: int) -> Iterator[None]:
        """From the beginning to the end, whichever it is."""
        for one in self.observers:
            one.begin(at, total_steps, steps_per_epoch)
        try:
            yield
        finally:
            for one in self.observers:
                one.end()

    @property
    def has_seen_enough(self) -> bool:
        """True where any of them has."""
        return any(one.has_seen_enough for one in self.observers)

    def on_step(self, report: StepReport) -> None:
        for one in self.observers:
            one.on_step(report)

    def on_epoch(self, history: Sequence[Mapping[str, float]]) -> None:
        for one in self.observers:
            one.on_epoch(history)


class LiveLine(Observer):
    """Loss, validation, rate, windows a second, memory and time left, on one line of the terminal."""

    def begin(self, at: TrainingState, total_steps: int, steps_per_epoch: int) -> None:
        self.total, self.done = total_steps, at.epoch * steps_per_epoch + at.step
        self.bar: Progress | None = None
        self.epochs = total_steps // max(1, steps_per_epoch)
        self.validation = at.losses[-1]
        self.windows, self.started = 0, time.monotonic()

    def on_step(self, report: StepReport) -> None:
        self.windows += report.windows
        a_second = self.windows / max(time.monotonic() - self.started, 1e-9)
        label = f"epoch {report.epoch + 1}/{self.epochs}"
        self.bar = self.bar or Progress(label, self.total, "steps", self.done)
        self.bar.label = label
        self.bar.advance(
            1,
            f"loss {report.mean_loss:.4f}  validation {self.validation:.4f}  rate {report.rate:.1e}"
            f"  {a_second:,.0f} windows/s  {peak_memory():,.0f} MiB",
        )

    def on_epoch(self, history: Sequence[Mapping[str, float]]) -> None:
        self.validation = history[-1]["validation"]

    def end(self) -> None:
        if self.bar is not None:
            self.bar.finish()


class HistoryFile(Observer):
    """One JSON line for each epoch, written when it is over; lines of other members of an ensemble stay."""

    def __init__(self, path: Path, member: int = 0) -> None:
        self.path, self.member = path, member

    def begin(self, at: TrainingState, total_steps: int, steps_per_epoch: int) -> None:
        self.on_epoch(at.history)

    def on_epoch(self, history: Sequence[Mapping[str, float]]) -> None:
        write_history(self.path, {**read_history(self.path), self.member: history})


def write_history(path: Path, histories: Mapping[int, Sequence[Mapping[str, float]]]) -> None:
    """Write the entries of every member, one JSON line each."""
    entries = [{"member": m, **entry} for m, history in sorted(histories.items()) for entry in history]
    write_text(path, "".join(json.dumps(entry) + "\n" for entry in entries))


def read_history(path: Path) -> dict[int, Sequence[Mapping[str, float]]]:
    """Entries of a history file by member; nothing where there is no file."""
    found: dict[int, list[dict[str, float]]] = {}
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        entry = json.loads(line)
        found.setdefault(entry.pop("member"), []).append(entry)
    return dict(found)


class TensorBoard(Observer):
    """Curves of every step and epoch in a folder that TensorBoard reads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, at: TrainingState, total_steps: int, steps_per_epoch: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.steps_per_epoch = steps_per_epoch
        done = at.epoch * steps_per_epoch + at.step
        # Curves of steps that a resumed run takes again are dropped.
        self.writer: Any = SummaryWriter(str(self.folder), purge_step=done or None)

    def on_step(self, report: StepReport) -> None:
        values = {"loss": report.loss, "rate": report.rate, "gradient norm": report.gradient_norm}
        for name, value in values.items():
            self.writer.add_scalar(f"step/{name}", value, report.number)

    def on_epoch(self, history: Sequence[Mapping[str, float]]) -> None:
        entry = history[-1]
        for name in ("train", "validation"):
            self.writer.add_scalar(f"epoch/{name}", entry[name], entry["epoch"] * self.steps_per_epoch)
        self.writer.flush()

    def end(self) -> None:
        self.writer.close()


def peak_memory() -> float:
    """MiB: of the GPU where one is used, otherwise the largest this process has held."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
