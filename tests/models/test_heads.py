"""Heads start at the baseline and keep their promises for any weights."""

from statistics import NormalDist

import pytest
import torch

from longtape.features.target_kinds import KINDS
from longtape.models.heads import HEADS

SCALE = torch.tensor([[0.02, 0.5]])
NAMES = sorted(HEADS)
POINTS = [name for name in NAMES if HEADS.load(name).space == "mean"]


def head_of(name, d_model=8, scale=SCALE, **options):
    return HEADS.load(name)(d_model, scale, n_classes=3 if name == "classes" else 0, **options)


def base_of(name, rows=1):
    base = torch.zeros(rows, 1, 2)
    return base[..., None].expand(rows, 1, 2, 3) if name == "classes" else base


@pytest.mark.parametrize("name", [name for name in POINTS if name != "quantile"])
def test_an_untrained_head_predicts_what_the_baseline_gives(name):
    base = torch.tensor([[[0.01, -0.3]]])
    assert torch.allclose(head_of(name)(torch.randn(1, 8), base).mean(), base)


def test_the_untrained_median_is_what_the_baseline_gives():
    base = torch.tensor([[[0.01, -0.3]]])
    assert torch.allclose(head_of("quantile")(torch.randn(1, 8), base).quantile(0.5), base)


def test_untrained_quantiles_are_normal_with_the_training_deviation():
    found = head_of("quantile")(torch.randn(1, 8), torch.zeros(1, 1, 2))
    expected = [NormalDist().inv_cdf(level) * 0.02 for level in found.levels]
    assert torch.allclose(found.values[0, 0, 0], torch.tensor(expected), atol=1e-6)


def test_an_untrained_volatility_head_gives_the_root_of_the_expected_variance():
    base = torch.log(torch.tensor([[[0.0004, 0.09]]]))
    mean = head_of("volatility")(torch.randn(1, 8), base).mean()
    assert torch.allclose(mean, torch.tensor([[[0.02, 0.3]]]))


def test_an_untrained_allocation_is_flat():
    assert head_of("allocation")(torch.randn(1, 8), base_of("allocation")).mean().abs().max() == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shared", [False, True])
def test_losses_and_gradients_are_finite_for_wild_outputs(name, shared):
    torch.manual_seed(0)
    head = head_of(name, shared=shared)
    torch.nn.init.normal_(head.linear.weight, std=3)
    vector = torch.randn(2, 1, 8) if shared else torch.randn(2, 8)
    target = (
        torch.tensor([[[0.0, 0.0]], [[2.0, 1.0]]])
        if name == "classes"
        else torch.tensor([[[0.0, 0.0]], [[1e-9, 5.0]]])
    )
    loss = head(vector, base_of(name, 2)).loss_in_blocks(target, 2)
    assert loss.shape == (2, 1, 2)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(head.linear.weight.grad).all()


@pytest.mark.parametrize("name", NAMES)
def test_rows_shared_by_all_assets_do_not_grow_with_them(name):
    few, many = (head_of(name, scale=SCALE.expand(n, 2), shared=True) for n in (2, 50))
    assert sum(p.numel() for p in few.parameters()) == sum(p.numel() for p in many.parameters())
    torch.nn.init.normal_(many.linear.weight)
    vector = torch.randn(3, 50, 8)
    base = base_of(name, 3).expand(-1, 50, *base_of(name).shape[2:])
    order = torch.randperm(50)
    permuted = many(vector[:, order], base).mean()
    assert torch.allclose(permuted, many(vector, base).mean()[:, order], atol=1e-6)


def test_quantiles_never_cross():
    torch.manual_seed(1)
    head = head_of("quantile")
    torch.nn.init.normal_(head.linear.weight, std=5)
    found = head(torch.randn(500, 8), torch.randn(500, 1, 2))
    assert (found.values.diff(dim=-1) >= 0).all()


@pytest.mark.parametrize("name", ["allocation", "sharpe"])
@pytest.mark.parametrize("long_only", [False, True])
def test_weights_never_lever_the_account(name, long_only):
    torch.manual_seed(2)
    made = HEADS.load(name)
    head = made(8, SCALE.expand(5, 2), config=made.Config(name=name, long_only=long_only))
    torch.nn.init.normal_(head.linear.weight, std=3)
    share = head(torch.randn(200, 8), torch.zeros(200, 5, 2)).mean()
    assert share.abs().sum(1).max() <= 1 + 1e-6
    assert share.abs().sum(1).max() > 0.95
    assert (share.min() >= 0) == long_only
    assert long_only or share.min() < -0.2


def test_the_level_of_a_clipped_volatility_is_set_where_the_ratio_is_one():
    """y²/f² is 1 on average afterwards, for each asset by itself, and labels that are not known do not count."""
    torch.manual_seed(3)
    made = HEADS.load("volatility")
    head = made(8, torch.ones(2, 1), config=made.Config(name="volatility", clip=1.5))
    y = torch.randn(400, 2, 1).abs() * torch.tensor([2.0, 0.1])[:, None]
    y[:50, 0] = torch.nan
    vectors, base = torch.zeros(400, 8), torch.zeros(400, 2, 1)
    head.calibrate(
        [
            (head(part, base[:200]), labels)
            for part, labels in zip(vectors.split(200), y.split(200), strict=True)
        ]
    )
    ratio = (y / head(vectors, base).mean()).square().nanmean(0)
    assert torch.allclose(ratio, torch.ones(2, 1), atol=1e-4)
    assert "level" in head.state_dict()
    assert "level" not in made(8, torch.ones(2, 1)).state_dict()


def test_every_kind_of_target_has_heads_that_exist():
    for kind in KINDS.values():
        for name in kind.heads:
            assert name in HEADS
