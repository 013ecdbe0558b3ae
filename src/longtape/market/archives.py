"""Compressed files read with limits: a small archive must not unfold into all of the memory or leave its folder."""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from longtape.core.errors import UserError

UNPACKED_LIMIT = 4 << 30
LINE_LIMIT = 64 << 20
_CHUNK = 1 << 20


def read_bytes(path: str | Path, limit: int = UNPACKED_LIMIT) -> bytes:
    """All of a file, unpacked if it is .gz or a ZIP of one member. UserError above `limit` bytes."""
    parts, size = [], 0
    with open_unpacked(path) as file:
        while chunk := _read(file, _CHUNK, path):
            size += len(chunk)
            if size > limit:
                raise UserError(f"{path}: unpacks to more than {limit >> 20:,} MiB; split the file")
            parts.append(chunk)
    return b"".join(parts)


def read_lines(path: str | Path, limit: int = UNPACKED_LIMIT) -> Iterator[bytes]:
    """The lines of a plain, .gz or one-member ZIP file, without their ends, one at a time in bounded memory."""
    size = 0
    with open_unpacked(path) as file:
        while line := _read(file, LINE_LIMIT, path, line=True):
            size += len(line)
            if size > limit:
                raise UserError(f"{path}: unpacks to more than {limit >> 20:,} MiB; split the file")
            if len(line) == LINE_LIMIT and not line.endswith(b"\n"):
                raise UserError(
                    f"{path}: a line is longer than {LINE_LIMIT >> 20} MiB; this is not a text file"
                )
            yield line.rstrip(b"\r\n")


@contextmanager
def open_unpacked(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file for reading, looking through .gz and one-member .zip. UserError if it is absent or broken."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".zip":
        with _zip_member(path) as file:
            yield file
        return
    with path.open("rb") as raw:
        if path.suffix == ".gz":
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield io.BufferedReader(unpacked, _CHUNK)
        else:
            yield raw


@contextmanager
def _zip_member(path: Path) -> Iterator[IO[bytes]]:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        raise UserError(f"{path}: not a readable ZIP archive; fetch it again") from None
    with archive:
        members = [entry for entry in archive.infolist() if not entry.is_dir()]
        if len(members) != 1:
            raise UserError(f"{path}: holds {len(members)} files; unpack it and name one of them")
        name = PurePosixPath(members[0].filename)
        if name.is_absolute() or ".." in name.parts:
            raise UserError(f"{path}: its member '{name}' points outside the archive; refused")
        with archive.open(members[0]) as file:
            yield file


def _read(file: IO[bytes], size: int, path: str | Path, line: bool = False) -> bytes:
    try:
        return file.readline(size) if line else file.read(size)
    except (EOFError, OSError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: broken or cut off ({error}); fetch it again") from None
