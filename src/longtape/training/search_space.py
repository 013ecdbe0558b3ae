"""What a search may choose: a list of values or a range for any field of the experiment."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator


class SearchRange(BaseModel):
    """Numbers from `low` to `high`, both included; whole numbers where both are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: int | float = Field(description="the smallest")
    high: int | float = Field(description="the largest")
    step: int | float | None = Field(
        None, gt=0, description="from one to the next; any number where left out"
    )
    log: bool = Field(False, description="every factor is as likely as every other")

    @model_validator(mode="after")
    def _is_a_range(self) -> SearchRange:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log goes with numbers above 0 and without step")
        return self

    @property
    def is_whole(self) -> bool:
        """True for whole numbers alone."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 1))


SearchSpace = dict[str, list[Any] | SearchRange]
