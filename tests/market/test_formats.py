# ruff: noqa: E501  a case a line
"""Every format that docs/sources.md names comes through: times, prices and volumes, and nulls where it has none."""

import re
from pathlib import Path

import polars as pl
import pytest

from longtape.core.errors import UserError
from longtape.market.bars import COLUMNS
from longtape.market.files import file_config, read_files
from tests.market.made_up_files import (
    CLOSE,
    DATES,
    FILES,
    HEAD,
    HIGH,
    HOURS,
    ISO,
    LOW,
    MS,
    OPEN,
    VOLUME,
    rows,
)

VALUES = {"open": OPEN, "high": HIGH, "low": LOW, "close": CLOSE, "volume": VOLUME}


def written(folder, made):
    path = folder / made.name
    path.write_bytes(made.content if isinstance(made.content, bytes) else made.content.encode())
    return path


def read(path, made, **more):
    config = file_config(**{**made.options, **more})
    return list(
        read_files(path, symbol=made.symbol, interval=made.interval, calendar=made.calendar, config=config)
    )


@pytest.mark.parametrize("name", FILES)
def test_a_format_comes_through(tmp_path, name):
    made = FILES[name]
    found = read(written(tmp_path, made), made)
    assert tuple(one.bars.symbol for one in found) == made.symbols
    for one in found:
        frame = one.bars.frame
        assert frame["timestamp"].to_list() == made.times
        for column in COLUMNS[1:]:
            if column in made.has:
                assert frame[column].to_list() == pytest.approx(VALUES[column], rel=1e-12)
            else:
                assert frame[column].null_count() == len(frame)


def test_the_page_has_a_row_for_every_format():
    page = (Path(__file__).parents[2] / "docs" / "sources.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| ([^|]+?) \|", page, re.MULTILINE)
    assert [name for name in FILES if name not in named] == []


def test_adjusted_closes_take_the_others_along_by_their_ratio(tmp_path):
    made = FILES["Yahoo, with its adjusted close"]
    lines = rows(DATES, "tohlc", header="Date,Open,High,Low,Close").splitlines()
    text = "\n".join(
        [f"{lines[0]},Adj Close", *(f"{line},{0.9 * c}" for line, c in zip(lines[1:], CLOSE, strict=True))]
    )
    made.content, made.options, path = text, {"columns": {"close": "Adj Close"}}, tmp_path / "x.csv"
    path.write_text(text)
    [found] = read(path, made)
    for name in ("open", "high", "low", "close"):
        assert found.bars.frame[name].to_list() == pytest.approx([0.9 * x for x in VALUES[name]])
    path.write_text(text.replace("Close,Adj", "Other,Adj"))
    with pytest.raises(UserError, match=r"no raw close whose ratio.*--without open,high,low"):
        read(path, made)
    [found] = read(path, made, without=["open", "high", "low"])
    assert found.bars.absent == ("open", "high", "low", "volume")


def test_a_metatrader_volume_of_zero_gives_way_to_the_ticks(tmp_path):
    made = FILES["MetaTrader 5"]
    [found] = read(written(tmp_path, made), made)
    assert found.bars.frame["volume"].to_list() == VOLUME
    assert any("<VOL>' is 0 throughout" in note for note in found.notes)


