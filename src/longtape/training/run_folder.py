"""The folder of a run: what was asked, what it was trained on, and what came out. Every file is whole or absent."""

from __future__ import annotations

import platform
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from longtape.core.clock import Interval
from longtape.core.errors import UserError
from longtape.core.files import read_json, write_json, write_text
from longtape.features.panel import TargetColumn
from longtape.models.forecaster import ModelInputs

UNFINISHED, FINISHED = "unfinished", "finished"
_LIBRARIES = ("longtape", "torch", "numpy", "polars", "pyarrow", "numba", "safetensors")


class RunFolder:
    """Paths and small documents of a run."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    @classmethod
    def create(cls, root: str | Path, experiment_yaml: str, facts: dict[str, Any]) -> RunFolder:
        """Make the folder of a new run, marked unfinished; UserError where something is there already."""
        folder = cls(root)
        folder.refuse_existing()
        folder.root.mkdir(parents=True, exist_ok=True)
        write_text(folder.root / "experiment.yaml", experiment_yaml)
        write_json(folder.root / "run.json", {"status": UNFINISHED, **facts, "versions": versions()})
        return folder

    def refuse_existing(self) -> None:
        """UserError if a run, or anything else, is there already."""
        if self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
            resumable = (self.root / "run.json").exists() and self.status == UNFINISHED
            way = "go on with --resume or name another folder" if resumable else "name another folder"
            raise UserError(f"{self.root}: is there already and not empty; {way}")

    @classmethod
    def open(cls, root: str | Path) -> RunFolder:
        """The folder of an existing run; UserError where there is none."""
        folder = cls(root)
        if not (folder.root / "run.json").exists():
            raise UserError(f"{root}: is not the folder of a run (no run.json); make one with longtape train")
        return folder

    def path(self, name: str) -> Path:
        """A file of the run."""
        return self.root / name

    @property
    def facts(self) -> dict[str, Any]:
        """What run.json holds: status, seed, fingerprints, versions, …"""
        try:
            facts: dict[str, Any] = read_json(self.root / "run.json")
        except ValueError:
            raise UserError(f"{self.root / 'run.json'}: is not valid JSON; train the run again") from None
        return facts

    @property
    def status(self) -> str:
        """`unfinished` or `finished`."""
        return str(self.facts.get("status"))

    def update(self, **changes: Any) -> None:
        """Change entries of run.json."""
        write_json(self.root / "run.json", self.facts | changes)

    @property
    def experiment_yaml(self) -> str:
        """The resolved experiment."""
        return self.path("experiment.yaml").read_text(encoding="utf-8")

    def require_finished(self) -> None:
        """UserError unless training has come to its end."""
        if self.status != FINISHED:
            raise UserError(f"{self.root}: training is unfinished; go on with longtape train … --resume")


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


def inputs_to_dict(inputs: ModelInputs) -> dict[str, Any]:
    """ModelInputs as plain values, kept in model.json."""
    return {
        "columns": list(inputs.columns),
        "targets": [asdict(target) for target in inputs.targets],
        "interval": inputs.interval.name,
        "mean": inputs.mean.tolist(),
        "deviation": inputs.deviation.tolist(),
        "target_deviation": inputs.target_deviation.tolist(),
    }


def inputs_from_dict(kept: dict[str, Any]) -> ModelInputs:
    """Back from model.json, the same bits."""
    targets = tuple(
        TargetColumn(**{**t, "options": tuple((name, value) for name, value in t["options"])})
        for t in kept["targets"]
    )
    return ModelInputs(
        tuple(kept["columns"]),
        targets,
        Interval.parse(kept["interval"]),
        np.array(kept["mean"]),
        np.array(kept["deviation"]),
        np.array(kept["target_deviation"]),
    )
