"""Fill the tables of the pages that follow from registries: python docs/tables.py."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from longtape.backtest.signals import SIGNALS, signal_options
from longtape.core.files import write_text
from longtape.core.markdown import markdown_table
from longtape.features.target_kinds import KINDS
from longtape.market.sources import SOURCES
from longtape.models.heads import HEADS
from longtape.models.registry import MODELS
from longtape.report.glossary import GLOSSARY

HERE = Path(__file__).parent
PAGES = [HERE / name for name in ("model_guide.md", "backtest.md", "extend.md", "glossary.md")]


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


def _folded(entry: tuple[str, str]) -> str:
    return entry[0].lower()


TABLES: dict[str, Callable[[], str]] = {
    "models": models,
    "heads": heads,
    "kinds": kinds,
    "signals": signals,
    "registries": registries,
    "glossary": glossary,
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
