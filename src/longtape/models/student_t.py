"""Student's t in float64 for any number of degrees of freedom: density, distribution function, quantiles.

PyTorch has the density alone. With x = √ν tan θ the distribution function is an integral of cos^(ν−1) θ, smooth on a
bounded interval, which 64 Gauss–Legendre points give to 1e-12; the quantile follows by Newton's method.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def t_density(x: Tensor, freedom: Tensor) -> Tensor:
    """Density at x [...], degrees of freedom [...]."""
    ln_constant = (
        torch.lgamma((freedom + 1) / 2) - torch.lgamma(freedom / 2) - 0.5 * (freedom * math.pi).log()
    )
    return (ln_constant - (freedom + 1) / 2 * torch.log1p(x * x / freedom)).exp()


def t_cdf(x: Tensor, freedom: Tensor) -> Tensor:
    """P(T ≤ x), [...]."""
    points, weights = (torch.tensor(part, device=x.device) for part in _gauss_legendre())
    reach = torch.atan(x / freedom.sqrt())
    ln_constant = torch.lgamma((freedom + 1) / 2) - torch.lgamma(freedom / 2) - 0.5 * math.log(math.pi)
    angle = 0.5 * reach[..., None] * (points + 1)
    integrand = ((freedom[..., None] - 1) * angle.cos().log()).exp()
    return 0.5 + ln_constant.exp() * 0.5 * reach * (integrand * weights).sum(-1)


def t_quantile(p: Tensor, freedom: Tensor) -> Tensor:
    """The x [...] with P(T ≤ x) = p; float64, 0 < p < 1, freedom > 2."""
    upper = torch.maximum(p, 1 - p)
    x = _start(upper, freedom)
    for _ in range(40):
        step = (t_cdf(x, freedom) - upper) / t_density(x, freedom)
        # The function is concave above 0: a step from the left never overshoots, one from the right is halved.
        x = torch.where(x - step < 0, x / 2, x - step)
        if bool((step.abs() <= 1e-12 * (1 + x)).all()):
            break
    return torch.where(p >= 0.5, x, -x)


def _start(upper: Tensor, freedom: Tensor) -> Tensor:
    """The normal quantile with Cornish and Fisher's first correction (Abramowitz & Stegun 26.7.5), a lower bound."""
    z = math.sqrt(2) * torch.erfinv(2 * upper - 1)
    return z + (z**3 + z) / (4 * freedom)


@lru_cache(maxsize=1)
def _gauss_legendre() -> tuple[np.ndarray, np.ndarray]:
    points, weights = np.polynomial.legendre.leggauss(64)
    return points, weights
