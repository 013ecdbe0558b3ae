"""A fitted model as a graph that other programs run: `torch.export` and ONNX.

Scaling of the inputs, the closed-form start, all seeds and the way back to original units stand inside. Every mechanism
is in PyTorch's own operations, so that no operator of longtape is needed where the graph is loaded. What cannot stand
in a graph is refused with the reason, and a graph that does not give the model's own forecasts is not written.
"""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from longtape.attention import MECHANISMS, Attention, mechanism_class
from longtape.core.errors import UserError, require
from longtape.core.files import atomic_path
from longtape.features.panel import Panel, Rows
from longtape.forecasting.predict import predict
from longtape.models.base import Model
from longtape.models.batch import Batch
from longtape.training.batches import BatchSource

TOLERANCE = (
    1e-4  # of a forecast, in training deviations of its target, or in its own size where that is larger
)
FORECAST = "forecast"  # the output that every graph has
Arrays = Mapping[str, npt.NDArray[Any]]
_READ = ("x", "rows", "calendar", "future")
_NOISY = ("torch.onnx", "onnxscript", "onnx_ir", "torch.onnx._internal.exporter._registration")


@dataclass(frozen=True, eq=False)
class Exported:
    """A graph of one window that was written."""

    inputs: Mapping[str, Tensor]  # what goes in, by name; those of the newest window
    outputs: Mapping[str, Tensor]  # what comes out of them
    difference: float  # the largest from the run's own forecasts, as `TOLERANCE` counts


@dataclass(frozen=True)
class Format:
    """A kind of file: the ending of its name, how a graph is written, how its forecasts are read back."""

    ending: str
    write: Callable[[ExportedProgram, Sequence[str], Sequence[str], Path], None]
    run: Callable[[Path, Sequence[Arrays]], list[npt.NDArray[Any]]]
    refused: Mapping[str, str]  # mechanism → why it has no form there


def export(
    model: Model, panel: Panel, origins: Rows, to: str, path: Path, together: int = 1, complete: bool = True
) -> Exported:
    """Write the graph of a fitted model, if it gives the forecasts of the windows that end at `origins`.

    `together`: windows in a batch of the model's own forecast; `complete`: no asset is ever absent. UserError with the
    reason where the model, its mechanism or the format cannot.
    """
    form, source = FORMATS[to], BatchSource(model, panel)
    batches = [replace(source.batch(np.array([origin])), complete=complete) for origin in origins]
    _refuse_windows(model, batches[-1])
    graph = _Graph(_in_tensors(model, batches[-1], form), batches[-1])
    program, names = _traced(graph, {name: getattr(batches[-1], name) for name in _inputs_of(batches[-1])})
    given = [{name: getattr(batch, name) for name in names} for batch in batches]
    with torch.no_grad():
        outputs = graph(given[-1])
    expected = predict(model, panel, origins, together).mean
    with atomic_path(path) as temporary:
        form.write(program, names, list(outputs), temporary)
        found = form.run(temporary, [{name: t.numpy() for name, t in one.items()} for one in given])
        difference = _difference(model, np.concatenate(found), expected, path)
    return Exported(given[-1], outputs, difference)


def _refuse_windows(model: Model, batch: Batch) -> None:
    """UserError where windows differ in what attends to what."""
    if batch.marks.shape[1]:
        raise UserError(
            "export: marks make other tokens global in each window, and a graph has one pattern for all"
        )
    if model.config.reads_presence and not batch.complete:
        raise UserError(
            "export: under missing: mask each window has tokens of its own, and a graph has the same for all"
        )


def _difference(model: Model, found: npt.NDArray[Any], expected: npt.NDArray[Any], path: Path) -> float:
    """The largest, as `TOLERANCE` counts. UserError where it is above that."""
    size = np.maximum(model.inputs.target_deviation, np.abs(expected))
    largest = float(np.max(np.abs(found - expected) / size))
    if not largest <= TOLERANCE:
        raise UserError(
            f"{path}: not written; the graph's forecasts differ from the run's own by {largest:.1g}, and"
            f" {TOLERANCE:g} is allowed"
        )
    return largest


def inputs_for(model: Model, panel: Panel, origin: int) -> dict[str, npt.NDArray[Any]]:
    """All that a graph of the model may be given for the window that ends at `origin`, by name; it reads some of it."""
    batch = BatchSource(model, panel).batch(np.array([origin]))
    return {name: getattr(batch, name).numpy() for name in _inputs_of(batch)}


