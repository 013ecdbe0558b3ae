"""An experiment with its data: bars, panel and split, each made once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from longtape.core.calendars import bars_per_year
from longtape.core.errors import UserError
from longtape.core.progress import warn
from longtape.experiment import Experiment
from longtape.features.panel import Panel
from longtape.features.splits import Periods, Split
from longtape.market.agreement import leads, named_most
from longtape.market.bars import Bars
from longtape.market.funding import load_funding
from longtape.market.load import describe, load
from longtape.market.rows import Rows as MarketRows
from longtape.training.run_folder import RunFolder
from longtape.workflow.pipeline import ExperimentPipeline


@dataclass(frozen=True, eq=False)
class RunData:
    """What a run works on. `periods`: the borders of an earlier split; without them the experiment's hold."""

    experiment: Experiment
    pipeline: ExperimentPipeline
    bars: Sequence[MarketRows]  # candles, books or trades
    periods: Periods | None = None

    @classmethod
    def of(cls, experiment: Experiment, periods: Periods | None = None) -> RunData:
        """Load the experiment's data. What its instruments rule out is said before any row is read."""
        if experiment.has_account:
            for instrument in describe(experiment.data):
                experiment.refuse_instrument(instrument.category)
        rows = load(experiment.data)
        _refuse_fills(experiment, rows)
        return cls(experiment, ExperimentPipeline(experiment, periods_per_year(rows)), rows, periods)

    @cached_property
    def panel(self) -> Panel:
        """Features and targets."""
        return self.pipeline.panel(self.bars)

    @cached_property
    def split(self) -> Split:
        """Origins of each period."""
        return self.pipeline.split(self.panel, self.periods)

    @cached_property
    def trading(self) -> ExperimentPipeline:
        """The pipeline with the recorded funding of the test period, where the costs name it."""
        costs = self.experiment.backtest.costs
        if not self.experiment.has_account or costs.funding != "history":
            return self.pipeline
        first, until = self.test_span
        traded = [one for one in self.bars if one.symbol in self.panel.assets]
        last = max(int(one.between(first, until).known_at[-1]) for one in traded if isinstance(one, Bars))
        instruments = [one.instrument for one in traded]
        return replace(self.pipeline, funding=load_funding(self.experiment.data, instruments, first, last))

    def warn_of_leads(self) -> None:
        """Say where symbols seem to be stamped in different ways: one would show the other's future."""
        for _, group in named_most(leads([one for one in self.bars if isinstance(one, Bars)])):
            warn(group[0].text)

    def require_funding(self) -> None:
        """UserError where the costs name recorded funding and a payment of the test period is missing."""
        _ = self.trading

    @property
    def test_span(self) -> tuple[int, int]:
        """First open of the test period, and the time before which its last bar opens."""
        return int(self.panel.timestamps[self.split.test[0]]), self.split.borders.test_until

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Of each instrument's data."""
        return {one.instrument.key: one.fingerprint() for one in self.bars}

    def create_folder(self, root: str | Path) -> RunFolder:
        """The folder of a new run on these data."""
        return RunFolder.create(root, self.experiment.to_yaml(), self.split.borders, self.facts())

    def facts(self) -> dict[str, Any]:
        """What a run must remember of its data."""
        return {
            "name": self.experiment.name,
            "seed": self.experiment.seed,
            "fingerprints": self.fingerprints,
            "bars": {one.symbol: len(one) for one in self.bars},
            "windows": {
                "training": len(self.split.train),
                "validation": len(self.split.validation),
                "calibration": len(self.split.calibration),
                "test": len(self.split.test),
            },
        }

    def summary(self) -> str:
        """One line for the terminal."""
        windows = ", ".join(f"{count:,} {name}" for name, count in self.facts()["windows"].items())
        data = self.experiment.data
        what = f"bars of {data.interval}" if data.kind == "candles" else data.kind
        bars = ", ".join(f"{one.symbol}: {len(one):,} {what}" for one in self.bars)
        return f"{bars}; {len(self.panel.columns)} features; windows: {windows}"


def last_closes(panel: Panel, rows: int) -> pl.DataFrame:
    """`symbol, known_at, close` of the last rows of a panel, where there are any."""
    known = pl.Series("known_at", panel.known_at[-rows:]).cast(pl.Datetime("ms", "UTC"))
    parts = [
        pl.DataFrame({"symbol": asset, "known_at": known, "close": panel.closes[-rows:, a]})
        for a, asset in enumerate(panel.assets)
    ]
    return pl.concat(parts).filter(pl.col("close").is_not_nan())


def _refuse_fills(experiment: Experiment, rows: Sequence[MarketRows]) -> None:
    """UserError, before training, where orders would fill at an open that a source does not have."""
    if experiment.has_account and experiment.backtest.fill == "next_open":
        for one in rows:
            if isinstance(one, Bars) and one.lacks("open"):
                raise UserError(f"{one.origin}: has no opens to fill at; name backtest.fill: next_close")


def periods_per_year(rows: Sequence[MarketRows]) -> float | None:
    """Bars in a year of the market that the bars are of; None for events, and for several markets on one clock."""
    bars = [one for one in rows if isinstance(one, Bars)]
    calendars = {one.instrument.calendar for one in bars}
    return bars_per_year(bars[0].interval, calendars.pop()) if len(calendars) == 1 else None
