"""What must be true of the account of a run: its books, its weights, its costs, its year."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import polars as pl

from tests.fuzz.accounts import largest_relative_error
from tests.fuzz.checks import Faults, check, has_account
from tests.fuzz.experiments import Case
from tests.fuzz.runs import Trial, times, values
from tests.fuzz.scores import TINY


@check("the verdict says what was paid", has_account)
def paid(trial: Trial) -> Faults:
    costs = trial.walked.metrics["metrics"]["costs"]
    said = trial.walked.verdict.lower()
    if costs and "paid" not in said and "received" not in said:
        yield f"costs of {costs:.2f} were paid, and the verdict says nothing of them"


@check("a year's bars are the market's", has_account)
def annualisation(trial: Trial) -> Faults:
    said, true = trial.walked.metrics["metrics"]["periods_per_year"], trial.case.market.bars_per_year
    if said is None or abs(said / true - 1) > 0.03:
        yield f"{said} bars a year; the market has {true:,.0f}"


@check("the account balances", has_account)
def balance(trial: Trial) -> Faults:
    books = trial.walked.metrics["metrics"] | trial.walked.metrics.get("account", {})
    spent = sum(books[name] for name in ("fees", "spread", "slippage", "funding", "borrow"))
    if abs(books["start"] + books["profit"] - spent - books["end"]) > 1e-9 * books["start"]:
        yield f"start {books['start']} + profit {books['profit']} − costs {spent} is not the end {books['end']}"
    equity = values(trial.walked.book("equity"), "equity")
    if abs(equity[-1] - books["end"]) > 1e-9 * books["start"]:
        yield f"equity.parquet ends at {equity[-1]}, the account at {books['end']}"
    gap = largest_relative_error(equity, np.array(trial.ledger.equity))
    if gap > 1e-9 and trial.walked.metrics["metrics"].get("ended", 0) == 0:
        yield f"kept again from fills and bars, equity differs by {gap:.2g} of itself"
    for name, mine in (("funding", trial.ledger.funding), ("borrow", trial.ledger.borrow)):
        if abs(books[name] - mine) > 1e-9 * books["start"]:
            yield f"{name} paid {books[name]:.6g}, by positions and rates {mine:.6g}"


@check("positions are the sum of the fills", has_account)
def positions(trial: Trial) -> Faults:
    book = trial.walked.book("positions")
    for symbol in (name for name in book.columns if name != "timestamp"):
        mine = np.array([row[symbol] for row in trial.ledger.positions])
        scale = np.abs(mine).max(initial=0.0)
        if scale > 0 and np.abs(values(book, symbol) - mine).max() > 1e-9 * scale:
            yield f"positions of {symbol} are not what its fills add up to"


@check("weights within their caps", has_account)
def weights(trial: Trial) -> Faults:
    case, ledger = trial.case, trial.ledger
    gross, single = caps(case, len(trial.symbols))
    sized = {(t, s) for t, s, reason in _reasons(trial) if reason == "signal"}
    found = [abs(weight) for t, s, weight in ledger.weights if (t, s) in sized]
    if found and max(found) > single + 1e-9:
        yield f"a symbol is brought to weight {max(found):.4f}, {single:.4g} is the most"
    # An order that waits for its bar leaves an old weight beside new ones, so whole markets only.
    if (case.market.whole or len(trial.symbols) == 1) and max(ledger.implied, default=0.0) > gross + 1e-9:
        yield f"gross weight {max(ledger.implied):.4f}, {gross:.4g} is the most"
    least = min((weight for _, _, weight in ledger.weights), default=0.0)
    if case.option("backtest.signal.long_only") and least < -1e-9:
        yield "long_only, and a short position"
    yield from _turnover(trial)


def _reasons(trial: Trial) -> list[tuple[int, str, str]]:
    fills = trial.walked.book("fills")
    return list(zip(times(fills).tolist(), fills["symbol"], fills["reason"], strict=True))


def caps(case: Case, symbols: int) -> tuple[float, float]:
    """Largest Σ|weight| and |weight| that the document allows."""
    signal = case.option("backtest.signal", {})
    options = signal.get("options", {})
    lever = options.get("max_leverage", 1.0) if signal.get("name") == "volatility_target" else 1.0
    shared = {"rank": 0.5, "equal": 1.0, "allocation": 1.0}.get(
        signal.get("name", "threshold"), 1.0 / symbols
    )
    single = min(signal.get("max_weight", np.inf), lever * shared)
    gross = min(lever, signal.get("max_gross", np.inf), single * symbols)
    limit = _limit(case, "max_leverage")
    return min(gross, limit), min(single, gross, limit)


def _limit(case: Case, name: str) -> float:
    """An option of the account, wherever in `backtest` it stands, but the signal's own."""
    backtest = case.option("backtest", {})
    places = [
        backtest,
        *(part for key, part in backtest.items() if isinstance(part, dict) and key != "signal"),
    ]
    return min((place[name] for place in places if place.get(name) is not None), default=np.inf)


