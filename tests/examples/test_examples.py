"""Every example script runs from beginning to end in its quick form, says where its picture is, and takes mistakes."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from longtape.attention import MECHANISMS
from tests.books import book_frame

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples"
PICTURES = {
    "01_data.py": "data.png",
    "02_architecture.py": "mechanisms.png",
    "03_training.py": "training.png",
    "04_prediction_and_attention.py": "prediction.png",
    "05_backtest.py": "backtest.png",
    "informer_many_steps.py": "informer.png",
    "order_book.py": "order_book.png",
    "portfolio.py": "portfolio.png",
}
SAMPLE = [name for name in PICTURES if name[0] == "0"]


def started(name, *options):
    """An example as its user starts it, finished."""
    source = {"PYTHONPATH": str(ROOT / "src")} if (ROOT / "src").exists() else {}
    return subprocess.run(
        [sys.executable, FOLDER / name, *map(str, options)],
        capture_output=True,
        text=True,
        env=os.environ | source | {"MPLBACKEND": "Agg"},
    )


@pytest.mark.parametrize("name", PICTURES)
def test_runs_and_draws(name, tmp_path):
    if name in SAMPLE:
        pytest.importorskip("arch")
    given = []
    if name == "order_book.py":
        book_frame(1_500, 5).write_parquet(tmp_path / "book.parquet")
        given = [tmp_path / "book.parquet", "--symbol", "X"]
    out = tmp_path / "out"
    ended = started(name, *given, "--quick", "--out", out)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1].startswith(("picture: ", "kept: ")) or "picture: " in ended.stdout
    assert (out / PICTURES[name]).stat().st_size > 10_000
