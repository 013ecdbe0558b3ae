"""One trial of a search: a run like any other, that ends early where earlier trials did better at the same epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from longtape.backtest.metrics import equity_returns
from longtape.experiment import parse_experiment
from longtape.orchestration.study import open_trial
from longtape.training.checkpoint import TrainingState
from longtape.training.observers import Observer
from longtape.workflow.run import Run, load_run, train

EQUITY = "backtest/equity.parquet"


class Pruner(Observer):
    """Tells the study every validation loss, and ends training where the study would prune.

    The study compares with trials that have ended, so what is pruned does not hang on what runs at the same time.
    """

    def __init__(self, trial: Any) -> None:
        self.trial, self.told, self.pruned = trial, 0, False

    def begin(self, at: TrainingState, total_steps: int, steps_per_epoch: int) -> None:
        self.on_epoch(at.history)

    def on_epoch(self, history: Sequence[Mapping[str, float]]) -> None:
        for entry in history[self.told :]:
            self.trial.report(entry["validation"], int(entry["epoch"]))
        self.told, self.pruned = len(history), self.trial.should_prune()

    @property
    def has_seen_enough(self) -> bool:
        return self.pruned


def run_trial(folder: Path, experiment: str, journal: str, number: int) -> dict[str, Any]:
    """The job: train, going on from what `folder` holds, forecast, trade; the run stays in `folder`/run."""
    described = parse_experiment(yaml.safe_load(experiment), str(folder))
    pruner = Pruner(open_trial(Path(journal), number))
    made = train(described, folder / "run", resume=True, observers=[pruner])
    made.forecast(history=True)
    if described.has_account:
        made.backtest()
    else:
        made.score()
    return {
        "validation": validation_of(made),
        "epochs": len(made.folder.histories[0]) - 1,
        "pruned": pruner.pruned,
    }


def validation_of(made: Run) -> float:
    """The best validation loss, averaged over the seeds."""
    losses = [min(entry["validation"] for entry in history) for history in made.folder.histories]
    return sum(losses) / len(losses)


def returns_of(folder: Path) -> Any:
    """Simple returns of a trial's account over the test period."""
    return equity_returns(pl.read_parquet(folder / "run" / EQUITY)["equity"].to_numpy())


def run_of(folder: Path) -> Run:
    """The run of a trial that has ended."""
    return load_run(folder / "run")
