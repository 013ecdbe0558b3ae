"""What trading and holding cost, each named by whoever pays it. A cost that is not named is zero; funding of
a perpetual is never assumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from longtape.backtest.frames import as_frame, milliseconds
from longtape.core.calendars import usual_step
from longtape.core.clock import HOUR, Milliseconds, iso
from longtape.core.errors import UserError
from longtape.core.instrument import Instrument

Floats = npt.NDArray[np.float64]
USUAL_FUNDING_HOURS = 8.0


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
            raise UserError(_one_line(error)) from None

    @model_validator(mode="after")
    def _rate_goes_with_rate(self) -> Costs:
        if (self.funding == "rate") != (self.funding_rate is not None):
            raise ValueError("funding='rate' and funding_rate go together; name both or neither")
        return self

    def with_fee(self, fee: float) -> Costs:
        """The same costs with another fee."""
        return Costs(**{**self.model_dump(), "fee": fee})


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    given = f" (given: {first['input']!r})" if where else ""
    return f"costs{'.' + where if where else ''}: {first['msg'].removeprefix('Value error, ')}{given}"


def funding_rates(
    costs: Costs,
    instruments: Sequence[Instrument | None],
    clock: Milliseconds,
    symbols: Sequence[str],
    history: Any,
) -> tuple[Floats, Floats]:
    """Rates due at each bar's open and inside each bar, [T, S] each; [0, 0] where nobody pays funding.

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
    at_open, within = np.zeros((len(clock), len(symbols))), np.zeros((len(clock), len(symbols)))
    until = int(clock[-1] + usual_step(clock))
    events = None if costs.funding == "rate" else _read_history(history)
    for s in paying:
        if events is None:
            times = _every_eight_hours(int(clock[0]), until)
            rates = np.full(len(times), costs.funding_rate)
        else:
            times, rates = _recorded(events, symbols[s], instruments[s], int(clock[0]), until)
        _place(times, rates, clock, at_open[:, s], within[:, s])
    return at_open, within


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
    frame = pl.DataFrame({"time": times, "symbol": frame["symbol"], "rate": frame["rate"].cast(pl.Float64)})
    bad = frame.filter(pl.col("rate").is_null() | ~pl.col("rate").is_finite())
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
    hours = (instrument.funding_hours if instrument else None) or USUAL_FUNDING_HOURS
    _refuse_holes(symbol, times, int(hours * HOUR), since, until)
    return times, rates


def _refuse_holes(symbol: str, times: Milliseconds, step: int, start: int, end: int) -> None:
    """Every payment from the first open to the last close must be there; payments keep to multiples of the
    step.
    """
    inside = times[(times >= start) & (times < end)]
    if len(np.unique(inside)) != len(inside):
        raise UserError(f"funding_history of {symbol}: a time comes twice; remove the duplicate")
    expected_first = -(-start // step) * step
    if expected_first >= end:
        return
    expected_last = (end - 1) // step * step
    edges = np.concatenate([[expected_first - step], inside, [expected_last + step]])
    # Exchanges stamp payments a few milliseconds late at times; a minute is no hole.
    holes = np.flatnonzero(np.diff(edges) > step + 60_000)
    if len(holes):
        missing = int(edges[holes[0]]) + step
        raise UserError(
            f"funding_history of {symbol} has a hole at {iso(missing)} ({len(holes)} such): fetch it again,"
            " or name costs.funding = rate or excluded"
        )


def _place(times: Milliseconds, rates: Floats, clock: Milliseconds, at_open: Floats, within: Floats) -> None:
    bar = np.searchsorted(clock, times, side="right") - 1
    known = bar >= 0
    on_open = known & (times == clock[np.maximum(bar, 0)])
    np.add.at(at_open, bar[on_open], rates[on_open])
    inside = known & ~on_open
    np.add.at(within, bar[inside], rates[inside])


def borrow_rates(costs: Costs, instruments: Sequence[Instrument | None]) -> Floats:
    """Yearly borrow rate of each symbol; a perpetual is not borrowed."""
    return np.array([0.0 if i and i.is_perpetual else costs.borrow for i in instruments])


def instruments_of(
    symbols: Sequence[str], instruments: Mapping[str, Instrument] | None
) -> list[Instrument | None]:
    """The facts known about each symbol, None where there are none."""
    known = instruments or {}
    return [known.get(symbol) for symbol in symbols]
