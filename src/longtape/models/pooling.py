"""From tokens [B, N, d_model] to one vector [B, d_model]. `visible` [B, N]: which tokens there are, all by default."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LastToken(nn.Module):
    """The newest token."""

    def forward(self, tokens: Tensor, visible: Tensor | None = None) -> Tensor:
        return tokens[:, -1]


class MeanToken(nn.Module):
    """The mean over tokens."""

    def forward(self, tokens: Tensor, visible: Tensor | None = None) -> Tensor:
        if visible is None:
            return tokens.mean(1)
        there = visible[..., None].to(tokens)
        return (tokens * there).sum(1) / there.sum(1).clamp_min(1)


class ClassToken(nn.Module):
    """The learned token that stands in front of the sequence."""

    def forward(self, tokens: Tensor, visible: Tensor | None = None) -> Tensor:
        return tokens[:, 0]


class AttentionPooling(nn.Module):
    """softmax(tokens·w)-weighted mean with a learned query w."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.query = nn.Linear(d_model, 1)

    def forward(self, tokens: Tensor, visible: Tensor | None = None) -> Tensor:
        return torch.einsum("bnd,bn->bd", tokens, self.weights(tokens, visible))

    def weights(self, tokens: Tensor, visible: Tensor | None = None) -> Tensor:
        """The share of each token, [B, N]."""
        scores = self.query(tokens).squeeze(-1)
        if visible is not None:
            scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
        shares: Tensor = scores.softmax(-1)
        return shares


class StaticInputs(nn.Module):
    """Values that are no sequence, joined with the pooled vector: GELU(W [vector; values])."""

    def __init__(self, d_model: int, n_values: int) -> None:
        super().__init__()
        self.join = nn.Linear(d_model + n_values, d_model)

    def forward(self, vector: Tensor, values: Tensor) -> Tensor:
        """[B, d_model] and [B, S] → [B, d_model]."""
        return F.gelu(self.join(torch.cat([vector, values.to(vector)], 1)))


def build_pooling(name: str, d_model: int) -> nn.Module:
    """`last`, `mean`, `class` or `attention`: [B, N, d_model] → [B, d_model]."""
    if name == "attention":
        return AttentionPooling(d_model)
    return {"last": LastToken, "mean": MeanToken, "class": ClassToken}[name]()
