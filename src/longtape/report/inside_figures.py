"""Figures of training and of what a model looked at, from plain arrays and rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from longtape.report.charts import ROLES, Array, Chart, Marks, Rule, Series, Times


def learning_curve(history: Sequence[Mapping[str, float]]) -> Chart:
    """Training and validation loss per epoch, and the epoch that was kept."""
    epochs = np.array([entry["epoch"] for entry in history], float)
    train, validation = (
        np.array([e.get(name, np.nan) for e in history], float) for name in ("train", "validation")
    )
    best = int(np.nanargmin(validation))
    lines = [
        Series("training", train, "c2", width=1.3),
        Series("validation", validation, "accent", width=2.2),
    ]
    kept = Marks("kept", epochs[best : best + 1], validation[best : best + 1], "c3", size=5.5)
    return Chart(epochs, "loss", lines, marks=[kept], x_title="epoch", height=240)


def attention_to_history(distances: Array, layers: Sequence[Array], even: float) -> Chart:
    """The newest position's weight on each bar of its past by layer, against bars back [n], ascending; `even`: the
    weight of each if it looked at all alike.
    """
    lines = [
        Series(f"layer {n + 1}", 100 * one, role)
        for n, (one, role) in enumerate(zip(layers, ROLES, strict=False))
    ]
    log = bool(min(one[one > 0].min(initial=1.0) for one in layers) * 100 < max(one.max() for one in layers))
    y = [Series(s.name, np.where(s.y > 0, s.y, np.nan) if log else s.y, s.color) for s in lines]
    rules = [Rule(100 * even, name="all alike")]
    return Chart(distances + 1, "weight, %", y, rules=rules, x_title="bars back, the newest is 1",
                 log_x=len(distances) > 32, log=log, height=260)  # fmt: skip


def most_attended(times: Times, closes: Array, share: Array) -> Chart:
    """The window's closes [n], with a dot on the bars from which most reaches the forecast. share: [n]."""
    top = np.sort(np.argsort(-share)[:40])
    largest = np.sort(share)[-2:].min() or 1.0  # the newest keeps much of itself
    size = 2 + 7 * np.sqrt(np.minimum(share[top] / largest, 1.0))
    dots = Marks("share that reaches the forecast", times[top], closes[top], "accent", size=size)
    return Chart(times, "price", [Series("close", closes, "c2", width=1.2)], marks=[dots], height=260)


def context_lengths(rows: Sequence[Mapping[str, Any]], value: str) -> Chart:
    """Loss (with its deviation over seeds) or a cost by lookback and mechanism; the best baseline dashed. Rows of one
    target: `attention`, `lookback` (none: a baseline), `loss`, `± seeds` and costs.
    """
    settings = [row for row in rows if row.get("lookback") is not None and row.get(value) is not None]
    lookbacks = sorted({int(row["lookback"]) for row in settings})
    places = np.arange(float(len(lookbacks)))
    lines, marks, ends = [], [], []
    for role, name in zip(
        ROLES * len(settings), dict.fromkeys(row["attention"] for row in settings), strict=False
    ):
        own = {int(row["lookback"]): row for row in settings if row["attention"] == name}
        y, spread = (np.array([_of(own, x, key) for x in lookbacks]) for key in (value, "± seeds"))
        reach = np.nan_to_num(spread) if value == "loss" else np.zeros(len(y))
        lines.append(Series(name, y, role))
        marks.append(Marks("", places, y, role, size=3.5, lower=y - reach, upper=y + reach))
        ends += [y - reach, y + reach]
    baselines = [row for row in rows if row.get("lookback") is None and row.get("loss") is not None]
    rules = []
    if value == "loss" and baselines:
        best = min(baselines, key=lambda row: row["loss"])
        rules = [Rule(best["loss"], name=best["attention"])]
        ends.append(np.array([best["loss"]]))
    names = [f"{one:,}" for one in lookbacks]
    return Chart(names, value, lines, marks=marks, rules=rules, x_title="lookback, bars", height=240,
                 y_range=_room_about(np.concatenate(ends)))  # fmt: skip


def _of(own: Mapping[int, Mapping[str, Any]], lookback: int, key: str) -> float:
    found = own.get(lookback, {}).get(key)
    return float("nan") if found is None else float(found)


def _room_about(values: Array) -> tuple[float, float]:
    """A range that holds all values with some room."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = 0.08 * (high - low) or 0.5
    return low - room, high + room
