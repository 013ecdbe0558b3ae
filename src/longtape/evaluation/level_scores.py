"""Errors of a model of levels over every window of a part, horizon by horizon, and how much of it to believe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from longtape.core.arrays import Floats
from longtape.evaluation.ett import Part, Score
from longtape.evaluation.level_panel import Levels
from longtape.models.network import Network
from longtape.training.batches import BatchSource

_WINDOWS = 256  # forecast together


def fitted_gates(model: Network, levels: Levels) -> dict[int, float]:
    """For each horizon the share g in [0, 1] of what the network adds to its start that is best on validation.

    Least squares: Σ (y − s − g·d)² over windows and steps, with the start s and the addition d.
    """
    along, across = dict.fromkeys(levels.horizons, 0.0), dict.fromkeys(levels.horizons, 0.0)
    for horizon, y, start, added in _forecasts(model, levels, "validation"):
        along[horizon] += float(np.vdot(y - start, added))
        across[horizon] += float(np.vdot(added, added))
    return {h: float(np.clip(along[h] / across[h], 0, 1)) if across[h] > 0 else 0.0 for h in levels.horizons}


def scores(model: Network, levels: Levels, part: Part, gates: Mapping[int, float]) -> dict[int, Score]:
    """Errors in scaled units of start + gate · addition at each horizon, every window of the part counted."""
    squared, absolute, count = (dict.fromkeys(levels.horizons, 0.0) for _ in range(3))
    for horizon, y, start, added in _forecasts(model, levels, part):
        error = y - start - gates[horizon] * added
        squared[horizon] += float(np.vdot(error, error))
        absolute[horizon] += float(np.abs(error).sum())
        count[horizon] += error.size
    return {h: Score(squared[h] / count[h], absolute[h] / count[h]) for h in levels.horizons}


@torch.no_grad()
def _forecasts(model: Network, levels: Levels, part: Part) -> Iterator[tuple[int, Floats, Floats, Floats]]:
    """Horizon, labels, start and addition [n, C, horizon] of some windows at a time."""
    model.eval()
    source, origins = BatchSource(model, levels.panel), levels.origins(part)
    for first in range(0, len(origins), _WINDOWS):
        rows = origins[first : first + _WINDOWS]
        batch = source.batch(rows)
        starts = dict(model.starts(model.scaling(batch.x), batch.rows))
        (start,) = starts.values()
        whole = (levels.panel.targets[rows], start.flatten(1).numpy(), model(batch).mean().numpy())
        y, s, m = (one.astype(np.float64).reshape(len(rows), -1, levels.steps) for one in whole)
        for horizon in levels.horizons:
            known = np.isfinite(y[:, 0, horizon - 1])
            if known.any():
                own = [one[known, :, :horizon] for one in (y, s, m)]
                yield horizon, own[0], own[1], own[2] - own[1]
