"""A partition's file: Parquet with a checksum over every byte of it, kept in its own footer.

A Parquet file is a body of pages, a footer that describes them, the footer's length in 4 bytes, and `PAR1`
(https://parquet.apache.org/docs/file-format). The footer carries our metadata as text; in it stand the CRC-32 of the
body and that of the footer itself, computed with zeros in its own place. Any Parquet reader reads the file; this one
sees any byte that was changed or lost.
"""

from __future__ import annotations

import json
import re
import struct
from typing import Any
from zlib import crc32

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from longtape.core.clock import to_milliseconds
from longtape.core.errors import UserError

SCHEMA_VERSION = 1
_META = b"longtape"
_CHECKSUMS = re.compile(rb'"body": "([0-9a-f]{8})", "footer": "([0-9a-f]{8})"')
_TAIL = 8
_USUAL_FOOTER = 1 << 16


class DamagedFile(Exception):
    """A file that is not what was written."""


def encode(frame: pl.DataFrame, series: str) -> bytes:
    """A frame → Parquet (zstd) with the schema version and the series it belongs to, sealed with its checksums."""
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    meta = {"schema": SCHEMA_VERSION, "series": series, "body": "0" * 8, "footer": "0" * 8}
    floats = [name for name, dtype in frame.schema.items() if dtype == pl.Float64]
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata({_META: json.dumps(meta).encode()}),
        sink,
        compression="zstd",
        use_dictionary=[name for name in frame.columns if name not in floats and name != "timestamp"],
        column_encoding={"timestamp": "DELTA_BINARY_PACKED"} | dict.fromkeys(floats, "BYTE_STREAM_SPLIT"),
    )
    data = sink.getvalue().to_pybytes()
    start = len(data) - _footer_length(data[-_TAIL:], len(data))
    body, footer = data[:start], data[start:]
    sealed = _with_checksums(footer, crc32(body), 0)
    return body + _with_checksums(sealed, crc32(body), crc32(sealed))


def decode(file: Any, where: str) -> pl.DataFrame:
    """A partition's rows, every byte checked. Raises DamagedFile, or UserError for a newer schema or a foreign file."""
    data = pa.BufferReader(file.read_buffer())
    body_crc, parquet = _open(data, where)
    data.seek(0)
    whole = data.read_buffer()
    length = _footer_length(memoryview(whole)[-_TAIL:], whole.size)
    if crc32(memoryview(whole)[: whole.size - length]) != body_crc:
        raise DamagedFile("its checksum does not fit")
    frame = pl.from_arrow(parquet.read(use_threads=False))
    assert isinstance(frame, pl.DataFrame)  # noqa: S101 — a table gives a frame
    return frame


def time_range(file: Any, where: str) -> tuple[int, int, int]:
    """Rows, first and last time (UTC milliseconds) from the footer alone. Errors as in `decode`."""
    _, parquet = _open(file, where)
    column = parquet.schema_arrow.get_field_index("timestamp")
    groups = [parquet.metadata.row_group(i).column(column).statistics for i in range(parquet.num_row_groups)]
    low, high = min(g.min for g in groups), max(g.max for g in groups)
    return parquet.metadata.num_rows, to_milliseconds(low), to_milliseconds(high)


def check_version(version: int, where: str) -> None:
    """UserError if the data were written by a newer longtape."""
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{where}: written with store schema {version}, and this longtape reads up to {SCHEMA_VERSION};"
            " upgrade longtape"
        )


def _open(file: Any, where: str) -> tuple[int, pq.ParquetFile]:
    """The body's checksum and the opened file, its footer checked."""
    footer = _read_footer(file)
    seal = _CHECKSUMS.search(footer)
    if seal is None:
        if _META in footer:
            raise DamagedFile("its footer has no checksum")
        raise UserError(f"{where}: not written by longtape; bring foreign files in with `longtape import`")
    body_crc, footer_crc = (int(text, 16) for text in seal.groups())
    if crc32(_with_checksums(footer, body_crc, 0)) != footer_crc:
        raise DamagedFile("the checksum of its footer does not fit")
    parquet = pq.ParquetFile(file)
    check_version(json.loads(parquet.schema_arrow.metadata[_META])["schema"], where)
    return body_crc, parquet


def _read_footer(file: Any) -> bytes:
    """The footer with its length and `PAR1`; one read where it is of usual size."""
    size = file.size()
    file.seek(max(size - _USUAL_FOOTER, 0))
    tail = bytes(file.read())
    length = _footer_length(tail[-_TAIL:], size)
    if length <= len(tail):
        return tail[-length:]
    file.seek(size - length)
    return bytes(file.read())


def _footer_length(tail: Any, size: int) -> int:
    """Bytes of the footer, its length and `PAR1`. Raises DamagedFile where the file does not end as Parquet does."""
    if len(tail) < _TAIL or bytes(tail[4:]) != b"PAR1":
        raise DamagedFile("it is cut off")
    length = int(struct.unpack("<I", tail[:4])[0]) + _TAIL
    if length > size:
        raise DamagedFile("it is cut off")
    return length


def _with_checksums(footer: bytes, body_crc: int, footer_crc: int) -> bytes:
    return _CHECKSUMS.sub(b'"body": "%08x", "footer": "%08x"' % (body_crc, footer_crc), footer, count=1)
