"""Static pictures of what a model looked at, from plain arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from longtape.report.palette import ACCENT, INK, MUTED, PALETTE, WARN

Array = npt.NDArray[np.float64]
Times = npt.NDArray[np.datetime64]


def head_maps(maps: Sequence[Array], rows: Times, columns: Times | None) -> Figure:
    """Attention of every layer (down) and head (across): maps[layer] [H, R, M], the roots of weights, newest at the
    bottom right. `columns` None: mixtures of tokens, which have no time.
    """
    heads = max(len(one) for one in maps)
    figure = Figure(figsize=(1.2 + 2.6 * heads, 0.6 + 2.5 * len(maps)), layout="constrained")
    panels = np.atleast_2d(figure.subplots(len(maps), heads, squeeze=False))
    for layer, one in enumerate(maps):
        for head in range(heads):
            axes = panels[layer, head]
            if head >= len(one):
                axes.set_axis_off()
                continue
            axes.imshow(np.sqrt(one[head]), aspect="auto", cmap="Blues", interpolation="nearest")
            axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=8)
            _time_ticks(axes, rows, columns, label=layer == len(maps) - 1)
    return figure


def _time_ticks(axes: Axes, rows: Times, columns: Times | None, label: bool) -> None:
    axes.tick_params(labelsize=6)
    places = np.linspace(0, len(rows) - 1, 4).round().astype(int)
    axes.set_yticks(places, [_short(rows[p]) for p in places])
    if columns is None:
        axes.set_xlabel("mixture", fontsize=7)
        return
    places = np.linspace(0, len(columns) - 1, 3).round().astype(int)
    axes.set_xticks(places, [_short(columns[p]) for p in places])
    if label:
        axes.set_xlabel("looked at (UTC)", fontsize=7)


def _short(time: np.datetime64) -> str:
    return str(time.astype("datetime64[m]")).replace("T", "\n")


def newest_over_time(weights: Array, made: Times, distances: Sequence[int]) -> Figure:
    """Where the newest position looked, forecast after forecast: weights [n, M] of n forecasts made at `made`, by the
    bars back of each column.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots()
    order = np.argsort(distances)
    shown = axes.imshow(
        np.sqrt(weights[:, order].T), aspect="auto", cmap="Blues", origin="lower", interpolation="nearest"
    )
    places = np.linspace(0, len(made) - 1, 5).round().astype(int)
    axes.set_xticks(places, [str(made[p].astype("datetime64[D]")) for p in places], fontsize=8)
    rows = np.linspace(0, len(order) - 1, 5).round().astype(int)
    axes.set_yticks(rows, [str(np.sort(distances)[r]) for r in rows], fontsize=8)
    axes.set_xlabel("forecast made (UTC)")
    axes.set_ylabel("bars back")
    figure.colorbar(shown, ax=axes, label="√ weight")
    return figure


def asset_grid(maps: Sequence[Array], names: Sequence[str]) -> Figure:
    """Who looks at whom: maps[layer] [A, A], the looking asset down, the one looked at across."""
    figure = Figure(figsize=(1 + 3.4 * len(maps), 3.4), layout="constrained")
    for number, (axes, one) in enumerate(
        zip(np.ravel(figure.subplots(1, len(maps), squeeze=False)), maps, strict=True)
    ):
        axes.imshow(one, cmap="Blues", vmin=0, interpolation="nearest")
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.set_title(f"layer {number + 1}", fontsize=9)
    return figure


