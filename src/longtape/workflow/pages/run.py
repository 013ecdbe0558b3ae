"""The page of a run, and that of a walk forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longtape.report.four_panels import four_panels
from longtape.report.page import Page, Section, Table, refuse_ending, write
from longtape.report.pictures import save
from longtape.workflow.pages.evidence import evidence
from longtape.workflow.pages.facts import data_and_run
from longtape.workflow.pages.forecasts import forecasts
from longtape.workflow.pages.inside import inside
from longtape.workflow.pages.subject import Subject
from longtape.workflow.pages.top import asked, top
from longtape.workflow.pages.trading import trading
from longtape.workflow.verdict import verdicts


def write_report(path: str | Path, subject: Subject) -> Path:
    """Write the page of a run and, where it trades, the four-panel figure beside it (PNG, SVG); returns the page."""
    return _write(path, subject, subject.experiment.name, [])


def write_walk_report(path: str | Path, subject: Subject, folds: Sequence[Mapping[str, Any]]) -> Path:
    """Write the page of a walk forward; returns its path."""
    caption = "Scaler, threshold and model are fitted inside each fold; every window is forecast once, out of sample."
    section = Section("Folds", [Table("", caption, folds, shown=20)])
    return _write(path, subject, f"{subject.experiment.name}, walked forward", [section])


def _write(path: str | Path, subject: Subject, title: str, further: Sequence[Section]) -> Path:
    refuse_ending(path)
    parts = [evidence, forecasts, trading, inside, data_and_run]
    sections = [part(subject) for part in parts]
    page = Page(
        title, asked(subject), verdicts(subject.results, subject.audit), top(subject), [*sections, *further]
    )
    written = write(path, page)
    _draw_panels(written, subject)
    return written


def _draw_panels(path: Path, subject: Subject) -> None:
    judgement = subject.results.judgement
    if judgement is None:
        return
    result, others = judgement.result, judgement.benchmarks
    figure = four_panels(
        result.equity, {name: one.equity for name, one in others.items() if name == "buy & hold"}, result.metrics,
        short=result.is_short, title=subject.experiment.name,
    )  # fmt: skip
    for ending in (".png", ".svg"):
        save(figure, path.with_suffix(ending))
