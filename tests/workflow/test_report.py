"""The report as people read it: what stands on the page of small runs, of an order book, and of several runs."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from longtape.cli.main import execute
from longtape.core.files import read_json, write_json
from longtape.evaluation.skill import MODEL, P_VALUE
from longtape.experiment import parse_experiment
from longtape.report.numbers import price
from longtape.workflow import load_run, run, train
from longtape.workflow.explain import Study, most_attended
from longtape.workflow.inside import look_inside
from longtape.workflow.results import Results
from longtape.workflow.verdict import verdicts
from tests.books import book_frame
from tests.candles import candle_frame
from tests.report.browser import browser

SYMBOLS = ("AAA", "BBB")
MODEL_OF = {"lookback": 16, "attention": "bigbird", "attention_options": {"block_size": 4}, "d_model": 8,
            "n_heads": 2, "n_layers": 1}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("report")
    for seed, name in enumerate(SYMBOLS):
        candle_frame(2_600, seed).write_parquet(made / f"{name}.parquet")
    book_frame(1_200).write_parquet(made / "book.parquet")
    return made


def document(folder, **changes):
    data = {
        "source": "file",
        "path": str(folder / "{symbol}.parquet"),
        "symbols": list(SYMBOLS),
        "interval": "1h",
    }
    return {
        "name": "two markets", "data": data, "features": ["log_return", "volatility(20)"],
        "targets": ["return(3)", "volatility(3)"], "split": {"train": 0.4, "validation": 0.15}, "model": MODEL_OF,
        "training": {"epochs": 1, "stride": 8}, "audit": False,
        "backtest": {"signal": {"name": "tanh", "target": "return(3)", "options": {"gain": 200}},
                     "costs": {"fee": 0.0002}}, **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def made(folder):
    return run(parse_experiment(document(folder), "test.yaml"), folder / "run")


@pytest.fixture(scope="module")
def other(folder):
    changed = document(folder, seed=5, name="another seed")
    return run(parse_experiment(changed, "test.yaml"), folder / "other")


def text_of(path):
    """What stands on the page, without scripts, styles and marks."""
    html = re.sub(r"<(script|style).*?</\1>", " ", path.read_text("utf-8"), flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html).replace("\u00a0", " "))


def charts_of(path):
    found = re.search(
        r'<script type="application/json" id="charts">(.*?)</script>', path.read_text("utf-8"), re.S
    )
    return json.loads(found[1])["charts"]


def test_the_top_says_what_was_asked_on_what_data_and_what_is_next(made):
    text = text_of(made.path("report.html"))
    top = text[: text.index("Is it better than what anyone could do?")]
    for said in ("two markets", "AAA, BBB, bars of 1h: return(3) and volatility(3)", "Trading", "Forecasts",
                 "Next forecast", "In brackets the 90 % interval", "2,600", "2020-09-13"):  # fmt: skip
        assert said in top, said
    newest = made.forecast()
    row = newest.filter((newest["symbol"] == "AAA") & (newest["target"] == "return(3)")).row(0, named=True)
    assert f"{price(row['price'])} ({price(row['price_lower'])} to {price(row['price_upper'])})" in top
    for one in made.data.bars:
        assert one.fingerprint()[:12] in top


def test_every_part_that_the_run_has_stands_on_the_page(made):
    text = text_of(made.path("report.html"))
    for heading in ("Evidence", "Skill: AAA return(3)", "Skill: BBB volatility(3)", "Next price of AAA",
                    "Errors over time",
                    "Errors by the clock", "Predicted and realised", "Coverage by horizon", "Equity", "Drawdown",
                    "Month by month", "Returns", "Rolling Sharpe", "Trades of BBB", "Exposure", "Turnover",
                    "Profit by symbol", "Costs by kind", "Cost sensitivity", "Luck", "Attention to history",
                    "Most attended bars", "Occlusion by distance", "Learning curve", "Data quality",
                    "command to repeat it",
                    "memory of training", "Glossary", "which took", "Audit for look-ahead",
                    f"longtape run {made.root}/experiment.yaml --out AGAIN", "learning_rate:"):  # fmt: skip
        assert heading in text, heading
    assert not re.search(r"\d%|[ (]-\d", text[: text.index("The whole experiment")])
    assert made.path("report.html").stat().st_size < 3e6
    for picture in ("report.png", "report.svg"):
        assert made.path(picture).stat().st_size > 5_000


def test_the_charts_hold_what_the_run_came_to(made):
    charts = charts_of(made.path("report.html"))
    [equity] = [chart for chart in charts if chart["yTitle"].startswith("equity")]
    assert [one["name"] for one in equity["series"]] == [
        "longtape",
        "buy & hold",
        "momentum",
        "mean reversion",
    ]
    assert equity["bands"][0]["name"] == "90 % of random strategies"
    assert len([c for c in charts if c["group"] == equity["group"]]) >= 5  # panned together
    assert sum(bool(c["marks"]) and c["marks"][0]["name"] == "bought" for c in charts) == len(SYMBOLS)


def test_a_browser_has_no_complaint_of_it(made, tmp_path):
    with browser(tmp_path / "profile") as page:
        page.show(made.path("report.html"), 390, 4_000)
        assert page.complaints == []
        assert page.requests == [made.path("report.html").resolve().as_uri()]
        assert page.value("document.documentElement.scrollWidth") == 390


def test_several_runs_stand_side_by_side(made, other, tmp_path, capsys):
    rows = [{"target": "AAA return(3)", "attention": "flash", "lookback": n, "loss": 0.1 * n, "± seeds": 0.1,
             "training s": 1.0 * n} for n in (8, 16)]  # fmt: skip
    rows.append({"target": "AAA return(3)", "attention": "zero", "loss": 0.5})
    write_json(tmp_path / "compared" / "compare.json", {"rows": rows, "notes": ["Two settings."]})
    page = tmp_path / "page.html"
    folders = [str(made.root), str(other.root), str(tmp_path / "compared")]
    assert execute(["report", *folders, "--out", str(page)]) == 0
    text = text_of(page)
    context = "Context lengths: loss of AAA return(3)"
    for said in ("Runs side by side", "2 runs: run, other", "What differs between the experiments", "seed 0 5",
                 "AAA return(3)", "p, differs from the first", context, "Two settings."):  # fmt: skip
        assert said in text, said
    assert [one["name"] for one in charts_of(page)[0]["series"]] == ["run", "other"]
    assert execute(["report", *folders[:2]]) == 2
    assert "name where the page of several runs goes" in capsys.readouterr().err
    assert execute(["report", folders[0], folders[0], "--out", str(page)]) == 2
    assert "is named twice" in capsys.readouterr().err
    assert execute(["report", folders[2]]) == 2
    alone = tmp_path / "alone.html"
    assert execute(["report", folders[0], folders[2], "--out", str(alone)]) == 0
    assert "Context lengths: time" in text_of(alone)


def test_a_short_account_of_a_book_says_nothing_of_a_year(folder, tmp_path):
    data = {"source": "file", "kind": "books", "path": str(folder / "book.parquet"), "symbols": ["X"]}
    model = {"kind": "order_book", "tokens": "level", "lookback": 8, "levels": 3, "attention": "flash", "d_model": 8,
             "n_heads": 2, "n_layers": 1}  # fmt: skip
    signal = {"target": "smoothed_direction(5)", "holding": "newest", "options": {"threshold": 0.1}}
    asked = {
        "data": data, "features": ["book(3, 0.01, 0.1)", "book_imbalance(2)"], "targets": ["smoothed_direction(5)"],
        "split": {"train": 0.6, "validation": 0.2}, "model": model, "training": {"epochs": 1, "stride": 4},
        "audit": False, "backtest": {"mid_bars": "1s", "signal": signal, "costs": {"spread": 0.0001}},
    }  # fmt: skip
    made = run(parse_experiment(asked, "books.yaml"), tmp_path / "run")
    text = text_of(made.path("report.html"))
    body = text[: text.index("The whole experiment")]
    assert "standard errors from zero" in body
    assert "of market time: nothing is stretched to a year" in body
    for absurd in ("annual return", "a year after costs", "Sharpe −", "Rolling Sharpe", "turnover a year"):
        assert absurd not in body, absurd
    assert "Said and realised" in body
    assert "Who looks at whom" in body
    data = made.data
    study = Study(made.fitted.model, data.panel, data.split.test[:4], data.bars)
    back = [row["bars back"] for row in most_attended(study)]
    assert len(set(back)) == len(back) == 8  # a snapshot stands there once, though it is six tokens
    assert study.reached.sum() == pytest.approx(1, abs=1e-4)


def test_a_look_inside_is_bounded_and_says_what_it_did_not_do(made, monkeypatch):
    data = made.data
    found = look_inside(made.fitted.model, data.panel, data.split.test, data.bars)
    assert found.windows == 32
    assert all(one.sum() == pytest.approx(1, abs=1e-4) for one in found.newest)
    assert len(found.closes) == len(found.reached) == 16
    monkeypatch.setattr("longtape.workflow.inside._LONGEST", 8)
    few = look_inside(made.fitted.model, data.panel, data.split.test, data.bars)
    assert few.reached is None
    assert "longtape explain" in few.missing["most attended bars"]
    assert not few.occlusion


def results(own, other, p_value, doubts=()):
    rows = [{"model": MODEL, "QLIKE": own}, {"model": "log-HAR", "QLIKE": other, P_VALUE: p_value}]
    return Results(None, {"X volatility(1)": rows}, [], None, [], doubts)


@pytest.mark.parametrize(
    ("own", "p_value", "tone", "said"),
    [
        (0.3, 0.0001, "good", "is better than log-HAR (QLIKE 0.300 against 0.400, p < 0.001)"),
        (0.5, 0.01, "bad", "is worse than log-HAR"),
        (0.3, 0.4, "neutral", "cannot be told from log-HAR"),
        (0.4, 1.0, "neutral", "is as good as log-HAR, and no better"),
        (np.nan, 0.5, "neutral", "Not scored"),
    ],
)
def test_forecasts_are_judged_in_one_coloured_sentence(own, p_value, tone, said):
    trading, forecasts = verdicts(results(own, 0.4, p_value), None)
    assert said in forecasts.sentence.replace("\u00a0", " ")
    assert (trading.tone, forecasts.tone) == ("neutral", tone)


def test_doubts_and_a_failed_audit_stand_in_front_and_nothing_is_good_then():
    failed = {"passed": False, "checks": [{"name": "features", "passed": False}]}
    said = verdicts(results(0.3, 0.4, 0.0001, ["Implausible: R² 0.9."]), failed)
    assert [one.about for one in said] == ["Audit", "Doubt", "Trading", "Forecasts"]
    assert [one.tone for one in said] == ["bad", "bad", "neutral", "neutral"]


def test_what_training_took_is_kept_and_an_older_run_is_reported_without_it(made, folder, tmp_path):
    facts = read_json(made.path("run.json"))
    assert facts["peak_memory_mb"] is None or facts["peak_memory_mb"] >= 0
    closed = train(
        parse_experiment(document(folder, model={"kind": "mean", "lookback": 16}), "r.yaml"),
        tmp_path / "run",
    )
    facts = read_json(closed.path("run.json"))
    del facts["peak_memory_mb"]
    write_json(closed.path("run.json"), facts)
    text = text_of(load_run(closed.root).report())
    assert "memory of training" not in text
    assert "Attention to history" not in text


def test_a_walk_forward_says_how_it_is_repeated(folder, tmp_path):
    file, out = tmp_path / "e.yaml", tmp_path / "walk"
    file.write_text(parse_experiment(document(folder, targets=["return(3)"]), "test.yaml").to_yaml())
    assert execute(["walk-forward", str(file), "--folds", "2", "--out", str(out), "--quiet"]) == 0
    text = text_of(out / "report.html")
    for said in (
        "walked forward",
        "Folds",
        "--folds 2 --window expanding --out AGAIN",
        "Skill: AAA return(3)",
        "Equity",
    ):
        assert said in text, said
