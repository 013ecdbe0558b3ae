"""The embedded walk: real S&P 500 days through store, model and backtest to a report."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import yaml

from longtape.core.errors import UserError
from longtape.core.progress import say
from longtape.experiment import parse_experiment
from longtape.market.sources import sample
from longtape.market.store import Store
from longtape.workflow.run import Run, run


def run_demo(out: str | Path) -> Run:
    """Store the sample candles below `out`, run the demo experiment on them, and return its run."""
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder for the demo")
    store = out / "store"
    appended = Store(str(store)).append(sample.load("SP500"))
    say(f"store {store}: {appended.added:,} new bars, {appended.duplicates:,} known already")
    text = files("longtape.workflow").joinpath("demo.yaml").read_text("utf-8")
    document = yaml.safe_load(text)
    document["data"]["store"] = str(store.resolve())
    return run(parse_experiment(document, "demo.yaml"), _free_folder(out))


def _free_folder(out: Path) -> Path:
    """`run`, or `run-2`, `run-3`, … where earlier demos left theirs."""
    taken = [path for path in out.glob("run*") if path.is_dir()]
    return out / (f"run-{len(taken) + 1}" if taken else "run")
