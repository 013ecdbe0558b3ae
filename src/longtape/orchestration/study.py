"""Optuna's study of a search: kept in a journal file, opened by any number of processes, gone on with at any time.

Trials are asked for in rounds of as many as run at once. A round depends on the rounds before it alone, and its sampler
on the seed and the number of trials so far: a search that is interrupted, or carried by another engine, is the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from longtape.core.errors import require
from longtape.training.search_space import SearchRange, SearchSpace

NAME = "longtape"
STARTUP_TRIALS = 5  # before anything is pruned


def open_study(journal: Path, seed: int = 0) -> Any:
    """The study in a journal file, made if it is not there."""
    optuna: Any = require("optuna", "hpo")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    backend = optuna.storages.journal.JournalFileBackend(str(journal))
    storage = optuna.storages.JournalStorage(backend)
    return optuna.create_study(
        storage=storage,
        study_name=NAME,
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=1),
        load_if_exists=True,
    )


def open_trial(journal: Path, number: int) -> Any:
    """A trial that was asked for, to report to."""
    import optuna

    study = open_study(journal)
    return optuna.trial.Trial(study, study.trials[number]._trial_id)


def next_round(journal: Path, space: SearchSpace, trials: int, at_once: int, seed: int) -> list[Any]:
    """The trials that an interrupted round has left; else a new round. None where there are `trials` of them."""
    study = open_study(journal)
    left = [trial for trial in study.trials if not trial.state.is_finished()]
    if left:
        return left
    so_far = len(study.trials)
    study = open_study(journal, seed + so_far)
    distributions = {field: _distribution(choice) for field, choice in space.items()}
    return [study.ask(distributions) for _ in range(min(at_once, trials - so_far))]


def tell(journal: Path, number: int, validation: float | None) -> None:
    """What a trial came to; None where it failed."""
    import optuna

    state = optuna.trial.TrialState.FAIL if validation is None else optuna.trial.TrialState.COMPLETE
    open_study(journal).tell(number, validation, state=state, skip_if_finished=True)


def chosen(params: dict[str, Any], space: SearchSpace) -> dict[str, Any]:
    """The values of the fields that Optuna chose: a list's by their JSON, so that they may be anything."""
    return {
        field: value if isinstance(space[field], SearchRange) else json.loads(value)
        for field, value in params.items()
    }


def _distribution(choice: list[Any] | SearchRange) -> Any:
    import optuna.distributions as d

    if isinstance(choice, list):
        return d.CategoricalDistribution([json.dumps(value) for value in choice])
    if choice.is_whole:
        return d.IntDistribution(
            int(choice.low), int(choice.high), log=choice.log, step=int(choice.step or 1)
        )
    return d.FloatDistribution(choice.low, choice.high, log=choice.log, step=choice.step)
