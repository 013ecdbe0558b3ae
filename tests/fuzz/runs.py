"""Walking an experiment the whole way, and reading what it left: nothing but its files and the words of its errors."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

import longtape
from longtape.cli.main import execute
from longtape.core.errors import LongtapeError, UserError
from longtape.core.progress import silently
from longtape.experiment import load_experiment
from tests.fuzz import schema
from tests.fuzz.accounts import FUNDING, Ledger, Terms, keep
from tests.fuzz.experiments import Case
from tests.fuzz.markets import TIME, Floats, Times

DOCUMENT, DATA, TRAINED, CRASHED = "document", "data", "after training began", "traceback"
NEWEST = ("timestamp", "symbol", "target", "horizon")


@dataclass(frozen=True)
class Refusal:
    """A refused experiment: at which stage, and in which words."""

    stage: str
    message: str


def write_case(case: Case, folder: Path) -> Path:
    """Data and experiment of a case; returns the experiment's file."""
    folder.mkdir(parents=True, exist_ok=True)
    if case.document["data"]["source"] == "store":
        _write_store(case, folder / "store")
    else:
        case.market.write(folder, case.document["data"]["path"].rsplit(".", 1)[-1])
    (folder / "experiment.yaml").write_text(case.yaml)
    return folder / "experiment.yaml"


def _write_store(case: Case, folder: Path) -> None:
    store = longtape.Store(folder)
    spec, category = case.market.spec, case.document["data"]["category"]
    for symbol, asset in case.market.assets.items():
        instrument = longtape.Instrument("fuzz", category, symbol, calendar=spec.calendar)
        bars = longtape.Bars.checked(instrument, longtape.Interval.parse(spec.interval), asset.bars, "fuzz")
        store.append(bars)
        rates = funding_history(case, symbol)
        times = pl.Series("timestamp", list(rates)).cast(TIME)
        store.append_table(
            "funding", instrument, pl.DataFrame({"timestamp": times, "rate": list(rates.values())})
        )


def funding_history(case: Case, symbol: str) -> dict[int, float]:
    """Payments from before the first bar to well after the last."""
    asset = case.market.assets[symbol]
    first, last = int(asset.opens[0]), int(asset.closes[-1])
    times = range(first // FUNDING * FUNDING, last + 10 * FUNDING, FUNDING)
    rng = np.random.default_rng([case.seed, 3, len(symbol)])
    return {time: float(rate) for time, rate in zip(times, rng.normal(1e-4, 5e-5, len(times)), strict=True)}


def attempt(work: Callable[[], Any]) -> tuple[Any, Refusal | None]:
    """The result, or how it went wrong: a refusal without stage, or a traceback's last lines."""
    try:
        with silently():
            return work(), None
    except UserError as error:
        return None, Refusal(DATA, str(error))
    except LongtapeError as error:
        return None, Refusal(CRASHED, f"{type(error).__name__}: {error}")
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return None, Refusal(
            CRASHED, f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}: {error}"
        )


def command(*arguments: str) -> tuple[int, str]:
    """Exit code and standard error of a command line."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = execute(["--quiet", *arguments])
    return code, said.getvalue().strip()


def walk(experiment: Path, out: Path) -> tuple[Walked | None, Refusal | None]:
    """Run an experiment file into `out`; a refusal says whether it came before anything was read or trained."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", RuntimeWarning)
        _, refusal = attempt(lambda: longtape.run(experiment, out))
    if refusal is None:
        said = {str(one.message) for one in warned if issubclass(one.category, RuntimeWarning)}
        return Walked(out, tuple(sorted(said))), None
    if refusal.stage == DATA:
        refusal = Refusal(stage_of(experiment, out), refusal.message)
    return None, refusal


def stage_of(experiment: Path, out: Path) -> str:
    """When a refusal came: the folder of a run is there once training has begun."""
    if out.exists():
        return TRAINED
    return DOCUMENT if refused_unread(experiment) else DATA


