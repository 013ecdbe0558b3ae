"""Dropout that costs next to nothing on a CPU: the mask follows from a seed, in forward and backward alike.

Same distribution as `nn.Dropout` (Srivastava et al. 2014), other draws. The seed comes from torch's generator, so that
a run that is repeated, resumed or checkpointed drops the same numbers; they do not hang on the number of threads.
Elsewhere (GPU, other dtypes, inside torch.compile, which fuses dropout itself) PyTorch's own operators are used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class Dropout(nn.Dropout):
    """`nn.Dropout`, in one pass without a mask in memory."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and 0 < self.p < 1 and _takes(x):
            return _SeededDropout.apply(x, self.p, _seed())
        return super().forward(x)


class GeluDropout(Dropout):
    """dropout(GELU(x)), in one pass; only x is kept for the backward."""

    def forward(self, x: Tensor) -> Tensor:
        if self.p < 1 and _takes(x):
            rate, seed = (self.p, _seed()) if self.training else (0.0, 0)
            return _SeededGeluDropout.apply(x, rate, seed)
        return super().forward(F.gelu(x))


def _takes(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()


def _seed() -> int:
    return int(torch.randint(2**62, ()))


class _SeededDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float, seed: int) -> Tensor:
        ctx.rate, ctx.seed = rate, seed
        return _dropout(x, rate, seed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _dropout(grad, ctx.rate, ctx.seed), None, None


def _dropout(x: Tensor, rate: float, seed: int) -> Tensor:
    from longtape.attention.cpu import elementwise

    x = x.contiguous()
    out = torch.empty_like(x)
    elementwise.dropout(x, out, elementwise.Mask.of(seed, rate))
    return out


class _SeededGeluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float, seed: int) -> Tensor:
        from longtape.attention.cpu import elementwise

        x = x.contiguous()
        ctx.save_for_backward(x)
        ctx.mask = elementwise.Mask.of(seed, rate)
        out = torch.empty_like(x)
        elementwise.gelu_dropout(x, out, ctx.mask)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        from longtape.attention.cpu import elementwise

        (x,) = ctx.saved_tensors
        out = torch.empty_like(x)
        elementwise.gelu_dropout_backward(x, grad.contiguous(), out, ctx.mask)
        return out, None, None
