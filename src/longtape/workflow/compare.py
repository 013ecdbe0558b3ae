"""`longtape compare`: one experiment at several lookbacks and mechanisms, each scored on the same test times.

Every cell (mechanism, lookback, seed) is a job of its own whose result is kept as soon as it is there, so that a
stopped comparison goes on with the cells that are missing. All cells train, calibrate and test on the same origins:
those that the longest lookback allows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl
import yaml

from longtape.attention import mechanism_class
from longtape.core.errors import UserError
from longtape.core.files import atomic_path, make_folder, read_json, write_json
from longtape.core.memory import peak_memory
from longtape.core.progress import say
from longtape.evaluation.skill import scored
from longtape.evaluation.statistics import diebold_mariano, holm, mean_difference_interval
from longtape.evaluation.walk_forward import begin_plan
from longtape.experiment import Experiment, parse_experiment
from longtape.features.splits import Split
from longtape.forecasting.baselines import Training, baseline_forecast
from longtape.forecasting.predict import predict
from longtape.models.registry import baselines_of
from longtape.models.transformer import TransformerConfig
from longtape.report.text import TextTable
from longtape.training.execution import Execution
from longtape.training.run_folder import RunFolder
from longtape.workflow.data import RunData

Array = npt.NDArray[np.float64]
Rows = list[dict[str, Any]]
SURE = 0.05


@dataclass(frozen=True)
class Setting:
    """A mechanism with its options, at a lookback."""

    attention: str
    lookback: int
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def mechanism(self) -> str:
        """The mechanism as it was written: `bigbird`, `linformer:k=64`."""
        return ":".join([self.attention, *(f"{name}={value}" for name, value in self.options)])


@dataclass(frozen=True)
class Cell:
    """One model to train."""

    setting: Setting
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        plain = self.setting.mechanism.replace(":", "-").replace("=", "")
        return f"{plain}-{self.setting.lookback}-seed{self.seed}"


Jobs: TypeAlias = Callable[[Callable[[Cell], None], Sequence[Cell]], None]


def one_after_another(work: Callable[[Cell], None], cells: Sequence[Cell]) -> None:
    """Do every job in this process."""
    for number, cell in enumerate(cells, 1):
        say(f"cell {number}/{len(cells)}: {cell.name}")
        work(cell)


def parse_mechanism(text: str, experiment: Experiment) -> tuple[str, tuple[tuple[str, Any], ...]]:
    """`bigbird` or `linformer:k=64:sharing=none` → name and options; without options, those of the experiment where it
    is its own mechanism. UserError for what is not understood.
    """
    name, *given = text.strip().split(":")
    try:
        mechanism_class(name)
    except ValueError as error:
        raise UserError(f"--attention: {error}") from None
    options = []
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(
                f"--attention: '{text}': write options as name:key=value, for example linformer:k=64"
            )
        options.append((key, yaml.safe_load(value)))
    own = experiment.model
    if not given and isinstance(own, TransformerConfig) and own.attention == name:
        options = list(own.attention_options.items())
    return name, tuple(options)


def experiment_of(experiment: Experiment, cell: Cell) -> Experiment:
    """The experiment of one cell, checked as a whole. UserError where it cannot be."""
    _require_attention(experiment)
    document = yaml.safe_load(experiment.to_yaml())
    setting = cell.setting
    document["seed"] = cell.seed
    document["training"]["seeds"] = 1
    document["model"] |= {"attention": setting.attention, "attention_options": dict(setting.options)}
    document["model"]["lookback"] = setting.lookback
    return parse_experiment(document, f"compare: {setting.mechanism} at lookback {setting.lookback}")


def _require_attention(experiment: Experiment) -> TransformerConfig:
    model = experiment.model
    if not isinstance(model, TransformerConfig):
        raise UserError(f"compare: model '{model.kind}' has no attention; compare models that have")
    if model.pooled is not None:
        raise UserError("compare: forecasts of joint models are compared; name model.assets: joint")
    return model


@lru_cache(maxsize=1)
def _prepared(document: str, longest: int) -> tuple[RunData, Split]:
    """Data and the split that the longest lookback allows, made once in a process."""
    experiment = parse_experiment(yaml.safe_load(document), "compare")
    own = _require_attention(experiment)
    widest = Setting(own.attention, longest, tuple(own.attention_options.items()))
    data = RunData.of(experiment_of(experiment, Cell(widest, experiment.seed)))
    return data, data.split


def run_cell(document: str, longest: int, out: str, cell: Cell) -> None:
    """Train a cell and keep its losses (Parquet) and costs (JSON, written last) in `out`, if they are not there."""
    folder = Path(out)
    if (folder / f"{cell.name}.json").exists():
        return
    data, split = _prepared(document, longest)
    experiment = experiment_of(data.experiment, cell)
    pipeline = replace(data.pipeline, experiment=experiment)
    with TemporaryDirectory(prefix="longtape-") as temporary, peak_memory() as peak:
        started = time.perf_counter()
        fitted = pipeline.fit_in(RunFolder(temporary), data.panel, split)
        trained = time.perf_counter() - started
    started = time.perf_counter()
    predicted = predict(fitted.model, data.panel, split.test, fitted.windows_together)
    seconds = time.perf_counter() - started
    losses = {
        one.name: one.losses() for one in scored(fitted.model.inputs, data.panel, split.test, predicted)
    }
    frame = pl.DataFrame({"timestamp": data.panel.timestamps[split.test], **losses})
    with atomic_path(folder / f"{cell.name}.parquet") as temporary:
        frame.write_parquet(temporary)
    best = min(entry["validation"] for entry in fitted.histories[0])
    costs = {
        "validation": best,
        "training s": trained,
        "epochs": len(fitted.histories[0]) - 1,
        "ms a forecast": 1e3 * seconds / len(split.test),
        "memory MB": peak.megabytes,
        "parameters": sum(p.numel() for p in fitted.model.parameters()),
    }
    write_json(folder / f"{cell.name}.json", {"cell": asdict(cell), **costs})


@dataclass(frozen=True, eq=False)
class Comparison:
    """What the settings came to. Rows: one for each target and setting, baselines after them."""

    root: Path
    rows: Rows
    reference: str
    comparisons: int
    forecasts: int
    notes: Sequence[str] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for compare.json."""
        return {"reference": self.reference, "comparisons": self.comparisons, "forecasts": self.forecasts,
                "rows": self.rows, "notes": list(self.notes)}  # fmt: skip

    def text(self) -> str:
        """A table for each target, and how to read it."""
        targets = list(dict.fromkeys(row["target"] for row in self.rows))
        rows = {name: [_but_target(row) for row in self.rows if row["target"] == name] for name in targets}
        tables = [str(TextTable(own, f"Loss of {name}")) for name, own in rows.items()]
        return "\n\n".join([*tables, "\n".join(self.notes)])


