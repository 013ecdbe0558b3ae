"""Market time: when a market trades, which bars are due, its own clock, and how many bars its year holds.

A calendar is `24/7` (never closed, UTC), `24/5` (foreign exchange, New York) or a code of the package
exchange_calendars such as XNYS, which is imported when a code is first used (extra `calendars`).
"""

from longtape.core.calendars.annual import (
    bars_per_day,
    bars_per_year,
    days_per_year,
    infer_periods_per_year,
    periods_per_year,
    usual_step,
)
from longtape.core.calendars.bars import future_opens, is_due, ordinals, session_numbers
from longtape.core.calendars.exchanges import require_calendar
from longtape.core.calendars.local import (
    CALENDAR_COLUMNS,
    calendar_features,
    day_of_week,
    hour_of_week,
    local_time,
    market_dates,
)
from longtape.core.calendars.sessions import session_closes, session_opens, trading_spans
from longtape.core.calendars.zones import time_zone, wall_clock

__all__ = [
    "CALENDAR_COLUMNS",
    "bars_per_day",
    "bars_per_year",
    "calendar_features",
    "day_of_week",
    "days_per_year",
    "future_opens",
    "hour_of_week",
    "infer_periods_per_year",
    "is_due",
    "local_time",
    "market_dates",
    "ordinals",
    "periods_per_year",
    "require_calendar",
    "session_closes",
    "session_numbers",
    "session_opens",
    "time_zone",
    "trading_spans",
    "usual_step",
    "wall_clock",
]
