"""What pydantic finds wrong with a section of the document, in one line of our own."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import ValidationError

from longtape.core.errors import UserError, unknown_name


def one_line(error: ValidationError, section: str, fields: Iterable[str]) -> UserError:
    """The first fault of `error`: the field within `section`, what is wrong, and the nearest of `fields` for a name
    that is none of them.
    """
    first = error.errors(include_url=False)[0]
    where = ".".join([section, *(str(part) for part in first["loc"])])
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return UserError(f"{section}: {message}" if section not in message else message)
    if first["type"] == "extra_forbidden":
        hint = str(unknown_name("key", str(first["loc"][-1]), fields)).split("; ", 1)[1]
        return UserError(f"{where}: {message}; {hint}")
    return UserError(f"{where}: {message} (given: {first['input']!r})")
