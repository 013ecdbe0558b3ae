"""BigBird's visible blocks on a GPU beside dense flash attention, in TFLOP/s: python benchmarks/attention_cuda.py.

bf16, 2,048 channels as heads of width 64 and 128, 1k to 128k tokens, blocks of 128: window 3, 3 random, first and last
global. Writes benchmarks/results/attention_cuda.md; to be read against 70 % of the dense rate.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from longtape.attention import build_attention
from longtape.core.files import write_text
from longtape.evaluation.bench_attention import markdown
from longtape.evaluation.machine import describe_machine, machine_line

D_MODEL, BLOCK = 2048, 128
LENGTHS = (1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072)
RESULT = Path(__file__).parent / "results" / "attention_cuda.md"


def milliseconds(run: Callable[[], None]) -> float:
    """Median of 20 calls after 5."""
    for _ in range(5):
        run()
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(20)]
    for start, end in marks:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return sorted(start.elapsed_time(end) for start, end in marks)[10]


def timed(attend: Callable[[Tensor, Tensor, Tensor], Tensor], qkv: list[Tensor]) -> tuple[float, float]:
    """Forward and backward milliseconds."""
    out = attend(*qkv)
    gradient = torch.randn_like(out)

    def forward() -> None:
        with torch.no_grad():
            attend(*qkv)

    def backward() -> None:
        torch.autograd.grad(out, qkv, gradient, retain_graph=True)

    return milliseconds(forward), milliseconds(backward)


def visible_pairs(n: int) -> int:
    """Pairs in visible blocks."""
    blocks = n // BLOCK
    inner = sum(min(blocks, 8 - (i in (1, blocks - 2))) for i in range(1, blocks - 1))
    return (inner + 2 * blocks) * BLOCK**2


def row(width: int, n: int) -> list[str]:
    """TFLOP/s of both: 4·width operations a pair and head forward, 2.5 times as many backward."""
    heads = D_MODEL // width
    layer = build_attention("bigbird", d_model=D_MODEL, n_heads=heads, block_size=BLOCK).cuda().bfloat16()
    shape = (1, heads, n, width)
    qkv = [torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        dense = timed(F.scaled_dot_product_attention, qkv)
    sparse = timed(lambda q, k, v: layer.attend(q, k, v, None), qkv)
    work = 4.0 * D_MODEL / 1e9
    rates = [
        pairs * work * factor / time
        for pairs, times in ((n * n, dense), (visible_pairs(n), sparse))
        for factor, time in zip((1.0, 2.5), times, strict=True)
    ]
    shares = [f"{rates[2 + i] / rates[i]:.0%}" for i in range(2)]
    return [str(width), f"{n:,}", *(f"{rate:,.0f}" for rate in rates), *shares]


def main() -> None:
    """Measure and write the table."""
    if not torch.cuda.is_available():
        sys.exit("torch finds no GPU here")
    header = [
        "head width",
        "tokens",
        "dense forward",
        "dense backward",
        "bigbird forward",
        "bigbird backward",
    ]
    rows = [row(width, n) for width in (64, 128) for n in LENGTHS]
    body = markdown([*header, "share forward", "share backward"], rows)
    write_text(RESULT, f"# Attention on CUDA, TFLOP/s\n\n{machine_line(describe_machine())}\n\n{body}\n")


if __name__ == "__main__":
    main()
