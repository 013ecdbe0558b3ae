"""What models that train share: scaled inputs, a head for each kind of target, and the closed form it begins at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from longtape.core.clock import Interval
from longtape.core.errors import UserError
from longtape.features.build import PooledConfig
from longtape.features.expression import parse
from longtape.features.panel import Panel, Rows
from longtape.features.target_kinds import TargetKind, target_kind
from longtape.models.base import Array, Model, ModelConfig, ModelInputs
from longtape.models.batch import Batch
from longtape.models.embedding import InputScaling
from longtape.models.har import HarDesign
from longtape.models.heads import HEADS, Head, HeadChoice, HeadConfig, head_config
from longtape.models.linear_baseline import Constant, LinearBaseline, LogHar, MonthlyHar, SpanRidge
from longtape.models.prediction import Distribution, Prediction
from longtape.models.transformer import TransformerConfig


class TrainedConfig(ModelConfig):
    """Inputs, heads and start of a model that trains."""

    trains: ClassVar[bool] = True

    cannot_pool: ClassVar[str] = ""  # why not, where one network cannot see one symbol at a time

    assets: Literal["joint", "pooled"] = Field(
        "joint",
        description="pooled: one network sees one symbol at a time, a row is a (symbol, time), and symbols that it has"
        " never seen are forecast too",
    )
    own_past: int | None = Field(
        None, ge=2, description="pooled: bars of a symbol's own past that tell its level; 512 by default"
    )
    own_scale: bool | None = Field(
        None,
        description="pooled: features as z-scores of that past (the default); false: as they are, for features in"
        " which no level stands",
    )
    clip: float = Field(8.0, gt=0, description="scaled inputs are limited to ± this many deviations")
    skip: bool = Field(
        True, description="begin at the closed-form baseline (ridge, log-HAR); false: at the training mean"
    )
    volatility_start: Literal["log_har", "log_har_mean"] = Field(
        "log_har",
        description="the baseline of volatility: log-HAR, fitted once, or the mean of eight that are fitted anew each"
        " month, which takes the whole history at every forecast",
    )
    volatility_reach: int | None = Field(
        None, ge=1, description="bars of the longest lag of that baseline; by default a month or so"
    )
    heads: dict[str, HeadChoice] = Field(
        default_factory=dict,
        description="kind of target → head, or {name: head} with its options; the kind's usual head by default",
    )

    auxiliary: dict[str, float] = Field(
        default_factory=dict,
        description="targets that are learnt beside those of the experiment and not forecast, and what a label of each"
        " weighs, where one of the others weighs 1",
    )

    @field_validator("auxiliary")
    @classmethod
    def _weights_are_positive(cls, auxiliary: dict[str, float]) -> dict[str, float]:
        for target, weight in auxiliary.items():
            if not 0 < weight < float("inf"):
                raise ValueError(f"{target}: its weight must be above 0, not {weight}")
        return {str(parse(target)): weight for target, weight in auxiliary.items()}

    @model_validator(mode="after")
    def _pooled_where_it_can_be(self) -> TrainedConfig:
        if self.assets == "pooled" and self.cannot_pool:
            raise ValueError(f"assets: {self.kind} cannot be pooled: {self.cannot_pool}")
        for name in ("own_past", "own_scale"):
            if self.assets == "joint" and getattr(self, name) is not None:
                raise ValueError(f"{name} has no effect without assets: pooled; leave it away")
        return self

    @property
    def pooled(self) -> PooledConfig | None:
        if self.assets == "joint":
            return None
        chosen = {"own_past": self.own_past, "scaled": self.own_scale}
        return PooledConfig(**{name: value for name, value in chosen.items() if value is not None})

    @property
    def auxiliary_targets(self) -> Mapping[str, float]:
        return self.auxiliary

    def refuse_targets(self, kinds: Mapping[str, TargetKind]) -> None:
        self._refuse_start(kinds)
        for name in self.heads:
            if name not in kinds:
                raise UserError(f"model.heads: no target is of kind '{name}'; there are {', '.join(kinds)}")
        for name, kind in kinds.items():
            if self.assets == "pooled" and self.gives_weights(kind):
                raise UserError(
                    f"model.heads: {name}: weights of symbols that are seen one at a time do not know of each other;"
                    " kind: portfolio divides one account among them"
                )
        blocks = {kind: self.head_config(kind).rows_of_block for kind in kinds}
        if len({rows for rows in blocks.values() if rows > 1}) > 1:
            raise UserError(f"model.heads: blocks of one batch have one length, not {blocks}")

    def _refuse_start(self, kinds: Mapping[str, TargetKind]) -> None:
        """UserError where a choice of the volatility's start has no effect."""
        chosen = [
            name
            for name, usual in (("volatility_start", "log_har"), ("volatility_reach", None))
            if getattr(self, name) != usual
        ]
        if chosen and ("volatility" not in kinds or not self.skip):
            why = "no target is a volatility" if self.skip else "skip: false begins at the training mean"
            raise UserError(f"model.{chosen[0]} has no effect: {why}; leave it out")

    def refuse_clock(self, interval: Interval, calendar: str) -> None:
        HarDesign.of(interval, calendar).within(self.volatility_reach)

    def head_config(self, kind: str) -> HeadConfig:
        """The head of a kind of target with its options; UserError where it does not fit."""
        return head_config(self.heads, kind)

    def head_of(self, kind: TargetKind) -> str | None:
        return self.head_config(kind.name).name

    def gives_weights(self, kind: TargetKind) -> bool:
        head: type[Head] = HEADS.load(self.head_config(kind.name).name)
        return head.gives_weights

    @property
    def block(self) -> int:
        """What the head with the longest block asks for."""
        return max([self.head_config(kind).rows_of_block for kind in self.heads], default=1)


