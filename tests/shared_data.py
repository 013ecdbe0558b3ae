"""Real data beside the checkout, where it is there."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared(name: str) -> Path:
    """Path of a shared data file; the test is skipped by name where it is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"real data absent: {name}")
    return path
