"""Informer (Zhou et al. 2021, arXiv:2012.07436): a distilling encoder, and a decoder that gives all steps in one pass.

The encoder halves the length between its layers; shorter replicas of it read the newest half, quarter, … of the window
with one layer less each, and all of them end in the same length. The decoder is fed the newest `label_len` bars and
zeros for the bars to come, whose calendar alone is known. The token of the h-th bar to come forecasts what is known h
bars ahead, of every kind of target.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from longtape.attention import Attention, build_attention
from longtape.attention.dropout import Dropout
from longtape.core.calendars import CALENDAR_COLUMNS
from longtape.models.base import ModelInputs
from longtape.models.batch import Batch
from longtape.models.embedding import Positions
from longtape.models.network import Network, NetworkConfig
from longtape.models.prediction import Prediction
from longtape.models.transformer import EncoderLayer, feed_forward, saving


class InformerConfig(NetworkConfig):
    """An encoder and a decoder over any mechanism; the decoder's must be able to mask later steps."""

    kind: Literal["informer"] = "informer"
    lookback: int = Field(96, ge=2, description="bars that the encoder reads")
    label_len: int | None = Field(
        None, ge=1, description="newest bars that the decoder begins with; half of the lookback by default"
    )
    attention: str = Field("probsparse", description="mechanism, one of `longtape.attention.MECHANISMS`")
    n_decoder_layers: int = Field(1, ge=1, description="layers of the decoder")
    decoder_attention: str | None = Field(
        None, description="mechanism of the decoder among its own steps; the encoder's by default"
    )
    decoder_options: dict[str, Any] | None = Field(
        None, description="its options; the encoder's by default, where it is the same mechanism"
    )
    distil: bool = Field(True, description="halve the length between the encoder's layers")
    replicas: int = Field(
        0, ge=0, description="further encoders of half, a quarter, … of the window, each with one layer less"
    )
    positions: Literal["sinusoidal", "learned", "none"] = Field(
        "sinusoidal", description="how a bar is told its place"
    )
    calendar: bool = Field(True, description="add an embedding of the time at which each bar opens")
    norm: Literal["pre", "post"] = Field(
        "post", description="where the layer norms stand: before each part of a layer, or after its residual"
    )

    @property
    def known_steps(self) -> int:
        """Known bars that the decoder begins with."""
        return self.label_len or max(1, self.lookback // 2)

    @property
    def reads_calendar(self) -> bool:
        return self.calendar

    @property
    def has_global_tokens(self) -> bool:
        """No: distilling moves positions."""
        return False

    @model_validator(mode="after")
    def _lengths_fit(self) -> InformerConfig:
        if self.label_len is not None and self.label_len > self.lookback:
            raise ValueError(f"label_len: {self.label_len} bars are more than the window's {self.lookback}")
        if self.replicas and not self.distil:
            raise ValueError("replicas end in the length to which distil shortens the window, and it is off")
        if self.replicas >= self.n_layers:
            raise ValueError(
                f"replicas: each has one layer less, so {self.n_layers} layers allow {self.n_layers - 1}"
            )
        return self

    @model_validator(mode="after")
    def _masks_are_its_own(self) -> InformerConfig:
        for name in ("attention_options", "decoder_options"):
            if "causal" in (getattr(self, name) or {}):
                raise ValueError(
                    f"{name}: informer's encoder looks both ways, and its decoder masks by itself"
                )
        if self.attention_options.get("sharing") == "layerwise" and self.distil:
            raise ValueError("attention_options: layers of different length have no projection to share")
        try:
            self.build_masked_attention()
        except ValueError as error:
            raise ValueError(
                f"decoder_attention: the decoder masks later steps: {error}; name another mechanism"
            ) from None
        return self

    def build_masked_attention(self) -> Attention:
        """Self-attention of the decoder: no step sees a later one (probsparse: Informer's own masked form)."""
        name = self.decoder_attention or self.attention
        options = self.decoder_options
        if options is None:
            options = self.attention_options if name == self.attention else {}
        own = {"d_model": self.d_model, "n_heads": self.n_heads, "dropout": self.dropout}
        return build_attention(name, causal="masked" if name == "probsparse" else True, **(own | options))

    def build_cross_attention(self) -> Attention:
        """Exact attention of the decoder to what the encoder made."""
        return build_attention("flash", d_model=self.d_model, n_heads=self.n_heads, dropout=self.dropout)


class Embedding(nn.Module):
    """Values by a circular convolution over three bars, with positions and calendar added."""

    def __init__(self, config: InformerConfig, n_columns: int, n_tokens: int) -> None:
        super().__init__()
        d = config.d_model
        self.values = nn.Conv1d(n_columns, d, 3, padding=1, padding_mode="circular", bias=False)
        nn.init.kaiming_normal_(self.values.weight, mode="fan_in", nonlinearity="leaky_relu")
        self.positions = Positions(config.positions, n_tokens, d)
        self.calendar = nn.Linear(len(CALENDAR_COLUMNS), d, bias=False) if config.calendar else None
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, calendar: Tensor) -> Tensor:
        """Scaled values [B, N, C] and calendar [B, N, D] → [B, N, d_model]."""
        tokens = self.positions(self.values(x.transpose(1, 2)).transpose(1, 2))
        if self.calendar is not None:
            tokens = tokens + self.calendar(calendar)
        out: Tensor = self.dropout(tokens)
        return out


