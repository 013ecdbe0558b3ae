"""Attention results of record: python benchmarks/attention.py SECTION …, or `report` to write the page alone.

Each section adds its rows to benchmarks/results/attention.json; run the sections one after another on an idle machine.
"""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from longtape.benchmarking.attention import (
    REUSE_LARGE_BLOCKS,
    SETTINGS,
    Row,
    measure,
    milliseconds,
    number,
    plot,
    table,
)
from longtape.benchmarking.attention_peers import PEERS
from longtape.benchmarking.attention_worker import ATTEND, BUILD, FORWARD, TRAIN, Job
from longtape.benchmarking.machine import describe_machine, machine_line
from longtape.core.files import read_json, write_json, write_text
from longtape.core.markdown import markdown_table

RESULTS = Path(__file__).parent / "results"
SPARSE = ("local", "longformer", "bigbird", "linformer", "performer", "reformer", "probsparse")
TOKENS = {"block_size": 1, "window_size": 7, "n_random": 3, "n_global": 2}
CROSSOVER_LENGTHS = (128, 512, 1024, 2048, 4096, 8192)
D_MODEL = 256


def ours(name: str, tokens: int, *, label: str = "", options: dict | None = None, **job) -> Row:
    """A row of one of longtape's mechanisms."""
    options = SETTINGS[name] if options is None else options
    return Row(Job(name, tokens, options=options, **{"seconds": 0.6, **job}), label or name)


def peer(name: str, tokens: int, *, label: str = "", **job) -> Row:
    """A row of a peer."""
    return Row(Job(name, tokens, is_peer=True, **{"seconds": 0.6, **job}), label or name)


# --- what is measured ---


def against_peers(name: str) -> list[Row]:
    """One mechanism beside everybody who does the same, and bigbird beside exact attention too, at 16,384 tokens."""
    rows = [ours(name, 16_384)]
    rows += [peer(other, 16_384) for other, p in PEERS.items() if p.mechanism == name and fits(other)]
    rows += [peer("SDPA", 16_384)] if name == "bigbird" else []
    measure(rows, 3)
    return rows


def fits(name: str) -> bool:
    return not name.startswith(("masked", "dense"))


def scaling(name: str, environment: dict[str, str]) -> list[Row]:
    """16,384 and 65,536 tokens."""
    rows = [ours(name, n) for n in (16_384, 65_536)]
    measure(rows, 1, environment=environment)
    return rows


def long(name: str) -> list[Row]:
    """204,800 tokens: 100 assets with 2,048 bars each."""
    rows = [ours(name, 204_800, seconds=0.1)]
    measure(rows, 1)
    return rows


def short(length: int) -> list[Row]:
    """All mechanisms beside flash at one short length."""
    rows = [ours(name, length) for name in ("flash", *SPARSE)]
    measure(rows, 2)
    return rows


def precision() -> list[Row]:
    """float32 and bf16 at 16,384 tokens."""
    rows = [
        make(dtype=dtype, label=f"{label} {dtype}", parts=(FORWARD, TRAIN))
        for dtype in ("float32", "bfloat16")
        for label, make in (
            ("bigbird", lambda **job: ours("bigbird", 16_384, **job)),
            ("SDPA", lambda **job: peer("SDPA", 16_384, **job)),
        )
    ]
    measure(rows, 2)
    return rows


def rate() -> list[Row]:
    """Attention without projections, and a whole training step, beside dense SDPA."""
    rows = [peer("SDPA", 16_384, parts=(ATTEND,))]
    rows += [ours(name, 16_384, parts=(ATTEND, TRAIN)) for name in ("bigbird", "local", "longformer")]
    measure(rows, 3)
    return rows


def build() -> list[Row]:
    """Layer and pattern for 262,144 tokens."""
    rows = [ours(name, 262_144, parts=(BUILD,)) for name in ("local", "longformer", "bigbird")]
    rows += [ours("bigbird", 262_144, label="bigbird by tokens", options=TOKENS, parts=(BUILD,))]
    measure(rows, 3)
    return rows


def by_tokens() -> list[Row]:
    """Token granularity: the same pattern as a dense mask, and at lengths that a mask cannot reach."""
    rows = [ours("bigbird", n, label="bigbird by tokens", options=TOKENS) for n in (10_000, 20_000, 131_072)]
    rows += [peer(name, 10_000, parts=(FORWARD,)) for name in ("masked softmax", "masked SDPA")]
    measure(rows, 2)
    return rows


SECTIONS: dict[str, Callable[[], list[Row]]] = {
    **{
        f"peers-{name}": lambda name=name: against_peers(name)
        for name in ("flash", "bigbird", "longformer", "linformer", "performer", "reformer", "probsparse")
    },
    **{f"scaling-{name}": lambda name=name: scaling(name, REUSE_LARGE_BLOCKS) for name in SPARSE},
    **{f"plain-{name}": lambda name=name: scaling(name, {}) for name in SPARSE},
    **{f"long-{name}": lambda name=name: long(name) for name in SPARSE},
    **{f"short-{length}": lambda length=length: short(length) for length in CROSSOVER_LENGTHS},
    "precision": precision,
    "rate": rate,
    "build": build,
    "tokens": by_tokens,
}


