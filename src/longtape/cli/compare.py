"""`longtape compare`: lookbacks and mechanisms on the same test times."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    experiment: Annotated[Path, typer.Argument(help="experiment file (YAML)")],
    out: Annotated[Path, typer.Option(help="folder for the cells, the table and the picture")],
    lookback: Annotated[
        str | None, typer.Option(help="bars, separated by commas; the experiment's own by default")
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option(help="mechanisms, separated by commas, options as linformer:k=64; its own by default"),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="models trained for each setting")] = 3,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the cells that are there")] = False,
    override: Annotated[
        list[str] | None, typer.Option("-o", "--override", help="key=value, for example -o training.epochs=3")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print plain values")] = False,
) -> None:
    """Train every mechanism at every lookback and say which differ by more than luck, and what they cost.

    The first mechanism at the first lookback is what the others are compared with.

    Example: longtape compare examples/btc_hourly.yaml --lookback 128,512 --attention flash,bigbird --out compared
    """
    import json

    from longtape.experiment import load_experiment
    from longtape.report.compare_picture import comparison
    from longtape.report.pictures import save
    from longtape.workflow.compare import run_compare

    described = load_experiment(experiment, override)
    mechanisms = str(attention or getattr(described.model, "attention", ""))
    lookbacks = _numbers(lookback or str(described.model.lookback))
    made = run_compare(described, mechanisms.split(","), lookbacks, seeds, out, resume)
    picture = save(comparison(made.rows), out / "compare.png")
    typer.echo(json.dumps(made.to_dict(), indent=2) if as_json else f"{made.text()}\npicture: {picture}")


def _numbers(text: str) -> list[int]:
    from longtape.core.errors import UserError

    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--lookback {text}: write numbers of bars, for example 128,512") from None
    if min(found) < 1:
        raise UserError(f"--lookback {text}: a lookback is at least one bar")
    return found
