"""Heads: from vectors to the distribution of one kind of target, in original units.

A head starts at zero, so that before training it predicts exactly what the closed-form baseline gives. Adding a head is
one class here and one line in `HEADS`, and its name in the kinds of target that it fits (`features.target_kinds`). An
experiment names a head, or a head with its options: `{return: huber}`, `{return: {name: allocation, long_only: true}}`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from longtape.core.errors import UserError, unknown_name
from longtape.core.registry import Registry
from longtape.features.target_kinds import target_kind
from longtape.models.prediction import (
    Categorical,
    Distribution,
    LogVariance,
    Point,
    Quantiles,
    StudentT,
    Weights,
)

HEADS = Registry(
    "head",
    {
        "regression": "longtape.models.heads:RegressionHead",
        "huber": "longtape.models.heads:HuberHead",
        "student_t": "longtape.models.heads:StudentTHead",
        "quantile": "longtape.models.heads:QuantileHead",
        "volatility": "longtape.models.heads:VolatilityHead",
        "classes": "longtape.models.heads:ClassesHead",
        "allocation": "longtape.models.heads:AllocationHead",
        "sharpe": "longtape.models.heads:SharpeHead",
    },
)


USUAL_BLOCK = 32  # rows of a block, where the loss is one of consecutive rows
HeadChoice = str | dict[str, Any]  # the name of a head, or {name: …} with its options


class HeadConfig(BaseModel):
    """A head by name; the options that it has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("", description="a head of the registry")

    @property
    def rows_of_block(self) -> int:
        """Consecutive rows that its loss asks for; 1: rows in any order."""
        return 1


def _normal_steps(levels: tuple[float, ...]) -> list[float]:
    """What softplus turns into the steps between a normal distribution's quantiles, outwards from the median."""
    z = [NormalDist().inv_cdf(level) for level in levels]
    middle = len(z) // 2
    steps = [abs(z[i] - z[i + (1 if i < middle else -1)]) for i in range(len(z))]
    return [math.log(math.expm1(step)) if i != middle else 0.0 for i, step in enumerate(steps)]


class Head(nn.Module):
    """n targets of one kind for each of A assets. `scale` [A, n] is the deviation of the training targets.

    A vector for each window [B, d_model] has an output row for each asset; a vector for each asset [B, A, d_model] has
    rows that all assets share (`shared`), so that the size of the head does not grow with their number; a vector for
    each target [B, n, d_model] has rows that the targets of a group share (`groups` [n]), as the steps of a path do.
    """

    Config: ClassVar[type[HeadConfig]] = HeadConfig
    n_outputs = 1  # for each target
    space: ClassVar[str] = "mean"  # in which the baseline is given: mean, log_variance, logits, or none
    gives_weights: ClassVar[bool] = False  # a share of the equity, where others forecast the label
    scale: Tensor

    def __init__(
        self,
        d_model: int,
        scale: Tensor,
        *,
        config: HeadConfig | None = None,
        shared: bool = False,
        groups: Sequence[int] = (),
        n_classes: int = 0,
    ) -> None:
        super().__init__()
        self.groups = list(groups)
        self.config = config or self.Config()
        self.shared, self.n_classes = shared, n_classes
        self.n_outputs = n_classes or self.n_outputs
        self.register_buffer("scale", scale.float())
        self.n_rows = 1 if shared else len(scale)
        n_columns = max(self.groups) + 1 if self.groups else scale.shape[1]
        self.linear = nn.Linear(d_model, self.n_rows * n_columns * self.n_outputs)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, vector: Tensor, base: Tensor, factor: Tensor | None = None) -> Distribution:
        """Vectors as the head takes them and the baseline [B, A, n] → distribution [B, A, n].

        Outputs are in units of `scale`, or of `factor` [B, A, 1] times that.
        """
        raw = self._outputs(vector).float()
        return self.distribution(raw, base, self.scale if factor is None else self.scale * factor)

    def _outputs(self, vector: Tensor) -> Tensor:
        """[B, A, n, n_outputs]."""
        out: Tensor = self.linear(vector)
        if not self.groups:
            n_rows = vector.shape[1] if self.shared else self.n_rows
            return out.view(len(vector), n_rows, self.scale.shape[1], self.n_outputs)
        out = out.view(*vector.shape[:2], self.n_rows, -1, self.n_outputs)  # [B, n, A, groups, n_outputs]
        of_target = [out[:, k, :, group] for k, group in enumerate(self.groups)]
        return torch.stack(of_target, 2)

    @abstractmethod
    def distribution(self, raw: Tensor, base: Tensor, unit: Tensor) -> Distribution:
        """Raw outputs [B, A, n, n_outputs], the baseline, and the unit of outputs that have one → the distribution."""

    @property
    def is_calibrated_afterwards(self) -> bool:
        """True where `calibrate` has something to set."""
        return False

    def calibrate(self, forecasts: Sequence[tuple[Distribution, Tensor]]) -> None:
        """Once trained: forecasts of validation windows and their labels [B, A, n], NaN where not known."""


