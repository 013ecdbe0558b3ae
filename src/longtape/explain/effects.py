"""What something is worth to a forecast: the loss without it less the loss with it, window by window."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from longtape.attention import Attention
from longtape.core.errors import UserError
from longtape.explain.attention import layers_of
from longtape.features.panel import Panel, Rows
from longtape.models.base import Model
from longtape.models.batch import Batch
from longtape.training.batches import BatchSource

Array = npt.NDArray[np.float64]
Change = Callable[[Batch, Rows], Batch]  # a batch and the origins of its windows → the changed batch
ROWS = "rows before the window"  # what closed-form starts read of the origin's row, as the lags of log-HAR


@dataclass(frozen=True, eq=False)
class Effect:
    """Losses [n] of the same windows as they are and without something; positive differences: it was of use."""

    name: str
    whole: Array
    without: Array

    @property
    def mean(self) -> float:
        """By how much the mean loss rises without it."""
        return float((self.without - self.whole).mean())


class Effects:
    """Training losses of the windows that end at `origins`, under changes of what a model sees."""

    def __init__(self, model: Model, panel: Panel, origins: Rows, batch_size: int = 16) -> None:
        self.model, self.origins, self.batch_size = model.eval(), origins, batch_size
        self.source = BatchSource(model, panel)
        self.whole = self.losses()

    @torch.no_grad()
    def losses(self, change: Change | None = None) -> Array:
        """Mean loss over the known targets of each window [n]."""
        parts = []
        for start in range(0, len(self.origins), self.batch_size):
            origins = self.origins[start : start + self.batch_size]
            batch = self.source.batch(origins)
            batch = batch if change is None else change(batch, np.arange(start, start + len(origins)))
            parts.append(_window_losses(self.model, batch))
        return np.concatenate(parts)

    def occlusion(self, edges: Sequence[int] | None = None) -> list[Effect]:
        """The past taken away by distance: bars [a, b) before the newest one replaced by the training mean.

        edges: distances in bars, ascending; by default 0, 1, 2, 4, … up to the lookback. What closed-form starts read
        of rows before the window stays.
        """
        lookback = self.model.config.lookback
        marks = doubling_edges(lookback) if edges is None else list(edges)
        mean = torch.from_numpy(self.model.inputs.mean).float()
        found = []
        for near, far in pairwise(marks):

            def without(batch: Batch, _: Rows, near: int = near, far: int = far) -> Batch:
                x = batch.x.clone()
                x[:, lookback - far : lookback - near] = mean
                return replace(batch, x=x)

            name = f"{near}" if far - near == 1 else f"{near}–{far - 1}"
            found.append(Effect(name, self.whole, self.losses(without)))
        return found

    def features(self, block: int, seed: int = 0) -> list[Effect]:
        """Each column's windows exchanged in blocks of `block` windows, so that they keep their course and lose their
        place; and, where a model reads rows before the window, those.
        """
        order = block_permutation(len(self.origins), block, seed)
        found = []
        for column, name in enumerate(str(column) for column in self.model.inputs.columns):

            def without(batch: Batch, windows: Rows, column: int = column) -> Batch:
                x = batch.x.clone()
                x[:, :, column] = self.source.batch(self.origins[order[windows]]).x[:, :, column]
                return replace(batch, x=x)

            found.append(Effect(name, self.whole, self.losses(without)))
        if self.source.row_inputs.shape[1]:

            def other_rows(batch: Batch, windows: Rows) -> Batch:
                return replace(batch, rows=self.source.row_inputs[self.origins[order[windows]]])

            found.append(Effect(ROWS, self.whole, self.losses(other_rows)))
        return found

    def global_tokens(self) -> list[Effect]:
        """Global tokens set to zero before every attention layer: all of them, then each run of neighbours alone.

        UserError where the mechanism has none. Those that marks place differ from window to window: they are in `all`.
        """
        flags = placed_global_tokens(self.model)
        found = []
        with zeroed(self.model, None):
            found.append(Effect("all", self.whole, self.losses()))
        for first, last in _runs(flags):
            with zeroed(self.model, slice(first, last + 1)):
                name = f"token {first}" if first == last else f"tokens {first}–{last}"
                found.append(Effect(name, self.whole, self.losses()))
        return found


def _window_losses(model: Model, batch: Batch) -> Array:
    forecast = torch.tensor([not target.auxiliary for target in model.inputs.targets])
    known = batch.y_present & forecast
    try:
        found_losses = model(batch).losses(torch.where(known, batch.y, torch.zeros_like(batch.y)))
    except ValueError as error:  # of a head whose loss is one of several rows together
        raise UserError(f"effects: {error}") from None
    losses = torch.where(known, found_losses, 0.0)
    counts = known.sum(1).clamp_min(1)
    found: Array = (losses.sum(1) / counts).double().numpy()
    return found


def doubling_edges(lookback: int) -> list[int]:
    """0, 1, 2, 4, … and the lookback."""
    edges = [0, 1]
    while edges[-1] * 2 < lookback:
        edges.append(edges[-1] * 2)
    return [*edges, lookback] if edges[-1] < lookback else edges


def block_permutation(n: int, block: int, seed: int) -> Rows:
    """An order of 0 … n − 1 in which blocks of `block` stay together and hardly any stays where it was."""
    blocks = np.array_split(np.arange(n), max(1, n // max(block, 1)))
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(blocks))
    if len(blocks) > 1:  # a cycle of a random order leaves no block in its place
        places = np.empty(len(blocks), np.int64)
        places[order] = np.roll(order, 1)
        order = places
    return np.concatenate([blocks[i] for i in order])


def placed_global_tokens(model: nn.Module) -> npt.NDArray[np.bool_]:
    """Which tokens [N] the mechanism itself makes global. UserError where it has no global tokens."""
    layer, n_tokens = layers_of(model)[0], _n_tokens(model)
    flags = layer.global_flags(n_tokens)
    if flags is None:
        name = type(layer).__name__.removesuffix("Attention").lower()
        raise UserError(f"global tokens: {name} has none")
    return flags[0].numpy()


def _n_tokens(model: nn.Module) -> int:
    return int(getattr(getattr(model, "config", None), "n_tokens", 0))


def _runs(flags: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return [(int(first), int(after) - 1) for first, after in zip(edges[::2], edges[1::2], strict=True)]


@contextmanager
def zeroed(model: nn.Module, tokens: slice | None) -> Iterator[None]:
    """Inside, these tokens (None: all that are global in their window) are zero where attention layers read them."""

    def zero(
        layer: nn.Module, args: tuple[Tensor, ...], extra: dict[str, Any]
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        x = args[0]
        if tokens is not None:
            flags = torch.zeros(1, x.shape[1], dtype=torch.bool)
            flags[:, tokens] = True
        else:
            found = (
                layer.global_flags(x.shape[1], extra.get("global_positions"))
                if isinstance(layer, Attention)
                else None
            )
            flags = torch.zeros(1, x.shape[1], dtype=torch.bool) if found is None else found
        return (x.masked_fill(flags.to(x.device)[..., None], 0.0), *args[1:]), extra

    hooks = [layer.register_forward_pre_hook(zero, with_kwargs=True) for layer in layers_of(model)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
