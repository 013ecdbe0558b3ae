"""Times of files → opens of bars: closes, local midnights, an exchange's own clock; and series that do not agree."""

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from longtape.cli.main import execute
from longtape.core.clock import DAY, HOUR, MINUTE, Interval, to_milliseconds
from longtape.core.errors import UserError
from longtape.core.instrument import Instrument
from longtape.market.agreement import leads
from longtape.market.bars import TIME_TYPE, Bars
from longtape.market.files import read_bars
from longtape.market.files.stamps import doubtful_ends, opens_of
from longtape.market.store import Store
from tests.candles import candle_frame
from tests.shared_data import shared

H1, D1, M1 = (Interval.parse(name) for name in ("1h", "1d", "1m"))


def opens(times, interval, calendar="24/7", stamp=None, ends=False):
    return opens_of(np.array(times, np.int64), interval, calendar, stamp, ends, "x.csv").tolist()


def moments(*texts):
    return [to_milliseconds(text) for text in texts]


def test_closes_become_opens():
    closes = moments("2024-01-01T01:00", "2024-01-01T02:00")
    assert opens(closes, H1, stamp="close") == [t - HOUR for t in closes]
    assert opens([t - 1 for t in closes], H1, stamp="close") == [t - HOUR for t in closes]
    assert opens([t - 1000 for t in closes], H1, stamp="close") == [t - HOUR for t in closes]
    assert opens(closes, H1, stamp="open") == closes
    months = moments("2024-02-01", "2024-03-01")
    assert opens(months, Interval.parse("1M"), stamp="close") == moments("2024-01-01", "2024-02-01")


def test_a_hair_before_a_boundary_is_refused_without_the_word():
    with pytest.raises(UserError, match=r"hair before a boundary .*00:59:59\.999.*--stamp close"):
        opens(moments("2024-01-01T00:59:59.999", "2024-01-01T01:59:59.999"), H1)
    assert opens(moments("2024-01-01T00:59:59.999"), H1, stamp="open") == moments("2024-01-01T00:59:59.999")
    with pytest.raises(UserError, match="the only time is that at which a bar closes; say --stamp close"):
        opens(moments("2024-01-01T01:00"), H1, ends=True)


def test_the_last_bar_of_a_session_is_cut_short():
    closes = moments(*(f"2024-01-03T{h}:30" for h in range(15, 21)), "2024-01-03T21:00")
    found = opens(closes, H1, "XNYS", "close")
    assert found == moments(*(f"2024-01-03T{h}:30" for h in range(14, 21)))


MIDNIGHTS = {
    "XNYS": ("America/New_York", ["2024-03-08T05:00", "2024-03-11T04:00", "2024-03-12T04:00", "2024-03-13T04:00",
                                  "2024-03-14T04:00"]),
    "XTKS": ("Asia/Tokyo", ["2024-03-03T15:00", "2024-03-04T15:00", "2024-03-05T15:00", "2024-03-06T15:00",
                            "2024-03-07T15:00"]),
}  # fmt: skip


@pytest.mark.parametrize("calendar", MIDNIGHTS)
def test_days_at_local_midnight_are_sessions_or_name_the_calendar(calendar):
    _, texts = MIDNIGHTS[calendar]
    found = opens(moments(*texts), D1, calendar)
    assert all(t % DAY == 0 for t in found)
    assert found[0] == to_milliseconds("2024-03-08" if calendar == "XNYS" else "2024-03-04")
    with pytest.raises(UserError, match=f"midnight of an exchange; name it: .*--calendar {calendar}"):
        opens(moments(*texts), D1)


def test_days_of_a_market_that_never_closes_may_turn_at_any_hour():
    times = [to_milliseconds("2024-03-01T16:00") + i * DAY for i in range(10)]
    assert opens(times, D1) == times


def test_days_stamped_at_their_sessions_open_or_close_are_its_date():
    dates = moments("2024-03-08", "2024-03-11")
    assert opens(moments("2024-03-08T14:30", "2024-03-11T13:30"), D1, "XNYS") == dates
    assert opens(moments("2024-03-08T21:00", "2024-03-11T20:00"), D1, "XNYS", "close") == dates
    with pytest.raises(UserError, match=r"of no session.*--stamp close"):
        opens(moments("2024-03-08T21:00", "2024-03-11T20:00"), D1, "XNYS")


