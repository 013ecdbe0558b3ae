"""Which queries are peaked (ProbSparse), and who can see whom in how many layers (patterns)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longtape.attention.patterned import PatternAttention
from longtape.attention.probsparse import ProbSparseAttention, budget, divergence, sparsity
from longtape.core.errors import UserError
from longtape.explain.attention import Passed, alone_in


@dataclass(frozen=True, eq=False)
class Queries:
    """Of every query of one window in one layer, [H, N] each."""

    m: Tensor  # maximum less mean of its scores
    kl: Tensor  # KL(uniform ‖ attention); M − ln N ≤ KL ≤ M
    active: Tensor  # bool: attends; elsewhere ProbSparse takes the mean of V
    chosen: bool  # True: by the layer itself; False: by rank of M, as ProbSparse would

    @property
    def share_active(self) -> float:
        """Of all queries and heads."""
        return float(self.active.double().mean())


@torch.no_grad()
def queries(passed: Passed, window: int = 0, factor: int = 5) -> Queries:
    """M and KL over all keys, and the active queries: the layer's own, or the factor·⌈ln N⌉ of highest M."""
    layer, alone = passed.layer, alone_in(passed, window)
    if not layer.has_key_projection():
        raise UserError("queries: reformer's queries are its keys, so none is more peaked than its own")
    q, k, _ = layer.project(alone.x, alone.extra.get("context"))
    m, kl = sparsity(q, k)[0], divergence(q, k)[0]
    if isinstance(layer, ProbSparseAttention):
        return Queries(m, kl, layer.active(q, k)[0], True)
    top = m.topk(budget(factor, m.shape[-1]), -1).indices
    return Queries(m, kl, torch.zeros_like(m, dtype=torch.bool).scatter(-1, top, True), False)


@dataclass(frozen=True)
class Graph:
    """What a fixed pattern lets through."""

    density: float  # visible pairs over N²
    hops: int  # layers after which the newest token can depend on the oldest; −1: never
    layers: int  # that the model has


def graph(passed: list[Passed]) -> Graph:
    """Of the first layer's pattern at the length it was given. UserError for a mechanism without one."""
    layer, n = passed[0].layer, passed[0].n_tokens
    if not isinstance(layer, PatternAttention):
        raise UserError(f"graph: {passed[0].mechanism} has no pattern of blocks; bigbird and local have one")
    density = layer.pattern.density(n, layer.positions(None))
    return Graph(density, layer.pattern.hops(n, n - 1, 0), len(passed))
