"""One small layer of every mechanism in every form, and the tools to compare layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from longtape.attention import MECHANISMS, Attention, Capabilities, build_attention, mechanism_class

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """A mechanism with options; `full` gives the options whose budget covers `n` tokens, if it has a budget."""

    mechanism: str
    form: str = "plain"
    options: Options = field(default_factory=dict)
    full: Callable[[int], Options] | None = None
    min_length: int = 1

    @property
    def causal(self) -> bool:
        return self.options.get("causal") is True

    def build(self, n: int, *, d_model: int = 16, n_heads: int = 2, seed: int = 0, **more: Any) -> Attention:
        """A layer in eval mode, built without moving the global generator."""
        options = {"seq_len": max(n, 16), **self.options, **more}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return build_attention(self.mechanism, d_model=d_model, n_heads=n_heads, **options).eval()

    def __str__(self) -> str:
        return f"{self.mechanism}-{self.form}"


def _wide(n: int) -> Options:
    return {"window_size": 2 * n + 1}


def _all_blocks(n: int) -> Options:
    return {"n_random": n, "n_global": 0}


LOCAL = {"window_size": 7}
LONGFORMER = {"window_size": 7, "n_global": 3}
TOKENS = {"block_size": 1, "window_size": 7, "n_random": 3, "n_global": 2}
BLOCKS = {"block_size": 16, "window_size": 3, "n_random": 2, "n_global": 2}
LINFORMER = {"k": 8}
REFORMER = {"bucket_size": 8, "n_hashes": 2}
PROBSPARSE = {"factor": 2}

CASES = [
    Case("full", full=lambda n: {}),
    Case("full", "causal", {"causal": True}),
    Case("flash", full=lambda n: {}),
    Case("flash", "causal", {"causal": True}),
    Case("local", "tokens", LOCAL, full=_wide),
    Case("local", "blocks", {"block_size": 16, "window_size": 3}, full=_wide),
    Case("local", "causal", LOCAL | {"causal": True}),
    Case("local", "causal-blocks", {"block_size": 16, "window_size": 3, "causal": True}),
    Case("longformer", "first", LONGFORMER, full=lambda n: _wide(n) | {"n_global": 0}),
    Case("longformer", "spaced", LONGFORMER | {"global_tokens": "spaced"}),
    Case("longformer", "dilated", LONGFORMER | {"dilation": (1, 3)}),
    Case("longformer", "listed", LONGFORMER | {"n_global": 0, "global_tokens": (0, 40)}, min_length=41),
    Case("longformer", "causal", LONGFORMER | {"global_tokens": "spaced", "causal": True}),
    Case("bigbird", "tokens", TOKENS, full=_all_blocks),
    Case("bigbird", "tokens-causal", TOKENS | {"causal": True}),
    Case("bigbird", "symmetric", TOKENS | {"symmetric": True}),
    Case("bigbird", "blocks", BLOCKS, full=_all_blocks),
    Case("bigbird", "blocks-causal", BLOCKS | {"causal": True}),
    Case("bigbird", "spaced", TOKENS | {"global_tokens": "spaced", "n_global": 4}),
    Case("bigbird", "random", BLOCKS | {"global_tokens": "random"}),
    Case("bigbird", "last", TOKENS | {"global_tokens": "last"}),
    Case("bigbird", "listed", BLOCKS | {"n_global": 0, "global_tokens": (3, 40)}, min_length=41),
    Case("bigbird", "extra", BLOCKS | {"n_extra_global": 3}),
    Case("linformer", "headwise", LINFORMER),
    Case("linformer", "none", LINFORMER | {"sharing": "none"}),
    Case("linformer", "key_value", LINFORMER | {"sharing": "key_value"}),
    Case("linformer", "mean", LINFORMER | {"projection": "mean"}),
    Case("linformer", "convolution", LINFORMER | {"projection": "conv"}),
    Case("performer"),
    Case("performer", "causal", {"causal": True}),
    Case("reformer", "plain", REFORMER),
    Case("probsparse", "plain", PROBSPARSE, full=lambda n: {"factor": n}),
    Case("probsparse", "masked", PROBSPARSE | {"causal": "masked"}),
]
MAIN = [next(case for case in CASES if case.mechanism == name) for name in MECHANISMS]
CAUSAL = [case for case in CASES if case.causal]
LENGTHS = (1, 2, 63, 64, 65)


def capable(name: str) -> Capabilities:
    """What the mechanism declares."""
    return mechanism_class(name).capabilities


def tokens(
    n: int, *, batch: int = 2, d_model: int = 16, seed: int = 1, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Random x [batch, n, d_model]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, n, d_model, generator=generator, dtype=torch.float64).to(dtype)


def padding(n: int) -> Tensor:
    """visible [2, n]: the first sample padded at the end, the second in the middle; something stays visible."""
    visible = torch.ones(2, n, dtype=torch.bool)
    visible[0, max(1, n - n // 4) :] = False
    visible[1, n // 3 : n // 3 + n // 5] = False
    return visible


def values_and_gradients(
    run: Callable[..., Tensor], layer: Attention, x: Tensor, **more: Any
) -> list[Tensor]:
    """The output and the gradients by x and by every parameter, under one fixed random weighting of the output."""
    x = x.detach().clone().requires_grad_()
    layer.zero_grad(set_to_none=True)
    y = run(x, **more)
    weighting = tokens(y.shape[1], batch=y.shape[0], d_model=y.shape[2], seed=5, dtype=y.dtype)
    (y * weighting).sum().backward()
    zero = torch.zeros(())
    return [y.detach(), x.grad, *(zero if p.grad is None else p.grad for p in layer.parameters())]


def gap(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest reference value (at least 1 in the denominator)."""
    if actual.numel() == 0:
        return 0.0
    difference = (actual.double() - expected.double()).abs().max().item()
    assert difference == difference, "NaN"
    return difference / max(1.0, expected.double().abs().max().item())