def refused_unread(experiment: Path) -> str | None:
    """What is said of an experiment whose data are not there, other than that they are not; None: nothing.

    Embedded data are always there; for them it is what is said before there is a folder.
    """
    nowhere, out = experiment.parent / "nowhere", experiment.parent / "unread"
    sources = {"store": [f"data.store={nowhere}"], "sample": []}
    source = schema.get(yaml.safe_load(experiment.read_text()), "data.source")
    overrides = sources.get(source, [f"data.path={nowhere}/{{symbol}}.parquet"])
    _, refusal = attempt(lambda: longtape.train(load_experiment(experiment, overrides), out))
    begun = out.exists()
    shutil.rmtree(out, ignore_errors=True)
    if refusal is None or begun or str(nowhere) in refusal.message or refusal.stage == CRASHED:
        return None
    return refusal.message


@dataclass(frozen=True)
class Walked:
    """The folder of a finished run, read as anybody else would."""

    root: Path
    warned: tuple[str, ...] = ()  # what libraries complained of on the way

    def json(self, name: str) -> Any:
        """A JSON file; figures that are none (NaN, Infinity) raise ValueError."""
        return json.loads((self.root / name).read_text("utf-8"), parse_constant=_refuse_constant)

    def bytes(self, name: str) -> bytes:
        """A file as it is."""
        return (self.root / name).read_bytes()

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """metrics.json."""
        return dict(self.json("metrics.json"))

    @cached_property
    def facts(self) -> dict[str, Any]:
        """run.json."""
        return dict(self.json("run.json"))

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """Losses by epoch."""
        if (self.root / "history.jsonl").exists():
            return [json.loads(line) for line in (self.root / "history.jsonl").read_text().splitlines()]
        return list(self.json("history.json"))

    @cached_property
    def forecast(self) -> pl.DataFrame:
        """forecast.parquet."""
        return pl.read_parquet(self.root / "forecast.parquet")

    def book(self, name: str) -> pl.DataFrame:
        """backtest/NAME.parquet."""
        return pl.read_parquet(self.root / f"backtest/{name}.parquet")

    @property
    def has_account(self) -> bool:
        """Whether anything was traded at all."""
        return self.metrics.get("metrics") is not None

    def windows(self, name: str) -> int | None:
        """How many windows run.json says a period had."""
        found = self.facts.get("windows", {}).get(name)
        return None if found is None else int(found)

    @property
    def calibrated_on(self) -> int | None:
        """Windows from which the intervals come."""
        found = self.windows("calibration")
        return self.windows("validation") if found is None else found

    @property
    def verdict(self) -> str:
        """All its sentences."""
        return "\n".join(
            [*self.metrics.get("verdict", []), *(self.metrics.get("judgement") or {}).get("verdict", [])]
        )


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a figure")


