"""Fill the generated tables of docs/attention.md: python benchmarks/attention_docs.py."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

from attention import load, short_part  # the script beside this one
from longtape.attention import MECHANISMS, AttentionConfig, mechanism_class
from longtape.core.files import write_text
from longtape.core.markdown import markdown_table

PAGE = Path(__file__).parents[1] / "docs" / "attention.md"
COMMON = {field.name for field in dataclasses.fields(AttentionConfig)}
ABILITIES = {
    "exact": "exact",
    "causal": "`causal=True`",
    "cross": "cross-attention",
    "weights": "weights",
    "fixed_length": "built for one length",
    "fixed_pattern": "fixed pattern",
}


def capabilities() -> str:
    """One row a mechanism, from what its class declares."""
    rows = []
    for name in MECHANISMS:
        declared = dataclasses.asdict(mechanism_class(name).capabilities)
        rows.append([f"`{name}`", *("yes" if declared[ability] else "–" for ability in ABILITIES)])
    return markdown_table(["mechanism", *ABILITIES.values()], rows)


def options() -> str:
    """The options beside the common ones, with their defaults."""
    rows = []
    for name in MECHANISMS:
        own = [f for f in dataclasses.fields(mechanism_class(name).Config) if f.name not in COMMON]
        rows.append([f"`{name}`", ", ".join(f"`{f.name}={f.default!r}`" for f in own) or "–"])
    return markdown_table(["mechanism", "options"], rows, numbers=False)


TABLES: dict[str, Callable[[], str]] = {
    "capabilities": capabilities,
    "options": options,
    "crossover": lambda: short_part(load()),
}


def fill(text: str) -> str:
    """The page with every generated part made anew."""
    for name, make in TABLES.items():
        part = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        text = part.sub(lambda found, make=make: f"{found[1]}{make()}\n{found[2]}", text)
    return text


if __name__ == "__main__":
    write_text(PAGE, fill(PAGE.read_text(encoding="utf-8")))
