"""`longtape bench`."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from longtape.cli.bench import app
from longtape.core.errors import UserError


def run(*words: str):
    return CliRunner().invoke(app, ["attention", *words])


def test_attention_prints_and_writes(tmp_path: Path) -> None:
    words = ["--lengths", "64", "--mechanisms", "flash", "--no-peers", "--repeats", "1"]
    result = run(*words, "--out", str(tmp_path))
    assert result.exit_code == 0
    assert "| flash | 64 |" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "attention.json",
        "attention.md",
        "attention.png",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lengths", "ten"], "1024,4096"),
        (["--mechanisms", "flsh"], "flash"),
        (["--device", "cuda:9"], "GPU"),
    ],
)
def test_mistakes_are_one_line(words: list[str], said: str) -> None:
    error = run(*words).exception
    assert isinstance(error, UserError)
    assert said in str(error)
    assert "\n" not in str(error)
