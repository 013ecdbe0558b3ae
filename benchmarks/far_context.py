"""Proof that far context is used: two tasks whose best possible score is known, one layer of every mechanism.

    python benchmarks/far_context.py [--tasks lag recall] [--attention NAME …] [--lags 100 1000 3900] [--seeds 0 …]

lag: of 4,096 bars of white noise one, `lag` back from the newest, moves the target; no forecast can reach more than
R² = 1 / (1 + σ²). recall: 16 of 4,096 bars hold a (key, value) pair, the newest asks for a key; a reader that sees all
bars can always answer, one that does not see the pair answers one time in eight. Windows are drawn anew at every step.
A finished (task, mechanism, lag, seed) is a line of benchmarks/results/far_context.jsonl and is never done again.
Writes far_context.md, .json and .png beside it; with nothing left to do, those alone.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from longtape.attention import MECHANISMS
from longtape.benchmarking.machine import describe_machine, machine_line
from longtape.core.files import write_text
from longtape.models.embedding import PatchEmbedding, Positions
from longtape.models.transformer import Transformer, TransformerConfig

RESULTS = Path(__file__).parent / "results"
CELLS = RESULTS / "far_context.jsonl"
FOUND = 0.95  # of what is attainable
LAGS, TOKENS, TEST_WINDOWS = (100, 1_000, 3_900), 4_096, 4_096
# What the newest token sees is a matter of these: in bigbird its block is global, in longformer it is.
OPTIONS: dict[str, dict[str, Any]] = {
    "full": {},
    "flash": {},
    "bigbird": {"block_size": 16, "window_size": 3, "n_random": 1, "n_global": 2, "global_tokens": "both"},
    "longformer": {"window_size": 65, "n_global": 1, "global_tokens": "last"},
    "local": {"window_size": 65},
    "linformer": {"k": 64, "sharing": "headwise"},
    "performer": {},
    "reformer": {"bucket_size": 32, "n_hashes": 2},
    "probsparse": {"factor": 5},
}
Windows = tuple[Tensor, Tensor]  # bars [B, N, columns], targets [B, 1] or classes [B]


@dataclass(frozen=True)
class LagTask:
    """y = x[newest − lag] + σ·ε among independent x ~ N(0, 1), ε ~ N(0, 1); the newest bar itself is empty."""

    lag: int
    tokens: int = TOKENS
    sigma: float = 0.5
    name = "lag"
    columns = outputs = 1
    positions = "learned"
    batch, steps = 4, 1_000

    @property
    def attainable(self) -> float:
        """R² of E[y | x] = x[newest − lag]: Var(x) / (Var(x) + σ²)."""
        return 1 / (1 + self.sigma**2)

    def draw(self, count: int, generator: torch.Generator) -> Windows:
        x = torch.randn(count, self.tokens, 1, generator=generator)
        x[:, -1] = 0
        return x, x[:, -1 - self.lag] + self.sigma * torch.randn(count, 1, generator=generator)

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(output, y)


@dataclass(frozen=True)
class RecallTask:
    """`2**bits` bars hold a key, each key once, and a value; all others are empty but the newest, which asks.

    Columns: the key's bits as ±size, the value one-hot times size. `lag`: distance of the pair asked for; None: another
    one in every window, log-uniform, so that its place tells nothing.
    """

    lag: int | None = None
    tokens: int = TOKENS
    bits: int = 4
    values: int = 8
    size: float = 4.0
    name = "recall"
    positions = "none"
    batch, steps = 8, 800

    @property
    def columns(self) -> int:
        return self.bits + self.values

    @property
    def outputs(self) -> int:
        return self.values

    @property
    def attainable(self) -> float:
        """Accuracy: no key is there twice."""
        return 1.0

    @property
    def chance(self) -> float:
        """Accuracy without the pair: values are independent."""
        return 1 / self.values

    def draw(self, count: int, generator: torch.Generator) -> Windows:
        pairs, rows = 2**self.bits, torch.arange(count)
        keys = torch.rand(count, pairs, generator=generator).argsort(1)
        values = torch.randint(self.values, (count, pairs), generator=generator)
        codes = ((keys[..., None] >> torch.arange(self.bits)) & 1) * 2.0 - 1
        x = torch.zeros(count, self.tokens, self.columns)
        bars = torch.cat([codes, F.one_hot(values, self.values)], -1)
        x[rows[:, None], self._places(count, pairs, generator)] = bars
        x[:, -1, : self.bits] = codes[:, 0]
        return self.size * x, values[:, 0]

    def _places(self, count: int, pairs: int, generator: torch.Generator) -> Tensor:
        """Bars of the pairs [count, pairs], all different; the first is the one asked for."""
        far = torch.rand(count, 1, generator=generator)
        distance = ((self.tokens - 1) ** far).round().long() if self.lag is None else torch.tensor(self.lag)
        asked = (self.tokens - 1 - distance).expand(count, 1)
        order = torch.rand(count, self.tokens - 1, generator=generator).scatter(1, asked, 2.0)
        return torch.cat([asked, order.topk(pairs, 1).indices[:, 1:]], 1)

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(output, y)


Task = LagTask | RecallTask


class Reader(nn.Module):
    """Bars → tokens → one layer → the newest token → a linear output: the parts of the library's encoder."""

    def __init__(self, task: Task, attention: str, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        config = TransformerConfig(
            kind="encoder", lookback=task.tokens, attention=attention, attention_options=OPTIONS[attention],
            d_model=width, n_heads=heads, n_layers=1, d_ff=2 * width, dropout=0.0, norm="post",
        )  # fmt: skip
        self.embedding = PatchEmbedding(task.columns, 1, width)
        self.positions = Positions(task.positions, task.tokens, width)
        self.transformer = Transformer(config)
        self.head = nn.Linear(width, task.outputs)

    def forward(self, x: Tensor, whole: bool = False) -> Tensor:
        """[B, N, columns] → [B, outputs]; whole: all tokens are computed, where one query would do."""
        tokens = self.positions(self.embedding(x))
        made = self.transformer(tokens)[-1] if whole else self.transformer.newest(tokens)
        return self.head(made[:, -1])


def seeded(*numbers: int) -> torch.Generator:
    """A generator of its own for every use."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


def train(task: Task, attention: str, seed: int, steps: int | None = None) -> tuple[Reader, float]:
    """The reader after `steps` of Adam on fresh windows, and the processor seconds that they took."""
    torch.manual_seed(seed)
    reader, steps = Reader(task, attention), steps or task.steps
    optimizer, schedule = _optimizer(task, reader, steps)
    generator, started = seeded(seed, 1), time.process_time()
    for _ in range(steps):
        x, y = task.draw(task.batch, generator)
        optimizer.zero_grad()
        task.loss(reader(x), y).backward()
        nn.utils.clip_grad_norm_(
            optimizer.param_groups[0]["params"], 1.0
        )  # a few windows have wild gradients
        optimizer.step()
        schedule.step()
    return reader, time.process_time() - started


def _optimizer(task: Task, reader: Reader, steps: int) -> tuple[torch.optim.Adam, Any]:
    """lag: the table of positions learns first, alone, so that a head finds its bar before the output learns to ignore
    all of them; then everything. recall: all from the start. Each rate ends on a cosine.
    """
    table = list(reader.positions.parameters())
    rest = [one for one in reader.parameters() if all(one is not other for other in table)]
    groups, alone = [{"params": rest, "lr": 0.008 if table else 0.005}], 0.35 * steps if table else 0.0
    rules = [lambda i: 0.0 if i < alone else _fall(i, alone, steps)]
    if table:
        groups.append({"params": table, "lr": 0.03})
        rules.append(lambda i: _fall(i, 0.5 * steps, steps))
    optimizer = torch.optim.Adam(groups, eps=1e-12)  # a weight of 1/4,096 makes gradients small
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rules)


def _fall(step: int, start: float, steps: int) -> float:
    """1 until `start`, then half a cosine to 0 at the end."""
    return 1.0 if step < start else 0.5 * (1 + math.cos(math.pi * (step - start) / (steps - start)))


@torch.no_grad()
def answers(reader: Reader, task: Task, seed: int, windows: int) -> tuple[Tensor, Tensor]:
    """Outputs and truths of fresh windows."""
    generator, found = seeded(seed, 2, task.lag or 0), []
    for start in range(0, windows, 32):
        x, y = task.draw(min(32, windows - start), generator)
        found.append((reader(x), y))
    outputs, truths = zip(*found, strict=True)
    return torch.cat(outputs), torch.cat(truths)


def score(task: Task, output: Tensor, y: Tensor, resamples: int = 1_000) -> tuple[float, float, float]:
    """R² (lag) or accuracy (recall) over what is attainable, with its 95 % bootstrap interval over windows."""
    draws = np.random.default_rng(0).integers(len(y), size=(resamples, len(y)))
    if isinstance(task, RecallTask):
        right = (output.argmax(1) == y).double().numpy()
        value, drawn = right.mean(), right[draws].mean(1)
    else:
        truth, missed = y[:, 0].double().numpy(), (output - y).square()[:, 0].double().numpy()
        value = 1 - missed.sum() / np.square(truth - truth.mean()).sum()
        drawn = 1 - missed[draws].sum(1) / (truth[draws].var(1) * len(y))
    low, high = np.quantile(drawn, (0.025, 0.975))
    return tuple(float(one) / task.attainable for one in (value, low, high))  # type: ignore[return-value]


@torch.no_grad()
def whole_differs(reader: Reader, task: Task) -> float:
    """The largest difference that computing all tokens makes to the output of two windows."""
    x, _ = task.draw(2, seeded(3))
    return float((reader(x) - reader(x, whole=True)).abs().max())


@dataclass(frozen=True)
class Cell:
    """One line of the results; `share` is of the attainable R² (lag) or the accuracy (recall)."""

    task: str
    attention: str
    lag: int
    seed: int
    share: float
    low: float
    high: float
    steps: int
    seconds: float
    whole_differs: float
    options: dict[str, Any]

    @property
    def key(self) -> tuple[str, str, int, int]:
        return self.task, self.attention, self.lag, self.seed


def measure(tasks: Sequence[Task], trained_on: Task, attention: str, seed: int) -> list[Cell]:
    """Train once, score on each of the tasks."""
    reader, seconds = train(trained_on, attention, seed)
    cells = []
    for task in tasks:
        found = score(task, *answers(reader, task, seed, TEST_WINDOWS if task.name == "lag" else 1_024))
        differs = whole_differs(reader, task)
        cells.append(
            Cell(
                task.name,
                attention,
                task.lag or 0,
                seed,
                *found,
                task.steps,
                seconds,
                differs,
                OPTIONS[attention],
            )
        )
    return cells


def load(path: Path) -> list[Cell]:
    if not path.exists():
        return []
    return [Cell(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def work(path: Path, task: str, attention: str, lags: Sequence[int], seed: int) -> None:
    """What is not in the file yet."""
    done = {cell.key for cell in load(path)}
    left = [lag for lag in lags if (task, attention, lag, seed) not in done]
    if task == "recall":
        wanted = [([RecallTask(lag) for lag in left], RecallTask())] if left else []
    else:
        wanted = [([LagTask(lag)], LagTask(lag)) for lag in left]
    for tasks, trained_on in wanted:
        cells = measure(tasks, trained_on, attention, seed)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(cell)) + "\n" for cell in cells)
        for cell in cells:
            print(
                *cell.key,
                f"{cell.share:.3f} [{cell.low:.3f}, {cell.high:.3f}] {cell.seconds:.0f} s",
                flush=True,
            )


def best(cells: Sequence[Cell]) -> dict[tuple[str, str, int], Cell]:
    """Of every task, mechanism and lag the start with the highest score."""
    found: dict[tuple[str, str, int], Cell] = {}
    for cell in sorted(cells, key=lambda one: one.share):
        found[cell.key[:3]] = cell
    return found


def table(cells: Sequence[Cell], task: str) -> list[str]:
    """A row for each mechanism, a column for each lag."""
    own = [cell for cell in cells if cell.task == task]
    lags = sorted({cell.lag for cell in own})
    lines = [
        "| mechanism | options | "
        + " | ".join(f"{lag:,} bars back" for lag in lags)
        + " | starts that reach 95 % | s a start |",
        "|---|---|" + "---:|" * (len(lags) + 2),
    ]
    for name in MECHANISMS:
        if mine := [cell for cell in own if cell.attention == name]:
            lines.append(_row(name, mine, lags))
    missing = [name for name in MECHANISMS if all(cell.attention != name for cell in own)]
    return [*lines, "", f"Not measured: {', '.join(missing)}."] if missing else lines


def _row(name: str, cells: Sequence[Cell], lags: Sequence[int]) -> str:
    top, texts, starts = best(cells), [], []
    for lag in lags:
        cell = top.get((cells[0].task, name, lag))
        texts.append(f"{cell.share:.1%} ({cell.low:.1%} to {cell.high:.1%})" if cell else "–")
        own = [one for one in cells if one.lag == lag]
        starts.append(f"{sum(one.share >= FOUND for one in own)} of {len(own)}")
    count = starts[0] if len(set(starts)) == 1 else ", ".join(starts)
    options = ", ".join(f"{key} {value}" for key, value in cells[0].options.items()) or "–"
    seconds = float(np.median([one.seconds for one in cells]))
    return f"| {name} | {options} | " + " | ".join(texts) + f" | {count} | {seconds:,.0f} |"


def every_start(cells: Sequence[Cell]) -> list[str]:
    """All starts, also those that found nothing."""
    lines = ["| task | mechanism | bars back | of each start, in order of the seeds |", "|---|---|---:|---|"]
    for key in sorted(best(cells), key=lambda one: (one[0], list(MECHANISMS).index(one[1]), one[2])):
        starts = sorted((cell for cell in cells if cell.key[:3] == key), key=lambda one: one.seed)
        shares = ", ".join(f"{cell.share:.1%}" for cell in starts)
        lines.append(f"| {key[0]} | {key[1]} | {key[2]:,} | {shares} |")
    return lines


def draw_picture(cells: Sequence[Cell], path: Path) -> None:
    """Both tasks: the score of every mechanism over the distance."""
    figure = Figure(figsize=(9.5, 4.0), layout="constrained")
    top = best(cells)
    titles = {"lag": "lag: share of the attainable R²", "recall": "associative recall: accuracy"}
    for axes, (task, title) in zip(figure.subplots(1, 2, sharey=True), titles.items(), strict=True):
        present = [name for name in MECHANISMS if any(key[:2] == (task, name) for key in top)]
        lags = sorted({key[2] for key in top if key[0] == task})
        for i, name in enumerate(present):
            mine = [top.get((task, name, lag)) for lag in lags]
            heights = [max(cell.share, 0.0) if cell else np.nan for cell in mine]
            places = np.arange(len(lags)) + 0.8 * ((i + 0.5) / len(present) - 0.5)
            axes.bar(
                places, heights, 0.75 / len(present), color=f"C{list(MECHANISMS).index(name)}", label=name
            )
        axes.axhline(1.0 if task == "recall" else FOUND, color="grey", linewidth=0.8, linestyle="--")
        if task == "recall":
            axes.axhline(RecallTask().chance, color="grey", linewidth=0.8, linestyle=":")
        axes.set_xticks(range(len(lags)), [f"{lag:,}" for lag in lags])
        axes.set_xlabel("bars back")
        axes.set_title(title, fontsize=10)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=9, fontsize=8, frameon=False)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def page(cells: Sequence[Cell], machine: dict[str, Any]) -> str:
    lag, recall = LagTask(100), RecallTask()
    lines = [
        "# Far context",
        "",
        machine_line(machine),
        "",
        f"One layer, width 32, 4 heads, {TOKENS:,} bars, read at the newest token: the parts of the library's encoder"
        " (`PatchEmbedding`, `Positions`, `Transformer.newest`) and a linear output. Fresh windows at every step, other"
        " fresh windows for the score. Seconds are of one core's processor time, shared with other work. In brackets:"
        " 95 % bootstrap interval over windows; more than 100 % is luck in a sample of them."
        " Made by `python benchmarks/far_context.py`.",
        "",
        "![far context](far_context.png)",
        "",
        "## Lag",
        "",
        f"The target is one bar among {TOKENS - 1:,} of white noise, with noise of its own (σ {lag.sigma}): no forecast"
        f" reaches more than R² {lag.attainable:.2f}. The table shows the share of that. Learned positions;"
        f" {lag.steps:,} steps of {lag.batch} windows, Adam, gradients limited to norm 1; in the first 35 % the table"
        " of positions learns alone. Without that and the limit some starts stood still at this length. Both were"
        " chosen on `flash` with starts 0 and 1. A start finds the bar or stands still, so the table shows the best one"
        f" and how many found it; all stand below. Scored on {TEST_WINDOWS:,} windows.",
        "",
        *table(cells, "lag"),
        "",
        "## Associative recall",
        "",
        f"{2**recall.bits} of the bars hold a key and one of {recall.values} values, each key once; the newest bar asks"
        f" for a key. Attainable: 100 %; by chance: {recall.chance:.1%}. No positions; one training with pairs at all"
        f" distances (log-uniform), {recall.steps} steps of {recall.batch} windows; then scored at each distance on"
        " 1,024 windows.",
        "",
        *table(cells, "recall"),
        "",
        "## All starts",
        "",
        *every_start(cells),
        "",
        f"One query was computed where a mechanism can; computing all {TOKENS:,} tokens changes the output by"
        f" {max(cell.whole_differs for cell in cells):.1e} at most.",
    ]
    return "\n".join(lines) + "\n"


def report(cells: Sequence[Cell], folder: Path) -> None:
    """The page, its numbers and its picture."""
    machine = describe_machine()
    numbers = {"machine": machine, "cells": [asdict(cell) for cell in sorted(cells, key=lambda one: one.key)]}
    write_text(folder / "far_context.json", json.dumps(numbers, indent=1) + "\n")
    write_text(folder / "far_context.md", page(cells, machine))
    draw_picture(cells, folder / "far_context.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="*", default=["lag", "recall"], choices=["lag", "recall"])
    parser.add_argument("--attention", nargs="*", default=list(OPTIONS), choices=list(MECHANISMS))
    parser.add_argument("--lags", nargs="*", type=int, default=list(LAGS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    asked = parser.parse_args()
    for seed in asked.seeds:
        for task in asked.tasks:
            for attention in asked.attention:
                work(CELLS, task, attention, asked.lags, seed)
    report(load(CELLS), RESULTS)


if __name__ == "__main__":
    main()
