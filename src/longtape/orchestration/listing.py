"""`longtape runs`: the runs below a folder, their key figures, and what differs between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from longtape.core.documents import differing, flattened
from longtape.core.errors import UserError
from longtape.core.files import read_json
from longtape.training.run_folder import RunFolder

_NEVER_SHOWN = ("name",)


def list_runs(root: str | Path) -> list[dict[str, Any]]:
    """One row for each run below `root`: name, status, key figures, and the fields in which the runs differ.

    UserError where there is none.
    """
    root = Path(root)
    folders = sorted(path.parent for path in root.rglob("run.json"))
    if not folders:
        raise UserError(f"{root}: there is no run (no run.json in it or below); make one with longtape train")
    documents = [flattened(yaml.safe_load(RunFolder(folder).experiment_yaml)) for folder in folders]
    fields = [field for field in differing(documents) if field not in _NEVER_SHOWN]
    return [
        {
            "run": str(folder.relative_to(root)) if folder != root else folder.name,
            **_key_figures(RunFolder(folder)),
            **{field: document.get(field) for field in fields},
        }
        for folder, document in zip(folders, documents, strict=True)
    ]


def _key_figures(folder: RunFolder) -> dict[str, Any]:
    losses = [min(e["validation"] for e in history) for history in folder.histories if history]
    figures: dict[str, Any] = {
        "status": folder.status,
        "seconds": sum(history[-1]["seconds"] for history in folder.histories if history),
        "validation": sum(losses) / len(losses) if losses else None,
    }
    path = folder.path("metrics.json")
    metrics = (read_json(path)["metrics"] or {}) if path.exists() else {}
    return figures | {
        "Sharpe": metrics.get("sharpe"),
        "annual return %": _percent(metrics.get("annual_return")),
        "max drawdown %": _percent(metrics.get("max_drawdown")),
    }


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value
