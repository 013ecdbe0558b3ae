"""What context is worth: the coming day's volatility of several coins, by models that see 24 to 2,160 hours.

    python benchmarks/context.py '/data/{symbol}.parquet' [--hours 24,720] [--models mlp,flash] [--seeds 3]

Data, targets and split are those of examples/coin_volatility.yaml. `mlp` reads aggregates of at most so many hours; a
mechanism reads the same aggregates beside its pooled vector, and the hours themselves as tokens of twelve. The linear
start reads its 720 hours at every context, or is capped with it. Every cell is kept in a file (`--cells`) as soon as it
is there and never made twice; the table is benchmarks/results/context.md.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import yaml

from longtape.benchmarking.machine import describe_machine, machine_line
from longtape.core.files import write_text
from longtape.core.markdown import markdown_table
from longtape.evaluation.skill import scored
from longtape.evaluation.statistics import diebold_mariano
from longtape.experiment import parse_experiment
from longtape.forecasting.predict import predict
from longtape.training.run_folder import RunFolder
from longtape.workflow.data import RunData

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parent / "examples" / "coin_volatility.yaml"
PAGE = HERE / "results" / "context.md"
HOURS, MODELS = (24, 168, 720, 2_160), ("mlp", "flash", "bigbird", "probsparse")
TOKENS = [
    "relative_range(1, 720)",
    "relative_move(1, 720)",
    "relative_volume(1, 720)",
    "others(relative_range(1, 720))",
]
NETWORK = {
    "patch": 12,
    "positions": "learned",
    "pooling": "last",
    "d_model": 32,
    "n_heads": 2,
    "n_layers": 2,
    "d_ff": 64,
}
OPTIONS = {"bigbird": {"block_size": 8, "n_random": 2}}
TRAINING = {
    "epochs": 8,
    "stride": 4,
    "validation_stride": 4,
    "patience": 8,
    "batch_size": 128,
    "learning_rate": 5e-4,
}
HORIZON = 24
Document = dict[str, Any]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """One model to train."""

    model: str
    hours: int
    capped: bool  # the linear start too
    seed: int


def span_of(feature: str) -> int:
    """The hours that a feature's first number says; 1 of a calendar feature."""
    found = re.search(r"\d+", feature)
    return int(found[0]) if found else 1


def document_of(cell: Cell, path: str) -> Document:
    """The experiment of a cell."""
    document: Document = yaml.safe_load(EXAMPLE.read_text("utf-8"))
    features = [one for one in document["features"] if span_of(one) <= cell.hours]
    start = {"volatility_start": "log_har_mean", "volatility_reach": cell.hours if cell.capped else None}
    shared = {
        name: document["model"][name]
        for name in ("assets", "own_past", "own_scale", "clip", "heads", "dropout")
    }
    own: Document = {"kind": "mlp", "hidden": [64, 32], "wide": False}
    if cell.model != "mlp":
        own = {"kind": "encoder", "lookback": cell.hours, "attention": cell.model, **NETWORK}
        own |= {"attention_options": OPTIONS.get(cell.model, {})}
        own |= {"static": [one for one in features if one not in TOKENS]}
    document |= {
        "features": features,
        "model": shared | own | start,
        "training": TRAINING,
        "seed": cell.seed,
        "forecast": {"batch_size": 256},
        "audit": False,
    }
    document["data"]["path"] = path
    return document


@lru_cache(maxsize=1)
def data_of(hours: int, path: str) -> RunData:
    """Bars and features, made once for the cells that share them."""
    return RunData.of(parse_experiment(document_of(Cell("mlp", hours, False, 0), path), "context"))


def made(cell: Cell, path: str) -> Document:
    """Train a cell and score it; losses are the mean over symbols at each time of the test period."""
    data = data_of(cell.hours, path)
    pipeline = replace(data.pipeline, experiment=parse_experiment(document_of(cell, path), "context"))
    split = data.split
    started = time.process_time()
    with TemporaryDirectory(prefix="longtape-") as folder:
        fitted = pipeline.fit_in(RunFolder(folder), data.panel, split)
    trained = time.process_time() - started
    panel, own = pipeline.as_given(data.panel, split)
    history = fitted.histories[0]
    found = scored(
        fitted.model.inputs, panel, own.test, predict(fitted.model, panel, own.test, fitted.windows_together)
    )
    rows = pl.DataFrame({"time": panel.timestamps[own.test], "loss": found[0].losses()})
    by_time = rows.drop_nulls().group_by("time").agg(pl.col("loss").mean()).sort("time")
    return {
        **asdict(cell), "validation": min(one["validation"] for one in history), "start": history[0]["validation"],
        "seconds": trained / max(len(history) - 1, 1), "first": int(by_time["time"][0]),
        "losses": [round(x, 6) for x in by_time["loss"].to_list()],
    }  # fmt: skip


