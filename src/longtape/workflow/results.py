"""What a run came to: how good the forecasts were, and the account with everything it was held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from longtape.backtest import BacktestResult
from longtape.backtest.judgement import MOST_R2, Judgement, implausible, judge
from longtape.backtest.overfitting import TrialSet
from longtape.core.clock import iso
from longtape.core.files import nan_to_null
from longtape.core.shown import Shown
from longtape.evaluation.coverage import coverage
from longtape.evaluation.skill import MODEL, Compared, Rows, averages, compared, skills
from longtape.evaluation.standing import standing
from longtape.features.book_targets import classed_as
from longtape.features.panel import Panel
from longtape.features.pooled import part_of, split_of
from longtape.features.splits import Split
from longtape.forecasting.baselines import Training
from longtape.forecasting.fitted import FittedForecaster
from longtape.market.agreement import Lead, leads, named_most
from longtape.market.bars import Bars
from longtape.market.frames import to_pandas
from longtape.market.rows import Rows as MarketRows
from longtape.report.text import TextTable
from longtape.workflow.pipeline import ExperimentPipeline


@dataclass(frozen=True, eq=False, repr=False)
class Results(Shown):
    """Everything that the terminal, metrics.json and the report show of the test period."""

    judgement: Judgement | None  # None where nothing is traded
    skills: Mapping[str, Rows]  # "SYMBOL target" → model and baselines
    coverage: Rows
    forecasts: pl.DataFrame
    verdict: Sequence[str]
    doubts: Sequence[str] = ()  # what makes the figures hard to believe; they stand in the verdict too

    def facts(self) -> dict[str, Any]:
        """What a reader of its repr sees."""
        return {"forecasts": len(self.forecasts), "verdict": self.verdict[0]}

    def preview(self) -> pl.DataFrame:
        """The model beside the simple strategies, or its skill where nothing is traded."""
        rows = self.strategies or [row for rows in self.skills.values() for row in rows]
        return pl.DataFrame(rows, infer_schema_length=None)

    def to_pandas(self) -> Any:
        """The forecasts as a pandas frame, their times (UTC) as its index."""
        return to_pandas(self.forecasts)

    @property
    def account(self) -> BacktestResult | None:
        """The model's own account."""
        return None if self.judgement is None else self.judgement.result

    @property
    def required_account(self) -> BacktestResult:
        """The same where the experiment trades."""
        if self.account is None:
            raise ValueError("nothing is traded")
        return self.account

    @property
    def strategies(self) -> Rows:
        """The model and the simple strategies on the same bars and terms."""
        if self.judgement is None:
            return []
        everyone = {MODEL: self.judgement.result, **self.judgement.benchmarks}
        return [_row(name, one) for name, one in everyone.items()]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for metrics.json; a figure that does not exist is null."""
        content = {
            "account": None if self.account is None else self.account.account,
            "metrics": None if self.account is None else self.account.metrics,
            "judgement": None if self.judgement is None else self.judgement.to_dict(),
            "skill": dict(self.skills),
            "coverage": self.coverage,
            "verdict": list(self.verdict),
        }
        plain: dict[str, Any] = nan_to_null(content)
        return plain

    def blocks(self) -> list[TextTable | str]:
        """The results next to the baselines, and the verdict: what the terminal shows."""
        tables = []
        if self.judgement is not None:
            tables.append(TextTable(self.strategies, "Backtest of the test period"))
            tables.append(TextTable(self.judgement.costs.rows, "The same at other costs a side"))
        tables += [TextTable(rows, f"Forecast of {name}") for name, rows in self.skills.items()]
        if self.coverage:
            tables.append(TextTable(self.coverage, "Intervals"))
        return [*tables, "Verdict\n" + "\n".join(f"- {line}" for line in self.verdict)]

    def text(self) -> str:
        """The same as plain text."""
        return "\n\n".join(map(str, self.blocks()))


def judge_run(
    pipeline: ExperimentPipeline,
    panel: Panel,
    splits: Sequence[Split],
    bars: Sequence[MarketRows],
    forecasts: pl.DataFrame,
    fitted: FittedForecaster | None = None,
    trials: TrialSet | None = None,
) -> Results:
    """Score the forecasts of the test period and trade them; `splits` are the folds they were made in, one or more.

    `trials`: all configurations that were tried, where this one was chosen among several.

    Nothing outside the test period is scored or traded.
    """
    origins = np.concatenate([split.test for split in splits])
    periods = splits[-1].periods
    first, last = int(panel.timestamps[origins[0]]), None if periods is None else periods.test_until
    of_test = forecasts.filter(_between(first, last))
    judgement = _judged(pipeline, of_test, bars, first, last, trials)
    scored = of_test.filter(pl.col("timestamp").dt.timestamp("ms").is_in(panel.timestamps[origins]))
    config = pipeline.experiment.forecast
    found = _skills(pipeline, panel, splits, forecasts, fitted)
    covered = coverage(scored, config.level, config.levels)
    doubts = _doubts(judgement, found, bars)
    verdict = [*doubts]
    verdict += [] if judgement is None else judgement.statements
    verdict += [_skill_line(name, rows) for name, rows in found.items()]
    usual = [row for row in covered if row["level"] == config.level]
    verdict += _interval_lines(config.level, usual, fitted)
    verdict.append(_clock_line(panel, origins, judgement))
    return Results(judgement, found, covered, forecasts, verdict, doubts)


def _skills(
    pipeline: ExperimentPipeline,
    panel: Panel,
    splits: Sequence[Split],
    forecasts: pl.DataFrame,
    fitted: FittedForecaster | None,
) -> dict[str, Rows]:
    """Scores beside the baselines, which are fitted to each symbol by itself where the model is pooled."""
    experiment = pipeline.experiment
    named, training = experiment.beside, Training(experiment.training, experiment.seed)
    if experiment.model.pooled is None:
        inputs = fitted.model.inputs if fitted else pipeline.inputs(panel, splits[0].train)
        return skills(inputs, classed_as(panel, inputs.targets), splits, forecasts, named, training)
    found: dict[str, Compared] = {}
    for asset in panel.assets:
        part, own = part_of(panel, asset), [split_of(panel, asset, one, pipeline.lookback) for one in splits]
        if any(len(one.test) for one in own):
            inputs = pipeline.inputs_of_part(part, own[0].train)
            of_symbol = forecasts.filter(pl.col("symbol") == asset)
            found |= compared(inputs, part, own, of_symbol, named, training)
    return {name: one.rows() for name, one in found.items()} | averages(list(found.values()))


def _doubts(judgement: Judgement | None, found: Mapping[str, Rows], bars: Sequence[MarketRows]) -> list[str]:
    """What makes the figures hard to believe, in front of everything else that is said of them."""
    figures = [] if judgement is None else judgement.doubts
    measure = "R² against zero"
    r2 = {name: rows[0][measure] for name, rows in found.items() if measure in rows[0]}
    figures += [f"R² {value:.2f} of {name}" for name, value in r2.items() if value > MOST_R2]
    late = [lead for _, group in named_most(leads_of(bars)) for lead in group[:1]]
    return [*implausible(figures), *(f"{lead.text[0].upper()}{lead.text[1:]}." for lead in late)]


def leads_of(bars: Sequence[MarketRows]) -> list[Lead]:
    """Pairs of symbols whose bars seem to be stamped in different ways."""
    return leads([one for one in bars if isinstance(one, Bars)])


def _between(since: int, until: int | None) -> pl.Expr:
    times = pl.col("timestamp").dt.timestamp("ms")
    return (times >= since) & (times < until) if until is not None else times >= since


def _judged(
    pipeline: ExperimentPipeline,
    forecasts: pl.DataFrame,
    bars: Sequence[MarketRows],
    since: int,
    until: int | None,
    trials: TrialSet | None,
) -> Judgement | None:
    if not pipeline.experiment.has_account:
        return None
    symbols = forecasts["symbol"].unique().to_list()
    traded = [one.between(since, until) for one in bars if one.symbol in symbols]
    return judge(pipeline.backtest(pipeline.weights(forecasts), traded), trials=trials)


def _row(name: str, result: BacktestResult) -> dict[str, Any]:
    """Of an account of less than a month what it came to, and nothing that is stretched to a year."""
    m = result.metrics
    of_a_year = {"annual return %": 100 * m["annual_return"], "volatility %": 100 * m["volatility"],
                 "Sharpe": m["sharpe"], "± s.e.": m["sharpe_standard_error"]}  # fmt: skip
    in_all = {"total return %": 100 * m["total_return"], "return / s.e.": result.sharpe_errors}
    return {
        "strategy": name,
        **(in_all if result.is_short else of_a_year),
        "max drawdown %": 100 * m["max_drawdown"],
        **({} if result.is_short else {"turnover a year": m["turnover"]}),
        "costs paid": m["costs"],
        "fills": int(m["n_fills"]),
        "final equity": float(result.history.equity[-1]),
    }


def _skill_line(name: str, rows: Rows) -> str:
    found = standing(name, rows)
    if not found.is_scored:
        return f"{name}: {found.words}."
    beside = f"{found.baseline} {found.best:.4f}, {_p_text(found.p_value)}"
    return f"{name}: {found.words} ({found.measure} {found.own:.4f}, {beside})."


def _p_text(p_value: float) -> str:
    if np.isnan(p_value):
        return "too short to test"
    return "p < 0.001" if p_value < 0.001 else f"p {p_value:.3f}"


def _share(row: Mapping[str, Any], covered: Rows, level: float) -> str:
    """The share covered, and whether it is further from the level than luck explains."""
    said = f"{_named(row, covered)} {row['coverage']:.1%}"
    if row["to"] < level:
        return f"{said} (too little: at most {row['to']:.1%} but for luck)"
    return f"{said} (too much: at least {row['from']:.1%} but for luck)" if row["from"] > level else said


def _interval_lines(level: float, covered: Rows, fitted: FittedForecaster | None) -> list[str]:
    lines = []
    if covered:
        shares = ", ".join(_share(row, covered, level) for row in covered)
        lines.append(f"In the test period the intervals of {level:.0%} covered: {shares}.")
    if fitted is not None:
        lines += fitted.calibration.shortages(fitted.model.inputs.targets)
    return lines


def _named(row: Mapping[str, Any], rows: Rows) -> str:
    """Symbol and target, with the horizon where a target has several."""
    same = [r for r in rows if (r["symbol"], r["target"]) == (row["symbol"], row["target"])]
    return f"{row['symbol']} {row['target']}" + (f" at {row['horizon']}" if len(same) > 1 else "")


def _clock_line(panel: Panel, origins: Any, judgement: Judgement | None) -> str:
    if judgement is None:
        begin, end = panel.timestamps[origins[0]], panel.timestamps[origins[-1]]
        return f"Test period {iso(int(begin))} to {iso(int(end))}; nothing is traded."
    account = judgement.result
    span = f"{iso(int(account.clock[0]))} to {iso(int(account.clock[-1]))}"
    return f"Test period {span}; annualised with {account.periods_per_year:,.0f} bars a year ({account.calendar})."
