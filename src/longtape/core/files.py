"""Files that are either the old one or the new one, never half of either."""

from __future__ import annotations

import errno
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from longtape.core.errors import UserError

_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Give a path beside `target` to write to; on success it is fsynced and renamed over it, else removed.

    UserError with one line that names `target` when the disk is full, by whatever library noticed it, and when the
    folder cannot be written to.
    """
    target = Path(target)
    temporary = _made_beside(target)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, target)
        sync_folder(target.parent)
    except UserError:
        raise
    except Exception as error:
        if is_full(error):
            raise _full(target) from error
        if isinstance(error, OSError) and error.errno in _REFUSED:
            raise _refused(target, error) from error
        raise
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def make_folder(path: str | Path) -> Path:
    """The folder, made with those above it where it is not there. UserError where it cannot be."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise (_full(path) if is_full(error) else _refused(path, error)) from error
    return path


def _made_beside(target: Path) -> Path:
    """An empty hidden file beside `target`."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
    except OSError as error:
        raise (_full(target) if is_full(error) else _refused(target, error)) from error
    os.close(handle)
    os.chmod(name, 0o666 & ~_umask())
    return Path(name)


def is_full(error: BaseException) -> bool:
    """Whether a library ran out of room on the disk: some of them have exceptions of their own for it."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error) or "os error 28" in str(error)


def _full(target: Path) -> UserError:
    return UserError(f"{target}: the disk is full; nothing was changed, free some space and run again")


def _refused(target: Path, error: OSError) -> UserError:
    return UserError(
        f"{target}: cannot be written ({error.strerror or error}); name another place or mend its rights"
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: str | Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(target: str | Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: str | Path, value: Any) -> None:
    """Write JSON atomically; NaN is refused, because it is not JSON."""
    write_text(target, json.dumps(value, indent=2, allow_nan=False, default=str) + "\n")


def nan_to_null(value: Any) -> Any:
    """Nested values as JSON can hold them: every number that is NaN or infinite, NumPy's too, becomes None."""
    if isinstance(value, Mapping):
        return {key: nan_to_null(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [nan_to_null(entry) for entry in value]
    if isinstance(value, Real) and not isinstance(value, Integral):
        return float(value) if math.isfinite(value) else None
    return value


def read_json(path: str | Path) -> Any:
    """Read a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))
