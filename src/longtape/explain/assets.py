"""Which asset looks at which, in models whose tokens are assets."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from longtape.core.errors import UserError
from longtape.explain.attention import Passed, alone_in
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
        count = int(np.max(assets)) + 1
        newest = alone_in(one, len(one.x) - 1)  # of moments in a row, the last
        weights = newest.weights(torch.arange(one.n_tokens - count, one.n_tokens))[0].mean(0)
        found = torch.zeros(count, count, dtype=weights.dtype)
        maps.append(found.index_add(1, torch.from_numpy(assets), weights))
    return maps
