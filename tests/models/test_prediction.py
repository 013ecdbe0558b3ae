"""Distributions: losses are the published ones, and mean, quantiles, samples and CRPS agree with each other."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from longtape.models.prediction import (
    Categorical,
    LogVariance,
    Point,
    Prediction,
    Quantiles,
    StudentT,
    Weights,
)
from longtape.models.student_t import t_cdf, t_density, t_quantile

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
ONE = torch.ones(1)


def normal_quantiles(n_levels=199):
    """The standard normal by many quantiles."""
    levels = tuple(np.arange(1, n_levels + 1) / (n_levels + 1))
    return Quantiles(torch.tensor(stats.norm.ppf(levels))[None].double(), levels, ONE.double())


def student(location=0.5, spread=2.0, freedom=5.0):
    one = [torch.tensor([value], dtype=torch.float64) for value in (location, spread, freedom, 1.0)]
    return StudentT(*one)


def test_pinball_loss_is_least_at_the_quantile():
    y = torch.linspace(0, 1, 1001)
    at = [
        Quantiles(torch.full((1001, 5), q), LEVELS, torch.ones(1001)).loss(y).mean().item()
        for q in (0.3, 0.5, 0.7)
    ]
    assert at[1] == min(at)  # five symmetric levels: the median of a symmetric sample


def test_qlike_is_zero_at_the_truth_and_one_sided_elsewhere():
    y = torch.tensor([2.0])
    exact, half = (LogVariance(torch.tensor([math.log(v)])).loss(y) for v in (4.0, 2.0))
    assert abs(exact.item()) < 1e-6
    assert half.item() == pytest.approx(2 - math.log(2) - 1, abs=1e-6)


def test_student_t_likelihood_is_the_density():
    expected = -stats.t.logpdf(1.5, 5.0, 0.5, 2.0)
    assert student().loss(torch.tensor([1.5], dtype=torch.float64)).item() == pytest.approx(
        expected, abs=1e-9
    )


def test_students_t_agrees_with_scipy():
    draw = np.random.default_rng(0)
    p, freedom = draw.uniform(1e-6, 1 - 1e-6, 500), np.exp(draw.uniform(np.log(2.01), np.log(1e4), 500))
    x = draw.standard_t(2.5, 500) * 3
    tensors = [torch.tensor(values) for values in (p, freedom, x)]
    assert np.allclose(t_quantile(tensors[0], tensors[1]), stats.t.ppf(p, freedom), rtol=1e-8)
    assert np.allclose(t_cdf(tensors[2], tensors[1]), stats.t.cdf(x, freedom), atol=1e-10)
    assert np.allclose(t_density(tensors[2], tensors[1]), stats.t.pdf(x, freedom), atol=1e-10)


@pytest.mark.parametrize("y", [-3.0, 0.2, 4.0])
def test_the_crps_of_students_t_is_the_integral_of_its_definition(y):
    grid = np.linspace(-4000, 4000, 2_000_001)
    squares = (stats.t.cdf(grid, 5.0, 0.5, 2.0) - (grid >= y)) ** 2
    found = student().crps(torch.tensor([y], dtype=torch.float64)).item()
    assert found == pytest.approx(np.trapezoid(squares, grid), rel=1e-3)


@pytest.mark.parametrize("y", [-1.0, 0.0, 2.5])
def test_the_crps_of_many_quantiles_nears_the_distributions_own(y):
    exact = y * (2 * stats.norm.cdf(y) - 1) + 2 * stats.norm.pdf(y) - 1 / math.sqrt(math.pi)
    found = normal_quantiles().crps(torch.tensor([y], dtype=torch.float64)).item()
    assert found == pytest.approx(exact, rel=0.02)


def test_the_crps_of_a_point_is_its_absolute_error():
    point = Point(torch.tensor([1.0]), ONE)
    assert point.crps(torch.tensor([3.0])).item() == 2.0


def test_the_ranked_probability_score_of_classes():
    p = torch.tensor([[0.2, 0.5, 0.3]])
    assert Categorical(p.log()).crps(torch.tensor([0.0])).item() == pytest.approx(0.8**2 + 0.3**2, abs=1e-6)


@pytest.mark.parametrize("make", [student, normal_quantiles])
def test_samples_have_the_quantiles_and_the_mean_that_are_said(make):
    law = make()
    drawn = law.samples(40_000, torch.Generator().manual_seed(0))
    for p in (0.1, 0.5, 0.9):
        share = (drawn <= law.quantile(p)).double().mean().item()
        assert share == pytest.approx(p, abs=0.01)
    assert drawn.mean().item() == pytest.approx(law.mean().item(), abs=0.05)


def test_samples_and_quantiles_of_classes():
    law = Categorical(torch.tensor([[0.2, 0.5, 0.3]]).log())
    drawn = law.samples(20_000, torch.Generator().manual_seed(0))
    assert [(drawn == c).double().mean().item() for c in range(3)] == pytest.approx([0.2, 0.5, 0.3], abs=0.02)
    assert [law.quantile(p).item() for p in (0.1, 0.2, 0.6, 0.71)] == [0, 0, 1, 2]
    assert law.mean().item() == pytest.approx(1.1, abs=1e-6)


def test_a_quantile_outside_the_levels_is_not_made_up():
    assert normal_quantiles(9).quantile(0.05) is None
    assert Point(ONE, ONE).quantile(0.5) is None


def test_the_quantile_between_two_levels_lies_on_the_line_between_them():
    law = Quantiles(torch.tensor([[0.0, 1.0, 4.0]]), (0.25, 0.5, 0.75), ONE)
    assert law.quantile(0.625).item() == pytest.approx(2.5)


def test_an_allocation_is_paid_the_simple_return_of_its_share():
    share, scale = torch.tensor([[[0.5]]]), torch.tensor([[0.01]])
    loss = Weights(share, scale).loss(torch.log(torch.tensor([[[1.02]]])))
    assert loss.item() == pytest.approx(-1.0, abs=1e-5)


def weights_in_blocks(objective, cost=0.0):
    torch.manual_seed(0)
    share = torch.randn(12, 3, 1, dtype=torch.float64).tanh() / 3
    scale = torch.tensor([[0.01], [0.02], [0.03]], dtype=torch.float64)
    y = 0.02 * torch.randn(12, 3, 1, dtype=torch.float64)
    return Weights(share, scale, objective, cost), y


def test_turnover_is_counted_between_the_rows_of_a_block_and_nowhere_else():
    law, y = weights_in_blocks("return", cost=0.001)
    share, earned = law.share[..., 0].numpy(), np.expm1(y[..., 0].numpy())
    expected = [
        -(share[b] * earned[b]).mean() + 0.001 * np.abs(np.diff(share[b], axis=0)).mean()
        for b in (slice(0, 4), slice(4, 8), slice(8, 12))
    ]
    assert law.loss_in_blocks(y, 4).mean().item() == pytest.approx(3 * np.mean(expected) / 0.02, rel=1e-9)


def test_the_sharpe_ratio_is_that_of_the_whole_account_in_each_block():
    law, y = weights_in_blocks("sharpe")
    account = (law.share * torch.expm1(y)).sum(1)[:, 0].numpy() / 0.02
    expected = [account[b].mean() / np.hypot(account[b].std(), 0.01) for b in (slice(0, 6), slice(6, 12))]
    assert law.loss_in_blocks(y, 6).mean().item() == pytest.approx(-np.mean(expected), rel=1e-9)


@pytest.mark.parametrize("law", [weights_in_blocks("sharpe")[0], weights_in_blocks("return", 0.001)[0]])
def test_what_consecutive_rows_define_is_refused_without_them(law):
    with pytest.raises(ValueError, match="consecutive rows"):
        law.loss_in_blocks(torch.zeros(12, 3, 1), 1)


def test_a_surprise_counts_no_more_than_its_limit():
    far, limit = (LogVariance(torch.zeros(1), 1.5).loss(torch.tensor([math.exp(s / 2)])) for s in (9.0, 1.5))
    assert far.item() == pytest.approx(limit.item(), abs=1e-5) == pytest.approx(math.exp(1.5) - 2.5, abs=1e-5)


def prediction():
    """Two assets with two returns and a volatility each, columns as a panel has them."""
    returns = Point(torch.arange(4.0).view(1, 2, 2), torch.ones(2, 2))
    volatility = LogVariance(torch.log(torch.tensor([[[9.0], [16.0]]])))
    columns = torch.tensor([[0, 1], [3, 4]]), torch.tensor([[2], [5]])
    return Prediction((returns, volatility), columns)


def test_targets_stand_in_the_order_of_the_panel():
    assert torch.allclose(prediction().mean(), torch.tensor([[0.0, 1.0, 3.0, 2.0, 3.0, 4.0]]))
    assert prediction().samples(3).shape == (3, 1, 6)
    assert torch.isnan(prediction().quantile(0.9)).all()


def test_labels_that_are_not_known_have_no_loss_and_no_gradient():
    value = torch.zeros(2, 1, 2, requires_grad=True)
    made = Prediction((Point(value, torch.ones(1, 2)),), (torch.tensor([[0, 1]]),))
    y = torch.tensor([[1.0, torch.nan], [2.0, 3.0]])
    loss = made.loss(y, torch.isfinite(y))
    assert loss.item() == pytest.approx((1 + 4 + 9) / 3)
    loss.backward()
    assert value.grad[0, 0, 1] == 0
    assert torch.isfinite(value.grad).all()


def test_an_average_of_models_averages_what_each_part_means():
    laws = [LogVariance(torch.tensor([math.log(v)])) for v in (1.0, 3.0)]
    assert LogVariance.average(laws).mean().item() == pytest.approx(math.sqrt(2))
    classes = [Categorical(torch.tensor([p]).log()) for p in ([0.5, 0.5], [0.1, 0.9])]
    assert Categorical.average(classes).probabilities()[0].tolist() == pytest.approx([0.3, 0.7])
    two = [prediction(), prediction()]
    assert torch.allclose(Prediction.average(two).mean(), prediction().mean())


def test_probabilities_stand_in_the_columns_of_their_targets():
    classes = Categorical(torch.tensor([[[[0.2, 0.5, 0.3]]]]).log())
    up = Categorical(torch.tensor([[[[0.4, 0.6]]]]).log())
    made = Prediction((classes, up), (torch.tensor([[1]]), torch.tensor([[0]])))
    expected = torch.tensor([[[0.4, 0.6, 0.0], [0.2, 0.5, 0.3]]])
    assert torch.allclose(made.probabilities(), expected)
    assert prediction().probabilities() is None