def test_times_of_an_exchanges_own_clock_are_not_taken_for_utc(tmp_path):
    frame = candle_frame(60).with_columns(
        pl.Series("timestamp", [f"2024-01-{3 + i // 6:02} {9 + i % 6:02}:30" for i in range(60)])
    )
    frame = frame.filter(~pl.col("timestamp").str.slice(8, 2).is_in(["06", "07"]))
    frame.write_csv(tmp_path / "x.csv")
    with pytest.raises(UserError, match=r"outside the sessions of XNYS.*--time-zone America/New_York"):
        read_bars(tmp_path / "x.csv", symbol="X", interval="1h", calendar="XNYS")
    bars = read_bars(
        tmp_path / "x.csv", symbol="X", interval="1h", calendar="XNYS", time_zone="America/New_York"
    )
    assert bars.timestamps[0] == to_milliseconds("2024-01-03T14:30")


def of_clock(path, zone, start, bars=400):
    """Hourly candles written with the times of a zone's clock, without the zone."""
    frame, hours = candle_frame(bars), start + HOUR * np.arange(bars)
    times = (
        pl.Series("timestamp", hours).cast(TIME_TYPE).dt.convert_time_zone(zone).dt.replace_time_zone(None)
    )
    frame.with_columns(times).write_csv(path)
    return path


@pytest.mark.parametrize(
    ("zone", "start"),
    [
        ("America/New_York", "2024-03-01"),
        ("Europe/London", "2024-03-20"),
        ("Europe/Berlin", "2024-03-20"),
        ("Australia/Sydney", "2024-09-25"),
    ],
)
def test_a_clock_that_skips_its_hour_in_spring_is_not_taken_for_utc(tmp_path, zone, start):
    path = of_clock(tmp_path / "c.csv", zone, to_milliseconds(start))
    with pytest.raises(UserError, match=f"as it is on the clocks of {zone}"):
        read_bars(path, symbol="BTCUSDT", interval="1h")
    told = read_bars(path, symbol="BTCUSDT", interval="1h", time_zone=zone)
    assert (np.diff(told.timestamps) == HOUR).all()
    assert len(read_bars(path, symbol="BTCUSDT", interval="1h", time_zone="UTC")) == len(told)


def test_another_missing_hour_is_no_clock(tmp_path):
    path = of_clock(tmp_path / "c.csv", "UTC", to_milliseconds("2024-03-01"))
    lines = [line for line in path.read_text().splitlines() if "2024-03-10T03:00" not in line]
    path.write_text("\n".join(lines))
    assert len(read_bars(path, symbol="BTCUSDT", interval="1h")) == len(lines) - 1 == 399


def test_an_hour_that_comes_twice_keeps_its_order(tmp_path):
    local = ["2024-11-03 00:00", "2024-11-03 01:00", "2024-11-03 01:00", "2024-11-03 02:00"]
    candle_frame(4).with_columns(pl.Series("timestamp", local)).write_csv(tmp_path / "x.csv")
    bars = read_bars(tmp_path / "x.csv", symbol="X", interval="1h", time_zone="America/New_York")
    assert np.diff(bars.timestamps).tolist() == [HOUR] * 3


def test_a_series_keeps_its_stamp(tmp_path):
    frame = candle_frame(48)
    for name, part in (("a", frame[:24]), ("b", frame[24:])):
        part.write_parquet(tmp_path / f"{name}.parquet")
    store = Store(tmp_path / "store")
    closed = read_bars(tmp_path / "a.parquet", symbol="X", interval="1h", stamp="close")
    assert closed.timestamps[0] == frame["timestamp"].dt.timestamp("ms")[0] - HOUR
    store.append(closed)
    assert store.read("X", "1h").stamp == "close"
    assert store.entries()[0].to_dict()["stamp"] == "close"
    with pytest.raises(UserError, match="stored from bars stamped at their close; say --stamp close"):
        store.append(read_bars(tmp_path / "b.parquet", symbol="X", interval="1h"))
    assert (
        store.append(read_bars(tmp_path / "b.parquet", symbol="X", interval="1h", stamp="close")).added == 24
    )


def moved(bars, step):
    later = pl.Series("timestamp", bars.timestamps + step).cast(TIME_TYPE)
    return bars.with_frame(bars.frame.with_columns(later))


def agreeing(n=400):
    """Two markets whose returns agree at about .9."""
    first = candle_frame(n)
    noise = np.random.default_rng(1).normal(0, 0.001, n).cumsum()
    factor = pl.Series(np.exp(noise))
    second = first.with_columns(pl.col(name) * factor for name in ("open", "high", "low", "close"))
    return [
        Bars(Instrument("file", "spot", name), H1, one) for name, one in (("AAA", first), ("BBB", second))
    ]


