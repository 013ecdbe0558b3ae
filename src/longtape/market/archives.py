"""Compressed files read with limits: a small archive must not unfold into all of the memory or leave its folder."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import pyarrow as pa

from longtape.core.errors import UserError

UNPACKED_LIMIT = 4 << 30
LINE_LIMIT = 64 << 20
_CHUNK = 1 << 20
_ZIP = b"PK\x03\x04"
_WORKBOOKS = (".xlsx", ".xlsm")  # ZIP archives too, and read as what they are


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
    """Open a file for reading, looking through gzip, bzip2, xz, zstd and a ZIP of one file, whatever its name says.

    UserError if it is absent or broken.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with path.open("rb") as raw:
        start = raw.read(6)
        raw.seek(0)
        if (start[:4] == _ZIP and path.suffix.lower() not in _WORKBOOKS) or path.suffix.lower() == ".zip":
            with _zip_member(path) as file:
                yield file
        else:
            yield _stream(raw, start)


def _stream(raw: IO[bytes], start: bytes) -> IO[bytes]:
    """The bytes behind a compressed stream, told by how it begins."""
    unpacked: Any = raw
    if start[:2] == b"\x1f\x8b":
        unpacked = io.BufferedReader(gzip.GzipFile(fileobj=raw), _CHUNK)
    elif start[:3] == b"BZh":
        unpacked = bz2.BZ2File(raw)
    elif start == b"\xfd7zXZ\x00":
        unpacked = lzma.LZMAFile(raw)  # noqa: SIM115  the file below is closed by who opened it
    elif start[:4] == b"\x28\xb5\x2f\xfd":
        unpacked = io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw), "zstd"), _CHUNK)
    return unpacked


def member_of(path: str | Path) -> str:
    """The name of the one file in a ZIP archive; the file's own name otherwise, without .gz and the like."""
    path = Path(path)
    if path.suffix.lower() == ".zip":
        with _opened_zip(path) as archive:
            return PurePosixPath(_only_member(archive, path).filename).name
    return path.stem if path.suffix.lower() in (".gz", ".bz2", ".xz", ".zst") else path.name


def _opened_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        raise UserError(f"{path}: not a readable ZIP archive; fetch it again") from None


def _only_member(archive: zipfile.ZipFile, path: Path) -> zipfile.ZipInfo:
    """The one file of an archive, beside what a Mac leaves in it (__MACOSX, .DS_Store)."""
    members = [entry for entry in archive.infolist() if not entry.is_dir() and not _is_litter(entry.filename)]
    if len(members) != 1:
        listed = ", ".join(entry.filename for entry in members[:5]) or "nothing"
        raise UserError(
            f"{path}: holds {len(members)} files ({listed}); unpack it and name one of them, or their folder"
        )
    return members[0]


def _is_litter(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return "__MACOSX" in parts or parts[-1].startswith("._") or parts[-1] in (".DS_Store", "Thumbs.db")


@contextmanager
def _zip_member(path: Path) -> Iterator[IO[bytes]]:
    with _opened_zip(path) as archive:
        member = _only_member(archive, path)
        name = PurePosixPath(member.filename)
        if name.is_absolute() or ".." in name.parts:
            raise UserError(f"{path}: its member '{name}' points outside the archive; refused")
        if member.flag_bits & 1:
            raise UserError(f"{path}: is locked with a password; unpack it first")
        with archive.open(member) as file:
            yield file


def _read(file: IO[bytes], size: int, path: str | Path, line: bool = False) -> bytes:
    try:
        return file.readline(size) if line else file.read(size)
    except (EOFError, OSError, zlib.error, zipfile.BadZipFile, lzma.LZMAError) as error:
        raise UserError(f"{path}: broken or cut off ({error}); fetch it again") from None
