"""One document holds every choice of an account, and says what cannot be before any bar is read."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from longtape.backtest import (
    DEFAULT_COSTS,
    AccountConfig,
    Costs,
    Limits,
    judge,
    metrics,
    run_account,
    run_backtest,
)
from longtape.backtest.overfitting import TrialSet
from longtape.core.errors import UserError
from longtape.core.instrument import Instrument
from tests.backtest.markets import random_bars, weights

FACTS = {"weights", "bars", "instruments", "funding_history", "periods_per_year"}
CHOICES = {
    "costs": {"fee": 0.002, "borrow": 0.1},
    "fill": "next_close",
    "rebalance": "every_bar",
    "initial_capital": 5_000.0,
    "lot_size": {"A": 0.5},
    "close_at_end": True,
    "limits": {"stop_loss": 0.03, "take_profit": 0.05, "max_leverage": 0.8, "maintenance_margin": 0.1},
    "zero_volume": "fill",
    "risk_free_rate": 0.03,
}


@pytest.fixture(scope="module")
def market():
    rng = np.random.default_rng(0)
    return weights(np.repeat(rng.normal(size=60), 5) / 2), random_bars(rng, 300, quiet=0.1)


def test_every_choice_of_run_backtest_is_in_the_document_with_the_same_default():
    parameters = inspect.signature(run_backtest).parameters
    assert set(AccountConfig.model_fields) == set(parameters) - FACTS == set(CHOICES)
    for name, value in AccountConfig():
        assert parameters[name].default == value
    for field in AccountConfig.model_fields.values():
        assert field.description


def test_the_document_and_the_keywords_keep_the_same_account(market):
    config = AccountConfig.model_validate(CHOICES)
    one = run_account(config, *market)
    two = run_backtest(*market, **dict(config))
    assert one.equity.equals(two.equity)
    assert one.fills.equals(two.fills)
    assert one.metrics == two.metrics
    assert set(one.fills["reason"]) >= {"signal", "stop_loss", "take_profit"}
    assert AccountConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_has_an_effect(market, name):
    changed = run_account(AccountConfig.model_validate({name: CHOICES[name]}), *market)
    plain = run_account(AccountConfig(), *market)
    measures = [{**result.metrics, "equity": result.history.equity.sum()} for result in (changed, plain)]
    assert any(measures[0][key] != pytest.approx(value, nan_ok=True) for key, value in measures[1].items())


def test_costs_left_out_are_a_fee_and_among_named_costs_what_is_not_named_is_zero():
    assert AccountConfig().costs == DEFAULT_COSTS == Costs(fee=0.001)
    assert AccountConfig.model_validate({"costs": {"spread": 0.002}}).costs == Costs(spread=0.002)
    assert AccountConfig.model_validate({"costs": {}}).costs == Costs()


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"zero_volume": "fill", "costs": {"impact": 0.1}}, "impact needs a volume"),
        ({"initial_capital": 0}, "initial_capital must be above zero"),
        ({"lot_size": {"A": 0.0}}, "lot_size must be above zero"),
        ({"risk_free_rate": float("nan")}, "finite number"),
        ({"risk_free_rate": -1.0}, "greater than -1"),
        ({"fill": "close"}, "'next_open' or 'next_close'"),
        ({"costs": {"fees": 0.1}}, "costs.fees: Extra inputs are not permitted; did you mean 'fee'?"),
        ({"limits": {"stop": 0.1}}, "limits.stop: Extra inputs are not permitted; did you mean 'stop_loss'?"),
        ({"limit": {}}, "not permitted"),
    ],
)
def test_what_cannot_be_is_refused_when_the_document_is_made(document, message):
    with pytest.raises(ValidationError) as caught:
        AccountConfig.model_validate(document)
    assert message in str(caught.value)


def test_a_section_of_a_larger_document_inherits_the_choices():
    class Section(AccountConfig):
        traded: float | None = None

    class Whole(BaseModel):
        model_config = ConfigDict(extra="forbid")
        backtest: Section = Section()

    document = {"backtest": {"traded": 0.2, "costs": {"fee": 0.0}, "limits": {"stop_loss": 0.1}}}
    found = Whole.model_validate(document).backtest
    assert (found.traded, found.costs, found.limits) == (0.2, Costs(), Limits(stop_loss=0.1))
    with pytest.raises(ValidationError, match="impact needs a volume"):
        Whole.model_validate({"backtest": {"zero_volume": "fill", "costs": {"impact": 0.1}}})


# The risk-free rate


def test_every_sharpe_counts_from_the_same_risk_free_rate(market):
    rate = 0.05
    result = run_backtest(*market, risk_free_rate=rate)
    plain = run_backtest(*market)
    found, periods = result.metrics, result.periods_per_year
    assert found["risk_free_rate"] == rate
    assert np.array_equal(result.history.equity, plain.history.equity)  # cash earns nothing
    for name in ("sharpe", "sortino"):
        for convention in ("arithmetic", "geometric"):
            expected = getattr(metrics, name)(result.returns, periods, rate, convention)
            assert found[name + "_geometric" * (convention == "geometric")] == pytest.approx(expected)
    excess = result.returns - rate / periods
    of_excess = metrics.compute_metrics(np.cumprod(np.append(1.0, 1 + excess)), periods)
    for name in ("sharpe", "sharpe_standard_error", "probabilistic_sharpe"):
        assert found[name] == pytest.approx(of_excess[name])
        assert found[name] != pytest.approx(plain.metrics[name])
    trials = TrialSet.of_returns({"own": result.returns, "other": -result.returns})
    judged = judge(result, n_random=3, n_bootstrap=3, trials=trials)
    assert judged.bootstrap["sharpe"].value == pytest.approx(found["sharpe"])
    assert judged.random.own_sharpe == pytest.approx(found["sharpe"])
    assert judged.deflated.probabilistic_sharpe == pytest.approx(found["probabilistic_sharpe"])
    assert judged.trials.sharpes[0] * np.sqrt(periods) == pytest.approx(found["sharpe"])
    assert judged.costs.rows[2]["sharpe"] == pytest.approx(found["sharpe"])
    for one in judged.benchmarks.values():
        own = metrics.sharpe(one.returns, periods, rate)
        assert one.metrics["sharpe"] == pytest.approx(own, nan_ok=True)
    assert "after costs and 5% a year free of risk" in judged.statements[0]


# What was paid


def test_the_verdict_says_what_was_paid(market):
    costs = Costs(fee=0.0004, spread=0.0001, funding="excluded")
    facts = {"A": Instrument("test", "linear", "A")}
    result = run_backtest(*market, costs=costs, instruments=facts, initial_capital=10_000)
    lines = judge(result, n_random=1, n_bootstrap=1).verdict
    paid = result.metrics["costs"]
    assert paid == pytest.approx(10_000 - result.account["end"] + result.account["profit"])
    assert lines[5] == (
        f"Paid {paid:,.2f} in all, {paid / 100:.2f}% of the initial capital: fee 0.04%, spread 0.01%, slippage 0%,"
        " impact 0, borrow 0% a year, funding excluded."
    )


def test_funding_received_and_recorded_is_said_as_it_was(market):
    facts = {"A": Instrument("test", "linear", "A")}
    rate = Costs(funding="rate", funding_rate=-0.01)
    result = run_backtest(weights([1.0] * 300), market[1], costs=rate, instruments=facts)
    line = judge(result, n_random=1, n_bootstrap=1).statements[5]
    assert line.startswith("Received ")
    assert line.endswith("funding -1% per 8 h.")
    assert "-" not in line.split(":")[0]


def test_choices_that_run_backtest_refuses_are_named(market):
    with pytest.raises(UserError, match=r"risk_free_rate: .*finite number \(given: nan\)"):
        run_backtest(*market, risk_free_rate=float("nan"))
    with pytest.raises(UserError, match=r"initial_capital: .*valid number"):
        run_backtest(*market, initial_capital="much")
