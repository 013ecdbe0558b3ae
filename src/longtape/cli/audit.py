"""`longtape audit`: prove that nothing sees the future, or show what does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longtape.core.errors import CheckFailed

if TYPE_CHECKING:
    from longtape.evaluation.audit_report import AuditReport


def audit(
    experiment: Annotated[
        Path, typer.Argument(help="experiment file (YAML), or the folder of a trained run")
    ],
    override: Annotated[
        list[str] | None, typer.Option("-o", "--override", help="key=value, for example -o training.epochs=1")
    ] = None,
    cuts: Annotated[int, typer.Option(min=1, help="times after training at which everything is audited")] = 6,
    feature_cuts: Annotated[int, typer.Option(min=1, help="further times for features and labels")] = 32,
    origins: Annotated[int, typer.Option(min=2, help="forecasts on either side of each time")] = 32,
    seed: Annotated[int, typer.Option(help="draws the times")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print plain values")] = False,
) -> None:
    """Cut and change the data after many times, and the first bars, and see whether anything moves that should not.

    An experiment is trained first (one epoch will do: -o training.epochs=1); of a run, the trained weights are used and
    audit.json is kept for its report. Exit code 1 where something was found.

    Example: longtape audit examples/btc_hourly.yaml -o training.epochs=1
    """
    report = _audit(experiment, override, cuts, feature_cuts, origins, seed)
    if as_json:
        import json

        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        typer.echo(report.table())
    if not report.passed:
        failed = [check.name for check in report.checks if not check.passed]
        raise CheckFailed(f"audit of {experiment}: not passed: {', '.join(failed)}")


def _audit(
    experiment: Path, override: list[str] | None, cuts: int, feature_cuts: int, origins: int, seed: int
) -> AuditReport:
    from longtape.core.errors import UserError
    from longtape.core.files import write_json
    from longtape.evaluation.audit import audit as run_audit
    from longtape.experiment import load_experiment
    from longtape.workflow import load_run
    from longtape.workflow.data import RunData

    run = load_run(experiment) if experiment.is_dir() else None
    if run is not None and override:
        raise UserError(f"{experiment}: a trained run is audited as it is; -o goes with an experiment file")
    data = RunData.of(load_experiment(experiment, override)) if run is None else run.data
    report = run_audit(
        data.pipeline,
        data.bars,
        fitted=None if run is None else run.fitted,
        n_cuts=cuts,
        n_feature_cuts=feature_cuts,
        n_origins=origins,
        seed=seed,
    )
    if run is not None:
        write_json(run.path("audit.json"), report.to_dict())
    return report
