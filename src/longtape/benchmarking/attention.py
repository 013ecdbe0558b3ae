"""Attention mechanisms and their peers measured side by side on this machine.

Every measurement runs in a process of its own; the subjects take turns, round after round, so that a machine that slows
down slows everybody; a ratio is taken within a round and reported as the median over the rounds.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from longtape.attention import MECHANISMS
from longtape.benchmarking.attention_peers import PEERS
from longtape.benchmarking.attention_worker import ERROR, FORWARD, TRAIN, Job
from longtape.benchmarking.machine import describe_machine, machine_line
from longtape.core.errors import CheckFailed, UserError, unknown_name
from longtape.core.files import atomic_path, write_json, write_text
from longtape.core.markdown import markdown_table
from longtape.core.progress import progress

# The settings in which mechanisms are compared; those of the peers are the same.
SETTINGS: dict[str, dict[str, Any]] = {
    "full": {},
    "flash": {},
    "local": {"window_size": 257},
    "longformer": {"window_size": 257, "n_global": 64},
    "bigbird": {"block_size": 64, "window_size": 3, "n_random": 3, "n_global": 2, "global_tokens": "both"},
    "linformer": {"k": 256},
    "performer": {},
    "reformer": {"bucket_size": 64, "n_hashes": 4},
    "probsparse": {"factor": 5},
}
# Keeps large blocks on the heap instead of mapping them afresh at each allocation (glibc).
REUSE_LARGE_BLOCKS = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
QUADRATIC = ("full", "dense softmax", "masked softmax", "masked SDPA")
QUADRATIC_LIMIT = 8192  # tokens; beyond it the weights of eight heads alone take gigabytes


@dataclass
class Row:
    """One subject at one length: the facts of every round, or why there are none."""

    job: Job
    label: str
    rounds: list[dict[str, float]] = field(default_factory=list)
    failure: str = ""

    def median(self, fact: str) -> float | None:
        """Median of a fact over the rounds; None where it was not measured."""
        values = [facts[fact] for facts in self.rounds if fact in facts]
        return statistics.median(values) if values else None

    def ratio(self, other: Row, fact: str) -> float | None:
        """Median over the rounds of other's fact over mine: how many times less I take."""
        pairs = zip(self.rounds, other.rounds, strict=False)
        ratios = [theirs[fact] / mine[fact] for mine, theirs in pairs if mine.get(fact) and fact in theirs]
        return statistics.median(ratios) if ratios else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self.job), "label": self.label, "rounds": self.rounds, "failure": self.failure}


def planned_rows(
    lengths: Sequence[int],
    mechanisms: Sequence[str],
    *,
    peers: bool,
    base: Job | None = None,
) -> list[Row]:
    """Rows to measure: every mechanism, and every installed peer of those mechanisms, at every length.

    UserError for an unknown mechanism or a length below 1. What keeps N×N weights stops at `QUADRATIC_LIMIT`.
    """
    base = base or Job("full", 1)
    for name in mechanisms:
        if name not in MECHANISMS:
            raise unknown_name("mechanism", name, MECHANISMS, "--mechanisms")
    rows = []
    for n in lengths:
        if n < 1:
            raise UserError(f"--lengths: {n} tokens cannot be measured; give lengths of at least 1")
        for name in mechanisms:
            rows.append(Row(replace(base, subject=name, tokens=n, options=SETTINGS[name]), name))
        rows += peer_rows(n, mechanisms, base) if peers else []
    return [row for row in rows if row.label not in QUADRATIC or row.job.tokens <= QUADRATIC_LIMIT]


def peer_rows(n: int, mechanisms: Iterable[str], base: Job) -> list[Row]:
    """Rows of the installed peers of `mechanisms`; the dense token masks are left to the results of record."""
    parts = tuple(part for part in base.parts if part != ERROR)
    return [
        Row(replace(base, subject=name, tokens=n, options={}, is_peer=True, parts=parts), name)
        for name, peer in PEERS.items()
        if peer.installed and peer.mechanism in mechanisms and not name.startswith("masked")
    ]


