"""Progress: lines for files and pipes, a bar on a terminal, nothing where it was asked to be quiet."""

from __future__ import annotations

import sys
from io import StringIO

import pytest

import longtape.core.progress as module
from longtape.core.progress import progress, say, set_silent, silently


class Terminal(StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def loud():
    set_silent(False)
    yield
    set_silent(False)
    module._terminal.cache_clear()


def work():
    with progress("epoch 1/3", 4, "steps") as bar:
        bar.advance(3, "loss 0.25")
        say("a line [between]")
        with silently():
            say("never seen")
            with progress("inside", 9, "windows") as other:
                other.advance(9)


def test_a_pipe_gets_one_line_at_the_end(capsys):
    work()
    first, last = capsys.readouterr().err.splitlines()
    assert first == "a line [between]"
    assert last.startswith("epoch 1/3: 3/4 steps  ")
    assert last.endswith("left  loss 0.25")


def test_a_terminal_gets_a_bar_and_lines_above_it(monkeypatch):
    module._terminal.cache_clear()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stderr", Terminal())
    work()
    shown = sys.stderr.getvalue()
    assert "━" in shown
    assert "3/4 steps" in shown
    assert "loss 0.25" in shown
    assert "a line [between]" in shown
    assert "never" not in shown
    assert "inside" not in shown
    assert shown.rstrip("\r\n").endswith("\x1b[?25h")  # the cursor is back


def test_quiet_is_quiet(capsys):
    set_silent(True)
    work()
    assert capsys.readouterr().err == ""


def test_the_cursor_comes_back_after_an_error(monkeypatch):
    module._terminal.cache_clear()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(KeyboardInterrupt), progress("epoch", 4, "steps"):
        raise KeyboardInterrupt
    assert "\x1b[?25h" in sys.stderr.getvalue()
