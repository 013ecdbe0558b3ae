"""The encoder forecaster: window → tokens → transformer → one vector → a head for each kind of target.

All features of all assets stand side by side in a token; the vector at the end has an output row for each asset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from longtape.attention import Attention
from longtape.attention.dropout import Dropout
from longtape.core.calendars import CALENDAR_COLUMNS
from longtape.core.errors import UserError, unknown_name
from longtape.features.expression import parse
from longtape.features.panel import Panel, Rows
from longtape.features.target_kinds import TargetKind
from longtape.models.base import ModelInputs
from longtape.models.batch import Batch
from longtape.models.embedding import PatchEmbedding, Positions, WindowNorm
from longtape.models.heads import HEADS
from longtape.models.linear_baseline import Constant
from longtape.models.network import Network, NetworkConfig
from longtape.models.pooling import AttentionPooling, StaticInputs, build_pooling
from longtape.models.prediction import Prediction
from longtape.models.transformer import Transformer

_OF_TARGETS = ("log_return", "level")  # features in whose unit targets are: of returns, and of levels


class EncoderConfig(NetworkConfig):
    """A transformer encoder over the window."""

    kind: Literal["encoder"] = "encoder"
    lookback: int = Field(512, ge=2, description="bars in a window")
    patch: int = Field(
        1, ge=1, description="bars joined into one token; the first is padded where it is short"
    )
    positions: Literal["sinusoidal", "learned", "rotary", "none"] = Field(
        "sinusoidal", description="how a token is told its place; rotary turns queries and keys by it"
    )
    calendar: bool = Field(False, description="add an embedding of the time at which each bar opens")
    pooling: Literal["last", "mean", "class", "attention"] = Field(
        "last",
        description="the newest token, the mean of all, a class token in front of them, or a learnt mean",
    )
    static: list[str] = Field(
        [],
        description="features of which the newest row alone is read, beside the pooled vector, not as tokens",
    )
    window_norm: bool = Field(
        False, description="subtract each window's own mean and divide by its deviation"
    )
    reversible: bool = Field(
        False,
        description="undo window_norm at the end: returns are forecast in units of the deviation that log_return has"
        " in the window",
    )
    dense: float = Field(
        0.0,
        ge=0,
        description="weight of a loss on the same targets forecast from every token of the window, which takes causal"
        " attention",
    )

    @property
    def n_tokens(self) -> int:
        """Tokens the transformer sees: ⌈lookback / patch⌉, and one more with class pooling."""
        return -(-self.lookback // self.patch) + (self.pooling == "class")

    @property
    def is_rotary(self) -> bool:
        return self.positions == "rotary"

    @property
    def reads_calendar(self) -> bool:
        return self.calendar

    @model_validator(mode="after")
    def _class_token_sees_the_window(self) -> EncoderConfig:
        if self.pooling == "class" and self.is_causal:
            raise ValueError(
                "pooling: the class token stands first, so under causal attention it sees nothing"
            )
        if self.pooling == "class" and not _first_sees_all(self.build_attention()):
            raise ValueError(
                f"pooling: the class token stands first, and {self.attention} as it is set does not let it see the"
                " window; make the first token global, or pool otherwise"
            )
        return self

    @model_validator(mode="after")
    def _dense_outputs_see_the_past_alone(self) -> EncoderConfig:
        if self.dense and not self.is_causal:
            raise ValueError(
                "dense: a token must not see later ones, of which its labels tell;"
                " name attention_options: {causal: true}"
            )
        if self.dense and self.window_norm:
            raise ValueError(
                "dense: window_norm tells every token the mean of the whole window, later bars included"
            )
        return self

    @model_validator(mode="after")
    def _reversible_has_an_effect(self) -> EncoderConfig:
        if self.reversible and not self.window_norm:
            raise ValueError("reversible undoes window_norm, which is off")
        return self

    def refuse_targets(self, kinds: Mapping[str, TargetKind]) -> None:
        super().refuse_targets(kinds)
        heads = [HEADS.load(self.head_config(kind).name) for kind in kinds]
        if self.reversible and not any(head.space == "mean" for head in heads):
            raise UserError(
                "model.reversible: no target is a return, and nothing else has a unit to be undone"
            )
        if self.dense and any(head.gives_weights for head in heads):
            raise UserError("model.dense: weights are decided on at the origin alone")

    def refuse_features(self, features: Sequence[str]) -> None:
        for name in self.static:
            if str(parse(name)) not in features:
                raise unknown_name("feature", name, features, "model.static")
        if features and all(name in map(_plain, self.static) for name in features):
            raise UserError("model.static: no feature is left for the tokens")
        if self.reversible and "log_return" not in features:
            raise UserError("model.reversible: the deviation is that of the feature log_return; name it")


def _plain(name: str) -> str:
    return str(parse(name))


def _first_sees_all(layer: Attention) -> bool:
    """Whether the first token is global, where the mechanism shows only some pairs."""
    config = layer.config
    if not layer.capabilities.fixed_pattern or layer.capabilities.exact:
        return True
    tokens = getattr(config, "global_tokens", ())
    if isinstance(tokens, str):
        return getattr(config, "n_global", 0) > 0 and tokens in ("first", "both", "spaced")
    return 0 in tokens


class EncoderForecaster(Network):
    """[B, L, C] raw features → predictions of all targets."""

    Config = EncoderConfig
    config: EncoderConfig
    returns: Tensor
    sequence: Tensor
    static: Tensor

    def __init__(self, config: EncoderConfig, inputs: ModelInputs) -> None:
        super().__init__(config, inputs)
        self._register_columns()
        self.window_norm = WindowNorm(config.clip) if config.window_norm else None
        self.embedding = PatchEmbedding(len(self.sequence), config.patch, config.d_model)
        self.class_token = (
            nn.Parameter(torch.zeros(1, 1, config.d_model)) if config.pooling == "class" else None
        )
        self.positions = Positions(config.positions, config.n_tokens, config.d_model)
        self.drop = Dropout(config.dropout)
        self.transformer = Transformer(config)
        self.pooling = build_pooling(config.pooling, config.d_model)
        self.build_heads(config.d_model)
        self._build_options()

    def _register_columns(self) -> None:
        """Columns of the tokens, of the static inputs, and of each asset's log return."""
        static = {_plain(name) for name in self.config.static}
        is_static = [_feature_of(column.name, static) for column in self.inputs.columns]
        own = {c.asset: i for i, c in enumerate(self.inputs.columns) if c.name in _OF_TARGETS}
        places = {
            "sequence": [i for i, beside in enumerate(is_static) if not beside],
            "static": [i for i, beside in enumerate(is_static) if beside],
            "returns": [own[asset] for asset in self.inputs.assets] if self.config.reversible else [],
        }
        for name, columns in places.items():
            self.register_buffer(name, torch.tensor(columns, dtype=torch.int64), persistent=False)

    def _build_options(self) -> None:
        """What is there only where it was asked for; built last, so that the rest begins as without it."""
        config, kinds = self.config, self.inputs.kinds
        self.calendar = (
            PatchEmbedding(len(CALENDAR_COLUMNS), config.patch, config.d_model) if config.calendar else None
        )
        self.beside = StaticInputs(config.d_model, len(self.static)) if config.static else None
        self.dense_heads = nn.ModuleDict()
        self.dense_starts = nn.ModuleDict()
        for kind in kinds if config.dense else ():
            head = self._build_head(kind, config.d_model)
            n_assets, n_targets = kinds[kind].shape
            self.dense_heads[kind] = head
            self.dense_starts[kind] = Constant(head.space, n_assets, n_targets, head.n_classes)

    def forward(self, batch: Batch) -> Prediction:
        """The prediction at the end of every window."""
        scaled = self.scaling(batch.x)
        embedded, factor = self._embed(batch, scaled)
        marks, dense = self._token_of(batch.marks), self.config.dense and self.training
        if self.config.pooling == "last" and not self.training:  # of the last layer one token is read
            tokens = self.transformer.newest(embedded, marks)
        else:
            tokens = self.transformer(embedded, marks)[-1]
        vector = self.pooling(tokens)
        if self.beside is not None:
            vector = self.beside(vector, scaled[:, -1, self.static])
        made = self.predict(vector, scaled, batch.rows, factor)
        if not dense:
            return made
        return replace(made, dense=self._dense(tokens), dense_weight=self.config.dense)

    def hidden_states(self, batch: Batch) -> list[Tensor]:
        """Tokens after each layer [B, N, d_model], the last ones normalised as the head sees them."""
        embedded, _ = self._embed(batch, self.scaling(batch.x))
        states: list[Tensor] = self.transformer(embedded, self._token_of(batch.marks))
        return states

    def token_bars(self) -> Rows:
        own = np.arange(
            self.config.patch - 1,
            self.config.patch * -(-self.config.lookback // self.config.patch),
            self.config.patch,
        )
        bars = own - (-self.config.lookback % self.config.patch)
        return np.concatenate([[-1], bars]) if self.class_token is not None else bars

    def pooled_weights(self, batch: Batch) -> Tensor:
        n = self.config.n_tokens
        if isinstance(self.pooling, AttentionPooling):
            weights: Tensor = self.pooling.weights(self.hidden_states(batch)[-1])
            return weights
        if self.config.pooling == "mean":
            return torch.full((len(batch), n), 1 / n)
        one = torch.zeros(len(batch), n)
        one[:, 0 if self.class_token is not None else -1] = 1.0
        return one

    def _embed(self, batch: Batch, scaled: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens before the layers, and by how much more than in training returns vary in each window [B, A, 1]."""
        factor = None
        if self.window_norm is not None:
            scaled, deviation = self.window_norm(self.scaling.unlimited(batch.x))
            factor = deviation[:, self.returns, None] if self.config.reversible else None
        tokens = self.embedding(scaled[:, :, self.sequence] if self.config.static else scaled)
        if self.calendar is not None:
            tokens = tokens + self.calendar(batch.calendar)
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], 1)
        return self.drop(self.positions(tokens)), factor

    def _dense(self, tokens: Tensor) -> Prediction:
        """What each token says of its own row, [B·N, …]: the targets' training mean, and what the head adds."""
        vectors = tokens.flatten(0, 1)
        parts = [
            head(vectors, self.dense_starts[kind](vectors, vectors))
            for kind, head in self.dense_heads.items()
        ]
        return Prediction(tuple(parts), self.kind_columns, self.loss_weights)

    @property
    def label_offsets(self) -> Rows:
        """The last row of every token."""
        n_tokens = self.config.n_tokens if self.config.dense else 0
        return self.config.patch * np.arange(1 - n_tokens, 1, dtype=np.int64)

    def fit(self, panel: Panel, train: Rows, validation: Rows) -> None:
        super().fit(panel, train, validation)
        for kind, start in self.dense_starts.items():
            assert isinstance(start, Constant)  # noqa: S101 (for the type alone)
            start.fit(panel, self.inputs.kinds[kind], train, validation, self.scaling)

    def _token_of(self, bars: Tensor) -> Tensor | None:
        """Positions of bars in the window → positions of their tokens; −1 stays. None where nothing is marked."""
        if bars.shape[1] == 0:
            return None
        short = -self.config.lookback % self.config.patch
        tokens = (bars + short) // self.config.patch + (self.class_token is not None)
        return tokens.masked_fill(bars < 0, -1)


def _feature_of(column: str, features: set[str]) -> bool:
    """Whether a column is one of these features, or one of their several outputs (`hour.sin`)."""
    return column in features or any(column.startswith(f"{name}.") for name in features)


class ChannelsConfig(EncoderConfig):
    """The encoder by the name that it has beside a portfolio of tokens (asset, time)."""

    cannot_pool = "it sees all symbols side by side; name kind: encoder"

    kind: Literal["channels"] = "channels"  # type: ignore[assignment]


class Channels(EncoderForecaster):
    """All assets' features side by side as channels of one token for each bar, one output row for each asset."""

    Config = ChannelsConfig
