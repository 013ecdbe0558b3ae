"""What a run came to: the account and everything it was held against, and how good the forecasts were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from longtape.backtest import BacktestResult
from longtape.backtest.judgement import Judgement, judge
from longtape.core.clock import iso
from longtape.evaluation.skill import coverage, skill
from longtape.evaluation.statistics import diebold_mariano, loss_of
from longtape.features.panel import Panel, TargetColumn
from longtape.features.splits import Split
from longtape.market.bars import Bars
from longtape.models.baselines import BASELINES
from longtape.report.text import table
from longtape.workflow.pipeline import ExperimentPipeline

MODEL = "longtape"
P_VALUE = "p, differs from longtape"
Rows = list[dict[str, Any]]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Results:
    """Everything that the terminal, metrics.json and the report show of the test period."""

    judgement: Judgement
    skills: Mapping[str, Rows]  # "SYMBOL target" → model and baselines
    coverage: Rows
    forecasts: pl.DataFrame
    verdict: Sequence[str]

    @property
    def account(self) -> BacktestResult:
        """The model's own account."""
        return self.judgement.result

    @property
    def strategies(self) -> Rows:
        """The model and the simple strategies on the same bars and terms."""
        return [_row(name, one) for name, one in {MODEL: self.account, **self.judgement.beside}.items()]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for metrics.json; a figure that does not exist is null."""
        content = {
            "account": self.account.account,
            "metrics": self.account.metrics,
            "judgement": self.judgement.to_dict(),
            "skill": dict(self.skills),
            "coverage": self.coverage,
            "verdict": list(self.verdict),
        }
        plain: dict[str, Any] = _without_nan(content)
        return plain

    def text(self) -> str:
        """The results next to the baselines, and the verdict."""
        costs = table(self.judgement.costs.rows, "The same at other costs a side")
        parts = [table(self.strategies, "Backtest of the test period"), costs]
        parts += [table(rows, f"Forecast of {name}") for name, rows in self.skills.items()]
        said = "Verdict\n" + "\n".join(f"- {line}" for line in self.verdict)
        return "\n\n".join([*parts, table(self.coverage, "Intervals"), said])


def judge_run(
    pipeline: ExperimentPipeline, panel: Panel, split: Split, bars: Sequence[Bars], forecasts: pl.DataFrame
) -> Results:
    """Backtest and score the forecasts of the test period."""
    first = int(panel.timestamps[split.test[0]])
    traded = [one.between(first) for one in bars if one.symbol in panel.symbols]
    judgement = judge(pipeline.backtest(pipeline.weights(forecasts), traded))
    skills = {
        f"{target.symbol} {target.name}": _skill_rows(panel, split, forecasts, k)
        for k, target in enumerate(panel.target_columns)
    }
    covered = coverage(forecasts)
    verdict = [*judgement.verdict, *(_skill_line(name, rows) for name, rows in skills.items())]
    verdict += [_coverage_line(pipeline.experiment.forecast.level, covered), _clock_line(judgement.result)]
    return Results(judgement, skills, covered, forecasts, verdict)


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
        "fills": int(m["n_fills"]),
        "final equity": float(result.books.equity[-1]),
    }


def _skill_rows(panel: Panel, split: Split, forecasts: pl.DataFrame, k: int) -> Rows:
    target = panel.target_columns[k]
    actual, own = panel.targets[split.test, k], _own(forecasts, target, panel, split)
    rows: Rows = [{"model": MODEL, **skill(target.kind, actual, own)}]
    for name, baseline in BASELINES.get(target.kind, {}).items():
        other = baseline(panel, k, split.train, split.test)
        rows.append(
            {
                "model": name,
                **skill(target.kind, actual, other),
                P_VALUE: _p_value(target, actual, own, other),
            }
        )
    return rows


def _own(forecasts: pl.DataFrame, target: TargetColumn, panel: Panel, split: Split) -> Array:
    """The model's forecasts at the test origins, in their order."""
    mine = forecasts.filter(
        (pl.col("target") == target.name)
        & (pl.col("symbol") == target.symbol)
        & (pl.col("horizon") == target.horizon)
    )
    rows = np.searchsorted(mine["timestamp"].dt.timestamp("ms").to_numpy(), panel.timestamps[split.test])
    return mine["mean"].to_numpy()[rows]


def _p_value(target: TargetColumn, actual: Array, own: Array, other: Array) -> float:
    """Of the Diebold–Mariano test that both forecasts lose equally much."""
    if len(actual) <= 2 * target.horizon:
        return float("nan")
    losses = (loss_of(target.kind, actual, forecast) for forecast in (own, other))
    return diebold_mariano(*losses, horizon=target.horizon).p_value


def _skill_line(name: str, rows: Rows) -> str:
    measure, larger_is_better = ("QLIKE", False) if "QLIKE" in rows[0] else ("R² against zero", True)
    own, others = rows[0], [row for row in rows[1:] if np.isfinite(row[measure])]
    best = (max if larger_is_better else min)(others, key=lambda row: row[measure])
    ahead = (own[measure] > best[measure]) == larger_is_better
    sure = best[P_VALUE] < 0.05
    standing = f"{'ahead of' if ahead else 'behind'} the best baseline{'' if sure else ', within luck'}"
    figures = f"{measure} {own[measure]:.4f}, {best['model']} {best[measure]:.4f}, p {best[P_VALUE]:.2f}"
    return f"{name}: {standing} ({figures})."


def _coverage_line(level: float, covered: Rows) -> str:
    shares = ", ".join(f"{row['symbol']} {row['target']} {row['coverage']:.1%}" for row in covered)
    return f"Intervals of {level:.0%} held in the test period: {shares}."


def _clock_line(account: BacktestResult) -> str:
    span = f"{iso(int(account.clock[0]))} to {iso(int(account.clock[-1]))}"
    return f"Test period {span}; annualised with {account.periods_per_year:,.0f} bars a year ({account.calendar})."


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value
