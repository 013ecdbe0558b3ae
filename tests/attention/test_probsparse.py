"""ProbSparse against its definition, written here a second time query by query."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from longtape.attention import Attention, attention_weights, build_attention
from longtape.attention.probsparse import budget, divergence, running_mean, sparsity

HEADS, WIDTH = 2, 16


def build(**options) -> Attention:
    torch.manual_seed(0)
    options = {"factor": 2, **options}
    return build_attention("probsparse", d_model=WIDTH, n_heads=HEADS, **options).double().eval()


def tokens(n: int, batch: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(batch, n, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def sampled(layer: Attention, n_keys: int, visible: Tensor | None = None) -> list[list[set[int]]]:
    """Positions of the sampled keys of every sample and head, read off keys that hold their own position."""
    batch = 1 if visible is None else len(visible)
    keys = torch.arange(n_keys, dtype=torch.float64).view(1, 1, -1, 1).expand(batch, HEADS, -1, 1)
    rows, used = layer._sample(keys, visible)
    used = (
        torch.ones_like(rows[..., 0], dtype=torch.bool)
        if used is None
        else used[:, :, 0].expand(rows.shape[:3])
    )
    return [[{int(p) for p in rows[b, h, used[b, h], 0]} for h in range(HEADS)] for b in range(batch)]


def expected(layer: Attention, x: Tensor, context: Tensor, seen: Tensor, rows: Tensor) -> Tensor:
    """The definition for one sample without padding in `rows` and `seen`, in plain loops."""
    q, k, v = (p[0] for p in layer.project(x[None, rows], context[None, seen]))
    n, m = len(rows), len(seen)
    masked = layer.config.causal == "masked"
    heads = torch.zeros(HEADS, n, WIDTH // HEADS, dtype=torch.float64)
    for h in range(HEADS):
        keys = sorted(sampled(layer, m)[0][h])
        assert len(keys) == budget(layer.config.factor, m)
        scores = q[h] @ k[h].T / math.sqrt(WIDTH / HEADS)
        measure = [(max(row) - sum(row) / len(row)).item() for row in scores[:, keys]]
        active = sorted(range(n), key=lambda i: -measure[i])[: budget(layer.config.factor, n)]
        for i in range(n):
            last = i + 1 if masked else m
            heads[h, i] = scores[i, :last].softmax(-1) @ v[h, :last] if i in active else v[h, :last].mean(0)
    return layer.out_proj(heads.transpose(0, 1).flatten(1))


@pytest.mark.parametrize("causal", [False, "masked"])
@pytest.mark.parametrize("n", [1, 2, 9, 60])
def test_definition(n: int, causal: bool | str) -> None:
    layer, x = build(causal=causal), tokens(n)
    everything = torch.arange(n)
    for b in range(2):
        wanted = expected(layer, x[b], x[b], everything, everything)
        assert (layer(x)[b] - wanted).abs().max() < 1e-12
        assert (layer.reference(x)[b] - wanted).abs().max() < 1e-12


@pytest.mark.parametrize("causal", [False, "masked"])
def test_padding_counts_for_nothing(causal: bool | str) -> None:
    layer, x = build(causal=causal), tokens(60)
    visible = torch.ones(2, 60, dtype=torch.bool)
    visible[0, 41:] = False
    visible[1, 5:25] = False
    y = layer(x.masked_fill(~visible[..., None], float("nan")), visible=visible)
    for b in range(2):
        kept = visible[b].nonzero()[:, 0]
        assert (y[b, kept] - expected(layer, x[b], x[b], kept, kept)).abs().max() < 1e-12
        assert torch.equal(y[b, ~visible[b]], layer.out_proj.bias.expand(60 - len(kept), -1))


def test_cross_attention() -> None:
    layer, x, context = build(), tokens(13), tokens(50, seed=2)
    visible = torch.arange(13) < torch.tensor([[13], [8]])
    given = torch.arange(50) < torch.tensor([[30], [50]])
    y = layer(x, visible=visible, context=context, context_visible=given)
    for b, (n, m) in enumerate([(13, 30), (8, 50)]):
        wanted = expected(layer, x[b], context[b], torch.arange(m), torch.arange(n))
        assert (y[b, :n] - wanted).abs().max() < 1e-12
    reference = layer.reference(x, visible=visible, context=context, context_visible=given)
    assert (y - reference).abs().max() < 1e-12


def test_everything_sampled_and_chosen_is_full_attention() -> None:
    x, exact = tokens(50), build_attention("full", d_model=WIDTH, n_heads=HEADS).double()
    layer = build(factor=50)
    exact.load_state_dict({name: p for name, p in layer.state_dict().items() if name != "jitter"})
    assert (layer(x) - exact(x)).abs().max() < 1e-12
    assert (attention_weights(layer, x) - attention_weights(exact, x)).abs().max() < 1e-12


@pytest.mark.parametrize(("n", "count"), [(1, 1), (2, 2), (3, 3), (8, 6), (60, 10), (5000, 18)])
def test_sample_has_its_size_and_no_key_twice(n: int, count: int) -> None:
    layer = build()
    assert budget(2, n) == count
    one, other = sampled(layer, n)[0]
    assert len(one) == len(other) == count
    assert max(one | other) < n
    assert n < 60 or one != other


def test_sample_is_spread_evenly() -> None:
    layer, hits = build(factor=1), torch.zeros(10)
    for seed in range(400):
        layer.redraw(seed)
        for key in sampled(layer, 10)[0][0]:
            hits[key] += 1
    assert (hits / hits.sum() - 0.1).abs().max() < 0.03


def test_sample_of_visible_keys() -> None:
    visible = torch.ones(2, 40, dtype=torch.bool)
    visible[1, ::2] = False
    whole, half = sampled(build(), 40, visible)
    assert whole == sampled(build(), 40)[0]
    assert half == [{2 * p + 1 for p in head} for head in sampled(build(), 20)[0]]


def test_masked_form_is_informers_own() -> None:
    """No score sees a later key, but which queries are active does depend on later steps."""
    layer, x = build(causal="masked", factor=1), tokens(40)
    weights = attention_weights(layer, x)
    assert torch.equal(weights, weights.tril())
    changes = []
    for seed in range(10):
        later = x.clone()
        later[:, 30:] = 5 * tokens(10, seed=100 + seed)
        changes.append(bool((layer(x)[:, :30] - layer(later)[:, :30]).abs().max() > 1e-6))
    assert any(changes)


def test_running_mean_of_visible_values() -> None:
    v = tokens(6).unflatten(-1, (HEADS, -1)).transpose(1, 2)
    visible = torch.tensor([[True] * 6, [False, True, False, True, True, False]])
    found = running_mean(v, visible)
    assert found[1, :, 0].abs().max() == 0
    for i in range(1, 6):
        kept = [j for j in range(i + 1) if visible[1, j]]
        assert (found[1, :, i] - v[1, :, kept].mean(1)).abs().max() < 1e-12


def test_measures_of_a_query() -> None:
    q, k = (tokens(70, seed=s).unflatten(-1, (HEADS, -1)).transpose(1, 2) for s in (1, 2))
    weights = (q @ k.mT / math.sqrt(WIDTH / HEADS)).softmax(-1)
    m, kl = sparsity(q, k), divergence(q, k)
    uniform = torch.full_like(weights, 1 / 70)
    assert (kl - (uniform * (uniform / weights).log()).sum(-1)).abs().max() < 1e-12
    assert (m - math.log(70) <= kl + 1e-12).all()
    assert (kl <= m + 1e-12).all()
    assert (
        sparsity(torch.zeros_like(q), k).abs().max() == divergence(torch.zeros_like(q), k).abs().max() < 1e-12
    )
    visible = (torch.arange(70) < 31).expand(2, 70)
    assert (sparsity(q, k, visible) - sparsity(q, k[:, :, :31])).abs().max() < 1e-12
    assert (divergence(q, k, visible) - divergence(q, k[:, :, :31])).abs().max() < 1e-12


def test_share_of_active_queries() -> None:
    layer, x = build(), tokens(60)
    q, k, _ = layer.project(x)
    assert torch.equal(layer.active(q, k).sum(-1), torch.full((2, HEADS), budget(2, 60)))


def test_what_is_kept_for_the_backward_pass_grows_with_the_length_alone() -> None:
    kept: list[int] = []

    def keep(t: Tensor) -> Tensor:
        kept.append(t.numel())
        return t

    layer = build()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        layer(tokens(2000, batch=1))
    assert max(kept) <= 2000 * WIDTH


def test_sampled_keys_belong_to_the_module() -> None:
    first, second = build(seed=1), build(seed=2)
    x = tokens(60)
    assert not torch.equal(first(x), second(x))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))


def test_dropped_weights_change_training_only() -> None:
    layer, x = build(attention_dropout=0.5), tokens(60)
    assert torch.equal(layer(x), build()(x))
    assert not torch.equal(layer.train()(x), build()(x))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"causal": True}, 'causal="masked"'),
        ({"causal": "some"}, "must be one of"),
        ({"factor": 0}, "factor=0"),
    ],
)
def test_refusals(options: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build(**options)


def test_masked_form_has_no_context() -> None:
    with pytest.raises(ValueError, match="self-attention"):
        build(causal="masked")(tokens(5), context=tokens(6))
