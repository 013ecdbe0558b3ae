"""The part of a page on the account."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from longtape.backtest import over_time
from longtape.backtest.benchmarks import FLAT
from longtape.backtest.judgement import Judgement
from longtape.backtest.metrics import drawdowns
from longtape.backtest.result import BacktestResult
from longtape.evaluation.skill import MODEL
from longtape.market.rows import Rows as MarketRows
from longtape.report import trading_figures as draw
from longtape.report.numbers import change, duration, fixed, money, percent
from longtape.report.page import Bar, Bars, Block, Figure, Grid, Months, Section, Table, Tabs
from longtape.workflow.pages.subject import Subject

_SYMBOLS = 6  # whose trades are drawn
_KINDS = ("fees", "spread", "slippage", "funding", "borrow")
_YEAR = 365.25 * 86_400


def trading(subject: Subject) -> Section:
    """The account beside simple strategies and chance; nothing where nothing is traded."""
    results, account = subject.results, subject.results.account
    if results.judgement is None or account is None:
        return Section("Trading", [])
    return Section("Trading", [
        _table(subject, account),
        _equity(results.judgement),
        Figure("Drawdown", "Loss from the highest equity so far.", draw.drawdown(times(account), _falls(account))),
        *_months(account),
        Grid([_returns(account), *([] if account.is_short else [_rolling(account)])]),
        _trades(account, subject.bars),
        Grid(_held(account)),
        Grid([_by_symbol(account), _costs(account)]),
        Grid([_sensitivity(results.judgement), _luck(results.judgement)]),
    ])  # fmt: skip


def times(account: BacktestResult) -> npt.NDArray[np.datetime64]:
    """The account's clock."""
    return account.clock.astype("datetime64[ms]")


def _falls(account: BacktestResult) -> npt.NDArray[np.float64]:
    return np.concatenate([[0.0], drawdowns(account.returns)])


def _table(subject: Subject, account: BacktestResult) -> Table:
    caption = "Decided at a bar's close, filled at the next one's " + (
        "open" if subject.experiment.backtest.fill == "next_open" else "close"
    )
    if account.is_short:
        length = duration(account.years * _YEAR)
        caption += f". Only {length} of market time: nothing is stretched to a year"
    else:
        caption += f"; a year has {fixed(account.periods_per_year, 0)} bars ({account.calendar})"
    return Table("Backtest", f"{caption}.", subject.results.strategies, own_first=True)


def _equity(judgement: Judgement) -> Figure:
    result, random = judgement.result, judgement.random
    others = {name: one for name, one in judgement.benchmarks.items() if name != FLAT}
    curves = {
        name: one.history.equity / one.initial_capital for name, one in {MODEL: result, **others}.items()
    }
    at = times(result)
    low, high = np.quantile(random.equity, [0.05, 0.95], axis=0)
    caption = (
        f"Marked at each close after all costs. The band holds nine of ten of {len(random.sharpe)} random strategies"
        " with the same turnover and exposure."
    )
    return Figure("Equity", caption, draw.equity(at, curves, (at[random.bars], low, high)))


def _months(account: BacktestResult) -> list[Block]:
    rows = over_time.monthly_returns(account.equity)
    several = sum(share is not None for _, months, _ in rows for share in months) > 1
    caption = "Returns in percent after costs; the first and the last month may be parts of one."
    return [Months("Month by month", caption, rows)] if several else []


def _returns(account: BacktestResult) -> Figure:
    caption = "Bars on which the account moved, and the normal distribution of the same moments."
    return Figure("Returns", caption, draw.returns(account.returns))


def _rolling(account: BacktestResult) -> Figure:
    window = over_time.rolling_window(account)
    length = duration(window / account.periods_per_year * _YEAR)
    ratio = over_time.rolling_sharpe(account, window)
    error = fixed(_error(account, window), 1)
    caption = f"Of the last {window:,} bars ({length}); its standard error is about {error}."
    return Figure("Rolling Sharpe", caption, draw.rolling_sharpe(times(account), ratio))


def _error(account: BacktestResult, window: int) -> float:
    return float(np.sqrt(account.periods_per_year / window))


def _trades(account: BacktestResult, bars: Sequence[MarketRows]) -> Tabs:
    """Fills on the closes of the symbols that were traded most."""
    most = sorted(over_time.by_symbol(account), key=lambda row: -row["traded"])[:_SYMBOLS]
    fills, closes = account.fills, account.setup.prices.close
    tabs: dict[str, Sequence[Block]] = {}
    for row in most:
        name = row["symbol"]
        at = account.symbols.index(name)
        chart = draw.trades_on_price(
            times(account), closes[:, at] / account.multipliers[at], fills.filter(fills["symbol"] == name)
        )
        caption = (
            f"{row['fills']:,} fills: bought (up) and sold (down) at these prices; of very many the largest."
        )
        tabs[name] = [Figure(f"Trades of {name}", caption, chart)]
    return Tabs(tabs)


def _held(account: BacktestResult) -> list[Block]:
    mean, year = percent(float(account.exposure.mean())), fixed(account.turnover, 1)
    rate = "" if account.is_short else f" {year} × equity a year."
    return [
        Figure(
            "Exposure",
            f"Long and short together, {mean} on average.",
            draw.exposure(times(account), account.exposure),
        ),
        Figure(
            "Turnover",
            f"Value traded, added up.{rate}",
            draw.turnover(times(account), over_time.turnover_by_bar(account)),
        ),
    ]


def _by_symbol(account: BacktestResult) -> Bars:
    rows = sorted(over_time.by_symbol(account), key=lambda row: -abs(row["profit"]))
    bars = [Bar(r["symbol"], r["profit"], money(r["profit"]), tone=_tone(r["profit"])) for r in rows[:20]]
    left = f" The {20} largest of {len(rows)}." if len(rows) > 20 else ""
    return Bars(
        "Profit by symbol", f"After fees, spread and slippage, before funding and borrow.{left}", bars
    )


def _costs(account: BacktestResult) -> Bars:
    """What was paid, by kind; received: negative."""
    bars = [
        Bar(k, account.account[k], money(account.account[k]), tone=_tone(-account.account[k])) for k in _KINDS
    ]
    a = account.account
    caption = (
        f"Of a start of {money(a['start'])}; profit before them {money(a['profit'])}, end {money(a['end'])}."
    )
    return Bars("Costs by kind", caption, bars)


def _sensitivity(judgement: Judgement) -> Bars:
    rows = judgement.costs.rows
    bars = [
        Bar(
            f"{row['cost bp a side']:g} bp",
            row["total_return"],
            change(row["total_return"]),
            tone=_tone(row["total_return"]),
        )
        for row in rows
    ]
    paid = f"{judgement.costs.asked:.1f} bp"
    caption = f"Total return if fee, half spread and slippage came to so much a side; the run paid {paid}."
    return Bars("Cost sensitivity", caption, bars)


def _luck(judgement: Judgement) -> Figure:
    random = judgement.random
    if judgement.result.is_short:
        chart = draw.random_outcomes(100 * random.total_return, 100 * random.own_return, "total return, %")
        return Figure(
            "Luck", "Returns of random strategies with its turnover and exposure, and its own (line).", chart
        )
    caption = "Sharpe ratios of random strategies with its turnover and exposure, and its own (line)."
    return Figure("Luck", caption, draw.random_outcomes(random.sharpe, random.own_sharpe, "Sharpe ratio"))


def _tone(value: float) -> str:
    return "good" if value >= 0 else "bad"
