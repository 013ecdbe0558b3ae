"""Tables for the terminal: aligned text that can be cut, whatever stands in the cells."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from io import StringIO

import pytest

from longtape.core.files import nan_to_null
from longtape.core.markdown import markdown_table
from longtape.report.text import TextTable, format_value, print_blocks, table

ROWS = [
    {"model": "own [bold]x[/bold] :smile:", "R²": 0.12345, "rows": 12_000},
    {
        "model": "zero",
        "R²": None,
        "rows": 7,
        "note": "a cell that is much longer than eighty columns are " * 3,
    },
]


class Terminal(StringIO):
    def isatty(self):
        return True


def test_columns_stand_under_their_names_and_numbers_to_the_right():
    lines = table(ROWS, "A title that is longer than the table").splitlines()
    assert lines[0] == "A title that is longer than the table"
    assert lines[1].split() == ["model", "R²", "rows", "note"]
    assert set(lines[2]) == {"-", " "}
    assert lines[3].startswith("own [bold]x[/bold] :smile:  0.1235  12,000")  # nothing is markup
    right = lines[1].index("rows") + len("rows")
    assert [line[:right][-1] for line in lines[3:]] == ["0", "7"]
    assert lines[4].endswith(ROWS[1]["note"].rstrip())  # nothing is wrapped
    assert all(line == line.rstrip() for line in lines)


def test_no_rows_are_a_title_alone():
    assert table([], "Nothing") == "Nothing"
    assert table([]) == ""


def test_a_pipe_gets_plain_text_and_a_terminal_its_width(capsys, monkeypatch):
    print_blocks(TextTable(ROWS, "Title"), "Verdict")
    assert capsys.readouterr().out == table(ROWS, "Title") + "\n\nVerdict\n"
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", Terminal())
    print_blocks(TextTable(ROWS, "Title"), "Verdict")
    lines = sys.stdout.getvalue().splitlines()
    assert max(map(len, lines)) <= 60 + len("\x1b[1m\x1b[0m") * 8
    assert "Title" in lines[0]
    assert lines[-2:] == ["", "Verdict"]
    assert len(lines) > 10  # the long cell is folded
    assert "…" not in sys.stdout.getvalue()  # and nothing is lost


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (True, "yes"),
        (0.5, "0.5000"),
        (1234.5, "1,234"),
        (1_000_000, "1,000,000"),
        (datetime(2024, 1, 2, 3, 4, tzinfo=UTC), "2024-01-02 03:04Z"),
        ("x", "x"),
    ],
)
def test_values_as_a_person_writes_them(value, text):
    assert format_value(value) == text


def test_markdown_escapes_what_would_end_a_cell():
    assert markdown_table(["a", "b"], [["x|y", "1"]]) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 |"
    assert markdown_table(["a", "b"], [], numbers=False).endswith("| --- | --- |")


def test_numbers_that_json_lacks_become_null():
    import numpy as np

    nested = {"a": [np.float32("nan"), np.inf, 1], "b": ({"c": np.float64(2)}, None, "x", True)}
    found = nan_to_null(nested)
    assert found == {"a": [None, None, 1], "b": [{"c": 2.0}, None, "x", True]}
    assert type(found["b"][0]["c"]) is float
    assert type(found["a"][2]) is int


def test_a_table_in_a_notebook_is_text(monkeypatch, capsys):
    """rich shows what it prints in a notebook, whatever it was told to write to."""
    rows = [{"a": 1, "b": 0.5}]
    plain = table(rows, "T")
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert table(rows, "T") == plain
    assert capsys.readouterr().out == ""