def _but_target(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "target"}


def run_compare(
    experiment: Experiment,
    mechanisms: Sequence[str],
    lookbacks: Sequence[int],
    seeds: int,
    out: str | Path,
    resume: bool = False,
    run_jobs: Jobs = one_after_another,
) -> Comparison:
    """Train every mechanism at every lookback with every seed and hold them against the first one named.

    `run_jobs(work, cells)` does the work for each cell, in any order and any process. UserError before anything runs
    where a cell cannot be built.
    """
    Execution.of(experiment.training)  # a device that is not there is said before anything is read
    _require_attention(experiment)
    named = [parse_mechanism(text, experiment) for text in mechanisms]
    settings = [Setting(name, lookback, options) for lookback in lookbacks for name, options in named]
    _refuse_repeated(settings)
    cells = [Cell(s, experiment.seed + n) for s in settings for n in range(seeds)]
    for cell in cells:
        experiment_of(experiment, cell)
    out, document, longest = Path(out), experiment.to_yaml(), max(lookbacks)
    data, split = _prepared(document, longest)
    asked = {"mechanisms": [s.mechanism for s in settings], "lookbacks": list(lookbacks), "seeds": seeds}
    begin_plan(out, {"experiment": document, "fingerprints": data.fingerprints, **asked}, resume)
    folder = out / "cells"
    make_folder(folder)
    left = [cell for cell in cells if not (folder / f"{cell.name}.json").exists()]
    run_jobs(partial(run_cell, document, longest, str(folder)), left)
    made = _judged(out, data, split, settings, [experiment.seed + n for n in range(seeds)])
    write_json(out / "compare.json", made.to_dict())
    return made


def _refuse_repeated(settings: Sequence[Setting]) -> None:
    for at, setting in enumerate(settings):
        if setting in settings[:at]:
            raise UserError(f"compare: {setting.mechanism} at lookback {setting.lookback} is named twice")


