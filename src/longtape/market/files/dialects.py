"""Text → cells: which mark separates fields, where the header is, and what stands above and below the table."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence

import polars as pl

from longtape.core.errors import UserError
from longtape.market.files.headers import headed
from longtape.market.files.tables import Table
from longtape.market.timestamps import looks_like_a_time

_SAMPLE = 1 << 16
_MOST_FOOTERS = 10
_NUMBER = re.compile(r"\s*[-+]?[$€£¥]?\d[\d.,' \u00a0]*(?:[eE][-+]?\d+)?[KMB%]?\s*")


def table_of_text(text: str, origin: str) -> Table:
    """The table of a text: comments, titles and footers left out, a header of one to three rows understood.

    UserError naming the line where a row has more fields than the header.
    """
    lines = [line for line in text[:_SAMPLE].splitlines()[:60] if line.strip()]
    if not lines:
        raise UserError(f"{origin}: the file is empty")
    separator = _separator(lines)
    if separator == " ":
        text, separator = re.sub(r"[ \t]+(?=\S)", "\t", text), "\t"
    skipped, header, width = _above(text, separator)
    has_rows = any(is_data(_fields(line, separator)) for line in lines)
    text, footers = _without_footer(text, separator) if has_rows else (text, [])
    cells = _cells(text, separator, skipped + len(header), width, origin)
    cells = cells.filter(~pl.all_horizontal(pl.all().is_null()))
    return headed(cells, header, origin).noted(*(f"footer left out: {line[:60]!r}" for line in footers))


def table_of_rows(cells: pl.DataFrame, origin: str) -> Table:
    """The table in rows that have no names yet: of a workbook, or a list of lists. Titles and footers are left out."""
    rows = cells.head(60).rows()
    texts = [["" if cell is None else str(cell) for cell in row] for row in rows]
    body = next((i for i, row in enumerate(texts) if is_data(row)), len(texts))
    filled = [i for i in range(body) if sum(bool(cell.strip()) for cell in texts[i]) >= 2]
    first = next((i for i in filled if all(j in filled for j in range(i, body - 1))), body)
    below = cells.slice(body).filter(~pl.all_horizontal(pl.all().is_null()))
    kept = below.height
    while (
        kept
        and below.height - kept < _MOST_FOOTERS
        and not is_data([str(c or "") for c in below.row(kept - 1)])
    ):
        kept -= 1
    return headed(below.head(kept), [texts[i] for i in range(first, body)], origin)


def is_data(fields: Sequence[str]) -> bool:
    """Whether a row is one of the table and not of its header: a time in it, or numbers from the first field on."""
    filled = [field.strip() for field in fields if field.strip()]
    if not filled or len(filled) < 2:
        return False
    if any(looks_like_a_time(field) for field in filled[:4]):
        return True
    numbers = sum(bool(_NUMBER.fullmatch(field)) for field in filled)
    return bool(_NUMBER.fullmatch(fields[0])) and numbers * 2 > len(filled)


def _separator(lines: Sequence[str]) -> str:
    """The first mark with which most lines have the same two or more fields; a comma beside another is a decimal's."""
    lines = [line for line in lines if not line.startswith("#")] or list(lines)
    for mark in (";", "\t", "|", ","):
        counts = Counter(len(fields) for fields in csv.reader(lines, delimiter=mark))
        count, often = max(counts.items(), key=lambda item: (item[1], item[0]))
        if count >= 2 and often * 5 >= len(lines) * 3:
            return mark
    if all(len(line.split()) >= 5 for line in lines[1:] or lines):
        return " "
    return ","


def _above(text: str, separator: str) -> tuple[int, list[list[str]], int]:
    """Lines to skip, the rows of the header after them, and the number of fields in a row."""
    above: list[tuple[int, list[str]]] = []
    for number, line in enumerate(io.StringIO(text[:_SAMPLE])):
        fields = _fields(line, separator)
        if is_data(fields):
            width = len(fields)
            rows = [row for _, row in above if len(row) >= max(2, width - 1)]
            first = next((at for at, row in above if len(row) >= max(2, width - 1)), number)
            if rows and first + len(rows) != number:  # a blank line or a comment between header and table
                rows, first = rows[-1:], number - 1
            return first, [row + [""] * (width - len(row)) for row in rows], width
        if line.strip() and not line.startswith("#"):
            above.append((number, fields))
    if not above:
        return 0, [], 0
    at, header = max(above, key=lambda item: len(item[1]))
    return at, [header], len(header)


def _fields(line: str, separator: str) -> list[str]:
    return [field.strip() for field in next(csv.reader([line.rstrip("\r\n")], delimiter=separator), [])]


def _without_footer(text: str, separator: str) -> tuple[str, list[str]]:
    """The text without the lines at its end that are no rows: totals, sources, legal notes."""
    found: list[str] = []
    end = len(text.rstrip())
    while end and len(found) < _MOST_FOOTERS:
        start = text.rfind("\n", 0, end) + 1
        line = text[start:end]
        if start == 0 or not line.strip() or is_data(_fields(line, separator)) or line.count('"') % 2:
            break
        if looks_like_a_time(_fields(line, separator)[0]):  # a row that was cut off
            break
        found.append(line.strip())
        end = len(text[:start].rstrip())
    return (text[:end] + "\n", found[::-1]) if found else (text, [])


def _cells(text: str, separator: str, skip: int, width: int, origin: str) -> pl.DataFrame:
    names = [str(i + 1) for i in range(width)]
    try:
        return pl.read_csv(
            io.StringIO(text),
            separator=separator,
            has_header=False,
            infer_schema=False,
            skip_lines=skip,
            new_columns=names,
        )
    except pl.exceptions.NoDataError:
        return pl.DataFrame(schema=dict.fromkeys(names, pl.String))
    except pl.exceptions.PolarsError as error:
        raise _ragged(text, separator, skip, width, origin, error) from None


def _ragged(
    text: str, separator: str, skip: int, width: int, origin: str, error: pl.exceptions.PolarsError
) -> UserError:
    """The line to blame: the first with more fields than the others."""
    for number, line in enumerate(text.splitlines(), 1):
        if number > skip and len(_fields(line, separator)) > width:
            return UserError(
                f"{origin}: not a readable table: line {number} has {len(_fields(line, separator))} fields, the"
                f" others have {width}: '{line[:60]}'"
            )
    return UserError(f"{origin}: not a readable table ({str(error).splitlines()[0]})")