@dataclass(frozen=True, eq=False)
class Trial:
    """A case that was walked to its end, with its data beside it."""

    case: Case
    folder: Path
    walked: Walked

    @property
    def symbols(self) -> list[str]:
        """Symbols that are forecast."""
        return list(self.case.document.get("symbols", self.case.document["data"]["symbols"]))

    @cached_property
    def bars(self) -> dict[str, pl.DataFrame]:
        """Bars that the run was to see, by symbol."""
        cut = 1 if self.case.option("data.drop_last") else 0
        return {
            symbol: asset.bars.head(asset.bars.height - cut)
            for symbol, asset in self.case.market.assets.items()
        }

    @property
    def test_until(self) -> int | None:
        """End of the test, UTC milliseconds."""
        return moment(self.case.option("split.test_until"))

    @property
    def test_since(self) -> int | None:
        """Where the test begins, if the document says so."""
        if self.case.option("split.train_until") is None:
            return None
        return moment(self.case.option("split.validation_until") or self.case.option("split.train_until"))

    @cached_property
    def known(self) -> pl.DataFrame:
        """Forecasts that can be scored: behind the border, the label known, and ending by the end of the test."""
        frame = self.walked.forecast.drop_nulls("actual").filter(pl.col("actual").is_not_nan())
        if self.test_since is not None:
            frame = frame.filter(pl.col("timestamp").dt.timestamp("ms") >= self.test_since)
        if self.test_until is not None:
            frame = frame.filter(pl.col("end").dt.timestamp("ms") <= self.test_until)
        return frame

    @cached_property
    def known_of_all(self) -> pl.DataFrame:
        """The same where every target of every symbol can be scored."""
        columns = self.walked.forecast.select("symbol", "target", "horizon").unique().height
        times = self.known.group_by("timestamp").len().filter(pl.col("len") == columns)["timestamp"]
        return self.known.filter(pl.col("timestamp").is_in(times.to_list()))

    @cached_property
    def known_where_all_are_due(self) -> pl.DataFrame:
        """The same at the origins whose longest label has ended: what misses there is masked."""
        last = self.known["end"].max()
        ends = self.walked.forecast.group_by("timestamp").agg(pl.col("end").max())
        times = ends.filter(pl.col("end") <= last)["timestamp"]
        return self.known.filter(pl.col("timestamp").is_in(times.to_list()))

    @cached_property
    def clock(self) -> Times:
        """Opens of the account's bars."""
        return self.walked.book("equity")["timestamp"].dt.timestamp("ms").to_numpy()

    @cached_property
    def ledger(self) -> Ledger:
        """The account kept again."""
        bars = {symbol: self.bars[symbol] for symbol in self.symbols}
        return keep(self.walked.book("fills"), bars, self.clock, self.terms)

    @property
    def terms(self) -> Terms:
        """What the document says of the account."""
        perpetual = self.case.option("data.category") == "linear"
        funding = self.case.option("backtest.costs.funding")
        rate: Any = self.case.option("backtest.costs.funding_rate", 0.0)
        if funding == "history":
            rate = {symbol: funding_history(self.case, symbol) for symbol in self.symbols}
        return Terms(
            self.case.option("backtest.initial_capital", 100_000.0),
            rate if perpetual and funding in ("history", "rate") else 0.0,
            0.0 if perpetual else self.case.option("backtest.costs.borrow", 0.0),
            self.case.option("backtest.fill", "next_open") == "next_close",
        )

    def read(self, frames: dict[str, pl.DataFrame], name: str, **changes: Any) -> list[longtape.Bars]:
        """Other frames as bars of the same symbols, through files."""
        data = self.case.document["data"]
        facts = {
            "interval": data["interval"], "category": data.get("category", "spot"),
            "calendar": data.get("calendar", "24/7"),
        } | changes  # fmt: skip
        if data["source"] == "store":
            facts.setdefault("source", "fuzz")
        found = []
        for symbol, frame in frames.items():
            path = self.folder / f"{name}-{symbol}.parquet"
            frame.write_parquet(path)
            named = {key: value for key, value in facts.items() if key != "symbol"}
            found.append(longtape.read_bars(path, symbol=changes.get("symbol", symbol), **named))
        return found

    def copy(self, name: str) -> Path:
        """The run's folder once more, so that what is done to it leaves the first as it is."""
        shutil.copytree(self.walked.root, self.folder / name)
        return self.folder / name


def moment(text: str | None) -> int | None:
    """An ISO time → UTC milliseconds."""
    return None if text is None else int(np.datetime64(str(text), "ms").astype(np.int64))


def iso(time: int) -> str:
    """UTC milliseconds → an ISO time."""
    return str(np.datetime64(int(time), "ms"))


def values(frame: pl.DataFrame, name: str) -> Floats:
    """A column as float64."""
    return frame[name].cast(pl.Float64).to_numpy()


def times(frame: pl.DataFrame, name: str = "timestamp") -> Times:
    """A column of times as UTC milliseconds."""
    return frame[name].dt.timestamp("ms").to_numpy()


def each_target(frame: pl.DataFrame) -> Sequence[tuple[tuple[str, str, int], pl.DataFrame]]:
    """(symbol, target, horizon) and its rows in order of time."""
    groups = frame.sort("timestamp").partition_by("symbol", "target", "horizon", as_dict=True)
    return [((str(s), str(t), int(h)), part) for (s, t, h), part in groups.items()]
