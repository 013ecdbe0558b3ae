"""`longtape explain`: what a run's model looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def explain(
    run_folder: Annotated[Path, typer.Argument(help="folder of a run")],
    out: Annotated[
        Path | None, typer.Option(help="folder for pictures and explain.json; explain in the run by default")
    ] = None,
    windows: Annotated[
        int, typer.Option(min=2, help="windows of the test period over which losses are taken")
    ] = 128,
    as_json: Annotated[bool, typer.Option("--json", help="print plain values")] = False,
) -> None:
    """Attention maps, most attended bars, what the loss is without features, distances and global tokens, ranks.

    What does not exist for a model or a mechanism is listed with the reason.

    Example: longtape explain runs/btc --out pictures
    """
    import json

    from longtape.workflow import load_run

    made = load_run(run_folder)
    folder = out or made.path("explain")
    found = made.explain(folder, windows=windows)
    typer.echo(json.dumps(found.to_dict(), indent=2) if as_json else f"{found.text()}\n\npictures: {folder}")
