"""What describes a training run."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class TrainingConfig(BaseModel):
    """How a model is fitted. Windows are drawn without replacement; `stride` takes one in so many per epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(8, ge=0, description="0 keeps the closed-form baseline alone")
    seeds: int = Field(
        1, ge=1, description="models trained from seed, seed + 1, …, whose predictions are averaged"
    )
    batch_size: int = Field(32, ge=1, description="windows at once, over all processes together")
    stride: int = Field(
        1, ge=1, description="an epoch visits 1/stride of the training windows, others the next time"
    )
    validation_stride: int = Field(
        1, ge=1, description="every how many validation windows the loss is measured on"
    )
    learning_rate: float = Field(1e-3, gt=0, description="the highest rate of the schedule")
    optimizer: Literal["adamw", "adam"] = Field("adamw", description="what turns gradients into steps")
    weight_decay: float = Field(0.01, ge=0, description="pull of the weights towards zero")
    schedule: Literal["onecycle", "cosine", "cosine_restarts", "plateau", "halving", "constant"] = Field(
        "onecycle", description="course of the learning rate"
    )
    warmup: float = Field(
        0.1, ge=0, lt=1, description="share of the steps in which the rate first rises, with every schedule"
    )
    restart_epochs: int | None = Field(
        None, ge=1, description="cosine_restarts: epochs from one restart to the next; 2 by default"
    )
    plateau_epochs: int | None = Field(
        None,
        ge=1,
        description="plateau: the rate is halved after so many epochs without a better validation loss; 1 by default",
    )
    clip_norm: float = Field(1.0, gt=0, description="largest norm of the gradient")
    patience: int = Field(3, ge=1, description="epochs without a better validation loss before stopping")
    accumulate: int = Field(1, ge=1, description="batches per optimiser step")
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of a moving average of the weights, which is then validated and kept",
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of matrix products; weights and losses stay float32"
    )
    compile: bool = Field(False, description="torch.compile; on a CPU it needs a C++ compiler")
    device: Literal["cpu", "cuda", "auto"] = Field(
        "cpu", description="where the model is trained; auto: CUDA where there is some"
    )
    checkpoint_seconds: float = Field(60.0, gt=0, description="how often a running epoch is saved")
    tensorboard: bool = Field(False, description="curves for TensorBoard in the run's folder")

    @model_validator(mode="after")
    def _every_option_has_an_effect(self) -> TrainingConfig:
        for option, schedule in (("restart_epochs", "cosine_restarts"), ("plateau_epochs", "plateau")):
            if getattr(self, option) is not None and self.schedule != schedule:
                raise ValueError(f"{option} goes with schedule '{schedule}', not '{self.schedule}'")
        if self.plateau_epochs is not None and self.plateau_epochs >= self.patience:
            raise ValueError(
                f"plateau_epochs {self.plateau_epochs} is never reached with patience {self.patience}; make it smaller"
            )
        return self
