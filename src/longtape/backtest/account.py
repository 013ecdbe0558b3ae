"""The account, bar by bar: compiled, no frames, no names. `engine.run_account` prepares its arrays and reads
its history. `keep_account` is the order of events in a bar, step by step as docs/backtest.md tells it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from longtape.core.arrays import Floats, Ints

Record = Any  # a row of a structured array, its fields as attributes where it is compiled
Records = npt.NDArray[Any]

# Why a fill happened.
SIGNAL, STOP, TAKE_PROFIT, MARGIN_CALL, RUIN, DELISTED, END = 0, 1, 2, 3, 4, 5, 6
REASONS = ("signal", "stop_loss", "take_profit", "margin_call", "ruin", "delisted", "end")


def _record(**fields: str) -> np.dtype[Any]:
    """The type of a record: its fields and their numpy type codes."""
    return np.dtype(list(fields.items()), align=True)


# What the account holds and knows of one symbol.
POSITION = _record(
    units="f8",
    mark="f8",  # last price
    average="f8",  # entry price of the units held: additions move it, sales do not
    target="f8",  # weight decided
    pending="?",  # an order for it waits
    barred="?",  # left alone until the weight changes
    entry_bar="i8",  # of the running round trip, as the rest
    entry_value="f8",
    entry_units="f8",
    exit_value="f8",
    exit_units="f8",
    costs="f8",
    carry="f8",  # funding and borrow
    lot="f8",  # 0 = fractional units
    borrow_rate="f8",  # a year
    last_bar="i8",  # on which an open position is closed, −1 = none
    settled_at="i8",  # last bar of a delisted symbol, −1 = still listed
)

# Sums since the start; `fills` and `trades` count rows.
TOTALS = _record(
    cash="f8",
    profit="f8",
    fees="f8",
    spread="f8",
    slippage="f8",
    funding="f8",
    borrow="f8",
    traded="f8",
    fills="i8",
    trades="i8",
    unfilled="i8",
    margin_calls="i8",
    ended="?",
)

FILL = _record(
    bar="i8", symbol="i8", reason="i8", units="f8", price="f8", fee="f8", spread="f8", slippage="f8"
)

# A closed round trip: signed units, average prices over its fills.
TRADE = _record(
    symbol="i8",
    entry_bar="i8",
    exit_bar="i8",
    reason="i8",
    units="f8",
    entry_price="f8",
    exit_price="f8",
    costs="f8",
    carry="f8",
)


class Prices(NamedTuple):
    """Bars on one clock, [T, S] each, NaN where a symbol has no bar."""

    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats


class Plan(NamedTuple):
    """What was decided and what is due. `row_of[t]` is the row of `weights` decided at bar t, −1 for none; an
    empty `row_of` means row t at bar t. Funding arrays are [T, S] rates, or [0, 0] where no funding is paid.
    """

    weights: Floats  # [R, S]
    row_of: Ints  # [T] or [0]
    lots: Floats  # [S], 0 = fractional units
    borrow: Floats  # [S], a year
    years: Floats  # [T] since the bar before, or [0] without borrow
    funding_at_open: Floats
    funding_within: Floats
    last_bars: Ints  # [S], the bar on which an open position is closed, −1 = none
    settled_at: Ints  # [S], the last bar of a delisted symbol, −1 = still listed


class Rules(NamedTuple):
    """How orders fill and what they cost."""

    capital: float
    fee: float
    spread: float
    slippage: float
    impact: float
    at_close: bool
    every_bar: bool
    wait_for_volume: bool
    stop_loss: float  # fraction of the entry price, 0 = none
    take_profit: float
    maintenance: float  # share of the gross position that equity must keep, 0 = no margin call


class AccountHistory(NamedTuple):
    """What the account wrote down. Rows of fills and trades beyond the counts in `totals` are unwritten."""

    equity: Floats  # [T] at the close
    cash: Floats  # [T]
    gross: Floats  # [T] Σ|units × price| at the close
    fills: Records  # [F] of FILL
    trades: Records  # [F] of TRADE
    positions: Records  # [S] of POSITION, at the end
    totals: Record  # TOTALS

    @property
    def units(self) -> Floats:
        """Units held at each close [T, S], added up from the fills."""
        units = np.zeros((len(self.equity), len(self.positions)))
        units_from_fills(self.fills, units)
        return units


def new_history(bars: int, symbols: int, orders: int) -> AccountHistory:
    """Empty history. An order can at most be followed by one forced exit, so 2 × orders rows are enough; the
    operating system gives pages only to rows that are written.
    """
    rows = 2 * orders + symbols
    curves = (np.empty(bars), np.empty(bars), np.empty(bars))
    written = (np.empty(rows, FILL), np.empty(rows, TRADE), np.zeros(symbols, POSITION))
    return AccountHistory(*curves, *written, np.zeros(1, TOTALS)[0])


class State(NamedTuple):
    """What changes while the account runs."""

    positions: Records
    totals: Record
    fills: Records
    trades: Records


# `_nrt=False`: nothing here makes an array; counting references at every call, stops take 2.5 times as long.
OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy", "_nrt": False}


def _compiled(function: Any) -> Any:
    return njit(**OPTIONS)(function)


def _inlined(function: Any) -> Any:
    """For the few steps of every bar: as calls, a million bars take 1.7 times as long."""
    return njit(forceinline=True, **OPTIONS)(function)


@_compiled
def _close_trade(state: State, t: int, s: int, reason: int) -> None:
    """Write the finished round trip of symbol s and begin its sums anew."""
    position, totals = state.positions[s], state.totals
    trade = state.trades[totals.trades]
    totals.trades += 1
    trade.symbol = s
    trade.entry_bar = position.entry_bar
    trade.exit_bar = t
    trade.reason = reason
    trade.units = position.entry_units if position.units > 0 else -position.entry_units
    trade.entry_price = position.entry_value / position.entry_units
    trade.exit_price = position.exit_value / position.exit_units
    trade.costs = position.costs
    trade.carry = position.carry
    position.entry_value = position.entry_units = 0.0
    position.exit_value = position.exit_units = 0.0
    position.costs = position.carry = 0.0


@_compiled
def _add_to_trade(state: State, t: int, s: int, delta: float, price: float, cost: float, reason: int) -> None:
    """Add a fill to the running round trip of symbol s; a reversal ends one and begins the next."""
    position = state.positions[s]
    size, held = abs(delta), abs(position.units)
    closing = min(size, held) if position.units * delta < 0 else 0.0
    if closing > 0:
        position.exit_value += closing * price
        position.exit_units += closing
        position.costs += cost * closing / size
        if closing == held:
            _close_trade(state, t, s, reason)
    opening = size - closing
    if opening > 0:
        if position.entry_units == 0:
            position.entry_bar = t
        position.entry_value += opening * price
        position.entry_units += opening
        position.costs += cost * opening / size
        kept = held - closing
        position.average = (kept * position.average + opening * price) / (kept + opening)


@_compiled
def _fill(
    state: State, rules: Rules, t: int, s: int, delta: float, price: float, volume: float, reason: int
) -> None:
    """Trade `delta` units of symbol s at `price`; costs come out of cash. The settlement of a delisted symbol
    is free.
    """
    position, totals = state.positions[s], state.totals
    value = abs(delta) * price
    charged = 0.0 if reason == DELISTED else value
    fee, spread, slippage = rules.fee * charged, rules.spread * charged, rules.slippage * charged
    if rules.impact > 0 and volume > 0:
        slippage += rules.impact * np.sqrt(abs(delta) / volume) * charged
    totals.cash -= delta * price + fee + spread + slippage
    totals.fees += fee
    totals.spread += spread
    totals.slippage += slippage
    totals.traded += value
    fill = state.fills[totals.fills]
    totals.fills += 1
    fill.bar = t
    fill.symbol = s
    fill.reason = reason
    fill.units = delta
    fill.price = price
    fill.fee = fee
    fill.spread = spread
    fill.slippage = slippage
    _add_to_trade(state, t, s, delta, price, fee + spread + slippage, reason)
    # From the old mark to the price of the fill the old units earn; from there on the new ones do.
    totals.profit += position.units * (price - position.mark)
    position.mark = price
    position.units += delta


@_compiled
def _close_position(
    state: State, rules: Rules, t: int, s: int, price: float, volume: float, reason: int
) -> None:
    """Sell what is held of symbol s, drop its order, and stay out of it until its weight changes."""
    position = state.positions[s]
    if position.units != 0:
        _fill(state, rules, t, s, -position.units, price, volume, reason)
    position.barred = True
    position.pending = False


@_inlined
def _update_orders(positions: Records, weights: Floats, row: int, every_bar: bool, t: int) -> bool:
    """Take over row `row` of the weights, decided at bar t (−1 = none); True when some symbol is to be
    traded.
    """
    due = False
    for s in range(len(positions)):
        position = positions[s]
        if 0 <= position.last_bar <= t:
            continue
        if row >= 0 and weights[row, s] != position.target:
            position.target = weights[row, s]
            position.barred = False
            position.pending = True
        if every_bar and not position.barred:
            position.pending = True
        if position.last_bar == t + 1:
            position.target = 0.0
            position.pending = True
        due |= position.pending
    return due


@_inlined
def _mark_to_market(positions: Records, totals: Record, prices: Floats, t: int) -> float:
    """Mark every symbol that has a price at bar t; returns the equity."""
    equity = totals.cash
    for s in range(len(positions)):
        position, price = positions[s], prices[t, s]
        if price == price:
            totals.profit += position.units * (price - position.mark)
            position.mark = price
        equity += position.units * position.mark
    return equity


@_compiled
def _pay_borrow(positions: Records, totals: Record, years: float) -> None:
    for s in range(len(positions)):
        position = positions[s]
        if position.units < 0:
            due = -position.units * position.mark * position.borrow_rate * years
            totals.borrow += due
            totals.cash -= due
            position.carry += due


@_compiled
def _pay_funding(positions: Records, totals: Record, rates: Floats, t: int) -> float:
    """Pay what is due at bar t by the units held at their marks; returns the sum."""
    paid = 0.0
    for s in range(len(positions)):
        position = positions[s]
        if position.units != 0 and rates[t, s] != 0:
            due = position.units * position.mark * rates[t, s]
            totals.funding += due
            totals.cash -= due
            position.carry += due
            paid += due
    return paid


@_compiled
def _trade(state: State, at: Floats, volumes: Floats, rules: Rules, t: int, equity: float) -> None:
    """Bring every symbol with an order to weight × equity; an order waits where there is no bar or no volume."""
    for s in range(len(state.positions)):
        position = state.positions[s]
        price, volume = at[t, s], volumes[t, s]
        if not position.pending or price != price or (rules.wait_for_volume and volume == 0):
            continue
        units = position.target * equity / price
        if position.lot > 0:
            # A size that is a whole number of lots but for rounding must not lose a lot.
            units = np.sign(units) * np.floor(abs(units) / position.lot + 1e-9) * position.lot
        delta = units - position.units
        position.pending = False
        # What rounding alone asks for is no trade.
        if abs(delta) > 1e-12 * abs(position.units):
            _fill(state, rules, t, s, delta, price, volume, END if position.last_bar == t else SIGNAL)


@_compiled
def _stops(state: State, prices: Prices, rules: Rules, t: int, at_open: bool) -> None:
    """Leave positions whose stop or target was reached. At the open a gap through the level fills at the
    open; within the bar the level itself fills, and where both were reached the stop counts.
    """
    for s in range(len(state.positions)):
        position = state.positions[s]
        opened, volume = prices.open[t, s], prices.volume[t, s]
        ordered = at_open and position.pending and not rules.at_close  # the order itself fills at this open
        silent = rules.wait_for_volume and volume == 0
        if position.units == 0 or opened != opened or silent or ordered:
            continue
        side = 1.0 if position.units > 0 else -1.0
        stop = position.average * (1 - side * rules.stop_loss)
        target = position.average * (1 + side * rules.take_profit)
        worst = opened if at_open else (prices.low[t, s] if side > 0 else prices.high[t, s])
        best = opened if at_open else (prices.high[t, s] if side > 0 else prices.low[t, s])
        # A level that the open is already beyond fills at the open, also after an order at that open.
        if rules.stop_loss > 0 and side * worst <= side * stop:
            _close_position(state, rules, t, s, side * min(side * stop, side * opened), volume, STOP)
        elif rules.take_profit > 0 and side * best >= side * target:
            _close_position(state, rules, t, s, side * max(side * target, side * opened), volume, TAKE_PROFIT)


@_compiled
def _margin_call(state: State, prices: Prices, rules: Rules, t: int) -> None:
    """Close everything where, on the straight way from the current marks to each bar's worst price, equity
    falls to the maintenance share of the gross position. Exact for one symbol; for several it takes their
    worst moments together.
    """
    now = later = state.totals.cash
    gross_now = gross_later = 0.0
    for s in range(len(state.positions)):
        held, mark = state.positions[s].units, state.positions[s].mark
        worst = prices.low[t, s] if held > 0 else prices.high[t, s]
        worst = worst if worst == worst else mark
        now += held * mark
        later += held * worst
        gross_now += abs(held) * mark
        gross_later += abs(held) * worst
    before, after = now - rules.maintenance * gross_now, later - rules.maintenance * gross_later
    if gross_now == 0 or after >= 0:
        return
    part = max(before, 0.0) / (max(before, 0.0) - after)
    state.totals.margin_calls += 1
    for s in range(len(state.positions)):
        held, mark = state.positions[s].units, state.positions[s].mark
        worst = prices.low[t, s] if held > 0 else prices.high[t, s]
        price = mark + part * (worst - mark) if worst == worst else mark
        _close_position(state, rules, t, s, price, prices.volume[t, s], MARGIN_CALL)


@_compiled
def _liquidate(state: State, prices: Prices, rules: Rules, t: int) -> None:
    """Equity is gone: everything is sold at its mark and the account is closed."""
    for s in range(len(state.positions)):
        _close_position(state, rules, t, s, state.positions[s].mark, prices.volume[t, s], RUIN)
    state.totals.ended = True


@_compiled
def _settle_delisted(state: State, rules: Rules, t: int) -> None:
    for s in range(len(state.positions)):
        position = state.positions[s]
        if position.settled_at == t and position.units != 0:
            _close_position(state, rules, t, s, position.mark, 0.0, DELISTED)


@_inlined
def _record_bar(positions: Records, totals: Record, history: AccountHistory, t: int) -> float:
    """Write the account at the close of bar t; returns the equity."""
    equity, gross = totals.cash, 0.0
    for s in range(len(positions)):
        value = positions[s].units * positions[s].mark
        equity += value
        gross += abs(value)
    history.equity[t], history.cash[t], history.gross[t] = equity, totals.cash, gross
    return equity


@_compiled
def _begin_account(plan: Plan, rules: Rules, history: AccountHistory) -> bool:
    """The account before its first bar; True when some symbol is to be delisted."""
    delistings = False
    for s in range(len(history.positions)):
        position = history.positions[s]
        position.lot = plan.lots[s]
        position.borrow_rate = plan.borrow[s]
        position.last_bar = plan.last_bars[s]
        position.settled_at = plan.settled_at[s]
        delistings |= plan.settled_at[s] >= 0
    history.totals.cash = rules.capital
    return delistings


@_compiled
def _end_account(state: State) -> None:
    """Count the orders that still wait; an order for nothing where nothing is held is none."""
    for s in range(len(state.positions)):
        position = state.positions[s]
        if position.pending and (position.target != 0 or position.units != 0):
            state.totals.unfilled += 1


@_compiled
def keep_account(prices: Prices, plan: Plan, rules: Rules, history: AccountHistory) -> None:
    """Run the account over all bars and fill `history`."""
    delistings = _begin_account(plan, rules, history)
    positions, totals = history.positions, history.totals
    state = State(positions, totals, history.fills, history.trades)
    dense, borrowing, funding = len(plan.row_of) == 0, len(plan.years) > 0, len(plan.funding_at_open) > 0
    stops = rules.stop_loss > 0 or rules.take_profit > 0
    for t in range(len(prices.close)):
        due = False
        if not totals.ended:
            if t > 0:
                row = t - 1 if dense else plan.row_of[t - 1]
                due = _update_orders(positions, plan.weights, row, rules.every_bar, t - 1)
            # 1. Prices move to the open; what is due by then is paid.
            if borrowing:
                _pay_borrow(positions, totals, plan.years[t])
            equity = _mark_to_market(positions, totals, prices.open, t)
            if funding:
                equity -= _pay_funding(positions, totals, plan.funding_at_open, t)
            # 2. An account worth nothing ends.
            if equity <= 0:
                _liquidate(state, prices, rules, t)
        if not totals.ended:
            # 3. Gaps through a stop or a target fill at the open.
            if stops:
                _stops(state, prices, rules, t, True)
            # 4. Orders fill at the open.
            if due and not rules.at_close:
                _trade(state, prices.open, prices.volume, rules, t, equity)
            # 5. Stops, targets and the margin call look at the bar's range.
            if stops:
                _stops(state, prices, rules, t, False)
            if rules.maintenance > 0:
                _margin_call(state, prices, rules, t)
            # 6. Prices move to the close; what was due inside the bar is paid.
            equity = _mark_to_market(positions, totals, prices.close, t)
            if funding:
                equity -= _pay_funding(positions, totals, plan.funding_within, t)
            # 7. Orders fill at the close; delisted symbols are settled; the account is marked.
            if due and rules.at_close and equity > 0:
                _trade(state, prices.close, prices.volume, rules, t, equity)
            if delistings and equity > 0:
                _settle_delisted(state, rules, t)
        if _record_bar(positions, totals, history, t) <= 0 and not totals.ended:
            _liquidate(state, prices, rules, t)
            _record_bar(positions, totals, history, t)
    _end_account(state)


@_compiled
def units_from_fills(fills: Records, units: Floats) -> None:
    """Units [T, S] held at each close, from the fills in order of time; `units` begins as zeros."""
    n = 0
    for t in range(len(units)):
        for s in range(units.shape[1] if t > 0 else 0):
            units[t, s] = units[t - 1, s]
        while n < len(fills) and fills[n].bar == t:
            units[t, fills[n].symbol] += fills[n].units
            n += 1
