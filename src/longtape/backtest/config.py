"""How an account is kept: every choice in one typed document. Facts of the market (instruments, recorded funding, bars
in a year) are no choices and stand beside it, in `engine.run_account`.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from longtape.backtest.costs import DEFAULT_COSTS, Costs
from longtape.backtest.validation import one_line

Fill = Literal["next_open", "next_close"]
Rebalance = Literal["on_change", "every_bar"]
ZeroVolume = Literal["wait", "fill"]
LotSize = float | dict[str, float] | None


class Limits(BaseModel):
    """What ends a position or keeps it small, beside the weights. Left out means no such limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stop_loss: float | None = Field(
        default=None, gt=0, description="fraction of the entry price of the units held, e.g. 0.05"
    )
    take_profit: float | None = Field(
        default=None, gt=0, description="fraction of the entry price of the units held"
    )
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
            raise one_line(error, "limits", type(self).model_fields) from None


class AccountConfig(BaseModel):
    """Every choice that an account leaves open; what is left out is what `run_backtest` does without being told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    costs: Costs = Field(
        default=DEFAULT_COSTS,
        description="left out entirely: a fee of 0.1 % a side; within named costs, what is not named is 0",
    )
    fill: Fill = Field(
        default="next_open", description="an order fills at the open or the close of the symbol's next bar"
    )
    rebalance: Rebalance = Field(
        default="on_change",
        description="trade when a weight changes and hold the units between, or back to the weight at every bar",
    )
    initial_capital: float = Field(default=100_000.0, description="money at the start, above zero")
    lot_size: LotSize = Field(
        default=None, description="units come in whole lots, rounded towards zero: one size, or by symbol"
    )
    close_at_end: bool = Field(
        default=False, description="an open position is closed at the symbol's last bar"
    )
    limits: Limits = Field(default=Limits(), description="stops, leverage and margin")
    zero_volume: ZeroVolume = Field(
        default="wait",
        description="an order waits while bars have no volume, or fills all the same where the source reports none",
    )
    risk_free_rate: float = Field(
        default=0.0,
        gt=-1,
        allow_inf_nan=False,
        description="a year; Sharpe, Sortino and alpha count from it. Cash in the account earns nothing",
    )

    @field_validator("initial_capital")
    @classmethod
    def _capital_is_money(cls, value: float) -> float:
        if not 0 < value < np.inf:
            raise ValueError(f"initial_capital must be above zero (given: {value})")
        return value

    @field_validator("lot_size")
    @classmethod
    def _lots_have_a_size(cls, value: LotSize) -> LotSize:
        sizes = value.values() if isinstance(value, dict) else [1.0 if value is None else value]
        if not all(0 < size < np.inf for size in sizes):
            raise ValueError(
                f"lot_size must be above zero (given: {value}); leave it out for fractional units"
            )
        return value

    @model_validator(mode="after")
    def _impact_needs_a_volume(self) -> AccountConfig:
        if self.zero_volume == "fill" and self.costs.impact:
            raise ValueError("zero_volume='fill' and costs.impact exclude each other: impact needs a volume")
        return self
