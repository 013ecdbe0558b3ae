"""`longtape export`: a run's model as a graph that other programs run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    run_folder: Annotated[Path, typer.Argument(help="folder of a run")],
    to: Annotated[str, typer.Option(help="torch (torch.export, .pt2) or onnx (.onnx)")],
    out: Annotated[
        Path, typer.Option(help="file to write; what goes in and out is written beside it as .json")
    ],
) -> None:
    """Write a run's model as a graph of one window, scaling and closed-form start inside.

    The graph is held to the newest forecasts of the run. Which mechanism goes to which format: docs/export.md.

    Example: longtape export runs/btc --to onnx --out btc.onnx
    """
    from longtape.workflow import load_run

    made = load_run(run_folder).export(to, out)
    given = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in made.inputs.items())
    gives = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in made.outputs.items())
    typer.echo(f"{out}: {given} → {gives}")
    typer.echo(f"{out.with_suffix('.json')}: columns, scaling, targets, intervals")
    typer.echo(f"largest difference from the run's newest forecasts: {made.difference:.1g}")
