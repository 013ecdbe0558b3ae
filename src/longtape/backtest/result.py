"""What a backtest leaves behind: the account's history as frames, and its measures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from longtape.backtest.account import REASONS, AccountHistory, Plan, Prices, Rules
from longtape.backtest.costs import Costs
from longtape.backtest.metrics import compute_metrics, equity_returns
from longtape.core.arrays import Floats
from longtape.core.clock import Milliseconds, iso
from longtape.core.shown import Shown
from longtape.market.bars import TIME_TYPE
from longtape.market.frames import to_pandas

SHORTEST_YEARS = 1 / 12  # below, a growth is not stretched to a year


class Setup(NamedTuple):
    """What the account was kept on, so that other weights can be put to the same test."""

    prices: Prices
    plan: Plan
    rules: Rules
    max_leverage: float | None


@dataclass(frozen=True, eq=False, repr=False)
class BacktestResult(Shown):
    """Equity, positions, trades and measures of one account. Times are opens of bars; values are marked at
    their closes.
    """

    clock: Milliseconds  # [T]
    symbols: tuple[str, ...]
    history: AccountHistory
    setup: Setup
    costs: Costs
    initial_capital: float
    periods_per_year: float
    calendar: str  # how the number of bars a year was found
    multipliers: Floats  # [S]
    notes: tuple[str, ...] = ()
    risk_free_rate: float = 0.0  # a year

    @property
    def title(self) -> str:
        """The symbols traded."""
        return ", ".join(self.symbols[:5]) + (" …" if len(self.symbols) > 5 else "")

    def facts(self) -> dict[str, Any]:
        """What a reader of its repr sees."""
        m = self.metrics
        return {
            "bars": len(self.clock),
            "from": iso(int(self.clock[0])),
            "to": iso(int(self.clock[-1])),
            "total return": f"{m['total_return']:.2%}",
            "Sharpe": f"{m['sharpe']:.2f}",
            "max drawdown": f"{m['max_drawdown']:.2%}",
            "fills": int(m["n_fills"]),
        }

    def preview(self) -> pl.DataFrame:
        """The newest rows of the ledger."""
        return self.ledger.tail(5)

    def to_pandas(self) -> Any:
        """The ledger (cash, positions, equity, exposure at each close) as a pandas frame, times (UTC) as its index."""
        return to_pandas(self.ledger)

    @property
    def equity(self) -> pl.DataFrame:
        """`timestamp, equity` [T]."""
        return pl.DataFrame({"timestamp": self._times, "equity": self.history.equity})

    @property
    def positions(self) -> pl.DataFrame:
        """`timestamp` and one column per symbol: units held at the close."""
        columns = {name: self.history.units[:, s] for s, name in enumerate(self.symbols)}
        return pl.DataFrame({"timestamp": self._times, **columns})

    @property
    def ledger(self) -> pl.DataFrame:
        """`timestamp, cash, positions, equity, exposure`: value of positions at market, gross exposure over
        equity.
        """
        positions = self.history.equity - self.history.cash
        return pl.DataFrame(
            {
                "timestamp": self._times,
                "cash": self.history.cash,
                "positions": positions,
                "equity": self.history.equity,
                "exposure": self.exposure,
            }
        )

    @property
    def exposure(self) -> Floats:
        """Gross exposure over equity at each close [T]; 0 once the account has ended."""
        equity = self.history.equity
        if equity.min() > 0:
            return self.history.gross / equity
        return np.divide(self.history.gross, equity, out=np.zeros(len(equity)), where=equity > 0)

    @cached_property
    def fills(self) -> pl.DataFrame:
        """`timestamp, symbol, units, price, value, fee, spread, slippage, reason`, one row per execution."""
        fills = self.history.fills
        multiplier = self.multipliers[fills["symbol"]]
        return pl.DataFrame(
            {
                "timestamp": self._times.gather(fills["bar"]),
                "symbol": self._names(fills["symbol"]),
                "units": fills["units"],
                "price": fills["price"] / multiplier,
                "value": np.abs(fills["units"]) * fills["price"],
                "fee": fills["fee"],
                "spread": fills["spread"],
                "slippage": fills["slippage"],
                "reason": pl.Series(REASONS).gather(fills["reason"]),
            }
        )

    @cached_property
    def trades(self) -> pl.DataFrame:
        """Closed round trips, from flat (or a reversal) to flat: `symbol, side, entry_time, exit_time, units,
        entry_price, exit_price, profit, costs, carry, return, bars, reason`. Prices are averages over the
        fills; `costs` are fees, spread and slippage, `carry` funding and borrow; `profit` and `return` (over
        the entry value) are after both.
        """
        trades = self.history.trades
        multiplier, units = self.multipliers[trades["symbol"]], trades["units"]
        return pl.DataFrame(
            {
                "symbol": self._names(trades["symbol"]),
                "side": pl.Series(["short", "long"]).gather((units > 0).astype(np.int64)),
                "entry_time": self._times.gather(trades["entry_bar"]),
                "exit_time": self._times.gather(trades["exit_bar"]),
                "units": np.abs(units),
                "entry_price": trades["entry_price"] / multiplier,
                "exit_price": trades["exit_price"] / multiplier,
                "profit": self._trade_profits,
                "costs": trades["costs"],
                "carry": trades["carry"],
                "return": self.trade_returns,
                "bars": trades["exit_bar"] - trades["entry_bar"],
                "reason": pl.Series(REASONS).gather(trades["reason"]),
            }
        )

    @property
    def _trade_profits(self) -> Floats:
        trades = self.history.trades
        moved: Floats = trades["units"] * (trades["exit_price"] - trades["entry_price"])
        return moved - trades["costs"] - trades["carry"]

    @property
    def trade_returns(self) -> Floats:
        """Net return of each closed trade over its entry value."""
        trades = self.history.trades
        return self._trade_profits / np.abs(trades["units"] * trades["entry_price"])

    @cached_property
    def returns(self) -> Floats:
        """Simple returns per bar [T − 1]."""
        return equity_returns(self.history.equity)

    @cached_property
    def account(self) -> dict[str, float]:
        """start + profit − fees − spread − slippage − funding − borrow = end."""
        totals = self.history.totals
        flows = ("profit", "fees", "spread", "slippage", "funding", "borrow")
        sums = {name: float(totals[name]) for name in flows}
        return {"start": self.initial_capital, **sums, "end": float(self.history.equity[-1])}

    @cached_property
    def metrics(self) -> dict[str, float]:
        """All of `metrics.compute_metrics`, and what the account paid, traded and held. Fractions, not
        percent.
        """
        measures = compute_metrics(
            self.history.equity,
            self.periods_per_year,
            risk_free=self.risk_free_rate,
            trade_returns=self.trade_returns,
        )
        return {**measures, **self._use}

    @property
    def years(self) -> float:
        """Length of the record, in years of its market's bars."""
        return len(self.clock) / self.periods_per_year

    @property
    def is_short(self) -> bool:
        """Whether figures a year would be stretched from less than a month."""
        return self.years < SHORTEST_YEARS

    @property
    def sharpe_errors(self) -> float:
        """The Sharpe ratio in standard errors, which no length of a year enters; NaN without variance."""
        return float(self.metrics["sharpe"] / self.metrics["sharpe_standard_error"])

    @property
    def risk_free_return(self) -> float:
        """The risk-free rate of one bar."""
        return self.risk_free_rate / self.periods_per_year

    @property
    def turnover(self) -> float:
        """Traded value a year over mean equity; NaN for an account that has lost everything."""
        equity = self.history.equity
        if equity.min() <= 0:
            return float("nan")
        return float(self.history.totals["traded"] / equity.mean() / self.years)

    @property
    def _use(self) -> dict[str, float]:
        totals = self.history.totals
        paid = {name: value for name, value in self.account.items() if name not in ("start", "end", "profit")}
        return {
            "n_fills": float(totals["fills"]),
            "turnover": self.turnover,
            "exposure": float(self.exposure.mean()),
            **paid,
            "costs": sum(paid.values()),
            "unfilled": float(totals["unfilled"]),
            "margin_calls": float(totals["margin_calls"]),
            "ended": float(totals["ended"]),
        }

    @property
    def _times(self) -> pl.Series:
        return pl.Series("timestamp", self.clock).cast(TIME_TYPE)

    def _names(self, codes: Any) -> pl.Series:
        return pl.Series(self.symbols, dtype=pl.String).gather(codes)
