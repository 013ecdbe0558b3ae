"""Where and in which precision a step runs, compiled or not: applied to any model from outside."""

from __future__ import annotations

import os
import shutil
from collections.abc import Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from longtape.core.errors import UserError, require
from longtape.core.progress import say
from longtape.models.base import Model
from longtape.models.batch import Batch
from longtape.training.config import TrainingConfig

_HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
# What Linux calls the instructions for products of a type, on x86 and on ARM.
_INSTRUCTIONS = {
    "bfloat16": {"avx512_bf16", "amx_bf16", "bf16"},
    "float16": {"avx512_fp16", "amx_fp16", "asimdhp"},
}


class LossOf(nn.Module):
    """Batch → training loss: what a step runs, so that compilation and processes can wrap the whole of it."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return self.model(batch).training_loss(batch)


@dataclass(frozen=True)
class Execution:
    """A device, and the type in which matrix products are computed there."""

    device: torch.device
    half: torch.dtype | None = None  # None: float32
    compiled: bool = False

    @classmethod
    def of(cls, config: TrainingConfig, local_rank: int = 0) -> Execution:
        """As the configuration says; UserError where the device or a tool is not there."""
        if config.device == "cuda" and not torch.cuda.is_available():
            raise UserError("training.device: 'cuda' was named, but there is no CUDA device here")
        kind = "cuda" if uses_cuda(config) else "cpu"
        if config.compile and kind == "cpu" and not _cpu_compiler():
            raise UserError("training.compile: there is no C++ compiler here (g++); install one")
        if config.tensorboard:
            require("tensorboard", "tensorboard")
        device = torch.device(kind, local_rank) if kind == "cuda" else torch.device(kind)
        return cls(device, _HALF.get(config.precision), config.compile)

    def announce(self, config: TrainingConfig) -> None:
        """Say what a user should know: the device that `auto` chose, a precision that costs time."""
        if config.device == "auto":
            name = "the CPU" if self.device.type == "cpu" else torch.cuda.get_device_name(self.device)
            say(f"training on {name}")
        if self.device.type == "cpu" and is_slow(config.precision, cpu_flags()):
            say(f"note: this CPU has no instructions for {config.precision}; it will be slower than float32")

    def prepare(self, model: Model) -> nn.Module:
        """The model and its loss as a step runs them. The weights stay the model's own, and so does its plain form."""
        module = LossOf(model)
        if self.compiled:
            module.compile()
        return module

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """The loss of a batch by a prepared model, wherever its tensors lie."""
        with self._precision():
            loss: Tensor = module(batch.to(self.device))
        return loss

    def _precision(self) -> AbstractContextManager[object]:
        return nullcontext() if self.half is None else torch.autocast(self.device.type, self.half)


def uses_cuda(config: TrainingConfig) -> bool:
    """True where training will run on a GPU, or would if there were one."""
    return config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())


def _cpu_compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


def is_slow(precision: str, flags: Set[str]) -> bool:
    """True where a CPU with these instructions (none: not known) has none for products of this precision."""
    return precision != "float32" and bool(flags) and not flags & _INSTRUCTIONS[precision]


def cpu_flags() -> set[str]:
    """Instruction sets of this CPU as Linux lists them; nothing elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    listed = [line.split(":", 1)[1].split() for line in lines if line.startswith(("flags", "Features"))]
    return set(listed[0]) if listed else set()