def on_price(times: Times, closes: Array, marks: Mapping[str, Array], title: str) -> Figure:
    """The price, with a dot on some bars: marks[name] [T] is the size of the dot there, 0 for none."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots()
    _price_with_dots(axes, times, closes, marks)
    axes.set_title(title, fontsize=9, loc="left")
    return figure


def queries_on_price(times: Times, closes: Array, active: Array, m: Array, kl: Array, title: str) -> Figure:
    """Above, the price with active and lazy queries; below, M and KL of every query. active, m, kl [H, T]."""
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 2))
    share = active.mean(0)
    dots = {"active, by the share of heads": share, "lazy in every head": 0.12 * (share == 0)}
    _price_with_dots(above, times, closes, dots)
    above.set_title(title, fontsize=9, loc="left")
    for color, (name, values) in zip(
        (ACCENT, WARN), (("M", m), ("KL(uniform ‖ attention)", kl)), strict=True
    ):
        below.plot(times, values.mean(0), color=color, linewidth=1, label=name)
        below.fill_between(times, values.min(0), values.max(0), color=color, alpha=0.15, linewidth=0)
    below.set_ylabel("mean and range over heads", fontsize=8)
    below.legend(fontsize=8, frameon=False)
    return figure


def _price_with_dots(axes: Axes, times: Times, closes: Array, marks: Mapping[str, Array]) -> None:
    axes.plot(times, closes, color=MUTED, linewidth=1)
    for color, (name, sizes) in zip((ACCENT, WARN), marks.items(), strict=False):
        there = sizes > 0
        axes.scatter(
            times[there], closes[there], s=60 * sizes[there], color=color, alpha=0.6, linewidth=0, label=name
        )
    axes.legend(fontsize=8, frameon=False)
    axes.set_ylabel("price")
    locator = AutoDateLocator()
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def effect_bars(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """A bar with its interval for each row: `without`, `effect`, `from`, `to`."""
    figure = Figure(figsize=(7, 1.2 + 0.28 * len(rows)), layout="constrained")
    axes = figure.subplots()
    effect = np.array([row["effect"] for row in rows], float)
    reach = np.array([[row["effect"] - row["from"], row["to"] - row["effect"]] for row in rows], float).T
    colors = [ACCENT if row["from"] > 0 else MUTED for row in rows]
    axes.barh(range(len(rows)), effect, color=colors, alpha=0.8)
    axes.errorbar(
        effect, range(len(rows)), xerr=np.maximum(reach, 0), fmt="none", ecolor=INK, elinewidth=0.9, capsize=2
    )
    axes.set_yticks(range(len(rows)), [str(row["without"]) for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_xlabel("rise of the loss without it (95 % interval)", fontsize=8)
    axes.set_title(title, fontsize=9, loc="left")
    axes.tick_params(axis="x", labelsize=8)
    return figure


def energy_curves(curves: Sequence[Array], share: float) -> Figure:
    """Energy in the first r singular values, a line for each layer: curves[layer] [r], the mean over heads."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    for layer, curve in enumerate(curves):
        axes.plot(
            np.arange(1, len(curve) + 1),
            curve,
            color=PALETTE[layer % len(PALETTE)],
            label=f"layer {layer + 1}",
        )
    axes.axhline(share, color=MUTED, linestyle=":", linewidth=1)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("singular values")
    axes.set_ylabel("share of the energy")
    axes.legend(fontsize=8, frameon=False)
    return figure


def error_by_k(rows: Sequence[Mapping[str, Any]], tolerance: float) -> Figure:
    """Errors of attention of rank k against k: rows `k`, `best of rank k`, `random projection`."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    for color, name in zip((ACCENT, WARN), ("best of rank k", "random projection"), strict=True):
        axes.plot(
            [row["k"] for row in rows],
            [row[name] for row in rows],
            "o-",
            color=color,
            label=name,
            markersize=3,
        )
    axes.axhline(tolerance, color=MUTED, linestyle=":", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("k")
    axes.set_ylabel("relative error")
    axes.legend(fontsize=8, frameon=False)
    return figure


def pattern(weights: Array, title: str) -> Figure:
    """What queries (down) see of keys (across): weights [R, M] between 0 and 1."""
    figure = Figure(figsize=(4, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("key", fontsize=8)
    axes.set_ylabel("query", fontsize=8)
    axes.tick_params(labelsize=7)
    return figure
