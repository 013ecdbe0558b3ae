"""Progress on long work: a live bar on a terminal, a line now and then elsewhere, silence when asked."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

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
    if _SILENT:
        return
    if sys.stderr.isatty():
        _terminal().print(text)  # above a bar that is being drawn
    else:
        print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """One line that the user must see, to standard error, also under `--quiet`."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


@cache
def _terminal() -> Console:
    """The one console of all bars, so that they and lines between them keep out of each other's way."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False)


class Progress:
    """Counts towards a total and shows rate and time left, at most a few times a second."""

    def __init__(self, label: str, total: int | None, unit: str, done: int = 0) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done, self.note = done, ""
        self._first = done  # what was done before counts for no rate
        self._start = self._shown = time.monotonic()
        self._bar = _Bar(label, total) if sys.stderr.isatty() and not _SILENT else None
        self._every = 10.0 if self._bar is None else 0.2

    def advance(self, n: int = 1, note: str = "") -> None:
        """Add `n` to what is done; `note` (a loss, a symbol) is shown beside it."""
        self.done += n
        self.note = note or self.note
        if time.monotonic() - self._shown >= self._every:
            self._show()

    def finish(self) -> None:
        """Show the last state and end the line."""
        self._show()
        if self._bar is not None:
            self._bar.close()

    def _show(self) -> None:
        self._shown = time.monotonic()
        if self._bar is not None:
            self._bar.draw(self.label, self.done, self._state())
        elif not _SILENT:
            print(f"{self.label}: {self._state()}", file=sys.stderr, flush=True)

    def _state(self) -> str:
        rate = (self.done - self._first) / max(self._shown - self._start, 1e-9)
        parts = [
            f"{self.done:,}" + (f"/{self.total:,}" if self.total else "") + f" {self.unit}",
            f"{rate:,.1f}/s",
        ]
        if self.total and self._first < self.done < self.total:
            parts.append(f"{_clock((self.total - self.done) / rate)} left")
        return "  ".join([*parts, *([self.note] if self.note else [])])


class _Bar:
    """A bar on the terminal, drawn when told to: no thread of its own takes time from the work."""

    def __init__(self, label: str, total: int | None) -> None:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        label_column = TextColumn("{task.description}", markup=False)
        state_column = TextColumn("{task.fields[state]}", markup=False)
        self._drawn = RichProgress(
            label_column, BarColumn(24), state_column, console=_terminal(), auto_refresh=False
        )
        self._task = self._drawn.add_task(label, total=total, state="")
        self._drawn.start()

    def draw(self, label: str, done: int, state: str) -> None:
        self._drawn.update(self._task, description=label, completed=done, state=state, refresh=True)

    def close(self) -> None:
        self._drawn.stop()


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
