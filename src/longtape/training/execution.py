"""Where and in which precision a step runs: applied to any model from outside."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from longtape.core.errors import UserError
from longtape.models.base import Model
from longtape.models.batch import Batch
from longtape.training.config import TrainingConfig


@dataclass(frozen=True)
class Execution:
    """A device, and the type in which matrix products are computed there."""

    device: torch.device
    half: bool

    @classmethod
    def of(cls, config: TrainingConfig) -> Execution:
        """As the configuration says; UserError where the device is not there."""
        if config.device == "cuda" and not torch.cuda.is_available():
            raise UserError("training.device: 'cuda' was named, but there is no CUDA device here")
        return cls(torch.device(config.device), config.precision == "bfloat16")

    def loss(self, model: Model, batch: Batch) -> Tensor:
        """The training loss of a batch, wherever its tensors lie."""
        batch = batch.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16) if self.half else nullcontext():
            prediction = model(batch)
        return prediction.training_loss(batch)
