"""The embedded real days."""

import sys

import pytest

from longtape.core.clock import to_milliseconds
from longtape.core.errors import UserError
from longtape.market.sources import SOURCES
from longtape.market.sources.sample import Sample, load


@pytest.mark.parametrize(("name", "last"), [("SP500", 2506.850098), ("NASDAQ", 6635.279785)])
def test_real_days(name, last):
    bars = load(name)
    assert len(bars) == 5_031
    assert bars.timestamps[0] == to_milliseconds("1999-01-04")
    assert bars.timestamps[-1] == to_milliseconds("2018-12-31")
    assert bars.column("close")[-1] == pytest.approx(last)
    assert (bars.instrument.key, bars.instrument.calendar) == (f"sample/index/{name}", "XNYS")
    assert "adj_close" in bars.frame.columns


def test_as_a_source():
    source = SOURCES.load("sample")()
    assert isinstance(source, Sample)
    (page,) = source.candles("SP500", "1d", to_milliseconds("2018-01-01"), to_milliseconds("2018-02-01"))
    assert page.height == 21
    assert list(source.candles("SP500", "1d", to_milliseconds("2020-01-01"), None)) == []
    with pytest.raises(UserError, match="did you mean 'SP500'"):
        source.instrument("SP50")
    with pytest.raises(UserError, match="1d"):
        list(source.candles("SP500", "1h", None, None))


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "arch.data.sp500", None)
    with pytest.raises(UserError, match=r"longtape\[sample\]"):
        load("SP500")