# --- what is written ---


def visible_flops(name: str, n: int) -> float:
    """Floating-point operations of the visible 64 × 64 blocks, forward: two products of 2·D a pair and head."""
    b, blocks = 64, n // 64
    if name == "bigbird":
        pairs = (
            (blocks - 2) * 8 + 2 * blocks - 4
        )  # window 3 + random 3 + two global; rows 1 and −2 see one less
    else:
        reach = SETTINGS[name]["window_size"] // 2 // b
        pairs = sum(min(blocks, i + reach + 1) - max(0, i - reach) for i in range(blocks))
        pairs += (
            2 * (blocks - reach - 1) if name == "longformer" else 0
        )  # one global block: its column and row
    return 4.0 * pairs * b * b * D_MODEL


def dense_flops(n: int) -> float:
    return 4.0 * n * n * D_MODEL


def step_flops(name: str, n: int) -> float:
    """Forward and backward of the whole layer: three times the forward's products, four projections included."""
    return 3 * (visible_flops(name, n) + 8.0 * n * D_MODEL**2)


def load() -> dict:
    path = RESULTS / "attention.json"
    return read_json(path) if path.exists() else {"machine": describe_machine(), "sections": {}}


def rows_of(results: dict, prefix: str) -> list[Row]:
    """Rows of all sections whose name starts so, as they were measured."""
    found = []
    for section, rows in results["sections"].items():
        if section.startswith(prefix):
            for values in rows:
                values = dict(values)
                label, rounds, failure = (values.pop(key) for key in ("label", "rounds", "failure"))
                found.append(Row(Job(**{**values, "parts": tuple(values["parts"])}), label, rounds, failure))
    return found


def first(rows: Iterable[Row], label: str, tokens: int) -> Row | None:
    return next((row for row in rows if row.label == label and row.job.tokens == tokens), None)


def peers_part(results: dict) -> str:
    parts = []
    for section in results["sections"]:
        if section.startswith("peers-"):
            rows = rows_of(results, section)
            parts.append(f"### {section.removeprefix('peers-')}\n\n{layers_table(rows)}")
    return "\n\n".join(parts)


def layers_table(rows: Sequence[Row]) -> str:
    """The first row beside the others: seconds, memory, and how many times it is faster and smaller."""
    mine = rows[0]
    lines = []
    for row in rows:
        times = [milliseconds(row.median(f"{part}_s")) for part in (FORWARD, TRAIN)]
        gains = [number(mine.ratio(row, f"{part}_s"), ".2f", "×") for part in (FORWARD, TRAIN)]
        share = number(row.ratio(mine, "train_mib"), ".3f")
        own = row is mine
        settings = PEERS[row.label].settings if row.job.is_peer else settings_of(row)
        memory = number(row.median("train_mib"))
        lines.append([row.label, settings, *times, memory, *(["", "", ""] if own else [*gains, share])])
    header = ["layer", "settings", "forward ms", "fwd+bwd ms", "fwd+bwd MiB"]
    return markdown_table(
        [*header, "ours faster forward", "ours faster fwd+bwd", "our memory of theirs"], lines
    )


def settings_of(row: Row) -> str:
    return ", ".join(f"{name} {value}" for name, value in row.job.options.items()) or "–"


def scaling_part(results: dict, prefix: str) -> str:
    rows, lines = rows_of(results, prefix), []
    for name in SPARSE:
        small, large = first(rows, name, 16_384), first(rows, name, 65_536)
        if small and large:
            facts = ("forward_s", "train_s", "forward_mib", "train_mib")
            growth = [
                number(large.ratio(small, fact) and 1 / large.ratio(small, fact), ".2f") for fact in facts
            ]
            lines.append(
                [
                    name,
                    milliseconds(small.median("forward_s")),
                    milliseconds(large.median("forward_s")),
                    *growth,
                ]
            )
    header = ["mechanism", "forward ms at 16,384", "at 65,536", "× time forward", "× time fwd+bwd"]
    return markdown_table([*header, "× memory forward", "× memory fwd+bwd"], lines) if lines else ""


def crossover(rows: Sequence[Row], name: str, fact: str) -> str:
    """Length at which the mechanism becomes faster than flash, between measured lengths on a log scale."""
    before = None
    for n in CROSSOVER_LENGTHS:
        mine, flash = first(rows, name, n), first(rows, "flash", n)
        gain = mine.ratio(flash, fact) if mine and flash else None
        if gain is None:
            continue
        if gain >= 1:
            if before is None:
                return f"below {n:,}"
            at = before[0] * (n / before[0]) ** (
                -math.log(before[1]) / (math.log(gain) - math.log(before[1]))
            )
            return f"{round(at, -2):,.0f}"
        before = (n, gain)
    return f"above {before[0]:,}" if before else "–"