class _Graph(nn.Module):
    """Some tensors of a batch by name → what is forecast, by name.

    The model's own names (`heads.return`) are no names in a graph's code, so its weights stand here under others.
    """

    def __init__(self, model: Model, like: Batch) -> None:
        super().__init__()
        self.whole, self.like = (model,), like
        self.places: dict[str, str] = {}
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            self.places[name] = f"w_{name.replace('.', '_')}"
            self.register_buffer(self.places[name], tensor.detach())

    def forward(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        """`forecast` [1, K] of all targets; by kind what its distribution states beside the mean, [1, A, n, …]."""
        weights = {name: getattr(self, place) for name, place in self.places.items()}
        batch = replace(self.like, **given)  # type: ignore[arg-type]
        made = torch.func.functional_call(self.whole[0], weights, (batch,))
        kinds = zip(self.whole[0].inputs.kinds, made.parts, strict=True)
        stated = {f"{kind}_{name}": t for kind, part in kinds for name, t in part.stated().items()}
        return {FORECAST: made.mean(), **stated}


def _inputs_of(batch: Batch) -> list[str]:
    """The tensors of a batch that a forecast may read and that hold something."""
    return [name for name in _READ if getattr(batch, name).numel()]


def _in_tensors(model: Model, batch: Batch, form: Format) -> Model:
    """A copy whose attention layers are PyTorch's own operations for the lengths that they are given."""
    made = copy.deepcopy(model).eval()
    layers = [module for module in made.modules() if isinstance(module, Attention)]
    lengths: dict[nn.Module, int] = {}

    def note(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        lengths[layer] = given[0].shape[1]

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    with torch.no_grad():
        made(batch)
    for hook in hooks:
        hook.remove()
    for layer in layers:
        _refuse(layer, form)
        layer.to_tensors(lengths[layer])
    return made


def _refuse(layer: Attention, form: Format) -> None:
    """UserError where a mechanism has no form in a kind of file."""
    name = next(name for name in MECHANISMS if isinstance(layer, mechanism_class(name)))
    if name in form.refused:
        raise UserError(f"export: {name} has no form in a file {form.ending}: {form.refused[name]}")


def _traced(graph: _Graph, given: dict[str, Tensor]) -> tuple[ExportedProgram, list[str]]:
    """The graph of the inputs that it reads, and their names. UserError where it reads none."""
    with torch.no_grad(), _quiet():
        program = torch.export.export(graph, (given,), strict=False)
        nodes = {node.name: node for node in program.graph.nodes}
        read = [
            n
            for n, at in zip(given, program.graph_signature.user_inputs, strict=True)
            if nodes[str(at)].users
        ]
        if not read:
            kind = graph.whole[0].config.kind
            raise UserError(
                f"export: model '{kind}' forecasts the same whatever the data are; there is no graph"
            )
        if len(read) < len(given):
            program = torch.export.export(graph, ({name: given[name] for name in read},), strict=False)
    return program, read


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' remarks on their own parts."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _write_torch(program: ExportedProgram, inputs: Sequence[str], outputs: Sequence[str], path: Path) -> None:
    buffer = io.BytesIO()  # a path would have to end in .pt2
    torch.export.save(program, buffer)
    path.write_bytes(buffer.getvalue())


def _run_torch(path: Path, given: Sequence[Arrays]) -> list[npt.NDArray[Any]]:
    """The forecasts [1, K] of each window, by the file."""
    module = torch.export.load(io.BytesIO(path.read_bytes())).module()
    with torch.no_grad():
        each = [{name: torch.from_numpy(values) for name, values in one.items()} for one in given]
        return [module(one)[FORECAST].numpy() for one in each]


def _write_onnx(program: ExportedProgram, inputs: Sequence[str], outputs: Sequence[str], path: Path) -> None:
    for module in ("onnx", "onnxscript", "onnxruntime"):
        require(module, "export")
    with _quiet():
        made = torch.onnx.export(
            program, input_names=list(inputs), output_names=list(outputs), dynamo=True, verbose=False
        )
    assert made is not None  # noqa: S101 (None without dynamo)
    made.save(path)


def _run_onnx(path: Path, given: Sequence[Arrays]) -> list[npt.NDArray[Any]]:
    """The forecasts [1, K] of each window, by onnxruntime on the file."""
    session = require("onnxruntime", "export").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [session.run([FORECAST], dict(one))[0] for one in given]


FORMATS: Mapping[str, Format] = {
    "torch": Format(".pt2", _write_torch, _run_torch, {}),
    "onnx": Format(
        ".onnx",
        _write_onnx,
        _run_onnx,
        {"reformer": "its hash compares the bits of numbers, for which ONNX has no operator"},
    ),
}
