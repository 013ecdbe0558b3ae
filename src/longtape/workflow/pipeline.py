"""An experiment as a pipeline: bars → panel → split → fitted forecaster → weights → fills.

This is what evaluation drives (`longtape.evaluation.protocol`): each step is a pure function of what it is given.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import torch

from longtape.backtest import BacktestResult
from longtape.backtest.engine import run_account
from longtape.backtest.frames import only_at_bars
from longtape.backtest.of_books import leaning, on_bars_of_mid
from longtape.backtest.signals import weights_from_forecast
from longtape.core.errors import UserError
from longtape.core.files import read_json, write_json
from longtape.experiment import Experiment
from longtape.features.book_targets import with_classes
from longtape.features.build import build
from longtape.features.marks import Events, build_marks, read_events
from longtape.features.panel import Panel, Rows, TargetColumn
from longtape.features.pooled import part_of, pooled, pooled_split, split_of
from longtape.features.scaling import Standardizer
from longtape.features.splits import Periods, Split, WalkForwardConfig, chronological, walk_forward
from longtape.features.target_kinds import target_kind
from longtape.forecasting.fitted import FittedForecaster, History, calibrated
from longtape.forecasting.intervals import Calibration
from longtape.market.books import Books
from longtape.market.rows import Rows as MarketRows
from longtape.models.base import Model, ModelInputs
from longtape.models.registry import MODELS, Baseline, baselines_of, build_model, require_package
from longtape.training.batches import in_blocks
from longtape.training.checkpoint import load_weights, save_weights
from longtape.training.ensemble import joined
from longtape.training.loop import Trainer
from longtape.training.observers import Observer
from longtape.training.processes import ALONE, Processes
from longtape.training.run_folder import RunFolder

_WARM_UP = 512  # rows that features may need before their first value, at the first try


@dataclass(frozen=True)
class ExperimentPipeline:
    """The steps that an experiment describes."""

    experiment: Experiment
    periods_per_year: float | None = None  # of the bars' own market; None: read from the forecasts' times
    funding: pl.DataFrame | None = None  # recorded payments, for costs.funding = history
    events: Events | None = None  # as they were known at some time; None: the experiment's file
    company: Sequence[MarketRows] = ()  # symbols that are not forecast, and that market-wide features read

    @property
    def lookback(self) -> int:
        """Bars in a window."""
        return self.experiment.model.lookback

    def panel(self, bars: Sequence[MarketRows]) -> Panel:
        """Features, targets and marks of `bars`."""
        config, marks = self.experiment.feature_config, self.experiment.marks
        if self.company:
            config = config.model_copy(update={"symbols": config.symbols or [one.symbol for one in bars]})
        panel = build([*bars, *self.company], config)
        panel = replace(panel, target_columns=self._forecast_as(panel.target_columns))
        return panel if marks is None else replace(panel, marks=build_marks(panel, marks, self.events))

    def newest_panel(self, bars: Sequence[MarketRows], need: int, guess: int = 0) -> Panel:
        """The panel of the last rows alone: `need` rows past the warm-up of the features, and no more than that takes.

        Features are made of their own windows, so these rows have the same bits as in the panel of all `bars`. How many
        rows a warm-up takes (a session's average begins with the session) shows in trying: `guess` is where to begin.
        """
        rows = max(guess, need + _WARM_UP)
        while True:
            tail = _last_rows(bars, rows)
            whole = all(len(part) == len(one) for part, one in zip(tail, bars, strict=True))
            try:
                panel = self.panel(tail)
            except UserError:
                if whole:
                    raise
            else:
                if whole or need <= panel.ready_rows:
                    return panel
            rows *= 2

    def _forecast_as(self, targets: Sequence[TargetColumn]) -> tuple[TargetColumn, ...]:
        """Targets as the model forecasts them: their labels, or weights that earn them."""
        gives = self.experiment.model.gives_weights
        return tuple(replace(target, as_weight=gives(target_kind(target.kind))) for target in targets)

    def split(self, panel: Panel, periods: Periods | None = None) -> Split:
        """Training, validation, calibration and test origins, as configured or at the borders of `periods`."""
        return chronological(panel, self.lookback, periods or self.experiment.split)

    def refuse_short(self, split: Split) -> None:
        """UserError where a period holds no whole block of the windows that the loss takes together."""
        for rows in (split.train, split.validation) if self.experiment.model.trains else ():
            in_blocks(rows, self.experiment.model.block)

    def refuse_baselines(self, panel: Panel, split: Split) -> None:
        """UserError where a model, or a baseline that the experiment names, lacks its package or what it reads."""
        require_package(self.experiment.model)
        self.experiment.model.refuse_clock(panel.interval, panel.calendar)
        for one in self.experiment.beside:
            require_package(one.config)
            if not MODELS.load(one.config.kind).reads(panel):
                raise UserError(f"baselines: '{one.config.kind}' reads what these data do not hold")
            for inputs, part, train in self._fitted_apart(panel, split):
                _refuse_baseline(one, inputs, part, train)

    def _fitted_apart(self, panel: Panel, split: Split) -> Iterator[tuple[ModelInputs, Panel, Rows]]:
        """Where baselines are fitted: on all symbols together, or, beside a pooled model, on each by itself."""
        if self.experiment.model.pooled is None:
            yield self.inputs(panel, split.train), panel, split.train
            return
        for asset in panel.assets:
            part, own = part_of(panel, asset), split_of(panel, asset, split, self.lookback)
            if len(own.train) and len(own.test):
                yield self.inputs_of_part(part, own.train), part, own.train

    def folds(self, panel: Panel, config: WalkForwardConfig) -> list[Split]:
        """The test period of the experiment's split, block by block."""
        return walk_forward(panel, self.lookback, self.experiment.split, config)

    def scaler(self, panel: Panel, train: Rows) -> Standardizer:
        """Mean and deviation of the rows that training windows see."""
        nothing = train[:0]
        rows = Split(train, nothing, nothing, nothing).training_rows(self.lookback)
        return Standardizer.fit(panel.values, rows, [str(column) for column in panel.columns])

    def as_given(self, panel: Panel, split: Split) -> tuple[Panel, Split]:
        """The panel and its split as the model is given them: pooled, or with the classes of the training rows."""
        config = self.experiment.model.pooled
        if config is None:
            return with_classes(panel, split.train), split
        rows = pooled(panel, config.own_past)
        found = pooled_split(panel, rows, split, self.lookback)
        if not len(found.train):
            raise UserError("split: no symbol has a whole window with its label in the training period")
        return rows, found

    def inputs(self, panel: Panel, train: Rows) -> ModelInputs:
        """What a model must know of these data, as it is given them."""
        panel = panel if self.experiment.model.pooled else with_classes(panel, train)
        return self._inputs(panel, train, self.scaler(panel, train))

    def inputs_of_part(self, part: Panel, train: Rows) -> ModelInputs:
        """What the baselines of one symbol of a pooled run must know; of the features they read nothing but what those
        read that are named.
        """
        n_columns = len(part.columns)
        unread = Standardizer(np.zeros(n_columns), np.ones(n_columns))
        is_read = bool(self.experiment.baselines) and len(train) > 0
        return self._inputs(part, train, self.scaler(part, train) if is_read else unread)

    def _inputs(self, panel: Panel, train: Rows, scaler: Standardizer) -> ModelInputs:
        deviation = np.nanstd(panel.targets[train], axis=0) if len(train) else np.ones(panel.targets.shape[1])
        deviation[~(deviation > 0)] = 1.0  # a constant target has no unit of its own
        return ModelInputs(
            panel.columns,
            panel.assets,
            panel.target_columns,
            panel.interval,
            panel.calendar,
            scaler.mean,
            scaler.std,
            deviation,
        )

    def fit(self, panel: Panel, split: Split) -> FittedForecaster:
        """Train from the experiment's seeds; nothing is kept on disk."""
        with tempfile.TemporaryDirectory(prefix="longtape-") as folder:
            return self.fit_in(RunFolder(folder), panel, split)

    def fit_in(
        self,
        folder: RunFolder,
        panel: Panel,
        split: Split,
        processes: Processes = ALONE,
        observers: Sequence[Observer] = (),
    ) -> FittedForecaster:
        """Train in a folder, going on from whatever checkpoints it holds to the same numbers.

        `observers` watch the first seed, beside those of the folder.
        """
        panel, split = self.as_given(panel, split)
        inputs = self.inputs(panel, split.train)
        trained = [
            self._member(folder, number, inputs, panel, split, processes, () if number else observers)
            for number in range(self.experiment.training.seeds)
        ]
        model = joined([model for model, _ in trained])
        traded = self.experiment.backtest.traded if self.experiment.has_account else None
        calibration = calibrated(model, panel, split, self.experiment.forecast, traded)
        return self.fitted(model, calibration, split.periods, tuple(history for _, history in trained))

    def fitted(
        self,
        model: Model,
        calibration: Calibration,
        periods: Periods | None,
        histories: tuple[History, ...] = (),
    ) -> FittedForecaster:
        """A trained model with what belongs to it."""
        return FittedForecaster(model.eval(), calibration, self.experiment.forecast, periods, histories)

    def untrained(self, inputs: ModelInputs) -> Model:
        """The model of a run as it is before its weights are loaded."""
        seeds = range(self.experiment.training.seeds)
        return joined([build_model(self.experiment.model, inputs) for _ in seeds])

    def _member(
        self,
        folder: RunFolder,
        number: int,
        inputs: ModelInputs,
        panel: Panel,
        split: Split,
        processes: Processes,
        observers: Sequence[Observer],
    ) -> tuple[Model, History]:
        """The model of one seed: as it waits for the others, or trained."""
        seed, config = self.experiment.seed + number, self.experiment.training
        torch.manual_seed(seed)
        model = build_model(self.experiment.model, inputs)
        if model.is_trained and not len(split.validation):
            raise UserError(
                "split: training stops early on validation windows, and there are none; name some"
            )
        kept, losses = folder.trained(number), folder.trained(number).with_suffix(".json")
        if kept.exists() and losses.exists():
            model.load_state_dict(load_weights(kept))
            return model, read_json(losses)
        trainer = Trainer(
            model,
            panel,
            split.train,
            split.validation,
            config,
            seed,
            folder.checkpoint(number),
            [*folder.observers(number, config.tensorboard), *observers] if processes.is_first else (),
            processes,
        )
        history = trainer.fit(resume=True)
        if config.seeds > 1 and processes.is_first:
            save_weights(kept, model.state_dict())
            write_json(losses, history)
        return model, history

    def rescaled(self, fitted: FittedForecaster, panel: Panel, train: Rows) -> FittedForecaster:
        """The same trained weights with the scaler fitted again."""
        nothing = train[:0]
        panel, split = self.as_given(panel, Split(train, nothing, nothing, nothing))
        scaler = self.scaler(panel, split.train)
        inputs = replace(fitted.model.inputs, mean=scaler.mean, deviation=scaler.std)
        model = self.untrained(inputs)
        state = {k: v for k, v in fitted.model.state_dict().items() if ".scaling." not in f".{k}"}
        model.load_state_dict(state, strict=False)
        return replace(fitted, model=model.eval())

    def weights(self, forecast: pl.DataFrame) -> pl.DataFrame:
        """Target weights decided at each origin's close; no symbol where nothing is traded."""
        if not self.experiment.has_account:
            return forecast.select("timestamp").unique(maintain_order=True)
        signal = self.experiment.backtest.signal
        if self.experiment.backtest.mid_bars is not None:
            forecast = leaning(forecast)
        return weights_from_forecast(forecast, signal, self.periods_per_year)

    def backtest(self, weights: pl.DataFrame, bars: Sequence[MarketRows]) -> BacktestResult:
        """The account that follows `weights` through `bars`; what has no bar at a time is not traded on then."""
        weights, bars = self._on_bars(weights, bars)
        if weights.is_empty():
            raise UserError("backtest: no decision lies before the last bar; name shorter bars (mid_bars)")
        return run_account(self.experiment.backtest, weights, bars, funding_history=self.funding)

    def _on_bars(
        self, weights: pl.DataFrame, rows: Sequence[MarketRows]
    ) -> tuple[pl.DataFrame, Sequence[MarketRows]]:
        """Weights at the times of bars, and the bars: those given, or of books those of the mid."""
        of_books = [one for one in rows if isinstance(one, Books)]
        if not of_books:
            return only_at_bars(weights, rows), rows
        decided, bars = on_bars_of_mid(weights, of_books[0], str(self.experiment.backtest.mid_bars))
        return decided, [bars]

    def fills(self, weights: pl.DataFrame, bars: Sequence[MarketRows]) -> pl.DataFrame:
        """Trades that follow from `weights` on any `bars`, which may end anywhere: what is held then stays open.

        Recorded funding, known for the test period only, is left out of the equity that sizes them.
        """
        if not self.experiment.has_account:
            return weights.clear()
        account = self.experiment.backtest.model_copy(update={"close_at_end": False})
        if account.costs.funding == "history":
            costs = account.costs.model_copy(update={"funding": "excluded"})
            account = account.model_copy(update={"costs": costs})
        weights, bars = self._on_bars(weights, bars)
        return run_account(account, weights, bars).fills

    def as_of(self, time: int) -> ExperimentPipeline:
        """The same with the events that had been announced by `time`."""
        marks = self.experiment.marks
        if marks is None or marks.events is None:
            return self
        return replace(self, events=(self.events or read_events(marks.events)).as_of(time))


def _refuse_baseline(one: Baseline, inputs: ModelInputs, panel: Panel, train: Rows) -> None:
    """UserError where it cannot be built for the targets that it stands beside, or has too few rows to fit on."""
    for kind in inputs.kinds:
        of_kind = inputs.only(kind)
        if not of_kind.targets or one not in baselines_of(of_kind, panel, [one]):
            continue
        try:
            with torch.random.fork_rng(devices=[]):
                build_model(one.config, of_kind).refuse_rows(panel, train)
        except UserError as error:
            raise UserError(f"baselines: {one.config.kind}: {str(error).removeprefix('model.')}") from None


def _last_rows(bars: Sequence[MarketRows], rows: int) -> list[MarketRows]:
    """What each has since the first of its last `rows` rows before one of them ends; the earliest such time for all."""
    until = min(int(one.timestamps[-1]) for one in bars)
    firsts = []
    for one in bars:
        times = one.timestamps
        firsts.append(int(times[max(int(np.searchsorted(times, until, side="right")) - rows, 0)]))
    return [one.between(min(firsts)) for one in bars]
