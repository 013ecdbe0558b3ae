"""Accounts of drawn weights on the bars of a run: clock, funding and stops, without a model in between."""

from __future__ import annotations

import numpy as np
import polars as pl

import longtape
from longtape.backtest import Costs, run_backtest
from tests.fuzz.accounts import FUNDING, entry_prices
from tests.fuzz.experiments import signature_names
from tests.fuzz.markets import DAY, TIME
from tests.fuzz.runs import Trial, attempt, times
from tests.fuzz.scenarios import Faults, scenario


@scenario("an account of drawn weights", lambda trial: trial.walked.has_account)
def drawn_account(trial: Trial) -> Faults:
    """Weights at random on the run's bars: clock, funding and stops, without a model in between."""
    bars = pl.concat(
        frame.select("timestamp", pl.lit(symbol).alias("symbol"), "open", "high", "low", "close", "volume")
        for symbol, frame in trial.bars.items()
    )
    weights = _drawn_weights(trial)
    yield from _inferred_year(trial, weights, bars)
    if trial.case.market.spec.calendar == "24/7":
        yield from _funding_ends(trial, weights, bars)
    yield from _stops(weights, bars)


def _drawn_weights(trial: Trial) -> pl.DataFrame:
    rng = np.random.default_rng([trial.case.seed, 5])
    first = next(iter(trial.bars.values()))
    clock = first["timestamp"].gather_every(3).head(60)
    columns = {s: rng.choice([-0.3, 0.0, 0.1, 0.2, 0.3], len(clock)) for s in trial.bars}
    return pl.DataFrame({"timestamp": clock, **columns})


def _inferred_year(trial: Trial, weights: pl.DataFrame, bars: pl.DataFrame) -> Faults:
    """Without a calendar the bars of a year are read from their times: half a year shows them."""
    span = (bars["timestamp"].max() - bars["timestamp"].min()).total_seconds()  # type: ignore[operator]
    made, refusal = attempt(lambda: run_backtest(weights, bars))
    if refusal:
        yield f"run_backtest: {refusal.message}"
    elif span > 20 * DAY / 1000:
        true = trial.case.market.bars_per_year
        if abs(made.periods_per_year / true - 1) > 0.03:
            yield f"{made.periods_per_year:,.0f} bars a year inferred; the market has {true:,.0f}"


def _funding_ends(trial: Trial, weights: pl.DataFrame, bars: pl.DataFrame) -> Faults:
    """Payments after the last bar are not the account's."""
    last = max(int(times(frame)[-1]) for frame in trial.bars.values()) + trial.case.market.step
    first = min(int(times(frame)[0]) for frame in trial.bars.values())
    facts = {s: longtape.Instrument("fuzz", "linear", s) for s in trial.bars}
    paid = []
    for until in (last, last + 5 * FUNDING):
        due = np.arange(-(-first // FUNDING) * FUNDING, until, FUNDING)
        history = pl.concat(
            pl.DataFrame(
                {"timestamp": pl.Series(due).cast(TIME), "symbol": s, "rate": np.full(len(due), 1e-3)}
            )
            for s in trial.bars
        )
        made, refusal = attempt(
            lambda: run_backtest(
                weights,
                bars,
                costs=Costs(funding="history"),
                instruments=facts,
                funding_history=history,  # noqa: B023
            )
        )
        if refusal:
            yield f"run_backtest with funding history: {refusal.message}"
            return
        paid.append(made.metrics["funding"])
    if paid[0] != paid[1]:
        yield f"five payments after the last bar change funding from {paid[0]:.2f} to {paid[1]:.2f}"


def _stops(weights: pl.DataFrame, bars: pl.DataFrame) -> Faults:
    """A stop stands at its distance from the average price of the units that are held."""
    if "limits" not in signature_names(run_backtest):
        return
    from longtape.backtest import Limits

    stop = 0.01
    made, refusal = attempt(lambda: run_backtest(weights, bars, costs=Costs(), limits=Limits(stop_loss=stop)))
    if refusal:
        yield f"run_backtest with a stop: {refusal.message}"
        return
    opens = {(row[0], row[1]): row[2] for row in bars.select("timestamp", "symbol", "open").iter_rows()}
    for fill, held, entry in entry_prices(made.fills):
        if fill["reason"] != "stop_loss":
            continue
        level = entry * (1 - np.sign(held) * stop)
        opened = opens[fill["timestamp"], fill["symbol"]]
        through = opened if np.sign(held) * opened < np.sign(held) * level else level
        if abs(fill["price"] - through) > 1e-9 * level:
            yield f"a stop of units bought at {entry:.6g} filled at {fill['price']:.6g} instead of {through:.6g}"
            return
