"""A trained run on newer data, or with another account: what `--data` and `-o` change, and what the model fixes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from longtape.core.errors import UserError
from longtape.experiment import Experiment, as_overrides, parse_experiment, with_overrides
from longtape.market.bars import Bars
from longtape.market.files import FileConfig, read_bars, read_files, read_raw
from longtape.market.naming import plain
from longtape.workflow.run import Run

# What may change without another model: where data lie and of which period, and the account that trades the forecasts.
_DATA = ("source", "path", "read", "store", "store_source", "funding_path", "since", "until", "drop_last")
_FIXED_ACCOUNT = ("traded",)  # a threshold that was chosen on the calibration windows and is kept with them
_NO_EFFECT = {"forecast": ("backtest",)}


def varied(
    run: Run,
    data: str | Path | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    step: str = "backtest",
) -> Run:
    """The same trained model on the candles of the file `data`, or with `overrides` (`key=value`, or a mapping).

    The borders of its split hold, so that nothing is scored that it was trained on, and nothing is kept in its folder.
    UserError for a key that belongs to the trained model, or has no effect on the `step` that is asked for.
    """
    texts = as_overrides(overrides)
    if data is None and not texts:
        return run
    for text in texts:
        _refuse(text.strip(), step)
    document = yaml.safe_load(run.folder.experiment_yaml)
    pools = run.experiment.model.pooled is not None
    if data is not None and not pools:
        document["data"] = _of_file(run.experiment, Path(data))
    where = f"{run.root} with other options"
    made = Run(run.folder, kept=False)
    made.experiment = parse_experiment(with_overrides(document, texts), where)
    if data is not None and pools:
        made = Run(run.folder, made.on_bars(_bars_of(run.experiment, Path(data))), kept=False)
        made.experiment = parse_experiment(with_overrides(document, texts), where)
    return made


def _bars_of(experiment: Experiment, path: Path) -> list[Bars]:
    """The candles of every symbol of a file; one without a column of symbols is called as the file."""
    section = _of_file(experiment, path)
    facts = {name: section[name] for name in ("interval", "category", "calendar")}
    config = FileConfig.model_validate(section.get("read") or {})
    named = path.is_dir() or any(mark in str(path) for mark in "*{")
    if not named and "symbol" not in read_raw(path, config).columns:
        return [read_bars(path, symbol=plain(path.stem.partition(".")[0]).upper(), config=config, **facts)]
    return [one.bars for one in read_files(path, config=config, **facts)]


def _refuse(text: str, step: str) -> None:
    key = text.partition("=")[0].strip()
    section, _, name = key.partition(".")
    if section in _NO_EFFECT.get(step, ()):
        raise UserError(f"-o {key}: has no effect on a {step}, only on backtest and report")
    if section == "data" and name in _DATA:
        return
    if key == "missing" and text.endswith(("forward_fill", "drop")):
        return
    if section == "backtest" and name and name not in _FIXED_ACCOUNT:
        return
    raise UserError(
        f"-o {key}: belongs to the trained model; train a new run with it. What may change: backtest.…, missing"
        f" (forward_fill or drop), and data.{', data.'.join(_DATA)}"
    )


def _of_file(experiment: Experiment, path: Path) -> dict[str, Any]:
    """The section `data` that reads the run's symbols from a file."""
    if not path.exists() and not any(mark in str(path) for mark in "*{"):
        raise UserError(f"{path}: no such file")
    asked = experiment.data
    if asked.kind != "candles" and asked.source != "file":
        raise UserError(
            f"--data is for candles; name the newer {asked.kind} with -o data.store=… or import them"
        )
    from longtape.market.load import describe

    facts = describe(asked)[0]
    section: dict[str, Any] = {
        "source": "file", "kind": asked.kind, "path": str(path.resolve()), "symbols": list(asked.symbols),
        "category": facts.category, "calendar": facts.calendar,
    }  # fmt: skip
    if asked.kind == "candles":
        section["interval"] = asked.interval
    if asked.funding_path is not None:
        section["funding_path"] = asked.funding_path
    if asked.read is not None:
        section["read"] = asked.read.model_dump(exclude_none=True)
    return section
