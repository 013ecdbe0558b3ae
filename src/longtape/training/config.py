"""What describes a training run."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TrainingConfig(BaseModel):
    """How a model is fitted. Windows are drawn without replacement; `stride` takes one in so many per epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(8, ge=0, description="0 keeps the closed-form baseline alone")
    seeds: int = Field(
        1, ge=1, description="models trained from seed, seed + 1, …, whose predictions are averaged"
    )
    batch_size: int = Field(32, ge=1)
    stride: int = Field(
        1, ge=1, description="an epoch visits 1/stride of the training windows, others the next time"
    )
    validation_stride: int = Field(
        1, ge=1, description="every how many validation windows the loss is measured on"
    )
    learning_rate: float = Field(1e-3, gt=0)
    optimizer: Literal["adamw", "adam"] = "adamw"
    weight_decay: float = Field(0.01, ge=0)
    schedule: Literal["onecycle", "cosine", "halving", "constant"] = "onecycle"
    warmup: float = Field(
        0.1, ge=0, lt=1, description="share of the steps in which the rate rises (onecycle, cosine)"
    )
    clip_norm: float = Field(1.0, gt=0, description="largest norm of the gradient")
    patience: int = Field(3, ge=1, description="epochs without a better validation loss before stopping")
    accumulate: int = Field(1, ge=1, description="batches per optimiser step")
    precision: Literal["float32", "bfloat16"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    checkpoint_seconds: float = Field(60.0, gt=0, description="how often a running epoch is saved")
