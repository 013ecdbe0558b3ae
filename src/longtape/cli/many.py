"""`longtape walk-forward | tune | runs`: many runs, on any engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longtape.cli.runs import ExperimentFile, Override

EngineName = Annotated[
    str,
    typer.Option(
        "--engine", help="process (here, one after the other), pool (a process for each job) or ray"
    ),
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="jobs at once; by default as many as there are cores")
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="threads of each job; with the same, the same numbers")
]
Address = Annotated[str | None, typer.Option(help="of a Ray cluster; by default one is started here")]


def walk_forward(
    experiment: ExperimentFile,
    out: Annotated[Path, typer.Option(help="folder for the folds, the joined record and its report")],
    folds: Annotated[int, typer.Option(min=1, help="test blocks of equal length")] = 5,
    window: Annotated[str, typer.Option(help="expanding, or rolling")] = "expanding",
    per_symbol: Annotated[bool, typer.Option("--per-symbol", help="each symbol alone")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="walks from seed, seed + 1, …, each with its record")] = 1,
    engine: EngineName = "process",
    workers: Workers = None,
    threads: Threads = None,
    address: Address = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the folds that are there")] = False,
    override: Override = None,
) -> None:
    """Refit at every fold of the test period and join the forecasts to one out-of-sample record.

    Example: longtape walk-forward examples/five_coins.yaml --folds 8 --engine pool --out runs/folds
    """
    from pydantic import ValidationError

    from longtape.core.errors import UserError
    from longtape.experiment import load_experiment
    from longtape.features.splits import WalkForwardConfig
    from longtape.orchestration.engines import build_engine
    from longtape.orchestration.walks import refuse_shared_features, run_walks, walks_of, walks_table
    from longtape.report.text import TextTable, print_blocks

    described = load_experiment(experiment, override)
    carrier = build_engine(engine, workers, threads, address)
    try:
        config = WalkForwardConfig.model_validate({"n_folds": folds, "window": window})
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"--{first['loc'][0]}: {first['msg']}") from None
    if per_symbol:
        refuse_shared_features(described)
    walks = walks_of(described, out, per_symbol, seeds)
    made = run_walks(walks, config, out, carrier, resume)
    print_blocks(*(made[0].blocks() if len(made) == 1 else [TextTable(walks_table(walks, made), "Walks")]))
    for one in made:
        typer.echo(f"report: {one.root / 'report.html'}")


def runs(folder: Annotated[Path, typer.Argument(help="folder with runs in it or below")]) -> None:
    """List runs with their key figures and what differs between them.

    Example: longtape runs runs
    """
    from longtape.orchestration.listing import list_runs
    from longtape.report.text import TextTable, print_blocks

    print_blocks(TextTable(list_runs(folder), f"Runs in {folder}"))


def tune(
    experiment: ExperimentFile,
    out: Annotated[Path, typer.Option(help="folder for the trials, the journal and the report")],
    trials: Annotated[int, typer.Option(min=1, help="configurations to try")] = 20,
    engine: EngineName = "process",
    workers: Workers = None,
    threads: Threads = None,
    address: Address = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with an interrupted search, or add trials")
    ] = False,
    override: Override = None,
) -> None:
    """Search over the fields that the experiment's section search names, by validation loss.

    Example: longtape tune examples/btc_hourly.yaml --trials 20 --engine pool --out runs/search
    -o "search={model.d_model: [32, 64], training.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}}"
    """
    from longtape.experiment import load_experiment
    from longtape.orchestration.engines import build_engine
    from longtape.orchestration.tune import tune as search
    from longtape.report.text import print_blocks

    described = load_experiment(experiment, override)
    carrier = build_engine(engine, workers, threads, address)
    made = search(described, trials, out, carrier, getattr(carrier, "workers", None) or 1, resume)
    print_blocks(*made.blocks())
    typer.echo(
        f"best: trial {made.best.number}, {made.best.folder / 'run'}; experiment: {made.root / 'best.yaml'}"
    )
    typer.echo(f"report: {made.root / 'report.html'}")
