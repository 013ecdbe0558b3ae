"""Learning-rate schedules as pure functions of progress, so that a resumed run takes the same steps."""

from __future__ import annotations

import math


def rate_factor(schedule: str, step: int, total: int, steps_per_epoch: int, warmup: float) -> float:
    """Factor on the learning rate at `step` of `total`.

    `onecycle`: linear rise, then cosine to 1/1000 (Smith & Topin 2018). `cosine`: the same fall to 0. `halving`: ½
    after each epoch (Informer's). `constant`: 1.
    """
    if schedule == "constant":
        return 1.0
    if schedule == "halving":
        return 0.5 ** (step // max(1, steps_per_epoch))
    rise = warmup * total
    if step < rise:
        return (step + 1) / (rise + 1)
    fall = (step - rise) / max(1.0, total - rise)
    floor = 1e-3 if schedule == "onecycle" else 0.0
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, fall)))
