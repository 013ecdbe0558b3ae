"""The state of a training run in one safetensors file: no pickle, written atomically, read back to the bit."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from longtape.core.errors import UserError
from longtape.core.files import atomic_path
from longtape.training.processes import ALONE, Processes


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

    @property
    def losses(self) -> list[float]:
        """Validation losses so far."""
        return [entry["validation"] for entry in self.history]


def save_weights(path: str | Path, state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors to a safetensors file."""
    with atomic_path(path) as temporary:
        save_file({name: _plain(t) for name, t in state.items()}, temporary, metadata)


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a safetensors file; UserError where it is missing or broken."""
    return _read(path)[0]


def save_checkpoint(
    path: str | Path, state: dict[str, Tensor], at: TrainingState, processes: Processes
) -> None:
    """Write `state`, the random state of every process, and progress. Called by all processes; the first one writes."""
    random = {f"random.{rank}": one for rank, one in enumerate(processes.gather(_random_state()))}
    if processes.is_first:
        save_weights(path, state | random, {"progress": json.dumps(vars(at))})
    processes.wait()


def load_checkpoint(
    path: str | Path, processes: Processes = ALONE
) -> tuple[dict[str, Tensor], TrainingState]:
    """Restore the random state; return the rest. UserError where it was written by another number of processes."""
    tensors, metadata = _read(path)
    kept = sum(name.startswith("random.") for name in tensors)
    if kept != processes.size:
        raise UserError(
            f"{path}: was written by {kept} processes, and there are {processes.size}; go on with as many"
        )
    _set_random_state(tensors[f"random.{processes.rank}"])
    return tensors, TrainingState(**json.loads(metadata["progress"]))


def _random_state() -> Tensor:
    """Of every generator that training draws from: the CPU's, and the GPU's where there is one."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available():
        states.append(torch.cuda.get_rng_state())
    return torch.cat(states)


def _set_random_state(state: Tensor) -> None:
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size])
    if len(state) > size and torch.cuda.is_available():
        torch.cuda.set_rng_state(state[size:])


def _plain(tensor: Tensor) -> Tensor:
    """Its own memory on the CPU: safetensors takes no shared storage."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; is this a finished run?") from None
    except Exception as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error}); train the run again") from error
