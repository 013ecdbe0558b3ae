"""The state of a training run in one safetensors file: no pickle, written atomically, read back to the bit."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from longtape.core.errors import UserError
from longtape.core.files import atomic_path


@dataclass
class TrainingState:
    """Where a run stands: the next step of the next epoch, the best epoch, and what was measured so far."""

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_loss: float = float("inf")
    epoch_loss: float = 0.0  # sum over the steps of the running epoch
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


def save_weights(path: str | Path, state: dict[str, Tensor]) -> None:
    """Write tensors to a safetensors file."""
    with atomic_path(path) as temporary:
        save_file({name: t.detach().cpu().contiguous().clone() for name, t in state.items()}, temporary)


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a safetensors file; UserError where it is missing or broken."""
    return _read(path)[0]


def save_checkpoint(
    path: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor],
    at: TrainingState,
) -> None:
    """Write model, optimiser, best weights, random state and progress."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"best.{k}": v for k, v in best.items()}
    for index, entries in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in entries.items()}
    tensors["random"] = torch.get_rng_state()
    with atomic_path(path) as temporary:
        plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        save_file(plain, temporary, metadata={"progress": json.dumps(vars(at))})


def load_checkpoint(
    path: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], TrainingState]:
    """Restore model, optimiser and random state; return the best weights and the progress."""
    tensors, metadata = _read(path)
    model.load_state_dict(_under("model.", tensors))
    state: dict[int, dict[str, Any]] = {}
    for name, value in _under("optimizer.", tensors).items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(tensors["random"])
    return _under("best.", tensors), TrainingState(**json.loads(metadata["progress"]))


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; is this a finished run?") from None
    except Exception as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error}); train the run again") from error
