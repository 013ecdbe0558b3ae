"""Heads start at the skip, keep their promises for any weights, and their losses are the published ones."""

import math

import pytest
import torch

from longtape.models.heads import HEADS

SCALE = torch.tensor([0.02, 0.5])
KINDS = sorted(HEADS)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "volatility"])
def test_an_untrained_head_predicts_what_the_skip_gives(name):
    head = HEADS.load(name)(8, SCALE)
    base = torch.tensor([[0.01, -0.3]])
    assert torch.allclose(head.mean(head(torch.randn(1, 8), base)), base)


def test_an_untrained_volatility_head_gives_the_root_of_the_expected_variance():
    head = HEADS.load("volatility")(8, SCALE)
    base = torch.log(torch.tensor([[0.0004, 0.09]]))
    assert torch.allclose(head.mean(head(torch.randn(1, 8), base)), torch.tensor([[0.02, 0.3]]))


@pytest.mark.parametrize("name", KINDS)
def test_losses_and_gradients_are_finite_for_wild_outputs(name):
    torch.manual_seed(0)
    head = HEADS.load(name)(8, SCALE)
    torch.nn.init.normal_(head.linear.weight, std=3)
    target = torch.tensor([[0.0, 0.0], [1e-9, 5.0]])
    loss = head.loss(head(torch.randn(2, 8), torch.zeros(2, 2)), target)
    assert loss.shape == (2, 2)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(head.linear.weight.grad).all()


def test_quantiles_never_cross():
    torch.manual_seed(1)
    head = HEADS.load("quantile")(8, SCALE)
    torch.nn.init.normal_(head.linear.weight, std=5)
    quantiles = head(torch.randn(500, 8), torch.randn(500, 2))
    assert (quantiles.diff(dim=-1) >= 0).all()
    assert torch.equal(head.quantile(quantiles, 0.5), head.mean(quantiles))


def test_pinball_loss_is_least_at_the_quantile():
    head = HEADS.load("quantile")(1, torch.ones(1))
    y = torch.linspace(0, 1, 1001)[:, None]
    at = [head.loss(torch.full((1001, 1, 5), q), y).mean().item() for q in (0.3, 0.5, 0.7)]
    assert at[1] == min(at)  # five symmetric levels: the median of a symmetric sample


def test_qlike_is_zero_at_the_truth_and_one_sided_elsewhere():
    head = HEADS.load("volatility")(1, torch.ones(1))
    y = torch.tensor([[2.0]])
    exact = head.loss(torch.full((1, 1, 1), math.log(4.0)), y)
    half = head.loss(torch.full((1, 1, 1), math.log(2.0)), y)
    assert abs(exact.item()) < 1e-6
    assert half.item() == pytest.approx(2 - math.log(2) - 1, abs=1e-6)


def test_student_t_likelihood_is_the_density():
    head = HEADS.load("student_t")(1, torch.ones(1))
    parameters = torch.tensor([[[0.5, 2.0, 5.0]]])
    density = math.lgamma(3.0) - math.lgamma(2.5) - 0.5 * math.log(5 * math.pi) - math.log(2.0)
    expected = -(density - 3.0 * math.log1p((1.5 - 0.5) ** 2 / 4 / 5))
    assert head.loss(parameters, torch.tensor([[1.5]])).item() == pytest.approx(expected, abs=1e-5)
