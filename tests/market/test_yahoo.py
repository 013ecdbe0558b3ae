"""Yahoo's recorded answers, served from a loopback address, through the code that reads the live ones."""

import json

import numpy as np
import polars as pl
import pytest

from longtape.core.clock import DAY, Interval, to_milliseconds
from longtape.core.errors import ServiceError, UserError
from longtape.market.bars import Bars
from longtape.market.fetch import FetchRequest, fetch
from longtape.market.sources.yahoo import Yahoo, adjusted, parse_chart
from longtape.market.store import Store
from tests.market.yahoo_server import NOT_FOUND, made, serve
from tests.shared_data import shared

FOLDER = "api_responses/yahoo_chart/"
MSFT = "historical-via-chart-MSFT-dividends-2021-02-01-to-2022-01-31.csv.json"
NVDA = "historical-via-chart-NVDA-split-2021-02-01-to-2022-01-31.csv.json"
AAPL = "chart-AAPL-2020-08-31-to-2020-11-07.json"
EMPTY = "chart-AAPL-2025-02-01-to-2025-02-02-includePrePost-false-interval-1m.json"
KINDS = {
    "chart-0P000071W8.TO-2020-01-01-to-2020-01-03.json": ("0P000071W8.TO", "fund", "XTSE", 1),
    "chart-AAPL-2020-01-01-to-2020-01-03.json": ("AAPL", "stock", "XNYS", 1),
    "chart-BTC-USD-2020-01-01-to-2020-01-03.json": ("BTC-USD", "crypto", "24/7", 3),
    "chart-EURUSD=X-2020-01-01-to-2020-01-03.json": ("EURUSD=X", "fx", "24/5", 3),
    "chart-GC=F-2020-01-01-to-2020-01-03.json": ("GC=F", "future", "CMES", 1),
    "chart-WSU.DE-2023-08-04-to-2023-08-09.json": ("WSU.DE", "stock", "XETR", 3),
    "historical-via-chart-0P0000XTS7-2024-09-12-to-2024-09-16.json": ("0P0000XTS7", "fund", "XNYS", 2),
}


def recorded(name):
    response = json.loads(shared(FOLDER + name).read_text())["response"]
    return response.get("bodyJson") or json.loads(response["body"])


def chart(name):
    return parse_chart(recorded(name)["chart"]["result"][0], name)


@pytest.fixture
def served():
    with serve() as state:
        yield state


@pytest.fixture
def yahoo(served):
    source = Yahoo(served["url"], sleep=lambda seconds: None)
    yield source
    source.close()


def test_dividends_and_the_adjusted_series():
    msft = chart(MSFT)
    assert msft.bars.height == 252
    assert list(msft.dividends.values()) == [0.56, 0.56, 0.56, 0.62]
    paid = msft.bars.filter(pl.col("dividend") > 0)
    assert paid["timestamp"].dt.strftime("%Y-%m-%d").to_list() == [
        "2021-02-17",
        "2021-05-19",
        "2021-08-18",
        "2021-11-17",
    ]
    assert (msft.bars["split"] == 1.0).all()
    # The factor steps at each ex-date by 1 − dividend/close of the day before (CRSP, and Yahoo's own help page).
    close, raw = msft.bars["adj_close"].to_numpy(), msft.bars["close"].to_numpy()
    factor = close / raw
    expected = 1 - msft.bars["dividend"].to_numpy()[1:] / raw[:-1]
    assert np.allclose(factor[:-1] / factor[1:], expected, rtol=5e-7, atol=0)  # Yahoo sends single precision
    series = adjusted(msft.bars)
    assert series["close"].equals(msft.bars["adj_close"], check_names=False)
    assert np.allclose(series["high"] / series["close"], msft.bars["high"] / msft.bars["close"])
    body = recorded(MSFT)["chart"]["result"][0]["indicators"]["quote"][0]
    assert msft.bars["open"].to_list() == body["open"]


def test_splits_are_in_the_prices_already():
    nvda = chart(NVDA)
    assert list(nvda.splits.values()) == [4.0]
    assert nvda.bars.filter(pl.col("split") != 1)["timestamp"].dt.strftime("%Y-%m-%d").to_list() == [
        "2021-07-20"
    ]
    assert nvda.bars["close"].log().diff().abs().max() < 0.15
    aapl = chart(AAPL)
    assert aapl.bars.height == 49
    assert aapl.bars["split"].to_list()[0] == 4.0
    assert aapl.bars["dividend"].to_list()[-1] == 0.205


@pytest.mark.parametrize("name", KINDS)
def test_every_recorded_kind_is_read(served, yahoo, name):
    symbol, kind, calendar, rows = KINDS[name]
    served["body"] = recorded(name)
    instrument = yahoo.instrument(symbol)
    assert (instrument.category, instrument.calendar) == (kind, calendar)
    (page,) = yahoo.candles(symbol, "1d", to_milliseconds("2019-01-01"), to_milliseconds("2025-01-01"))
    assert page.height == rows
    assert len(Bars.checked(instrument, Interval.parse("1d"), page)) == rows
    assert (page["timestamp"].dt.timestamp("ms") % DAY == 0).all()
    assert served["asked"][0][0] == f"/v8/finance/chart/{symbol}"


def test_the_date_of_a_session_is_that_of_the_exchange():
    assert chart("chart-WSU.DE-2023-08-04-to-2023-08-09.json").bars["timestamp"].dt.strftime("%m-%d").to_list() == [
        "08-04", "08-07", "08-08"]  # fmt: skip
    assert chart("chart-EURUSD=X-2020-01-01-to-2020-01-03.json").bars["timestamp"].dt.strftime("%m-%d").to_list() == [
        "01-01", "01-02", "01-03"]  # fmt: skip


