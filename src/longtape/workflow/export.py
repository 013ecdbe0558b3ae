"""`longtape export`: the graph of a run's model, and the description of what goes in and comes out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtape.core.clock import iso
from longtape.core.errors import UserError, unknown_name
from longtape.core.files import write_json
from longtape.features.book_targets import classed_as
from longtape.features.panel import Panel, Rows
from longtape.forecasting.export import FORECAST, FORMATS, Exported, export
from longtape.models.heads import QuantileHead

if TYPE_CHECKING:
    from longtape.workflow.run import Run

EXPORT_CHECKED = 8  # newest windows whose forecasts a graph must give
_WHAT = {
    "x": "windows of the columns below as the features give them, not scaled; NaN where an asset is absent",
    "rows": "what the closed-form start reads of the newest row (Run.export_inputs computes it)",
    "calendar": "calendar of the window's bars (Run.export_inputs computes it)",
    "future": "calendar of the bars to come (Run.export_inputs computes it)",
    FORECAST: "mean of each target, in original units and in the order of targets",
    "quantiles": "values at the levels, by asset and target of the kind",
    "spread": "of the Student-t around the forecast, by asset and target of the kind",
    "freedom": "degrees of freedom of the Student-t, by asset and target of the kind",
    "probabilities": "of the classes, by asset and target of the kind",
}


def refuse_form(to: str, out: Path) -> None:
    """UserError for a format that is not known, or a name that does not end as its files do."""
    if to not in FORMATS:
        raise unknown_name("format", to, FORMATS, "--to")
    if out.suffix != FORMATS[to].ending:
        raise UserError(f"{out}: a graph for {to} goes into a file that ends in {FORMATS[to].ending}")


def export_run(run: Run, panel: Panel, origins: Rows, to: str, out: Path) -> Exported:
    """Write the graph of a run's model to `out`, and beside it its description."""
    fitted = run.fitted
    panel = classed_as(panel, fitted.model.inputs.targets)
    complete = run.experiment.missing != "mask"
    made = export(fitted.model, panel, origins, to, out, fitted.windows_together, complete)
    described = {"format": to, "experiment": run.experiment.name, **_data(run), **_model(run), **_graph(made)}
    write_json(out.with_suffix(".json"), described)
    return made


def _data(run: Run) -> dict[str, Any]:
    inputs = run.fitted.model.inputs
    return {
        "fingerprints": run.folder.fingerprints,
        "trained until": iso(run.folder.periods.train_until),
        "versions": run.folder.facts["versions"],
        "symbols": list(inputs.assets),
        "interval": inputs.interval.name,
        "lookback": run.pipeline.lookback,
    }


def _model(run: Run) -> dict[str, Any]:
    """Columns with their scaling, targets in the order of the forecast, and what makes their intervals."""
    fitted, inputs = run.fitted, run.fitted.model.inputs
    scales = zip(inputs.columns, inputs.mean.tolist(), inputs.deviation.tolist(), strict=True)
    named = {"symbol": "asset", "target": "name", "kind": "kind", "horizon": "horizon"}
    targets = [{key: getattr(t, field) for key, field in named.items()} for t in inputs.targets]
    return {
        "model": run.experiment.model.summary,
        "scaling": "inside the graph, with these means and deviations of the training rows",
        "columns": [{"name": str(column), "mean": m, "deviation": d} for column, m, d in scales],
        "targets": [
            one | {"unit": t.of_kind.unit, "auxiliary": t.auxiliary}
            for one, t in zip(targets, inputs.targets, strict=True)
        ],
        "intervals": "outside the graph; made from the forecast by these numbers, as docs/export.md says",
        "calibration": fitted.calibration.to_dict(),
    }


def _graph(made: Exported) -> dict[str, Any]:
    given, gives = (
        [
            {"name": name, "shape": list(t.shape), "type": str(t.dtype).removeprefix("torch."), **_what(name)}
            for name, t in tensors.items()
        ]
        for tensors in (made.inputs, made.outputs)
    )
    return {"inputs": given, "outputs": gives, "largest difference": made.difference}


def _what(name: str) -> dict[str, Any]:
    last = name.rpartition("_")[2]
    return {"what": _WHAT[last]} | ({"levels": list(QuantileHead.levels)} if last == "quantiles" else {})
