"""Scores of classes from the table of what came against what was foreseen. NumPy arrays [n] in."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def confusion(actual: npt.NDArray[np.generic], foreseen: npt.NDArray[np.generic], classes: int) -> Array:
    """Counts [M, M]: row = the class that came, column = the class that was foreseen."""
    cells = actual.astype(np.int64) * classes + foreseen.astype(np.int64)
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes).astype(np.float64)


def f1_scores(table: Array) -> Array:
    """F1 of each class [M]: 2·hits / (came + foreseen) (van Rijsbergen 1979); 0 for one never met and never named."""
    hits, met = np.diag(table), table.sum(axis=0) + table.sum(axis=1)
    return np.divide(2 * hits, met, out=np.zeros(len(table)), where=met > 0)


def macro_f1(table: Array) -> float:
    """The mean of the classes' F1."""
    return float(f1_scores(table).mean())


def weighted_f1(table: Array) -> float:
    """The mean of the classes' F1, each by how often the class came."""
    return float(f1_scores(table) @ table.sum(axis=1) / table.sum())


def matthews(table: Array) -> float:
    """Matthews' correlation of what came with what was foreseen, in [−1, 1] (Gorodkin 2004); 0 for a constant."""
    came, foreseen, total = table.sum(axis=1), table.sum(axis=0), table.sum()
    spread = (total**2 - foreseen @ foreseen) * (total**2 - came @ came)
    return float((np.trace(table) * total - came @ foreseen) / np.sqrt(spread)) if spread > 0 else 0.0
