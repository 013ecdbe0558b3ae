"""The head of a page: what was asked, on what data, and the newest forecasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from longtape.features.target_kinds import target_kind
from longtape.market.rows import Rows as MarketRows
from longtape.report.forecast_figures import CLASSES
from longtape.report.numbers import change, moment, money, percent, price
from longtape.report.page import Block, Table
from longtape.workflow.pages.subject import Subject

_FINGERPRINT = 12  # characters that are shown


def asked(subject: Subject) -> str:
    """One line: data, targets, model, periods."""
    experiment = subject.experiment
    data, targets = experiment.data, experiment.targets
    rows = f"bars of {data.interval}" if data.kind == "candles" else data.kind
    count = len(data.symbols)
    symbols = ", ".join(data.symbols) if count <= 6 else f"{count} symbols"
    listed = targets[0] if len(targets) == 1 else f"{', '.join(targets[:-1])} and {targets[-1]}"
    return f"{symbols}, {rows}: {listed} from {experiment.model.summary}. {_tested(subject)}"


def _tested(subject: Subject) -> str:
    known = subject.results.forecasts.filter(pl.col("actual").is_not_null())
    if not known.height:
        return "No label of the test period is known yet."
    first, last = (_moment(subject, edge) for edge in (known["known_at"].min(), known["known_at"].max()))
    return f"Tested from {first} to {last} UTC."


def _moment(subject: Subject, value: Any) -> str:
    return moment(value, subject.whole_days)


def top(subject: Subject) -> list[Block]:
    """The newest forecasts, then the data."""
    return [*_newest(subject), data_table(subject.bars, subject.whole_days)]


def data_table(bars: Sequence[MarketRows], whole_days: bool) -> Table:
    """A row for each symbol: period, rows, fingerprint."""
    rows = []
    for one in bars:
        times = one.frame["timestamp"]
        first, last = moment(times.min(), whole_days), moment(times.max(), whole_days)  # type: ignore[arg-type]
        rows.append({"data": one.symbol, "from": first, "to": last, "rows": len(one), "market": one.instrument.key,
                     "fingerprint": one.fingerprint()[:_FINGERPRINT]})  # fmt: skip
    return Table("", "", rows, shown=8)


def _newest(subject: Subject) -> list[Block]:
    newest = subject.newest
    if not newest.height:
        return []
    rows = [_row(own, subject.level) for _, own in newest.group_by("symbol", maintain_order=True)]
    made = _moment(subject, newest["known_at"].max())
    said = [
        f"Made at {made} UTC, past the end of the data{_until(subject)}.",
        _bracket(newest, subject.level),
    ]
    if newest.height > newest.select("symbol", "target").unique().height:
        said.append("Of many steps the last one.")
    return [Table("Next forecast", " ".join(filter(None, said)), rows, shown=8, stacked=True)]


def _until(subject: Subject) -> str:
    ends = subject.newest["end"].drop_nulls().unique().sort()
    return f", for {' and '.join(_moment(subject, end) for end in ends[-2:])}" if 0 < len(ends) <= 2 else ""


def _bracket(newest: pl.DataFrame, level: float) -> str:
    return (
        f"In brackets the {percent(level, 0)} interval."
        if newest["lower"].null_count() < newest.height
        else ""
    )


def _row(own: pl.DataFrame, level: float) -> dict[str, Any]:
    row: dict[str, Any] = {"symbol": own["symbol"][0], "price now": price(own["close"][0])}
    for _, steps in own.group_by("target", maintain_order=True):
        row |= _said(steps.sort("horizon").row(-1, named=True))
    return row


def _said(last: Mapping[str, Any]) -> dict[str, str]:
    """What is forecast of a target, at its longest horizon, and as a price where it can be one."""
    kind, name = target_kind(last["kind"]), str(last["target"])
    if kind.classes:
        shares = [last[f"p{m}"] for m in range(kind.classes)]
        names = CLASSES.get(kind.classes, tuple(map(str, range(kind.classes))))
        return {name: ", ".join(f"{one} {percent(p, 0)}" for one, p in zip(names, shares, strict=True))}
    if kind.name == "weight":
        return {f"{name}, weight": f"{change(last['mean'])} of equity"}
    bounds = _range(last["lower"], last["upper"], change if kind.traded else percent)
    if kind.traded:
        as_price = {} if last["price"] is None else {
            f"{name}, price": price(last["price"]) + _range(last["price_lower"], last["price_upper"], price)
        }  # fmt: skip
        return {name: change(last["mean"]) + bounds} | as_price
    return {
        name: percent(last["mean"], 2) + bounds,
        f"{name}, price": f"± {money(last['close'] * last['mean'])}",
    }


def _range(lower: float | None, upper: float | None, form: Any) -> str:
    return "" if lower is None or upper is None else f" ({form(lower)} to {form(upper)})"
