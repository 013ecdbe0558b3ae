"""Which asset, or which level of a book, looks at which, in models whose tokens are assets or levels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from longtape.core.errors import UserError
from longtape.explain.attention import Passed, alone_in
from longtape.features.panel import Rows
from longtape.models.base import Model


def asset_maps(model: Model, passed: list[Passed]) -> list[Tensor]:
    """For each layer whose tokens are of several assets: weights [A, A] of the newest moment of each asset (row) on all
    tokens of each (column), the mean over heads; rows sum to 1.

    passed: of one window. UserError for a model whose tokens are no assets.
    """
    maps = []
    for one in passed:
        assets = model.token_assets(one.layer)
        if assets is None:
            continue
        if len(assets) != one.n_tokens or not one.over_tokens:
            raise UserError(f"asset × asset: the weights of {one.mechanism} are not over single assets")
        maps.append(_newest_map(one, assets))
    return maps


def level_maps(model: Model, passed: list[Passed]) -> list[Tensor]:
    """For each layer of a model whose tokens are levels of a book: weights [P, P] of each level of the newest snapshot
    (row) on all tokens of each level (column), the mean over heads; rows sum to 1. UserError for another model.
    """
    count = len(model.token_levels())
    maps = []
    for one in passed:
        if not one.over_tokens:
            raise UserError(f"level × level: the weights of {one.mechanism} are not over single levels")
        maps.append(_newest_map(one, np.arange(one.n_tokens) % count))
    return maps


def _newest_map(one: Passed, places: Rows) -> Tensor:
    """Weights of the newest token of each place on all of each, [P, P]; `places` [N] from 0, moment by moment."""
    count = int(np.max(places)) + 1
    newest = alone_in(one, len(one.x) - 1)  # of moments in a row, the last
    weights = newest.weights(torch.arange(one.n_tokens - count, one.n_tokens))[0].mean(0)
    found = torch.zeros(count, count, dtype=weights.dtype)
    return found.index_add(1, torch.from_numpy(places), weights)
