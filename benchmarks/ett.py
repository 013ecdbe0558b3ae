"""Every attention mechanism on ETTh1, or any file of its form, beside what needs no network.

    python benchmarks/ett.py ETTh1.csv [--attention flash,bigbird] [--horizons 96,192,336,720] [--seeds 3]
    python benchmarks/ett.py ETTh1.csv --informer --attention none
    python benchmarks/ett.py weather.csv --split 0.7,0.1 --out weather.md

The file holds a column `date` and columns of values. Borders are ETT's months, or shares of the rows by `--split`. One
model is fitted for all horizons, on the mean of their errors; what it adds to the ridge that it begins at is kept by a
share for each horizon, of least error on validation. The test is read once, at the end of a row. A row is a model, a
horizon and a seed: it is added as a line of JSON to the file beside the table and never made again while its settings
stay; with `--checkpoints` a fit that was interrupted goes on.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded

import argparse
import hashlib
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from longtape.attention import MECHANISMS
from longtape.benchmarking.machine import describe_machine, machine_line
from longtape.core.clock import DAY
from longtape.core.errors import UserError, unknown_name
from longtape.core.files import write_text
from longtape.core.markdown import markdown_table
from longtape.core.progress import set_silent
from longtape.evaluation.ett import Ett, Score, load_ett, ols, repeat, ridge, score, seasonal_naive
from longtape.evaluation.level_models import LevelDLinear, LevelEncoder
from longtape.evaluation.level_panel import Levels
from longtape.evaluation.level_scores import fitted_gates, scores
from longtape.models.base import Model
from longtape.models.informer import Informer
from longtape.training.config import TrainingConfig
from longtape.training.loop import Trainer
from longtape.training.observers import peak_memory

RESULT = Path(__file__).parent / "results" / "ett.md"
HORIZONS = (96, 192, 336, 720)
CLOSED = ("repeat", "seasonal naive", "OLS, L = 336", "ridge, L = 512")
INFORMER = "Informer as published"
RIDGE = CLOSED[-1]

ENCODER: dict[str, Any] = {
    "lookback": 512,
    "patch": 16,
    "d_model": 32,
    "n_heads": 4,
    "n_layers": 2,
    "d_ff": 64,
    "dropout": 0.3,
    "pooling": "mean",
}
TRAINING: dict[str, Any] = {
    "epochs": 4,
    "batch_size": 256,
    "stride": 4,
    "validation_stride": 8,
    "learning_rate": 1e-3,
    "ema": 0.98,
}
# 32 tokens: what is narrower than exact attention by default has to be made so for so few.
OPTIONS: dict[str, dict[str, Any]] = {
    "local": {"window_size": 9},
    "longformer": {"window_size": 9},
    "bigbird": {"block_size": 4, "window_size": 1, "n_random": 1, "n_global": 1},
    "linformer": {"k": 8},
    "reformer": {"bucket_size": 8},
    "probsparse": {"factor": 2},
}
DLINEAR: dict[str, Any] = {"lookback": 336, "skip": False}
DLINEAR_TRAINING: dict[str, Any] = TRAINING | {"epochs": 8}
# Zhou et al. (2021), for 24 steps: lookback and label length 48.
INFORMER_MODEL: dict[str, Any] = {
    "lookback": 48,
    "label_len": 48,
    "attention": "probsparse",
    "attention_options": {"factor": 5},
    "d_model": 512,
    "n_heads": 8,
    "n_layers": 2,
    "n_decoder_layers": 1,
    "d_ff": 2_048,
    "dropout": 0.05,
    "clip": 1e6,
    "skip": False,
}
INFORMER_TRAINING: dict[str, Any] = {
    "epochs": 6,
    "batch_size": 32,
    "learning_rate": 1e-4,
    "optimizer": "adam",
    "weight_decay": 0.0,
    "schedule": "halving",
    "warmup": 0.0,
    "clip_norm": 1e9,
    "patience": 3,
    "precision": "bfloat16",
}


@dataclass(frozen=True)
class Row:
    """One line of the file: the errors of a model at a horizon, in scaled units, and what its fit took."""

    data: str
    model: str
    horizon: int
    seed: int
    settings: str  # fingerprint of all that was set
    mse: float
    mae: float
    validation: float | None = None  # mean squared error, of the forecast as it is scored on the test
    gate: float | None = None  # the share of what the network adds that is kept
    epochs: int | None = None  # the one that was kept of those that were trained
    trained: int | None = None
    seconds: float | None = None  # of one core, an epoch with its validation
    mib: float | None = None  # the most that the process held

    @property
    def key(self) -> tuple[str, str, int, int, str]:
        """What makes a row the same."""
        return self.data, self.model, self.horizon, self.seed, self.settings


@dataclass(frozen=True)
class Task:
    """A model that is fitted once, for all its horizons."""

    model: str
    horizons: tuple[int, ...]
    seed: int
    settings: dict[str, Any]
    make: Callable[[Ett, Task, Path], list[Row]]

    @property
    def fingerprint(self) -> str:
        """Of the settings, the horizons included."""
        text = json.dumps([self.settings, self.horizons], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def keys(self, data: str) -> list[tuple[str, str, int, int, str]]:
        """Those of its rows."""
        return [(data, self.model, horizon, self.seed, self.fingerprint) for horizon in self.horizons]

    def row(self, data: Ett, horizon: int, found: Score, **more: Any) -> Row:
        """One of its rows."""
        return Row(data.name, self.model, horizon, self.seed, self.fingerprint, found.mse, found.mae, **more)


def closed_form(data: Ett, task: Task, checkpoints: Path) -> list[Row]:
    """A row of what is fitted in closed form, or not at all."""
    (horizon,) = task.horizons
    lookback = task.settings["lookback"]
    train, validation, test = (data.windows(p, lookback, horizon) for p in ("train", "validation", "test"))  # type: ignore[arg-type]
    season = max(1, DAY // data.interval.milliseconds)
    made = {
        "repeat": lambda: repeat(horizon),
        "seasonal naive": lambda: seasonal_naive(horizon, season),
        "OLS, L = 336": lambda: ols(train),
        "ridge, L = 512": lambda: ridge(train, validation)[0],
    }[task.model]()
    return [task.row(data, horizon, score(made, test), validation=score(made, validation).mse)]


def network(data: Ett, task: Task, checkpoints: Path) -> list[Row]:
    """The rows of a network over one series at a time."""
    levels = Levels(data, task.settings["model"]["lookback"], task.horizons, pooled=True)
    kind = LevelDLinear if task.model == "DLinear" else LevelEncoder
    model = _built(kind, levels, task, horizons=task.horizons)
    measured = _fitted(model, levels, task, checkpoints)
    gates = fitted_gates(model, levels) if model.config.skip else dict.fromkeys(task.horizons, 1.0)
    validation, test = (scores(model, levels, part, gates) for part in ("validation", "test"))  # type: ignore[arg-type]
    return [
        task.row(data, h, test[h], validation=validation[h].mse, gate=round(gates[h], 4), **measured)
        for h in task.horizons
    ]


def informer(data: Ett, task: Task, checkpoints: Path) -> list[Row]:
    """The row of the Informer, which sees all series side by side."""
    levels = Levels(data, task.settings["model"]["lookback"], task.horizons, pooled=False)
    model = _built(Informer, levels, task)
    measured = _fitted(model, levels, task, checkpoints)
    (horizon,) = task.horizons
    validation, test = (scores(model, levels, part, {horizon: 1.0}) for part in ("validation", "test"))  # type: ignore[arg-type]
    return [task.row(data, horizon, test[horizon], validation=validation[horizon].mse, **measured)]


def _built(kind: type[Model], levels: Levels, task: Task, **more: Any) -> Model:
    torch.manual_seed(task.seed)
    return kind(kind.Config(**task.settings["model"], **more), levels.inputs())


def _fitted(model: Model, levels: Levels, task: Task, checkpoints: Path) -> dict[str, Any]:
    """Train, and say what it took."""
    trainer = Trainer(
        model,
        levels.panel,
        levels.origins("train"),
        levels.origins("validation"),
        TrainingConfig(**task.settings["training"]),
        task.seed,
        checkpoints / f"{levels.data.name}-{task.model}-{task.seed}-{task.fingerprint}",
    )
    began = time.process_time()
    history = trainer.fit(resume=True)
    spent, trained = time.process_time() - began, len(history) - 1
    best = min(history, key=lambda epoch: epoch["validation"])
    return {
        "epochs": int(best["epoch"]),
        "trained": trained,
        "seconds": round(spent / max(1, trained), 2),
        "mib": round(peak_memory()),
    }


def tasks(horizons: Sequence[int], attention: Sequence[str], seeds: int, published: bool) -> Iterator[Task]:
    """In the order in which they are worth most: closed forms, every mechanism once, then the further seeds."""
    lookbacks = {"OLS, L = 336": 336, "ridge, L = 512": 512}
    for model, horizon in product(CLOSED, horizons):
        yield Task(model, (horizon,), 0, {"lookback": lookbacks.get(model, 96)}, closed_form)
    if published:
        yield Task(INFORMER, (24,), 0, {"model": INFORMER_MODEL, "training": INFORMER_TRAINING}, informer)
    if attention:
        both = {"model": DLINEAR, "training": DLINEAR_TRAINING}
        yield Task("DLinear", tuple(horizons), 0, both, network)
    for seed, name in product(range(seeds), attention):
        model = ENCODER | {"attention": name, "attention_options": OPTIONS.get(name, {})}
        yield Task(name, tuple(horizons), seed, {"model": model, "training": TRAINING}, network)


def rows_in(path: Path) -> list[Row]:
    """The rows that are done; UserError for a line that is none."""
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            found.append(Row(**json.loads(line)))
        except (ValueError, TypeError):
            raise UserError(f"{path}: line {number} is no row of this table; delete it") from None
    return found


def work(data: Ett, wanted: Sequence[Task], kept: Path, checkpoints: Path) -> Iterator[Row]:
    """Make what is not there yet, each task in a process of its own, and add its rows to `kept`."""
    done = {row.key for row in rows_in(kept)}
    for task in wanted:
        if all(key in done for key in task.keys(data.name)):
            continue
        with multiprocessing.get_context("fork").Pool(1) as pool:
            made = pool.apply(task.make, (data, task, checkpoints))
        with open(kept, "a", encoding="utf-8") as out:
            out.writelines(json.dumps(asdict(row)) + "\n" for row in made)
        yield from made


def page(data: Ett, rows: Sequence[Row], horizons: Sequence[int]) -> str:
    """The table of one file and set of horizons, and what follows from it."""
    models = list(dict.fromkeys(row.model for row in rows if row.model != INFORMER))
    of_model = {name: _by_horizon([row for row in rows if row.model == name], horizons) for name in models}
    whole = {name: own for name, own in of_model.items() if len(own) == len(horizons)}
    order = sorted(whole, key=lambda name: _average(whole[name], "mse"))
    header = [
        "model",
        "seeds",
        *map(str, horizons),
        "average",
        "MAE",
        "validation",
        "gate",
        "s an epoch",
        "MiB",
    ]
    lines = [_line(name, whole[name]) for name in order]
    parts = [markdown_table(header, lines), _verdict(whole)]
    published = [row for row in rows if row.model == INFORMER]
    if published:
        parts.append(_informer_text(published[-1]))
    return "\n\n".join(parts)


def _by_horizon(rows: Sequence[Row], horizons: Sequence[int]) -> dict[int, list[Row]]:
    found = {h: [row for row in rows if row.horizon == h] for h in horizons}
    return {h: own for h, own in found.items() if own}


def _average(own: dict[int, list[Row]], name: str) -> float:
    """Over the horizons, of the mean over the seeds."""
    return float(np.mean([np.mean([getattr(row, name) for row in rows]) for rows in own.values()]))


def _line(name: str, own: dict[int, list[Row]]) -> list[str]:
    each = [f"{np.mean([row.mse for row in rows]):.4f}" for rows in own.values()]
    first = next(iter(own.values()))
    spread = np.std([np.mean([rows[i].mse for rows in own.values()]) for i in range(len(first))])
    average = f"{_average(own, 'mse'):.4f}" + (f" ± {spread:.4f}" if len(first) > 1 else "")
    gates = " ".join(
        f"{np.mean([row.gate for row in rows]):.2f}" for rows in own.values() if rows[0].gate is not None
    )
    cost = ["", ""]
    if first[0].seconds is not None:
        cost = [f"{_average(own, 'seconds'):.1f}", f"{_average(own, 'mib'):.0f}"]
    errors = [f"{_average(own, 'mae'):.4f}", f"{_average(own, 'validation'):.4f}"]
    return [name, str(len(first)), *each, average, *errors, gates, *cost]


def _verdict(whole: dict[str, dict[int, list[Row]]]) -> str:
    """Whether a mechanism is ahead of the ridge."""
    if RIDGE not in whole:
        return ""
    limit = _average(whole[RIDGE], "mse")
    ahead = [name for name, own in whole.items() if name in MECHANISMS and _average(own, "mse") < limit]
    if not ahead:
        return "**No mechanism is ahead of the ridge.**"
    return f"Ahead of the ridge on average: {', '.join(ahead)}."


def _informer_text(row: Row) -> str:
    return (
        f"Informer as published, all series side by side, {row.horizon} steps: MSE {row.mse:.3f}, MAE {row.mae:.3f}"
        f" (epoch {row.epochs} of {row.trained}, {row.seconds:.0f} s of a core an epoch, {row.mib:.0f} MiB). Published:"
        " .577."
    )


def _document(data: Ett, text: str, path: str) -> str:
    borders = ", ".join(f"{part} {first:,} to {end:,}" for part, (first, end) in data.borders.items())
    head = [
        f"# Long horizons on {data.name}",
        f"{machine_line(describe_machine())}",
        f"`python benchmarks/ett.py {Path(path).name}`. Rows of {data.interval}: {borders}; {len(data.columns)}"
        " columns, scaled by mean and deviation of the training rows. Mean squared error over every test window.",
    ]
    return "\n\n".join([*head, NOTES, text]) + "\n"


NOTES = """\
One configuration, and one fit, for all horizons. A mechanism's row is longtape's encoder over windows of one series
(512 rows in patches of 16: 32 tokens, width 32, two layers), the same weights for every column, trained by its trainer.
It begins at the ridge (on windows less their last value, the penalty chosen on validation) and learns what that leaves
over; of what it adds, the share `gate` of least error on validation is kept for each horizon. Early stopping,
configuration and gate are chosen on validation; the test is read once. Seconds are those of one core, an epoch being a
quarter of the training windows; MiB the most that the process held."""


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(sorted({int(one) for one in text.split(",")}))


def _shares(text: str) -> tuple[float, float]:
    train, validation = (float(one) for one in text.split(","))
    return train, validation


def _names(text: str) -> tuple[str, ...]:
    if text == "none":
        return ()
    for name in text.split(","):
        if name not in MECHANISMS:
            raise unknown_name("mechanism", name, MECHANISMS)
    return tuple(text.split(","))


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", help="CSV file: a column date, and columns of values")
    parser.add_argument("--attention", default=",".join(MECHANISMS), help="mechanisms, or none")
    parser.add_argument("--horizons", type=_numbers, default=HORIZONS, help="steps ahead, with commas")
    parser.add_argument("--seeds", type=int, default=1, help="fits of each mechanism")
    parser.add_argument(
        "--split", type=_shares, help="shares of training and validation; default: ETT's months"
    )
    parser.add_argument("--informer", action="store_true", help="the Informer as published as well (an hour)")
    parser.add_argument(
        "--out", type=Path, default=RESULT, help="the table; its rows stand beside it as .jsonl"
    )
    parser.add_argument("--checkpoints", type=Path, help="folder in which an interrupted fit goes on")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Make the rows that are missing, then the table of all."""
    options = arguments(given)
    set_silent(True)
    data = load_ett(options.path, split=options.split)
    wanted = list(tasks(options.horizons, _names(options.attention), options.seeds, options.informer))
    kept = options.out.with_suffix(".jsonl")
    with tempfile.TemporaryDirectory() as temporary:
        checkpoints = options.checkpoints or Path(temporary)
        checkpoints.mkdir(parents=True, exist_ok=True)
        for row in work(data, wanted, kept, checkpoints):
            print(
                f"{row.model:16} {row.horizon:4} seed {row.seed}: MSE {row.mse:.4f} MAE {row.mae:.4f}",
                flush=True,
            )
    rows = [row for row in rows_in(kept) if row.data == data.name]
    write_text(options.out, _document(data, page(data, rows, options.horizons), options.path))


if __name__ == "__main__":
    main()