class NetworkConfig(TransformerConfig, TrainedConfig):
    """Layers over an attention mechanism, with inputs, heads and start."""

    @property
    def summary(self) -> str:
        """Mechanism and lookback."""
        return f"{self.attention} attention over {self.lookback:,} bars"


class Network(Model):
    """A model that learns what its closed-form baseline leaves over, for each kind of target by a head."""

    config: TrainedConfig
    trained_weights: Tensor
    judged_weights: Tensor

    def __init__(self, config: TrainedConfig, inputs: ModelInputs) -> None:
        super().__init__(config, inputs)
        self.scaling = InputScaling(inputs.mean, inputs.deviation, config.clip)
        for name, weights in _loss_weights(config, inputs).items():
            self.register_buffer(name, weights, persistent=False)

    def build_heads(self, d_model: int) -> None:
        """A head for each kind of target, and what it begins at."""
        kinds = self.inputs.kinds
        self.heads = nn.ModuleDict({kind: self._build_head(kind, d_model) for kind in kinds})
        self.baselines = nn.ModuleDict({kind: self.build_baseline(kind) for kind in kinds})

    def predict(
        self,
        vectors: Tensor | Mapping[str, Tensor],
        scaled: Tensor,
        rows: Tensor,
        factor: Tensor | None = None,
    ) -> Prediction:
        """Vectors as the heads take them, of all kinds or of each; scaled windows [B, L, C] and row inputs [B, S]; by
        what the unit of the outputs is multiplied, [B, A, 1].
        """
        parts: list[Distribution] = []
        for kind, base in self.starts(scaled, rows):
            own = vectors if isinstance(vectors, Tensor) else vectors[kind]
            parts.append(self.heads[kind](own, base, factor))
        return Prediction(tuple(parts), self.kind_columns, self.loss_weights)

    @property
    def loss_weights(self) -> Tensor | None:
        """What each target counts [K]: auxiliary ones nothing where it is judged; None where there are none."""
        if not self.config.auxiliary:
            return None
        return self.trained_weights if self.training else self.judged_weights

    def starts(self, scaled: Tensor, rows: Tensor) -> Iterable[tuple[str, Tensor]]:
        """What each kind's head begins at, [B, A, n]."""
        at = 0
        for kind, baseline in self._baselines():
            yield kind, baseline(scaled, rows[:, at : at + baseline.n_rows])
            at += baseline.n_rows

    def fit(self, panel: Panel, train: Rows, validation: Rows) -> None:
        for kind, baseline in self._baselines():
            baseline.fit(panel, self.inputs.kinds[kind], train, validation, self.scaling)

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Batch]) -> None:
        kinds = [kind for kind in self.inputs.kinds if self.head(kind).is_calibrated_afterwards]
        if not kinds:
            return
        places = [list(self.inputs.kinds).index(kind) for kind in kinds]
        device = self.scaling.mean.device
        made = [(self(batch.to(device)), batch.y.to(device)) for batch in batches]
        for kind, place in zip(kinds, places, strict=True):
            columns = self.kind_columns[place]
            self.head(kind).calibrate([(prediction.parts[place], y[:, columns]) for prediction, y in made])

    def row_inputs(self, panel: Panel) -> Array:
        parts = [baseline.row_inputs(panel) for _, baseline in self._baselines()]
        return torch.cat([torch.from_numpy(part) for part in parts], 1).numpy()

    @property
    def reach(self) -> int:
        """The window, or what a baseline reads beyond it."""
        return max(self.config.lookback, *(baseline.reach for _, baseline in self._baselines()))

    def head(self, kind: str) -> Head:
        """The head of a kind of target."""
        return cast(Head, self.heads[kind])

    @property
    def is_its_start(self) -> bool:
        """True while every head is as it began, at zero: the forecast is then that of the closed form alone."""
        return not any(bool(weight.any()) for weight in self.heads.parameters())

    def _baselines(self) -> list[tuple[str, LinearBaseline]]:
        return [(kind, one) for kind, one in self.baselines.items() if isinstance(one, LinearBaseline)]

    def _build_head(self, kind: str, d_model: int) -> Head:
        config, classes = self.config.head_config(kind), target_kind(kind).classes
        head: type[Head] = HEADS.load(config.name)
        return head(d_model, self.scale_of(kind), config=config, n_classes=classes, **self.head_form(kind))

    def head_form(self, kind: str) -> dict[str, Any]:
        """How the head of a kind takes its vectors: one for each window, or `shared`, or `groups`."""
        return {}

    def build_baseline(self, kind: str) -> LinearBaseline:
        """What the head of a kind begins at."""
        head = self.head(kind)
        n_assets, n_targets = self.inputs.kinds[kind].shape
        if self.config.skip and head.space == "log_variance":
            design = HarDesign.of(self.inputs.interval, self.inputs.calendar).within(
                self.config.volatility_reach
            )
            if self.config.volatility_start == "log_har_mean":
                return MonthlyHar(design, self.inputs.kinds[kind])
            return LogHar(design, n_assets, n_targets)
        if self.config.skip and head.space == "mean":
            return SpanRidge(len(self.inputs.columns), self.config.lookback, n_assets, n_targets)
        return Constant(head.space, n_assets, n_targets, head.n_classes)


def _loss_weights(config: TrainedConfig, inputs: ModelInputs) -> dict[str, Tensor]:
    """What the label of each target counts in training, and where the model is judged, [K] each."""
    trained = [config.auxiliary[one.name] if one.auxiliary else 1.0 for one in inputs.targets]
    judged = [0.0 if one.auxiliary else 1.0 for one in inputs.targets]
    return {"trained_weights": torch.tensor(trained), "judged_weights": torch.tensor(judged)}
