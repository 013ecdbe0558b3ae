"""How much memory a piece of work took at its peak."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """Resident memory above what was there before, MB; None where the system does not say."""

    megabytes: float | None = None


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """`with peak_memory() as peak: …`, then `peak.megabytes`. Linux only: the peak is set back by the kernel."""
    found = Peak()
    try:
        _RESET.write_text("5")
        before = _kilobytes("VmRSS")
    except OSError:
        yield found
        return
    yield found
    found.megabytes = round((_kilobytes("VmHWM") - before) / 1024, 1)


def _kilobytes(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])
