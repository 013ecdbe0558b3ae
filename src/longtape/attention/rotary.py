"""Rotary positions (Su et al. 2021, "RoFormer"): a query and a key meet at an angle that tells how far apart they are.

Coordinates 2i and 2i + 1 of a token at position p are turned by p · 10,000^(−2i/D), so that q·k depends on the
difference of the two positions alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 10_000.0


def rotate(x: Tensor, positions: Tensor | None = None) -> Tensor:
    """x [B, H, N, D], D even, turned by `positions` (integers, broadcastable to [B, H, N]; 0 … N − 1 by default)."""
    width = x.shape[-1]
    if positions is None:
        positions = torch.arange(x.shape[-2], device=x.device)
    rate = BASE ** (-torch.arange(0, width, 2, device=x.device, dtype=torch.float64) / width)
    angle = positions[..., None].double() * rate
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    cos, sin = angle.cos().to(wide), angle.sin().to(wide)
    even, odd = wide[..., 0::2], wide[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).to(x)
