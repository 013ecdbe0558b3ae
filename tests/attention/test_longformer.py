"""Longformer: projections of global queries, dilation by head, positions by sample."""

from __future__ import annotations

import pytest
import torch

from longtape.attention import attention_weights, build_attention, longformer


def layer(**options):
    torch.manual_seed(0)
    given = {"window_size": 7, "n_global": 2, **options}
    return build_attention("longformer", d_model=16, n_heads=2, **given).double().eval()


def tokens(n: int) -> torch.Tensor:
    return torch.randn(2, n, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def moved(model, name: str, n: int) -> list[int]:
    """Rows of the output that a change of one projection moves."""
    x = tokens(n)
    with torch.no_grad():
        before = model(x)
        getattr(model, name).weight += 0.1
        return (model(x) != before).any(-1).any(0).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("name", ["global_q_proj", "global_k_proj", "global_v_proj"])
def test_global_projections_serve_the_global_queries_alone(name: str) -> None:
    assert moved(layer(), name, 60) == [0, 1]


def test_the_ordinary_query_projection_serves_the_local_queries_alone() -> None:
    assert moved(layer(), "q_proj", 60) == list(range(2, 60))


@pytest.mark.parametrize("causal", [False, True])
def test_dilation_of_each_head(causal: bool) -> None:
    model, x = layer(dilation=(1, 5), n_global=0, causal=causal), tokens(100)
    weights = attention_weights(model, x)[0, :, 50]
    near = [j for j in range(47, 54) if not causal or j <= 50]
    far = [j for j in range(35, 66, 5) if not causal or j <= 50]
    assert [(w > 0).nonzero()[:, 0].tolist() for w in weights] == [near, far]
    assert (model(x) - model.reference(x)).abs().max() < 1e-12


def test_a_position_named_twice_counts_once() -> None:
    model, x = layer(global_tokens=(3, 9)), tokens(80).requires_grad_()
    again = torch.tensor([[3, 9, 3], [9, -1, -1]])
    y, expected = model(x, global_positions=again), model(x)
    assert (y - expected).abs().max() < 1e-12
    grads = [torch.autograd.grad(out.square().sum(), x)[0] for out in (y, expected)]
    assert (grads[0] - grads[1]).abs().max() < 1e-10


@pytest.mark.parametrize("padded", [False, True])
def test_dropout_acts_on_local_and_global_rows(padded: bool) -> None:
    model, x = layer(attention_dropout=0.5), tokens(40)
    visible = torch.arange(40) < torch.tensor([[40], [30]]) if padded else None
    torch.manual_seed(0)
    with torch.no_grad():
        changed = (model.train()(x, visible=visible) != model.eval()(x, visible=visible)).any(-1)
    assert changed[0].all()


def test_one_dilation_for_each_head_or_one_for_all() -> None:
    with pytest.raises(ValueError, match="dilation"):
        layer(dilation=(1, 2, 3))


def test_groups_of_heads_come_in_the_order_of_the_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each draws a seed for its dropout: the order of a set would differ from process to process."""
    order = []

    def record(q, k, v, pattern, **options):
        order.append(pattern.dilation)
        return q

    monkeypatch.setattr(longformer, "pattern_attention", record)
    model = build_attention("longformer", d_model=16, n_heads=8, dilation=(7, 3, 8, 1, 3, 2, 6, 4))
    model(torch.randn(1, 9, 16))
    assert order == [7, 3, 8, 1, 2, 6, 4]
