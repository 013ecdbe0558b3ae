"""Seeds walked, one after the other: experiment, run, checks, scenarios, and what is left to say of each."""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from longtape.core.errors import UserError
from longtape.experiment import parse_experiment
from tests.fuzz import account_checks, drawn_accounts, reruns  # noqa: F401 - they register what they hold
from tests.fuzz.checks import CHECKS
from tests.fuzz.experiments import Case, draw
from tests.fuzz.figures import aggregate_figures
from tests.fuzz.runs import CRASHED, DOCUMENT, TRAINED, Refusal, Trial, attempt, walk, write_case
from tests.fuzz.scenarios import SCENARIOS

SHOWN = 6  # faults of a check and run that are kept


@dataclass
class Outcome:
    """One seed: what was drawn, how it ended, and the faults that were found, as (check, sentence)."""

    seed: int
    said: dict[str, Any]
    refusal: tuple[str, str] | None = None
    faults: list[tuple[str, str]] = field(default_factory=list)
    applied: list[str] = field(default_factory=list)
    options_refused: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def walk_seed(seed: int, folder: Path | None = None) -> Outcome:
    """The whole way of one seed, in a temporary folder unless one is named."""
    if folder is not None:
        return _walk(draw(seed), folder)
    made = Path(tempfile.mkdtemp(prefix="longtape-fuzz-"))
    try:
        return _walk(draw(seed), made)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _walk(case: Case, folder: Path) -> Outcome:
    began = time.monotonic()
    outcome = Outcome(case.seed, case.said, options_refused=list(case.refused))
    try:
        parse_experiment(case.document, "experiment.yaml")
    except UserError as error:
        return _refused(outcome, Refusal(DOCUMENT, str(error)))
    walked, refusal = walk(write_case(case, folder), folder / "out")
    if refusal is not None or walked is None:
        _refused(outcome, refusal or Refusal(CRASHED, "nothing was left"))
    else:
        _judge(Trial(case, folder, walked), outcome)
    outcome.seconds = time.monotonic() - began
    return outcome


def _refused(outcome: Outcome, refusal: Refusal) -> Outcome:
    """Every drawn experiment is meant to be valid, so that each refusal is a fault, and a late one the worse."""
    outcome.refusal = (refusal.stage, refusal.message)
    name = {CRASHED: "no traceback", TRAINED: "nothing is refused after training began"}.get(
        refusal.stage, "a valid experiment is not refused"
    )
    outcome.faults.append((name, refusal.message))
    return outcome


def _judge(trial: Trial, outcome: Outcome) -> None:
    for check in CHECKS.values():
        _apply(check.name, check.find, check.when, trial, outcome)
    for number, scenario in enumerate(SCENARIOS.values()):
        if (trial.case.seed + number) % scenario.every == 0:
            _apply(scenario.name, scenario.find, scenario.when, trial, outcome)
    outcome.figures, _ = attempt(lambda: aggregate_figures(trial))
    outcome.figures = outcome.figures or {}


def _apply(name: str, find: Any, when: Any, trial: Trial, outcome: Outcome) -> None:
    """A check that cannot read what a run left has found something too."""
    try:
        if not when(trial):
            return
        with np.errstate(all="ignore"):
            outcome.faults += [(name, fault) for fault in islice(find(trial), SHOWN)]
    except (KeyError, OSError, ValueError, TypeError, IndexError) as error:
        outcome.faults.append((name, f"cannot be checked: {type(error).__name__}: {error}"))
    outcome.applied.append(name)
