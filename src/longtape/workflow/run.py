"""The way of the data, walked: train, forecast, backtest, report, each a function and all of them in `run`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import yaml

from longtape.backtest import BacktestResult
from longtape.core.clock import Interval, iso
from longtape.core.documents import first_difference
from longtape.core.errors import UserError
from longtape.core.files import atomic_path, read_json, write_json
from longtape.core.memory import peak_memory
from longtape.core.progress import say
from longtape.core.shown import Shown
from longtape.evaluation.audit import AuditReport, audit
from longtape.experiment import (
    Experiment,
    as_overrides,
    load_experiment,
    parse_experiment,
    with_overrides,
)
from longtape.features.catalogue import reads_market
from longtape.features.panel import Panel, Rows
from longtape.features.pooled import pooled, split_of
from longtape.features.splits import latest
from longtape.features.windows import first_origin
from longtape.forecasting.export import Exported, inputs_for
from longtape.forecasting.fitted import FittedForecaster
from longtape.forecasting.intervals import Calibration
from longtape.market.bars import Bars
from longtape.market.books import Books
from longtape.market.frames import as_frame
from longtape.market.load import describe, load
from longtape.market.rows import Rows as MarketRows
from longtape.market.trades import Trades
from longtape.models.base import ALL_ROWS, Model
from longtape.report.text import table
from longtape.training.execution import Execution, uses_cuda
from longtape.training.observers import Observer
from longtape.training.processes import Processes, is_one_of_several, joined_processes
from longtape.training.run_folder import FINISHED, RunFolder
from longtape.workflow.data import RunData, last_closes, periods_per_year
from longtape.workflow.explain import Explanation, explain_run
from longtape.workflow.export import EXPORT_CHECKED, export_run, refuse_form
from longtape.workflow.inside import Inside, look_inside
from longtape.workflow.pages.run import write_report
from longtape.workflow.pages.subject import Subject
from longtape.workflow.pipeline import ExperimentPipeline
from longtape.workflow.results import Results, judge_run

Overrides = Sequence[str] | Mapping[str, Any]
PRICES = 600  # of the last closes, that a page draws in front of the newest forecast


def run(
    experiment: Experiment | str | Path, out: str | Path, resume: bool = False, overrides: Overrides = ()
) -> Run:
    """Train, forecast, backtest, audit, report; returns the finished run. Arguments as for `train`."""
    if is_one_of_several():
        raise UserError("torchrun goes with longtape train; forecast, backtest and report take one process")
    made = train(experiment, out, resume, overrides)
    made.forecast(history=True)
    if made.experiment.has_account:
        made.backtest()
    else:
        made.score()
    if made.experiment.audit:
        made.audit()
    made.report()
    return made


def train(
    experiment: Experiment | str | Path,
    out: str | Path,
    resume: bool = False,
    overrides: Overrides = (),
    observers: Sequence[Observer] = (),
) -> Run:
    """Train into a new folder `out`, or go on with an interrupted run there (`resume`), watched by `observers`.

    `experiment` may be the path of its file; `overrides` are `key=value` texts or a mapping such as
    `{"training.epochs": 3}`. Where torchrun started several processes, they share every batch, and the first one writes
    the folder.
    """
    experiment = _described(experiment, overrides)
    with joined_processes(uses_cuda(experiment.training)) as processes:
        return _train(experiment, RunFolder(out), resume, processes, observers)


def _train(
    experiment: Experiment,
    folder: RunFolder,
    resume: bool,
    processes: Processes,
    observers: Sequence[Observer],
) -> Run:
    resume = resume and folder.root.exists()
    if not resume:
        folder.refuse_existing()
    # A device that is not there is said before anything is read.
    Execution.of(experiment.training, processes.local_rank).announce(experiment.training)
    data = RunData.of(experiment)
    say(data.summary())
    data.warn_of_leads()
    data.pipeline.refuse_short(data.split)
    data.pipeline.refuse_baselines(data.panel, data.split)
    if not experiment.has_account and "backtest" in experiment.model_fields_set:
        say("note: no target is a return that could be traded; the section backtest is not used")
    if experiment.search:
        say(
            "note: the section search is for longtape tune; one model is trained, with the values that stand beside it"
        )
    data.require_funding()
    processes.wait()  # until all have looked at what was there
    if resume:
        folder = _reopened(folder.root, data)
    elif processes.is_first:
        folder = data.create_folder(folder.root)
    processes.wait()
    if folder.status != FINISHED:
        with peak_memory() as peak:
            fitted = _fitted(folder, data, processes, observers)
        model, calibration = fitted.model, fitted.calibration.to_dict()
        if processes.is_first:
            used = {"peak_memory_mb": peak.megabytes}
            folder.finish(model.inputs, model.state_dict(), calibration, fitted.histories, used)
        processes.wait()
    return Run(folder, data)


def _described(experiment: Experiment | str | Path, overrides: Overrides) -> Experiment:
    if not isinstance(experiment, Experiment):
        return load_experiment(experiment, overrides)
    if not overrides:
        return experiment
    document = with_overrides(yaml.safe_load(experiment.to_yaml()), as_overrides(overrides))
    return parse_experiment(document, "experiment")


def _fitted(
    folder: RunFolder, data: RunData, processes: Processes, observers: Sequence[Observer]
) -> FittedForecaster:
    try:
        return data.pipeline.fit_in(folder, data.panel, data.split, processes, observers)
    except KeyboardInterrupt:
        way = f"the same command with --resume (--out {folder.root} --resume) goes on to the same numbers"
        raise KeyboardInterrupt(f"{folder.root} holds what was trained so far; {way}") from None


def load_run(path: str | Path) -> Run:
    """A finished run: `.forecast()`, `.backtest()`, `.report()`."""
    folder = RunFolder.open(path)
    folder.require_finished()
    return Run(folder)


def _reopened(root: Path, data: RunData) -> RunFolder:
    """The folder of an interrupted run, if it is of the same experiment and the same data."""
    folder = RunFolder.open(root)
    began, asked = (yaml.safe_load(text) for text in (folder.experiment_yaml, data.experiment.to_yaml()))
    if (found := first_difference(began, asked)) is not None:
        key, before, now = found
        raise UserError(
            f"{root}: this run began with {key} = {before}, and is asked to go on with {now}; resume with the same"
            " experiment, or train into a new folder"
        )
    if folder.fingerprints != data.fingerprints:
        raise UserError(f"{root}: the data are not those that this run began with; train into a new folder")
    return folder


class Run(Shown):
    """A trained model in its folder, with everything that can be made of it."""

    def __init__(self, folder: RunFolder, data: RunData | None = None, kept: bool = True) -> None:
        """`kept`: whether what is made of the run is kept in its folder."""
        self.folder, self._data, self.kept = folder, data, kept
        self._rows_enough = 0  # that the newest forecast took before

    @property
    def root(self) -> Path:
        """The folder."""
        return self.folder.root

    @property
    def title(self) -> str:
        """The folder, as text."""
        return str(self.root)

    def facts(self) -> dict[str, Any]:
        """What a reader of its repr sees."""
        told, asked = self.folder.facts, self.experiment
        return {
            "experiment": asked.name,
            "symbols": ", ".join(asked.data.symbols),
            "targets": ", ".join(asked.targets),
            "model": asked.model.summary,
            "trained on windows": told["windows"]["training"],
            "status": self.folder.status,
        }

    def path(self, name: str) -> Path:
        """A file of the run."""
        return self.folder.path(name)

    @cached_property
    def experiment(self) -> Experiment:
        """The resolved experiment."""
        where = str(self.path("experiment.yaml"))
        return parse_experiment(yaml.safe_load(self.folder.experiment_yaml), where)

    @cached_property
    def pipeline(self) -> ExperimentPipeline:
        """The steps of the experiment."""
        return ExperimentPipeline(self.experiment)

    @cached_property
    def data(self) -> RunData:
        """The run's data as they are now, split at the borders that it was trained with."""
        data = self._data or RunData.of(self.experiment, self.folder.periods)
        others = (
            self.experiment.model.pooled is not None
            and not data.fingerprints.keys() & self.folder.fingerprints.keys()
        )
        if data.fingerprints != self.folder.fingerprints and not others:
            border = iso(self.folder.periods.validation_until)
            say(
                "note: the data have changed since training; forecasts are made again, and scored from"
                f" {border} on, where the run's test period begins"
            )
        return data

    @cached_property
    def fitted(self) -> FittedForecaster:
        """The model with its best weights."""
        model = self.pipeline.untrained(self.folder.inputs)
        model.load_state_dict(self.folder.weights)
        calibration = Calibration.from_dict(self.folder.calibration)
        histories = tuple(self.folder.histories)
        return self.pipeline.fitted(model, calibration, self.folder.periods, histories)

    def forecast(
        self,
        bars: Sequence[MarketRows] | MarketRows | Any = None,
        history: bool = False,
        everything: bool = False,
    ) -> pl.DataFrame:
        """The forecast past the end of the data; with `history`, of every test window too (kept in forecast.parquet);
        with `everything`, of the windows before them as well, which the column `period` tells apart.

        `bars` are the run's own by default. Other bars of the same markets (also a polars or pandas frame) give
        forecasts of their newest window, or, with `history`, of every window they hold.
        """
        given = None if bars is None else self._fitting(bars)
        if not (history or everything):
            panel = self._newest_panel(self.data.bars if given is None else given)
            frame = self.fitted.forecast(panel, self.fitted.newest(panel))
            return frame.filter(pl.col("timestamp") == pl.col("timestamp").max().over("symbol"))
        panel = self.data.panel if given is None else self._pipeline_of(given).panel(given)
        newest = latest(panel, self.pipeline.lookback)
        first = self._first_test_row() if given is None and not everything else self._first_row(panel)
        frame = self.fitted.forecast(panel, np.arange(first, newest + 1))
        if given is None and not everything and self.kept:
            self.folder.write_forecast(frame, self.data.fingerprints)
        return frame

    def newest_prices(self, rows: int) -> pl.DataFrame:
        """`symbol, known_at, close` of the last bars at most `rows`, as the newest forecast sees them."""
        return last_closes(self._newest_panel(self.data.bars), rows)

    def _newest_panel(self, bars: Sequence[MarketRows], windows: int = 1) -> Panel:
        """What the newest forecasts take: the last rows, or, where they follow earlier ones, all of them."""
        if self.fitted.calibration.uses("adaptive") or self.fitted.reach == ALL_ROWS:
            return self.data.panel if bars is self.data.bars else self._pipeline_of(bars).panel(bars)
        need = max(self.pipeline.lookback, self.fitted.reach) + windows - 1
        panel = self._pipeline_of(bars).newest_panel(bars, need, self._rows_enough)
        self._rows_enough = len(panel)
        return panel

    def _first_test_row(self) -> int:
        test = self.data.split.test
        if not len(test):
            border = iso(self.folder.periods.validation_until)
            raise UserError(
                f"{self.root}: the data hold no window of the test period, which begins at {border}"
            )
        return int(test[0])

    @cached_property
    def forecasts(self) -> pl.DataFrame:
        """Forecast frame of the test period and beyond: as kept, if it is of the data as they are now."""
        kept = self.folder.read_forecast(self.data.fingerprints)
        return self.forecast(history=True) if kept is None else kept

    @cached_property
    def results(self) -> Results:
        """Skill beside the baselines and, where returns are forecast, the account of the test period."""
        self._first_test_row()
        data = self.data
        return judge_run(data.trading, data.panel, [data.split], data.bars, self.forecasts, self.fitted)

    def score(self) -> Results:
        """Hold the forecasts of the test period against the baselines; kept in metrics.json."""
        results = self.results
        if self.kept:
            write_json(self.path("metrics.json"), results.to_dict())
        return results

    def backtest(self, bars: Sequence[MarketRows] | MarketRows | Any = None) -> BacktestResult:
        """Trade the test period's forecasts; equity, positions, trades and measures are kept in the run.

        With other `bars` of the same markets, every window of theirs is forecast and traded, and nothing is kept; the
        result's notes say where the model was trained on them.
        """
        if not self.experiment.has_account:
            raise UserError(f"{self.root}: nothing is traded, because no target of the run is a return")
        if bars is not None:
            return self._backtest_on(self._fitting(bars))
        account = self.score().required_account
        for name in () if not self.kept else ("equity", "positions", "trades", "fills"):
            write_frame(getattr(account, name), self.path(f"backtest/{name}.parquet"))
        return account

    def _backtest_on(self, bars: Sequence[MarketRows]) -> BacktestResult:
        panel = self._pipeline_of(bars).panel(bars)
        first = self._first_row(panel)
        frame = self.fitted.forecast(panel, np.arange(first, len(panel)))
        begin = int(panel.timestamps[first])
        made = self.pipeline.backtest(self.pipeline.weights(frame), [one.between(begin) for one in bars])
        seen = frame.filter(pl.col("period").is_in(["training", "validation", "calibration"])).height
        if not seen:
            return made
        note = f"{seen:,} of {frame.height:,} forecasts lie in the period that the model was fitted on"
        return replace(made, notes=(*made.notes, note))

    def _first_row(self, panel: Panel) -> int:
        """The first row whose forecast reads nothing from before the data. UserError where there is none."""
        first = first_origin(panel, self.pipeline.lookback)
        if self.fitted.reach < ALL_ROWS:
            first = max(first, self.fitted.reach - 1)
        if first >= len(panel):
            raise UserError(f"the run's forecasts read {first + 1} rows, and {len(panel)} were given")
        return first

    def _fitting(self, bars: Sequence[MarketRows] | MarketRows | Any) -> list[MarketRows]:
        """Bars of the run's own markets, in the run's order. UserError naming what differs."""
        asked, asked_model = self.experiment.data, self.experiment.model
        given = self._as_rows(bars)
        for one in given:
            self._refuse_other_rows(one)
            if asked.category is not None and one.instrument.category != asked.category:
                raise UserError(
                    f"{one.origin}: category '{one.instrument.category}', and the run was trained on '{asked.category}'"
                )
        by_symbol = {one.symbol: one for one in given}
        if asked_model.pooled is not None and len(by_symbol) == len(given) > 0:
            return given
        if sorted(by_symbol) != sorted(asked.symbols):
            raise UserError(
                f"bars of {', '.join(sorted(by_symbol))} were given, and the run was trained on"
                f" {', '.join(asked.symbols)}"
            )
        return [by_symbol[symbol] for symbol in asked.symbols]

    def _pipeline_of(self, bars: Sequence[MarketRows]) -> ExperimentPipeline:
        """The pipeline for these bars: of a pooled run the symbols that it was trained on keep others company, where
        features read across the market.
        """
        if self._data is not None and bars is self._data.bars:
            return self._data.pipeline
        known = {one.symbol for one in bars}
        if self.experiment.model.pooled is None or not reads_market(self.experiment.features):
            return self.pipeline
        missing = [symbol for symbol in self.experiment.data.symbols if symbol not in known]
        if not missing:
            return self.pipeline
        trained = parse_experiment(yaml.safe_load(self.folder.experiment_yaml), str(self.root)).data
        return replace(self.pipeline, company=load(trained.model_copy(update={"symbols": missing})))

    def on_bars(self, bars: Sequence[MarketRows]) -> RunData:
        """What this pooled run works on, of other symbols than its own."""
        given = self._fitting(bars)
        pipeline = replace(self._pipeline_of(given), periods_per_year=periods_per_year(given))
        return RunData(self.experiment, pipeline, given, self.folder.periods)

    def _as_rows(self, bars: Sequence[MarketRows] | MarketRows | Any) -> list[MarketRows]:
        """Rows as they are; a polars or pandas frame as candles of the run's own markets."""
        if isinstance(bars, MarketRows):
            return [bars]
        if isinstance(bars, Sequence):
            return list(bars)
        asked = self.experiment.data
        if asked.kind != "candles":
            raise UserError(
                f"a frame was given, and the run was trained on {asked.kind}; give {asked.kind} of longtape"
            )
        frame = as_frame(bars, "bars")
        if "symbol" not in frame.columns and len(asked.symbols) > 1:
            raise UserError(
                f"bars: the frame has no column 'symbol', and the run has {len(asked.symbols)} symbols"
            )
        facts = describe(asked)
        return [
            Bars.of(frame, one.symbol, str(asked.interval), category=one.category, calendar=one.calendar)
            for one in facts
        ]

    def _refuse_other_rows(self, one: MarketRows) -> None:
        """UserError where these are not rows of the kind and interval that the run was trained on."""
        asked = self.experiment.data
        kinds: dict[str, type[MarketRows]] = {"candles": Bars, "books": Books, "trades": Trades}
        if not isinstance(one, kinds[asked.kind]):
            raise UserError(
                f"{one.origin}: {type(one).__name__.lower()}, and the run was trained on {asked.kind}"
            )
        if isinstance(one, Bars) and one.interval != Interval.parse(str(asked.interval)):
            raise UserError(
                f"{one.origin}: bars of {one.interval}, and the run was trained on bars of {asked.interval}"
            )

    def audit(self, **counts: int) -> AuditReport:
        """Cut and change the data and see whether anything decided before moves; kept in audit.json.

        `counts` are those of `longtape.evaluation.audit.audit`; few by default, so that it takes seconds.
        """
        # Bars of the mid hold many events each, and the audit must see some fills.
        n_origins = 8 if self.experiment.backtest.mid_bars is None else 64
        few = {"n_cuts": 2, "n_feature_cuts": 2, "n_origins": n_origins}
        found = audit(self.data.pipeline, self.data.bars, fitted=self.fitted, **(few | counts))
        write_json(self.path("audit.json"), found.to_dict())
        return found

    def explain(self, out: str | Path, windows: int = 128) -> Explanation:
        """What the model looked at: tables, and pictures with explain.json in the folder `out`.

        Losses are taken over at most `windows` evenly spaced windows of the test period. UserError where `out` is a
        file.
        """
        if Path(out).is_file():
            raise UserError(f"{out}: is a file; name a folder for the pictures")
        self._first_test_row()
        model, panel, test, bars = self._looked_at
        return explain_run(model, panel, test, bars, Path(out), windows)

    def export(self, to: str, out: str | Path) -> Exported:
        """Write the model as a graph of one window, `to` torch or onnx, and beside it in JSON what goes in and out.

        UserError with the reason where the model, its mechanism or the format cannot, and where the graph does not give
        the newest forecasts to 1e-4.
        """
        refuse_form(to, Path(out))
        if self.experiment.model.pooled is not None:
            raise UserError(
                "export: a pooled model speaks in units of each symbol's own past, which stand outside its graph;"
                " export a joint model"
            )
        panel = self._newest_panel(self.data.bars, EXPORT_CHECKED)
        first = max(self._first_row(panel), len(panel) - EXPORT_CHECKED)
        return export_run(self, panel, np.arange(first, len(panel)), to, Path(out))

    def export_inputs(
        self, bars: Sequence[MarketRows] | MarketRows | Any = None
    ) -> dict[str, npt.NDArray[Any]]:
        """What an exported graph is given for the newest window, by name; a graph reads some of it.

        `bars` are the run's own by default, or others of the same markets, as for `forecast`.
        """
        panel = self._newest_panel(self.data.bars if bars is None else self._fitting(bars))
        return inputs_for(self.fitted.model, panel, latest(panel, self.pipeline.lookback))

    def report(self, out: str | Path | None = None, compared: str | Path | None = None) -> Path:
        """Write the HTML report, and the four-panel figure as PNG and SVG beside it; returns the page's path.

        `compared`: folder of `longtape compare`, whose comparison stands on the page too. UserError where there is
        none.
        """
        if out is None and not self.kept:
            raise UserError(
                f"{self.root}: name where the report of other data or options goes (--out), its own stays"
            )
        found = None if compared is None else read_comparison(compared)
        return write_report(out or self.path("report.html"), replace(self.subject(), compared=found))

    def subject(self, inside: bool = True) -> Subject:
        """What a page says of this run; `inside`: with a quick look at what the model attends to."""
        audited = self.path("audit.json")
        return Subject(
            self.experiment,
            self.data.bars,
            self.results,
            self.newest_prices(PRICES),
            self.folder.facts,
            read_json(audited) if audited.exists() else None,
            self.folder.histories,
            self._inside() if inside else None,
            command=f"longtape run {self.root}/experiment.yaml --out AGAIN",
        )

    def _inside(self) -> Inside | None:
        return look_inside(*self._looked_at) if self.experiment.model.trains else None

    @property
    def _looked_at(self) -> tuple[Model, Panel, Rows, Sequence[MarketRows]]:
        """The model, a panel as it is given it, test origins and bars: of a pooled one those of the first symbol."""
        data, config = self.data, self.experiment.model
        panel, asset = data.panel, data.panel.assets[0]
        if config.pooled is None:
            return self.fitted.model, panel, data.split.test, data.bars
        test = split_of(panel, asset, data.split, config.lookback).test
        own = [one for one in data.bars if one.symbol == asset]
        return self.fitted.model, pooled(panel, config.pooled.own_past, [asset]), test, own

    def training_table(self) -> str:
        """Losses per epoch as text."""
        return "\n\n".join(table(history, "training") for history in self.folder.histories)

    def results_table(self) -> str:
        """The results next to the baselines, and the verdict, as text."""
        return self.results.text()


def read_comparison(folder: str | Path) -> dict[str, Any]:
    """What `longtape compare` left in a folder. UserError where there is none."""
    path = Path(folder) / "compare.json"
    if not path.exists():
        raise UserError(
            f"{folder}: is not the folder of a comparison (no compare.json); make one with longtape compare"
        )
    found: dict[str, Any] = read_json(path)
    return found


def refuse_ending(path: Path) -> None:
    """UserError for a name by which no frame is written."""
    if path.suffix not in (".parquet", ".csv"):
        raise UserError(f"{path}: write to a name that ends in .parquet or .csv")


def write_frame(frame: pl.DataFrame, path: str | Path) -> None:
    """Write a frame as Parquet or CSV, by the name's ending."""
    path = Path(path)
    refuse_ending(path)
    with atomic_path(path) as temporary:
        if path.suffix == ".csv":
            frame.write_csv(temporary)
        else:
            frame.write_parquet(temporary, compression="zstd")
