"""What a file is packed in → one table of cells: text, Parquet, Feather, JSON, a workbook, whatever its name says."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from longtape.core.errors import UserError, require
from longtape.market import archives
from longtape.market.files.config import FileConfig
from longtape.market.files.dialects import table_of_rows, table_of_text
from longtape.market.files.tables import Table

Content = bytes | Path  # a large file is read from its place, one inside an archive from memory


@dataclass(frozen=True)
class Container:
    """One kind of file: how its first bytes tell it, the endings it usually has, and what reads it."""

    begins: tuple[bytes, ...]
    endings: tuple[str, ...]
    read: Callable[[Content, str, FileConfig], Table]


def read_table(path: str | Path, config: FileConfig | None = None) -> Table:
    """The cells of a file, whatever it is packed in. UserError naming the file where it cannot be read."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    with archives.open_unpacked(path) as file, path.open("rb") as raw:
        is_packed = file.read(8) != raw.read(8)
    content: Content = archives.read_bytes(path) if is_packed else path
    container = _container_of(content, archives.member_of(path), path)
    table = container.read(content, str(path), config or FileConfig())
    if table.cells.width == 0:
        raise UserError(f"{path}: the file is empty")
    return table


def _container_of(content: Content, name: str, path: Path) -> Container:
    start = _start(content)
    for container in CONTAINERS.values():
        if container.begins and start.startswith(container.begins):
            return container
    ending = Path(name).suffix.lower()
    if ending in _OTHERS:
        raise UserError(f"{path}: {_OTHERS[ending]}")
    if ending in (".parquet", ".pq"):
        return CONTAINERS["parquet"]
    is_json = ending in CONTAINERS["json"].endings or start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[")
    return CONTAINERS["json" if is_json else "text"]


def _start(content: Content) -> bytes:
    if isinstance(content, bytes):
        return content[:64]
    with content.open("rb") as file:
        return file.read(64)


def _bytes_of(content: Content) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()


def _parquet(content: Content, origin: str, config: FileConfig) -> Table:
    source = io.BytesIO(content) if isinstance(content, bytes) else content
    try:
        return Table(_with_index(pl.read_parquet(source, hive_partitioning=False, glob=False)))
    except (pl.exceptions.PolarsError, OSError):
        raise UserError(f"{origin}: not a readable Parquet file; it may be cut off, write it again") from None


def _feather(content: Content, origin: str, config: FileConfig) -> Table:
    from pyarrow import ArrowException, feather

    try:
        frame = pl.from_arrow(feather.read_table(io.BytesIO(_bytes_of(content))))
    except (ArrowException, OSError):
        raise UserError(f"{origin}: not a readable Feather file; it may be cut off, write it again") from None
    return Table(_with_index(frame if isinstance(frame, pl.DataFrame) else frame.to_frame()))


def _with_index(frame: pl.DataFrame) -> pl.DataFrame:
    """pandas keeps an unnamed index as a column of its own name; without a name of time it is the time."""
    return frame.rename({"__index_level_0__": ""}) if "__index_level_0__" in frame.columns else frame


def _text(content: Content, origin: str, config: FileConfig) -> Table:
    text = _decoded(_bytes_of(content), origin)
    if text.lstrip()[:1] == "<" and re.match(r"\s*<(!doctype|html|\?xml|head|body)", text, re.IGNORECASE):
        raise UserError(
            f"{origin}: is a web page and no table; fetch it again, it may be an error of the service"
        )
    return table_of_text(text, origin)


def _decoded(raw: bytes, origin: str) -> str:
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        strange = sum(byte > 127 or byte < 9 for byte in raw[:4096])
        if strange * 10 < len(
            raw[:4096]
        ):  # one byte a letter: numbers and times are the same in all such codes
            return raw.decode("cp1252", "replace")
        raise UserError(
            f"{origin}: byte {error.start} is not text; give a CSV in UTF-8, Parquet, Feather, JSON or xlsx"
        ) from None


def _workbook(content: Content, origin: str, config: FileConfig) -> Table:
    library = require("fastexcel", "xlsx")
    try:
        book = library.read_excel(_bytes_of(content))
        names = [config.sheet] if config.sheet else list(book.sheet_names)
        if config.sheet and config.sheet not in book.sheet_names:
            raise UserError(f"{origin}: no sheet '{config.sheet}'; there are {', '.join(book.sheet_names)}")
        sheets = {name: book.load_sheet(name, header_row=None, dtypes="string").to_polars() for name in names}
    except library.FastExcelError as error:
        raise UserError(f"{origin}: not a readable workbook ({str(error).splitlines()[0]})") from None
    filled = {name: frame for name, frame in sheets.items() if frame.height}
    if len(filled) != 1:
        raise UserError(f"{origin}: has {len(filled)} sheets ({', '.join(filled)}); name one with --sheet")
    [(name, frame)] = filled.items()
    table = table_of_rows(frame, origin)
    return table.noted(f"sheet '{name}'") if len(sheets) > 1 else table


def _json(content: Content, origin: str, config: FileConfig) -> Table:
    text = _decoded(_bytes_of(content), origin)
    try:
        value = json.loads(text)
    except ValueError:
        value = _json_lines(text, origin)
    found = list(_tables_in(value))
    if len(found) != 1:
        raise UserError(
            f"{origin}: JSON with {len(found) or 'no'} table{'s'[: len(found) != 1]} in it; give one as a list of"
            " records, a list of rows, or columns"
        )
    return found[0]


def _json_lines(text: str, origin: str) -> list[Any]:
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError:
                raise UserError(
                    f"{origin}: line {number} is not JSON, nor is the whole file; write it again"
                ) from None
    return rows


def _tables_in(value: Any, depth: int = 0) -> Iterator[Table]:
    """Every table in a JSON value: records, rows, columns of equal length, columns or rows by key; else look inside."""
    made = _as_table(value)
    if made is not None:
        yield made
    elif isinstance(value, dict) and depth < 4:
        for inner in value.values():
            yield from _tables_in(inner, depth + 1)


def _as_table(value: Any) -> Table | None:
    if isinstance(value, list) and value:
        if all(isinstance(row, dict) for row in value):
            records = _frame([_flat(row) for row in value])
            return Table(records) if records.width > 1 else None
        if all(isinstance(row, list) and len(row) >= 2 for row in value) and _is_flat(value[0]):
            return table_of_rows(
                pl.DataFrame([[_text_of(c) for c in row] for row in value], orient="row"), ""
            )
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        if isinstance(value.get("columns"), list):  # pandas, orient="split"
            index = value.get("index") or [None] * len(value["data"])
            rows = [[at, *row] for at, row in zip(index, value["data"], strict=True)]
            return Table(
                pl.DataFrame(rows, schema=["", *map(str, value["columns"])], orient="row", strict=False)
            )
        if isinstance(value.get("schema"), dict):  # pandas, orient="table"
            return _as_table(value["data"])
    return _by_columns(value) if isinstance(value, dict) else None


def _by_columns(value: dict[str, Any]) -> Table | None:
    """{"close": [1, 2]} or {"close": {"0": 1}}, as pandas writes; or {"2024-01-31": {"close": 1}}."""
    lists = {k: v for k, v in value.items() if isinstance(v, list) and v and _is_flat(v)}
    if len(lists) >= 2 and len({len(v) for v in lists.values()}) == 1:
        return Table(pl.DataFrame(lists, strict=False))
    inner = {k: v for k, v in value.items() if isinstance(v, dict) and v and _is_flat(list(v.values()))}
    if len(inner) < 2 or len(inner) != len(value):
        return None
    keys = list(dict.fromkeys(key for part in inner.values() for key in part))
    if len(keys) > len(inner) or not any(key.lower() in ("open", "close", "o", "c") for key in inner):
        rows = [{"": name, **part} for name, part in inner.items()] if len(keys) < 40 else []
        if any("close" in key.lower() for key in keys):
            return Table(_frame(rows))
    columns: dict[str, Any] = {name: [part.get(key) for key in keys] for name, part in inner.items()}
    return Table(pl.DataFrame({"": keys, **columns}, strict=False))


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A record whose values are plain; one of ids inside ({"$date": …}) gives its inner value."""
    return {k: next(iter(v.values())) if isinstance(v, dict) and len(v) == 1 else v for k, v in row.items()}


def _is_flat(values: list[Any]) -> bool:
    return not any(isinstance(value, dict | list) for value in values)


def _text_of(cell: Any) -> str | None:
    return None if cell is None else str(cell)


def _frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    plain = [{k: v for k, v in row.items() if not isinstance(v, dict | list)} for row in rows]
    return pl.DataFrame(plain, infer_schema_length=None, strict=False)


CONTAINERS: dict[str, Container] = {
    "parquet": Container((b"PAR1",), (".parquet", ".pq"), _parquet),
    "feather": Container((b"ARROW1", b"FEA1"), (".feather", ".arrow", ".ipc"), _feather),
    "xlsx": Container((b"PK\x03\x04",), (".xlsx", ".xlsm"), _workbook),
    "json": Container((), (".json", ".jsonl", ".ndjson"), _json),
    "text": Container((), (".csv", ".txt", ".tsv", ".prn"), _text),
}
_OTHERS = {
    **dict.fromkeys(
        (".pkl", ".pickle", ".joblib"),
        "a pickle can run any code when it is opened, so it is not read; write it with to_parquet or to_csv",
    ),
    **dict.fromkeys((".h5", ".hdf", ".hdf5"), "HDF5 is not read; write it with to_parquet or to_csv"),
    **dict.fromkeys((".xls", ".ods", ".numbers"), "save the sheet as xlsx or CSV and give that"),
    **dict.fromkeys((".7z", ".rar", ".tar", ".tgz"), "unpack it first, and give the file or its folder"),
    **dict.fromkeys(
        (".hst", ".fxt", ".bi5", ".dbn"), "a vendor's binary format; export it as CSV and give that"
    ),
}