def _judged(
    out: Path, data: RunData, split: Split, settings: Sequence[Setting], seeds: Sequence[int]
) -> Comparison:
    folder = out / "cells"
    losses = {
        s: [pl.read_parquet(folder / f"{Cell(s, seed).name}.parquet") for seed in seeds] for s in settings
    }
    costs = {s: [read_json(folder / f"{Cell(s, seed).name}.json") for seed in seeds] for s in settings}
    targets = [name for name in losses[settings[0]][0].columns if name != "timestamp"]
    rows: Rows = []
    for target in targets:
        horizon = max(t.horizon for t in data.panel.target_columns if f"{t.asset} {t.name}" == target)
        by_setting = {s: np.stack([frame[target].to_numpy() for frame in losses[s]]) for s in settings}
        rows += [_row(target, s, by_setting, settings[0], horizon, costs[s]) for s in settings]
        rows += _baseline_rows(target, data, split)
    compared = [row for row in rows if row.get("p") is not None]
    for row, adjusted in zip(compared, holm([row["p"] for row in compared]), strict=True):
        row["p, Holm"] = adjusted
    reference = f"{settings[0].mechanism} at lookback {settings[0].lookback}"
    notes = _notes(reference, compared, len(split.test), seeds) + _smallest_k(settings, costs)
    return Comparison(out, rows, reference, len(compared), len(split.test), notes)


def _row(
    target: str,
    setting: Setting,
    losses: Mapping[Setting, Array],
    reference: Setting,
    horizon: int,
    costs: Rows,
) -> dict[str, Any]:
    """Mean loss over seeds and origins, and the paired test against the reference on the mean over seeds."""
    own = losses[setting]
    row: dict[str, Any] = {
        "target": target, "attention": setting.mechanism, "lookback": setting.lookback,
        "loss": float(np.nanmean(own)), "± seeds": float(np.nanmean(own, axis=1).std(ddof=1)) if len(own) > 1 else None,
    }  # fmt: skip
    if setting != reference:
        mine, theirs = own.mean(axis=0), losses[reference].mean(axis=0)
        interval = mean_difference_interval(mine, theirs, horizon=horizon)
        row |= {"difference": interval.value, "from": interval.lower, "to": interval.upper,
                "p": diebold_mariano(mine, theirs, horizon=horizon).p_value}  # fmt: skip
    return row | {name: _mean([cost[name] for cost in costs]) for name in _COSTS}


_COSTS = ("validation", "training s", "ms a forecast", "memory MB")


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _baseline_rows(target: str, data: RunData, split: Split) -> Rows:
    """The honest baselines on the same origins."""
    inputs = data.pipeline.inputs(data.panel, split.train)
    kind = next(t.kind for t in inputs.targets if f"{t.asset} {t.name}" == target)
    own = inputs.only(kind)
    rows = []
    experiment = data.experiment
    training = Training(experiment.training, experiment.seed)
    for baseline in baselines_of(own, data.panel, experiment.beside):
        forecast = baseline_forecast(baseline.config, own, data.panel, split, training)
        found = scored(own, data.panel, split.test, forecast)
        loss = next(one for one in found if one.name == target).losses()
        title = baseline.title(own.targets[0])
        rows.append({"target": target, "attention": title, "loss": float(np.nanmean(loss))})
    return rows


def _notes(reference: str, compared: Rows, forecasts: int, seeds: Sequence[int]) -> list[str]:
    sure = sum(row["p, Holm"] < SURE for row in compared)
    return [
        f"Every setting is scored on the same {forecasts:,} forecasts, by the mean over {len(seeds)} seeds.",
        f"{len(compared)} comparisons with {reference}, by the Diebold–Mariano test; p is adjusted for their number by"
        f" Holm's method: {sure} of them differ at {SURE:.0%}.",
    ]


def _smallest_k(
    settings: Sequence[Setting], costs: Mapping[Setting, Rows], tolerance: float = 0.01
) -> list[str]:
    """Of Linformers of several k: the smallest whose validation loss is within the tolerance of the best."""
    notes = []
    for lookback in dict.fromkeys(s.lookback for s in settings):
        of_k = {
            dict(s.options).get("k"): s
            for s in settings
            if s.attention == "linformer" and s.lookback == lookback
        }
        losses = {
            k: _mean([c["validation"] for c in costs[s]]) or 0.0 for k, s in of_k.items() if k is not None
        }
        if len(losses) < 2:
            continue
        best = min(losses.values())
        k = min(k for k, loss in losses.items() if loss <= best + tolerance * abs(best))
        notes.append(f"Linformer at lookback {lookback}: k = {k} is the smallest within {tolerance:.0%} of the best"
                     " validation loss.")  # fmt: skip
    return notes
