"""The pages say what is so: links and named files exist, commands parse, examples run, tables are current."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import typer
import yaml

import longtape as lt
from longtape.cli.main import app
from longtape.core.instrument import Instrument
from longtape.experiment import load_experiment, parse_experiment, read_yaml
from longtape.market.load import DataConfig
from tests.books import book_frame
from tests.candles import candle_frame
from tests.docs.pages import CODE, FILE, LINK, NAMES, ROOT, blocks, commands, prose, text
from tests.market.store_data import make_trades

EXPERIMENT = """
name: BTC
data: {source: file, path: candles.csv, symbols: [BTCUSDT], interval: 1h}
features: [log_return, volatility(20)]
targets: [return(3), volatility(3)]
model: {lookback: 32, attention: flash, d_model: 8, n_heads: 2, n_layers: 1}
training: {epochs: 1, stride: 8}
audit: false
"""
WITH_CODE = [name for name in NAMES if blocks(name, "python")]
OF_ITS_OWN = ("docs/extend.md",)  # adds to registries, which other tests go through


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take as given: candles, an experiment, a store, a run."""
    folder = tmp_path_factory.mktemp("workplace")
    frame = candle_frame(1200).with_columns(
        pl.col("timestamp").dt.offset_by("1207d").dt.to_string("iso:strict")
    )
    frame.write_csv(folder / "candles.csv")
    (folder / "experiment.yaml").write_text(EXPERIMENT)
    store, bitcoin = lt.Store(folder / "data"), Instrument("bybit", "linear", "BTCUSDT")
    store.append_table("trades", bitcoin, make_trades(50))
    store.append_table("books", bitcoin, book_frame(50))
    store.append_table("funding", bitcoin, candle_frame(3).select("timestamp", rate=pl.lit(1e-4)))
    lt.train(folder / "experiment.yaml", out=folder / "runs" / "btc")
    return folder


def run_blocks(name: str, folder: Path) -> None:
    """The Python of a page, block after block, in one program; a block `# file: x.py` is that file."""
    sys.path.insert(0, str(folder))
    told: dict[str, object] = {"__name__": __name__}
    for number, body in enumerate(blocks(name, "python"), 1):
        if body.startswith("# file: "):
            (folder / body.split()[2]).write_text(body, encoding="utf-8")
        else:
            exec(compile(body, f"{name}, block {number}", "exec"), told)


@pytest.mark.parametrize("name", [name for name in WITH_CODE if name not in OF_ITS_OWN])
def test_the_examples_of_a_page_run(
    name: str, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(sys, "path", [*sys.path])
    if "btc.onnx" in text(name):
        lt.load_run("runs/btc").export("onnx", "btc.onnx")
    if "lt.train(" in text(name):  # makes the run that the other pages find
        for given in ("candles.csv", "experiment.yaml"):
            (tmp_path / given).write_bytes((workplace / given).read_bytes())
        monkeypatch.chdir(tmp_path)
    run_blocks(name, Path.cwd())


@pytest.mark.parametrize("name", OF_ITS_OWN)
def test_the_examples_of_a_page_run_in_a_process_of_their_own(name: str, workplace: Path) -> None:
    program = f"""
import sys
from pathlib import Path
sys.path[:0] = {[str(ROOT), str(ROOT / "src")]!r}
from tests.docs.test_pages import run_blocks
run_blocks({name!r}, Path.cwd())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=workplace, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", [name for name in NAMES if list(commands(name))])
def test_the_command_lines_of_a_page_are_understood(name: str) -> None:
    for given in commands(name):
        command, words = (
            typer.main.get_command(app),
            [w for w in given.words if w not in ("--quiet", "--debug")],
        )
        while words and hasattr(command, "commands") and not words[0].startswith("-"):
            assert words[0] in command.commands, f"longtape {given}: no such command"
            command, words = command.commands[words[0]], words[1:]
        context = command.make_context("longtape", list(words), resilient_parsing=True)
        try:
            if given.whole:
                command.make_context("longtape", list(words))
            else:
                command.make_parser(context).parse_args(list(words))
        except typer.Exit:  # as --version ends
            continue
        except Exception as error:
            if not hasattr(error, "format_message"):
                raise
            pytest.fail(f"longtape {given}: {error.format_message()}")
        if overrides := context.params.get("override"):
            load_experiment(_experiment_of(context), overrides)


def _experiment_of(context: object) -> Path:
    named = ROOT / str(context.params.get("experiment", ""))  # type: ignore[attr-defined]
    return named if named.suffix == ".yaml" and named.exists() else ROOT / "examples" / "btc_hourly.yaml"


@pytest.mark.parametrize("name", [name for name in NAMES if blocks(name, "yaml")])
def test_the_sections_of_experiments_on_a_page_are_understood(name: str) -> None:
    """A block may be a part of an experiment; the rest is that of an example."""
    for body in blocks(name, "yaml"):
        given = yaml.safe_load(body)
        if data := given.pop("data", None):
            DataConfig(**data)
        whole = read_yaml(ROOT / "examples" / "btc_hourly.yaml")
        parse_experiment(whole | {key: _merged(whole.get(key), value) for key, value in given.items()}, name)


def _merged(before: object, now: object) -> object:
    """A section that names its kind stands for itself; others change what they name."""
    both = isinstance(before, dict) and isinstance(now, dict)
    return before | now if both and "kind" not in now else now


@pytest.mark.parametrize("name", NAMES)
def test_what_a_page_links_to_is_there(name: str) -> None:
    for target in LINK.findall(prose(name)):
        path = target.split("#")[0]
        if path and not re.match(r"https?:|mailto:", path):
            assert (ROOT / name).parent.joinpath(path).exists(), f"{name}: {target}"


@pytest.mark.parametrize("name", NAMES)
def test_files_and_tests_that_a_page_names_are_there(name: str) -> None:
    for word in " ".join(CODE.findall(prose(name))).split():
        if FILE.match(word) and "yours" not in word:
            path, _, test = word.partition("::")
            assert (ROOT / path).exists(), f"{name}: {word}"
            assert not test or f"def {test}(" in text(path), f"{name}: {word}"


@pytest.mark.parametrize("name", [name for name in NAMES if "make " in text(name)])
def test_what_a_page_makes_is_in_the_makefile(name: str) -> None:
    asked = re.findall(r"(?:^|`)make (\w+)", text(name), re.MULTILINE)
    assert set(asked) <= set(re.findall(r"^(\w+):", text("Makefile"), re.MULTILINE))


def test_every_page_is_in_the_table_of_contents() -> None:
    pages = {path.relative_to(ROOT / "docs").with_suffix("") for path in ROOT.glob("docs/**/*.md")}
    listed = {entry for page in ROOT.glob("docs/*.md") for entry in _toctree(page)}
    assert {str(page) for page in pages} - listed == {"index"}


def _toctree(page: Path) -> list[str]:
    return [
        line.partition("<")[2].rstrip(">") or line
        for body in blocks(str(page.relative_to(ROOT)), "{toctree}")
        for line in body.splitlines()
        if line and not line.startswith(":")
    ]


def test_the_generated_tables_are_current() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "tables.py"))
    for page in script["PAGES"]:
        written = page.read_text(encoding="utf-8")
        assert script["fill"](written) == written, f"{page.name}: run python docs/tables.py"
