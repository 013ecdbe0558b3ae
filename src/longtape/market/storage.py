"""Where a store's files lie: a local folder, safe under concurrent writers and kill −9, or any pyarrow file system.

Both read and list through pyarrow; only writing and locking differ. A local file is written beside its place, fsynced
and renamed, under a lock of the operating system that dies with its process. An object store puts a whole object or
none, and takes one writer at a time.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from longtape.core.errors import LongtapeError, UserError
from longtape.core.files import atomic_path, is_full, sync_folder

LOCK_SECONDS = 120.0
_LOCK = ".lock"


class Storage:
    """Files below a root on any pyarrow file system. Names are relative, with `/`."""

    def __init__(self, filesystem: pafs.FileSystem, root: str, label: str) -> None:
        self.filesystem, self.root, self.label = filesystem, root.rstrip("/"), label.rstrip("/")

    def where(self, name: str) -> str:
        """The name a person knows a file by."""
        return f"{self.label}/{name}" if name else self.label

    def path(self, name: str) -> str:
        """The file system's own path."""
        return f"{self.root}/{name}" if self.root and name else self.root or name

    def names(self, folder: str = "") -> tuple[list[str], list[str]]:
        """Sorted names of the folders and of the files in a folder; hidden and set-aside files are left out."""
        selector = pafs.FileSelector(self.path(folder), allow_not_found=True)
        found = [info for info in self.filesystem.get_file_info(selector) if not _hidden(info.base_name)]
        folders = sorted(info.base_name for info in found if info.type == pafs.FileType.Directory)
        files = sorted(info.base_name for info in found if info.type == pafs.FileType.File)
        return folders, files

    def size(self, name: str) -> int | None:
        """Bytes of a file, None where there is none."""
        info = self.filesystem.get_file_info(self.path(name))
        return info.size if info.type == pafs.FileType.File else None

    def open(self, name: str) -> Any:
        """A random-access file to read from."""
        return self.filesystem.open_input_file(self.path(name))

    def get(self, name: str) -> bytes | None:
        """A whole small file, None where there is none."""
        if self.size(name) is None:
            return None
        with self.open(name) as file:
            return bytes(file.read())

    def put(self, name: str, data: bytes) -> None:
        """Put a whole file in its place."""
        try:
            if folder := self.path(name).rpartition("/")[0]:
                self.filesystem.create_dir(folder, recursive=True)
            with self.filesystem.open_output_stream(self.path(name)) as stream:
                stream.write(data)
        except OSError as error:
            raise self.failed(name, error) from error

    def set_aside(self, name: str) -> str:
        """Rename a damaged file so that it is no longer read; gives its new name."""
        aside = f"{name}.damaged"
        self.filesystem.move(self.path(name), self.path(aside))
        return aside

    def lock(self, folder: str) -> AbstractContextManager[None]:
        """Nothing to hold: an object store takes one writer."""
        return nullcontext()

    def failed(self, name: str, error: OSError) -> LongtapeError:
        """One line for an operating-system error, with what is left as it was."""
        reason = error.strerror or str(error)
        mistake = is_full(error) or error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        return (UserError if mistake else LongtapeError)(
            f"{self.where(name)}: {reason}; what was stored is unchanged, mend this and run the command again"
        )


class LocalStorage(Storage):
    """A local folder."""

    def __init__(self, root: Path) -> None:
        if root.exists() and not root.is_dir():
            raise UserError(f"{root}: a store is a folder, and this is a file")
        super().__init__(pafs.LocalFileSystem(), str(root.absolute()), str(root))

    def put(self, name: str, data: bytes) -> None:
        """Write beside, fsync, rename: the file is the old one or the new one."""
        target = Path(self.path(name))
        try:
            _make_folder(target.parent)
            with atomic_path(target) as temporary:
                temporary.write_bytes(data)
        except OSError as error:
            raise self.failed(name, error) from error

    def lock(self, folder: str) -> AbstractContextManager[None]:
        """The only writer in this folder, among all processes and threads, until it is left."""
        return self._locked(folder)

    @contextmanager
    def _locked(self, folder: str) -> Iterator[None]:
        try:
            _make_folder(Path(self.path(folder)))
            handle = os.open(self.path(f"{folder}/{_LOCK}"), os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise self.failed(folder, error) from error
        try:
            self._wait_for(handle, folder)
            _remove_partials(Path(self.path(folder)))
            yield
        finally:
            os.close(handle)  # closing gives the lock back

    def _wait_for(self, handle: int, folder: str) -> None:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LongtapeError(
                        f"{self.where(folder)}: another process has been writing here for {LOCK_SECONDS:g} s;"
                        " wait for it or end it, then run the command again"
                    ) from None
                time.sleep(0.01)


def open_storage(root: str | Path, filesystem: pafs.FileSystem | None = None) -> Storage:
    """A path or `file://` URL → local storage; `s3://…`, `gs://…` or a file system given → that one.

    Raises UserError for a URL that pyarrow cannot open.
    """
    text = str(root)
    if filesystem is not None:
        return Storage(filesystem, text, text)
    if "://" not in text:
        return LocalStorage(Path(text).expanduser())
    try:
        found, path = pafs.FileSystem.from_uri(text)
    except (ValueError, OSError) as error:
        raise UserError(
            f"store '{text}' cannot be opened: {error}; give a folder or a URL such as s3://…"
        ) from error
    return LocalStorage(Path(path)) if isinstance(found, pafs.LocalFileSystem) else Storage(found, path, text)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.endswith(".damaged")


def _make_folder(folder: Path) -> None:
    """Create a folder and make every new name on the way durable."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in new:
        sync_folder(path.parent)


def _remove_partials(folder: Path) -> None:
    """What a killed writer left; the lock is held, so nobody is writing them."""
    for partial in folder.glob(".*.partial"):
        with suppress(FileNotFoundError):
            partial.unlink()