def short_part(results: dict) -> str:
    rows, lines = rows_of(results, "short-"), []
    for name in SPARSE:
        mine, flash = first(rows, name, 512), first(rows, "flash", 512)
        slower = mine.ratio(flash, "forward_s") if mine and flash else None
        if not slower:
            continue
        ends = [crossover(rows, name, fact) for fact in ("forward_s", "train_s")]
        lines.append([name, number(1 / slower, ".2f", "×"), *ends])
    return markdown_table(
        ["mechanism", "forward time of flash's at 512", "faster than flash from, forward", "fwd+bwd"], lines
    )


def rate_part(results: dict) -> str:
    rows = rows_of(results, "rate")
    dense = first(rows, "SDPA", 16_384)
    if dense is None:
        return ""
    lines = []
    for name in ("bigbird", "local", "longformer"):
        row = first(rows, name, 16_384)
        ratio = row.ratio(dense, "attend_s") if row else None
        share = ratio and ratio * visible_flops(name, 16_384) / dense_flops(16_384)
        pairs = zip(row.rounds, dense.rounds, strict=False) if row else ()
        steps = sorted(
            d["attend_s"] / dense_flops(16_384) * step_flops(name, 16_384) / r["train_s"] for r, d in pairs
        )
        lines.append(
            [
                name,
                milliseconds(row.median("attend_s") if row else None),
                number(share, ".0%"),
                number(steps[len(steps) // 2] if steps else None, ".0%"),
            ]
        )
    gflops = dense_flops(16_384) / dense.median("attend_s") / 1e9
    head = f"Dense SDPA: {milliseconds(dense.median('attend_s'))} ms, {gflops:,.0f} GFLOP/s.\n\n"
    header = [
        "mechanism",
        "attention alone ms",
        "of dense SDPA's FLOP rate",
        "training step, of the same rate",
    ]
    return head + markdown_table(header, lines)


def build_part(results: dict) -> str:
    lines = [
        [row.label, milliseconds(row.median("build_s")), number(row.median("build_mib"))]
        for row in rows_of(results, "build")
    ]
    return markdown_table(["pattern for 262,144 tokens", "ms", "extra MiB"], lines)


def plain(results: dict, prefix: str) -> str:
    rows = rows_of(results, prefix)
    return table(rows, gains=False) if rows else ""


def chapters(results: dict) -> dict[str, str]:
    """Heading → table."""
    environment = ", ".join(f"`{name}={value}`" for name, value in REUSE_LARGE_BLOCKS.items())
    return {
        "Beside peers, 16,384 tokens": peers_part(results),
        f"From 16,384 to 65,536 tokens, with {environment} for both": scaling_part(results, "scaling-"),
        "The same with the allocator as it comes": scaling_part(results, "plain-"),
        "204,800 tokens": plain(results, "long-"),
        "Short sequences and crossover": short_part(results),
        "float32 and bf16, 16,384 tokens": plain(results, "precision"),
        "FLOP rate, 16,384 tokens": rate_part(results),
        "Building a pattern": build_part(results),
        "Token granularity: window 7, 3 random, 2 global": plain(results, "tokens"),
    }


def report(results: dict) -> str:
    """The page."""
    method = (
        "float32, batch 1, d_model 256, 8 heads, whole layers with projections unless said otherwise. Each measurement "
        "runs in a process of its own, the subjects in turn; times are medians, ratios medians over the rounds; memory "
        "is the extra peak of the process."
    )
    parts = [f"## {heading}\n\n{text}" for heading, text in chapters(results).items() if text]
    head = ["# Attention: results of record", machine_line(results["machine"]) + ".", method]
    return "\n\n".join([*head, *filter(None, [results.get("remarks")]), *parts]) + "\n"


def draw(results: dict) -> None:
    """Peers as bars at 16,384 tokens, mechanisms as lines over the short lengths."""
    beside = {row.label: row for row in rows_of(results, "peers-")}
    for name, rows in (
        ("attention_peers", list(beside.values())),
        ("attention_lengths", rows_of(results, "short-")),
    ):
        if rows:
            plot(rows, RESULTS / f"{name}.png")


def main(sections: Sequence[str]) -> None:
    """Measure the named sections, then write the page."""
    for section in sections:
        results = load()
        results["sections"][section] = [row.to_dict() for row in SECTIONS[section]()]
        results["machine"] = describe_machine()
        write_json(RESULTS / "attention.json", results)
    write_text(RESULTS / "attention.md", report(load()))
    draw(load())


if __name__ == "__main__":
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # so that a stopped run stops the process it started
    main([name for name in sys.argv[1:] if name != "report"])
