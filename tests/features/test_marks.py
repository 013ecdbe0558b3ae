"""Marks stand at the last bar not after their moment, and no window gets one that it could not know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from longtape.core.clock import HOUR, MINUTE, iso, to_milliseconds
from longtape.core.errors import UserError
from longtape.features.marks import Events, Marks, MarksConfig, build_marks, read_events
from longtape.features.panel import Panel
from tests.features.panels import clocked_panel


def clock(first: str, last: str, step: int = HOUR) -> Panel:
    times = np.arange(to_milliseconds(first), to_milliseconds(last), step)
    panel = clocked_panel(times, np.zeros((len(times), 1), np.float32), np.zeros((len(times), 1)))
    return replace(panel, known_at=times + step)


def marked(marks: Marks, panel: Panel) -> list[str]:
    """Opens of all marked bars, seen from the newest window."""
    positions = marks.positions(np.array([len(panel) - 1]), len(panel))[0]
    return [iso(int(panel.timestamps[p])) for p in positions if p >= 0]


def test_sessions_with_daylight_saving_holidays_and_a_half_day() -> None:
    """New York, 2023: Thanksgiving on 23 November, 13:00 close on the 24th; the clocks change on 12 March."""
    panel = clock("2023-11-22", "2023-11-28", 30 * MINUTE)
    both = MarksConfig(kinds=("session_open", "session_close"), calendar="XNYS")
    assert marked(build_marks(panel, both), panel) == [
        "2023-11-22 14:30Z",
        "2023-11-22 21:00Z",
        "2023-11-24 14:30Z",
        "2023-11-24 18:00Z",
        "2023-11-27 14:30Z",
        "2023-11-27 21:00Z",
    ]
    opens = MarksConfig(kinds=("session_open",), calendar="XNYS")
    spring = clock("2023-03-10", "2023-03-14", 30 * MINUTE)
    assert marked(build_marks(spring, opens), spring) == ["2023-03-10 14:30Z", "2023-03-13 13:30Z"]


def test_a_mark_between_two_opens_stands_at_the_earlier_bar() -> None:
    """Hourly bars open at 14:00 and the session at 14:30; its close at 21:00 is a bar of its own, or the last one's."""
    panel = clock("2023-11-22", "2023-11-23")
    both = MarksConfig(kinds=("session_open", "session_close"), calendar="XNYS")
    assert marked(build_marks(panel, both), panel) == ["2023-11-22 14:00Z", "2023-11-22 21:00Z"]
    inside = panel.timestamps // HOUR % 24
    session = panel.timestamps[(inside >= 14) & (inside < 21)]
    only_session = clocked_panel(session, np.zeros((7, 1), np.float32), np.zeros((7, 1)))
    assert marked(build_marks(only_session, both), only_session) == ["2023-11-22 14:00Z", "2023-11-22 20:00Z"]


def test_a_session_that_closes_with_the_window_has_closed_and_a_day_that_begins_then_has_not_begun() -> None:
    panel = clock("2023-11-22", "2023-11-24")
    closes = build_marks(panel, MarksConfig(kinds=("session_close",), calendar="XNYS", limit=1))
    assert closes.positions(np.array([19, 20, 21]), 24 - 4).tolist() == [[-1], [19], [19]]
    days = build_marks(panel, MarksConfig(kinds=("day",), limit=2))
    assert days.positions(np.array([23, 24]), 10).tolist() == [[-1, -1], [9, -1]]


@pytest.mark.parametrize(
    "config",
    [
        MarksConfig(kinds=("session_open", "session_close"), calendar="XNYS"),
        MarksConfig(kinds=("day", "week", "funding"), funding_hours=8),
    ],
    ids=["sessions", "clock"],
)
def test_cutting_the_data_changes_no_position(config: MarksConfig) -> None:
    panel = clock("2023-11-17", "2023-11-28")
    marks = build_marks(panel, config)
    for origin in range(30, len(panel), 3):
        last = iso(int(panel.known_at[origin]))
        cut = build_marks(clock("2023-11-17", last), config)
        np.testing.assert_array_equal(
            marks.positions(np.array([origin]), 30), cut.positions(np.array([origin]), 30), err_msg=last
        )


def test_markets_that_never_close() -> None:
    panel = clock("2024-01-05 05:00", "2024-01-09 03:00")
    kinds = {
        ("day",): ["01-06 00:00Z", "01-07 00:00Z", "01-08 00:00Z", "01-09 00:00Z"],
        ("week",): ["01-08 00:00Z"],
        ("day", "week"): ["01-06 00:00Z", "01-07 00:00Z", "01-08 00:00Z", "01-09 00:00Z"],
    }
    for names, expected in kinds.items():
        assert marked(build_marks(panel, MarksConfig(kinds=names)), panel) == [f"2024-{e}" for e in expected]
    funding = MarksConfig(kinds=("funding",), funding_hours=8, limit=3)
    assert marked(build_marks(panel, funding), panel) == [
        "2024-01-08 08:00Z",
        "2024-01-08 16:00Z",
        "2024-01-09 00:00Z",
    ]


def events(*pairs: tuple[str, str]) -> Events:
    times, announced = (np.array([to_milliseconds(pair[i]) for pair in pairs]) for i in (0, 1))
    return Events(times, announced)


def event_marks(panel: Panel, listed: Events, limit: int = 4) -> Marks:
    return build_marks(panel, MarksConfig(events="events.csv", limit=limit), listed)