def kept(path: Path) -> dict[Cell, Document]:
    """Cells that are there."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return {Cell(**{name: row[name] for name in ("model", "hours", "capped", "seed")}): row for row in rows}


def losses_of(cells: Sequence[Document]) -> Array:
    """[times], the mean over seeds."""
    found: Array = np.mean([cell["losses"] for cell in cells], axis=0)
    return found


def table(cells: Mapping[Cell, Document], capped: bool) -> str:
    """A row for each context and model: loss, and p against the same model at 24 hours and against `mlp` here."""
    groups: dict[tuple[int, str], list[Document]] = {}
    for cell, one in sorted(cells.items(), key=lambda item: (item[0].hours, MODELS.index(item[0].model))):
        if cell.capped == capped:
            groups.setdefault((cell.hours, cell.model), []).append(one)
    mean = {key: losses_of(group) for key, group in groups.items()}
    rows = []
    for (hours, model), group in groups.items():
        each = [float(np.mean(one["losses"])) for one in group]
        rows.append({
            "hours": f"{hours:,}", "model": model, "seeds": str(len(group)), "QLIKE": f"{np.mean(each):.4f}",
            "± seeds": f"{np.std(each, ddof=1):.4f}" if len(each) > 1 else "",
            "validation": f"{np.mean([one['validation'] for one in group]):.4f}",
            "p, 24 h": p_value(mean, (hours, model), (HOURS[0], model)),
            "p, mlp": p_value(mean, (hours, model), (hours, "mlp")),
            "s an epoch": f"{np.mean([one['seconds'] for one in group]):.1f}",
        })  # fmt: skip
    return markdown_table(list(rows[0]), [list(row.values()) for row in rows]) if rows else "Not made yet."


def p_value(mean: Mapping[tuple[int, str], Array], own: tuple[int, str], other: tuple[int, str]) -> str:
    """Diebold–Mariano, two-sided; empty against itself and what is not there."""
    if own == other or other not in mean:
        return ""
    return f"{diebold_mariano(mean[own], mean[other], horizon=HORIZON).p_value:.3f}"


def page(cells: Mapping[Cell, Document]) -> str:
    """What was found."""
    one = next(iter(cells.values()))
    return "\n".join(
        [
            "# What context is worth",
            "",
            machine_line(describe_machine()),
            "",
            "The volatility of the next 24 hours of five coins, pooled (`benchmarks/context.py`; data and split of"
            f" `examples/coin_volatility.yaml`): mean QLIKE of {len(one['losses']):,} test hours over the coins. `mlp`"
            " reads aggregates of at most so many hours; a mechanism reads the same beside its pooled vector, and the"
            f" hours as tokens of {NETWORK['patch']} (width {NETWORK['d_model']}, {NETWORK['n_layers']} layers)."
            " p: Diebold–Mariano, two-sided, of the mean over seeds, against the same model at 24 hours and against"
            " `mlp` at the same context; nothing was chosen by these figures.",
            "",
            "## The linear start reads its 720 hours at every context",
            "",
            table(cells, False),
            "",
            "## The linear start is capped with the context",
            "",
            table(cells, True),
            "",
        ]
    )


def main() -> None:
    """Make what is missing, then the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", help="candles of each coin, with {symbol} in the name")
    parser.add_argument("--hours", default=",".join(map(str, HOURS)))
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--cells", type=Path, default=Path("runs/context.jsonl"))
    asked = parser.parse_args()
    hours, models = [int(one) for one in asked.hours.split(",")], asked.models.split(",")
    asked.cells.parent.mkdir(parents=True, exist_ok=True)
    cells = kept(asked.cells)
    for cell in [
        Cell(m, h, c, s) for s in range(asked.seeds) for h in hours for c in (False, True) for m in models
    ]:
        if cell in cells:
            continue
        cells[cell] = made(cell, asked.path)
        with open(asked.cells, "a", encoding="utf-8") as out:
            out.write(json.dumps(cells[cell]) + "\n")
        write_text(PAGE, page(cells))
    write_text(PAGE, page(cells))


if __name__ == "__main__":
    main()
