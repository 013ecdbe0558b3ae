"""Figures of a search over configurations, from one row for each trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from longtape.report.charts import Chart, Marks, Series


def search_history(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """Validation loss of every trial (a ring where it was pruned) and the best so far."""
    numbers = np.array([row["trial"] for row in rows], float)
    losses = np.array([row["validation"] for row in rows], float)
    pruned = np.array([bool(row["pruned"]) for row in rows])
    marks = [
        Marks("trial", numbers[~pruned], losses[~pruned], "c2", size=3.5),
        Marks("pruned", numbers[pruned], losses[pruned], "c2", "ring", size=3.5),
    ]
    best = Series("best so far", np.minimum.accumulate(losses), "accent", width=2.0)
    every = Series("", losses, "muted", width=0.0)  # the axis reaches all trials
    return Chart(
        numbers, "validation loss", [best, every], marks=[m for m in marks if len(m.x)], x_title="trial"
    )


def search_slice(rows: Sequence[Mapping[str, Any]], field: str) -> Chart:
    """Validation loss against the value of one searched field."""
    values = [row[field] for row in rows]
    losses = np.array([row["validation"] for row in rows], float)
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    names = sorted({str(value) for value in values})
    places = np.array(values if numeric else [names.index(str(value)) for value in values], float)
    low, high = losses.min(), losses.max()
    room = 0.08 * (high - low) or 0.5
    x = np.unique(places) if numeric else names
    return Chart(x, "validation loss", marks=[Marks("trial", places, losses, "accent", size=4.0)], x_title=field,
                 y_range=(low - room, high + room), height=240)  # fmt: skip
