"""Progress on long work: a live bar on a terminal, a line now and then elsewhere, silence when asked."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

_SILENT = False


def set_silent(silent: bool) -> None:
    """Turn all progress output off (`--quiet`) or on."""
    global _SILENT
    _SILENT = silent


@contextmanager
def silently() -> Iterator[None]:
    """No progress output from what runs inside: the steps of something that shows its own."""
    global _SILENT
    before, _SILENT = _SILENT, True
    try:
        yield
    finally:
        _SILENT = before


def say(text: str) -> None:
    """One line about what is happening, to standard error."""
    if not _SILENT:
        print(text, file=sys.stderr, flush=True)


class Progress:
    """Counts towards a total and shows rate and time left, at most a few times a second."""

    def __init__(self, label: str, total: int | None, unit: str, done: int = 0) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done, self.note = done, ""
        self._first = done  # what was done before counts for no rate
        self._start = self._shown = time.monotonic()
        self._live = sys.stderr.isatty()
        self._every = 0.2 if self._live else 10.0

    def advance(self, n: int = 1, note: str = "") -> None:
        """Add `n` to what is done; `note` (a loss, a symbol) is shown beside it."""
        self.done += n
        self.note = note or self.note
        if time.monotonic() - self._shown >= self._every:
            self._show("\r" if self._live else "")

    def finish(self) -> None:
        """Show the last state and end the line."""
        self._show("\r" if self._live else "", "\n" if self._live else "")

    def _show(self, before: str, after: str = "") -> None:
        if _SILENT:
            return
        now = time.monotonic()
        self._shown = now
        rate = (self.done - self._first) / max(now - self._start, 1e-9)
        parts = [
            f"{self.done:,}" + (f"/{self.total:,}" if self.total else "") + f" {self.unit}",
            f"{rate:,.1f}/s",
        ]
        if self.total and self._first < self.done < self.total:
            parts.append(f"{_clock((self.total - self.done) / rate)} left")
        if self.note:
            parts.append(self.note)
        line = f"{self.label}: " + "  ".join(parts)
        print(
            f"{before}{line:<100}{after}" if self._live else line,
            end="" if self._live else "\n",
            file=sys.stderr,
            flush=True,
        )


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return (
        f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
        if whole >= 3600
        else f"{whole // 60}:{whole % 60:02}"
    )


@contextmanager
def progress(label: str, total: int | None = None, unit: str = "items") -> Iterator[Progress]:
    """`with progress("train", 100, "steps") as bar: bar.advance()`."""
    bar = Progress(label, total, unit)
    try:
        yield bar
    finally:
        bar.finish()
