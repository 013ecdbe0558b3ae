"""From a `Plan` to the lists that the compiled loops of `tiles.py` go through."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from longtape.attention.cpu.plan import Group, Plan
from longtape.attention.cpu.tiles import MOST, PANEL, Work


def works_of(plan: Plan, dtype: torch.dtype) -> tuple[list[Work], list[Work]]:
    """The groups of a plan, and the queries that see everything (one or none); made once and kept with the plan."""
    if dtype not in plan.prepared:
        dense = [_dense(plan, dtype)] if len(plan.dense) else []
        plan.prepared[dtype] = [_work(plan, group, dtype) for group in plan.groups], dense
    works: tuple[list[Work], list[Work]] = plan.prepared[dtype]
    return works


class _Panels(NamedTuple):
    starts: Tensor  # [T, P]
    sizes: Tensor  # [P]
    columns: Tensor  # [P]


def _work(plan: Plan, group: Group, dtype: torch.dtype) -> Work:
    tokens = plan.tokens.clone()
    tokens[plan.dense] = -1  # these have a work of their own
    rows = tokens.view(-1, plan.tile)[group.tiles]
    panels = _panels(plan, group.units)
    bias, steps = torch.empty(0, dtype=dtype), (0, 0, 0)
    masked = torch.zeros(len(panels.sizes), dtype=torch.bool)
    if group.bias is not None:
        by_key = group.bias.transpose(1, 2).contiguous()  # queries last, as the lanes are
        a, b, c = (0 if n == 1 else s for n, s in zip(by_key.shape, by_key.stride(), strict=True))
        steps = (a, b, c)
        hides = (by_key < 0).any(2).any(0)
        masked = torch.stack([part.any() for part in _cut(hides, panels)])
        bias = by_key.flatten().to(dtype)
    scattered = torch.empty(0, 0, dtype=torch.int64) if plan.scattered is None else plan.scattered
    return Work(
        rows.numpy(), rows.numpy(), panels.starts.numpy(), panels.sizes.numpy(), panels.columns.numpy(),
        masked.numpy(), bias.numpy(), *steps,
        torch.empty(0, dtype=torch.int64).numpy(), False,
        scattered.contiguous().numpy(), (group.tiles * plan.tile).numpy(),
    )  # fmt: skip


def _dense(plan: Plan, dtype: torch.dtype) -> Work:
    """Queries that see everything, as many at a time as the lanes take."""
    queries = plan.tokens[plan.dense] if plan.asked is None else plan.asked
    rows = queries if plan.asked is None else torch.arange(len(queries)).masked_fill(queries < 0, -1)
    rows, queries = (F.pad(x, (0, -len(x) % MOST), value=-1).view(-1, MOST) for x in (rows, queries))
    panels = _panels(plan, torch.arange(plan.n_keys // plan.unit).expand(len(rows), -1))
    slots = torch.full((plan.n_keys,), -1)
    slots[: plan.n_padded] = plan.tokens
    slots[plan.n_padded : plan.n_padded + plan.n_extra] = 0  # learned tokens lie before all others
    none = torch.empty(0, dtype=torch.int64).numpy()
    return Work(
        rows.numpy(), queries.numpy(), panels.starts.numpy(), panels.sizes.numpy(), panels.columns.numpy(),
        torch.zeros(len(panels.sizes), dtype=torch.bool).numpy(), torch.empty(0, dtype=dtype).numpy(), 0, 0, 0,
        slots.numpy(), plan.causal, none.reshape(0, 0), none,
    )  # fmt: skip


def _panels(plan: Plan, units: Tensor) -> _Panels:
    """Join units [T, w] that follow each other in every tile, and cut what is longer than the loops take."""
    follows = (units[:, 1:] == units[:, :-1] + 1).all(0) & (units[:, 1:] != plan.n_units).all(0)
    first = torch.cat([torch.zeros(1, dtype=torch.int64), (~follows).nonzero()[:, 0] + 1])  # of each run
    length = torch.diff(first, append=torch.tensor([units.shape[1]])) * plan.unit
    pieces = -(-length // PANEL)
    run = torch.repeat_interleave(pieces)
    within = (torch.arange(len(run)) - (pieces.cumsum(0) - pieces)[run]) * PANEL
    sizes = torch.minimum(length[run] - within, torch.tensor(PANEL))
    starts = units[:, first[run]] * plan.unit + within
    return _Panels(starts.contiguous(), sizes, first[run] * plan.unit + within)


def _cut(by_column: Tensor, panels: _Panels) -> list[Tensor]:
    ends = panels.columns + panels.sizes
    return [by_column[start:stop] for start, stop in zip(panels.columns.tolist(), ends.tolist(), strict=True)]
