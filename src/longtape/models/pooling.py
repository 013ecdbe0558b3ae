"""From tokens to one vector per window."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LastToken(nn.Module):
    """The newest token."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, -1]


class MeanToken(nn.Module):
    """The mean over tokens."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(1)


class ClassToken(nn.Module):
    """The learned token that stands in front of the sequence."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]


class AttentionPooling(nn.Module):
    """softmax(tokens·w)-weighted mean with a learned query w."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.query = nn.Linear(d_model, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.einsum("bnd,bn->bd", tokens, self.weights(tokens))

    def weights(self, tokens: Tensor) -> Tensor:
        """The share of each token, [B, N]."""
        shares: Tensor = self.query(tokens).squeeze(-1).softmax(-1)
        return shares


def build_pooling(name: str, d_model: int) -> nn.Module:
    """`last`, `mean`, `class` or `attention`: [B, N, d_model] → [B, d_model]."""
    if name == "attention":
        return AttentionPooling(d_model)
    return {"last": LastToken, "mean": MeanToken, "class": ClassToken}[name]()
