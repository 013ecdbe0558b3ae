"""Linformer against its equation, written here a second time from the weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from longtape.attention import Attention, attention_weights, build_attention
from longtape.attention.linformer import default_k

N, K, HEADS, WIDTH = 37, 6, 4, 32
SHARINGS = ("none", "headwise", "key_value", "layerwise")
PROJECTIONS = ("linear", "mean", "conv")


def build(**options) -> Attention:
    torch.manual_seed(0)
    options = {"seq_len": N, "k": K, **options}
    return build_attention("linformer", d_model=WIDTH, n_heads=HEADS, **options).double().eval()


def tokens(n: int = N, seed: int = 1) -> Tensor:
    return torch.randn(2, n, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def matrix(layer: Attention, name: str) -> Tensor:
    """E or F of every head [H, k, N], element by element from what the projection says it is."""
    held = layer.E if name == "E" or not hasattr(layer, "F") else layer.F
    if held.kind == "linear":
        return held.weight.expand(HEADS, K, N)
    rows = torch.zeros(HEADS, K, N, dtype=torch.float64)
    for i in range(K):
        window = [t for t in range(N) if t * K // N == i]
        for head in range(HEADS):
            for place, t in enumerate(window):
                if held.kind == "mean":
                    rows[head, i, t] = 1 / len(window)
                else:
                    kernel = held.weight[head] if held.weight.dim() == 2 else held.weight
                    rows[head, i, t] = kernel[place]
    return rows


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_equation(sharing: str, projection: str) -> None:
    layer, x = build(sharing=sharing, projection=projection), tokens()
    visible = torch.arange(N) < torch.tensor([[N], [N - 9]])
    q, k, v = (
        p.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for p in (layer.q_proj(x), layer.k_proj(x), layer.v_proj(x))
    )
    shown = visible[:, None, :, None].double()
    mixed_k, mixed_v = matrix(layer, "E") @ (k * shown), matrix(layer, "F") @ (v * shown)
    weights = (q @ mixed_k.mT / math.sqrt(WIDTH / HEADS)).softmax(-1)
    heads = (weights @ mixed_v).transpose(1, 2).flatten(2) * visible[..., None]
    expected = heads @ layer.out_proj.weight.T + layer.out_proj.bias
    assert (layer(x, visible=visible) - expected).abs().max() < 1e-12
    assert (layer.reference(x, visible=visible) - expected).abs().max() < 1e-12
    found = attention_weights(layer, x, visible=visible)
    assert (found - weights).masked_fill(~visible[:, None, :, None], 0.0).abs().max() < 1e-12


@pytest.mark.parametrize("sharing", SHARINGS)
def test_gradients_equal_those_of_the_reference(sharing: str) -> None:
    layer, x = build(sharing=sharing), tokens().requires_grad_()
    visible = torch.arange(N) < torch.tensor([[N], [N - 9]])
    found = []
    for run in (layer, layer.reference):
        loss = run(x, visible=visible).square().sum()
        found.append(torch.autograd.grad(loss, [x, *layer.parameters()]))
    assert max((a - b).abs().max() for a, b in zip(*found, strict=True)) < 1e-8


def test_number_of_projection_weights_follows_the_sharing() -> None:
    held = {
        s: sum(p.numel() for n, p in build(sharing=s).named_parameters() if n[0] in "EF") for s in SHARINGS
    }
    assert held == {"none": 2 * HEADS * K * N, "headwise": 2 * K * N, "key_value": K * N, "layerwise": K * N}
    assert not [n for n, _ in build(projection="mean").named_parameters() if n[0] in "EF"]


def test_layers_share_one_projection_that_is_saved_once() -> None:
    first = build(sharing="layerwise")
    second = build(sharing="layerwise", shared=first)
    x = tokens().requires_grad_()
    assert second.key_projection is first.E
    assert not any(name.startswith("E") for name in second.state_dict())
    second(first(x)).sum().backward()
    both = first.E.weight.grad.clone()
    first.E.weight.grad = None
    second(first(x).detach()).sum().backward()
    assert not torch.equal(both, first.E.weight.grad)


def test_shorter_input_is_as_if_padded() -> None:
    layer, x = build(), tokens()
    visible = (torch.arange(N) < 20).expand(2, N)
    poisoned = x.masked_fill(~visible[..., None], float("nan"))
    assert (layer(poisoned, visible=visible)[:, :20] - layer(x[:, :20])).abs().max() < 1e-13


def test_cross_attention_mixes_the_context() -> None:
    layer, x, context = build(), tokens(11), tokens(30, seed=2)
    assert layer(x, context=context).shape == x.shape
    assert (layer(x, context=context) - layer.reference(x, context=context)).abs().max() < 1e-12
    assert (layer(context, context=context) - layer(context)).abs().max() == 0


def test_dropped_weights_change_training_only() -> None:
    layer, x = build(attention_dropout=0.5), tokens()
    assert torch.equal(layer(x), build()(x))
    assert not torch.equal(layer.train()(x), build()(x))


def test_guide() -> None:
    assert [default_k(n) for n in (1, 50, 511, 512, 2047, 2048, 10**6)] == [1, 50, 64, 128, 128, 256, 256]
    assert build(k=None).E.weight.shape == (N, N)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seq_len": None}, "give seq_len"),
        ({"causal": True}, "later ones included"),
        ({"sharing": "some"}, "none, headwise, key_value, layerwise"),
        ({"projection": "max"}, "linear, mean, conv"),
        ({"k": 0}, "at least 1"),
        ({"k": N + 1, "projection": "mean"}, "do not fit"),
    ],
)
def test_refusals(options: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build(**options)


def test_longer_input_is_refused() -> None:
    with pytest.raises(ValueError, match=f"seq_len={N} .* {N + 1} tokens"):
        build()(tokens(N + 1))


def test_sharing_between_layers_that_do_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="layerwise"):
        build(shared=build(sharing="layerwise"))
    with pytest.raises(ValueError, match="agree in seq_len"):
        build(sharing="layerwise", k=K + 1, shared=build(sharing="layerwise"))
