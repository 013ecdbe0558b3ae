"""BigBird's options: learned tokens, explicit and per-sample global tokens, causal memory, refusals."""

from __future__ import annotations

import pytest
import torch

from longtape.attention import attention_weights, build_attention


def layer(**options):
    torch.manual_seed(0)
    return build_attention("bigbird", d_model=16, n_heads=2, **{"block_size": 16, **options}).double().eval()


def tokens(n: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, n, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_learned_tokens_are_seen_by_every_query_and_learn() -> None:
    extended, x = layer(n_extra_global=3), tokens(80)
    assert extended.extra_tokens.shape == (3, 16)
    weights = attention_weights(extended, x)
    assert weights.shape == (2, 2, 80, 83)
    assert (weights[..., :3] > 0).all()
    extended(x).square().sum().backward()
    assert (extended.extra_tokens.grad.abs().sum(-1) > 0).all()


def test_explicit_tokens_take_the_place_of_placed_units() -> None:
    pairs = layer(global_tokens=[5, 40], n_random=0, window_size=1).visible_pairs(64)
    assert pairs.all(1).nonzero()[:, 0].tolist() == [5, 40]
    assert pairs.all(0).nonzero()[:, 0].tolist() == [5, 40]


def test_positions_of_a_call_add_to_those_of_the_layer() -> None:
    x = tokens(70)
    both = layer(global_tokens=(3, 50))
    called = layer(global_tokens=(3,))
    y = called(x, global_positions=torch.tensor([[50, -1], [50, 3]]))
    assert (y - both(x)).abs().max() < 1e-12


@pytest.mark.parametrize("block_size", [1, 16])
def test_a_global_position_outside_the_sequence_is_named(block_size: int) -> None:
    with pytest.raises(ValueError, match="99 lies outside the 70 tokens"):
        layer(block_size=block_size)(tokens(70), global_positions=torch.tensor([[1, 99], [0, 0]]))


def test_too_short_to_be_sparse_is_full_attention() -> None:
    x = tokens(64)
    full = build_attention("full", d_model=16, n_heads=2).double()
    short = layer(window_size=3, n_random=3)
    full.load_state_dict(short.state_dict())
    assert (short(x) - full(x)).abs().max() < 1e-12


def test_a_model_saved_and_loaded_sees_the_same_pairs() -> None:
    assert torch.equal(layer(seed=3).visible_pairs(300), layer(seed=3).visible_pairs(300))
    assert not torch.equal(layer(seed=3).visible_pairs(300), layer(seed=4).visible_pairs(300))


@pytest.mark.parametrize(
    ("options", "word"),
    [({"n_extra_global": -1}, "n_extra_global"), ({"global_tokens": "left"}, "left"), ({"seed": -1}, "seed")],
)
def test_refusals(options: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        layer(**options)


def test_lengths_that_are_no_multiple_of_anything() -> None:
    causal = layer(causal=True, symmetric=False)
    for n in (17, 31, 100, 257):
        x = tokens(n)
        assert (causal(x) - causal.reference(x)).abs().max() < 1e-12