class RegressionHead(Head):
    """The mean, by squared error in units of the training deviation."""

    def distribution(self, raw: Tensor, base: Tensor, unit: Tensor) -> Distribution:
        return Point(base + unit * raw[..., 0], self.scale)


class HuberHead(Head):
    """The mean, by Huber's loss with its knee at one training deviation (Huber 1964)."""

    def distribution(self, raw: Tensor, base: Tensor, unit: Tensor) -> Distribution:
        return Point(base + unit * raw[..., 0], self.scale, "huber")


class StudentTHead(Head):
    """Location, spread and degrees of freedom (> 2), by likelihood."""

    n_outputs = 3

    def distribution(self, raw: Tensor, base: Tensor, unit: Tensor) -> Distribution:
        location = base + unit * raw[..., 0]
        spread = unit * F.softplus(raw[..., 1] + math.log(math.e - 1)) + 1e-9
        freedom = 2.0 + F.softplus(raw[..., 2] + 2.0) + 1e-3
        return StudentT(location, spread, freedom, self.scale)


class QuantileHead(Head):
    """Quantiles that cannot cross: softplus steps away from the median; pinball loss.

    Untrained they are those of a normal distribution with the training deviation.
    """

    levels = (0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975)
    n_outputs = len(levels)

    def distribution(self, raw: Tensor, base: Tensor, unit: Tensor) -> Distribution:
        middle = self.n_outputs // 2
        median = base + unit * raw[..., middle]
        step = unit[..., None] * F.softplus(raw + raw.new_tensor(_NORMAL_STEPS))
        below = median[..., None] - step[..., :middle].flip(-1).cumsum(-1).flip(-1)
        above = median[..., None] + step[..., middle + 1 :].cumsum(-1)
        return Quantiles(torch.cat([below, median[..., None], above], -1), self.levels, self.scale)


_NORMAL_STEPS = _normal_steps(QuantileHead.levels)


_SHARES = torch.linspace(0, 1, 21, dtype=torch.float64)


class VolatilityConfig(HeadConfig):
    """How much a surprise may weigh."""

    clip: float | None = Field(
        None,
        gt=0,
        description="ln(y/f) of variances counts up to this much in training, so that no crash outweighs the rest;"
        " the level that this takes away is set on the validation windows once training is over",
    )
    gate: bool = Field(
        False,
        description="of what the network adds a share from 0 to 1 is kept: the one whose forecasts, at their best"
        " level, lose least by QLIKE on the validation windows once training is over; 0 where it adds nothing",
    )


class VolatilityHead(Head):
    """The logarithm of the variance, trained with QLIKE; positive by construction.

    With `clip` the loss does not mind by how much a large surprise is larger, and the forecast is too low on average:
    the level, of each asset and target, then makes the mean of y/f over the validation windows 1, where QLIKE is least.
    With `gate` it is chosen first, in the same windows, how much of the network's addition is kept.
    """

    Config = VolatilityConfig
    space = "log_variance"
    config: VolatilityConfig
    level: Tensor
    gate: Tensor

    def __init__(self, d_model: int, scale: Tensor, **options: Any) -> None:
        super().__init__(d_model, scale, **options)
        shape = self.n_rows, scale.shape[1]
        self.register_buffer("level", torch.zeros(shape), persistent=self.is_calibrated_afterwards)
        self.register_buffer("gate", torch.ones(shape), persistent=self.config.gate)

    def distribution(self, raw: Tensor, base: Tensor, unit: Tensor) -> Distribution:
        clip = math.inf if self.config.clip is None else self.config.clip
        added = raw[..., 0]
        return LogVariance(base + self.gate * added + self.level, clip, added if self.config.gate else None)

    @property
    def is_calibrated_afterwards(self) -> bool:
        return self.config.clip is not None or self.config.gate

    @torch.no_grad()
    def calibrate(self, forecasts: Sequence[tuple[Distribution, Tensor]]) -> None:
        own = [(one, y) for one, y in forecasts if isinstance(one, LogVariance)]
        surprise = torch.cat([one.surprise(y) for one, y in own]).double()
        if self.config.gate:
            added = torch.cat([one.added for one, _ in own if one.added is not None]).double()
            surprise = self._set_gate(surprise, added)
        mean = self._mean(surprise.exp())
        self.level += torch.where(mean > 0, mean, 1.0).log().to(self.level)

    def _set_gate(self, surprise: Tensor, added: Tensor) -> Tensor:
        """Choose the share of `added` [n, A, k] that is kept; the surprises [n, A, k] that it leaves."""
        before = self.gate.double()
        left = torch.stack([surprise + (before - share) * added for share in _SHARES])
        # At its best level a forecast loses ln(mean of y/f) − mean of ln(y/f) by QLIKE.
        lost = torch.stack([self._mean(one.exp()).log() - self._mean(one) for one in left])
        best = torch.where(lost.isnan(), torch.inf, lost).argmin(0)
        self.gate.copy_(_SHARES.to(best.device)[best])
        return surprise + (before - self.gate) * added

    def _mean(self, values: Tensor) -> Tensor:
        """Over windows whose label is known, and over the assets where they share a row, [n_rows, k]."""
        return values.nanmean((0, 1) if self.shared else 0).view_as(self.level)


