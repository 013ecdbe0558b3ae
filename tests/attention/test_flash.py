"""Exact attention in O(N) memory and the tiled algorithm that shows it."""

from __future__ import annotations

import pytest
import torch

from longtape.attention import build_attention, flash
from longtape.attention.base import masked_softmax
from longtape.attention.flash import flash_attention
from longtape.attention.full import full_attention, full_mask
from longtape.attention.tiled import tiled_attention


def qkv(n: int, m: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, n, 8), (2, 3, m, 8), (2, 3, m, 8)]
    return [
        torch.randn(*s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes
    ]


def hide(m: int) -> torch.Tensor:
    """The first sample begins with padding, the second is all padding."""
    visible = torch.zeros(2, m, dtype=torch.bool)
    visible[0, m // 3 :] = True
    return visible


def gradients(out: torch.Tensor, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    weighting = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.autograd.grad((out * weighting).sum(), inputs)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (50, 50), (50, 7), (9, 40)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("tile", [8, 512])
def test_tiled_and_fused_equal_full(n: int, m: int, causal: bool, padded: bool, tile: int) -> None:
    inputs = qkv(n, m)
    visible = hide(m) if padded else None
    expected = full_attention(*inputs, full_mask(n, m, visible, causal, torch.device("cpu")))
    wanted = gradients(expected, inputs)
    tiled, _ = tiled_attention(*inputs, visible, causal=causal, tile=tile)
    fused = flash_attention(*inputs, visible, causal=causal)
    for out in (tiled, fused):
        assert (out - expected).abs().max() < 1e-10
        assert all((a - b).abs().max() < 1e-8 for a, b in zip(gradients(out, inputs), wanted, strict=True))


def test_tiled_passes_gradcheck() -> None:
    inputs = qkv(6, 6)
    assert torch.autograd.gradcheck(
        lambda *x: tiled_attention(*x, causal=True, tile=4)[0], inputs, fast_mode=True
    )


def test_tiled_log_sum_exp() -> None:
    q, k, v = qkv(20, 30)
    _, lse = tiled_attention(q, k, v, tile=7)
    assert torch.allclose(lse, (q @ k.mT * 8**-0.5).logsumexp(-1), atol=1e-12)
    _, lse = tiled_attention(q, k, v, hide(30), tile=7)
    assert (lse[1] == float("-inf")).all()


def test_tiled_dropout_is_dropout_on_the_weights() -> None:
    """With values = identity the output is the dropped weights themselves: zero or 1/(1 − p) of the softmax."""
    q, k, _ = qkv(16, 16)
    identity = torch.eye(16, dtype=torch.float64).expand(2, 3, 16, 16)
    torch.manual_seed(3)
    kept, _ = tiled_attention(q, k, identity, dropout=0.25, tile=4)
    weights = masked_softmax(q @ k.mT * 8**-0.5, None)
    ratio = kept / weights
    dropped = ratio.abs() < 1e-12
    assert (dropped | ((ratio - 1 / 0.75).abs() < 1e-10)).all()
    assert 0.15 < dropped.double().mean() < 0.35


def test_the_backward_of_dropout_meets_the_mask_of_the_forward() -> None:
    inputs = qkv(12, 12)

    def run(*x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(5)
        return tiled_attention(*x, dropout=0.5, tile=5)[0]

    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


def test_attention_dropout_in_training_uses_tiles_and_keeps_the_mean(monkeypatch) -> None:
    tiled = []
    monkeypatch.setattr(flash, "tiled_attention", lambda *x, **y: tiled.append(y) or tiled_attention(*x, **y))
    layer = build_attention("flash", d_model=16, n_heads=2, attention_dropout=0.3)
    x = torch.randn(1, 40, 16, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    with torch.no_grad():
        mean = layer.train()(x.expand(300, -1, -1)).mean(0)
        assert (mean - layer.eval()(x)).abs().max() < 0.1
    assert [call["dropout"] for call in tiled] == [0.3]  # in training, and not after it


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_hidden_keys_under_a_causal_mask_in_low_precision(dtype: torch.dtype) -> None:
    q, k, v = (x.detach() for x in qkv(33, 33, dtype))
    visible = torch.ones(2, 33, dtype=torch.bool)
    visible[:, 3:9] = False
    out = flash_attention(q, k, v, visible, causal=True)
    expected = full_attention(q.double(), k.double(), v.double(), full_mask(33, 33, visible, True, q.device))
    assert (out.double() - expected).abs().max() < 0.03
    other = k.masked_fill(~visible[:, None, :, None], 20.0)
    assert torch.equal(out, flash_attention(q, other, v, visible, causal=True))
