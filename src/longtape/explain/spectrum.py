"""How few dimensions an attention matrix needs: energy curve, effective rank, and Linformer's error against k."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longtape.attention.linformer import LinformerAttention
from longtape.explain.attention import Passed, alone_in, sampled_rows

ENERGY = 0.95
_MOST_ROWS = 512  # of an attention matrix whose singular values are taken


def energy_curve(weights: Tensor) -> Tensor:
    """Share of Σσ² in the first r singular values of matrices [..., R, M], [..., min(R, M)] for r = 1, 2, …"""
    energy = torch.linalg.svdvals(weights.double()).square()
    return energy.cumsum(-1) / energy.sum(-1, keepdim=True)


def effective_rank(curve: Tensor, share: float = ENERGY) -> Tensor:
    """The fewest singular values that hold `share` of the energy, int [...]."""
    return (curve < share - 1e-12).sum(-1) + 1


def energy_of(passed: Passed, window: int = 0, most: int = _MOST_ROWS) -> Tensor:
    """Energy curve [H, r] of a layer's attention in one window, on at most `most` evenly spaced query rows."""
    rows = sampled_rows(passed.n_tokens, passed.n_tokens, most * passed.n_tokens)
    return energy_curve(alone_in(passed, window).weights(rows)[0])


def rank_error(curve: Tensor, k: int) -> float:
    """‖A − A_k‖ / ‖A‖ (Frobenius) of the best matrix of rank k, the mean over heads of `curve` [H, r]."""
    left = 1 - curve[:, min(k, curve.shape[1]) - 1]
    return float(left.clamp_min(0).sqrt().mean())


def smallest_k(curve: Tensor, tolerance: float) -> int:
    """The least k whose best approximation errs by at most `tolerance`."""
    errors = [rank_error(curve, k) for k in range(1, curve.shape[1] + 1)]
    return next(k for k, error in enumerate(errors, 1) if error <= tolerance + 1e-12 or k == len(errors))


@torch.no_grad()
def projection_error(
    passed: Passed, k: int, window: int = 0, seeds: int = 16, most: int = _MOST_ROWS
) -> float:
    """‖A RᵀR V − A V‖ / ‖A V‖ with Gaussian R [k, N] of variance 1/k, the mean over seeds: what a Linformer that has
    learnt nothing keeps of the attention (Wang et al. 2020, theorem 1; Johnson & Lindenstrauss 1984).
    """
    if isinstance(passed.layer, LinformerAttention):
        raise ValueError("a Linformer's weights are over k columns already")
    alone = alone_in(passed, window)
    rows = sampled_rows(passed.n_tokens, passed.n_tokens, most * passed.n_tokens)
    weights = alone.weights(rows)[0].double()
    v = passed.layer.project(alone.x)[2][0].double()
    exact, errors = weights @ v, []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        r = torch.randn(k, passed.n_tokens, generator=generator, dtype=torch.float64) / math.sqrt(k)
        errors.append(float(((weights @ r.T) @ (r @ v) - exact).norm() / exact.norm()))
    return sum(errors) / len(errors)
