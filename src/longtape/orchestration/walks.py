"""Walk-forward as jobs: one for each fold of each symbol and seed, on any engine, then joined and judged as ever."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from longtape.core.errors import UserError
from longtape.core.files import make_folder
from longtape.core.progress import say
from longtape.evaluation.walk_forward import begin_plan, fold_path, plan_folds, write_fold
from longtape.experiment import Experiment, parse_experiment
from longtape.features.splits import WalkForwardConfig
from longtape.orchestration.jobs import Engine, Job, execute
from longtape.training.run_folder import RunFolder
from longtape.workflow.data import RunData
from longtape.workflow.folds import WalkedForward, run_walk_forward, walk_identity


@dataclass(frozen=True)
class Walk:
    """An experiment to be walked forward, and where."""

    name: str  # "" for the only one
    experiment: Experiment
    out: Path


def walks_of(experiment: Experiment, out: Path, per_symbol: bool = False, seeds: int = 1) -> list[Walk]:
    """One walk for each symbol alone (`per_symbol`) and each of so many seeds; UserError where symbols read others."""
    if not per_symbol and seeds == 1:
        return [Walk("", experiment, out)]
    symbols = experiment.data.symbols if per_symbol else [None]
    return [
        _variation(experiment, out, symbol, experiment.seed + k) for symbol in symbols for k in range(seeds)
    ]


def _variation(experiment: Experiment, out: Path, symbol: str | None, seed: int) -> Walk:
    document = yaml.safe_load(experiment.to_yaml()) | {"seed": seed}
    if symbol is not None:
        document["symbols"] = None
        document["data"]["symbols"] = [symbol]
    name = "/".join(part for part in (symbol, f"seed-{seed}") if part)
    return Walk(name, parse_experiment(document, name), out / name)


def run_walks(
    walks: Sequence[Walk], config: WalkForwardConfig, out: Path, engine: Engine, resume: bool = False
) -> list[WalkedForward]:
    """Fit every fold of every walk on the engine, then join and judge each walk; its report lies in its folder."""
    jobs = [job for walk in walks for job in _fold_jobs(walk, config, resume)]
    say(f"{len(jobs)} folds to fit, of {len(walks)} walks")
    execute(jobs, out / "jobs", engine)
    return [run_walk_forward(walk.experiment, config, walk.out, resume=True) for walk in walks]


def _fold_jobs(walk: Walk, config: WalkForwardConfig, resume: bool) -> Iterator[Job]:
    data = RunData.of(walk.experiment)
    data.require_funding()
    folds = data.pipeline.folds(data.panel, config)
    identity = {**walk_identity(data), "folds": config.model_dump(mode="json")}
    begin_plan(walk.out, identity, resume)
    for number in range(1, len(folds) + 1):
        arguments = {
            "experiment": walk.experiment.to_yaml(),
            "config": config.model_dump(mode="json"),
            "number": number,
            "out": str(walk.out.resolve()),
        }
        name = f"{walk.name or 'walk'}/fold-{number:02}"
        yield Job(name, f"{__name__}:fit_fold", arguments, data.fingerprints)


def fit_fold(folder: Path, experiment: str, config: dict[str, Any], number: int, out: str) -> int:
    """The job: train on what came before a fold, going on from what `folder` holds, and keep its forecasts in `out`."""
    data = RunData.of(parse_experiment(yaml.safe_load(experiment), str(folder)))
    panel, folds = plan_folds(data.pipeline, data.panel, WalkForwardConfig.model_validate(config))
    path = fold_path(Path(out), number)
    if not path.exists():
        fold = folds[number - 1]
        training = RunFolder(folder / "training")
        make_folder(training.root)
        write_fold(data.pipeline.fit_in(training, panel, fold), panel, fold, path)
    return len(folds[number - 1].test)


def walks_table(walks: Sequence[Walk], made: Sequence[WalkedForward]) -> list[dict[str, Any]]:
    """One row for each walk: its account, or how good its forecasts are where nothing is traded."""
    return [{"walk": walk.name, **_key_figures(one)} for walk, one in zip(walks, made, strict=True)]


def _key_figures(made: WalkedForward) -> dict[str, Any]:
    rows = made.results.strategies
    if rows:
        return {name: value for name, value in rows[0].items() if name != "strategy"}
    scores = {name: rows[0] for name, rows in made.results.skills.items()}
    return {f"{name}: {measure}": row[measure] for name, row in scores.items() for measure in list(row)[1:2]}


def refuse_shared_features(experiment: Experiment) -> None:
    """UserError where a symbol's features read other symbols: alone it could not be forecast."""
    for text in experiment.features:
        if text.startswith("of("):
            raise UserError(
                f"--per-symbol: the feature {text} reads another symbol; leave the symbols together"
            )