def _turnover(trial: Trial) -> Faults:
    cap = trial.case.option("backtest.signal.max_turnover")
    forced = {reason for _, _, reason in _reasons(trial)} - {"signal"}
    if cap is None or len(trial.symbols) > 1 or forced or not trial.case.market.whole:
        return
    steps = [abs(b - a) for a, b in pairwise([0.0, *(weight for _, _, weight in trial.ledger.weights)])]
    if steps and max(steps) > cap + 1e-9 and _limit(trial.case, "lot_size") == np.inf:
        yield f"the weight moves by {max(steps):.4f} at once, {cap} is the most"


@check("costs are those of the document", has_account)
def costs(trial: Trial) -> Faults:
    """Left out entirely: a fee of 0.001; within named costs, what is not named is nothing."""
    named = trial.case.option("backtest.costs", {"fee": 0.001})
    fills = trial.walked.book("fills").filter(pl.col("reason") != "delisted")
    value = values(fills, "value")
    for name in ("fee", "spread", "slippage") if "impact" not in named else ("fee", "spread"):
        wanted = named.get(name, 0.0)
        if np.abs(values(fills, name) - wanted * value).max(initial=0.0) > 1e-9 * value.max(initial=1.0):
            yield f"{name} of {values(fills, name).sum() / value.sum():.6f} was charged, {wanted} was asked"


@check("fills are at the price that was asked, after the decision", has_account)
def fill_prices(trial: Trial) -> Faults:
    column = "close" if trial.terms.at_close else "open"
    fills = trial.walked.book("fills").filter(pl.col("reason") == "signal")
    if fills.height and times(fills).min() <= times(trial.walked.forecast).min():
        yield f"a fill at {fills['timestamp'].min()}, and the first decision falls at the close of that bar"
    for symbol in trial.symbols:
        mine = fills.filter(pl.col("symbol") == symbol).join(trial.bars[symbol], on="timestamp", how="left")
        if mine.height and not np.allclose(values(mine, "price"), values(mine, column), rtol=1e-12):
            yield f"fills of {symbol} are not at the {column} of their bar"


@check(
    "the same bars get the same weight",
    lambda trial: trial.case.market.spec.twins and trial.walked.has_account,
)
def twins(trial: Trial) -> Faults:
    """Two symbols with the same bars and, to the bit, the same forecasts."""
    frame = trial.walked.forecast
    first, second = (
        frame.filter(pl.col("symbol") == s).drop("symbol").sort("target", "horizon", "timestamp")
        for s in ("AAA", "BBB")
    )
    book = trial.walked.book("positions")
    if first.select("mean", "lower", "upper").equals(second.select("mean", "lower", "upper")):
        apart = np.abs(values(book, "AAA") - values(book, "BBB")).max()
        if apart > 1e-9 * np.abs(values(book, "AAA")).max(initial=TINY):
            yield "equal forecasts of equal bars are traded differently"
