"""The part of a page on forecasts."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from longtape.evaluation import errors
from longtape.features.target_kinds import WEIGHT, TargetKind, target_kind
from longtape.report import forecast_figures as draw
from longtape.report.numbers import percent
from longtape.report.page import Block, Figure, Grid, Section, Table, Tabs
from longtape.workflow.pages.subject import Subject

_TABS = 12  # symbols and targets that have figures of their own
_BARS = 90  # of the past in front of the next forecast, or three times the longest horizon


def forecasts(subject: Subject) -> Section:
    """The next prices, then skill, fan, errors and coverage of each forecast."""
    all_of_them = list(subject.targets)
    tabs: dict[str, list[Block]] = {
        f"{symbol} {target}": _of_target(subject, symbol, target, own)
        for symbol, target, own in all_of_them[:_TABS]
    }
    left = f" Figures of the first {_TABS} of {len(all_of_them)}." if len(all_of_them) > _TABS else ""
    return Section(
        "Forecasts", [*_next_prices(subject), Tabs(tabs), *_more_skill(subject, tabs)], left.strip()
    )


def _next_prices(subject: Subject) -> list[Block]:
    figures: dict[str, list[Block]] = {}
    for (symbol,), own in subject.newest.group_by("symbol", maintain_order=True):
        bars = max(_BARS, 3 * max(own["horizon"].to_list()))
        prices = subject.prices.filter(pl.col("symbol") == symbol).tail(bars)
        if prices.height > 1 and own["end"].null_count() < own.height:
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
    return Table(f"Skill: {name}", caption.strip(), subject.results.skills[name], own_first=True)


def _headline(row: dict[str, Any]) -> str:
    return "R² and hit rate: larger is better; errors and CRPS: smaller." if "hit rate" in row else ""


def _more_skill(subject: Subject, shown: dict[str, list[Block]]) -> list[Block]:
    """Skill of what has no figures."""
    return [_skill(subject, name) for name in subject.results.skills if name not in shown]


def _course(subject: Subject, kind: TargetKind, last: pl.DataFrame) -> Figure:
    horizon = "" if last["horizon"][0] == 1 else f" over {last['horizon'][0]} bars"
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
    blocks: list[Block] = [_agreement(kind, known)]
    if rows:
        caption = "Share of what happened inside the intervals; bars are bounds of a block bootstrap, dotted the level."
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
    clock = draw.errors_by_clock(*errors.by_clock(known), title)
    means = "Means of stretches of equally many forecasts."
    return Grid([
        Figure("Errors over time", means, course),
        Figure("Errors by the clock", "Bars of error as if forecasts were independent.", clock),
    ])  # fmt: skip
