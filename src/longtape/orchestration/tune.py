"""`longtape tune`: search over any field of an experiment, and what it means that the best of so many was chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from longtape.backtest.overfitting import TrialSet
from longtape.core.errors import UserError
from longtape.core.files import read_json, write_json
from longtape.core.progress import say
from longtape.experiment import Experiment, parse_experiment, set_field
from longtape.orchestration import study
from longtape.orchestration.jobs import Engine, Job, Outcome, execute
from longtape.orchestration.trials import returns_of, run_of
from longtape.report import search_figures as draw
from longtape.report.page import Block, Figure, Grid, Page, Section, Table, write
from longtape.report.text import TextTable
from longtape.training.execution import Execution
from longtape.training.search_space import SearchRange
from longtape.workflow.data import RunData
from longtape.workflow.results import Results, judge_run
from longtape.workflow.verdict import verdicts

JOURNAL, IDENTITY = "study.log", "search.json"


@dataclass(frozen=True)
class Trial:
    """One configuration that was tried."""

    number: int
    values: dict[str, Any]  # of the searched fields
    folder: Path
    outcome: Outcome

    def row(self) -> dict[str, Any]:
        """For a table."""
        result = self.outcome.result or {}
        figures = {name: result.get(name) for name in ("validation", "epochs", "pruned")}
        failed = {} if self.outcome.error is None else {"failed": self.outcome.error}
        return {"trial": self.number, **self.values, **figures, **failed}


@dataclass(frozen=True)
class Search:
    """All trials; the best one is judged in the light of how many there were."""

    root: Path
    trials: Sequence[Trial]
    best: Trial
    results: Results

    def blocks(self) -> list[TextTable | str]:
        """Trials and results of the best one: what the terminal shows."""
        return [TextTable([trial.row() for trial in self.trials], "Trials"), *self.results.blocks()]


def tune(
    experiment: Experiment,
    trials: int,
    out: str | Path,
    engine: Engine,
    at_once: int = 1,
    resume: bool = False,
) -> Search:
    """Try `trials` configurations, `at_once` in a round, and choose the one with the lowest validation loss.

    Every trial is a run in `out`/trials with its losses, forecasts and account. UserError where nothing is searched, a
    field does not exist or takes no such value, or all trials fail.
    """
    root = Path(out)
    _check_space(experiment)
    Execution.of(experiment.training)
    data = RunData.of(_of_trial(experiment, {}))
    data.require_funding()
    _begin(root, {"experiment": experiment.to_yaml(), "fingerprints": data.fingerprints}, resume)
    while chosen := study.next_round(root / JOURNAL, experiment.search, trials, at_once, experiment.seed):
        say(f"trials {', '.join(str(one.number) for one in chosen)} of {trials}")
        jobs = [_job(experiment, root, one, data) for one in chosen]
        for one, outcome in zip(
            chosen, execute(jobs, root / "trials", engine, keep_errors=True), strict=True
        ):
            study.tell(root / JOURNAL, one.number, outcome.result["validation"] if outcome.result else None)
    return _judged(experiment, root)


def _check_space(experiment: Experiment) -> None:
    """UserError where nothing is searched, or a field takes none of its values beside the experiment's others."""
    if not experiment.search:
        raise UserError(
            "search: nothing is searched; name fields, for example search: {model.d_model: [32, 64]}"
        )
    for field, choice in experiment.search.items():
        values = [choice.low, choice.high] if isinstance(choice, SearchRange) else choice
        if len(values) < 2:
            raise UserError(f"search.{field}: name two values or more")
        refused = [_refusal(experiment, field, value) for value in values]
        if refused[0] is not None and None not in refused:
            raise UserError(f"search.{field}: {refused[0]}")


def _refusal(experiment: Experiment, field: str, value: Any) -> str | None:
    try:
        _of_trial(experiment, {field: value})
    except UserError as error:
        return str(error)
    return None


