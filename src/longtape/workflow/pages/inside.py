"""The part of a page on training and on what the model looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from longtape.report import inside_figures as draw
from longtape.report.numbers import duration, fixed
from longtape.report.page import Bar, Bars, Block, Figure, Grid, Heat, Section, Table
from longtape.workflow.inside import Inside
from longtape.workflow.pages.subject import Subject

_COMPARED = ("target", "attention", "lookback", "loss", "± seeds", "difference", "p, Holm", "training s",
             "ms a forecast", "memory MB")  # fmt: skip


def inside(subject: Subject) -> Section:
    """Attention, occlusion, learning curve, and a comparison of context lengths where one was made."""
    blocks: list[Block] = [] if subject.inside is None else _looked_at(subject.inside)
    blocks += _learning(subject.histories)
    blocks += [] if subject.compared is None else compared(subject.compared)
    return Section("Inside", blocks)


def _looked_at(found: Inside) -> list[Block]:
    blocks = [*_history(found), *_most(found), *_occlusion(found), *_maps(found)]
    seconds = duration(max(found.seconds, 0.1))
    cost = f"A quick look over {found.windows} windows, which took {seconds}; longtape explain looks longer."
    rows = [{"not shown": name, "because": reason} for name, reason in found.missing.items()]
    return [*blocks, Table("Not for this model", cost, rows) if rows else Table("", cost, [])]


def _history(found: Inside) -> list[Block]:
    if not found.newest or len(found.newest[0]) < 2:
        return []
    back = [one[::-1] for one in found.newest]
    chart = draw.attention_to_history(
        np.arange(len(back[0]), dtype=float), back, 1 / np.count_nonzero(np.sum(back, 0))
    )
    caption = (
        "How the newest bar spreads its attention over its past, heads averaged. Dashed: all bars alike."
    )
    return [Figure("Attention to history", caption, chart)]


def _most(found: Inside) -> list[Block]:
    if found.reached is None or found.times is None or found.closes is None:
        return []
    caption = "The newest window; larger dots: more of that bar reaches the forecast (attention rollout)."
    chart = draw.most_attended(found.times, found.closes, found.reached)
    rows = [
        {("share %" if k == "share" else k): 100 * v if k == "share" else v for k, v in row.items()}
        for row in found.most
    ]
    told = "And how large their return, range and volume are among those of the window (1: the largest)."
    return [Figure("Most attended bars", caption, chart), Table("", told, rows)]


def _occlusion(found: Inside) -> list[Block]:
    if not found.occlusion:
        return []
    largest = max(abs(row["effect"]) for row in found.occlusion)
    decimals = max(0, 2 - int(np.floor(np.log10(largest)))) if largest else 0
    bars = [
        Bar(f"{row['without']} back", row["effect"], fixed(row["effect"], decimals), row["from"], row["to"],
            "accent" if row["from"] > 0 else "muted")
        for row in found.occlusion
    ]  # fmt: skip
    if not any(row["effect"] for row in found.occlusion):
        nothing = "Whatever bars are taken away, no loss changes: what was kept of the model does not read the window."
        return [Table("Occlusion by distance", nothing, [])]
    caption = (
        f"By how much the loss of {found.windows} windows rises when these bars are taken away, with its 95 % interval;"
        " coloured where it is above zero."
    )
    return [Bars("Occlusion by distance", caption, bars)]


def _maps(found: Inside) -> list[Block]:
    maps, places = dict(list(found.maps.items())[:12]), found.places
    across = "looked at, the newest at the right"
    caption = f"Down: who looks, the newest at the bottom; across: {across}. Stronger colour: more."
    blocks: list[Block] = [Heat("Attention maps", caption, maps)] if maps else []
    if places:
        named = ", ".join(found.names) if len(found.names) <= 12 else f"{found.names[0]} to {found.names[-1]}"
        blocks.append(
            Heat("Who looks at whom", f"In this order: {named}. Down: who looks; across: at whom.", places)
        )
    return blocks


def _learning(histories: Sequence[Sequence[Mapping[str, float]]]) -> list[Block]:
    caption = "Mean loss over the targets. Epoch 0 is the closed-form baseline from which the network starts."
    figures = [
        Figure("Learning curve" + (f", seed {n + 1}" if n else ""), caption, draw.learning_curve(history))
        for n, history in enumerate(histories)
        if len(history) > 1
    ]
    return [Grid(figures)] if len(figures) > 1 else list(figures)


def compared(found: Mapping[str, Any]) -> list[Block]:
    """Loss by lookback and mechanism for each target, what training took, and the table."""
    rows = found["rows"]
    targets = list(dict.fromkeys(row["target"] for row in rows))
    figures = [
        Figure(f"Context lengths: loss of {name}", "Mean over seeds with its deviation; dashed: the best baseline.",
               draw.context_lengths([row for row in rows if row["target"] == name], "loss"))
        for name in targets[:6]
    ]  # fmt: skip
    of_first = [row for row in rows if row["target"] == targets[0]]
    time = Figure(
        "Context lengths: time", "Seconds of training.", draw.context_lengths(of_first, "training s")
    )
    told = [{name: row.get(name) for name in _COMPARED} for row in rows]
    return [Grid([*figures, time]), Table("Context lengths compared", " ".join(found["notes"]), told)]