REFUSED = {
    "contradicting marks": (HEAD + "\n" + '2024-01-31,"6856,01",6900.5,6800,6850,1\n', {}, "decimal comma and.*--decimal"),
    "one mark alone": ('time,close\n2024-01-31,"6,856"\n2024-02-01,"6,857"\n', {}, "may have a decimal comma.*--decimal"),
    "named thousands": ('time,close\n2024-01-31,"6,856"\n2024-02-01,"6,857"\n', {"decimal": "."}, None),
    "named decimals": ('time,close\n2024-01-31,"6,856"\n2024-02-01,"6,857"\n', {"decimal": ","}, None),
    "no order fits": ("1706738400,5,9,1,3,2\n1706742000,5,1,9,3,2\n", {}, "no known order.*--columns"),
    "two orders fit": ("".join(f"{1706659200 + 86400 * i},{'5,9,1,3' if i == 3 else '1,9,5,3' if i == 4 else '5,5,5,5'},7\n"
                               for i in range(150)), {}, "may be those of .* or of 'Coinbase'.*--columns"),
    "half a bar": ("time,open,high,close\n2024-01-31,1,1,1\n", {}, "'low' is missing.*--low-column.*--without low"),
    "two volumes": ("time,close,Volume A,Volume B\n2024-01-31,1,1,1\n", {}, "several columns of volume.*--volume-column"),
    "a header and an order": (HEAD + "\n2024-01-31,1,1,1,1,1\n", {"order": ["time", "close"]}, "has a header"),
    "days of a spreadsheet": ("time,close\n45322,1\n45323,1\n", {}, "would be in 1970.*excel"),
    "a zone twice": ("time,close\n2024-01-31T00:00Z,1\n", {"time_zone": "Asia/Tokyo"}, "zone of their own"),
    "an hour that is not": ("time,close\n2024-03-10 02:30,1\n", {"time_zone": "America/New_York"}, "no such time"),
    "a column cannot go": (HEAD + "\n2024-01-31,1,1,1,1,1\n", {"without": ["close"]}, "'close' cannot be left out"),
    "no price": ("time,close\n2024-01-31,\n", {"drop_empty": True}, "no row of it has a price"),
    "no symbol": (HEAD + "\n2024-01-31,1,1,1,1,1\n", {"symbol": None}, "nothing in it says of which symbol.*--symbol"),
    "cut off": (rows(ISO, header=HEAD)[:-12], {}, "row 12.*'volume': empty|not a number"),
    "more fields in a row": (rows(ISO, header=HEAD) + "2024-02-01 08:00:00,1,1,1,1,1,1,1\n", {}, "line 14 has 8 fields"),
    "two words for one symbol": ("ticker,time,close\nA/B,2024-01-31,1\nAB,2024-01-31,1\n", {"symbol": None}, "one name"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_could_be_read_in_two_ways_is_refused_with_a_way_out(tmp_path, case):
    content, options, words = REFUSED[case]
    path = tmp_path / "x.csv"
    path.write_text(content)
    options = dict(options)
    symbol = options.pop("symbol", "X")

    def act():
        config = file_config(**options)
        return list(
            read_files(path, symbol=symbol, interval="1h" if "ISO" in content else "1d", config=config)
        )

    if words is None:
        close = act()[0].bars.frame["close"].to_list()
        assert close == ([6856.0, 6857.0] if options["decimal"] == "." else [6.856, 6.857])
        return
    with pytest.raises(UserError, match=words) as caught:
        act()
    assert "\n" not in str(caught.value)


OTHERS = {
    "x.pkl": (b"\x80\x04", "pickle"),
    "x.h5": (b"\x89HDF", "HDF5"),
    "x.xls": (b"\xd0\xcf", "save the sheet as xlsx"),
    "x.7z": (b"7z", "unpack it first"),
    "x.json": (b'{"a": {"b": 1}}', "no table"),
    "x.jsonl": (b'{"a": 1}\n{"a"', "line 2 is not JSON"),
    "x.parquet": (b"PAR1 nothing more", "not a readable Parquet"),
    "x.feather": (b"ARROW1 nothing more", "not a readable Feather"),
    "x.xlsx": (b"PK\x03\x04 nothing more", "workbook|xlsx"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_containers_are_named_with_a_way_out(tmp_path, name):
    content, words = OTHERS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        list(read_files(tmp_path / name, symbol="X", interval="1h"))


def test_a_workbook_and_its_sheets(tmp_path):
    fastexcel = pytest.importorskip("fastexcel")
    assert fastexcel
    from tests.market.workbook import workbook

    table = [
        HEAD.split(","),
        *([t, *map(str, v)] for t, *v in zip(ISO, OPEN, HIGH, LOW, CLOSE, VOLUME, strict=True)),
    ]
    path = tmp_path / "x.xlsx"
    path.write_bytes(workbook({"Prices": [["My prices"], [], *table, ["source: somewhere"]]}))
    [found] = read_files(path, symbol="X", interval="1h")
    assert found.bars.frame["close"].to_list() == CLOSE
    path.write_bytes(workbook({"Prices": table, "Other": table[:5]}))
    with pytest.raises(UserError, match=r"2 sheets \(Prices, Other\); name one with --sheet"):
        list(read_files(path, symbol="X", interval="1h"))
    [found] = read_files(path, symbol="X", interval="1h", config=file_config(sheet="Other"))
    assert len(found.bars) == 4


def test_folders_and_patterns(tmp_path):
    for month, half in (("2024-01", slice(0, 4)), ("2024-02", slice(4, 12))):
        lines = rows(ISO, header=HEAD).splitlines()
        for symbol in ("AAA", "BBB"):
            (tmp_path / f"{symbol}-1h-{month}.csv").write_text("\n".join([lines[0], *lines[1:][half]]))
    (tmp_path / "notes.md").write_text("nothing")
    found = list(read_files(f"{tmp_path}/{{symbol}}-1h-*.csv", interval="1h"))
    assert [(one.bars.symbol, len(one.bars)) for one in found] == [("AAA", 12), ("BBB", 12)]
    [one] = read_files(f"{tmp_path}/AAA*.csv", symbol="AAA", interval="1h")
    assert one.bars.timestamps.tolist() == MS
    with pytest.raises(UserError, match="4 files, and nothing says of which symbol"):
        list(read_files(tmp_path, interval="1h"))
    with pytest.raises(UserError, match="fits this pattern"):
        list(read_files(f"{tmp_path}/C*.csv", symbol="C", interval="1h"))
    for file in tmp_path.glob("BBB*"):
        file.unlink()
    [one] = read_files(tmp_path, symbol="AAA", interval="1h")
    assert one.bars.frame["timestamp"].to_list() == HOURS


def test_a_wide_table_gives_one_symbol_when_it_is_named(tmp_path):
    made = FILES["a wide table of closes"]
    [found] = read_files(written(tmp_path, made), symbol="BBB", interval="1d")
    assert found.bars.frame["close"].to_list() == CLOSE
    blank = made.content.replace(f"{CLOSE[0]},{CLOSE[0]}", f"{CLOSE[0]},", 1)
    (tmp_path / "x.csv").write_text(blank)
    found = list(read_files(tmp_path / "x.csv", interval="1d"))
    assert [len(one.bars) for one in found] == [12, 11]


def test_the_decimal_mark_is_one_for_the_whole_file(tmp_path):
    """`6856,014` in one column says that `103.412` in another is a hundred thousand."""
    text = "time;close;volume\n2024-01-31;6856,014;103.412\n2024-02-01;6840,5;6.860\n"
    (tmp_path / "x.csv").write_text(text)
    [found] = read_files(tmp_path / "x.csv", symbol="X", interval="1d")
    assert found.bars.frame.select("close", "volume").rows() == [(6856.014, 103412.0), (6840.5, 6860.0)]


def test_a_point_alone_is_a_decimal_point(tmp_path):
    (tmp_path / "x.csv").write_text("time;close\n2024-01-31;103.412\n2024-02-01;103.500\n")
    [found] = read_files(tmp_path / "x.csv", symbol="X", interval="1d")
    assert found.bars.frame["close"].to_list() == [103.412, 103.5]
    assert found.bars.frame.schema["close"] == pl.Float64


def test_what_looks_like_something_else_is_not_taken_for_it(tmp_path):
    lines = rows(ISO, header=HEAD).splitlines()
    path = tmp_path / "x.csv"

    def read_text(text, **options):
        path.write_text(text)
        [found] = read_files(path, symbol="X", interval="1h", config=file_config(**options))
        return found

    twice = rows(ISO, "tohlcvo", header=HEAD + ",close")
    with pytest.raises(
        UserError, match=r"two columns are called 'close'; name one: --close-column 'close \(2\)'"
    ):
        read_text(twice)
    assert read_text(twice, columns={"close": "close (2)"}).bars.frame["close"].to_list() == OPEN
    units = read_text("\n".join([lines[0], "-,USD,USD,USD,USD,BTC", *lines[1:]]))
    assert units.bars.frame["volume"].to_list() == VOLUME
    both = "\n".join(
        ["time,date" + HEAD[9:], *(f"{ms},{line}" for ms, line in zip(MS, lines[1:], strict=True))]
    )
    assert read_text(both).bars.timestamps.tolist() == MS
    with pytest.raises(UserError, match="is a web page and no table"):
        read_text("<!DOCTYPE html><html><body>404</body></html>")


@pytest.mark.parametrize("form", ["2023-{:02}", "{} 2023"])
def test_months_without_a_day(tmp_path, form):
    names = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
    months = [form.format(i + 1 if "-" in form else names[i]) for i in range(12)]
    (tmp_path / "x.csv").write_text(rows(months, header=HEAD))
    [found] = read_files(tmp_path / "x.csv", symbol="X", interval="1M")
    assert found.bars.frame["timestamp"].dt.month().to_list() == list(range(1, 13))


def test_no_row_is_lost_at_the_end(tmp_path):
    """Whatever a time looks like, rows are never taken for footers."""
    for pattern in ("%Y-%m-%dT%H:%M:%S.000+0000", "%Y%m%d %H%M%S", "%d.%m.%Y %H:%M", "%Y/%m/%d %H:%M", "%d-%b-%Y %H:%M",
                    "%b %d, %Y %I:%M %p", "%Y-%m-%dT%H:%MZ"):  # fmt: skip
        times = [f'"{text}"' for text in (t.strftime(pattern) for t in HOURS)]
        (tmp_path / "x.csv").write_text(rows(times, header=HEAD))
        [found] = read_files(tmp_path / "x.csv", symbol="X", interval="1h")
        assert found.bars.timestamps.tolist() == MS, pattern


def test_bars_that_leave_out_every_weekend_are_told_of_their_calendar(tmp_path):
    (tmp_path / "x.csv").write_text(rows(DATES, header=HEAD))
    [found] = read_files(tmp_path / "x.csv", symbol="X", interval="1d")
    assert any("name the market's calendar" in note for note in found.notes)
    [found] = read_files(tmp_path / "x.csv", symbol="X", interval="1d", calendar="NYSE")
    assert found.notes == ()
    assert found.bars.instrument.calendar == "XNYS"


def test_columns_that_are_not_read_are_named(tmp_path):
    extra = "\n".join(
        f"{line},7,8" if i else f"{line},Trades,Note"
        for i, line in enumerate(rows(DATES, header=HEAD).splitlines())
    )
    (tmp_path / "x.csv").write_text(extra)
    [found] = read_files(tmp_path / "x.csv", symbol="X", interval="1d", calendar="XNYS")
    assert found.notes == ("not read: Trades, Note",)
