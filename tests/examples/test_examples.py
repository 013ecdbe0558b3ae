"""Every example script runs from beginning to end in its quick form; they stand alone and refuse mistakes in a line."""

import ast
import runpy
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

from tests.books import book_frame

FOLDER = Path(__file__).resolve().parents[2] / "examples"
PICTURES = {
    "01_data.py": "data.png",
    "02_architecture.py": "mechanisms.png",
    "03_training.py": "training.png",
    "04_prediction_and_attention.py": "prediction.png",
    "05_backtest.py": "backtest.png",
    "informer_many_steps.py": "informer.png",
    "order_book.py": "order_book.png",
    "portfolio.py": "portfolio.png",
}
FREE = {"longtape", "matplotlib", "numpy", "polars", "torch", *sys.stdlib_module_names}


@pytest.fixture
def start(monkeypatch):
    """A script as a user starts it, in this process: importing everything anew would take most of the time."""

    def run(name, *options):
        monkeypatch.setattr(sys, "argv", [name, *map(str, options)])
        runpy.run_path(str(FOLDER / name), run_name="__main__")

    with matplotlib.rc_context({"backend": "agg"}):
        yield run
    plt.close("all")


@pytest.mark.parametrize("name", PICTURES)
def test_runs_and_draws(start, name, tmp_path, capsys):
    if name[0] == "0":
        pytest.importorskip("arch")
    given = []
    if name == "order_book.py":
        book_frame(1_500, 5).write_parquet(tmp_path / "book.parquet")
        given = [tmp_path / "book.parquet", "--symbol", "X"]
    start(name, *given, "--quick", "--out", tmp_path / "out")
    picture = tmp_path / "out" / PICTURES[name]
    assert f"picture: {picture}" in capsys.readouterr().out
    assert picture.stat().st_size > 10_000


@pytest.mark.parametrize("name", PICTURES)
def test_mistakes_are_a_line(start, name, tmp_path, capsys):
    (tmp_path / "book.parquet").touch()
    given = [tmp_path / "book.parquet"] if name == "order_book.py" else []
    wrong = [(["--out", tmp_path], "is there already")]
    wrong += [] if name == "01_data.py" else [(["--attention", "bigbrid"], "invalid choice: 'bigbrid'")]
    for options, line in wrong:
        with pytest.raises(SystemExit) as ended:
            start(name, *given, *options)
        assert ended.value.code == 2
        assert line in capsys.readouterr().err.splitlines()[-1]


def test_an_order_book_has_to_be_named(start, capsys):
    for options in ([], ["nowhere.parquet"]):
        with pytest.raises(SystemExit):
            start("order_book.py", *options)
        assert "book" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", PICTURES)
def test_is_a_notebook_that_shares_nothing_but_longtape(name):
    text = (FOLDER / name).read_text("utf-8")
    assert text.startswith('# %% [markdown]\n"""\n# ')
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
            assert {str(one).split(".")[0] for one in names} <= FREE


def test_the_table_names_every_example():
    table = (FOLDER / "README.md").read_text("utf-8")
    for path in (*FOLDER.glob("*.py"), *FOLDER.glob("*.yaml")):
        assert f"({path.name})" in table, path.name
    assert {path.name for path in FOLDER.glob("*.py")} == {*PICTURES, "listops.py"}
