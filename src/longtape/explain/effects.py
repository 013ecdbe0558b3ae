"""What something is worth to a forecast: the loss without it less the loss with it, window by window."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from longtape.attention import Attention
from longtape.core.errors import UserError
from longtape.explain.attention import Passed, layers_of, record
from longtape.features.panel import Panel, Rows
from longtape.models.base import Model
from longtape.models.batch import Batch
from longtape.training.batches import BatchSource

Array = npt.NDArray[np.float64]
Change = Callable[[Batch, Rows], Batch]  # a batch and the origins of its windows → the changed batch
# A layer, the tokens it is given and marked positions → bool [1 or B, N]; None: no token of this layer.
Tokens = Callable[[Attention, int, Tensor | None], Tensor | None]
SINGLE = 32  # placed global tokens that are zeroed alone
_LEVEL = re.compile(r"\b(bid|ask)_(?:ticks|log_size)_(\d+)$")
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

    def levels(self, block: int, seed: int = 0) -> list[Effect]:
        """The columns of each level of a book exchanged together, as `features` does with single ones.

        UserError where no column is of a level.
        """
        columns = levels_of([column.name for column in self.model.inputs.columns])
        order = block_permutation(len(self.origins), block, seed)
        found = []
        for name, own in columns.items():

            def without(batch: Batch, windows: Rows, own: list[int] = own) -> Batch:
                x = batch.x.clone()
                x[:, :, own] = self.source.batch(self.origins[order[windows]]).x[:, :, own]
                return replace(batch, x=x)

            found.append(Effect(name, self.whole, self.losses(without)))
        return found

    def global_tokens(self) -> list[Effect]:
        """Global tokens set to zero before every attention layer: all of them, each run of neighbours, each alone.

        UserError where there are none. Of more than `SINGLE` placed tokens evenly spaced ones are zeroed alone. Those
        that marks place lie elsewhere in each window: `mark 1` is the newest. What is named by its place is zeroed in
        layers over as many tokens as the first.
        """
        first, n_marks = self._first_layer()
        n_tokens, placed = first.n_tokens, placed_global_tokens(first.layer, first.n_tokens)
        if not placed.any() and not n_marks:
            raise UserError(f"global tokens: {first.mechanism} has none")
        chosen: dict[str, Tokens] = {"all": every_global_token}
        chosen |= {f"tokens {a}–{b}": one_place(n_tokens, a, b) for a, b in _runs(placed) if a < b}
        chosen |= {f"token {i}": one_place(n_tokens, i, i) for i in _evenly(np.flatnonzero(placed), SINGLE)}
        columns = self.source.batch(self.origins[:1]).marks.shape[1]
        chosen |= {f"mark {g + 1}": one_mark(g, columns) for g in range(n_marks)}
        found = []
        for name, tokens in chosen.items():
            with zeroed(self.model, tokens):
                found.append(Effect(name, self.whole, self.losses()))
        return found

    def _first_layer(self) -> tuple[Passed, int]:
        """What the first attention layer is given, and the most marks of a window that are global beside its own."""
        first = record(self.model, self.source.batch(self.origins[:1]))[0]
        if "global_positions" not in first.extra:
            return first, 0
        marks = self.source.panel.mark_positions(self.origins, self.model.config.lookback)
        return first, int((marks >= 0).sum(1).max())


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


def levels_of(columns: Sequence[str]) -> dict[str, list[int]]:
    """Columns by the level of a book that they are of, `bid 1`, `ask 1`, `bid 2`, … UserError where none is."""
    found: dict[tuple[int, str], list[int]] = {}
    for place, name in enumerate(columns):
        if (match := _LEVEL.search(name)) is not None:
            found.setdefault((int(match[2]), match[1]), []).append(place)
    if not found:
        raise UserError("levels: no feature is of a single level of a book")
    ordered = sorted(found, key=lambda key: (key[0], key[1] != "bid"))
    return {f"{side} {level}": found[level, side] for level, side in ordered}


def placed_global_tokens(layer: Attention, n_tokens: int) -> npt.NDArray[np.bool_]:
    """Which of `n_tokens` the mechanism itself makes global [N]."""
    flags = layer.global_flags(n_tokens)
    return np.zeros(n_tokens, bool) if flags is None else flags[0].numpy()


def _evenly(places: Rows, most: int) -> list[int]:
    """All of them, or so many evenly spaced ones."""
    chosen = np.unique(np.linspace(0, len(places) - 1, min(most, len(places))).round().astype(int))
    return [int(place) for place in places[chosen]]


def _runs(flags: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return [(int(first), int(after) - 1) for first, after in zip(edges[::2], edges[1::2], strict=True)]


def every_global_token(layer: Attention, n_tokens: int, marks: Tensor | None) -> Tensor | None:
    """All that are global in their window, placed and marked."""
    return layer.global_flags(n_tokens, marks)


def one_place(n_first: int, first: int, last: int) -> Tokens:
    """The tokens from one place to another, in layers over `n_first` tokens."""

    def flags(layer: Attention, n_tokens: int, marks: Tensor | None) -> Tensor | None:
        if n_tokens != n_first:
            return None
        places = torch.arange(n_tokens)
        return ((places >= first) & (places <= last))[None]

    return flags


def one_mark(back: int, of: int) -> Tokens:
    """The tokens that the newest mark but `back` makes global in each window that has so many: one, or one an asset.

    of: columns of marks, which stand from the oldest to the newest and then −1.
    """

    def flags(layer: Attention, n_tokens: int, marks: Tensor | None) -> Tensor | None:
        if marks is None:
            return None
        each = marks.unflatten(1, (of, -1))  # [B, of, 1 or A]
        column = (each[..., 0] >= 0).sum(1) - 1 - back
        own = each[torch.arange(len(each)), column.clamp_min(0)]
        own = own.masked_fill((column < 0)[:, None], -1)
        return (torch.arange(n_tokens, device=marks.device)[:, None] == own[:, None]).any(-1)

    return flags


@contextmanager
def zeroed(model: nn.Module, tokens: Tokens) -> Iterator[None]:
    """Inside, these tokens are zero where attention layers read them."""

    def zero(
        layer: nn.Module, args: tuple[Tensor, ...], extra: dict[str, Any]
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        x = args[0]
        found = tokens(cast(Attention, layer), x.shape[1], extra.get("global_positions"))
        if found is None:
            return args, extra
        return (x.masked_fill(found.to(x.device)[..., None], 0.0), *args[1:]), extra

    hooks = [layer.register_forward_pre_hook(zero, with_kwargs=True) for layer in layers_of(model)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