def _of_trial(experiment: Experiment, values: dict[str, Any]) -> Experiment:
    document = yaml.safe_load(experiment.to_yaml()) | {"search": {}, "audit": False}
    for field, value in values.items():
        set_field(document, field, value, f"search.{field}")
    return parse_experiment(document, "search")


def _begin(root: Path, identity: dict[str, Any], resume: bool) -> None:
    known = root / IDENTITY
    if not root.exists() or not any(root.iterdir()):
        write_json(known, identity)
    elif not resume:
        raise UserError(f"{root}: is there already and not empty; go on with --resume or name another folder")
    elif not known.exists() or read_json(known) != identity:
        raise UserError(f"{root}: was not made by this search on these data; name another folder")


def _job(experiment: Experiment, root: Path, trial: Any, data: RunData) -> Job:
    values = study.chosen(trial.params, experiment.search)
    arguments = {
        "experiment": _written(experiment, values),
        "journal": str((root / JOURNAL).resolve()),
        "number": trial.number,
    }
    return Job(_name(trial.number), "longtape.orchestration.trials:run_trial", arguments, data.fingerprints)


def _written(experiment: Experiment, values: dict[str, Any]) -> str:
    """The experiment of a trial; where it cannot be, what the trial will refuse."""
    try:
        return _of_trial(experiment, values).to_yaml()
    except UserError:
        document = yaml.safe_load(experiment.to_yaml()) | {"search": {}, "audit": False}
        for field, value in values.items():
            set_field(document, field, value, f"search.{field}")
        return yaml.safe_dump(document, sort_keys=False)


def _name(number: int) -> str:
    return f"trial-{number:04}"


def _trials(experiment: Experiment, root: Path) -> Iterator[Trial]:
    for one in study.open_study(root / JOURNAL).trials:
        folder = root / "trials" / _name(one.number)
        values = study.chosen(one.params, experiment.search)
        yield Trial(one.number, values, folder, Outcome(**read_json(folder / "outcome.json")))


def _judged(experiment: Experiment, root: Path) -> Search:
    trials = list(_trials(experiment, root))
    ended = [trial for trial in trials if trial.outcome.result is not None]
    if not ended:
        raise UserError(f"{root}: every trial failed; the first one: {trials[0].outcome.error}")
    best = min(ended, key=lambda trial: (trial.outcome.result["validation"], trial.number))
    made = run_of(best.folder)
    kept = None
    if experiment.has_account:
        kept = TrialSet.of_returns({_name(trial.number): returns_of(trial.folder) for trial in ended})
    data = made.data
    results = judge_run(data.trading, data.panel, [data.split], data.bars, made.forecasts, made.fitted, kept)
    search = Search(root, trials, best, results)
    write_json(root / "metrics.json", results.to_dict() | {"trials": [trial.row() for trial in trials]})
    (root / "best.yaml").write_text(_of_trial(experiment, best.values).to_yaml(), encoding="utf-8")
    _write_page(search, experiment)
    return search


def _write_page(search: Search, experiment: Experiment) -> None:
    rows = [trial.row() for trial in search.trials if trial.outcome.result is not None]
    caption = (
        "Validation loss of every trial, and the best so far; the test period plays no part in the choice."
    )
    slices = [
        Figure(field, "Validation loss by value.", draw.search_slice(rows, field))
        for field in experiment.search
    ]
    trials = [trial.row() for trial in search.trials]
    searched: list[Block] = [Figure("Every trial", caption, draw.search_history(rows)), Grid(slices)]
    results = Table(
        "Backtest of the best", "Over the test period.", search.results.strategies, own_first=True
    )
    page = Page(
        f"{experiment.name}, searched",
        f"{len(search.trials)} trials; the best is trial {search.best.number}.",
        verdicts(search.results, None),
        [results] if search.results.strategies else [],
        [
            Section("Search", [*searched, Table("Trials", "Each is a run of its own.", trials, shown=30)]),
            Section(
                "Evidence",
                [Table("", "", [{"what there is to say": line} for line in search.results.verdict])],
            ),
        ],
    )
    write(search.root / "report.html", page)
