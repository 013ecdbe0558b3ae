"""Attention of any model on any mechanism, layer by layer and head by head, without N × N arrays where N is large."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from longtape.attention import Attention, attention_weights
from longtape.attention.linformer import LinformerAttention
from longtape.core.errors import UserError
from longtape.models.base import Model
from longtape.models.batch import Batch
from longtape.training.ensemble import Ensemble

LARGEST = 2**22  # weights of one layer that are held at once
_SLICE = 64  # query rows whose weights are computed together


@dataclass(frozen=True, eq=False)
class Passed:
    """An attention layer and what it was given in one pass."""

    layer: Attention
    x: Tensor  # [B, N, d_model]
    extra: dict[str, Any]  # visible, global_positions, …

    @property
    def mechanism(self) -> str:
        """Its name."""
        return type(self.layer).__name__.removesuffix("Attention").lower()

    @property
    def n_tokens(self) -> int:
        """N."""
        return self.x.shape[1]

    def weights(self, rows: Tensor) -> Tensor:
        """[B, H, len(rows), M] of the query rows, some at a time; M = N, or what the mechanism mixes keys into.

        Learned tokens in front of the sequence are left out, so rows may sum to less than 1.
        """
        parts = [
            attention_weights(self.layer, self.x, some, **dict(self.extra)) for some in rows.split(_SLICE)
        ]
        weights = torch.cat(parts, 2)
        learned = getattr(self.layer, "extra_tokens", None)
        return weights if learned is None else weights[..., len(learned) :]

    @property
    def over_tokens(self) -> bool:
        """True where a column is a token, and not a mixture of all (Linformer)."""
        return not isinstance(self.layer, LinformerAttention)


def member_of(model: Model) -> Model:
    """The model itself; of an average of several, its first member."""
    return cast(Model, model.members[0]) if isinstance(model, Ensemble) else model


def layers_of(model: nn.Module) -> list[Attention]:
    """Attention layers in the order in which they stand. UserError for a model without any."""
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    if not layers:
        raise UserError("the model has no attention layers")
    return layers


@contextmanager
def recording(model: nn.Module) -> Iterator[list[Passed]]:
    """Inside, what every attention layer is given is listed, pass by pass. No bit of any output changes."""
    passed: list[Passed] = []

    def keep(layer: nn.Module, args: tuple[Tensor, ...], extra: dict[str, Any]) -> None:
        named = dict(zip(("x", "visible"), args, strict=False)) | extra
        named.pop(
            "newest", None
        )  # the weights of all queries are those of the definition, whichever were asked for
        passed.append(Passed(cast(Attention, layer), named.pop("x"), named))

    hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers_of(model)]
    try:
        yield passed
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def record(model: Model, batch: Batch) -> list[Passed]:
    """What each attention layer was given in one forecast of `batch`."""
    model.eval()
    with recording(model) as passed:
        model(batch)
    return passed


def sampled_rows(n_rows: int, n_columns: int, largest: int = LARGEST) -> Tensor:
    """All rows where so many weights may be held, else evenly spaced ones, the last included."""
    count = max(1, min(n_rows, largest // max(1, n_columns)))
    return torch.linspace(n_rows - 1, 0, count).round().long().flip(0)


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """Weights of one layer on some query rows of one window."""

    layer: int
    rows: Tensor  # [R] tokens that look
    weights: Tensor  # [H, R, M]


def attention_maps(passed: list[Passed], window: int = 0, largest: int = LARGEST) -> list[AttentionMap]:
    """Of every layer and head, on all rows or on evenly spaced ones: never more than `largest` weights a layer."""
    maps = []
    for number, one in enumerate(passed):
        alone = alone_in(one, window)
        rows = sampled_rows(one.n_tokens, one.n_tokens * one.layer.config.n_heads, largest)
        maps.append(AttentionMap(number, rows, alone.weights(rows)[0]))
    return maps


def alone_in(one: Passed, window: int) -> Passed:
    """What a layer was given of one window of the batch."""
    cut = slice(window, window + 1)
    return Passed(
        one.layer, one.x[cut], {k: v[cut] if isinstance(v, Tensor) else v for k, v in one.extra.items()}
    )


def row_weights(passed: Passed, row: int = -1) -> Tensor:
    """Weights [B, H, M] of one query row: by default the newest token's look at history."""
    return passed.weights(torch.tensor([row % passed.n_tokens]))[:, :, 0]


def rollout(passed: list[Passed], read: Tensor) -> Tensor:
    """How much of each token reaches the forecast (Abnar & Zuidema 2020): the product of ½(A + I) over the layers.

    read [B, N]: the share of the last layer's tokens in what the head is given. Returns [B, N]. Only a vector goes
    through the layers, so that no matrix is held. UserError where a layer's columns are not tokens.
    """
    flow = read.to(passed[-1].x.dtype)
    for number in reversed(range(len(passed))):
        one = passed[number]
        if not one.over_tokens:
            raise UserError(
                f"rollout: the weights of {one.mechanism} are over mixtures, which have no place in time"
            )
        if one.n_tokens != flow.shape[1] or "context" in one.extra:
            raise UserError(f"rollout: layer {number + 1} does not pass its tokens on one to one")
        flow = 0.5 * flow + 0.5 * _passed_on(one, flow)
    return flow


def _passed_on(one: Passed, flow: Tensor) -> Tensor:
    """flow [B, N] times the mean attention of the heads, [B, N]."""
    used = (flow > 0).any(0).nonzero()[:, 0]
    total = torch.zeros_like(flow)
    for rows in used.split(_SLICE):
        mean = one.weights(rows).mean(1)
        mean = mean / mean.sum(-1, keepdim=True).clamp_min(torch.finfo(mean.dtype).tiny)
        total += torch.einsum("br,brn->bn", flow[:, rows], mean)
    return total
