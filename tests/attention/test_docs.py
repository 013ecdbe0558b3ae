"""docs/attention.md says what the code and the results of record say."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from longtape.attention import MECHANISMS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "attention.md"


def test_generated_tables_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = runpy.run_path(str(ROOT / "benchmarks" / "attention_docs.py"))
    text = PAGE.read_text(encoding="utf-8")
    assert script["fill"](text) == text, "run python benchmarks/attention_docs.py"


@pytest.mark.parametrize("name", list(MECHANISMS))
def test_every_mechanism_has_its_section_and_picture(name: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    section = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
    assert all(f"**{word}" in section for word in ("Definition", "Cost", "When", "When not"))
    picture = ROOT / "docs" / "images" / f"pattern_{name}.png"
    assert f"images/{picture.name}" in section
    assert 1_000 < picture.stat().st_size < 60_000
