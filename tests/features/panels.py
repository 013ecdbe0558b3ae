"""Small panels with a clock, features that name their row, and labels that know their end."""

from __future__ import annotations

import numpy as np

from longtape.core.clock import HOUR, Interval, to_milliseconds
from longtape.features.panel import Column, Panel, TargetColumn

START = to_milliseconds("2024-01-01")


def counting_panel(
    n: int, horizon: int = 3, warm_up: int = 2, columns: int = 2, values: np.ndarray | None = None
) -> Panel:
    """Hourly; feature c of row t is t + c/10, its label −t, known `horizon` bars later."""
    rows = np.arange(n)
    if values is None:
        values = (rows[:, None] + np.arange(columns) / 10).astype(np.float32)
        values[:warm_up] = np.nan
    known = rows < n - horizon
    return clocked_panel(
        START + HOUR * rows, values, np.where(known, -rows, np.nan)[:, None], horizon, warm_up
    )


def clocked_panel(
    timestamps: np.ndarray, values: np.ndarray, targets: np.ndarray, horizon: int = 1, warm_up: int = 0
) -> Panel:
    """A panel on a given clock; a label ends when the bar `horizon` rows later is known."""
    n, interval = len(timestamps), Interval.parse("1h")
    known_at = timestamps + HOUR
    later = np.concatenate([known_at, known_at[-1] + HOUR * np.arange(1, horizon + 1)])
    return Panel(
        timestamps=timestamps,
        known_at=known_at,
        values=values,
        ordinals=timestamps // HOUR,
        columns=tuple(Column(None, f"f{c}") for c in range(values.shape[1])),
        present=np.ones((n, 1), bool),
        targets=targets,
        target_columns=(TargetColumn(f"return({horizon})", "return", "AAA", horizon),),
        target_ends=later[horizon : horizon + n][:, None],
        assets=("AAA",),
        interval=interval,
        calendar="24/7",
        warm_up=warm_up,
        closes=np.ones((n, 1)),
        calendar_values=np.zeros((n + horizon, 1), np.float32),
    )
