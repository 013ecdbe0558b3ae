"""`longtape report`: the page of one run, or of several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longtape.core.errors import UserError
from longtape.workflow.pages.several import write_side_by_side
from longtape.workflow.run import Run, load_run, read_comparison
from longtape.workflow.varied import varied


def report_of(
    folders: Sequence[Path], out: Path | None = None, data: Path | None = None, overrides: Sequence[str] = ()
) -> Path:
    """Write the page of the runs in `folders`; folders of `longtape compare` among them are shown on it too.

    `data`, `overrides`: as of `varied`, for every run. UserError for several runs without `out`.
    """
    comparisons = [folder for folder in folders if (folder / "compare.json").exists()]
    runs = [varied(load_run(folder), data, overrides) for folder in folders if folder not in comparisons]
    if not runs:
        raise UserError(
            f"{comparisons[0]}: is a comparison; name the run on whose page it shall stand before it"
        )
    if len(runs) == 1:
        if len(comparisons) > 1:
            raise UserError(f"{comparisons[1]}: one comparison stands on the page of a run; name one")
        return runs[0].report(out, comparisons[0] if comparisons else None)
    if out is None:
        raise UserError("report: name where the page of several runs goes (--out page.html)")
    subjects = {name: run.subject(inside=False) for name, run in _named(runs).items()}
    return write_side_by_side(out, subjects, [read_comparison(one) for one in comparisons])


def _named(runs: Sequence[Run]) -> dict[str, Run]:
    """Runs by the shortest end of their path that tells them apart. UserError for a run that is named twice."""
    paths = [run.root.resolve() for run in runs]
    for at, path in enumerate(paths):
        if path in paths[:at]:
            raise UserError(f"{runs[at].root}: is named twice")
    parts = 1
    while len({path.parts[-parts:] for path in paths}) < len(paths):
        parts += 1
    return {"/".join(path.parts[-parts:]): run for path, run in zip(paths, runs, strict=True)}
