"""Errors of a model of levels over every window of a part, and its average with a closed form, horizon by horizon."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from longtape.core.arrays import Floats
from longtape.evaluation.ett import Part, Score
from longtape.evaluation.level_models import LastValueRidge
from longtape.evaluation.level_panel import Levels
from longtape.models.base import Model
from longtape.training.batches import BatchSource

_WINDOWS = 256  # forecast together


def fitted_ridge(levels: Levels) -> LastValueRidge:
    """The closed form, fitted on the training windows, its penalty chosen on validation."""
    (columns,) = levels.inputs().kinds.values()
    made = LastValueRidge(levels.lookback, levels.horizons)
    made.fit(levels.panel, columns, levels.origins("train"), levels.origins("validation"), lambda x: x)
    return made


def fitted_shares(model: Model, ridge: LastValueRidge, levels: Levels) -> dict[int, float]:
    """For each horizon the share of the model, the rest being the ridge's, that is best on validation: in [0, 1], by
    least squares of y − r on m − r over windows and steps, with the ridge's forecast r and the model's m.
    """
    along, across = dict.fromkeys(levels.horizons, 0.0), dict.fromkeys(levels.horizons, 0.0)
    for horizon, y, m, r in _forecasts(model, ridge, levels, "validation"):
        along[horizon] += float(np.vdot(y - r, m - r))
        across[horizon] += float(np.vdot(m - r, m - r))
    return {h: float(np.clip(along[h] / across[h], 0, 1)) if across[h] > 0 else 0.0 for h in levels.horizons}


def scores(
    model: Model,
    levels: Levels,
    part: Part,
    ridge: LastValueRidge | None = None,
    shares: Mapping[int, float] | None = None,
) -> dict[int, Score]:
    """Errors in scaled units at each horizon, every window of the part counted: of the model, or, with `shares` of it,
    of its average with the ridge.
    """
    squared, absolute, count = (dict.fromkeys(levels.horizons, 0.0) for _ in range(3))
    for horizon, y, m, r in _forecasts(model, ridge, levels, part):
        share = 1.0 if shares is None else shares[horizon]
        error = y - share * m - (1 - share) * r
        squared[horizon] += float(np.vdot(error, error))
        absolute[horizon] += float(np.abs(error).sum())
        count[horizon] += error.size
    return {h: Score(squared[h] / count[h], absolute[h] / count[h]) for h in levels.horizons}


@torch.no_grad()
def _forecasts(
    model: Model, ridge: LastValueRidge | None, levels: Levels, part: Part
) -> Iterator[tuple[int, Floats, Floats, Floats]]:
    """Horizon, labels, the model's and the ridge's forecasts [n, C, horizon] of some windows at a time; without a ridge
    the model's twice.
    """
    model.eval()
    source, origins = BatchSource(model, levels.panel), levels.origins(part)
    for first in range(0, len(origins), _WINDOWS):
        rows = origins[first : first + _WINDOWS]
        batch = source.batch(rows)
        own = model(batch).mean()
        other = own if ridge is None else ridge(batch.x, batch.rows)
        whole = levels.panel.targets[rows], own.numpy(), other.numpy()
        y, m, r = (one.astype(np.float64).reshape(len(rows), -1, levels.steps) for one in whole)
        for horizon in levels.horizons:
            known = np.isfinite(y[:, 0, horizon - 1])
            if known.any():
                yield horizon, *(one[known, :, :horizon] for one in (y, m, r))  # type: ignore[misc]
