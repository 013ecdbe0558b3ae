"""The way of the data, walked: train, forecast, backtest, report, each a function and all of them in `run`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from longtape.backtest import BacktestResult
from longtape.core.errors import UserError
from longtape.core.files import atomic_path, read_json, write_json
from longtape.core.progress import say
from longtape.evaluation.audit import AuditReport, audit
from longtape.experiment import Experiment, load_experiment, parse_experiment
from longtape.features.panel import Panel
from longtape.features.splits import Split, latest
from longtape.features.windows import first_origin
from longtape.forecasting.intervals import Calibration
from longtape.market.bars import Bars
from longtape.market.load import load_bars
from longtape.models.forecaster import Forecaster
from longtape.report.text import table
from longtape.training.checkpoint import load_weights, save_weights
from longtape.training.run_folder import FINISHED, RunFolder, inputs_from_dict, inputs_to_dict
from longtape.workflow.page import write_report
from longtape.workflow.pipeline import ExperimentPipeline, FittedForecaster
from longtape.workflow.results import Results, judge_run

CHECKPOINT = "checkpoint.safetensors"


def run(experiment: Experiment | str | Path, out: str | Path, resume: bool = False) -> Run:
    """Train, forecast, backtest, audit, report; returns the finished run. `experiment` may be the path of its file."""
    made = train(experiment, out, resume)
    made.forecast(history=True)
    made.backtest()
    if made.experiment.audit:
        made.audit()
    made.report()
    return made


def train(experiment: Experiment | str | Path, out: str | Path, resume: bool = False) -> Run:
    """Train into a new folder `out`, or go on with an interrupted run there (`resume`)."""
    if not isinstance(experiment, Experiment):
        experiment = load_experiment(experiment)
    folder = RunFolder(out)
    resume = resume and folder.root.exists()
    if not resume:
        folder.refuse_existing()
    work = _Work(experiment, load_bars(experiment.data))
    say(work.summary())
    folder = (
        _reopened(folder.root, work) if resume else RunFolder.create(out, experiment.to_yaml(), work.facts())
    )
    if folder.status != FINISHED:
        _fit(folder, work)
    made = Run(folder.root)
    made.__dict__["_work"] = work
    return made


def load_run(path: str | Path) -> Run:
    """A finished run: `.forecast()`, `.backtest()`, `.report()`."""
    folder = RunFolder.open(path)
    folder.require_finished()
    return Run(folder.root)


class _Work:
    """An experiment with its data: bars, panel and split, each made once."""

    def __init__(self, experiment: Experiment, bars: Sequence[Bars]) -> None:
        self.experiment, self.bars = experiment, list(bars)
        self.pipeline = ExperimentPipeline(experiment)
        self.panel: Panel = self.pipeline.panel(self.bars)
        self.split: Split = self.pipeline.split(self.panel)

    def facts(self) -> dict[str, Any]:
        """What a run must remember of its data."""
        return {
            "name": self.experiment.name,
            "seed": self.experiment.seed,
            "fingerprints": {one.instrument.key: one.fingerprint() for one in self.bars},
            "bars": {one.symbol: len(one) for one in self.bars},
            "windows": {
                "training": len(self.split.train),
                "validation": len(self.split.validation),
                "test": len(self.split.test),
            },
        }

    def summary(self) -> str:
        """One line for the terminal."""
        windows = ", ".join(f"{count:,} {name}" for name, count in self.facts()["windows"].items())
        bars = ", ".join(f"{len(one):,} bars of {one.symbol} ({one.interval})" for one in self.bars)
        return f"{bars}; {len(self.panel.columns)} features; windows: {windows}"


def _reopened(root: Path, work: _Work) -> RunFolder:
    """The folder of an interrupted run, if it is of the same experiment and the same data."""
    folder = RunFolder.open(root)
    if folder.experiment_yaml != work.experiment.to_yaml():
        raise UserError(
            f"{root}: the experiment is not the one that this run began with; resume with that one"
        )
    if folder.facts["fingerprints"] != work.facts()["fingerprints"]:
        raise UserError(f"{root}: the data are not those that this run began with; train into a new folder")
    return folder


def _fit(folder: RunFolder, work: _Work) -> None:
    checkpoint = folder.path(CHECKPOINT)
    fitted = work.pipeline.fit_with_checkpoint(
        work.panel, work.split.train, work.split.validation, checkpoint, resume=checkpoint.exists()
    )
    save_weights(folder.path("model.safetensors"), fitted.model.state_dict())
    write_json(folder.path("model.json"), inputs_to_dict(fitted.model.inputs))
    write_json(folder.path("calibration.json"), fitted.calibration.to_dict())
    write_json(folder.path("history.json"), fitted.history)
    folder.update(status=FINISHED)
    checkpoint.unlink(missing_ok=True)


class Run:
    """A trained model in its folder, with everything that can be made of it."""

    def __init__(self, root: str | Path) -> None:
        self.folder = RunFolder(root)

    @property
    def root(self) -> Path:
        """The folder."""
        return self.folder.root

    def path(self, name: str) -> Path:
        """A file of the run."""
        return self.folder.path(name)

    @cached_property
    def experiment(self) -> Experiment:
        """The resolved experiment."""
        where = str(self.path("experiment.yaml"))
        return parse_experiment(yaml.safe_load(self.folder.experiment_yaml), where)

    @cached_property
    def history(self) -> list[dict[str, float]]:
        """Losses per epoch."""
        entries: list[dict[str, float]] = read_json(self.path("history.json"))
        return entries

    @cached_property
    def fitted(self) -> FittedForecaster:
        """The model with its best weights."""
        model = Forecaster(self.experiment.model, inputs_from_dict(read_json(self.path("model.json"))))
        model.load_state_dict(load_weights(self.path("model.safetensors")))
        kept = Calibration.from_dict(read_json(self.path("calibration.json")))
        return FittedForecaster(model.eval(), kept, self.experiment.forecast.batch_size, tuple(self.history))

    @cached_property
    def _work(self) -> _Work:
        work = _Work(self.experiment, load_bars(self.experiment.data))
        if work.facts()["fingerprints"] != self.folder.facts["fingerprints"]:
            say(
                "note: the data have changed since training; forecasts are made again from the data as they are now"
            )
            self.path("forecast.parquet").unlink(missing_ok=True)
        return work

    def forecast(self, bars: Sequence[Bars] | Bars | None = None, history: bool = False) -> pl.DataFrame:
        """The forecast past the end of the data; with `history`, of every test window too (kept in forecast.parquet).

        `bars` are the run's own by default; other bars of the same symbols give forecasts of their newest window.
        """
        if bars is not None:
            panel = self.fitted_pipeline.panel([bars] if isinstance(bars, Bars) else bars)
            first = latest(panel, self.experiment.model.lookback)
            origins = np.arange(first, first + 1)
            return self.fitted.forecast(panel, origins)
        panel = self._work.panel
        newest = latest(panel, self.experiment.model.lookback)
        first = int(self._work.split.test[0]) if history else newest
        frame = self.fitted.forecast(panel, np.arange(first, newest + 1))
        if history:
            write_frame(frame, self.path("forecast.parquet"))
        return frame

    @property
    def fitted_pipeline(self) -> ExperimentPipeline:
        """The steps of the experiment."""
        return ExperimentPipeline(self.experiment)

    @cached_property
    def forecasts(self) -> pl.DataFrame:
        """Forecast frame of the test period and beyond, made when it is not there or the data have changed."""
        self._work.bars  # noqa: B018 - compares the data with those of the run
        path = self.path("forecast.parquet")
        return pl.read_parquet(path) if path.exists() else self.forecast(history=True)

    @cached_property
    def results(self) -> Results:
        """Backtest, baselines and skill of the test period."""
        return judge_run(
            self.fitted_pipeline, self._work.panel, self._work.split, self._work.bars, self.forecasts
        )

    def backtest(self, bars: Sequence[Bars] | Bars | None = None) -> BacktestResult:
        """Trade the test period's forecasts; equity, positions, trades and measures are kept in the run.

        With other `bars` of the same symbols, every window of theirs is forecast and traded, and nothing is kept.
        """
        if bars is not None:
            return self._backtest_on([bars] if isinstance(bars, Bars) else bars)
        results = self.results
        account = results.account
        for name in ("equity", "positions", "trades", "fills"):
            write_frame(getattr(account, name), self.path(f"backtest/{name}.parquet"))
        write_json(self.path("metrics.json"), results.to_dict())
        return account

    def _backtest_on(self, bars: Sequence[Bars]) -> BacktestResult:
        pipeline = self.fitted_pipeline
        panel = pipeline.panel(bars)
        first = first_origin(panel, pipeline.lookback)
        frame = self.fitted.forecast(panel, np.arange(first, len(panel)))
        return pipeline.backtest(
            pipeline.weights(frame), [one.between(int(panel.timestamps[first])) for one in bars]
        )

    def audit(self, **counts: int) -> AuditReport:
        """Cut and change the data and see whether anything decided before moves; kept in audit.json.

        `counts` are those of `longtape.evaluation.audit.audit`; few by default, so that it takes seconds.
        """
        few = {"n_cuts": 2, "n_feature_cuts": 2, "n_origins": 8}
        found = audit(self._work.pipeline, self._work.bars, fitted=self.fitted, **(few | counts))
        write_json(self.path("audit.json"), found.to_dict())
        return found

    def report(self, out: str | Path | None = None) -> Path:
        """Write the HTML report; returns its path."""
        audited = self.path("audit.json")
        facts = self.folder.facts | {"audit": read_json(audited) if audited.exists() else None}
        return write_report(
            out or self.path("report.html"), self.experiment, facts, self.history, self.results
        )

    def training_table(self) -> str:
        """Losses per epoch as text."""
        return table(self.history, "training")

    def results_table(self) -> str:
        """The results next to the baselines, and the verdict, as text."""
        return self.results.text()


def write_frame(frame: pl.DataFrame, path: str | Path) -> None:
    """Write a frame as Parquet or CSV, by the name's ending."""
    path = Path(path)
    if path.suffix not in (".parquet", ".csv"):
        raise UserError(f"{path}: write to a name that ends in .parquet or .csv")
    with atomic_path(path) as beside:
        if path.suffix == ".csv":
            frame.write_csv(beside)
        else:
            frame.write_parquet(beside, compression="zstd")
