"""What can go wrong, sorted by who can mend it. The command line turns these into one line and an exit code."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from difflib import get_close_matches
from types import ModuleType


class LongtapeError(Exception):
    """Base of every error that longtape raises on purpose; its text is one line that names the way out."""

    exit_code = 1


class UserError(LongtapeError, ValueError):
    """A mistake in what was asked or given: names the file, field, row or time, and what to do. Exit code 2."""

    exit_code = 2


class ServiceError(LongtapeError):
    """A service out of reach or answering nonsense. Exit code 1."""


class CheckFailed(LongtapeError):
    """A check ran and found something wrong. Exit code 1."""


class LongtapeWarning(UserWarning):
    """Something the user should know that does not stop the work."""


def unknown_name(kind: str, name: str, known: Iterable[str], where: str = "") -> UserError:
    """One line for a name that is not in a registry, with the nearest match or the whole list."""
    known = sorted(known)
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
    return UserError(f"{where + ': ' if where else ''}unknown {kind} '{name}'; {hint}")


def require(module: str, extra: str) -> ModuleType:
    """Import an optional library, or say which extra installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"this needs the package '{module.split('.')[0]}': pip install 'longtape[{extra}]'"
        ) from error
