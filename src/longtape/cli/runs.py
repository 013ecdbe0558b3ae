"""`longtape demo | run | train | forecast | backtest | report`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longtape.core.errors import UserError

if TYPE_CHECKING:
    from longtape.workflow import Run

ExperimentFile = Annotated[Path, typer.Argument(help="experiment file (YAML)")]
RunFolderArgument = Annotated[Path, typer.Argument(help="folder of a run")]
Override = Annotated[
    list[str] | None, typer.Option("-o", "--override", help="key=value, for example -o training.epochs=3")
]
NewerData = Annotated[
    Path | None,
    typer.Option(help="file, folder or pattern of newer candles of the run's symbols ({symbol} for each)"),
]
Resume = Annotated[bool, typer.Option("--resume", help="go on with an interrupted run")]


def demo(
    out: Annotated[Path, typer.Option(help="folder for store, run and report")] = Path("demo"),
) -> None:
    """Walk the whole way on the embedded S&P 500 days, from candles to report.

    Example: longtape demo --out demo
    """
    from longtape.workflow.demo import run_demo

    _show(run_demo(out))


def run(
    experiment: ExperimentFile,
    out: Annotated[Path, typer.Option(help="folder of the new run")],
    resume: Resume = False,
    override: Override = None,
) -> None:
    """Everything in one go: train, forecast, backtest, report.

    Example: longtape run examples/btc_hourly.yaml --out runs/btc
    """
    from longtape.experiment import load_experiment
    from longtape.report.text import print_blocks
    from longtape.workflow import run as run_experiment
    from longtape.workflow.tokens import is_token_file, load_token_experiment, run_tokens

    if is_token_file(experiment):
        print_blocks(*run_tokens(load_token_experiment(experiment, override), out, resume).blocks())
        return
    _show(run_experiment(load_experiment(experiment, override), out, resume=resume))


def train(
    experiment: ExperimentFile,
    out: Annotated[Path, typer.Option(help="folder of the new run")],
    resume: Resume = False,
    override: Override = None,
    ray_workers: Annotated[
        int | None,
        typer.Option("--ray-workers", min=1, help="train on so many workers of Ray Train together"),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="of a Ray cluster; by default one is started here")
    ] = None,
) -> None:
    """Train a model; Ctrl-C saves, --resume goes on to the same numbers.

    Example: longtape train examples/btc_hourly.yaml --out runs/btc -o training.epochs=3

    Several processes: torchrun --nproc-per-node 2 -m longtape train EXPERIMENT --out RUN
    """
    from longtape.experiment import load_experiment
    from longtape.report.text import TextTable, print_blocks
    from longtape.workflow import train as train_experiment

    described = load_experiment(experiment, override)
    if ray_workers is None and address is not None:
        raise UserError("--address goes with --ray-workers")
    if ray_workers is None:
        made = train_experiment(described, out, resume=resume)
    else:
        from longtape.orchestration.ray_train import train_on_ray

        made = train_on_ray(described, out, ray_workers, address, resume)
    if os.environ.get("RANK", "0") != "0":
        return  # the first of several processes speaks for all
    print_blocks(*(TextTable(history, "training") for history in made.folder.histories))
    typer.echo(f"run: {made.root}")


def forecast(
    run_folder: RunFolderArgument,
    history: Annotated[
        bool, typer.Option("--history", help="every test window too, not only the newest")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="with those of training, validation and calibration, marked as such")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="CSV or Parquet file to write")] = None,
    picture: Annotated[
        Path | None,
        typer.Option(help="PNG or SVG file to draw: the price, then the forecasts and their intervals"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the forecasts as JSON")] = False,
    data: NewerData = None,
    override: Override = None,
) -> None:
    """Forecast past the end of the data, with intervals and future timestamps.

    Example: longtape forecast runs/btc --picture forecast.png
    """
    from longtape.workflow import load_run
    from longtape.workflow.run import refuse_ending
    from longtape.workflow.show import show_forecast
    from longtape.workflow.varied import varied

    if out is not None:
        refuse_ending(out)
    made = varied(load_run(run_folder), data, override or (), "forecast")
    frame = made.forecast(history=history, everything=everything)
    typer.echo(show_forecast(made, frame, out, picture, as_json))


def backtest(run_folder: RunFolderArgument, data: NewerData = None, override: Override = None) -> None:
    """Trade the forecasts of the test period and stand the result beside the baselines.

    With --data or -o nothing is kept in the run's folder.

    Example: longtape backtest runs/btc

    Example: longtape backtest runs/btc --data newer.csv -o backtest.costs.fee=0.0004
    """
    from longtape.report.text import print_blocks
    from longtape.workflow import load_run
    from longtape.workflow.varied import varied

    made = varied(load_run(run_folder), data, override or ())
    if made.experiment.has_account:
        made.backtest()
    else:
        made.score()
    print_blocks(*made.results.blocks())


def report(
    run_folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="folders of runs; a folder of longtape compare may be among them"
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="HTML file; report.html in the run by default, needed for several runs"),
    ] = None,
    data: NewerData = None,
    override: Override = None,
) -> None:
    """Write the HTML report of a run, or of several side by side; with --data or -o name where it goes (--out).

    Example: longtape report runs/btc

    Example: longtape report runs/btc --data newer.csv --out newer.html

    Example: longtape report runs/bigbird runs/flash compared --out side_by_side.html
    """
    from longtape.report.page import refuse_ending
    from longtape.workflow.reports import report_of

    if out is not None:
        refuse_ending(out)
    typer.echo(f"report: {report_of(run_folders, out, data, override or ())}")


def _show(made: Run) -> None:
    from longtape.report.text import print_blocks

    print_blocks(*made.results.blocks())
    typer.echo(f"report: {made.path('report.html')}")
