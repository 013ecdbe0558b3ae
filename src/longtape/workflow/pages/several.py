"""The page of several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import yaml

from longtape.backtest.metrics import drawdowns
from longtape.core.documents import differing, flattened
from longtape.core.errors import UserError
from longtape.evaluation import errors
from longtape.evaluation.standing import Standing
from longtape.evaluation.statistics import diebold_mariano
from longtape.features.target_kinds import target_kind
from longtape.report import inside_figures, trading_figures
from longtape.report.numbers import percent, significant
from longtape.report.page import Block, Figure, Grid, Page, Section, Table, Tone, Verdict, write
from longtape.workflow.pages.facts import quality
from longtape.workflow.pages.inside import compared
from longtape.workflow.pages.subject import Subject
from longtape.workflow.pages.top import data_table
from longtape.workflow.verdict import standings, verdicts

Named = Mapping[str, Subject]
Times = npt.NDArray[np.datetime64]
_MOST = 12


def write_side_by_side(
    path: str | Path, subjects: Named, comparisons: Sequence[Mapping[str, Any]] = ()
) -> Path:
    """Write the page of runs by name, in order: the others are held against the first. UserError for too many."""
    if len(subjects) > _MOST:
        raise UserError(f"report: {len(subjects)} runs do not fit side by side; name at most {_MOST}")
    first = next(iter(subjects))
    asked = f"{len(subjects)} runs: {', '.join(subjects)}. The first, {first}, is what the others are held against."
    sections = [
        Section("Forecasts", _forecasts(subjects)),
        Section("Trading", _trading(subjects)),
        Section("Inside", [*_learning(subjects), *(block for one in comparisons for block in compared(one))]),
        Section("Data and runs", _data(subjects)),
    ]
    return write(
        path,
        Page(
            "Runs side by side",
            asked,
            _verdicts(subjects),
            [_table(subjects), *_what_differs(subjects)],
            sections,
        ),
    )


def _verdicts(subjects: Named) -> list[Verdict]:
    """The sentence of each run on trading and forecasts, as one card."""
    cards = []
    for name, one in subjects.items():
        said = verdicts(one.results, one.audit)
        tones = [verdict.tone for verdict in said]
        tone: Tone = "bad" if "bad" in tones else "good" if "good" in tones else "neutral"
        cards.append(Verdict(name, " ".join(verdict.sentence for verdict in said), tone))
    return cards


def _table(subjects: Named) -> Table:
    return Table("Runs", "", [_row(name, one) for name, one in subjects.items()], shown=_MOST)


def _row(name: str, one: Subject) -> dict[str, Any]:
    account, stands = one.results.account, standings(one.results)
    row: dict[str, Any] = {"run": name, "symbols": ", ".join(one.experiment.data.symbols[:4]),
                           "better than baselines": _count(stands, True), "worse": _count(stands, False),
                           "of forecasts": len(stands)}  # fmt: skip
    if account is not None:
        m = account.metrics
        of_a_year = {} if account.is_short else {"annual return %": 100 * m["annual_return"]}
        row |= {"total return %": 100 * m["total_return"], **of_a_year, "Sharpe": m["sharpe"],
                "± s.e.": m["sharpe_standard_error"], "max drawdown %": 100 * m["max_drawdown"]}  # fmt: skip
    return row


def _count(stands: Sequence[Standing], ahead: bool) -> int:
    return sum(one.is_scored and one.is_sure and not one.is_tie and one.ahead == ahead for one in stands)


def _what_differs(subjects: Named) -> list[Block]:
    documents = [flattened(yaml.safe_load(one.experiment.to_yaml())) for one in subjects.values()]
    fields = differing(documents)
    rows = [
        {"field": field, **{name: _short(d.get(field)) for name, d in zip(subjects, documents, strict=True)}}
        for field in fields
    ]
    return [Table("What differs between the experiments", "", rows, shown=8)] if rows else []


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else "–" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _forecasts(subjects: Named) -> list[Block]:
    """A table for each forecast that more than one run makes, and a line for those of one run alone."""
    names = list(dict.fromkeys(name for one in subjects.values() for name in one.results.skills))
    blocks: list[Block] = []
    for name in names:
        made = {run: one for run, one in subjects.items() if name in one.results.skills}
        rows = [_forecast_row(run, one, name, made) for run, one in made.items()]
        caption = "Each beside its own best baseline; p: Diebold–Mariano against the first run, on what both forecast."
        blocks.append(Table(name, caption if len(made) > 1 else "Of one run alone.", rows))
    return blocks


def _forecast_row(run: str, one: Subject, name: str, made: Named) -> dict[str, Any]:
    stands = next(found for found in standings(one.results) if found.name == name)
    covered = [row for row in one.results.coverage if f"{row['symbol']} {row['target']}" == name]
    first = next(iter(made))
    p = None if run == first else _p_value(made[first].results.forecasts, one.results.forecasts, name)
    return {
        "run": run,
        "score": stands.measure,
        "its own": significant(stands.own),
        "best baseline": stands.baseline or "–",
        "the baseline's": significant(stands.best),
        "reads as": stands.words.replace(" of the best baseline", "").replace(" the best baseline", ""),
        **(
            {"coverage": f"{percent(covered[0]['coverage'])} of {percent(covered[0]['level'], 0)}"}
            if covered
            else {}
        ),
        **({"p, differs from the first": p} if len(made) > 1 else {}),
    }


def _p_value(first: pl.DataFrame, other: pl.DataFrame, name: str) -> float | None:
    """Of equal loss on the labels that both forecast; None where there are too few, or where they are of two kinds."""
    mine, theirs = (_losses(frame, name) for frame in (first, other))
    both = mine.join(theirs, on=["known_at", "horizon"], suffix=" of the other", how="inner")
    if not both.height or both["kind"][0] != both["kind of the other"][0]:
        return None
    horizon = max(both["horizon"].to_list())
    means = both.group_by("known_at", maintain_order=True).agg(pl.col("loss", "loss of the other").mean())
    if means.height <= 2 * horizon:
        return None
    return diebold_mariano(means["loss of the other"], means["loss"], horizon=horizon).p_value


def _losses(forecasts: pl.DataFrame, name: str) -> pl.DataFrame:
    symbol, target = name.split(" ", 1)
    known = forecasts.filter(
        (pl.col("symbol") == symbol) & (pl.col("target") == target) & pl.col("actual").is_not_null()
    )
    kind = target_kind(known["kind"][0]) if known.height else None
    if kind is None:
        return known.select("known_at", "horizon", "kind", loss=pl.lit(None, pl.Float64))
    forecast = errors.class_shares(known, kind.classes) if kind.classes else known["mean"].to_numpy()
    loss = kind.loss(known["actual"].to_numpy(), forecast)
    return (
        known.select("known_at", "horizon", "kind")
        .with_columns(loss=pl.Series(loss))
        .unique(["known_at", "horizon"], maintain_order=True)
    )


def _trading(subjects: Named) -> list[Block]:
    accounts = {
        name: one.results.account for name, one in subjects.items() if one.results.account is not None
    }
    if not accounts:
        return []
    clock = np.unique(np.concatenate([one.clock for one in accounts.values()]))
    at = clock.astype("datetime64[ms]")
    curves = {
        name: _on(clock, one.clock, one.history.equity / one.initial_capital)
        for name, one in accounts.items()
    }
    falls = {
        name: _on(clock, one.clock, np.append(0.0, drawdowns(one.returns))) for name, one in accounts.items()
    }
    lines = trading_figures.several(at, {name: 100 * y for name, y in falls.items()}, "drawdown, %")
    note = "Each from the start of its own test period; costs and leverage are each run's own."
    return [
        Figure("Equity", note, trading_figures.equity(at, curves, None)),
        Figure("Drawdown", "Loss from the highest equity so far.", lines),
    ]


def _on(
    clock: npt.NDArray[np.int64], own: npt.NDArray[np.int64], y: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """A course on a longer clock: the value last known, NaN outside of its period."""
    place = np.searchsorted(own, clock, side="right") - 1
    inside = (place >= 0) & (clock <= own[-1])
    return np.where(inside, y[np.maximum(place, 0)], np.nan)


def _learning(subjects: Named) -> list[Block]:
    figures = [
        Figure(f"Learning curve of {name}", "", inside_figures.learning_curve(one.histories[0]))
        for name, one in subjects.items()
        if one.histories and len(one.histories[0]) > 1
    ]
    return [Grid(figures)] if figures else []


def _data(subjects: Named) -> list[Block]:
    distinct = {rows.fingerprint(): rows for one in subjects.values() for rows in one.bars}
    whole_days = all(one.whole_days for one in subjects.values())
    return [data_table(list(distinct.values()), whole_days), quality(list(distinct.values()))]
