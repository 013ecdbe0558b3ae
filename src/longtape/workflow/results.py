"""What a run came to: the account, what stands beside it, and how good the forecasts were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from longtape.backtest import BacktestResult
from longtape.core.clock import iso
from longtape.evaluation.skill import coverage, skill
from longtape.features.panel import Panel
from longtape.features.splits import Split
from longtape.market.bars import Bars
from longtape.models.baselines import BASELINES
from longtape.report.text import table
from longtape.workflow.pipeline import ExperimentPipeline

MODEL = "longtape"
Rows = list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Results:
    """Everything that the terminal, metrics.json and the report show of the test period."""

    account: BacktestResult
    beside: Mapping[str, BacktestResult]  # buy & hold, flat
    strategies: Rows
    skills: Mapping[str, Rows]  # "SYMBOL target" → model and baselines
    coverage: Rows
    forecasts: pl.DataFrame
    verdict: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for metrics.json; a figure that does not exist is null."""
        content = {
            "account": self.account.account,
            "metrics": self.account.metrics,
            "strategies": self.strategies,
            "skill": dict(self.skills),
            "coverage": self.coverage,
            "verdict": list(self.verdict),
        }
        plain: dict[str, Any] = _without_nan(content)
        return plain

    def text(self) -> str:
        """The results next to the baselines, and the verdict."""
        parts = [table(self.strategies, "Backtest of the test period")]
        parts += [table(rows, f"Forecast of {name}") for name, rows in self.skills.items()]
        parts += [
            table(self.coverage, "Intervals"),
            "Verdict\n" + "\n".join(f"- {line}" for line in self.verdict),
        ]
        return "\n\n".join(parts)


def judge_run(
    pipeline: ExperimentPipeline, panel: Panel, split: Split, bars: Sequence[Bars], forecasts: pl.DataFrame
) -> Results:
    """Backtest and score the forecasts of the test period."""
    first = int(panel.timestamps[split.test[0]])
    traded = [one.between(first) for one in bars if one.symbol in panel.symbols]
    account = pipeline.backtest(pipeline.weights(forecasts), traded)
    beside = {"buy & hold": _hold(pipeline, traded, 1.0), "flat": _hold(pipeline, traded, 0.0)}
    strategies = [_row(MODEL, account), *(_row(name, result) for name, result in beside.items())]
    skills = _skills(panel, split, forecasts)
    covered = coverage(forecasts)
    verdict = _verdict(pipeline, account, beside["buy & hold"], skills, covered)
    return Results(account, beside, strategies, skills, covered, forecasts, verdict)


def _hold(pipeline: ExperimentPipeline, bars: Sequence[Bars], weight: float) -> BacktestResult:
    start = min(one.timestamps[0] for one in bars)
    columns = {one.symbol: [weight / len(bars)] for one in bars}
    weights = pl.DataFrame({"timestamp": [int(start)], **columns})
    return pipeline.backtest(weights.with_columns(pl.col("timestamp").cast(pl.Datetime("ms", "UTC"))), bars)


def _row(name: str, result: BacktestResult) -> dict[str, Any]:
    m = result.metrics
    return {
        "strategy": name,
        "annual return %": 100 * m["annual_return"],
        "volatility %": 100 * m["volatility"],
        "Sharpe": m["sharpe"],
        "± s.e.": m["sharpe_standard_error"],
        "max drawdown %": 100 * m["max_drawdown"],
        "turnover a year": m["turnover"],
        "costs paid": m["costs"],
        "trades": int(m["n_fills"]),
        "final equity": float(result.books.equity[-1]),
    }


def _skills(panel: Panel, split: Split, forecasts: pl.DataFrame) -> dict[str, Rows]:
    out = {}
    for k, target in enumerate(panel.target_columns):
        own = forecasts.filter((pl.col("target") == target.name) & (pl.col("symbol") == target.symbol))
        own = own.filter(pl.col("horizon") == target.horizon).head(len(split.test))
        actual = panel.targets[split.test, k]
        rows = [{"model": MODEL, **skill(target.kind, actual, own["mean"].to_numpy())}]
        for name, baseline in BASELINES.get(target.kind, {}).items():
            rows.append(
                {"model": name, **skill(target.kind, actual, baseline(panel, k, split.train, split.test))}
            )
        out[f"{target.symbol} {target.name}"] = rows
    return out


def _verdict(
    pipeline: ExperimentPipeline,
    account: BacktestResult,
    hold: BacktestResult,
    skills: Mapping[str, Rows],
    covered: Rows,
) -> list[str]:
    lines = [_edge(account, hold)]
    lines += [_skill_line(name, rows) for name, rows in skills.items()]
    level = pipeline.experiment.forecast.level
    shares = ", ".join(f"{row['target']} {row['coverage']:.1%}" for row in covered)
    lines.append(f"Intervals of {level:.0%} held in the test period: {shares}.")
    span = f"{iso(int(account.clock[0]))} to {iso(int(account.clock[-1]))}"
    lines.append(
        f"Test period {span}; annualised with {account.periods_per_year:,.0f} bars a year ({account.calendar})."
    )
    return lines + [f"{note[0].upper()}{note[1:]}." for note in account.notes]


def _edge(account: BacktestResult, hold: BacktestResult) -> str:
    m = account.metrics
    sharpe, error = m["sharpe"], m["sharpe_standard_error"]
    figures = f"Sharpe {sharpe:.2f} ± {error:.2f} after costs, buy & hold {hold.metrics['sharpe']:.2f}"
    if not np.isfinite(sharpe) or m["n_fills"] == 0:
        return "No edge: the model never traded in the test period."
    if sharpe - 1.645 * error <= 0:
        return f"No edge after costs that could be told from luck: {figures}."
    if sharpe <= hold.metrics["sharpe"]:
        return f"Gained after costs, but holding would have done better: {figures}."
    return f"Gained after costs in the test period: {figures}. One period is one draw: walk forward first."


def _skill_line(name: str, rows: Rows) -> str:
    measure, larger_is_better = ("QLIKE", False) if "QLIKE" in rows[0] else ("R² against zero", True)
    own, others = rows[0], [row for row in rows[1:] if np.isfinite(row[measure])]
    best = (max if larger_is_better else min)(others, key=lambda row: row[measure])
    wins = (own[measure] > best[measure]) == larger_is_better
    text = f"{measure} {own[measure]:.4f}, best baseline ({best['model']}) {best[measure]:.4f}"
    return f"{name}: {'ahead of' if wins else 'behind'} the best baseline: {text}."


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value
