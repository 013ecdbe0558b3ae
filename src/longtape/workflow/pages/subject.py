"""What a page is about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import polars as pl

from longtape.experiment import Experiment
from longtape.forecasting.config import bounds_of
from longtape.market.rows import Rows as MarketRows
from longtape.workflow.inside import Inside
from longtape.workflow.results import Results


@dataclass(frozen=True, eq=False)
class Subject:
    """An experiment, its data, and what it came to; of a walk forward without what one model alone has."""

    experiment: Experiment
    bars: Sequence[MarketRows]
    results: Results
    prices: pl.DataFrame  # symbol, known_at, close: the last bars
    facts: Mapping[str, Any] = field(default_factory=dict)  # of run.json
    audit: Mapping[str, Any] | None = None
    histories: Sequence[Sequence[Mapping[str, float]]] = ()
    inside: Inside | None = None
    compared: Mapping[str, Any] | None = None  # of compare.json
    command: str = ""  # that repeats it

    @property
    def level(self) -> float:
        """Of the intervals."""
        return self.experiment.forecast.level

    @property
    def bounds(self) -> dict[float, tuple[str, str]]:
        """Names of the bounds of each level of intervals."""
        further = {one: bounds_of(one) for one in self.experiment.forecast.levels if one != self.level}
        named = {one: (f"q{low:g}", f"q{high:g}") for one, (low, high) in further.items()}
        return {self.level: ("lower", "upper"), **named}

    @property
    def unit(self) -> str:
        """What horizons are counted in."""
        return {"candles": "bars", "books": "updates", "trades": "trades"}[self.experiment.data.kind]

    @cached_property
    def newest(self) -> pl.DataFrame:
        """The forecasts of the newest origin of each symbol whose labels are not known yet."""
        open_ones = self.results.forecasts.filter(pl.col("actual").is_null())
        return open_ones.filter(pl.col("known_at") == pl.col("known_at").max().over("symbol"))

    @cached_property
    def whole_days(self) -> bool:
        """Whether the clock shows days alone."""
        return self.experiment.data.kind == "candles" and str(self.experiment.data.interval)[-1:] in "dwM"

    @property
    def targets(self) -> Iterator[tuple[str, str, pl.DataFrame]]:
        """Symbol, target and rows of each forecast, in order."""
        for (symbol, target), own in self.results.forecasts.group_by("symbol", "target", maintain_order=True):
            yield str(symbol), str(target), own