def test_an_interval_without_any_data_has_no_bars(served, yahoo):
    served["body"] = recorded(EMPTY)
    assert (
        list(yahoo.candles("AAPL", "1m", to_milliseconds("2025-02-01"), to_milliseconds("2025-02-02"))) == []
    )


def test_the_unfinished_day_is_left_out_by_the_services_clock(served, yahoo):
    whole = (to_milliseconds("2024-01-01"), to_milliseconds("2024-02-01"))
    for date, rows in [("Thu, 04 Jan 2024 20:00:00 GMT", 2), ("Fri, 05 Jan 2024 00:00:00 GMT", 3)]:
        served["date"] = date
        (page,) = yahoo.candles("AAPL", "1d", *whole)
        assert page.height == rows
    (page,) = yahoo.candles("AAPL", "1d", to_milliseconds("2024-01-03"), to_milliseconds("2024-01-04"))
    assert page["close"].to_list() == [11.0]


def test_days_without_any_price_are_no_bars_and_half_ones_an_error(served, yahoo):
    quote = {name: [10.0, None, 12.0] for name in ("open", "high", "low", "close", "volume")}
    closes = [{"adjclose": [9.0, None, 12.0]}]
    served["body"] = made(indicators={"quote": [quote], "adjclose": closes})
    whole = (to_milliseconds("2024-01-01"), to_milliseconds("2024-02-01"))
    (page,) = yahoo.candles("AAPL", "1d", *whole)
    assert page["close"].to_list() == [10.0, 12.0]
    served["body"] = made(indicators={"quote": [quote | {"close": [10.0, 11.0, 12.0]}], "adjclose": closes})
    with pytest.raises(ServiceError, match="a part missing, at 2024-01-03"):
        list(yahoo.candles("AAPL", "1d", *whole))


def test_what_yahoo_refuses_is_the_users_to_mend(served, yahoo):
    served["status"] = 404
    served["body"] = NOT_FOUND
    with pytest.raises(UserError, match="'NOSUCH': No data found"):
        yahoo.instrument("NOSUCH")
    assert len(served["asked"]) == 1


@pytest.mark.parametrize(
    "body",
    [[], {}, {"chart": {"result": [], "error": None}}, {"chart": {"result": [{}], "error": None}},
     made(timestamp=[1]), made(indicators={"quote": [{"open": 1}]}), made(timestamp=["x", "y", "z"]),
     made(events={"splits": {"1": {"date": 1, "numerator": 1, "denominator": 0}}})],
)  # fmt: skip
def test_nonsense_is_tried_again_and_then_named(served, yahoo, body):
    served["body"] = body
    with pytest.raises(ServiceError, match=r"answered .*\(8 tries\)"):
        yahoo.instrument("AAPL")
    assert len(served["asked"]) == 8


def test_wrong_words_from_the_user(served, yahoo):
    with pytest.raises(UserError, match="lists 'AAPL' as stock"):
        yahoo.instrument("AAPL", "fx")
    with pytest.raises(UserError, match="no candles of 4h"):
        yahoo.candles("AAPL", "4h", 0, None)
    served["body"] = made(meta=made()["chart"]["result"][0]["meta"] | {"exchangeName": "XXX"})
    with pytest.raises(UserError, match="'XXX' has no calendar"):
        yahoo.instrument("AAPL")


def test_minutes_are_asked_for_a_week_at_a_time(served, yahoo):
    until = to_milliseconds("2024-01-31")
    list(yahoo.candles("AAPL", "1m", until - 20 * DAY, until))
    spans = [(int(p["period2"]) - int(p["period1"])) / 86_400 for _, p in served["asked"]]
    assert spans == [7.0, 7.0, 6.0]


def test_history_that_a_split_restates_is_fetched_and_stored_anew(served, yahoo, tmp_path):
    store, wanted = (
        Store(tmp_path / "store"),
        FetchRequest("candles", Interval.parse("1d"), to_milliseconds("2024-01-01")),
    )
    assert fetch(yahoo, store, ["AAPL"], wanted, "any")[0].stored.added == 3
    result = made()["chart"]["result"][0]
    halved = {name: [x / 2 for x in values] for name, values in result["indicators"]["quote"][0].items()}
    served["body"] = made(indicators={"quote": [halved], "adjclose": [{"adjclose": [4.5, 5.0, 6.0]}]})
    later = FetchRequest("candles", Interval.parse("1d"), to_milliseconds("2024-01-04"))
    outcome = fetch(yahoo, store, ["AAPL"], later, "any")[0]
    assert outcome.stored.conflicts == 3
    assert store.read("AAPL", "1d").frame["close"].to_list() == [5.0, 5.5, 6.0]


def test_without_an_address_the_calls_go_through_yfinances_session(monkeypatch):
    import yfinance.data
    from yfinance.exceptions import YFRateLimitError

    asked = []

    class Session:
        def get(self, url, params, timeout):
            asked.append(url)
            if len(asked) == 1:
                raise YFRateLimitError()
            if len(asked) == 2:
                raise ConnectionError("refused")
            response = type("Response", (), {})()
            response.status_code, response.content = 200, json.dumps(made()).encode()
            response.headers = {"Content-Type": "application/json", "Date": "Thu, 20 Feb 2025 11:47:40 GMT"}
            return response

    monkeypatch.setattr(yfinance.data, "YfData", Session)
    source = Yahoo(sleep=lambda seconds: None)
    assert source.instrument("^GSPC").category == "stock"
    assert asked == ["https://query2.finance.yahoo.com/v8/finance/chart/%5EGSPC"] * 3
    source.close()
