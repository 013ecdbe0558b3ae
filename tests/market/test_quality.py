"""Every defect is found, counted and dated, and nothing else is."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from longtape.core.clock import DAY, HOUR, Interval, to_milliseconds
from longtape.core.errors import UserError
from longtape.core.instrument import Instrument
from longtape.market import gaps, quality
from longtape.market.bars import TIME_TYPE, Bars
from longtape.market.store import Store
from tests.market.store_data import BTC, START, make_bars, values_at
from tests.shared_data import shared

NOW = START + 365 * DAY


def checked(frame, interval="1h", **options):
    return quality.check_frame(frame, interval, now=NOW, **options)


def errors(report) -> dict[str, int]:
    return {finding.name: finding.count for finding in report.findings if finding.severity == "error"}


def with_value(row: int, n=300, **values) -> pl.DataFrame:
    frame = make_bars(0, n).frame
    return frame.with_columns(
        pl.when(pl.int_range(pl.len()) == row)
        .then(pl.lit(value, pl.Float64))
        .otherwise(pl.col(name))
        .alias(name)
        for name, value in values.items()
    )


def test_clean_bars_have_no_finding():
    report = quality.check(make_bars(0, 300), now=NOW)
    assert report.ok
    assert report.findings == ()
    assert (report.rows, report.first, report.last) == (300, START, START + 299 * HOUR)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"close": np.nan}, {"nan"}),
        ({"close": None}, {"nan"}),
        ({"volume": np.inf}, {"nan"}),
        (dict.fromkeys(("open", "high", "low", "close")), {"empty", "nan"}),
        ({"low": 0.0}, {"non_positive"}),
        ({"volume": -1.0}, {"non_positive"}),
        ({"low": 500.0, "open": 300.0, "close": 300.0}, {"high_below_low"}),
        ({"volume": 0.0}, {"zero_volume"}),
    ],
)
def test_each_impossible_value_is_an_error(values, names):
    report = checked(with_value(7, **values))
    assert errors(report) == dict.fromkeys(names, 1)
    assert all(f.times == (START + 7 * HOUR,) for f in report.findings if f.name in names)
    assert not report.ok


@pytest.mark.parametrize(
    ("values", "name"), [({"open": 400.0}, "outside_range"), ({"close": 250.0, "high": 250.0}, "outliers")]
)
def test_what_only_looks_odd_is_a_warning(values, name):
    report = checked(with_value(7, **values))
    assert report.ok
    assert report.count(name) >= 1


def test_gaps_are_counted_and_listed():
    frame = make_bars(0, 300).frame
    holes = pl.concat([frame[:10], frame[11:100], frame[150:]])
    report = checked(holes)
    assert errors(report) == {"gaps": 2}
    assert report.missing == report.steps_left_out == 51
    assert report.gaps == (
        gaps.Gap(START + 10 * HOUR, START + 10 * HOUR, 1),
        gaps.Gap(START + 100 * HOUR, START + 149 * HOUR, 50),
    )


def test_duplicates_and_disorder():
    frame = make_bars(0, 300).frame
    report = checked(pl.concat([frame[:20], frame[15:300]]))
    assert errors(report) == {"duplicates": 5, "disorder": 1}
    report = checked(frame.reverse())
    assert errors(report) == {"disorder": 299}


def test_a_clock_that_jumps():
    times = START + np.arange(100) * HOUR
    times[40:43] += 17 * 60_000
    report = checked(values_at(times))
    assert errors(report)["off_grid"] == 3


def test_a_whole_series_without_volume_is_only_noted():
    report = checked(make_bars(0, 100).frame.with_columns(volume=0.0))
    assert report.ok
    assert report.count("no_volume") == 100
    assert report.count("zero_volume") == 0


def test_the_last_bar_is_judged_by_the_clock_and_by_its_volume():
    frame = make_bars(0, 300).frame
    last = START + 299 * HOUR
    assert quality.check_frame(frame, "1h", now=last + HOUR - 1).count("unfinished") == 1
    assert quality.check_frame(frame, "1h", now=last + HOUR).count("unfinished") == 0
    thin = with_value(299, volume=0.01)
    assert checked(thin).count("perhaps_unfinished") == 1
    assert checked(thin).ok


def test_no_rows_and_one_row():
    frame = make_bars(0, 1).frame
    assert checked(frame).ok
    assert checked(frame.head(0)).rows == 0


def test_what_cannot_be_checked_is_named():
    frame = make_bars(0, 10).frame
    with pytest.raises(UserError, match="data: column 'close' is missing"):
        checked(frame.drop("close"))
    with pytest.raises(UserError, match="column 'timestamp' is Int64"):
        checked(frame.with_columns(pl.col("timestamp").dt.timestamp("ms")))
    with pytest.raises(UserError, match="row 1 has no timestamp"):
        checked(frame.with_columns(timestamp=pl.lit(None, TIME_TYPE)))
    with pytest.raises(UserError, match="column 'open' holds String"):
        checked(frame.with_columns(open=pl.lit("a lot")))
    with pytest.raises(UserError, match="unknown calendar 'NYSE!'"):
        checked(pl.concat([frame[:2], frame[5:]]), calendar="NYSE!")


def test_json_has_a_count_for_every_defect():
    report = quality.check(make_bars(0, 300), now=NOW).to_dict()
    assert set(quality.DEFECTS) <= set(report)
    assert report["source"] == "bybit"
    json.dumps(report, allow_nan=False)


def times_of(*texts):
    return np.array([to_milliseconds(text) for text in texts])


def missing(calendar, interval, *texts):
    found = gaps.missing_times(times_of(*texts), Interval.parse(interval), calendar)
    return [str(np.datetime64(moment, "m")) for moment in found.astype("datetime64[ms]")]


def test_foreign_exchange_rests_from_friday_to_sunday_17_new_york():
    # winter: 22:00 UTC; summer: 21:00 UTC
    assert missing("24/5", "1h", "2024-01-12T21:00", "2024-01-14T22:00") == []
    assert missing("24/5", "1h", "2024-07-12T20:00", "2024-07-14T21:00") == []
    assert missing("24/5", "1h", "2024-07-12T20:00", "2024-07-14T22:00") == ["2024-07-14T21:00"]
    assert missing("24/5", "1h", "2024-01-10T21:00", "2024-01-10T23:00") == ["2024-01-10T22:00"]
    assert missing("24/5", "1d", "2024-07-12", "2024-07-16") == ["2024-07-15T00:00"]
    assert missing("24/5", "1d", "2024-12-24", "2024-12-26") == []


def test_exchange_days_and_holidays():
    assert missing("XNYS", "1d", "2024-03-28", "2024-04-01") == []  # Good Friday and a weekend
    assert missing("XNYS", "1d", "2024-04-01", "2024-04-04") == ["2024-04-02T00:00", "2024-04-03T00:00"]
    assert missing("XNYS", "1w", "2024-03-04", "2024-03-18") == ["2024-03-11T00:00"]
    # days dated by their open in New York, over the change to summer time
    assert missing("XNYS", "1d", "2024-03-08T14:30", "2024-03-11T13:30") == []


def test_exchange_hours():
    night = ("2024-04-01T19:30", "2024-04-02T13:30")
    assert missing("XNYS", "1h", *night) == []
    assert missing("XNYS", "1h", "2024-04-01T18:30", "2024-04-02T14:30") == [
        "2024-04-01T19:30",
        "2024-04-02T13:30",
    ]
    assert missing("XNYS", "5m", "2024-07-03T16:55", "2024-07-05T13:30") == []  # half a day, then a holiday
    # the lunch break of Hong Kong, 12:00 to 13:00 there
    assert missing("XHKG", "30m", "2024-04-03T03:30", "2024-04-03T05:00") == []
    assert missing("XHKG", "30m", "2024-04-03T03:00", "2024-04-03T05:30") == [
        "2024-04-03T03:30",
        "2024-04-03T05:00",
    ]


def test_months():
    assert missing("24/7", "1M", "2024-01-01", "2024-04-01") == ["2024-02-01T00:00", "2024-03-01T00:00"]
    assert missing("24/7", "3M", "2024-01-01", "2024-04-01") == []


CANDLES = [  # file, interval, step gaps, missing, zero volumes: as the description of the files has them
    *((f"candles_1h_bybit_linear/{s}USDT", "1h", 0, 0, 0) for s in ("BTC", "ETH", "SOL", "BNB", "XRP")),
    ("candles_1h_binance_spot/ETHUSDT", "1h", 27, 122, 3),
    *((f"candles_5m_binance_spot/{s}USDT", "5m", 0, 0, 0) for s in ("BTC", "ETH", "SOL", "XRP")),
    *((f"candles_5m_bybit_spot/{s}USDT", "5m", 0, 0, 0) for s in ("BTC", "ETH")),
    *((f"candles_5m_btc_quoted/{s}BTC", "5m", 0, 0, 0) for s in ("ETH", "LTC", "ETC")),
    *((f"candles_5m_btc_quoted/{s}BTC", "5m", 2, 2, 0) for s in ("XMR", "DASH")),
    *((f"candles_1m_binance_perp/{s}USDT", "1m", 0, 0, 0) for s in ("DOGE", "LINK", "TRX", "XLM")),
]


@pytest.mark.parametrize(("file", "interval", "step_gaps", "missing_bars", "silent"), CANDLES)
def test_real_candles_have_the_defects_that_are_known_and_round_trip(
    file, interval, step_gaps, missing_bars, silent, tmp_path
):
    frame = pl.read_parquet(shared(f"{file}.parquet"))
    store = Store(tmp_path)
    symbol = file.rpartition("/")[2]
    store.append(Bars.checked(Instrument("exchange", "spot", symbol), Interval.parse(interval), frame))
    report = quality.check_stored(store, store.series()[0])
    known = {"gaps": step_gaps, "zero_volume": silent}
    assert errors(report) == {name: count for name, count in known.items() if count}
    assert (report.step_gaps, report.missing) == (step_gaps, missing_bars)
    assert store.read(symbol, interval).frame.equals(frame)


def test_real_currency_has_its_weekends_and_nothing_else():
    frame = pl.read_parquet(shared("fx_stocks_single/EURUSD_1h.parquet"))
    around_the_clock = checked(frame)
    assert (around_the_clock.step_gaps, around_the_clock.missing) == (42, 2063)
    market = checked(frame, calendar="24/5")
    assert (market.step_gaps, market.steps_left_out, market.missing, market.ok) == (42, 2063, 0, True)


def test_real_stock_has_every_day_of_its_exchange():
    report = checked(pl.read_parquet(shared("fx_stocks_single/GOOG_1d.parquet")), "1d", calendar="XNYS")
    assert (report.rows, report.missing, report.ok) == (2148, 0, True)


def test_real_stocks_have_three_empty_rows_and_111_silent_days():
    reports = quality.check_file(shared("stocks_1d/us_stocks_2012-2017.parquet"), "1d", "XNYS")
    assert len(reports) == 88
    empty = {report.identity["symbol"]: report for report in reports if report.count("empty")}
    assert sorted(empty) == ["PTR", "REX", "SNP"]
    day = to_milliseconds("2016-06-29")
    assert all(next(f for f in r.findings if f.name == "empty").times == (day,) for r in empty.values())
    silent = {r.identity["symbol"]: n for r in reports if (n := r.count("zero_volume"))}
    assert silent == {"SPLP": 61, "AGFS": 49, "PTR": 1}
    assert sum(report.missing for report in reports) == 0
    wrong = {report.identity["symbol"] for report in reports if not report.ok}
    assert wrong == {"PTR", "REX", "SNP", "SPLP", "AGFS"}


def test_a_file_of_one_symbol_and_of_many(tmp_path):
    path = tmp_path / "candles.csv"
    frame = make_bars(0, 50).frame.with_columns(pl.col("timestamp").dt.strftime("%Y-%m-%dT%H:%M:%SZ"))
    frame[:20].vstack(frame[30:]).write_csv(path)
    [report] = quality.check_file(path, "1h")
    assert report.missing == 10
    both = pl.concat([frame.with_columns(symbol=pl.lit("A")), frame[:9].with_columns(symbol=pl.lit("B"))])
    both.write_csv(path)
    assert [r.rows for r in quality.check_file(path, "1h")] == [50, 9]
    assert [r.rows for r in quality.check_file(path, "1h", symbol="B")] == [9]
    with pytest.raises(UserError, match="unknown symbol 'C'"):
        quality.check_file(path, "1h", symbol="C")


def test_stored_tables_are_checked_for_whole_files(tmp_path):
    store = Store(tmp_path)
    store.append_table("funding", BTC, make_bars(0, 10).frame.select("timestamp", rate="close"))
    [series] = store.series()
    report = quality.check_stored(store, series)
    assert (report.ok, report.rows, report.interval) == (True, 10, None)
    json.dumps(report.to_dict())


def test_the_page_about_the_store_names_every_defect():
    page = (Path(__file__).parents[2] / "docs" / "store.md").read_text(encoding="utf-8")
    for name, (severity, _) in quality.DEFECTS.items():
        assert f"| `{name}` | {severity} |" in page


def test_a_price_that_slipped_by_two_digits_is_an_error():
    frame = make_bars(0, 300).frame
    slip = pl.when(pl.int_range(pl.len()) == 7).then
    for columns, factor in ((["high"], 100.0), (["low"], 0.01), (["open", "high", "low", "close"], 100.0)):
        report = checked(frame.with_columns(slip(pl.col(n) * factor).otherwise(n).alias(n) for n in columns))
        assert errors(report) == {"implausible": 1}
        assert not report.ok


def test_a_fall_of_nine_tenths_that_lasts_is_no_slip():
    frame = make_bars(0, 300).frame
    fallen = frame.with_columns(
        pl.when(pl.int_range(pl.len()) >= 150).then(pl.col(n) / 12).otherwise(n).alias(n)
        for n in ("open", "high", "low", "close")
    )
    report = checked(fallen)
    assert report.count("implausible") == 0
    assert report.count("jumps") == 1  # but a split, or another unit, perhaps
    assert checked(frame).count("jumps") == 0


@pytest.mark.parametrize("factor", [2.0, 0.5, 10.0])
def test_a_split_that_nobody_adjusted_for_is_a_warning(factor):
    frame = make_bars(0, 300).frame
    later = pl.int_range(pl.len()) >= 150
    split = frame.with_columns(
        pl.when(later).then(pl.col(n) * factor).otherwise(n).alias(n)
        for n in ("open", "high", "low", "close")
    )
    report = checked(split)
    assert report.count("jumps") == 1
    assert report.ok


def test_open_and_close_that_are_exchanged_are_a_warning():
    from tests.candles import candle_frame

    frame = candle_frame(100)
    assert checked(frame).count("exchanged") == 0
    assert checked(frame.rename({"open": "close", "close": "open"})).count("exchanged") == 100
