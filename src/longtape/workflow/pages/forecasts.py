"""The part of a page on forecasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from longtape.evaluation import errors
from longtape.features.target_kinds import WEIGHT, TargetKind, target_kind
from longtape.report import forecast_figures as draw
from longtape.report.numbers import fixed, percent
from longtape.report.page import Block, Figure, Grid, Section, Table, Tabs
from longtape.workflow.pages.subject import Subject

_ALIKE = Table(
    "Predicted and realised",
    "All forecasts are the same: there is nothing to hold against what happened.",
    [],
)
_TABS = 12  # symbols and targets that have figures of their own
_BARS = 90  # of the past in front of the next forecast, or three times the longest horizon


def forecasts(subject: Subject) -> Section:
    """The next prices, then skill, fan, errors and coverage of each forecast."""
    all_of_them = list(subject.targets)
    alone = len(subject.experiment.data.symbols) == 1
    tabs: dict[str, list[Block]] = {
        target if alone else f"{symbol} {target}": _of_target(subject, symbol, target, own)
        for symbol, target, own in all_of_them[:_TABS]
    }
    left = f" Figures of the first {_TABS} of {len(all_of_them)}." if len(all_of_them) > _TABS else ""
    return Section(
        "Forecasts",
        [*_next_prices(subject), Tabs(tabs), *_more_skill(subject, all_of_them[_TABS:])],
        left.strip(),
    )


def _next_prices(subject: Subject) -> list[Block]:
    figures: dict[str, list[Block]] = {}
    for (symbol,), own in subject.newest.group_by("symbol", maintain_order=True):
        bars = max(_BARS, 3 * max(own["horizon"].to_list()))
        prices = subject.prices.filter(pl.col("symbol") == symbol).tail(bars)
        if prices.height > 1 and draw.price_steps(own).height:
            chart = draw.next_price(prices, own, subject.bounds)
            figures[str(symbol)] = [
                Figure(f"Next price of {symbol}", "The last closes and the newest forecast.", chart)
            ]
    return [Tabs(dict(list(figures.items())[:_TABS]))] if figures else []


def _of_target(subject: Subject, symbol: str, target: str, own: pl.DataFrame) -> list[Block]:
    kind = target_kind(own["kind"][0])
    last = own.filter(pl.col("horizon") == own["horizon"].max())
    blocks: list[Block] = [_skill(subject, f"{symbol} {target}"), _course(subject, kind, last)]
    if kind is not WEIGHT and (known := errors.with_errors(last)).height > 1:
        blocks += [_agreement_and_coverage(subject, kind, known, symbol, target), _errors(kind, known)]
    return blocks


def _skill(subject: Subject, name: str) -> Table:
    caption = "On every window of the test period. " + _headline(subject.results.skills[name][0])
    rows = [_with_intervals(row) for row in subject.results.skills[name]]
    return Table(f"Skill: {name}", caption.strip(), rows, own_first=True)


def _with_intervals(row: Mapping[str, Any]) -> dict[str, Any]:
    """A score that has an interval, in one cell with it."""
    low, high = " 2.5 %", " 97.5 %"
    told: dict[str, Any] = {name: value for name, value in row.items() if not name.endswith((low, high))}
    for name in [name for name in told if name + low in row]:
        told[name] = f"{fixed(row[name], 3)} ({fixed(row[name + low], 3)} to {fixed(row[name + high], 3)})"
    return told


def _headline(row: dict[str, Any]) -> str:
    return "R² and hit rate: larger is better; errors and CRPS: smaller." if "hit rate" in row else ""


def _more_skill(subject: Subject, left: Sequence[tuple[str, str, pl.DataFrame]]) -> list[Block]:
    """Skill of what has no figures."""
    return [_skill(subject, f"{symbol} {target}") for symbol, target, _ in left]


def _course(subject: Subject, kind: TargetKind, last: pl.DataFrame) -> Figure:
    horizon = "" if last["horizon"][0] == 1 else f" over {last['horizon'][0]} {subject.unit}"
    newest = f"The newest {min(last.height, draw.FORECASTS)} of {last.height:,}"
    if kind is WEIGHT:
        return Figure("Weights over time", "Every decision of the test period.", draw.weights_decided(last))
    if kind.classes:
        shares = errors.class_shares(last, kind.classes)
        return Figure("Forecasts and what happened", f"{newest}{horizon}.", draw.class_shares(last, shares))
    caption = f"{newest}{horizon}, at the time the label is known. Shaded: past the end of the data."
    return Figure("Forecasts and what happened", caption, draw.fan(last, subject.level))


def _agreement_and_coverage(
    subject: Subject, kind: TargetKind, known: pl.DataFrame, symbol: str, target: str
) -> Grid:
    rows = [r for r in subject.results.coverage if (r["symbol"], r["target"]) == (symbol, target)]
    blocks: list[Block] = [_agreement(kind, known)] if known["mean"].n_unique() > 1 else [_ALIKE]
    if rows:
        caption = (
            "Share of what happened that lay inside the intervals, with the bounds of a block bootstrap."
        )
        blocks.append(Figure("Coverage by horizon", caption, draw.coverage_by_horizon(rows)))
    return Grid(blocks)


def _agreement(kind: TargetKind, known: pl.DataFrame) -> Figure:
    if kind.classes:
        actual, shares = known["actual"].to_numpy(), errors.class_shares(known, kind.classes)
        names = draw.CLASSES.get(kind.classes, tuple(map(str, range(kind.classes))))
        parts = {n: errors.by_forecast(shares[:, m], (actual == m) * 1.0) for m, n in enumerate(names)}
        caption = "Groups of a tenth of the forecasts each, by the probability that was said."
        return Figure("Said and realised", caption, draw.reliability(parts))
    groups = errors.by_forecast(known["mean"].to_numpy(), known["actual"].to_numpy())
    beyond = float(np.mean(np.sign(known["mean"].to_numpy()) == np.sign(known["actual"].to_numpy())))
    said = f" {percent(beyond)} have the right sign." if kind.traded else ""
    caption = f"A dot for each forecast; on the dashed line it came as forecast.{said}"
    log = kind.error == "log ratio"
    return Figure("Predicted and realised", caption, draw.predicted_against_realised(known, groups, log))


def _errors(kind: TargetKind, known: pl.DataFrame) -> Grid:
    title = (
        "log loss"
        if kind.classes
        else "|ln(actual / forecast)|"
        if kind.error == "log ratio"
        else "|error|, %"
    )
    beside = "all classes alike" if kind.classes else "forecast of zero" if kind.error == "difference" else ""
    if kind.error == "difference":
        known = known.with_columns(pl.col("error", "beside") * 100)
    course = draw.errors_over_time(errors.over_time(known), title, beside)
    blocks: list[Block] = [
        Figure("Errors over time", "Means of stretches of equally many forecasts.", course)
    ]
    names, mean, reach = errors.by_clock(known)
    if len(names) > 1:
        clock = draw.errors_by_clock(names, mean, reach, title)
        blocks.append(Figure("Errors by the clock", "Bars of error as if forecasts were independent.", clock))
    return Grid(blocks)
