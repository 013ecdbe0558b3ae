"""`longtape walk-forward`: an experiment refitted fold by fold, and its one out-of-sample record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtape.core.files import write_json
from longtape.core.progress import say
from longtape.evaluation.walk_forward import WalkForward, walk_forward
from longtape.experiment import Experiment
from longtape.features.splits import WalkForwardConfig
from longtape.report.text import TextTable
from longtape.training.execution import Execution
from longtape.training.run_folder import versions
from longtape.workflow.data import RunData, last_closes
from longtape.workflow.pages.run import write_walk_report
from longtape.workflow.pages.subject import Subject
from longtape.workflow.results import Results, judge_run
from longtape.workflow.run import PRICES, write_frame


@dataclass(frozen=True, eq=False)
class WalkedForward:
    """The folds and what they came to, kept in a folder with its report."""

    root: Path
    walked: WalkForward
    results: Results

    def blocks(self) -> list[TextTable | str]:
        """Folds, results next to the baselines, and the verdict: what the terminal shows."""
        return [TextTable(self.walked.table(), "Folds"), *self.results.blocks()]


def run_walk_forward(
    experiment: Experiment, config: WalkForwardConfig, out: str | Path, resume: bool = False
) -> WalkedForward:
    """Refit `experiment` at every fold and judge the joined forecasts; `resume` keeps the folds that are there."""
    Execution.of(experiment.training)  # a device that is not there is said before anything is read
    data = RunData.of(experiment)
    data.pipeline.refuse_baselines(data.panel, data.split)
    walked = walk_forward(data.pipeline, data.bars, config, out, identity=walk_identity(data), resume=resume)
    say("judging the joined folds")
    results = judge_run(data.trading, walked.panel, walked.folds, data.bars, walked.forecasts)
    made = WalkedForward(Path(out), walked, results)
    write_frame(walked.forecasts, made.root / "forecast.parquet")
    if results.account is not None:
        write_frame(results.account.equity, made.root / "equity.parquet")
    write_json(made.root / "metrics.json", results.to_dict() | {"folds": walked.table()})
    command = (
        f"longtape walk-forward EXPERIMENT --folds {config.n_folds} --window {config.window} --out AGAIN"
    )
    prices, facts = last_closes(walked.panel, PRICES), data.facts() | {"versions": versions()}
    subject = Subject(experiment, data.bars, results, prices, facts, command=command)
    write_walk_report(made.root / "report.html", subject, walked.table())
    return made


def walk_identity(data: RunData) -> dict[str, Any]:
    """What the folds of an experiment on these data depend on."""
    return {"experiment": data.experiment.to_yaml(), "fingerprints": data.fingerprints}
