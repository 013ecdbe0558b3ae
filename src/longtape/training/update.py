"""From gradients to new weights: loss scaling, clipping, the optimiser, the moving average of the weights."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from longtape.models.base import Model
from longtape.training.config import TrainingConfig
from longtape.training.guards import GradientNotFinite

OPTIMIZERS: dict[str, type[torch.optim.Adam]] = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
SMALLEST_SCALE = 1.0  # a float16 loss that must be made smaller still has no usable gradient


class WeightUpdate:
    """Adam with everything around it. `backward` for each part of a batch, then `step` once."""

    def __init__(self, model: Model, config: TrainingConfig) -> None:
        self.model, self.config = model, config
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = OPTIMIZERS[config.optimizer](
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        device = self.parameters[0].device.type
        self.scaler = torch.amp.GradScaler(device, enabled=config.precision == "float16")
        self.average = _moving_average(model, config.ema)

    @property
    def judged(self) -> Model:
        """The model that is validated and kept: the average where there is one."""
        return self.model if self.average is None else cast(Model, self.average.module)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss` to what lies in the parameters."""
        self.scaler.scale(loss).backward()

    def step(self, rate: float) -> float:
        """Move the weights at a learning rate and clear the gradients; returns the gradient's norm before clipping.

        GradientNotFinite before anything moves. In float16 such a step is left out and the loss scaled less, until the
        scale is used up.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.scaler.unscale_(self.optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm))
        if not norm < float("inf") and self.scaler.get_scale() <= SMALLEST_SCALE:
            raise GradientNotFinite(norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.model)
        return norm

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on beside the weights, as tensors by name."""
        named = {
            f"optimizer.{index}.{name}": torch.as_tensor(value)
            for index, entries in self.optimizer.state_dict()["state"].items()
            for name, value in entries.items()
        }
        if self.scaler.is_enabled():
            kept = self.scaler.state_dict()
            named["scaler"] = torch.tensor([kept["scale"], kept["_growth_tracker"]], dtype=torch.float64)
        if self.average is not None:
            named |= {f"average.{name}": t for name, t in self.average.state_dict().items()}
        return named

    def load_state(self, named: dict[str, Tensor]) -> None:
        """Back from `state`."""
        state: dict[int, dict[str, Any]] = {}
        for name, value in under("optimizer.", named).items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        if self.scaler.is_enabled():
            scale, tracker = named["scaler"].tolist()
            kept = {"scale": scale, "_growth_tracker": int(tracker)}
            self.scaler.load_state_dict(self.scaler.state_dict() | kept)
        if self.average is not None:
            self.average.load_state_dict(under("average.", named))


def _moving_average(model: Model, decay: float | None) -> AveragedModel | None:
    """w̄ ← decay·w̄ + (1 − decay)·w after every step; buffers are the model's own."""
    return None if decay is None else AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
