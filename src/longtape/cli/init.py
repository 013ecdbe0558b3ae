"""`longtape init` and `longtape config`: an experiment file begun, and one with every default written out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longtape.cli.runs import ExperimentFile, Override


def init(
    source: Annotated[
        str,
        typer.Option(
            "--from", help="file of candles, a folder, or a pattern with {symbol}; any form that import reads"
        ),
    ],
    out: Annotated[Path, typer.Option(help="experiment file to write")],
    symbol: Annotated[
        str | None,
        typer.Option(help="of a table of many, the one to take; else its name, the file's by default"),
    ] = None,
    interval: Annotated[
        str | None, typer.Option(help="length of the candles, where the times do not tell")
    ] = None,
    category: Annotated[str, typer.Option(help="spot, linear (a perpetual), stock, fx, …")] = "spot",
    calendar: Annotated[
        str | None, typer.Option(help="24/7, 24/5 or an exchange code such as XNYS; guessed from weekends")
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("-o", "--override", help="how the file is written: data.read.stamp=close"),
    ] = None,
) -> None:
    """Begin an experiment from your own candles: a commented file that runs as it is.

    Example: longtape init --from candles.csv --out experiment.yaml

    Example: longtape init --from 'hourly/{symbol}.csv' --category linear --out coins.yaml
    """
    from longtape.workflow.init import init as write

    typer.echo(write(source, out, symbol, interval, category, calendar, override or ()))
    typer.echo(f"{out}: longtape run {out} --out runs/{out.stem}")


def config(experiment: ExperimentFile, override: Override = None) -> None:
    """Print an experiment with every default written out.

    Example: longtape config examples/btc_hourly.yaml -o model.lookback=512
    """
    from longtape.experiment import load_experiment
    from longtape.workflow.tokens import is_token_file, load_token_experiment

    if is_token_file(experiment):
        typer.echo(load_token_experiment(experiment, override).to_yaml(), nl=False)
    else:
        typer.echo(load_experiment(experiment, override).to_yaml(), nl=False)
