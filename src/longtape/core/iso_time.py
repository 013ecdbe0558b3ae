"""A time in an experiment file: YAML reads `2024-01-01` as a date, and it is kept as ISO text."""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated

from pydantic import BeforeValidator

from longtape.core.clock import to_milliseconds


def _as_text(when: object) -> object:
    text = when.isoformat() if isinstance(when, date | datetime) else when
    if isinstance(text, str):
        to_milliseconds(text)
    return text


IsoTime = Annotated[str, BeforeValidator(_as_text)]
