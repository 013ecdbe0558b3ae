"""What long sequences cost on this machine: one million tokens in one layer, and a training step over 65,536 tokens.

    python benchmarks/long_sequences.py [million | step]

million: forward of a layer of width 256, 8 heads, batch 1, at 204,800 and 1,048,576 tokens, and a training step where
it fits; time, the ratio of the two lengths, peak memory above what was held before; each in a process of its own.
step: a training step of the encoder (d 64, 4 heads, 2 layers, batch 1) over 65,536 tokens for every mechanism, with and
without gradient checkpointing; time and peak memory, each in a process of its own.
Writes benchmarks/results/long_sequences.md.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded

import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from longtape.attention import MECHANISMS
from longtape.benchmarking.attention import SETTINGS, measure, planned_rows
from longtape.benchmarking.attention_worker import FORWARD, TRAIN, Job
from longtape.benchmarking.machine import describe_machine, machine_line
from longtape.core.files import write_text
from longtape.models.transformer import Transformer, TransformerConfig

RESULT = Path(__file__).parent / "results" / "long_sequences.md"
LENGTHS = (204_800, 1_048_576)
LINEAR = ["bigbird", "local", "performer", "linformer", "probsparse"]
TOKENS, LIMIT = 65_536, 3_600.0


def million() -> list[str]:
    """Forward and training step of a layer at both lengths."""
    lines = ["## One million tokens", "", "A layer of width 256, 8 heads, batch 1.", ""]
    lines += [
        "| | tokens | forward s | that of the line above, times | GiB | step s | GiB |",
        "|---|" + "---:|" * 6,
    ]
    for name in LINEAR:
        before: float | None = None
        for tokens in LENGTHS:
            forward, step = (_measured(name, tokens, part) for part in (FORWARD, TRAIN))
            seconds = forward[0]
            ratio = f"{seconds / before:.2f}" if seconds and before else ""
            lines.append(f"| {name} | {tokens:,} | {_text(forward, ratio)} | {_text(step)} |")
            print(lines[-1], flush=True)
            before = seconds
    return lines


def _measured(name: str, tokens: int, part: str) -> tuple[float | None, float | None, str]:
    """Seconds, peak GiB, and why there are none."""
    (row,) = planned_rows([tokens], [name], peers=False, base=Job("full", 1, parts=(part,)))
    measure([row], 1, limit=LIMIT)
    peak = row.median(f"{part}_mib")
    return row.median(f"{part}_s"), peak / 1024 if peak is not None else None, row.failure


def _text(found: tuple[float | None, float | None, str], *between: str) -> str:
    seconds, gib, failure = found
    if seconds is None:
        return " | ".join([failure or "no result", *between, ""])
    return " | ".join([f"{seconds:,.1f}", *between, f"{gib:,.1f}"])


def step() -> list[str]:
    """A training step of the encoder for every mechanism."""
    lines = [
        "## A training step over 65,536 tokens",
        "",
        "Two layers, d 64, 4 heads, batch 1, dropout 0.1.",
        "",
    ]
    lines += ["| | s | GiB | with checkpointing s | GiB |", "|---|---:|---:|---:|---:|"]
    for name in MECHANISMS:
        plain, less = (_step_in_process(name, checkpointing) for checkpointing in (False, True))
        lines.append(f"| {name} | {plain} | {less} |")
        print(lines[-1], flush=True)
    return lines


def _step_in_process(name: str, checkpointing: bool) -> str:
    if name == "full":
        return "its weights alone would take 64 GiB | "
    command = [sys.executable, __file__, "--step", name, str(int(checkpointing))]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    if ended.returncode:
        return f"failed ({ended.returncode}) | "
    seconds, gib = json.loads(ended.stdout)
    return f"{seconds:,.1f} | {gib:,.2f}"


def _take_step(name: str, checkpointing: bool) -> None:
    torch.manual_seed(0)
    config = TransformerConfig(
        kind="encoder", lookback=TOKENS, attention=name, attention_options=SETTINGS[name],
        gradient_checkpointing=checkpointing,
    )  # fmt: skip
    model = Transformer(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    x = torch.randn(1, TOKENS, config.d_model)
    seconds = []
    for _ in range(2):  # the first one compiles
        started = time.perf_counter()
        model(x)[-1].square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM"))
    print(json.dumps([min(seconds), int(line.split()[1]) / 2**20]))


def main() -> None:
    if sys.argv[1:2] == ["--step"]:
        _take_step(sys.argv[2], sys.argv[3] == "1")
        return
    wanted = sys.argv[1:] or ["million", "step"]
    parts = {"million": million, "step": step}
    lines = ["# Long sequences", "", machine_line(describe_machine())]
    for name in wanted:
        lines += ["", *parts[name]()]
    write_text(RESULT, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
