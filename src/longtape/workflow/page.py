"""The report of a run: which blocks stand on the page, in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from longtape.backtest.judgement import Judgement
from longtape.evaluation.skill import MODEL
from longtape.experiment import Experiment
from longtape.features.target_kinds import WEIGHT
from longtape.report import figures
from longtape.report.page import Block, Facts, Figure, Figures, Table, write
from longtape.workflow.results import Results

_FAN_CAPTION = (
    "The newest 400 forecasts, at the time their label is known; shaded gold: past the end of the data."
)


def write_report(
    path: str | Path,
    experiment: Experiment,
    facts: Mapping[str, Any],
    histories: Sequence[Sequence[Mapping[str, float]]],
    results: Results,
) -> Path:
    """Write the page of a run; returns its path."""
    symbols = ", ".join(experiment.data.symbols)
    subtitle = f"{symbols}, {_rows_of(experiment)}; {experiment.model.summary}"
    blocks = [*_money(results), *_forecasts(experiment, results), *_training(experiment, facts, histories)]
    verdict = [*results.verdict, _audit_line(facts["audit"])]
    blocks.insert(-1, _audit(facts["audit"]))
    return write(path, experiment.name, subtitle, verdict, blocks)


def write_walk_report(
    path: str | Path, experiment: Experiment, folds: Sequence[Mapping[str, Any]], results: Results
) -> Path:
    """Write the page of a walk forward; returns its path."""
    symbols = ", ".join(experiment.data.symbols)
    subtitle = f"{symbols}, {_rows_of(experiment)}; refitted at each of {len(folds)} folds"
    caption = "Scaler, threshold and model are fitted inside each fold; every window is forecast once, out of sample."
    blocks = [*_money(results), Table("Folds", caption, folds), *_forecasts(experiment, results)]
    return write(path, f"{experiment.name}, walked forward", subtitle, results.verdict, blocks)


def _rows_of(experiment: Experiment) -> str:
    data = experiment.data
    return f"bars of {data.interval}" if data.kind == "candles" else data.kind


def _audit_line(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "Look-ahead was not audited; longtape audit does it."
    if found["passed"]:
        return "Audit passed: nothing decided up to a time depends on what came after it."
    failed = ", ".join(check["name"] for check in found["checks"] if not check["passed"])
    return f"AUDIT FAILED ({failed}): believe nothing here before that is mended."


def _audit(found: Mapping[str, Any] | None) -> Block:
    caption = "The data are cut and changed after many times, and the first bars too; what was decided must not move."
    if found is None:
        return Table("Audit for look-ahead", caption, [{"": "not run"}])
    rows = [
        {
            "question": check["question"],
            "passed": check["passed"],
            "numbers compared": check["compared"],
            "found": "; ".join(check["findings"]) or "nothing",
        }
        for check in found["checks"]
    ]
    return Table("Audit for look-ahead", caption, rows)


def _money(results: Results) -> list[Block]:
    judgement, account = results.judgement, results.account
    if judgement is None or account is None:
        return []
    curves = {MODEL: account.equity} | {name: one.equity for name, one in judgement.benchmarks.items()}
    equity = Figure("Equity", "Marked at the close of every bar, after all costs.", figures.equity(curves))
    shape = [
        Figure("Drawdown", "Loss from the highest equity so far.", figures.drawdown(account.equity)),
        Figure("Distribution of returns", "Per bar.", figures.return_distribution(account.equity)),
    ]
    caption = (
        "Decided at a bar's close, filled at the next open."
        f" Annualised with {account.periods_per_year:,.0f} bars a year ({account.calendar})."
    )
    return [
        Table("Backtest", caption, results.strategies, own_first=True),
        Figures([equity]),
        Figures(shape),
        *_judgement(judgement),
        Facts(
            "Account", "start + profit − fees − spread − slippage − funding − borrow = end", account.account
        ),
    ]


def _judgement(judgement: Judgement) -> list[Block]:
    tables = judgement.tables()
    costs = [
        {"cost": f"{row['cost bp a side']:g} bp", "return": 100 * row["total_return"]}
        for row in tables["costs"]
    ]
    bars = figures.bars(costs, "cost", "return", "total return, %")
    caption = "Total return if fees, spread and slippage together came to so many basis points a side."
    draws = np.asarray(judgement.random.sharpe)
    chance = figures.random_sharpes(draws, judgement.random.own_sharpe)
    shown = "The strategy (line) among random ones with its turnover and exposure."
    pair = [Figure("Cost sensitivity", caption, bars), Figure("Luck", shown, chance)]
    return [
        Figures(pair),
        Table("Stationary bootstrap", "Blocks of returns drawn again.", tables["bootstrap"]),
    ]


def _forecasts(experiment: Experiment, results: Results) -> list[Block]:
    blocks: list[Block] = []
    for name, rows in results.skills.items():
        symbol, target = name.split(" ", 1)
        own = results.forecasts.filter((pl.col("symbol") == symbol) & (pl.col("target") == target))
        if own.height:  # a mean over symbols has no forecasts of its own
            blocks.append(Figures([_forecast_figure(name, own, experiment.forecast.level)]))
        blocks.append(
            Table(f"Skill on {name}", "Every window of the test period is scored.", rows, own_first=True)
        )
    caption = "How often the interval held what happened; a conformal one is made on the calibration period."
    newest = (
        results.forecasts.filter(pl.col("actual").is_null())
        .group_by("symbol", "target", maintain_order=True)
        .last()
    )
    ahead = newest.select("symbol", "target", "known_at", "end", "mean", "lower", "upper").to_dicts()
    blocks.append(Table("Coverage of the intervals", caption, results.coverage))
    if results.coverage:
        bounds = (
            "Points are the share of labels inside, bars its bounds by a block bootstrap, dots the level."
        )
        shown = figures.coverage_by_horizon(results.coverage)
        blocks.append(Figures([Figure("Coverage by horizon", bounds, shown)]))
    blocks.append(Table("Newest forecast", "Past the end of the data, in original units.", ahead))
    return blocks


def _forecast_figure(name: str, own: pl.DataFrame, level: float) -> Figure:
    if own["kind"][0] == WEIGHT.name:
        return Figure(f"Weights for {name}", "The newest 400 decisions.", figures.weights_decided(own))
    return Figure(f"Forecast of {name}", _FAN_CAPTION, figures.forecast_fan(own, level, percent=True))


def _training(
    experiment: Experiment, facts: Mapping[str, Any], histories: Sequence[Sequence[Mapping[str, float]]]
) -> list[Block]:
    caption = "Mean loss over the targets. Epoch 0 is the closed-form baseline from which the network starts."
    curves = [
        Figure("Learning curve" + (f", seed {n + 1}" if n else ""), caption, figures.learning_curve(history))
        for n, history in enumerate(histories)
    ]
    of_run = {
        "seed": facts["seed"],
        **{f"fingerprint of {key}": value for key, value in facts["fingerprints"].items()},
        **{f"{name} windows": count for name, count in facts["windows"].items()},
        "versions": ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        "features": ", ".join(experiment.features),
        "model": experiment.model.summary,
    }
    if experiment.has_account:
        costs = experiment.backtest.costs.model_dump()
        of_run["costs"] = ", ".join(f"{k} {v}" for k, v in costs.items() if v is not None)
    return [
        Figures(curves),
        Facts("What this run was", "Enough to repeat it to the bit on this machine.", of_run),
    ]
