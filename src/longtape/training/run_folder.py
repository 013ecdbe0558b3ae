"""The folder of a run: the only place that knows its files, their version, and the data that they come from.

| file | what it holds |
|---|---|
| experiment.yaml | what was asked, every default written out |
| run.json | status, version of the folder, seed, fingerprints of data, borders of the split, versions, memory used |
| model.json, model.safetensors | what the model knows of its data, and its best weights |
| calibration.json | what makes the intervals and the trading threshold |
| history.jsonl | losses, one line for each epoch of each seed |
| forecast.parquet | forecasts of the test period and beyond, with the fingerprint of their data |
| metrics.json, backtest/*.parquet | what they came to |
| audit.json, report.html | the audit for look-ahead, the page |
| report.png, report.svg | the four-panel figure of the account, where there is one |
| tensorboard/ | curves for TensorBoard, where they were asked for |

Every file is whole or absent. While a run is trained there are checkpoints beside them.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import torch
from torch import Tensor

from longtape.core.errors import UserError
from longtape.core.files import atomic_path, make_folder, read_json, write_json, write_text
from longtape.features.splits import Periods
from longtape.models.base import ModelInputs
from longtape.training.checkpoint import load_weights, save_weights
from longtape.training.observers import (
    HistoryFile,
    LiveLine,
    Observer,
    TensorBoard,
    read_history,
    write_history,
)

VERSION = 3
UNFINISHED, FINISHED = "unfinished", "finished"
_LIBRARIES = ("longtape", "torch", "numpy", "polars", "pyarrow", "numba", "safetensors")
_FINGERPRINT = b"longtape data"
Fingerprints = Mapping[str, str]


class RunFolder:
    """Files of a run, written whole and read back checked."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    @classmethod
    def create(
        cls, root: str | Path, experiment_yaml: str, periods: Periods, facts: Mapping[str, Any]
    ) -> RunFolder:
        """Make the folder of a new run, marked unfinished; UserError where something is there already."""
        folder = cls(root)
        folder.refuse_existing()
        make_folder(folder.root)
        write_text(folder.root / "experiment.yaml", experiment_yaml)
        head = {"status": UNFINISHED, "version": VERSION}
        write_json(
            folder.root / "run.json", {**head, **facts, "periods": asdict(periods), "versions": versions()}
        )
        return folder

    def refuse_existing(self) -> None:
        """UserError if a run, or anything else, is there already."""
        if self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
            resumable = (self.root / "run.json").exists() and self.status == UNFINISHED
            way = "go on with --resume or name another folder" if resumable else "name another folder"
            raise UserError(f"{self.root}: is there already and not empty; {way}")

    @classmethod
    def open(cls, root: str | Path) -> RunFolder:
        """The folder of an existing run; UserError where there is none, or one of another version."""
        folder = cls(root)
        if not (folder.root / "run.json").exists():
            raise UserError(f"{root}: is not the folder of a run (no run.json); make one with longtape train")
        if "periods" not in folder.facts:
            raise UserError(
                f"{root}: is a run on token ids, which has no market; its predictions and scores are there already"
            )
        version = folder.facts.get("version", 1)
        if version != VERSION:
            raise UserError(
                f"{root}: is a run of version {version}, and this longtape reads {VERSION}; train it again"
            )
        return folder

    def path(self, name: str) -> Path:
        """A file of the run."""
        return self.root / name

    @property
    def facts(self) -> dict[str, Any]:
        """What run.json holds."""
        try:
            facts: dict[str, Any] = read_json(self.root / "run.json")
        except ValueError:
            raise UserError(f"{self.root / 'run.json'}: is not valid JSON; train the run again") from None
        return facts

    @property
    def status(self) -> str:
        """`unfinished` or `finished`."""
        return str(self.facts.get("status"))

    def require_finished(self) -> None:
        """UserError unless training has come to its end."""
        if self.status != FINISHED:
            raise UserError(f"{self.root}: training is unfinished; go on with longtape train … --resume")

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of the data that the run was trained on, by instrument."""
        found: dict[str, str] = self.facts["fingerprints"]
        return found

    @property
    def periods(self) -> Periods:
        """The borders of the split, which hold for whatever data come later."""
        return Periods(**self.facts["periods"])

    @property
    def experiment_yaml(self) -> str:
        """The resolved experiment."""
        return self.path("experiment.yaml").read_text(encoding="utf-8")

    def checkpoint(self, member: int) -> Path:
        """Where the training of one seed is saved while it goes on."""
        return self.path("checkpoint.safetensors" if member == 0 else f"checkpoint-{member}.safetensors")

    def trained(self, member: int) -> Path:
        """Where a seed that is trained waits for the others; its losses stand beside it."""
        return self.path(f"member-{member}.safetensors")

    def finish(
        self,
        inputs: ModelInputs,
        weights: Mapping[str, Tensor],
        calibration: Mapping[str, Any],
        histories: Sequence[Sequence[Mapping[str, float]]],
        used: Mapping[str, Any] | None = None,
    ) -> None:
        """Write what training came to, mark the run finished and remove what only training needed.

        used: what it took, for run.json.
        """
        save_weights(self.path("model.safetensors"), dict(weights))
        write_json(self.path("model.json"), inputs.to_dict())
        write_json(self.path("calibration.json"), calibration)
        write_history(self.path("history.jsonl"), dict(enumerate(histories)))
        write_json(self.root / "run.json", self.facts | {"status": FINISHED, **(used or {})})
        for pattern in ("checkpoint*.safetensors", "member-*"):
            for left in self.root.glob(pattern):
                left.unlink()

    @property
    def inputs(self) -> ModelInputs:
        """What the model knows of its data."""
        return ModelInputs.from_dict(read_json(self.path("model.json")))

    @property
    def weights(self) -> dict[str, Tensor]:
        """The model's best weights."""
        return load_weights(self.path("model.safetensors"))

    @property
    def calibration(self) -> dict[str, Any]:
        """What makes the intervals."""
        kept: dict[str, Any] = read_json(self.path("calibration.json"))
        return kept

    @property
    def histories(self) -> list[Sequence[Mapping[str, float]]]:
        """Losses per epoch of each seed."""
        return list(read_history(self.path("history.jsonl")).values())

    def observers(self, member: int, tensorboard: bool) -> list[Observer]:
        """Who watches the training of one seed: the terminal, the history, TensorBoard where it is wanted."""
        watching: list[Observer] = [LiveLine(), HistoryFile(self.path("history.jsonl"), member)]
        return [*watching, TensorBoard(self.path(f"tensorboard/{member}"))] if tensorboard else watching

    def write_forecast(self, frame: pl.DataFrame, fingerprints: Fingerprints) -> None:
        """Keep the forecasts of the test period, and say inside the file of which data they are."""
        table = frame.to_arrow()
        metadata = {**(table.schema.metadata or {}), _FINGERPRINT: _digest(fingerprints)}
        with atomic_path(self.path("forecast.parquet")) as temporary:
            pq.write_table(table.replace_schema_metadata(metadata), temporary, compression="zstd")

    def read_forecast(self, fingerprints: Fingerprints) -> pl.DataFrame | None:
        """The kept forecasts, if they are of these data."""
        path = self.path("forecast.parquet")
        if not path.exists():
            return None
        kept = (pq.read_schema(path).metadata or {}).get(_FINGERPRINT)
        return pl.read_parquet(path) if kept == _digest(fingerprints) else None


def _digest(fingerprints: Fingerprints) -> bytes:
    return hashlib.sha256(json.dumps(fingerprints, sort_keys=True).encode()).hexdigest().encode()


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {
        "python": sys.version.split()[0],
        "machine": platform.machine(),
        "threads": str(torch.get_num_threads()),
    }
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
