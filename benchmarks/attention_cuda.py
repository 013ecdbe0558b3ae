"""BigBird on a GPU beside dense flash attention: python benchmarks/attention_cuda.py [--out DIR] [--minutes 8].

bf16, 2,048 channels as heads of width 64 and 128, 16k to 262k tokens, blocks of 128: window 3, 3 random, first and last
global. TFLOP/s on visible pairs, forward and backward, beside the dense rate of PyTorch's flash attention (asked: 70 %
of it) and of cuDNN's; a layer of 1,048,576 tokens; the kernel's tiles. Rows are printed as they are measured. Writes
DIR/attention_cuda.md. Needs torch alone beside longtape.attention.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from longtape.attention import Attention, build_attention
from longtape.attention.cuda import flex
from longtape.benchmarking.machine import describe_machine, machine_line
from longtape.core.files import write_text

D_MODEL, BLOCK = 2048, 128
WIDTHS = (64, 128)
LENGTHS = (16_384, 32_768, 65_536, 131_072, 262_144)
MILLION = 1 << 20
RESULTS = Path(__file__).parent / "results"
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

# Tiles to compare, by head width. Forward: BLOCK_M, BLOCK_N, stages, warps; backward: M1, N1, M2, N2, stages, warps.
TILES = {
    64: [
        ((128, 64, 3, 4), (64, 64, 64, 64, 3, 4)),
        ((128, 64, 2, 4), (64, 64, 64, 64, 2, 4)),
        ((128, 128, 2, 8), (64, 128, 128, 64, 2, 8)),
        ((64, 64, 3, 4), (32, 128, 128, 32, 3, 4)),
    ],
    128: [
        ((128, 64, 2, 8), (64, 64, 64, 64, 3, 4)),
        ((128, 64, 3, 4), (64, 64, 64, 64, 2, 4)),
        ((128, 128, 2, 8), (64, 128, 128, 64, 2, 8)),
        ((64, 64, 3, 4), (32, 64, 64, 32, 3, 4)),
    ],
}


class Report:
    """Tables that are printed and written row by row."""

    def __init__(self, path: Path, minutes: float) -> None:
        self.path, self.stop = path, time.monotonic() + 60 * minutes
        self.parts = [f"# Attention on CUDA\n\n{machine_line(describe_machine())}"]
        print(self.parts[0], flush=True)

    def table(self, title: str, header: Sequence[str]) -> None:
        """Begin one."""
        self.add(f"\n## {title}\n\n| {' | '.join(header)} |\n| {' | '.join(['---:'] * len(header))} |")

    def row(self, cells: Sequence[str]) -> None:
        """Add one to the last table."""
        self.add(f"| {' | '.join(cells)} |")

    def add(self, text: str) -> None:
        """Print it, and write the page with it."""
        print(text, flush=True)
        self.parts.append(text)
        write_text(self.path, "\n".join(self.parts) + "\n")

    def late(self, seconds: float) -> bool:
        """Whether something that takes so long would end too late; says so."""
        if time.monotonic() + seconds < self.stop:
            return False
        self.add("| no time is left for further rows |")
        return True


def milliseconds(run: Callable[[], Callable[[], object]], calls: int) -> float:
    """Median time of what `run` returns: what it does itself, before each call, is not counted."""
    times = []
    for _ in range(calls + 1):
        timed = run()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        timed()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[1:])


def timed(attend: Attend, qkv: list[Tensor], calls: int) -> tuple[float, float]:
    """Forward (without a graph) and backward milliseconds."""

    def forward() -> Callable[[], object]:
        def call() -> None:
            with torch.no_grad():
                attend(*qkv)

        return call

    gradient = torch.randn_like(qkv[0])

    def backward() -> Callable[[], object]:
        out = attend(*qkv)
        return lambda: torch.autograd.grad(out, qkv, gradient)

    return milliseconds(forward, calls), milliseconds(backward, calls)


def heads_of(width: int, n: int) -> list[Tensor]:
    """q, k, v [1, H, N, width], laid out by tokens as projections give them."""
    shape = (1, n, D_MODEL // width, width)
    generator = torch.Generator("cuda").manual_seed(0)
    made = (torch.randn(shape, device="cuda", dtype=torch.bfloat16, generator=generator) for _ in range(3))
    return [x.transpose(1, 2).requires_grad_() for x in made]


def bigbird(width: int, d_model: int = D_MODEL) -> Attention:
    """The layer that is measured."""
    layer = build_attention("bigbird", d_model=d_model, n_heads=d_model // width, block_size=BLOCK)
    return layer.cuda().bfloat16()


def rates(pairs: int, times: tuple[float, float]) -> tuple[float, float]:
    """TFLOP/s: 4·width operations a pair and head forward, 2.5 times as many backward."""
    work = 4.0 * D_MODEL * pairs / 1e9
    return work / times[0], 2.5 * work / times[1]


def dense_rates(backend: SDPBackend, qkv: list[Tensor], n: int) -> tuple[float, float]:
    """Of PyTorch's dense attention; 0 where it has no such kernel."""
    with sdpa_kernel(backend):
        try:
            F.scaled_dot_product_attention(*(x[:, :, :BLOCK] for x in qkv))
        except RuntimeError:
            return 0.0, 0.0
        return rates(n * n, timed(F.scaled_dot_product_attention, qkv, 5 if n <= 65_536 else 2))


