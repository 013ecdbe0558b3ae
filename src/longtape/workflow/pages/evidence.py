"""What the verdict rests on, in tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from longtape.evaluation.standing import Standing
from longtape.report.numbers import p_value, percent, significant
from longtape.report.page import Block, Section, Table
from longtape.workflow.pages.subject import Subject
from longtape.workflow.results import Results
from longtape.workflow.verdict import standings

_ABOUT = {
    "beside simple strategies": "Is it better than what anyone could do?",
    "length": "Is the record long enough?",
    "beside chance": "Could chance do it?",
    "drawn again": "How much would another draw change?",
    "costs": "What do costs leave?",
    "tries": "How many were tried?",
    "paid": "What was paid?",
    "note": "What else happened?",
}


def evidence(subject: Subject) -> Section:
    """Trading question by question, forecast by forecast, and the audit."""
    blocks: list[Block] = []
    results, judgement = subject.results, subject.results.judgement
    if judgement is not None:
        said = [("Can it be?", one) for one in _doubts(results)]
        said += [(_ABOUT[about], sentence) for about, sentence in judgement.evidence]
        rows = [{"question": about, "answer": sentence} for about, sentence in said]
        blocks.append(Table("Trading", "", rows, stacked=True))
    elif doubts := _doubts(results):
        blocks.append(Table("Can it be?", "", [{"answer": one} for one in doubts]))
    blocks.append(_forecasts(results))
    if subject.audit is not None or subject.facts:
        blocks.append(_audit(subject.audit))
    return Section("Evidence", blocks)


def _doubts(results: Results) -> list[str]:
    return list(results.doubts)


def _forecasts(results: Results) -> Table:
    rows = [_forecast_row(one, results) for one in standings(results)]
    caption = (
        "Every window of the test period is scored, beside the best of the baselines by its headline score."
    )
    return Table("Forecasts", caption, rows, shown=14, stacked=True)


def _forecast_row(one: Standing, results: Results) -> dict[str, Any]:
    covered = [row for row in results.coverage if f"{row['symbol']} {row['target']}" == one.name]
    level = results.coverage[0]["level"] if results.coverage else 0.0
    shares = [row["coverage"] for row in covered if row["level"] == level]
    held = percent(sum(shares) / len(shares)) if shares else "–"
    sure = one.is_scored and one.is_sure and not one.is_tie
    return {
        "forecast": one.name,
        "score": one.measure,
        "longtape": significant(one.own),
        "best baseline": one.baseline or "–",
        "its score": significant(one.best),
        "p": p_value(one.p_value),
        **({f"inside {percent(level, 0)}": held} if results.coverage else {}),
        "reads as": "as good"
        if one.is_tie
        else one.words.replace(" of the best baseline", "").replace(" the best baseline", ""),
        "tone": ("good" if one.ahead else "bad") if sure else "neutral",
    }


def _audit(found: Mapping[str, Any] | None) -> Table:
    caption = "The data are cut and changed after many times, and the first bars too; what was decided must not move."
    if found is None:
        return Table("Audit for look-ahead", "Not audited; longtape audit does it.", [])
    rows = [
        {
            "question": check["question"],
            "answer": "passed" if check["passed"] else "FAILED",
            "numbers compared": check["compared"],
            "found": "; ".join(check["findings"]) or "nothing",
            "tone": "good" if check["passed"] else "bad",
        }
        for check in found["checks"]
    ]
    passed = f"All {len(rows)} questions passed. " if found["passed"] else ""
    return Table("Audit for look-ahead", passed + caption, rows, shown=0 if passed else len(rows))
