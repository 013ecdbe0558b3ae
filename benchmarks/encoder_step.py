"""A training step of the encoder beside `nn.TransformerEncoder`'s, paired: both take their turn in every round.

    python benchmarks/encoder_step.py [LENGTH,…]

d 64, 4 heads, 2 layers, d_ff 256, batch 32, one input column, pre-norm, GELU, dropout 0.1 but none on attention
weights, fused AdamW on both sides. The ratio is the median over the rounds of theirs over ours; peak memory is that of
a process of its own for each, above what it held before. Writes benchmarks/results/encoder_step.md.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded, on both sides

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from longtape.benchmarking.machine import describe_machine, machine_line
from longtape.core.files import write_text
from longtape.models.transformer import Transformer, TransformerConfig

RESULT = Path(__file__).parent / "results" / "encoder_step.md"
BATCH, WIDTH, HEADS, LAYERS, HIDDEN, DROPOUT = 32, 64, 4, 2, 256, 0.1
SUBJECTS = {"flash": {}, "bigbird": {"block_size": 32}}  # with all else as it is by default
THEIRS = "nn.TransformerEncoder"
ROUNDS = {512: 15, 2048: 7, 8192: 3}
LONGEST_OF_FLASH = 2048  # beyond it two quadratic sides take minutes a round


class Model(nn.Module):
    """One input column → encoder → the last token → one number."""

    def __init__(self, subject: str, length: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into, self.out = nn.Linear(1, WIDTH), nn.Linear(WIDTH, 1)
        self.encode = _theirs() if subject == THEIRS else _ours(subject, length)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encode(self.into(x))[:, -1])


def _theirs() -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        WIDTH, HEADS, HIDDEN, DROPOUT, "gelu", batch_first=True, norm_first=True
    )
    encoder = nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
    for one in encoder.layers:
        one.self_attn.dropout = 0.0
    return encoder


class _Last(nn.Module):
    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, x: Tensor) -> Tensor:
        return self.transformer(x)[-1]


def _ours(attention: str, length: int) -> nn.Module:
    options = SUBJECTS[attention]
    config = TransformerConfig(
        kind="encoder", lookback=length, attention=attention, attention_options=options,
        d_model=WIDTH, n_heads=HEADS, n_layers=LAYERS, d_ff=HIDDEN, dropout=DROPOUT,
    )  # fmt: skip
    return _Last(Transformer(config))


def step_of(subject: str, length: int) -> Callable[[], None]:
    """One training step on random windows."""
    model = Model(subject, length).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    x, y = torch.randn(BATCH, length, 1), torch.randn(BATCH, 1)

    def step() -> None:
        (model(x) - y).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed(step: Callable[[], None]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def peak_mib(subject: str, length: int) -> float:
    """Of two steps in a process of its own."""
    command = [sys.executable, __file__, "--peak", subject, str(length)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _print_peak(subject: str, length: int) -> None:
    step_of(subject, 64)()  # what is compiled and loaded
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again at what is held now
    before = _status_kib("VmRSS")
    step = step_of(subject, length)
    step()
    step()
    print((_status_kib("VmHWM") - before) / 1024)


def _status_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def rows(length: int) -> list[str]:
    """A line of the table for each of ours at a length."""
    ours = [name for name in SUBJECTS if name != "flash" or length <= LONGEST_OF_FLASH]
    steps = {name: step_of(name, length) for name in (THEIRS, *ours)}
    for step in steps.values():
        step()
    rounds = [{name: timed(step) for name, step in steps.items()} for _ in range(ROUNDS.get(length, 3))]
    theirs, their_peak = statistics.median(one[THEIRS] for one in rounds), peak_mib(THEIRS, length)
    lines = []
    for name in ours:
        ratio = statistics.median(one[THEIRS] / one[name] for one in rounds)
        own = statistics.median(one[name] for one in rounds)
        peaks = f"{peak_mib(name, length):,.0f} | {their_peak:,.0f}"
        lines.append(
            f"| {name} | {length:,} | {1e3 * own:,.0f} | {1e3 * theirs:,.0f} | {ratio:.2f} | {peaks} |"
        )
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    if sys.argv[1:2] == ["--peak"]:
        _print_peak(sys.argv[2], int(sys.argv[3]))
        return
    lengths = [int(text) for text in sys.argv[1].split(",")] if len(sys.argv) > 1 else list(ROUNDS)
    table: list[str] = []
    for length in lengths:
        table += rows(length)
        write_text(RESULT, page(table))


def page(table: list[str]) -> str:
    """The lengths that are done."""
    head = [
        "# A training step of the encoder",
        "",
        machine_line(describe_machine()),
        "",
        f"Batch {BATCH}, d {WIDTH}, {HEADS} heads, {LAYERS} layers, d_ff {HIDDEN}, dropout {DROPOUT}, none on attention"
        " weights; OMP_WAIT_POLICY=PASSIVE. bigbird: block 32. Medians of rounds in which all take their turn.",
        "",
        f"| ours | bars | ms | {THEIRS} ms | times as fast | peak MiB | its peak MiB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    return "\n".join([*head, *table]) + "\n"


if __name__ == "__main__":
    main()
