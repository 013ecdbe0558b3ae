"""Walk forward: refit at every fold, forecast only what comes after it, join the folds to one out-of-sample record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from longtape.core.clock import iso
from longtape.core.documents import first_difference
from longtape.core.errors import UserError
from longtape.core.files import atomic_path, read_json, write_json
from longtape.core.progress import say
from longtape.evaluation.protocol import Fitted, Pipeline
from longtape.features.book_targets import with_classes
from longtape.features.panel import Panel
from longtape.features.splits import Split, WalkForwardConfig
from longtape.market.rows import Rows as MarketRows

IDENTITY_FILE = "plan.json"  # what the kept folds are of


@dataclass(frozen=True, eq=False)
class WalkForward:
    """Out-of-sample forecasts of all folds, in order of time, and the folds they come from."""

    panel: Panel
    folds: tuple[Split, ...]
    forecasts: pl.DataFrame

    def table(self) -> list[dict[str, Any]]:
        """One row per fold: what it was trained on and what it forecast."""
        opens = self.panel.timestamps
        return [
            {
                "fold": number,
                "trained on windows": len(fold.train),
                "trained until": iso(int(self.panel.target_ends[fold.train].max())),
                "first forecast": iso(int(opens[fold.test[0]])),
                "last forecast": iso(int(opens[fold.test[-1]])),
                "forecasts": len(fold.test),
            }
            for number, fold in enumerate(self.folds, 1)
        ]


def walk_forward(
    pipeline: Pipeline,
    bars: Sequence[MarketRows],
    config: WalkForwardConfig,
    out: str | Path,
    *,
    identity: Mapping[str, Any],
    resume: bool = False,
) -> WalkForward:
    """Fit and forecast every fold of `config`; each fold's forecasts are kept in `out` as soon as they are there.

    `identity` says what the forecasts depend on (experiment, data fingerprints); with `resume`, folds that are there
    are taken as they are if they were made by the same. Scaler and model are fitted inside each fold. UserError where
    `out` is there already and `resume` was not asked, or where it was made by something else.
    """
    out = Path(out)
    panel, folds = plan_folds(pipeline, pipeline.panel(bars), config)
    begin_plan(out, {**identity, "folds": config.model_dump(mode="json")}, resume)
    parts = []
    for number, fold in enumerate(folds, 1):
        path = fold_path(out, number)
        if not path.exists():
            say(
                f"fold {number}/{len(folds)}: {len(fold.train):,} training windows, {len(fold.test):,} to forecast"
            )
            write_fold(_fitted(pipeline, panel, fold, out, number), panel, fold, path)
        parts.append(pl.read_parquet(path))
    return WalkForward(panel, tuple(folds), pl.concat(parts))


def plan_folds(pipeline: Pipeline, panel: Panel, config: WalkForwardConfig) -> tuple[Panel, list[Split]]:
    """The folds, and the panel whose classes are set on the first one's training rows, so that all mean the same."""
    folds = pipeline.folds(panel, config)
    return with_classes(panel, folds[0].train), folds


def fold_path(out: Path, number: int) -> Path:
    """Where the forecasts of a fold, counted from 1, are kept."""
    return out / f"fold-{number:02}.parquet"


def write_fold(fitted: Fitted, panel: Panel, fold: Split, path: Path) -> None:
    """Forecast the test windows of a fold and keep them."""
    with atomic_path(path) as temporary:
        fitted.forecast(panel, fold.test).write_parquet(temporary, compression="zstd")


def _fitted(pipeline: Pipeline, panel: Panel, fold: Split, out: Path, number: int) -> Any:
    try:
        return pipeline.fit(panel, fold)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"{out} holds {number - 1} whole folds; the same command with --resume (--out {out} --resume) goes on there"
        ) from None


def begin_plan(out: Path, identity: Mapping[str, Any], resume: bool) -> None:
    """Write what a folder of many results is made by; with `resume`, UserError where it was made by something else."""
    # A hidden file is what a killed writer left: it is no part of a record.
    if not out.exists() or all(path.name.startswith(".") for path in out.iterdir()):
        write_json(out / IDENTITY_FILE, dict(identity))
        return
    if not resume:
        raise UserError(f"{out}: is there already and not empty; go on with --resume or name another folder")
    if not (out / IDENTITY_FILE).exists():
        raise UserError(
            f"{out}: was not made by this experiment, nor by any walk forward; name another folder"
        )
    if (found := first_difference(_read(read_json(out / IDENTITY_FILE)), _read(identity))) is not None:
        key, before, now = found
        raise UserError(
            f"{out}: was not made by this experiment on these data: it began with {key} = {before}, and is asked to go"
            f" on with {now}; resume with the same, or name another folder"
        )


def _read(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity whose experiment is a document, so that a key of it can be named."""
    given = identity.get("experiment")
    document = yaml.safe_load(given) if isinstance(given, str) else None
    rest = {name: value for name, value in identity.items() if name != "experiment"}
    return {**(document if isinstance(document, dict) else {"experiment": given}), **rest}
