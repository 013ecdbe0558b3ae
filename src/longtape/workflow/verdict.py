"""One sentence for the trading and one for the forecasts of a run, and by which colour they are said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from longtape.backtest.benchmarks import HOLD
from longtape.backtest.judgement import ONE_SIDED, Judgement
from longtape.backtest.result import BacktestResult
from longtape.evaluation.standing import Standing, standing
from longtape.report.numbers import change, duration, fixed, p_value, percent, ratio, significant
from longtape.report.page import Tone, Verdict
from longtape.workflow.results import Results

_YEAR = 365.25 * 86_400


def verdicts(results: Results, audit: Mapping[str, Any] | None) -> list[Verdict]:
    """Trading and forecasts; in front of them what makes them hard to believe, where nothing is good then."""
    said = [_trading(results), _forecasts(results)]
    if results.doubts:
        said = [replace(one, tone="neutral") if one.tone == "good" else one for one in said]
        said.insert(0, Verdict("Doubt", results.doubts[0], "bad"))
    if audit is not None and not audit["passed"]:
        failed = ", ".join(check["name"] for check in audit["checks"] if not check["passed"])
        line = f"The audit failed ({failed}): something saw the future; believe nothing here before that is mended."
        said.insert(0, Verdict("Audit", line, "bad"))
    return said


def standings(results: Results) -> list[Standing]:
    """Each forecast beside its best baseline."""
    return [standing(name, rows) for name, rows in results.skills.items()]


def _trading(results: Results) -> Verdict:
    judgement = results.judgement
    if judgement is None:
        return Verdict(
            "Trading", "Nothing is traded: no target is a return that an account could follow.", "neutral"
        )
    return Verdict("Trading", *_account_line(judgement))


def _account_line(judgement: Judgement) -> tuple[str, Tone]:
    result, standing = judgement.result, judgement.standing
    if standing == "never traded":
        return "The strategy never traded: no forecast passed its threshold.", "neutral"
    hold = judgement.benchmarks[HOLD]
    beside = f"{HOLD} {_earned(hold)}"
    gained, figures = result.metrics["total_return"] > 0, _certainty(result)
    begin = f"{'Gained' if gained else 'Lost'} {_earned(result).lstrip('+−')} after costs"
    if result.sharpe_errors < -ONE_SIDED:
        return f"{begin}, more than bad luck explains ({figures}); {beside}.", "bad"
    if standing == "luck":
        return (
            f"{begin}: no edge that could be told from luck ({figures}); {beside}.",
            "neutral" if gained else "bad",
        )
    if standing == "beaten":
        return f"{begin}, but a simple rule did better ({figures}); {beside}.", "neutral"
    return f"{begin}, more than the simple rules ({figures}); {beside}. One period is one draw.", "good"


def _certainty(result: BacktestResult) -> str:
    if result.is_short:
        return f"its mean return is {fixed(result.sharpe_errors, 1)} standard errors from zero"
    return f"Sharpe {ratio(result.metrics['sharpe'])} ± {ratio(result.metrics['sharpe_standard_error'])}"


def _earned(result: BacktestResult) -> str:
    """Return a year, or, of a record of less than a month, in all."""
    if result.is_short:
        return f"{change(result.metrics['total_return'])} in {duration(result.years * _YEAR)}"
    return f"{change(result.metrics['annual_return'])} a year"


def _forecasts(results: Results) -> Verdict:
    scored = [one for one in standings(results) if one.is_scored]
    if not scored:
        return Verdict("Forecasts", "Not scored: no label of the test period is known.", "neutral")
    better = [one for one in scored if one.ahead and one.is_sure and not one.is_tie]
    worse = [one for one in scored if not one.ahead and one.is_sure and not one.is_tie]
    tone: Tone = "good" if better and not worse else "bad" if worse and not better else "neutral"
    line = "; ".join(_one(one) for one in scored) if len(scored) <= 2 else _many(scored, better, worse)
    return Verdict("Forecasts", f"{line}. {_covered(results)}".strip(), tone)


def _one(one: Standing) -> str:
    figures = f"{one.measure} {significant(one.own)} against {significant(one.best)}"
    name = one.name.split(" ", 1)[1]
    if one.is_tie:
        return f"{name} is as good as {one.baseline}, and no better ({one.measure} {significant(one.own)})"
    p = p_value(one.p_value)
    p = f"p {p}" if p.startswith("<") else f"p = {p}"
    if not one.is_sure:
        return f"{name} cannot be told from {one.baseline} ({figures}, {p})"
    return f"{name} is {'better' if one.ahead else 'worse'} than {one.baseline} ({figures}, {p})"


def _many(scored: Sequence[Standing], better: Sequence[Standing], worse: Sequence[Standing]) -> str:
    level = len(scored) - len(better) - len(worse)
    counts = [
        f"{len(better)} beat their best baseline beyond luck"
        if better
        else "none beats its best baseline beyond luck",
        *([f"{len(worse)} lose to it"] if worse else []),
        *([f"{level} cannot be told from it"] if level and (better or worse) else []),
    ]
    return f"Of {len(scored)} forecasts {', '.join(counts)}"


def _covered(results: Results) -> str:
    if not results.coverage:
        return ""
    level = results.coverage[0]["level"]
    shares = [row["coverage"] for row in results.coverage if row["level"] == level]
    low, high = percent(min(shares), 0), percent(max(shares), 0)
    return f"Its {percent(level, 0)} intervals held {low if low == high else f'{low} to {high}'} of what happened."
