"""The command line: quick help, one line for a mistake, the right exit code, no traceback."""

import subprocess
import sys

import polars as pl
import pytest

from longtape.cli.main import execute
from tests.candles import candle_frame

GOOD = """
data: {{source: file, path: {path}, symbols: [TEST], interval: 1h}}
features: [log_return]
targets: [return(6)]
model: {{lookback: 64, attention: flash, d_model: 8, n_heads: 2, n_layers: 1}}
training: {{epochs: 1}}
"""


def fails(capsys, *arguments):
    """Exit code and the one line on standard error."""
    code = execute([*arguments, "--quiet"])
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("longtape: ")
    return code, lines[0]


def experiment(folder, text=GOOD, name="candles.parquet"):
    (folder / "e.yaml").write_text(text.format(path=name))
    return str(folder / "e.yaml")


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["data", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    code = "import sys; from longtape.cli.main import execute; execute(sys.argv[1:]);"
    code += "print(sorted({'torch', 'polars', 'numba', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_importing_longtape_imports_nothing_heavy():
    code = "import sys, longtape; print(sorted({'torch', 'polars', 'numba', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def spoiled(column, row, value):
    """Put `value` into one cell."""
    return lambda f: f.with_columns(
        pl.when(pl.int_range(pl.len()) == row).then(value).otherwise(column).alias(column)
    )


FRAMES = {
    "missing column": (lambda f: f.drop("close"), "close"),
    "unsorted": (lambda f: pl.concat([f[50:], f[:50]]), "earlier"),
    "duplicated": (lambda f: pl.concat([f[:50], f[49:]]), "repeats"),
    "NaN": (spoiled("close", 7, float("nan")), "row 8"),
    "price of zero": (spoiled("low", 9, 0.0), "low"),
    "high below low": (lambda f: f.with_columns(high=pl.col("low") * 0.9), "high"),
    "other interval": (lambda f: f[::2], "interval"),
    "too few bars": (lambda f: f[:60], "lookback"),
}


@pytest.mark.parametrize("name", FRAMES)
def test_bad_candles_give_one_line_and_leave_nothing(capsys, tmp_path, name):
    spoil, word = FRAMES[name]
    spoil(candle_frame(400)).write_parquet(tmp_path / "candles.parquet")
    code, line = fails(capsys, "train", experiment(tmp_path), "--out", str(tmp_path / "out"))
    assert code == 2
    assert word in line
    assert not (tmp_path / "out").exists()


def test_mixed_time_zones_are_refused(capsys, tmp_path):
    rows = ["timestamp,open,high,low,close,volume"]
    zones = ("Z", "+02:00")
    rows += [f"2024-01-{1 + i // 24:02}T{i % 24:02}:00:00{zones[i % 2]},1,1,1,1,1" for i in range(200)]
    (tmp_path / "candles.csv").write_text("\n".join(rows))
    code, line = fails(
        capsys, "train", experiment(tmp_path, name="candles.csv"), "--out", str(tmp_path / "out")
    )
    assert code == 2
    assert "candles.csv" in line


TYPOS = {
    "model: {lookbak: 64}": "did you mean 'lookback'",
    "modle: {lookback: 64}": "did you mean 'model'",
    "model: {lookback: -5}": "model.lookback",
    "model: {attention: bigbrid}": "did you mean 'bigbird'",
    "model: {attention: bigbird, attention_options: {n_randm: 3}}": "did you mean 'n_random'",
    "features: [volatilty(20)]": "did you mean 'volatility'",
    "targets: [retrun(6)]": "did you mean 'return'",
    "training: {epochs: many}": "training.epochs",
    "backtest: {signal: {name: treshold}}": "did you mean 'threshold'",
    "backtest: {costs: {fee: -1}}": "fee",
    "data: {source: file, path: nowhere.parquet, symbols: [X], interval: 1h}": "nowhere.parquet",
    "data: {source: file, path: candles.parquet, symbols: [X], interval: 1 hour}": "interval",
    "split: {train: 0.9, validation: 0.2}": "split",
    "seed: [1": "line",
}


@pytest.mark.parametrize("typo", TYPOS)
def test_a_mistyped_experiment_names_the_key(capsys, tmp_path, typo):
    candle_frame(400).write_parquet(tmp_path / "candles.parquet")
    section = typo.split(":")[0]
    lines = [
        line
        for line in GOOD.format(path="candles.parquet").splitlines()
        if not line.startswith(f"{section}:")
    ]
    (tmp_path / "e.yaml").write_text("\n".join([*lines, typo]))
    code, line = fails(capsys, "train", str(tmp_path / "e.yaml"), "--out", str(tmp_path / "out"))
    assert code == 2
    assert TYPOS[typo] in line
    assert not (tmp_path / "out").exists()


def test_a_perpetual_must_name_its_funding(capsys, tmp_path):
    candle_frame(400).write_parquet(tmp_path / "candles.parquet")
    text = GOOD.replace("interval: 1h", "interval: 1h, category: linear")
    code, line = fails(capsys, "train", experiment(tmp_path, text), "--out", str(tmp_path / "out"))
    assert code == 2
    assert "funding" in line


@pytest.mark.parametrize(
    "arguments", [["report", "nowhere"], ["forecast", "nowhere"], ["backtest", "nowhere"]]
)
def test_a_folder_without_a_run_is_named(capsys, arguments):
    code, line = fails(capsys, *arguments)
    assert code == 2
    assert "nowhere" in line


def test_unknown_commands_and_options_are_one_line(capsys):
    assert fails(capsys, "trian")[0] == 2
    assert fails(capsys, "train", "--wat")[0] == 2


def test_a_bad_override_is_named(capsys, tmp_path):
    candle_frame(400).write_parquet(tmp_path / "candles.parquet")
    for override in ("training.epochs", "seed.deep=1", "training.epoch=3"):
        code, line = fails(
            capsys, "train", experiment(tmp_path), "--out", str(tmp_path / "out"), "-o", override
        )
        assert code == 2
        assert override.split("=")[0].split(".")[0] in line


def test_a_full_disk_is_one_line_and_leaves_no_half_file(capsys, tmp_path, monkeypatch):
    import errno
    import os

    candle_frame(400).write_parquet(tmp_path / "candles.parquet")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    code, line = fails(capsys, "train", experiment(tmp_path), "--out", str(tmp_path / "out"))
    assert code == 2
    assert "full" in line
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
