"""The picture of a comparison: error, time and memory against lookback and mechanism."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from longtape.report.palette import INK, MUTED, PALETTE

_COSTS = ("training s", "ms a forecast", "memory MB")


def comparison(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """A panel for the loss of each target, the best baseline as a dotted line, and one for each cost. Rows: target,
    attention, lookback (none: a baseline), loss, ± seeds, and costs.
    """
    targets = list(dict.fromkeys(row["target"] for row in rows))
    names = [*targets, *_COSTS]
    across = min(3, len(names))
    down = -(-len(names) // across)
    figure = Figure(figsize=(4.2 * across, 3.2 * down), layout="constrained")
    panels = list(np.ravel(figure.subplots(down, across, squeeze=False)))
    for axes, name in zip(panels, names, strict=False):
        if name in targets:
            _draw(axes, [row for row in rows if row["target"] == name], "loss", f"loss of {name}")
        else:
            _draw(axes, [row for row in rows if row["target"] == targets[0]], name, name)
            axes.set_yscale("log")
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    panels[0].legend(fontsize=7, frameon=False)
    return figure


def _draw(axes: Axes, rows: Sequence[Mapping[str, Any]], value: str, title: str) -> None:
    settings = [row for row in rows if row.get("lookback") is not None]
    for color, name in zip(PALETTE * 9, dict.fromkeys(row["attention"] for row in settings), strict=False):
        own = [row for row in settings if row["attention"] == name and row.get(value) is not None]
        spread = [row["± seeds"] or 0.0 for row in own] if value == "loss" else None
        x, y = [row["lookback"] for row in own], [row[value] for row in own]
        axes.errorbar(x, y, yerr=spread, fmt="o-", color=color, markersize=4, capsize=2, label=name)
    baselines = [row for row in rows if row.get("lookback") is None]
    if value == "loss" and baselines:
        best = min(baselines, key=lambda row: row["loss"])
        axes.axhline(best["loss"], color=MUTED, linestyle=":", linewidth=1)
        axes.annotate(
            best["attention"], (1, best["loss"]), xycoords=("axes fraction", "data"), fontsize=6, ha="right"
        )
    lookbacks = sorted({row["lookback"] for row in settings})
    axes.set_xscale("log", base=2)
    axes.set_xticks(lookbacks, [f"{n:,}" for n in lookbacks], fontsize=8)
    axes.minorticks_off()
    axes.set_title(title, fontsize=9, loc="left", color=INK)
    axes.set_xlabel("lookback, bars", fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