def test_an_event_is_a_mark_when_it_has_happened_and_been_announced() -> None:
    panel = clock("2024-01-01", "2024-01-02")
    scheduled = event_marks(panel, events(("2024-01-01T10:30", "2023-12-01")))
    surprise = event_marks(panel, events(("2024-01-01T10:30", "2024-01-01T13:15")))
    origins = np.arange(5, 20)
    for marks, first in ((scheduled, 10), (surprise, 13)):
        seen = marks.positions(origins, 6)
        for origin, window in zip(origins, seen, strict=True):
            expected = 10 - (origin - 5) if first <= origin <= 15 else -1
            assert window.tolist() == [expected, -1, -1, -1], origin


def test_events_in_a_hole_of_the_clock_stand_at_the_bar_before_it() -> None:
    friday, monday = (
        clock("2024-01-05 18:00", "2024-01-05 20:00"),
        clock("2024-01-08 14:00", "2024-01-08 16:00"),
    )
    times = np.concatenate([friday.timestamps, monday.timestamps])
    panel = clocked_panel(times, np.zeros((4, 1), np.float32), np.zeros((4, 1)))
    marks = event_marks(panel, events(("2024-01-06T12:00", "2024-01-01")), limit=1)
    assert marks.positions(np.arange(1, 4), 2).tolist() == [[-1], [0], [-1]]


def test_what_lies_outside_the_data_or_twice_on_a_bar() -> None:
    panel = clock("2024-01-01", "2024-01-02")
    listed = events(
        ("2023-12-31T12:00", "2023-12-01"),
        ("2024-01-01T10:05", "2023-12-01"),
        ("2024-01-01T10:55", "2023-12-01"),
        ("2024-01-05", "2023-12-01"),
    )
    assert marked(event_marks(panel, listed), panel) == ["2024-01-01 10:00Z"]


def test_of_too_many_marks_the_newest_stay() -> None:
    panel = clock("2024-01-01", "2024-01-11")
    marks = build_marks(panel, MarksConfig(kinds=("day",), limit=3))
    assert marks.positions(np.array([239]), 240).tolist() == [[168, 192, 216]]


@given(
    hours=st.lists(st.tuples(st.integers(-5, 60), st.integers(-30, 70)), max_size=8),
    origins=st.lists(st.integers(6, 49), min_size=1, max_size=6),
)
@settings(max_examples=80, deadline=None)
def test_no_position_tells_of_the_future(hours: Sequence[tuple[int, int]], origins: list[int]) -> None:
    """Positions are the same when everything that was not known at the window's last close is taken away."""
    panel = clock("2024-01-01", "2024-01-03 02:00")
    start = int(panel.timestamps[0])
    ordered = sorted(hours)
    listed = Events(*(start + HOUR * np.array([pair[i] for pair in ordered], np.int64) for i in (0, 1)))
    for origin in origins:
        now = int(panel.known_at[origin])
        past = listed.as_of(now)
        happened = Events(past.times[past.times <= now], past.announced[past.times <= now])
        full, known = (
            event_marks(panel, some).positions(np.array([origin]), 7) for some in (listed, happened)
        )
        np.testing.assert_array_equal(full, known)


def test_events_come_from_a_csv(tmp_path) -> None:
    path = tmp_path / "events.csv"
    path.write_text(
        "name,time,announced\nFOMC,2024-03-20T18:00Z,2023-06-01\nCPI,2024-02-13T08:30-05:00,2023-12-01\n"
    )
    listed = read_events(path)
    assert [iso(int(t)) for t in listed.times] == ["2024-02-13 13:30Z", "2024-03-20 18:00Z"]
    assert listed.names == ("CPI", "FOMC")
    assert listed.as_of(to_milliseconds("2023-07-01")).names == ("FOMC",)
    assert listed.announced.tolist() == [to_milliseconds("2023-12-01"), to_milliseconds("2023-06-01")]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("time,name\n2024-01-01,x\n", "column 'announced' is missing"),
        ("time,announced\n2024-01-01,\n", "line 2 has no 'announced'"),
        ("time,announced\n2024-01-01,2023-01-01\nlater,2023-01-01\n", "line 3, time: 'later' is not a time"),
    ],
)
def test_a_list_of_events_with_holes_is_refused(tmp_path, text: str, complaint: str) -> None:
    path = tmp_path / "events.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=complaint):
        read_events(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_events(tmp_path / "absent.csv")


def test_sessions_that_a_market_does_not_have_are_one_line() -> None:
    with pytest.raises(ValidationError, match="unknown calendar 'NYSEX'; did you mean 'NYSE'"):
        MarksConfig(kinds=("session_open",), calendar="NYSEX")
    with pytest.raises(UserError, match=r"24/7 market has no sessions; name marks\.calendar"):
        build_marks(clock("2024-01-01", "2024-01-02"), MarksConfig(kinds=("session_open",)))


def test_foreign_exchange_opens_at_17_new_york() -> None:
    panel = clock("2024-03-07", "2024-03-13")
    opens = MarksConfig(kinds=("session_open",), calendar="24/5")
    assert marked(build_marks(panel, opens), panel) == [
        "2024-03-07 22:00Z",
        "2024-03-10 21:00Z",
        "2024-03-11 21:00Z",
        "2024-03-12 21:00Z",
    ]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kinds": ["day"], "calendar": "XNYS"},
        {"kinds": ["day"], "funding_hours": 8},
        {"kinds": ["funding"]},
        {"kinds": ["month"]},
    ],
)
def test_options_without_effect_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        MarksConfig(**options)
