"""Learning rates as pure functions of the step and of the losses so far: a resumed run takes the same steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from longtape.training.config import TrainingConfig

ONECYCLE_FLOOR = 1e-3


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every step of a training run."""

    config: TrainingConfig
    steps_per_epoch: int

    def rate(self, step: int, losses: Sequence[float]) -> float:
        """The rate at `step` (counted over all epochs); `losses` are the validation losses measured before it."""
        return self.config.learning_rate * self.factor(step, losses)

    def factor(self, step: int, losses: Sequence[float] = ()) -> float:
        """What the learning rate is multiplied by: it rises for the warm-up's share of the steps, then the schedule
        falls.
        """
        rise = self.config.warmup * self.total
        if step < rise:
            return (step + 1) / (rise + 1)
        return _FALLS[self.config.schedule](self, step, losses)

    @property
    def total(self) -> int:
        """Steps of all epochs."""
        return self.config.epochs * self.steps_per_epoch

    def fallen(self, step: int) -> float:
        """Share [0, 1] of the steps after the warm-up that are done."""
        rise = self.config.warmup * self.total
        return min(1.0, (step - rise) / max(1.0, self.total - rise))


def _half_cosine(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * share))


def _onecycle(schedule: Schedule, step: int, losses: Sequence[float]) -> float:
    """To a thousandth along a half cosine (Smith and Topin 2018)."""
    return ONECYCLE_FLOOR + (1 - ONECYCLE_FLOOR) * _half_cosine(schedule.fallen(step))


def _cosine(schedule: Schedule, step: int, losses: Sequence[float]) -> float:
    """To zero along a half cosine (Loshchilov and Hutter 2017)."""
    return _half_cosine(schedule.fallen(step))


def _cosine_restarts(schedule: Schedule, step: int, losses: Sequence[float]) -> float:
    """A half cosine again and again, each `restart_epochs` long (Loshchilov and Hutter 2017, SGDR)."""
    period = (schedule.config.restart_epochs or 2) * schedule.steps_per_epoch
    return _half_cosine(step % period / period)


def _plateau(schedule: Schedule, step: int, losses: Sequence[float]) -> float:
    """Half after every `plateau_epochs` losses in a row that are no better than the best before them."""
    stale, halvings, best = 0, 0, math.inf
    for loss in losses:
        stale = 0 if loss < best else stale + 1
        best = min(best, loss)
        if stale == (schedule.config.plateau_epochs or 1):
            stale, halvings = 0, halvings + 1
    return 0.5**halvings


def _halving(schedule: Schedule, step: int, losses: Sequence[float]) -> float:
    """Half after each epoch (Zhou et al. 2021, Informer)."""
    return 0.5 ** (step // schedule.steps_per_epoch)


def _constant(schedule: Schedule, step: int, losses: Sequence[float]) -> float:
    return 1.0


_FALLS: dict[str, Callable[[Schedule, int, Sequence[float]], float]] = {
    "onecycle": _onecycle,
    "cosine": _cosine,
    "cosine_restarts": _cosine_restarts,
    "plateau": _plateau,
    "halving": _halving,
    "constant": _constant,
}
