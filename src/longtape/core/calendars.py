"""Stand-in until the calendars room is merged."""

import numpy as np

from longtape.core.clock import DAY, HOUR

CALENDAR_COLUMNS = (
    "hour sin",
    "hour cos",
    "weekday sin",
    "weekday cos",
    "day sin",
    "day cos",
    "month sin",
    "month cos",
)


def future_opens(last, count, interval, calendar):
    from longtape.features.clock import future_opens as f

    return f(last, count, interval, calendar)


def ordinals(times, interval):
    return times // interval.milliseconds


def hour_of_week(times, calendar):
    return (times // HOUR + 72) % 168


def day_of_week(times, calendar):
    return (times // DAY + 3) % 7


def bars_per_year(interval, calendar):
    return interval.bars_per_year(calendar)


def calendar_features(times, interval, calendar):
    days = times.astype("datetime64[ms]").astype("datetime64[D]")
    turns = [
        (times % DAY) / DAY,
        ((times // DAY + 3) % 7) / 7,
        (days - days.astype("datetime64[M]")).astype(int) / 31,
        (days.astype("datetime64[M]").astype(int) % 12) / 12,
    ]
    return np.stack([f(2 * np.pi * t) for t in turns for f in (np.sin, np.cos)], 1).astype(np.float32)
