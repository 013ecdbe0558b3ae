"""The account, bar by bar: compiled, no frames, no names. `engine.run_backtest` prepares its arrays and reads
its books.

Order of events in a bar: prices move to the open; borrow since the last bar and funding due at the open are
paid; an account worth nothing ends; orders decided at the previous close fill (`next_open`); stops and the
margin call look at the bar's range; prices move to the close; funding inside the bar is paid; orders fill
(`next_close`); the account is marked.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Columns of the book, one row per symbol.
UNITS, MARK, TARGET, PENDING, BARRED = 0, 1, 2, 3, 4
ENTRY_BAR, ENTRY_VALUE, ENTRY_UNITS, EXIT_VALUE, EXIT_UNITS, COSTS, CARRY = 5, 6, 7, 8, 9, 10, 11
LOT, LAST_BAR, SETTLED_AT, BORROW_RATE = 12, 13, 14, 15
AVERAGE = 16  # entry price of the units held: additions move it, sales do not
BOOK_FIELDS = 17

# The account's totals since the start.
CASH, PROFIT, FEES, SPREAD, SLIPPAGE, FUNDING, BORROW, TRADED = 0, 1, 2, 3, 4, 5, 6, 7
N_FILLS, N_TRADES, ENDED, UNFILLED, MARGIN_CALLS = 8, 9, 10, 11, 12
TOTALS = 13

# Why a fill happened.
SIGNAL, STOP, TAKE_PROFIT, MARGIN_CALL, RUIN, DELISTED, END = 0, 1, 2, 3, 4, 5, 6
REASONS = ("signal", "stop_loss", "take_profit", "margin_call", "ruin", "delisted", "end")


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


class Books(NamedTuple):
    """What the account wrote down. Rows of fills and trades beyond the counts in `totals` are unwritten."""

    equity: Floats  # [T] at the close
    cash: Floats  # [T]
    gross: Floats  # [T] Σ|units × price| at the close
    fills: Floats  # [F, 8] bar, symbol, reason, units, price, fee, spread, slippage
    trades: Floats  # [F, 9] symbol, entry bar, exit bar, reason, signed units, entry price, exit price, costs, carry
    totals: Floats  # [TOTALS]
    book: Floats  # [S, BOOK_FIELDS] at the end

    @property
    def units(self) -> Floats:
        """Units held at each close [T, S], added up from the fills."""
        units = np.zeros((len(self.equity), len(self.book)))
        add_up(self.fills, units)
        return units


def new_books(bars: int, symbols: int, orders: int) -> Books:
    """Empty books. An order can at most be followed by one forced exit, so 2 × orders rows are enough; the
    operating system gives pages only to rows that are written.
    """
    rows = 2 * orders + symbols
    written = (np.empty((rows, 8)), np.empty((rows, 9)), np.zeros(TOTALS), np.zeros((symbols, BOOK_FIELDS)))
    return Books(np.empty(bars), np.empty(bars), np.empty(bars), *written)


class State(NamedTuple):
    """What the account is made of while it runs: its book [S, BOOK_FIELDS] and what it writes to."""

    book: Floats
    fills: Floats
    trades: Floats
    totals: Floats


def _compiled(function: Any) -> Any:
    """Nothing here makes an array, so numba need not count references to those passed at every call."""
    return njit(cache=True, nogil=True, error_model="numpy", _nrt=False)(function)


def _inlined(function: Any) -> Any:
    """For what runs at every bar."""
    return njit(cache=True, nogil=True, error_model="numpy", _nrt=False, forceinline=True)(function)


@_compiled
def _close_trade(state: State, t: int, s: int, reason: int) -> None:
    """Write the finished round trip of symbol s and clear its row."""
    book, totals = state.book, state.totals
    trades, n = state.trades, int(totals[N_TRADES])
    side = 1.0 if book[s, UNITS] > 0 else -1.0
    trades[n, 0], trades[n, 1], trades[n, 2], trades[n, 3] = s, book[s, ENTRY_BAR], t, reason
    trades[n, 4] = side * book[s, ENTRY_UNITS]
    trades[n, 5] = book[s, ENTRY_VALUE] / book[s, ENTRY_UNITS]
    trades[n, 6] = book[s, EXIT_VALUE] / book[s, EXIT_UNITS]
    trades[n, 7], trades[n, 8] = book[s, COSTS], book[s, CARRY]
    totals[N_TRADES] += 1
    for field in range(ENTRY_VALUE, CARRY + 1):
        book[s, field] = 0.0


@_compiled
def _note_trade(
    state: State,
    t: int,
    s: int,
    delta: float,
    price: float,
    cost: float,
    reason: int,
) -> None:
    """Add a fill to the running round trip of symbol s; a reversal ends one and begins the next."""
    book = state.book
    size = abs(delta)
    held = book[s, UNITS]
    closing = min(size, abs(held)) if held * delta < 0 else 0.0
    if closing > 0:
        book[s, EXIT_VALUE] += closing * price
        book[s, EXIT_UNITS] += closing
        book[s, COSTS] += cost * closing / size
        if closing == abs(held):
            _close_trade(state, t, s, reason)
    opening = size - closing
    if opening > 0:
        if book[s, ENTRY_UNITS] == 0:
            book[s, ENTRY_BAR] = t
        kept = abs(held) - closing
        book[s, AVERAGE] = (kept * book[s, AVERAGE] + opening * price) / (kept + opening)
        book[s, ENTRY_VALUE] += opening * price
        book[s, ENTRY_UNITS] += opening
        book[s, COSTS] += cost * opening / size


@_compiled
def _fill(
    state: State,
    rules: Rules,
    t: int,
    s: int,
    delta: float,
    price: float,
    volume: float,
    reason: int,
) -> None:
    """Trade `delta` units of symbol s at `price`; costs come out of cash. The settlement of a delisted symbol
    is free.
    """
    book, totals = state.book, state.totals
    value = abs(delta) * price
    charged = 0.0 if reason == DELISTED else value
    fee, spread, slippage = rules.fee * charged, rules.spread * charged, rules.slippage * charged
    if rules.impact > 0 and volume > 0:
        slippage += rules.impact * np.sqrt(abs(delta) / volume) * charged
    totals[CASH] -= delta * price + fee + spread + slippage
    totals[FEES] += fee
    totals[SPREAD] += spread
    totals[SLIPPAGE] += slippage
    totals[TRADED] += value
    fills, n = state.fills, int(totals[N_FILLS])
    fills[n, 0], fills[n, 1], fills[n, 2], fills[n, 3], fills[n, 4] = t, s, reason, delta, price
    fills[n, 5], fills[n, 6], fills[n, 7] = fee, spread, slippage
    totals[N_FILLS] += 1
    _note_trade(state, t, s, delta, price, fee + spread + slippage, reason)
    # From the old mark to the price of the fill the old units earn; from there on the new ones do.
    totals[PROFIT] += book[s, UNITS] * (price - book[s, MARK])
    book[s, MARK] = price
    book[s, UNITS] += delta


@_compiled
def _leave(
    state: State,
    rules: Rules,
    t: int,
    s: int,
    price: float,
    volume: float,
    reason: int,
) -> None:
    """Sell what is held of symbol s, drop its order, and stay out of it until its weight changes."""
    book = state.book
    if book[s, UNITS] != 0:
        _fill(state, rules, t, s, -book[s, UNITS], price, volume, reason)
    book[s, BARRED] = 1.0
    book[s, PENDING] = 0.0


@_inlined
def _decide(book: Floats, weights: Floats, row: int, every_bar: bool, t: int) -> bool:
    """Take over row `row` of the weights, decided at bar t (−1 = none); True when some symbol is to be
    traded.
    """
    due = False
    for s in range(len(book)):
        if 0 <= book[s, LAST_BAR] <= t:
            continue
        if row >= 0 and weights[row, s] != book[s, TARGET]:
            book[s, TARGET] = weights[row, s]
            book[s, BARRED] = 0.0
            book[s, PENDING] = 1.0
        if every_bar and book[s, BARRED] == 0:
            book[s, PENDING] = 1.0
        if book[s, LAST_BAR] == t + 1:
            book[s, TARGET] = 0.0
            book[s, PENDING] = 1.0
        due |= book[s, PENDING] > 0
    return due


@_inlined
def _move(book: Floats, totals: Floats, prices: Floats, t: int) -> float:
    """Mark every symbol that has a price at bar t; returns the equity."""
    equity = totals[CASH]
    for s in range(len(book)):
        price = prices[t, s]
        if price == price:
            totals[PROFIT] += book[s, UNITS] * (price - book[s, MARK])
            book[s, MARK] = price
        equity += book[s, UNITS] * book[s, MARK]
    return equity


@_compiled
def _pay_borrow(book: Floats, totals: Floats, years: float) -> None:
    for s in range(len(book)):
        if book[s, UNITS] < 0:
            due = -book[s, UNITS] * book[s, MARK] * book[s, BORROW_RATE] * years
            totals[BORROW] += due
            totals[CASH] -= due
            book[s, CARRY] += due


@_compiled
def _pay_funding(book: Floats, totals: Floats, rates: Floats, t: int) -> float:
    paid = 0.0
    for s in range(len(book)):
        if book[s, UNITS] != 0 and rates[t, s] != 0:
            due = book[s, UNITS] * book[s, MARK] * rates[t, s]
            totals[FUNDING] += due
            totals[CASH] -= due
            book[s, CARRY] += due
            paid += due
    return paid


@_compiled
def _trade(state: State, at: Floats, volumes: Floats, rules: Rules, t: int, equity: float) -> None:
    """Bring every symbol with an order to weight × equity; an order waits where there is no bar or no volume."""
    book = state.book
    for s in range(len(book)):
        price, volume = at[t, s], volumes[t, s]
        if book[s, PENDING] == 0 or price != price or (rules.wait_for_volume and volume == 0):
            continue
        units = book[s, TARGET] * equity / price
        if book[s, LOT] > 0:
            # A size that is a whole number of lots but for rounding must not lose a lot.
            units = np.sign(units) * np.floor(abs(units) / book[s, LOT] + 1e-9) * book[s, LOT]
        delta = units - book[s, UNITS]
        book[s, PENDING] = 0.0
        # What rounding alone asks for is no trade.
        if abs(delta) > 1e-12 * abs(book[s, UNITS]):
            _fill(state, rules, t, s, delta, price, volume, END if book[s, LAST_BAR] == t else SIGNAL)


@_compiled
def _stops(
    state: State,
    prices: Prices,
    rules: Rules,
    t: int,
    at_open: bool,
) -> None:
    """Leave positions whose stop or target was reached. At the open a gap through the level fills at the
    open; within the bar the level itself fills, and where both were reached the stop counts.
    """
    book = state.book
    for s in range(len(book)):
        held = book[s, UNITS]
        no_volume = rules.wait_for_volume and prices.volume[t, s] == 0
        ordered = (
            at_open and book[s, PENDING] > 0 and not rules.at_close
        )  # the order itself fills at this open
        if held == 0 or prices.open[t, s] != prices.open[t, s] or no_volume or ordered:
            continue
        side = 1.0 if held > 0 else -1.0
        entry = book[s, AVERAGE]
        stop, target = entry * (1 - side * rules.stop_loss), entry * (1 + side * rules.take_profit)
        opened = prices.open[t, s]
        worst = opened if at_open else (prices.low[t, s] if side > 0 else prices.high[t, s])
        best = opened if at_open else (prices.high[t, s] if side > 0 else prices.low[t, s])
        # A level that the open is already beyond fills at the open, also after an order at that open.
        if rules.stop_loss > 0 and side * worst <= side * stop:
            _leave(state, rules, t, s, side * min(side * stop, side * opened), prices.volume[t, s], STOP)
        elif rules.take_profit > 0 and side * best >= side * target:
            price = side * max(side * target, side * opened)
            _leave(state, rules, t, s, price, prices.volume[t, s], TAKE_PROFIT)


@_compiled
def _margin_call(state: State, prices: Prices, rules: Rules, t: int) -> None:
    """Close everything where, on the straight way from the current marks to each bar's worst price, equity
    falls to the maintenance share of the gross position. Exact for one symbol; for several it takes their
    worst moments together.
    """
    book, totals = state.book, state.totals
    now = later = totals[CASH]
    gross_now = gross_later = 0.0
    for s in range(len(book)):
        held, mark = book[s, UNITS], book[s, MARK]
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
    totals[MARGIN_CALLS] += 1
    for s in range(len(book)):
        held, mark = book[s, UNITS], book[s, MARK]
        worst = prices.low[t, s] if held > 0 else prices.high[t, s]
        price = mark + part * (worst - mark) if worst == worst else mark
        _leave(state, rules, t, s, price, prices.volume[t, s], MARGIN_CALL)


@_compiled
def _end(state: State, prices: Prices, rules: Rules, t: int) -> None:
    """Equity is gone: everything is sold at its mark and the account is closed."""
    book = state.book
    for s in range(len(book)):
        _leave(state, rules, t, s, book[s, MARK], prices.volume[t, s], RUIN)
    state.totals[ENDED] = 1.0


@_compiled
def _settle_delisted(state: State, rules: Rules, t: int) -> None:
    book = state.book
    for s in range(len(book)):
        if book[s, SETTLED_AT] == t and book[s, UNITS] != 0:
            _leave(state, rules, t, s, book[s, MARK], 0.0, DELISTED)


@_inlined
def _write(book: Floats, cash: float, equity_at: Floats, cash_at: Floats, gross_at: Floats, t: int) -> float:
    equity, gross = cash, 0.0
    for s in range(len(book)):
        value = book[s, UNITS] * book[s, MARK]
        equity += value
        gross += abs(value)
    equity_at[t], cash_at[t], gross_at[t] = equity, cash, gross
    return equity


@_compiled
def keep_account(prices: Prices, plan: Plan, rules: Rules, books: Books) -> None:
    """Run the account over all bars and fill `books`."""
    bars, symbols = prices.close.shape
    book, totals = books.book, books.totals
    delistings = False
    for s in range(symbols):
        book[s, LOT], book[s, BORROW_RATE] = plan.lots[s], plan.borrow[s]
        book[s, LAST_BAR], book[s, SETTLED_AT] = plan.last_bars[s], plan.settled_at[s]
        delistings |= plan.settled_at[s] >= 0
    state = State(book, books.fills, books.trades, totals)
    totals[CASH] = rules.capital
    opens, closes, volumes, weights, row_of = (
        prices.open,
        prices.close,
        prices.volume,
        plan.weights,
        plan.row_of,
    )
    equity_at, cash_at, gross_at = books.equity, books.cash, books.gross
    watched = rules.stop_loss > 0 or rules.take_profit > 0
    borrowing, funding = len(plan.years) > 0, len(plan.funding_at_open) > 0
    dense, every_bar, at_close, margin = (
        len(row_of) == 0,
        rules.every_bar,
        rules.at_close,
        rules.maintenance > 0,
    )
    for t in range(bars):
        due = False
        if totals[ENDED] == 0:
            if t > 0:
                due = _decide(book, weights, t - 1 if dense else row_of[t - 1], every_bar, t - 1)
            if borrowing:
                _pay_borrow(book, totals, plan.years[t])
            equity = _move(book, totals, opens, t)
            if funding:
                equity -= _pay_funding(book, totals, plan.funding_at_open, t)
            if equity <= 0:
                _end(state, prices, rules, t)
        if totals[ENDED] == 0:
            if watched:
                _stops(state, prices, rules, t, True)
            if due and not at_close:
                _trade(state, opens, volumes, rules, t, equity)
            if watched:
                _stops(state, prices, rules, t, False)
            if margin:
                _margin_call(state, prices, rules, t)
            equity = _move(book, totals, closes, t)
            if funding:
                equity -= _pay_funding(book, totals, plan.funding_within, t)
            if due and at_close and equity > 0:
                _trade(state, closes, volumes, rules, t, equity)
            if delistings and equity > 0:
                _settle_delisted(state, rules, t)
        if _write(book, totals[CASH], equity_at, cash_at, gross_at, t) <= 0 and totals[ENDED] == 0:
            _end(state, prices, rules, t)
            _write(book, totals[CASH], equity_at, cash_at, gross_at, t)
    for s in range(symbols):
        if book[s, TARGET] != 0 or book[s, UNITS] != 0:
            totals[UNFILLED] += book[s, PENDING]


@_compiled
def add_up(fills: Floats, units: Floats) -> None:
    """Units [T, S] held at each close, from the fills in order of time; `units` begins as zeros."""
    n = 0
    for t in range(len(units)):
        for s in range(units.shape[1] if t > 0 else 0):
            units[t, s] = units[t - 1, s]
        while n < len(fills) and fills[n, 0] == t:
            units[t, int(fills[n, 1])] += fills[n, 3]
            n += 1
