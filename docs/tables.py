"""Fill the tables of the pages that follow from registries: python docs/tables.py."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import longtape
from longtape.backtest.signals import SIGNALS, signal_options
from longtape.core.files import write_text
from longtape.core.markdown import markdown_table
from longtape.features.target_kinds import KINDS
from longtape.market.sources import SOURCES
from longtape.models.heads import HEADS
from longtape.models.registry import MODELS
from longtape.report.glossary import GLOSSARY

HERE = Path(__file__).parent
NAMES = ("model_guide", "backtest", "extend", "glossary", "bigbird", "results", "api/longtape")
PAGES = [HERE / f"{name}.md" for name in NAMES]
RESULTS = HERE.parent / "benchmarks" / "results"


def said(thing: Any) -> str:
    """The first paragraph of a docstring; of a network, whose docstring gives shapes, that of its module."""
    text = inspect.getdoc(thing) or ""
    if text.startswith("["):
        text = inspect.getdoc(inspect.getmodule(thing)) or ""
    return " ".join(text.split("\n\n")[0].split())


def models() -> str:
    rows = []
    for name in MODELS:
        model = MODELS.load(name)
        learnt = "gradients" if model.Config.trains else "closed\u00a0form"
        rows.append([f"`{name}`", learnt, said(model)])
    return markdown_table(["`model.kind`", "learnt by", "what it is"], rows, numbers=False)


def heads() -> str:
    rows = []
    for name in HEADS:
        kinds = [f"`{kind.name}`" for kind in KINDS.values() if name in kind.heads]
        rows.append([f"`{name}`", said(HEADS.load(name)), ", ".join(kinds)])
    return markdown_table(["head", "what it gives, and its loss", "kinds of target"], rows, numbers=False)


def kinds() -> str:
    rows = []
    for kind in KINDS.values():
        listed = [", ".join(f"`{name}`" for name in names) for names in (kind.heads[:1], kind.baselines)]
        rows.append([f"`{kind.name}`", kind.unit, *listed, kind.headline])
    head = ["kind of target", "unit", "usual head", "baselines beside it", "score of the verdict"]
    return markdown_table(head, rows, numbers=False)


def signals() -> str:
    rows = []
    for name in SIGNALS:
        options = [
            key if value is None else f"{key}={value:g}" for key, value in signal_options(name).items()
        ]
        rows.append([f"`{name}`", ", ".join(f"`{one}`" for one in options) or "–", said(SIGNALS.load(name))])
    return markdown_table(["signal", "options", "weights"], rows, numbers=False)


def registries() -> str:
    found = {"model": MODELS, "head": HEADS, "signal": SIGNALS, "source": SOURCES}
    rows = [[kind, ", ".join(f"`{name}`" for name in names)] for kind, names in found.items()]
    return markdown_table(["kind", "there are"], rows, numbers=False)


def glossary() -> str:
    return "\n\n".join(f"{word}\n: {meaning}" for word, meaning in sorted(GLOSSARY.items(), key=_folded))


def peers() -> str:
    """Every library beside longtape, as measured."""
    head = ["mechanism", "beside", "forward", "forward and backward", "memory of theirs"]
    rows = []
    for mechanism, cells in _measured():
        if cells[5].endswith("×"):
            rows.append(
                [f"`{mechanism}`", cells[0], *(f"{x} faster" for x in cells[5:7]), f"{float(cells[7]):.0%}"]
            )
    return markdown_table(head, rows)


def accelerated() -> str:
    """The layers of BigBird and Longformer, as measured."""
    head = ["at 16,384 tokens", "forward ms", "forward and backward ms", "memory MiB"]
    ours = {"bigbird": "longtape's `bigbird`", "longformer": "longtape's `longformer`"}
    wanted = ("bigbird", "transformers BigBird", "longformer", "transformers Longformer")
    found = [cells for _, cells in _measured() if cells[0] in wanted]
    return markdown_table(head, [[ours.get(cells[0], cells[0]), *cells[2:5]] for cells in found])


def _measured() -> list[tuple[str, list[str]]]:
    """Rows of the tables beside peers in the results of record, each under its mechanism."""
    part = (RESULTS / "attention.md").read_text("utf-8").split("## Beside peers")[1].split("\n## ")[0]
    found = []
    for section in part.split("\n### ")[1:]:
        rows = [line.strip("| ").split("|") for line in section.splitlines() if line.startswith("| ")]
        found += [(section.split("\n")[0], [cell.strip() for cell in row] + [""] * 3) for row in rows[2:]]
    return found


def accuracy() -> str:
    """Of each forecast of the main job: its headline score beside that of the best baseline."""
    text = (RESULTS / "main_job.md").read_text("utf-8")
    rows = []
    for target, table in re.findall(r"^Forecast of (\S+ \S+)\n(.*?)\n\n", text, re.DOTALL | re.MULTILINE):
        head, _, own, *others = (re.split(r"\s{2,}", line.strip()) for line in table.splitlines())
        score, choose = ("QLIKE", min) if "QLIKE" in head else ("R² against zero", max)
        at = head.index(score)
        best = choose(others, key=lambda row, at=at: float(row[at]))
        rows.append([target, score, own[at], f"{best[at]} ({best[0]})", best[-1]])
    head = ["forecast", "score", "longtape", "best of the baselines", "p of the difference"]
    return markdown_table(head, rows)


def top() -> str:
    rows = [[f"`lt.{name}`", f"`{where}`"] for name, where in longtape._NAMES.items()]
    return markdown_table(["name", "lives in"], rows, numbers=False)


def _folded(entry: tuple[str, str]) -> str:
    return entry[0].lower()


TABLES: dict[str, Callable[[], str]] = {
    "models": models,
    "heads": heads,
    "kinds": kinds,
    "signals": signals,
    "registries": registries,
    "glossary": glossary,
    "accuracy": accuracy,
    "peers": peers,
    "accelerated": accelerated,
    "top": top,
}


def fill(text: str) -> str:
    """The page with every generated part made anew."""
    for name, make in TABLES.items():
        part = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        text = part.sub(lambda found, make=make: f"{found[1]}{make()}\n{found[2]}", text)
    return text


if __name__ == "__main__":
    for page in PAGES:
        write_text(page, fill(page.read_text(encoding="utf-8")))
