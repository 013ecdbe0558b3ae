"""Numbers as people and programs write them: `6,856.01`, `6.856,01`, `$6.86K`, `1e3`. Read in one way or refused.

The decimal mark is one for the whole file: `6856,014` in one column says what `103.412` in another one is.
"""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from longtape.core.errors import UserError

EMPTY = ("", "nan", "null", "none", "na", "n/a", "-", ".", "--", "#n/a", "\\n")
_SIGN = r"^[-+]?"
_COMMA = (
    r"\d{4,},\d+$",
    r"\d+,(\d{1,2}|\d{4,})$",
    r"0\d*,\d+$",
    r"\d{1,3}(\.\d{3})+,\d*$",
    r"\d{1,3}(\.\d{3}){2,}$",
)
_POINT = (
    r"\d{4,}\.\d+$",
    r"\d*\.(\d{1,2}|\d{4,})$",
    r"0\d*\.\d+$",
    r"\d{1,3}(,\d{3})+\.\d*$",
    r"\d{1,3}(,\d{3}){2,}$",
)
_EITHER = r"[1-9]\d{0,2},\d{3}$"
_SIZES = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def numbers(
    frame: pl.DataFrame, names: Iterable[str], origin: str, decimal: str | None = None
) -> dict[str, pl.Series]:
    """Columns as Float64, null where a cell is empty. UserError naming the row for a cell that is no number, or where
    a mark may be a decimal's or one of thousands.
    """
    columns = {name: _stripped(frame[name]) for name in names}
    texts = {name: cells for name, cells in columns.items() if cells.dtype == pl.String}
    mark = decimal or _decimal_mark(texts, origin)
    return {
        name: _floats(cells, frame[name], mark, origin) if name in texts else _typed(cells, origin)
        for name, cells in columns.items()
    }


def _stripped(cells: pl.Series) -> pl.Series:
    if cells.dtype == pl.Categorical:
        cells = cells.cast(pl.String)
    if cells.dtype != pl.String:
        return cells
    cells = cells.str.strip_chars()
    return cells.set(cells.str.to_lowercase().is_in(EMPTY), None)


def _typed(cells: pl.Series, origin: str) -> pl.Series:
    if cells.dtype.is_numeric() or cells.dtype == pl.Null:
        return cells.cast(pl.Float64, strict=False)
    raise UserError(f"{origin}: column '{cells.name}' is {cells.dtype}, not numbers")


def _decimal_mark(texts: dict[str, pl.Series], origin: str) -> str:
    """`,` or `.`, by the cells that can only be read in one way."""
    odd = {
        n: cells
        for n, cells in texts.items()
        if cells.cast(pl.Float64, strict=False).null_count() > cells.null_count()
    }
    if not odd:
        return "."
    bare = {name: _bare(cells) for name, cells in texts.items()}
    comma, point = _first_of(bare, _COMMA), _first_of(bare, _POINT)
    if comma and point:
        raise UserError(
            f"{origin}: {comma} has a decimal comma and {point} a decimal point; bring them to one, or name it:"
            " --decimal , or --decimal ."
        )
    unclear = _first_of(bare, (_EITHER,))
    if unclear and not comma and not point:
        raise UserError(
            f"{origin}: {unclear} may have a decimal comma or be thousands; name it: --decimal , or --decimal ."
        )
    return "," if comma else "."


def _bare(cells: pl.Series) -> pl.Series:
    """Without currency, size, sign of percent, and thousands that are set off by a blank or an apostrophe."""
    return cells.str.replace_all(r"[\s\u{a0}\u{202f}'’$€£¥₿%]|[KMBTkmbt]$", "")


def _first_of(texts: dict[str, pl.Series], patterns: Iterable[str]) -> str | None:
    """`'6856,014' (row 3, column 'open')` for the first cell of one of these forms."""
    pattern = "|".join(f"(?:{_SIGN}{form})" for form in patterns)
    for name, cells in texts.items():
        found = cells.str.contains(pattern).fill_null(False)
        if found.any():
            row = int(found.arg_max() or 0)
            return f"'{cells[row]}' (row {row + 1}, column '{name}')"
    return None


def _floats(cells: pl.Series, given: pl.Series, mark: str, origin: str) -> pl.Series:
    values = cells.cast(pl.Float64, strict=False)
    if mark == "." and not (values.is_null() & cells.is_not_null()).any():
        return values
    read = pl.select(_read(cells, _bare(cells), mark).alias(given.name)).to_series()
    bad = read.is_null() & cells.is_not_null()
    if bad.any():
        row = int(bad.arg_max() or 0)
        raise UserError(f"{origin}: row {row + 1}, column '{given.name}': '{given[row]}' is not a number")
    return read


def _read(cells: pl.Series, bare: pl.Series, mark: str) -> pl.Expr:
    """Cells with one decimal mark, marks of thousands between groups of three, and sizes such as K and M."""
    other = "," if mark == "." else "."
    text = pl.lit(bare)
    grouped = text.str.contains(rf"{_SIGN}\d{{1,3}}(\{other}\d{{3}})+(\{mark}\d*)?$")
    text = pl.when(grouped).then(text.str.replace_all(other, "", literal=True)).otherwise(text)
    if mark == ",":
        text = (
            pl.when(text.str.contains(".", literal=True))
            .then(None)
            .otherwise(text.str.replace(",", ".", literal=True))
        )
    letter = pl.lit(cells).str.extract(r"([KMBTkmbt])$").str.to_uppercase()
    size = letter.replace_strict(_SIZES, default=1.0, return_dtype=pl.Float64).fill_null(1.0)
    return text.cast(pl.Float64, strict=False) * size
