"""docs/features.md, written from the registry: `python -m longtape.features.document docs/features.md`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longtape.core.clock import ALWAYS_OPEN, HOUR, Interval, to_milliseconds
from longtape.core.files import write_text
from longtape.core.markdown import markdown_table
from longtape.features.catalogue import FAMILIES, features, targets
from longtape.features.registry import Spec
from longtape.features.table import Table

HEAD = """# Features and targets

Written from the registry by `python -m longtape.features.document docs/features.md`.

A feature is written as an expression: a name, with its arguments in brackets where the defaults are not meant.
Where an argument is called `x` or `y`, a column of the bars or another expression stands: `zscore(close, 100)`,
`zscore(volatility(20), 100)`. The name of a column alone is the column itself.

Two prefixes change what an expression is computed on: `of("ETHUSDT").log_return` reads another symbol on the same
clock, `resample("4h").momentum(20)` bars of a longer interval, of which only those that have closed are seen. They
combine: `of("ETHUSDT").resample("1d").rsi(14)`.

n counts bars, the newest included. A value at the close of bar t depends on bars up to t alone, bit for bit. The
warm-up is the number of bars before the first value; after it, no feature depends on where the data begin by more
than 1e-6 of its own deviation. The column "warm-up" gives it with the defaults, at worst, on hourly bars of a 24/7
market; + stands before what comes on top of the warm-up of the arguments. Nothing is annualised.
"""
TARGETS_HEAD = """## Targets

Decided at the close of bar t; a label that is not yet known is NaN, and its end lies past the data.
"""


def document() -> str:
    """The whole page."""
    parts = [HEAD]
    for family in FAMILIES:
        members = [spec for spec in features().values() if spec.family == family]
        parts += [
            f"## {family.replace('_', ' ').capitalize()}\n",
            _table(members, [_warm_up(s) for s in members]),
        ]
    return "\n".join([*parts, TARGETS_HEAD, _table(list(targets().values()), None)])


def _table(specs: Sequence[Spec], warm_ups: Sequence[str] | None) -> str:
    head = ["written", "what it is", "formula", "columns", *(["warm-up"] if warm_ups else []), "source"]
    rows = []
    for i, spec in enumerate(specs):
        names = spec.output_names(**_defaults(spec))
        outputs = f" Columns: {', '.join(names)}." if names else ""
        cells = [f"`{spec.usage}`", spec.description + outputs, spec.formula, ", ".join(spec.needs) or "–"]
        rows.append([*cells, *([warm_ups[i]] if warm_ups else []), spec.source])
    return markdown_table(head, rows, numbers=False) + "\n"


def _warm_up(spec: Spec) -> str:
    series = any(p.annotation in ("Series", "CrossSection") for p in spec.parameters)
    return ("+" if series else "") + f"{spec.warm_up(_hourly_bars(), **_defaults(spec))}"


def _defaults(spec: Spec) -> dict[str, Any]:
    return {p.name: None if p.default is p.empty else p.default for p in spec.parameters}


def _hourly_bars() -> Table:
    """A leap year of hours from a midnight on: the most bars that a day, a week or a month can hold."""
    times = to_milliseconds("2024-01-01") + HOUR * np.arange(366 * 24)
    return Table("", Interval.parse("1h"), ALWAYS_OPEN, times, times + HOUR, {})


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), document())
