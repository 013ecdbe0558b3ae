"""Features of the calendar: when a bar opens, as sine and cosine, so that midnight lies beside midnight."""

from __future__ import annotations

import math

import numpy as np

from longtape.core.calendars import time_zone, wall_clock
from longtape.core.clock import DAY
from longtape.features.registry import feature
from longtape.features.rolling import Array, kernel
from longtape.features.table import Table

CYCLE = "cyclical encoding of the clock"
OUTPUTS = ("sin", "cos")


@kernel
def _circle(turns: Array) -> tuple[Array, Array]:
    sine, cosine = np.empty(len(turns)), np.empty(len(turns))
    for t in range(len(turns)):
        sine[t] = math.sin(2.0 * math.pi * turns[t])
        cosine[t] = math.cos(2.0 * math.pi * turns[t])
    return sine, cosine


def _is_a_zone(zone: str) -> None:
    time_zone(zone)


@feature("sin, cos of 2π · time of day / 24 h", CYCLE, outputs=OUTPUTS, shared=True, check=_is_a_zone)
def hour(table: Table, zone: str = "UTC") -> tuple[Array, Array]:
    """Time of day at which the bar opens, in a time zone (daylight saving included)."""
    return _circle((wall_clock(table.timestamps, zone) % DAY) / DAY)


@feature("sin, cos of 2π · weekday / 7, Monday = 0", CYCLE, outputs=OUTPUTS, shared=True, check=_is_a_zone)
def weekday(table: Table, zone: str = "UTC") -> tuple[Array, Array]:
    """Day of the week on which the bar opens."""
    return _circle((wall_clock(table.timestamps, zone) // DAY + 3) % 7 / 7.0)


@feature("sin, cos of 2π · (month − 1) / 12", CYCLE, outputs=OUTPUTS, shared=True, check=_is_a_zone)
def month(table: Table, zone: str = "UTC") -> tuple[Array, Array]:
    """Month in which the bar opens."""
    months = (
        wall_clock(table.timestamps, zone).astype("datetime64[ms]").astype("datetime64[M]").astype(np.int64)
    )
    return _circle(months % 12 / 12.0)
