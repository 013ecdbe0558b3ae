"""What trading and holding cost, each named by whoever pays it. A cost that is not named is zero; funding of
a perpetual is never assumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from longtape.backtest.frames import as_frame, milliseconds, numbers
from longtape.backtest.validation import one_line
from longtape.core.arrays import Floats
from longtape.core.calendars import usual_step
from longtape.core.clock import HOUR, Interval, Milliseconds, iso
from longtape.core.errors import UserError
from longtape.core.instrument import Instrument
from longtape.market.funding import funding_holes, on_the_hour, payment_step


class Costs(BaseModel):
    """Costs of an account. Fractions of the traded value, unless a field says otherwise; none may be
    negative.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fee: float = Field(default=0.0, ge=0, le=1, description="commission, e.g. 0.001 = 0.1 % a side")
    spread: float = Field(default=0.0, ge=0, le=1, description="half the bid-ask spread")
    slippage: float = Field(default=0.0, ge=0, le=1, description="fixed slippage")
    impact: float = Field(
        default=0.0,
        ge=0,
        description="square-root impact: adds impact × √(units traded / volume of the bar it fills in)",
    )
    borrow: float = Field(
        default=0.0, ge=0, description="a year, of the value held short; perpetuals pay funding instead"
    )
    funding: Literal["history", "rate", "excluded"] | None = Field(
        default=None, description="of perpetuals: the recorded history, a flat rate, or left out and said so"
    )
    funding_rate: float | None = Field(
        default=None, description="per 8 hours, paid by the long side at 00, 08 and 16 UTC"
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise one_line(error, "costs", type(self).model_fields) from None

    @model_validator(mode="after")
    def _rate_goes_with_rate(self) -> Costs:
        if (self.funding == "rate") != (self.funding_rate is not None):
            raise ValueError("funding='rate' and funding_rate go together; name both or neither")
        return self

    def with_fee(self, fee: float) -> Costs:
        """The same costs with another fee."""
        return Costs(**{**self.model_dump(), "fee": fee})


DEFAULT_COSTS = Costs(fee=0.001)  # where nobody names any costs


def funding_rates(
    costs: Costs,
    instruments: Sequence[Instrument | None],
    clock: Milliseconds,
    interval: Interval | None,
    symbols: Sequence[str],
    history: Any,
) -> tuple[Floats, Floats]:
    """Rates due by each bar's open and inside each bar, [T, S] each; [0, 0] where nobody pays funding.

    What is due between a bar's close and the next open is paid at that open, by whoever holds over the gap; after
    the last close there is no payment. Without `interval` the usual distance between opens is a bar's length.

    Raises UserError for an inverse contract, for a perpetual without a named choice, and for a history with
    holes.
    """
    paying = [s for s, instrument in enumerate(instruments) if instrument and instrument.is_perpetual]
    for s in paying:
        _check_perpetual(costs, instruments[s])
    if history is not None and (costs.funding != "history" or not paying):
        raise UserError("funding_history has no effect here; it goes with funding='history' and perpetuals")
    if not paying or costs.funding == "excluded":
        return np.zeros((0, 0)), np.zeros((0, 0))
    closes = _closes(clock, interval)
    at_open, within = np.zeros((len(clock), len(symbols))), np.zeros((len(clock), len(symbols)))
    events = None if costs.funding == "rate" else _read_history(history)
    for s in paying:
        if events is None:
            times = _every_eight_hours(int(clock[0]), int(closes[-1]))
            rates = np.full(len(times), costs.funding_rate)
        else:
            times, rates = _recorded(events, symbols[s], instruments[s], int(clock[0]), int(closes[-1]))
        _place(times, rates, clock, closes, at_open[:, s], within[:, s])
    return at_open, within


def _closes(clock: Milliseconds, interval: Interval | None) -> Milliseconds:
    """Ends of the bars [T]."""
    if interval is not None:
        return interval.close_of(clock)
    return clock + (usual_step(clock) if len(clock) > 1 else 0)


def _check_perpetual(costs: Costs, instrument: Instrument | None) -> None:
    if instrument is not None and instrument.category == "inverse":
        raise UserError(
            f"{instrument.key}: inverse contracts are not modelled; use the linear perpetual or spot"
        )
    if instrument is not None and costs.funding is None:
        raise UserError(
            f"{instrument.key} is a perpetual: name its funding, costs.funding = history, rate or excluded"
        )


def _every_eight_hours(start: int, end: int) -> Milliseconds:
    step = 8 * HOUR
    return np.arange(-(-start // step) * step, end, step, dtype=np.int64)


def _read_history(history: Any) -> pl.DataFrame:
    if history is None:
        raise UserError("costs.funding='history' needs funding_history: timestamp, symbol, rate")
    frame = as_frame(history, "funding_history", ("timestamp", "symbol", "rate"))
    times = milliseconds(frame["timestamp"], "funding_history")
    rates = numbers(frame["rate"], "funding_history")
    frame = pl.DataFrame({"time": on_the_hour(times), "symbol": frame["symbol"], "rate": rates})
    bad = frame.filter(~pl.col("rate").is_finite())
    if bad.height:
        raise UserError(f"funding_history: no rate at {iso(bad['time'][0])} for {bad['symbol'][0]}")
    return frame.sort("time")


def _recorded(
    events: pl.DataFrame,
    symbol: str,
    instrument: Instrument | None,
    since: int,
    until: int,
) -> tuple[Milliseconds, Floats]:
    mine = events.filter(pl.col("symbol") == symbol)
    times, rates = mine["time"].to_numpy(), mine["rate"].to_numpy()
    _refuse_holes(symbol, times, payment_step(instrument), since, until)
    return times, rates


def _refuse_holes(symbol: str, times: Milliseconds, step: int, start: int, end: int) -> None:
    """Every payment from the first open to the last close must be there, once."""
    inside = times[(times >= start) & (times < end)]
    if len(np.unique(inside)) != len(inside):
        raise UserError(f"funding_history of {symbol}: a time comes twice; remove the duplicate")
    holes = funding_holes(times, step, start, end)
    if holes:
        raise UserError(
            f"funding_history of {symbol} has a hole at {iso(holes[0][0])} ({len(holes)} such): fetch it again,"
            " or name costs.funding = rate or excluded"
        )


def _place(
    times: Milliseconds,
    rates: Floats,
    clock: Milliseconds,
    closes: Milliseconds,
    at_open: Floats,
    within: Floats,
) -> None:
    """Add each payment to the bar that opens at its time, that holds it inside, or that is the next after it."""
    happened = (times >= clock[0]) & (times < closes[-1])
    times, rates = times[happened], rates[happened]
    bar = np.searchsorted(clock, times, side="right") - 1
    inside = (times > clock[bar]) & (times < closes[bar])
    np.add.at(within, bar[inside], rates[inside])
    due = bar + (times >= closes[bar])
    np.add.at(at_open, due[~inside], rates[~inside])


def borrow_rates(costs: Costs, instruments: Sequence[Instrument | None]) -> Floats:
    """Yearly borrow rate of each symbol; a perpetual is not borrowed."""
    return np.array([0.0 if i and i.is_perpetual else costs.borrow for i in instruments])


def instruments_of(
    symbols: Sequence[str], instruments: Mapping[str, Instrument] | None
) -> list[Instrument | None]:
    """The facts known about each symbol, None where there are none."""
    known = instruments or {}
    return [known.get(symbol) for symbol in symbols]
