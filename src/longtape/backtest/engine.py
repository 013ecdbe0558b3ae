"""From target weights and bars to an account: the one entry to the backtest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from longtape.backtest import costs as costing
from longtape.backtest.account import (
    MARGIN_CALLS,
    N_FILLS,
    N_TRADES,
    UNFILLED,
    Books,
    Plan,
    Prices,
    Rules,
    keep_account,
    new_books,
)
from longtape.backtest.costs import Costs
from longtape.backtest.frames import Market, frozen, long_bars, read_market, read_weights, rows_on_clock
from longtape.backtest.result import BacktestResult, Setup
from longtape.core import calendars
from longtape.core.clock import DAY, Milliseconds
from longtape.core.errors import UserError, unknown_name
from longtape.core.instrument import Instrument
from longtape.market.bars import Bars

Floats = npt.NDArray[np.float64]
Fill = Literal["next_open", "next_close"]
Rebalance = Literal["on_change", "every_bar"]


class Limits(BaseModel):
    """What ends a position or keeps it small, beside the weights. Left out means no such limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stop_loss: float | None = Field(default=None, gt=0, description="fraction of the entry price, e.g. 0.05")
    take_profit: float | None = Field(default=None, gt=0, description="fraction of the entry price")
    max_leverage: float | None = Field(
        default=None, gt=0, description="a row of weights with Σ|w| above it is scaled to it"
    )
    maintenance_margin: float | None = Field(
        default=None, gt=0, lt=1, description="share of the gross position below which everything is closed"
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(f"limits.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def run_backtest(
    weights: Any,
    bars: Any,
    *,
    costs: Costs = Costs(fee=0.001),
    fill: Fill = "next_open",
    rebalance: Rebalance = "on_change",
    initial_capital: float = 100_000.0,
    lot_size: float | Mapping[str, float] | None = None,
    close_at_end: bool = False,
    limits: Limits = Limits(),
    instruments: Mapping[str, Instrument] | None = None,
    funding_history: Any = None,
    zero_volume: Literal["wait", "fill"] = "wait",
    periods_per_year: float | None = None,
) -> BacktestResult:
    """Trade `weights` on `bars` and keep the account.

    weights: `timestamp` and one column per symbol, the target share of equity decided at that bar's close; a
        bar without a row keeps the last decision. 1 is fully invested, −1 fully short, 2 levered twice.
    bars: long frame `timestamp, symbol, open, high, low, close, volume` (polars or pandas), or one or several
    `Bars`.
    fill: the order fills at the open or at the close of the symbol's next bar, never on the deciding bar.
    rebalance: `on_change` trades a symbol when its weight changes and holds the units between; `every_bar`
        trades back to the weight at each bar.
    lot_size: units come in whole lots, rounded towards zero.
    close_at_end: an open position is closed at the symbol's last bar.
    instruments: facts by symbol; with them perpetuals pay funding and the calendar sets the bars in a year.
    funding_history: `timestamp, symbol, rate`, for `Costs(funding="history")`.
    zero_volume: an order waits while bars have no volume, or fills all the same where the source reports
    none.

    An order brings the symbol to weight × equity, equity marked at those prices before the bar's trading
    costs. A missing bar is marked at the last close and its orders wait. A symbol whose bars end early (by
    more than its longest gap) is settled at its last close without cost. Equity at or below zero ends the
    account. UserError for anything unusable.
    """
    bars, instruments = _with_facts(bars, instruments)
    times, symbols, matrix = read_weights(weights)
    market = read_market(bars, symbols)
    known = costing.instruments_of(symbols, instruments)
    row_of = rows_on_clock(times, market.clock)
    matrix, capped = scaled_to(matrix, limits.max_leverage)
    multipliers = np.array([i.multiplier if i else 1.0 for i in known])
    plan = _plan(matrix, row_of, market, costs, known, lot_size, close_at_end, funding_history)
    rules = _rules(costs, limits, fill, rebalance, initial_capital, zero_volume)
    setup = Setup(_scaled(market.prices, multipliers), plan, rules, limits.max_leverage)
    books = simulate(setup.prices, plan, rules)
    per_year, calendar = _per_year(periods_per_year, market.clock, known)
    notes = _notes(market, books, costs, known, capped, zero_volume)
    capital = float(initial_capital)
    return BacktestResult(
        market.clock, symbols, books, setup, costs, capital, per_year, calendar, multipliers, notes
    )


def simulate(prices: Prices, plan: Plan, rules: Rules) -> Books:
    """Arrays in, books out: the account itself, without frames or checks."""
    bars, symbols = prices.close.shape
    orders = bars * symbols if rules.every_bar else min(plan.weights.size, bars * symbols) + symbols
    books = new_books(bars, symbols, orders)
    keep_account(prices, plan, rules, books)
    fills, trades = int(books.totals[N_FILLS]), int(books.totals[N_TRADES])
    return books._replace(fills=_used(books.fills, fills), trades=_used(books.trades, trades))


def _used(rows: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    """The written rows; copied where they are few, so that the reserved ones are given back."""
    return rows[:count] if count > len(rows) // 4 else rows[:count].copy()


def _with_facts(
    bars: Any, instruments: Mapping[str, Instrument] | None
) -> tuple[Any, Mapping[str, Instrument] | None]:
    """`Bars` bring their own instruments; a frame has only those that are named beside it."""
    several = [bars] if isinstance(bars, Bars) else bars
    if not isinstance(several, Sequence) or not all(isinstance(b, Bars) for b in several):
        return bars, instruments
    if not several:
        raise UserError("bars: none were given")
    if len({b.symbol for b in several}) < len(several):
        raise UserError("bars: a symbol comes twice; one account holds one market of each symbol")
    return long_bars(several), {**{b.symbol: b.instrument for b in several}, **(instruments or {})}


def scaled_to(weights: Floats, cap: float | None) -> tuple[Floats, int]:
    """Rows with Σ|w| above the cap scaled down to it, and how many there were."""
    if cap is None:
        return weights, 0
    gross = np.abs(weights).sum(axis=1)
    over = gross > cap * (1 + 1e-12)
    return frozen(weights * np.where(over, cap / np.maximum(gross, cap), 1.0)[:, None]), int(over.sum())


def _scaled(prices: Prices, multipliers: Floats) -> Prices:
    """Prices of one contract: what a unit is worth."""
    if (multipliers == 1).all():
        return prices
    opens, highs, lows, closes = (frozen(matrix * multipliers) for matrix in prices[:4])
    return Prices(opens, highs, lows, closes, prices.volume)


def _plan(
    weights: Floats,
    row_of: npt.NDArray[np.int64],
    market: Market,
    costs: Costs,
    known: Sequence[Instrument | None],
    lot_size: float | Mapping[str, float] | None,
    close_at_end: bool,
    funding_history: Any,
) -> Plan:
    at_open, within = costing.funding_rates(costs, known, market.clock, market.symbols, funding_history)
    borrow = costing.borrow_rates(costs, known)
    years = np.diff(market.clock, prepend=market.clock[0]) / (365 * DAY) if borrow.any() else np.zeros(0)
    last, settled = _ends(market)
    nowhere = np.full(len(market.symbols), -1, np.int64)
    return Plan(
        weights,
        row_of,
        _lots(lot_size, market.symbols),
        borrow,
        years,
        at_open,
        within,
        last if close_at_end else nowhere,
        settled,
    )


def _ends(market: Market) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Each symbol's last bar, and the same again where it was delisted: silent for longer than ever before,
    else −1.
    """
    close = market.prices.close
    last = np.full(len(market.symbols), len(market.clock) - 1)
    settled = np.full(len(market.symbols), -1)
    for s in np.flatnonzero(np.isnan(close[-1])):
        bars = np.flatnonzero(~np.isnan(close[:, s]))
        times = market.clock[bars]
        last[s] = bars[-1]
        if market.clock[-1] - times[-1] > np.diff(times).max(initial=0):
            settled[s] = bars[-1]
    return last, settled


def _lots(lot_size: float | Mapping[str, float] | None, symbols: Sequence[str]) -> Floats:
    if isinstance(lot_size, Mapping):
        for name in lot_size:
            if name not in symbols:
                raise unknown_name("symbol", name, symbols, "lot_size")
        lots = np.array([lot_size.get(symbol, 0.0) for symbol in symbols])
    else:
        lots = np.full(len(symbols), lot_size or 0.0)
    if not (np.isfinite(lots) & (lots >= 0)).all() or lot_size == 0:
        raise UserError(f"lot_size must be above zero (given: {lot_size}); leave it out for fractional units")
    return lots


def _rules(
    costs: Costs, limits: Limits, fill: str, rebalance: str, capital: float, zero_volume: str
) -> Rules:
    for name, value, allowed in (
        ("fill", fill, ("next_open", "next_close")),
        ("rebalance", rebalance, ("on_change", "every_bar")),
        ("zero_volume", zero_volume, ("wait", "fill")),
    ):
        if value not in allowed:
            raise UserError(f"{name} '{value}' is not known; it is {' or '.join(allowed)}")
    if not (np.isfinite(capital) and capital > 0):
        raise UserError(f"initial_capital must be above zero (given: {capital})")
    if zero_volume == "fill" and costs.impact:
        raise UserError("zero_volume='fill' and costs.impact exclude each other: impact needs a volume")
    return Rules(
        float(capital),
        costs.fee,
        costs.spread,
        costs.slippage,
        costs.impact,
        fill == "next_close",
        rebalance == "every_bar",
        zero_volume == "wait",
        limits.stop_loss or 0.0,
        limits.take_profit or 0.0,
        limits.maintenance_margin or 0.0,
    )


def _per_year(
    given: float | None, clock: Milliseconds, known: Sequence[Instrument | None]
) -> tuple[float, str]:
    if given is None:
        return calendars.periods_per_year(clock, [i.calendar if i else None for i in known])
    if not (np.isfinite(given) and given > 0):
        raise UserError(f"periods_per_year must be above zero (given: {given})")
    return float(given), "as given"


def _notes(
    market: Market,
    books: Books,
    costs: Costs,
    known: Sequence[Instrument | None],
    capped: int,
    zero_volume: str,
) -> tuple[str, ...]:
    """What a reader of the result must be told beside the figures."""
    notes = []
    if costs.funding == "excluded" and any(i and i.is_perpetual for i in known):
        notes.append("funding of perpetuals is excluded")
    if capped:
        notes.append(f"{capped:,} rows of weights were scaled down to the leverage cap")
    if unfilled := int(books.totals[UNFILLED]):
        notes.append(f"{unfilled} orders never filled: no later bar with volume")
    if zero_volume == "wait":
        most = np.nan_to_num(market.prices.volume).max(axis=0)
        silent = [s for s, volume in zip(market.symbols, most, strict=True) if volume == 0]
        notes += [
            f"{s} has no volume on any bar, so no order fills; zero_volume='fill' trades it" for s in silent
        ]
    if calls := int(books.totals[MARGIN_CALLS]):
        notes.append(f"{calls} margin calls closed all positions")
    return tuple(notes)
