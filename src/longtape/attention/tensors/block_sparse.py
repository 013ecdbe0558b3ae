"""The pattern mechanisms in PyTorch's own operations, for inference at one length: what an exported graph holds.

Queries are taken in tiles. The keys that a tile sees are gathered by a table that is made once, so that time and memory
grow with what the pattern shows, and not with N².
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from longtape.attention.pattern import Pattern

TILE = 64  # queries that share a table of keys
_HIDDEN = -1e30  # score of a pair that the pattern does not show; finite, so that no row is NaN


class TiledPattern(nn.Module):
    """Attention on the pairs that `pattern` shows among `n_tokens`, with explicit global `positions` [1, G].

    `n_extra` learned tokens stand in front of the keys, and every query sees them.
    """

    keys: Tensor  # [tiles, U] the keys that some query of a tile sees
    shown: Tensor  # bool [tiles, TILE, n_extra + U]
    global_rows: Tensor  # [G] queries that see all
    shown_to_global: Tensor  # bool [G, n_extra + N]
    order: (
        Tensor  # [N] where the output of each query stands: those of the tiles, then those of the global ones
    )

    def __init__(self, pattern: Pattern, n_tokens: int, positions: Tensor | None, n_extra: int = 0) -> None:
        super().__init__()
        global_rows = pattern.global_flags(n_tokens, positions)[0].nonzero()[:, 0]
        tables = [_table(pattern, n_tokens, positions, start) for start in range(0, n_tokens, TILE)]
        keys = pad_sequence([keys for keys, _ in tables], batch_first=True)
        shown = [F.pad(one, (0, keys.shape[1] - one.shape[1], 0, TILE - len(one))) for _, one in tables]
        to_global = pattern.rows(n_tokens, global_rows, positions)[0]
        order = torch.arange(n_tokens).scatter(0, global_rows, n_tokens + torch.arange(len(global_rows)))
        self.register_buffer("keys", keys, persistent=False)
        self.register_buffer("shown", F.pad(torch.stack(shown), (n_extra, 0), value=True), persistent=False)
        self.register_buffer("global_rows", global_rows, persistent=False)
        self.register_buffer("shown_to_global", F.pad(to_global, (n_extra, 0), value=True), persistent=False)
        self.register_buffer("order", order, persistent=False)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        extra_k: Tensor | None = None,
        extra_v: Tensor | None = None,
        of_global: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> Tensor:
        """q, k, v [B, H, N, D] → [B, H, N, D]. Keys and values of the learned tokens, [H, E, D]; where global queries
        have projections of their own, their q [B, H, G, D], k and v [B, H, N, D].
        """
        n_tokens = q.shape[2]
        tiles = F.pad(q, (0, 0, 0, -n_tokens % TILE)).unflatten(2, (-1, TILE))
        of_tiles = _attend(tiles, self._gathered(k, extra_k), self._gathered(v, extra_v), self.shown)
        local = of_tiles.flatten(2, 3)[:, :, :n_tokens]
        if not self.global_rows.shape[0]:
            return local
        if of_global is None:
            of_global = q.index_select(2, self.global_rows), _prepend(extra_k, k), _prepend(extra_v, v)
        wide = _attend(*of_global, self.shown_to_global)
        return torch.cat([local, wide], 2).index_select(2, self.order)

    def _gathered(self, x: Tensor, extra: Tensor | None) -> Tensor:
        """Keys or values of every tile, [B, H, tiles, E + U, D]."""
        rows = x.index_select(2, self.keys.flatten()).unflatten(2, tuple(self.keys.shape))
        return rows if extra is None else _prepend(extra[:, None], rows)


def _table(pattern: Pattern, n_tokens: int, positions: Tensor | None, start: int) -> tuple[Tensor, Tensor]:
    """Keys [U] that the queries of a tile see, but for those that see all, and which query sees which, [rows, U]."""
    queries = torch.arange(start, min(start + TILE, n_tokens))
    is_global = pattern.global_flags(n_tokens, positions)[0, queries]
    seen = pattern.rows(n_tokens, queries, positions)[0] & ~is_global[:, None]
    keys = seen.any(0).nonzero()[:, 0]
    return keys, seen[:, keys]


def _attend(q: Tensor, k: Tensor, v: Tensor, shown: Tensor) -> Tensor:
    scores = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).masked_fill(~shown, _HIDDEN)
    return scores.softmax(-1) @ v


def _prepend(extra: Tensor | None, x: Tensor) -> Tensor:
    return x if extra is None else torch.cat([extra.expand(*x.shape[:-2], -1, -1), x], -2)