def test_series_that_agree_a_bar_later_are_named():
    one, other = agreeing()
    assert leads([one, other]) == []
    [found] = leads([one, moved(other, HOUR)])
    assert (found.leader, found.follower) == ("file/spot/AAA", "file/spot/BBB")
    assert found.shifted > 0.7 > 0.2 > found.same
    assert "import it again with --stamp close" in found.text


def test_real_markets_agree_and_one_minute_later_they_do_not():
    names = ("DOGEUSDT", "LINKUSDT", "XLMUSDT")
    bars = [read_bars(shared(f"candles_1m_binance_perp/{n}.parquet"), symbol=n, interval="1m") for n in names]
    bars = [one.between(until="2026-01-12") for one in bars]
    assert leads(bars) == []
    assert {lead.follower for lead in leads([moved(bars[0], MINUTE), *bars[1:]])} == {"file/spot/DOGEUSDT"}


def test_the_command_names_series_that_do_not_agree(tmp_path, capsys):
    one, other = agreeing()
    store = Store(tmp_path / "store")
    store.append(one)
    store.append(moved(other, HOUR))
    assert execute(["data", "check", "--store", str(tmp_path / "store")]) == 0
    said = capsys.readouterr().out
    assert "leads" in said
    assert "file/spot/BBB may be stamped at its close" in said


def test_times_of_a_row_that_is_no_session_of_its_own_are_named():
    with pytest.raises(UserError, match="same session of XNYS as the row before"):
        opens(moments("2024-03-08T14:30", "2024-03-08T15:30"), D1, "XNYS")


def test_offsets_that_change_with_the_clock_are_one_zone(tmp_path):
    days = [datetime(2024, 3, d, tzinfo=UTC) for d in (7, 8, 11, 12)]
    texts = [f"{d:%Y-%m-%d} 00:00:00-0{5 if d.day < 10 else 4}:00" for d in days]
    candle_frame(4).with_columns(pl.Series("timestamp", texts)).write_csv(tmp_path / "x.csv")
    bars = read_bars(tmp_path / "x.csv", symbol="X", interval="1d", calendar="XNYS")
    assert bars.frame["timestamp"].to_list() == days
    assert days[1] - days[0] == timedelta(days=1)


def test_the_last_moment_of_a_day_is_that_day():
    days = moments("2024-03-04", "2024-03-05")
    ends = [t + DAY - 1000 for t in days]
    assert opens(ends, D1, "XNYS", "close") == days
    assert opens(ends, D1, "24/7", "close") == days
    with pytest.raises(UserError, match="a hair before a boundary"):
        opens(ends, D1, "XNYS")


def test_a_minute_before_the_hour_is_a_hair():
    closes = moments("2024-01-01T00:59", "2024-01-01T01:59")
    with pytest.raises(UserError, match="a hair before a boundary"):
        opens(closes, H1)
    assert opens(closes, H1, stamp="close") == moments("2024-01-01T00:00", "2024-01-01T01:00")
    assert opens(closes, M1) == closes  # minutes may open then


def test_weeks_named_by_their_last_day_are_not_known_before_it_is_over():
    week = Interval.parse("1w")
    fridays = moments("2024-01-05", "2024-01-12")
    assert (week.close_of(np.array(opens(fridays, week, stamp="close"))) - np.array(fridays)).tolist() == [
        DAY,
        DAY,
    ]
    mondays = moments("2024-01-08", "2024-01-15")
    assert opens(mondays, week, stamp="close") == [t - 7 * DAY for t in mondays]
    ends = moments("2024-01-31", "2024-02-29")
    assert opens(ends, Interval.parse("1M"), stamp="close") == moments("2024-01-01", "2024-02-01")
    assert doubtful_ends(np.array(fridays), week) is not None
    assert doubtful_ends(np.array(mondays), week) is None
    assert doubtful_ends(np.array(ends), Interval.parse("1M")) is not None


def test_the_row_that_is_no_time_is_blamed(tmp_path):
    times = ["2024-01-01 00:00", "2024-01-01 01:00", "closed", "2024-01-01 02:00", "2024-01-01 03:00"]
    candle_frame(5).with_columns(pl.Series("timestamp", times)).write_csv(tmp_path / "x.csv")
    with pytest.raises(UserError, match="row 3: time 'closed' is not understood"):
        read_bars(tmp_path / "x.csv", symbol="X", interval="1h")
