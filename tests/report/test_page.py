"""The page: what it says, that it stands alone, and that a browser draws it without a complaint."""

import re

import numpy as np
import pytest

from longtape.report.charts import Band, Chart, Marks, Series
from longtape.report.glossary import explained
from longtape.report.page import (
    Bar,
    Bars,
    Facts,
    Figure,
    Folded,
    Grid,
    Heat,
    Months,
    Page,
    Section,
    Table,
    Tabs,
    Verdict,
    render,
    write,
)
from tests.report.browser import browser

BARS = 100_000


def page_of(bars=300):
    times = (np.arange(bars) * 60_000 + 1_704_067_200_000).astype("datetime64[ms]")
    walk = 1.0 * np.exp(np.random.default_rng(0).normal(0, 0.01, (3, bars)).cumsum(axis=1))
    lines = [Series("longtape", walk[0]), Series("buy & hold", walk[1], "c2")]
    equity = Chart(times, "equity, start = 1", lines, [Band("random strategies", 0.9 * walk[0], 1.1 * walk[0])],
                   marks=[Marks("bought", times[::50], walk[0][::50], "good", "up")], log=True, group="a")  # fmt: skip
    hours = Chart([f"{h:02}" for h in range(24)], "error", [Series("mean", np.arange(24.0), shape="bars")])
    dots = Chart(
        np.linspace(0.1, 2, 50), "y", [Series("dots", np.linspace(0.1, 3, 50), shape="dots")], log_x=True
    )
    blocks = [
        Figure("Equity", "After costs.", equity),
        Figure(
            "Drawdown", "", Chart(times, "%", [Series("drawdown", -walk[2], "bad", fill=True)], group="a")
        ),
        Grid([Figure("Hours", "", hours), Figure("Dots", "", dots)]),
        Tabs({"one": [Figure("One", "", hours)], "two": [Figure("Two", "", dots)]}),
        Months("Months", "", [(2024, [0.01, -0.02, *[None] * 10], -0.01)]),
        Bars("Effects", "", [Bar("1 back", 0.2, "0.20", -0.1, 0.5), Bar("2 back", -0.1, "-0.10")]),
        Heat("Maps", "", {"layer 1": np.eye(8)}),
        Folded("The whole experiment", "name: <x>"),
    ]
    rows = [{"forecast": f"S{n} return(1)", "Sharpe": -0.0583, "tone": "bad"} for n in range(6)]
    top = [Table("Next forecast", "In brackets the interval.", rows, stacked=True)]
    verdicts = [
        Verdict("Trading", "Lost -10.1% a year.", "bad"),
        Verdict("Forecasts", "No better than zero.", "neutral"),
    ]
    facts = Facts("The run", "", {"fingerprint of x": "ab" * 40})
    return Page(
        "A <title>", "What was asked", verdicts, top, [Section("Trading", blocks), Section("Data", [facts])]
    )


def test_the_page_says_what_its_blocks_say():
    html = render(page_of())
    text = re.sub(r"<(script|style).*?</\1>", "", html, flags=re.S).replace("\u00a0", " ")
    for said in (
        "A &lt;title&gt;",
        "Lost −10.1 % a year.",
        "−0.06",
        "log scale",
        "show all",
        "name: &lt;x&gt;",
        "−0.10",
    ):
        assert said in text, said
    assert 'class="verdict bad"' in html
    assert html.count('class="chart"') == 6
    assert not re.search(r'(src|href)="(?!#|data:)', text)
    assert "http" not in re.sub(
        r"/\*!.*?\*/", "", html, flags=re.S
    )  # the library's name in its own comment aside


def test_long_tables_are_folded_and_their_columns_told_apart():
    table = Table("T", "", [{"name": "x", "value": 0.5, "why": "w" * 60}] * 5, shown=2)
    assert table.classes == ["words", "number", "words long"]
    html = render(Page("p", "", [], [table]))
    assert "show 3 more" in html
    assert html.count("<td") == 15


def test_a_section_without_blocks_is_left_out():
    html = render(
        Page("p", "", [], [], [Section("Trading", []), Section("Inside", [Table("x", "", [{"a": 1}])])])
    )
    assert 'href="#trading"' not in html
    assert 'id="inside"' in html


def test_words_are_explained_where_they_mean_what_the_glossary_says():
    assert 'title="Mean return over its deviation' in explained("Sharpe")
    assert "<abbr" in explained("ahead of log-HAR")
    assert "<abbr" not in explained("<b>a flat line, p. 3</b>")
    assert "&lt;b&gt;" in explained("<b>a flat line, p. 3</b>")


def test_bars_lie_about_a_common_zero():
    first, second = Bars("", "", [Bar("a", 3.0, "3", 2.0, 4.0), Bar("b", -1.0, "-1")]).drawn
    assert (first["zero"], first["left"], first["width"], first["reach"]) == (20.0, 20.0, 60.0, (60.0, 40.0))
    assert (second["left"], second["width"], second["reach"]) == (0.0, 20.0, None)


OVERLAPS = """[...document.querySelectorAll("figure")].filter(f => {
  const [legend, plot] = [".legend", ".chart"].map(name => f.querySelector(name).getBoundingClientRect());
  return plot.width && legend.bottom > plot.top + 1; }).length"""
DRAWN = (
    "[...document.querySelectorAll('.chart')].filter(c => c.clientWidth && c.querySelector('canvas')).length"
)
PANNED = """(async () => {
  const over = document.querySelector(".u-over"), box = over.getBoundingClientRect(), times = [];
  const at = { clientX: box.left + 300, cancelable: true };
  const turn = (how) => over.dispatchEvent(new WheelEvent("wheel", { ...how, ...at }));
  turn({ ctrlKey: true, deltaY: -300 });
  await new Promise((done) => setTimeout(done));
  for (let n = 0; n < 20; n++) {
    const began = performance.now();
    turn({ shiftKey: true, deltaY: n % 2 ? 50 : -50 });
    await new Promise((done) => setTimeout(done));
    times.push(performance.now() - began);
  }
  return [times.sort((a, b) => a - b)[10], document.querySelectorAll("button.all:not([hidden])").length];
})()"""


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    with browser(folder / "profile") as page:
        yield folder, page


def test_a_browser_draws_it_without_a_complaint_or_a_request(opened):
    folder, page = opened
    file = write(folder / "page.html", page_of())
    for width, dark in ((1280, False), (390, False), (1280, True)):
        page.show(file, width, 6_000, dark)
        assert page.complaints == []
        assert page.requests == [file.resolve().as_uri()]
        assert page.value(DRAWN) == 5  # the sixth waits behind its tab
        assert page.value(OVERLAPS) == 0
        assert page.value("document.documentElement.scrollWidth") == width
        ground = page.value("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") != dark
    page.value("document.querySelectorAll('[role=tab]')[1].click()")
    page.value("new Promise(done => setTimeout(done, 300))")
    assert page.value(DRAWN) == 5
    assert len(page.call("Page.printToPDF")["data"]) > 10_000
    assert page.complaints == []


def test_a_hundred_thousand_bars_stay_smooth_and_small(opened):
    folder, page = opened
    file = write(folder / "long.html", page_of(BARS))
    assert file.stat().st_size < 6e6
    page.show(file, 1280, 6_000)
    assert page.complaints == []
    milliseconds, zoomed = page.value(PANNED)
    assert zoomed == 2  # charts of one group move together
    assert milliseconds < 400  # a machine may be busy; a quiet one takes about 10