def measure(
    rows: Sequence[Row],
    repeats: int,
    *,
    environment: Mapping[str, str] | None = None,
    limit: float = 600.0,
) -> None:
    """Fill `rows` in `repeats` rounds; `limit` is the time in seconds that one process may take."""
    with progress("measure", repeats * len(rows), "measurements") as bar:
        for _ in range(repeats):
            for row in rows:
                if not row.failure:
                    measure_once(row, environment or {}, limit)
                bar.advance(1, f"{row.label} {row.job.tokens:,}")


def measure_once(row: Row, environment: Mapping[str, str], limit: float) -> None:
    """One child process; what goes wrong in it becomes the row's `failure`."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "longtape.benchmarking.attention_worker"],
            input=row.job.to_json(),
            capture_output=True,
            text=True,
            timeout=limit,
            check=True,
            env={**os.environ, **environment},
        )
    except subprocess.TimeoutExpired:
        row.failure = f"took longer than {limit:.0f} s"
    except subprocess.CalledProcessError as error:
        last = [line for line in error.stderr.splitlines() if line.strip()][-1:]
        row.failure = (
            "out of memory" if error.returncode == -9 else "".join(last) or f"exit {error.returncode}"
        )
    else:
        row.rounds.append(json.loads(done.stdout.splitlines()[-1]))


# --- what is written ---


def milliseconds(value: float | None) -> str:
    """Three digits."""
    return "–" if value is None else f"{1000 * value:,.3g}" if value < 0.1 else f"{1000 * value:,.0f}"


def number(value: float | None, form: str = ",.0f", unit: str = "") -> str:
    """The number, or a dash."""
    return "–" if value is None else f"{value:{form}}{unit}"


def table(rows: Sequence[Row], *, gains: bool = True) -> str:
    """Time, memory, error, and how many times faster than exact fused attention (`flash`) at the same length."""
    header = ["layer", "tokens", "forward ms", "fwd+bwd ms", "forward MiB", "fwd+bwd MiB"]
    header += ["error against full", "× flash forward", "× flash fwd+bwd"] if gains else []
    exact = {row.job.tokens: row for row in rows if row.label == "flash"}
    lines = []
    for row in rows:
        cells = [row.label, f"{row.job.tokens:,}"]
        if row.failure:
            lines.append([*cells, row.failure, *["–"] * (len(header) - 3)])
            continue
        cells += [milliseconds(row.median(f"{part}_s")) for part in (FORWARD, TRAIN)]
        cells += [number(row.median(f"{part}_mib")) for part in (FORWARD, TRAIN)]
        lines.append(cells + (_flash_ratios(exact.get(row.job.tokens), row) if gains else []))
    return markdown_table(header, lines)


def _flash_ratios(flash: Row | None, row: Row) -> list[str]:
    ratios = [row.ratio(flash, f"{part}_s") if flash else None for part in (FORWARD, TRAIN)]
    return [number(row.median("error"), ".2g"), *(number(ratio, ".2f") for ratio in ratios)]


def peer_table(rows: Sequence[Row]) -> str:
    """Each peer against the mechanism it corresponds to; empty where no peer was measured."""
    ours = {(row.label, row.job.tokens): row for row in rows if not row.job.is_peer}
    lines = []
    for row in rows:
        mine = ours.get((PEERS[row.label].mechanism, row.job.tokens)) if row.job.is_peer else None
        if mine is None or row.failure or mine.failure:
            continue
        gains = [number(mine.ratio(row, f"{part}_s"), ".2f", "×") for part in (FORWARD, TRAIN)]
        memory = row.ratio(mine, "train_mib")
        lines.append(
            [
                row.label,
                PEERS[row.label].settings,
                f"{row.job.tokens:,}",
                mine.label,
                *gains,
                number(memory, ".3f"),
            ]
        )
    header = [
        "peer",
        "settings",
        "tokens",
        "longtape",
        "faster forward",
        "faster fwd+bwd",
        "memory fwd+bwd, of theirs",
    ]
    return markdown_table(header, lines) if lines else ""


def plot(rows: Sequence[Row], path: str | Path) -> None:
    """PNG: time and memory of forward + backward (or forward alone) against length, or bars at a single length."""
    from matplotlib.figure import Figure

    part = TRAIN if any(row.median("train_s") for row in rows) else FORWARD
    figure = Figure(figsize=(12, 5), layout="constrained")
    facts = {f"{part}_s": "seconds", f"{part}_mib": "extra MiB"}
    for axes, (fact, unit) in zip(figure.subplots(1, 2), facts.items(), strict=True):
        (_lines if len({row.job.tokens for row in rows}) > 1 else _bars)(axes, rows, fact)
        axes.set_title("forward + backward" if part == TRAIN else "forward")
        (axes.set_xlabel if axes.get_yscale() == "linear" else axes.set_ylabel)(unit)
    figure.axes[0].legend(fontsize=8) if figure.axes[0].get_legend_handles_labels()[0] else None
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _lines(axes: Any, rows: Sequence[Row], fact: str) -> None:
    for label in dict.fromkeys(row.label for row in rows):
        points = [
            (row.job.tokens, row.median(fact)) for row in rows if row.label == label and row.median(fact)
        ]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label) if points else None
    axes.set(xscale="log", yscale="log", xlabel="tokens")


def _bars(axes: Any, rows: Sequence[Row], fact: str) -> None:
    known = [row for row in reversed(rows) if row.median(fact)]
    colours = ["tab:grey" if row.job.is_peer else "tab:blue" for row in known]
    axes.barh([row.label for row in known], [row.median(fact) for row in known], color=colours)
    axes.set_xscale("log")


def check_request(base: Job, repeats: int) -> None:
    """UserError for what cannot be measured."""
    dtypes = ("float32", "float64", "bfloat16", "float16")
    if base.dtype not in dtypes:
        raise unknown_name("dtype", base.dtype, dtypes, "--dtype")
    if base.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device: '{base.device}' was named and torch finds no GPU here")
    if min(base.batch, base.d_model, base.n_heads) < 1 or base.d_model % base.n_heads:
        raise UserError(
            f"--d-model {base.d_model} must be a multiple of --heads {base.n_heads}, "
            f"and --batch {base.batch} at least 1"
        )
    if repeats < 1:
        raise UserError(f"--repeats: {repeats} rounds measure nothing; give at least 1")


def bench(
    lengths: Sequence[int],
    mechanisms: Sequence[str],
    *,
    peers: bool = True,
    repeats: int = 3,
    out: Path | None = None,
    **shape: Any,
) -> str:
    """Measure, write `attention.md`, `attention.json` and `attention.png` into `out`, and return the tables.

    `shape` are the fields of `Job` that hold for all: batch, d_model, n_heads, dtype, device.
    """
    base = Job("full", 1, parts=(FORWARD, TRAIN, ERROR), **shape)
    check_request(base, repeats)
    rows = planned_rows(lengths, mechanisms, peers=peers, base=base)
    measure(rows, repeats)
    machine = describe_machine()
    settings = f"{base.dtype}, batch {base.batch}, d_model {base.d_model}, {base.n_heads} heads"
    settings += f"; medians of {repeats} rounds, one process a measurement"
    text = "\n\n".join(filter(None, [machine_line(machine), settings, table(rows), peer_table(rows)])) + "\n"
    if out is not None:
        write_text(out / "attention.md", "# Attention on this machine\n\n" + text)
        write_json(out / "attention.json", {"machine": machine, "rows": [row.to_dict() for row in rows]})
        plot(rows, out / "attention.png")
    if all(row.failure for row in rows):
        raise CheckFailed(f"nothing could be measured: {rows[0].failure}")
    return text
