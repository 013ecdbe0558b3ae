"""What `longtape forecast` shows and writes of a forecast frame."""

from __future__ import annotations

import json
import math
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from longtape.report.text import frame_table
from longtape.workflow.run import Run, write_frame

_SHOWN = ("symbol", "target", "horizon", "known_at", "end", "period", "mean", "lower", "upper")
_ROWS = 200  # on a screen
_BARS = 120  # of the past that a picture shows, or three times the longest horizon


def show_forecast(
    made: Run, frame: pl.DataFrame, out: Path | None, picture: Path | None, as_json: bool
) -> str:
    """Write the files that were asked for; returns what belongs on the screen: the table or JSON, and every note."""
    notes = made.fitted.calibration.shortages(made.fitted.model.inputs.targets)
    if out is not None:
        write_frame(frame, out)
        notes.append(f"{out}: {frame.height:,} forecasts")
    if picture is not None:
        draw_forecast(made, frame, picture)
        notes.append(f"{picture}: the picture")
    if as_json:
        return json.dumps({"forecasts": [_plain(row) for row in frame.to_dicts()], "notes": notes}, indent=2)
    if out is not None:
        return "\n".join(notes)
    if frame.height > _ROWS:
        notes.insert(0, f"The newest {_ROWS:,} of {frame.height:,} forecasts; --out FILE writes all of them.")
    return "\n".join([str(frame_table(_columns(frame.tail(_ROWS)))), *notes])


def draw_forecast(made: Run, frame: pl.DataFrame, path: Path) -> None:
    """The price and the newest fan, or, of several origins, forecasts and what happened."""
    from longtape.report.pictures import history_picture, newest_picture, save

    config = made.experiment.forecast
    if frame["timestamp"].n_unique() > 1:
        save(history_picture(frame, config.level), path)
        return
    bars = max(_BARS, 3 * int(str(frame["horizon"].max())))
    save(newest_picture(made.newest_prices(bars), frame, config.level, config.levels), path)


def _columns(frame: pl.DataFrame) -> pl.DataFrame:
    """What a person wants to see: no column that says nothing, and of an ordinary forecast no period."""
    further = [name for name in frame.columns if name[0] in "pq" and name[1:2].isdigit()]
    prices = ["price", "price_lower", "price_upper"]
    shown = [
        name for name in (*_SHOWN, *further, *prices, "actual") if frame[name].null_count() < frame.height
    ]
    if frame["timestamp"].n_unique() == 1:
        shown.remove("period")
    return frame.select(shown)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: _plain_value(value) for name, value in row.items()}


def _plain_value(value: Any) -> Any:
    """Times in ISO form; an infinite bound as text, because JSON has none."""
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
