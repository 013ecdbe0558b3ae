"""The token-id encoder: integers → embeddings → transformer → a class for the sequence, or for each of its tokens.

The same layers as for markets, on text, code, genomes or expressions. A class token stands first; it and tokens at
regular intervals are global where the mechanism has global tokens.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from longtape.attention.dropout import Dropout
from longtape.core.errors import UserError
from longtape.features.panel import Panel, Rows
from longtape.models.base import Model, ModelInputs
from longtape.models.batch import Batch
from longtape.models.embedding import Positions
from longtape.models.prediction import Categorical, Prediction
from longtape.models.transformer import Transformer, TransformerConfig

PADDING = -1  # in the place of an id: there is no token


class TokensConfig(TransformerConfig):
    """A transformer encoder over token ids."""

    trains: ClassVar[bool] = True
    reads_market: ClassVar[bool] = False

    kind: Literal["tokens"] = "tokens"
    lookback: Literal[1] = Field(1, description="a row is a whole sequence")
    length: int = Field(512, ge=1, description="tokens of the longest sequence; shorter ones are padded")
    vocabulary: int = Field(256, ge=1, description="ids are below this")
    classes: int = Field(2, ge=2, description="labels are below this")
    outputs: Literal["sequence", "tokens"] = Field(
        "sequence", description="one class for the sequence, or one for each token"
    )
    pooling: Literal["class", "mean"] = Field(
        "class", description="of a sequence: the class token in front of it, or the mean of its tokens"
    )
    class_sees: Literal["all", "window"] = Field(
        "all",
        description="window: where a mechanism has windows, the class token sees its own, where the sequence begins,"
        " and what is global, so that the beginning is not one token among thousands",
    )
    n_spaced: int = Field(
        0, ge=0, description="tokens at regular intervals that are global, beside the class token"
    )
    positions: Literal["sinusoidal", "learned", "none"] = Field(
        "sinusoidal", description="how a token is told its place"
    )

    @property
    def n_tokens(self) -> int:
        """The sequence, and the class token."""
        return self.length + 1

    @property
    def summary(self) -> str:
        """Mechanism, and what there is to tell."""
        return f"{self.attention} attention over {self.length:,} tokens, {self.classes} classes for each {self._each}"

    @property
    def _each(self) -> str:
        return "sequence" if self.outputs == "sequence" else "token"

    @property
    def n_labels(self) -> int:
        """Labels of a sequence."""
        return 1 if self.outputs == "sequence" else self.length

    @model_validator(mode="after")
    def _class_token_sees_what_it_tells(self) -> TokensConfig:
        windows = ("local", "longformer", "bigbird")
        if self.class_sees == "window" and self.attention not in windows:
            raise ValueError(f"class_sees: {self.attention} has no windows; {', '.join(windows)} do")
        if self.outputs == "tokens" or self.pooling == "mean":
            return self
        if self.attention_options.get("causal"):
            raise ValueError(
                "pooling: the class token stands first, so under causal attention it sees nothing"
            )
        if self.attention == "local" and self.class_sees == "all":
            raise ValueError(
                "pooling: under local attention no token sees all; name class_sees: window, or mean"
            )
        return self

    @model_validator(mode="after")
    def _globals_have_an_effect(self) -> TokensConfig:
        if self.n_spaced and not self.has_global_tokens:
            raise ValueError(f"n_spaced: {self.attention} has no global tokens; bigbird and longformer do")
        if self.n_spaced > self.length:
            raise ValueError(f"n_spaced: {self.length} tokens hold no {self.n_spaced} global ones")
        if "global_tokens" in self.attention_options:
            raise ValueError("attention_options: global tokens are the class token and n_spaced others")
        return self


class TokenEncoder(Model):
    """[B, 1, N] ids, −1 where there is none → classes."""

    Config = TokensConfig
    config: TokensConfig
    spaced: Tensor
    frequency: Tensor

    def __init__(self, config: TokensConfig, inputs: ModelInputs) -> None:
        super().__init__(config, inputs)
        d, every = config.d_model, config.length / max(config.n_spaced, 1)
        spaced = torch.tensor([int((i + 0.5) * every) for i in range(config.n_spaced)], dtype=torch.int64)
        self.register_buffer("spaced", spaced, persistent=False)
        self.embedding = nn.Embedding(config.vocabulary, d)
        nn.init.normal_(self.embedding.weight, std=d**-0.5)
        self.class_token = nn.Parameter(torch.randn(1, 1, d) * d**-0.5)
        self.positions = Positions(config.positions, config.n_tokens, d)
        self.drop = Dropout(config.dropout)
        self.transformer = Transformer(config)
        self.output = nn.Linear(d, config.classes)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        self.register_buffer("frequency", torch.zeros(config.classes))

    def forward(self, batch: Batch) -> Prediction:
        """Classes of the sequences, [B, 1, 1], or of their tokens, [B, 1, N]."""
        logits = self.output(self._vectors(batch)).float() + self.frequency
        return Prediction((Categorical(logits[:, None]),), self.kind_columns)

    def hidden_states(self, batch: Batch) -> list[Tensor]:
        """Tokens after each layer [B, 1 + N, d_model], the class token first."""
        return self._encode(_ids(batch))

    def fit(self, panel: Panel, train: Rows, validation: Rows) -> None:
        """Training begins at the frequencies of the classes, one more of each than was seen (Laplace)."""
        labels = panel.targets[train]
        seen = np.array([(labels == m).sum() + 1.0 for m in range(self.config.classes)])
        self.frequency.copy_(torch.from_numpy(np.log(seen / seen.sum())))

    def _vectors(self, batch: Batch) -> Tensor:
        """What the output reads: [B, 1, d_model], or [B, N, d_model] for outputs at every token."""
        ids = _ids(batch)
        tokens = self._encode(ids)[-1]
        if self.config.outputs == "tokens":
            return tokens[:, 1:]
        if self.config.pooling == "class":
            return tokens[:, :1]
        there = (ids != PADDING)[..., None]
        mean = (tokens[:, 1:] * there).sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp_min(1)
        return mean

    def _encode(self, ids: Tensor) -> list[Tensor]:
        embedded = self.embedding(ids.clamp_min(0)) * self.config.d_model**0.5
        whole = torch.cat([self.class_token.expand(len(ids), -1, -1) * self.config.d_model**0.5, embedded], 1)
        there = torch.nn.functional.pad(ids != PADDING, (1, 0), value=True)
        states: list[Tensor] = self.transformer(
            self.drop(self.positions(whole)), self._global_positions(ids), there
        )
        return states

    def _global_positions(self, ids: Tensor) -> Tensor | None:
        """[B, G]: the class token, unless it is local, and those of the spaced tokens that a sequence reaches."""
        if not self.config.has_global_tokens:
            return None
        reached = ids[:, self.spaced] != PADDING
        spaced = torch.where(reached, self.spaced + 1, PADDING)
        if self.config.class_sees == "window":
            return spaced if self.config.n_spaced else None
        return torch.cat([spaced.new_zeros(len(ids), 1), spaced], 1)


def _ids(batch: Batch) -> Tensor:
    """[B, N]."""
    return batch.x[:, 0].long()


def refuse_ids(ids: Rows, config: TokensConfig, where: str) -> None:
    """UserError where an id of one sequence [n] is no id of the vocabulary, or there are too many."""
    if not 0 < len(ids) <= config.length:
        raise UserError(f"{where}: {len(ids)} tokens, and model.length allows 1 to {config.length}")
    strange = (ids < 0) | (ids >= config.vocabulary)
    if strange.any():
        at = int(np.argmax(strange))
        raise UserError(
            f"{where}: token {at + 1} is {ids[at]}, not from 0 to {config.vocabulary - 1} (model.vocabulary)"
        )
