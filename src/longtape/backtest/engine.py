"""From target weights and bars to an account: the one entry to the backtest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from longtape.backtest import costs as costing
from longtape.backtest.account import AccountHistory, Plan, Prices, Rules, keep_account, new_history
from longtape.backtest.config import AccountConfig, Fill, Limits, LotSize, Rebalance, ZeroVolume
from longtape.backtest.costs import DEFAULT_COSTS, Costs
from longtape.backtest.frames import (
    FIELDS,
    Market,
    frozen,
    long_bars,
    read_market,
    read_weights,
    rows_on_clock,
    several_bars,
)
from longtape.backtest.result import BacktestResult, Setup
from longtape.core import calendars
from longtape.core.arrays import Floats
from longtape.core.clock import DAY, Interval, Milliseconds
from longtape.core.errors import UserError, unknown_name
from longtape.core.instrument import Instrument


def run_backtest(
    weights: Any,
    bars: Any,
    *,
    costs: Costs = DEFAULT_COSTS,
    fill: Fill = "next_open",
    rebalance: Rebalance = "on_change",
    initial_capital: float = 100_000.0,
    lot_size: float | Mapping[str, float] | None = None,
    close_at_end: bool = False,
    limits: Limits = Limits(),
    instruments: Mapping[str, Instrument] | None = None,
    funding_history: Any = None,
    zero_volume: ZeroVolume = "wait",
    periods_per_year: float | None = None,
    risk_free_rate: float = 0.0,
) -> BacktestResult:
    """`run_account` with every choice of `AccountConfig` as a keyword: trade `weights` on `bars`, keep the account.

    UserError for anything unusable.
    """
    config = _config(
        costs=costs,
        fill=fill,
        rebalance=rebalance,
        initial_capital=initial_capital,
        lot_size=dict(lot_size) if isinstance(lot_size, Mapping) else lot_size,
        close_at_end=close_at_end,
        limits=limits,
        zero_volume=zero_volume,
        risk_free_rate=risk_free_rate,
    )
    return run_account(
        config,
        weights,
        bars,
        instruments=instruments,
        funding_history=funding_history,
        periods_per_year=periods_per_year,
    )


def run_account(
    config: AccountConfig,
    weights: Any,
    bars: Any,
    *,
    instruments: Mapping[str, Instrument] | None = None,
    funding_history: Any = None,
    periods_per_year: float | None = None,
) -> BacktestResult:
    """Trade `weights` on `bars` and keep the account as `config` says.

    weights: `timestamp` and one column per symbol, the target share of equity decided at that bar's close; a
        bar without a row keeps the last decision. 1 is fully invested, −1 fully short, 2 levered twice.
    bars: long frame `timestamp, symbol, open, high, low, close, volume` (polars or pandas), or one or several
        `Bars` of one interval.
    instruments: facts by symbol; with them perpetuals pay funding and the calendar sets the bars in a year.
    funding_history: `timestamp, symbol, rate`, for `Costs(funding="history")`.

    An order brings the symbol to weight × equity, equity marked at those prices before the bar's trading
    costs; it never fills on the deciding bar. A missing bar is marked at the last close and its orders wait. A
    symbol whose bars end early (by more than its longest gap) is settled at its last close without cost. Equity
    at or below zero ends the account. UserError for anything unusable.
    """
    bars, instruments, interval = _with_facts(bars, instruments)
    times, symbols, matrix = read_weights(weights)
    market = read_market(bars, symbols)
    _refuse_what_bars_lack(market, config)
    known = costing.instruments_of(symbols, instruments)
    row_of = rows_on_clock(times, market.clock)
    matrix, capped = scaled_to(matrix, config.limits.max_leverage)
    multipliers = np.array([i.multiplier if i else 1.0 for i in known])
    funding = costing.funding_rates(config.costs, known, market.clock, interval, symbols, funding_history)
    plan = _plan(matrix, row_of, market, funding, config, known)
    rules = _rules(config)
    setup = Setup(_scaled(market.prices, multipliers), plan, rules, config.limits.max_leverage)
    history = simulate_account(setup.prices, plan, rules)
    per_year, calendar = _per_year(periods_per_year, market.clock, known)
    return BacktestResult(
        market.clock,
        symbols,
        history,
        setup,
        config.costs,
        config.initial_capital,
        per_year,
        calendar,
        multipliers,
        _notes(market, history, config, known, capped),
        config.risk_free_rate,
    )


def _refuse_what_bars_lack(market: Market, config: AccountConfig) -> None:
    """UserError where an order would need a price, or an impact a volume, that the source does not have."""
    limits = config.limits
    stops = bool(limits.stop_loss or limits.take_profit or limits.maintenance_margin)
    for symbol, names in market.absent.items():
        prices = [name for name in FIELDS if name in names and name != "volume"]
        if "open" in names and config.fill == "next_open":
            raise UserError(
                f"bars: {symbol} has no {', '.join(prices)}, so nothing fills at an open; name fill next_close"
            )
        if prices and stops:
            raise UserError(
                f"bars: {symbol} has no {', '.join(prices)}, so no stop or margin call can be seen; leave limits out"
            )
        if "volume" in names and config.costs.impact:
            raise UserError(f"bars: {symbol} has no volume, which costs.impact needs; leave impact out")


def _config(**choices: Any) -> AccountConfig:
    """The choices as a document; UserError names the keyword."""
    try:
        return AccountConfig(**choices)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name, given = ".".join(str(part) for part in first["loc"]), first["input"]
        if first["type"] == "literal_error":
            allowed = first["ctx"]["expected"].replace("'", "")
            raise UserError(f"{name} '{given}' is not known; it is {allowed}") from None
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "value_error":
            raise UserError(message) from None
        raise UserError(f"{name}: {message} (given: {given!r})") from None


def simulate_account(prices: Prices, plan: Plan, rules: Rules) -> AccountHistory:
    """Arrays in, history out: the account itself, without frames or checks."""
    bars, symbols = prices.close.shape
    orders = bars * symbols if rules.every_bar else min(plan.weights.size, bars * symbols) + symbols
    history = new_history(bars, symbols, orders)
    keep_account(prices, plan, rules, history)
    fills, trades = int(history.totals["fills"]), int(history.totals["trades"])
    return history._replace(fills=_used(history.fills, fills), trades=_used(history.trades, trades))


def _used(rows: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    """The written rows; copied where they are few, so that the reserved ones are given back.

    As bytes: numpy copies records field by field.
    """
    written = rows[:count]
    return written if count > len(rows) // 4 else written.view(np.uint8).copy().view(rows.dtype)


def _with_facts(
    bars: Any, instruments: Mapping[str, Instrument] | None
) -> tuple[Any, Mapping[str, Instrument] | None, Interval | None]:
    """`Bars` bring their own instruments and interval; a frame has only the facts that are named beside it."""
    several = several_bars(bars)
    if several is None:
        return bars, instruments, None
    if len({b.symbol for b in several}) < len(several):
        raise UserError("bars: a symbol comes twice; one account holds one market of each symbol")
    other = next((b for b in several if b.interval != several[0].interval), None)
    if other is not None:
        raise UserError(
            f"bars: {several[0].symbol} comes in bars of {several[0].interval}, {other.symbol} of {other.interval};"
            " one account is kept on one interval"
        )
    facts = {b.symbol: b.instrument for b in several}
    return long_bars(several), {**facts, **(instruments or {})}, several[0].interval


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
    funding: tuple[Floats, Floats],
    config: AccountConfig,
    known: Sequence[Instrument | None],
) -> Plan:
    borrow = costing.borrow_rates(config.costs, known)
    years = np.diff(market.clock, prepend=market.clock[0]) / (365 * DAY) if borrow.any() else np.zeros(0)
    last, settled = _ends(market)
    nowhere = np.full(len(market.symbols), -1, np.int64)
    return Plan(
        weights,
        row_of,
        _lots(config.lot_size, market.symbols),
        borrow,
        years,
        *funding,
        last if config.close_at_end else nowhere,
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


def _lots(lot_size: LotSize, symbols: Sequence[str]) -> Floats:
    if not isinstance(lot_size, dict):
        return np.full(len(symbols), lot_size or 0.0)
    for name in lot_size:
        if name not in symbols:
            raise unknown_name("symbol", name, symbols, "lot_size")
    return np.array([lot_size.get(symbol, 0.0) for symbol in symbols])


def _rules(config: AccountConfig) -> Rules:
    costs, limits = config.costs, config.limits
    return Rules(
        config.initial_capital,
        costs.fee,
        costs.spread,
        costs.slippage,
        costs.impact,
        config.fill == "next_close",
        config.rebalance == "every_bar",
        config.zero_volume == "wait",
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
    history: AccountHistory,
    config: AccountConfig,
    known: Sequence[Instrument | None],
    capped: int,
) -> tuple[str, ...]:
    """What a reader of the result must be told beside the figures."""
    notes = []
    if config.costs.funding == "excluded" and any(i and i.is_perpetual for i in known):
        notes.append("funding of perpetuals is excluded")
    if capped:
        notes.append(f"{capped:,} rows of weights were scaled down to the leverage cap")
    if unfilled := int(history.totals["unfilled"]):
        notes.append(f"{unfilled} orders never filled: no later bar with volume")
    if config.zero_volume == "wait":
        most = np.nan_to_num(market.prices.volume).max(axis=0)
        unknown = [s for s in market.symbols if "volume" in market.absent.get(s, ())]
        silent = [
            s for s, volume in zip(market.symbols, most, strict=True) if volume == 0 and s not in unknown
        ]
        notes += [f"{s}: its source reports no volume, so every order fills" for s in unknown]
        notes += [
            f"{s} has no volume on any bar, so no order fills; zero_volume='fill' trades it" for s in silent
        ]
    if calls := int(history.totals["margin_calls"]):
        notes.append(f"{calls} margin calls closed all positions")
    return tuple(notes)