class ClassesHead(Head):
    """Logits of ordered classes, by cross-entropy."""

    space = "logits"

    def distribution(self, raw: Tensor, base: Tensor, unit: Tensor) -> Distribution:
        return Categorical(base + raw)


class WeightsConfig(HeadConfig):
    """What an allocation may hold, and what moving it costs."""

    long_only: bool = Field(False, description="shares of at least 0, the rest in cash; false: also short")
    turnover_cost: float = Field(
        0.0, ge=0, description="cost of a change of weight, as a part of the value that it trades"
    )
    block: int | None = Field(
        None,
        ge=2,
        description=f"consecutive rows over which turnover and Sharpe ratio are taken; {USUAL_BLOCK} by default",
    )


class AllocationConfig(WeightsConfig):
    """The return that is earned, less turnover."""

    @model_validator(mode="after")
    def _block_has_an_effect(self) -> AllocationConfig:
        if self.block is not None and not self.turnover_cost:
            raise ValueError("block has no effect without turnover_cost: returns alone come in any order")
        return self

    @property
    def rows_of_block(self) -> int:
        """A block where turnover costs."""
        return (self.block or USUAL_BLOCK) if self.turnover_cost else 1


class SharpeConfig(WeightsConfig):
    """The Sharpe ratio of the account, less turnover."""

    @property
    def rows_of_block(self) -> int:
        """Always a block."""
        return self.block or USUAL_BLOCK


class AllocationHead(Head):
    """Shares of the equity, −1 to 1 and all assets together at most 1, by the return that they earn.

    Short and long: tanh of each asset, scaled down where Σ|w| exceeds 1. Long only: softmax over the assets and cash.
    """

    Config: ClassVar[type[HeadConfig]] = AllocationConfig
    space = "none"
    gives_weights = True
    objective: ClassVar[Literal["return", "sharpe"]] = "return"
    config: WeightsConfig

    def distribution(self, raw: Tensor, base: Tensor, unit: Tensor) -> Distribution:
        wish = base + raw[..., 0]  # [B, A, n]
        if self.config.long_only:
            cash = torch.zeros_like(wish[:, :1])
            share = torch.cat([cash, wish], 1).softmax(1)[:, 1:]
        else:
            share = torch.tanh(wish)
            share = share / share.abs().sum(1, keepdim=True).clamp_min(1.0)
        return Weights(share, self.scale, self.objective, self.config.turnover_cost)


class SharpeHead(AllocationHead):
    """The same by the Sharpe ratio of the whole account over blocks of consecutive rows."""

    Config = SharpeConfig
    objective = "sharpe"


def head_config(heads: Mapping[str, HeadChoice], kind: str) -> HeadConfig:
    """The head that forecasts a kind of target, as chosen or the kind's usual one. UserError where it does not fit."""
    fitting = target_kind(kind).heads
    choice = heads.get(kind, fitting[0])
    options: dict[str, Any] = {"name": choice} if isinstance(choice, str) else dict(choice)
    name = options.get("name")
    if not isinstance(name, str):
        raise UserError(f"model.heads: {kind}: name a head, {' or '.join(fitting)}")
    if name not in fitting:
        HEADS.find(name)
        raise UserError(
            f"model.heads: the head '{name}' does not go with targets of kind '{kind}';"
            f" {' or '.join(fitting)} does"
        )
    config: type[HeadConfig] = HEADS.load(name).Config
    try:
        return config.model_validate(options)
    except ValidationError as error:
        raise _one_line(error, f"model.heads: {kind}", config) from None


def _one_line(error: ValidationError, where: str, config: type[HeadConfig]) -> UserError:
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return unknown_name("option", place, config.model_fields, where)
    message = first["msg"].removeprefix("Value error, ")
    return UserError(f"{where}: {place + ': ' if place else ''}{message}")
