"""Rotary positions: what a token sees of another depends on how far apart they stand, for every mechanism."""

import pytest
import torch

from longtape.attention import MECHANISMS, attention_weights, build_attention
from longtape.attention.rotary import rotate
from tests.contracts.attention_cases import Case, capable, gap, padding, tokens, values_and_gradients

CASES = [
    Case("full", "plain"),
    Case("flash", "causal", {"causal": True}),
    Case("local", "tokens", {"window_size": 7}),
    Case("longformer", "spaced", {"window_size": 7, "n_global": 3, "global_tokens": "spaced"}),
    Case("bigbird", "blocks", {"block_size": 16, "n_random": 2, "n_extra_global": 2}),
    Case("performer", "plain"),
    Case("reformer", "plain", {"bucket_size": 8, "n_hashes": 2}),
    Case("probsparse", "plain", {"factor": 2}),
]


def test_a_pair_of_coordinates_is_a_complex_number_that_is_turned():
    x = tokens(9, d_model=6).view(2, 1, 9, 6)
    pairs = torch.view_as_complex(x.unflatten(-1, (3, 2)).contiguous())
    rates = torch.tensor([1.0, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3)], dtype=torch.float64)
    angle = torch.arange(9, dtype=torch.float64)[:, None] * rates
    expected = torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)
    assert torch.allclose(rotate(x), expected, atol=1e-12)


def test_a_product_depends_on_the_distance_alone():
    q, k = (tokens(1, d_model=8, seed=s)[:, None] for s in (1, 2))
    near, far = (
        (rotate(q, torch.tensor([a])) * rotate(k, torch.tensor([b]))).sum(-1)
        for a, b in ((5, 2), (90_005, 90_002))
    )
    other = (rotate(q, torch.tensor([5])) * rotate(k, torch.tensor([3]))).sum(-1)
    assert torch.allclose(near, far, atol=1e-9)
    assert not torch.allclose(near, other, atol=1e-3)


def test_every_mechanism_with_keys_of_its_own_has_a_rotary_form():
    assert {case.mechanism for case in CASES} == {name for name in MECHANISMS if capable(name).rotary}


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("padded", [False, True])
def test_values_and_gradients_equal_the_reference(case, padded):
    layer, x = case.build(70, rotary=True).double(), tokens(70)
    more = {"visible": padding(70)} if padded else {}
    fast = values_and_gradients(layer, layer, x, **more)
    slow = values_and_gradients(layer.reference, layer, x, **more)
    assert max(gap(a, b) for a, b in zip(fast, slow, strict=True)) < 1e-8
    plain = case.build(70).double()
    plain.load_state_dict(layer.state_dict())
    assert gap(plain(x), layer(x)) > 1e-4


def test_without_weights_of_position_tokens_far_on_are_seen_as_those_at_the_beginning():
    """The same five tokens, at the beginning and 20 on, look at each other alike."""
    layer = build_attention("full", d_model=8, n_heads=2, rotary=True).double()
    x = tokens(25, batch=1, d_model=8)
    x[:, 20:] = x[:, :5]
    weights = attention_weights(layer, x)
    begin, later = weights[..., :5, :5], weights[..., 20:, 20:]
    ratio = [block / block.sum(-1, keepdim=True) for block in (begin, later)]
    assert torch.allclose(*ratio, atol=1e-12)


def test_what_has_no_rotary_form_is_refused():
    with pytest.raises(ValueError, match="mixtures of positions"):
        build_attention("linformer", d_model=8, n_heads=2, seq_len=16, rotary=True)
    with pytest.raises(ValueError, match="odd"):
        build_attention("flash", d_model=6, n_heads=2, rotary=True)
    with pytest.raises(ValueError, match="context"):
        build_attention("flash", d_model=8, n_heads=2, rotary=True)(
            tokens(4, d_model=8).float(), context=tokens(5, d_model=8).float()
        )
