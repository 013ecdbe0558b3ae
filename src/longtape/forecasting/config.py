"""What describes the forecasts of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from longtape.core.errors import UserError

Method = Literal["conformal", "cqr", "quantile", "student_t"]
OWN_QUANTILES: Mapping[str, str] = {"quantile": "quantile", "student_t": "student_t"}  # head → its method


class ForecastConfig(BaseModel):
    """Intervals and batches of the forecast."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: float = Field(0.9, gt=0, lt=1, description="probability that the interval is to hold")
    intervals: Method | None = Field(
        None,
        description="conformal: from errors of the calibration period; quantile, student_t: the head's own;"
        " cqr: the head's own, widened by the calibration period. By default the head's own, else conformal",
    )
    batch_size: int = Field(
        4, ge=1, description="windows computed together; the newest window alone costs as much as all of them"
    )

    @property
    def levels(self) -> tuple[float, float]:
        """The quantiles that bound the interval."""
        return round((1 - self.level) / 2, 12), round((1 + self.level) / 2, 12)

    def method(self, head: str | None) -> Method:
        """How a target's interval is made, by the head that forecasts it. UserError where it cannot be."""
        own = OWN_QUANTILES.get(head or "")
        asked = self.intervals or own or "conformal"
        if asked in ("quantile", "student_t") and asked != own:
            raise UserError(
                f"forecast.intervals: '{asked}' needs the head '{asked}' (model.heads), not '{head}'"
            )
        if asked == "cqr" and own is None:
            raise UserError(
                f"forecast.intervals: 'cqr' needs a head with quantiles (quantile, student_t), not '{head}'"
            )
        return asked  # type: ignore[return-value]
