"""Charts as plain values: nothing is lost in thinning, and what the page's script reads is what was given."""

import base64
import json

import numpy as np
import pytest

from longtape.report import charts
from longtape.report.charts import Chart, Drawn, Marks, Series, extremes, needs_log, thinned_x


def decoded(drawn, name):
    content = json.loads(drawn.json())["arrays"][name]
    return np.frombuffer(base64.b64decode(content["data"]), f"<{content['kind']}")


@pytest.mark.parametrize("n", [1, 7, 100, 1003])
def test_thinning_keeps_the_lowest_and_the_highest_of_every_bucket(n):
    rng = np.random.default_rng(n)
    y, bucket = rng.normal(size=n), 10
    kept = extremes(y, bucket)
    x = thinned_x(np.arange(n, dtype=float), bucket)
    assert len(kept) == len(x) == 2 * -(-n // bucket)
    assert (np.diff(x) >= 0).all()
    for place, start in enumerate(range(0, n, bucket)):
        part, pair = y[start : start + bucket], kept[2 * place : 2 * place + 2]
        assert {pair.min(), pair.max()} == {part.min(), part.max()}
        if part.argmin() != part.argmax():
            assert (pair[0] == part.min()) == (
                part.argmin() < part.argmax()
            )  # in the order in which they came


def test_gaps_stay_gaps():
    y = np.r_[np.full(10, np.nan), 1.0, np.nan, 3.0, np.full(7, np.nan)]
    assert np.array_equal(extremes(y, 10), [np.nan, np.nan, 1.0, 3.0], equal_nan=True)


def test_long_series_are_thinned_and_the_caption_says_so(monkeypatch):
    monkeypatch.setattr(charts, "MOST_POINTS", 100)
    x = np.arange(1_000).astype("datetime64[h]").astype("datetime64[ms]")
    chart = Chart(x, "price", [Series("close", np.sin(np.arange(1_000.0)))])
    drawn = Drawn()
    number = drawn.add(chart)
    content = json.loads(drawn.json())["charts"][number]
    assert len(decoded(drawn, content["series"][0]["y"])) == 100
    assert decoded(drawn, content["x"])[-1] == 999 * 3600
    assert (
        "Of every 20 values in a row the lowest and the highest are drawn (1,000 in all)." in chart.thinning
    )
    assert Chart(x[:50], "price").thinning == ""


def test_what_the_script_reads_is_what_was_given():
    drawn = Drawn()
    times = np.array(["2024-01-01T00:00", "2024-01-01T01:00"], "datetime64[ms]")
    y = np.array([1.0, np.nan])
    first = Chart(times, "</script>", [Series("a", y)], marks=[Marks("m", times[:1], y[:1], lower=y[:1], upper=y[:1])],
                  spans=[(times[0], times[1])])  # fmt: skip
    drawn.add(first)
    drawn.add(Chart(["x", "y"], "by name", [Series("a", y)]))
    assert "</script>" not in drawn.json()
    content = json.loads(drawn.json())
    one, two = content["charts"]
    assert (one["kind"], two["kind"], two["labels"]) == ("time", "category", ["x", "y"])
    assert one["yTitle"] == "</script>"
    assert one["spans"] == [[1704067200.0, 1704070800.0]]
    assert decoded(drawn, one["x"]).tolist() == [1704067200.0, 1704070800.0]
    assert np.array_equal(decoded(drawn, one["series"][0]["y"]), y.astype(np.float32), equal_nan=True)
    assert one["series"][0]["y"] == two["series"][0]["y"]  # every array once
    assert one["marks"][0]["lower"] is not None


def test_a_legend_names_what_has_a_name():
    chart = Chart(np.arange(2.0), "y", [Series("a", np.ones(2)), Series("", np.ones(2))])
    assert chart.legend == [("a", "accent", "line")]


@pytest.mark.parametrize(("low", "high", "log"), [(1.0, 4.0, False), (1.0, 40.0, True), (-1.0, 40.0, False)])
def test_what_spans_much_is_logarithmic(low, high, log):
    assert needs_log(np.array([low, high, np.nan])) == log