class Distil(nn.Module):
    """A circular convolution over three tokens, batch norm, ELU, and the largest of three in steps of two."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(d_model, d_model, 3, padding=1, padding_mode="circular")
        self.norm = nn.BatchNorm1d(d_model)
        self.pool = nn.MaxPool1d(3, stride=2, padding=1)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, d_model] → [B, ⌈N/2⌉, d_model]: with an odd N, the last token is in the last of the pools."""
        mixed = self.norm(self.convolution(tokens.transpose(1, 2)))
        pooled: Tensor = self.pool(nn.functional.elu(mixed))
        return pooled.transpose(1, 2)


class Encoder(nn.Module):
    """Layers with distilling between them, over the newest `length` tokens."""

    def __init__(self, config: InformerConfig, length: int, n_layers: int) -> None:
        super().__init__()
        self.length, self.checkpointing = length, config.gradient_checkpointing
        self.layers, self.distils = nn.ModuleList(), nn.ModuleList()
        for number in range(n_layers):
            self.layers.append(EncoderLayer(config, seq_len=length))
            if config.distil and number < n_layers - 1:
                self.distils.append(Distil(config.d_model))
                length = -(-length // 2)
        self.norm = nn.LayerNorm(config.d_model)

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """[B, N, d_model] → tokens after each layer, ever shorter; the last ones normalised."""
        tokens, states = tokens[:, -self.length :], []
        for number, layer in enumerate(self.layers):
            states.append(saving(self.checkpointing, layer, tokens))
            tokens = self.distils[number](states[-1]) if number < len(self.distils) else states[-1]
        return [*states[:-1], self.norm(states[-1])]


class DecoderLayer(nn.Module):
    """Masked attention among the steps, attention to the encoder, feed-forward; a residual and a norm for each."""

    def __init__(self, config: InformerConfig) -> None:
        super().__init__()
        self.pre_norm = config.norm == "pre"
        self.attention = config.build_masked_attention()
        self.cross_attention = config.build_cross_attention()
        self.feed_forward = feed_forward(config)
        self.norms = nn.ModuleList(nn.LayerNorm(config.d_model) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """[B, N, d_model] and the encoder's [B, M, d_model] → [B, N, d_model]."""
        for norm, part in zip(self.norms, self._parts(context), strict=True):
            x = x + part(norm(x)) if self.pre_norm else norm(x + part(x))
        return x

    def _parts(self, context: Tensor) -> tuple[Callable[[Tensor], Tensor], ...]:
        return self.attention, partial(self.cross_attention, context=context), self.feed_forward


class Informer(Network):
    """[B, L, C] raw features → predictions of all targets, every horizon from its own step of the decoder."""

    Config = InformerConfig
    config: InformerConfig

    def __init__(self, config: InformerConfig, inputs: ModelInputs) -> None:
        super().__init__(config, inputs)
        self.steps = max(target.horizon for target in inputs.targets)
        n_columns, n_decoded = len(inputs.columns), config.known_steps + self.steps
        self.encoder_embedding = Embedding(config, n_columns, config.lookback)
        self.decoder_embedding = Embedding(config, n_columns, n_decoded)
        self.encoders = nn.ModuleList(
            Encoder(config, -(-config.lookback // 2**r), config.n_layers - r)
            for r in range(config.replicas + 1)
        )
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.n_decoder_layers))
        self.norm = nn.LayerNorm(config.d_model)
        self.build_heads(config.d_model)

    def forward(self, batch: Batch) -> Prediction:
        """The prediction at the end of every window."""
        scaled = self.scaling(batch.x)
        steps = self.decode(scaled, batch, self._context(scaled, batch))
        vectors = {kind: steps[:, self._steps_of(kind)] for kind in self.inputs.kinds}
        return self.predict(vectors, scaled, batch.rows)

    def decode(self, scaled: Tensor, batch: Batch, context: Tensor) -> Tensor:
        """The decoder's token of each bar to come, [B, H, d_model]."""
        known = self.config.known_steps
        values = torch.cat(
            [scaled[:, -known:], scaled.new_zeros(len(scaled), self.steps, scaled.shape[2])], 1
        )
        calendar = (
            torch.cat([batch.calendar[:, -known:], batch.future], 1) if self.config.calendar else values
        )
        tokens = self.decoder_embedding(values, calendar)
        for layer in self.decoder:
            tokens = saving(self.config.gradient_checkpointing, layer, tokens, context)
        normal: Tensor = self.norm(tokens)
        return normal[:, known:]

    def hidden_states(self, batch: Batch) -> list[Tensor]:
        """Tokens of the longest encoder after each layer, [B, N, d_model], ever shorter where it distils."""
        tokens = self.encoder_embedding(self.scaling(batch.x), batch.calendar)
        states: list[Tensor] = self.encoders[0](tokens)
        return states

    def _context(self, scaled: Tensor, batch: Batch) -> Tensor:
        tokens = self.encoder_embedding(scaled, batch.calendar)
        return torch.cat([encoder(tokens)[-1] for encoder in self.encoders], 1)

    def _steps_of(self, kind: str) -> list[int]:
        """The step of the decoder that forecasts each target of a kind [n]."""
        columns = self.inputs.kinds[kind][0]
        return [self.inputs.targets[k].horizon - 1 for k in columns]

    def head_form(self, kind: str) -> dict[str, Any]:
        """Steps of one path share their outputs' weights."""
        names = [self.inputs.targets[k].name for k in self.inputs.kinds[kind][0]]
        return {"groups": [sorted(set(names)).index(name) for name in names]}

    @property
    def future_steps(self) -> int:
        """The bars to come whose calendar the decoder reads."""
        return self.steps if self.config.calendar else 0
