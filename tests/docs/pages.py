"""What the pages of the documentation hold: code, command lines, links, names of files."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for place in ("", "docs/**/", "benchmarks/results/", "examples/")
    for path in ROOT.glob(f"{place}*.md")
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"^(?:tests|benchmarks|examples|docs|src)/[\w./]+\.(?:py|md|yaml|png|json)(?:::\w+)?$")


@dataclass(frozen=True)
class Command:
    """A line `longtape …` of a page. A whole one stands in a block of its own; one in a sentence may be cut short."""

    words: tuple[str, ...]
    whole: bool

    def __str__(self) -> str:
        return " ".join(self.words)


def text(name: str) -> str:
    """A page."""
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    """The blocks of one language, in order."""
    return [body for found, body in FENCE.findall(text(name)) if found == language]


def prose(name: str) -> str:
    """A page without its blocks."""
    return FENCE.sub("", text(name))


def commands(name: str) -> Iterator[Command]:
    """Every command line of the page; what stands behind three spaces or `#` is a remark."""
    for language, body in FENCE.findall(text(name)):
        if language in ("", "sh"):
            lines = body.replace("\\\n", " ").splitlines()
            yield from (Command(words, True) for line in lines if (words := _words(line)))
    for code in CODE.findall(prose(name)):
        if words := _words(code):
            yield Command(words, False)


def _words(line: str) -> tuple[str, ...]:
    line = re.split(r"\s{3,}", re.sub(r"^torchrun .*? -m longtape ", "longtape ", line.strip()))[0]
    if not line.startswith("longtape ") or " | " in line:
        return ()
    return tuple(shlex.split(re.sub(r"\[(-[^\]]*)\]", r"\1", line), comments=True)[1:])