def sparse_rates(layer: Any, qkv: list[Tensor], n: int) -> tuple[float, float]:
    """Of bigbird, on visible pairs."""
    pairs = int(layer.pattern.degrees(n).sum())
    return rates(pairs, timed(lambda q, k, v: layer.attend(q, k, v, None), qkv, 10))


def measure_lengths(report: Report) -> None:
    """BigBird and dense attention at every length."""
    names = ["flash", "cuDNN", "bigbird"]
    header = ["head width", "tokens", *(f"{name} {way}" for name in names for way in ("forward", "backward"))]
    report.table("TFLOP/s on visible pairs", [*header, "share of flash forward", "backward", "first call, s"])
    for n in LENGTHS:  # all widths of a length before the next: the longest come last
        for width in WIDTHS:
            if report.late(45 if n > 131_072 else 15):
                return
            qkv, layer = heads_of(width, n), bigbird(width)
            start = time.monotonic()
            layer.attend(*qkv, None).sum().backward()
            torch.cuda.synchronize()
            first = time.monotonic() - start
            sparse = sparse_rates(layer, qkv, n)
            flash = dense_rates(SDPBackend.FLASH_ATTENTION, qkv, n)
            cudnn = dense_rates(SDPBackend.CUDNN_ATTENTION, qkv, n) if n <= 131_072 else (0.0, 0.0)
            cells = [f"{rate:,.0f}" if rate else "–" for rate in (*flash, *cudnn, *sparse)]
            shares = [
                f"{mine / theirs:.0%}" if theirs else "–" for mine, theirs in zip(sparse, flash, strict=True)
            ]
            report.row([str(width), f"{n:,}", *cells, *shares, f"{first:.0f}"])


def measure_million(report: Report) -> None:
    """A whole layer at 1,048,576 tokens: forward, and forward with backward."""
    header = ["channels", "head width", "what", "ms", "peak GiB", "tokens/s"]
    report.table("A bigbird layer at 1,048,576 tokens", header)
    layer = bigbird(64, D_MODEL // 2)

    def forward(x: Tensor) -> None:
        with torch.no_grad():
            layer(x)

    def step(x: Tensor) -> None:
        layer(x).sum().backward()

    for what, run in (("forward", forward), ("forward and backward", step)):
        if report.late(60):
            return
        run(torch.randn(1, LENGTHS[0], D_MODEL // 2, device="cuda", dtype=torch.bfloat16))  # compiles
        x = torch.randn(1, MILLION, D_MODEL // 2, device="cuda", dtype=torch.bfloat16)
        torch.cuda.reset_peak_memory_stats()
        ms = milliseconds(lambda run=run, x=x: lambda: run(x), 3)
        peak = torch.cuda.max_memory_allocated() / 2**30
        report.row(
            [f"{D_MODEL // 2:,}", "64", what, f"{ms:,.0f}", f"{peak:.1f}", f"{1e3 * MILLION / ms:,.0f}"]
        )


def measure_tiles(report: Report, n: int = 65_536) -> None:
    """Which tiles suit lists as short as these; the first row is what `longtape` takes."""
    header = ["head width", "tiles", "forward", "backward", "first call, s"]
    report.table(f"Tiles of the kernel at {n:,} tokens, TFLOP/s", header)
    for width in WIDTHS:
        choices: list[tuple[str, str, dict[str, Any]]] = [
            (flex.MODE, flex.MODE, flex.TILES),
            ("default", "default", {}),
            *((f"{fwd} {bwd}", "default", _named(fwd, bwd)) for fwd, bwd in TILES[width]),
            ("default, TMA", "default", {"USE_TMA": True}),
        ]
        qkv, layer = heads_of(width, n), bigbird(width)
        for name, mode, tiles in choices:
            if report.late(25):
                return
            with _tiles(mode, tiles):
                start = time.monotonic()
                try:
                    layer.attend(*qkv, None).sum().backward()
                    torch.cuda.synchronize()
                    first = time.monotonic() - start
                    cells = [f"{rate:,.0f}" for rate in sparse_rates(layer, qkv, n)]
                except Exception as error:  # tiles that do not fit on this card
                    first, cells = time.monotonic() - start, [type(error).__name__, "–"]
            report.row([str(width), name, *cells, f"{first:.0f}"])


def _named(fwd: Sequence[int], bwd: Sequence[int]) -> dict[str, int]:
    names = ["fwd_BLOCK_M", "fwd_BLOCK_N", "fwd_num_stages", "fwd_num_warps"]
    names += [
        "bwd_BLOCK_M1",
        "bwd_BLOCK_N1",
        "bwd_BLOCK_M2",
        "bwd_BLOCK_N2",
        "bwd_num_stages",
        "bwd_num_warps",
    ]
    return dict(zip(names, (*fwd, *bwd), strict=True))


@contextmanager
def _tiles(mode: str, tiles: dict[str, Any]) -> Iterator[None]:
    before = flex.MODE, flex.TILES
    flex.MODE, flex.TILES = mode, tiles
    try:
        yield
    finally:
        flex.MODE, flex.TILES = before


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--minutes", type=float, default=8.0, help="no row is begun that would end later")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("torch finds no GPU here")
    report = Report(arguments.out / "attention_cuda.md", arguments.minutes)
    for measure in (measure_lengths, measure_million, measure_tiles):
        measure(report)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
