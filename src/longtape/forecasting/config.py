"""What describes the forecasts of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from longtape.core.errors import UserError
from longtape.models.base import ModelConfig
from longtape.models.heads import QuantileHead

Method = Literal["conformal", "cqr", "quantile", "student_t", "mc_dropout", "adaptive"]
OWN_QUANTILES: Mapping[str, str] = {"quantile": "quantile", "student_t": "student_t"}  # head → its method
_GOES_WITH = {"samples": "mc_dropout", "rate": "adaptive"}
_TOGETHER = 2_048  # bars that are forecast together


class ForecastConfig(BaseModel):
    """Intervals and batches of the forecast."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: float = Field(0.9, gt=0, lt=1, description="probability that the interval is to hold")
    levels: list[float] = Field(
        default=[],
        description="further levels; each adds the columns of its two bounds, as q0.05 and q0.95 of 0.9",
    )
    intervals: Method | None = Field(
        None,
        description="conformal: from errors of the calibration period; adaptive: the same, with a level that follows"
        " the errors made since (Gibbs & Candès 2021); quantile, student_t: the head's own; cqr: the head's own,"
        " widened by the calibration period; mc_dropout: from many passes with dropout, and the errors of the"
        " calibration period. By default the head's own, else conformal",
    )
    samples: int | None = Field(None, ge=2, description="for mc_dropout: passes, 100 by default")
    rate: float | None = Field(
        None, gt=0, lt=1, description="for adaptive: how far a label moves the level, 0.005 by default"
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        description="windows computed together, by default as many as hold 2,048 bars; the newest window alone costs"
        " as much as all of them",
    )

    @model_validator(mode="after")
    def _every_option_has_an_effect(self) -> ForecastConfig:
        for key, method in _GOES_WITH.items():
            if getattr(self, key) is not None and self.intervals != method:
                raise ValueError(f"{key} has an effect with intervals '{method}' only; leave it away")
        for at, level in enumerate(self.levels):
            if not 0 < level < 1 or level in self.levels[:at]:
                raise ValueError(f"levels: {level:g} must lie between 0 and 1 and be named once")
        return self

    @property
    def every_level(self) -> tuple[float, ...]:
        """The interval's own level, then the further ones."""
        return self.level, *self.levels

    def windows_together(self, lookback: int) -> int:
        """Windows in a batch."""
        return self.batch_size or max(1, _TOGETHER // lookback)

    def method(self, head: str | None, model: ModelConfig | None = None) -> Method:
        """How a target's interval is made, by the head that forecasts it.

        UserError where it cannot be: a head without quantiles, a level beyond them, a `model` without dropout.
        """
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
        if asked in ("quantile", "cqr") and own == "quantile":
            self._refuse_tails()
        if asked == "mc_dropout" and model is not None and not model.has_dropout:
            raise UserError("forecast.intervals: 'mc_dropout' needs a model with dropout above 0")
        return asked  # type: ignore[return-value]

    def _refuse_tails(self) -> None:
        """UserError for a level whose bounds the quantile head does not state."""
        widest = QuantileHead.levels[-1] - QuantileHead.levels[0]
        for level in self.every_level:
            if level > widest + 1e-9:
                raise UserError(
                    f"forecast: the quantile head states intervals of up to {widest:g}, not {level:g}; lower the"
                    " level, or take the head 'student_t'"
                )


def bounds_of(level: float) -> tuple[float, float]:
    """The probabilities below the two bounds of an interval."""
    return round((1 - level) / 2, 12), round((1 + level) / 2, 12)
