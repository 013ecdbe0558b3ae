"""Batch: the windows that a model is given at once, as named tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """B windows of L rows. Features are raw; whatever scales them is part of the model.

    Columns of `x` stand as in the panel: asset by asset, then what all share. `rows` is what the model itself asked
    for of the origin's row (`Model.row_inputs`): the lags of its closed-form start, static inputs.
    """

    x: Tensor  # [B, L, C] float32, NaN where an asset is absent
    present: Tensor  # [B, L, A] bool
    known_at: Tensor  # [B] int64, UTC milliseconds at which the window is known
    rows: Tensor  # [B, S] float64
    marks: Tensor  # [B, G] int64, positions in the window that become global tokens, −1 = none
    calendar: Tensor  # [B, L, D] float32, of the window's rows; [B, L, 0] for a model that does not read it
    future: Tensor  # [B, H, D] float32, the calendar of the H rows after the window
    y: Tensor  # [B, K] float32, original units, NaN where not known
    y_present: Tensor  # [B, K] bool
    y_rows: Tensor  # [B, N, K] float32, labels of earlier rows that training reads, NaN where none; N is 0 elsewhere
    n_shared: int = 0  # the last columns of `x`, which all assets share
    block: int = 1  # so many windows in a row end at consecutive rows; B is a multiple of it
    complete: bool = (
        False  # every asset is said to be there in every window, which `present` is then not asked
    )

    def __len__(self) -> int:
        return len(self.x)

    @property
    def by_asset(self) -> Tensor:
        """View [B, L, A, F] of the assets' own features."""
        n_assets = self.present.shape[2]
        own = self.x.shape[2] - self.n_shared
        return self.x[:, :, :own].unflatten(2, (n_assets, -1))

    @property
    def shared(self) -> Tensor:
        """View [B, L, G] of the features that all assets share."""
        return self.x[:, :, self.x.shape[2] - self.n_shared :]

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device."""
        return self._map([t.to(device, non_blocking=True) for t in self._tensors()])

    def repeat(self, times: int) -> Batch:
        """Each window so many times, one after the other."""
        return self._map([t.repeat_interleave(times, 0) for t in self._tensors()])

    def split(self, size: int) -> Iterator[Batch]:
        """Parts of at most `size` windows."""
        parts = zip(*(t.split(size) for t in self._tensors()), strict=True)
        return (self._map(list(part)) for part in parts)

    def _tensors(self) -> list[Tensor]:
        return [getattr(self, name) for name in TENSORS]

    def _map(self, tensors: list[Tensor]) -> Batch:
        named: dict[str, Any] = dict(zip(TENSORS, tensors, strict=True))
        return replace(self, **named)


TENSORS = tuple(field.name for field in fields(Batch) if field.name not in ("n_shared", "block", "complete"))
