"""Which key each query sees: one set of rules for tokens (block_size 1) and for blocks, never an N×N tensor.

A *unit* is a run of `block_size` tokens. A query unit sees the union of

- a window of `window_size` units around itself (every `dilation`-th one),
- `n_global` global units and any explicitly named tokens, which also see everything themselves,
- `n_random` further units, drawn by `draw` below.

Sources: BigBird (Zaheer et al. 2020), Longformer (Beltagy et al. 2020), ETC (Ainslie et al. 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

PLACEMENTS = ("first", "last", "both", "random", "spaced")
_LOW = 0xFFFFFFFF


def hash32(*words: Tensor | int) -> Tensor:
    """Integer hash of 32-bit words: h ← mix((h + 0x9E3779B9) xor word), starting from 0; int64 in [0, 2³²).

    mix is the `lowbias32` finalizer: x ^= x>>16, x *= 0x7FEB352D, x ^= x>>15, x *= 0x846CA68B, x ^= x>>16, modulo 2³².
    Only integer arithmetic, so the result is the same on every device and version.
    """
    h = torch.zeros((), dtype=torch.int64)
    for word in words:
        h = ((h + 0x9E3779B9) & _LOW) ^ torch.as_tensor(word, dtype=torch.int64)
        h = h ^ (h >> 16)
        h = (h * 0x7FEB352D) & _LOW
        h = h ^ (h >> 15)
        h = (h * 0x846CA68B) & _LOW
        h = h ^ (h >> 16)
    return h


def draw(seed: int, n_tokens: int, queries: Tensor, sizes: Tensor, count: int) -> Tensor:
    """`count` different ranks below sizes [..., Q] for each query [Q]: [..., Q, count], ascending, −1 where none.

    Floyd's sampling: step t takes u = hash32(seed, N, query, t)·(top + 1) >> 32 with top = size − take + t, or top
    itself where u was already taken.
    """
    take = sizes.clamp(max=count)
    steps = int(take.max()) if take.numel() else 0
    if (
        int(sizes.min()) <= steps == int(sizes.max())
    ):  # everything is taken everywhere or nearly: no need to draw
        ranks = torch.arange(steps).expand(*sizes.shape, steps)
        if bool((take == sizes).all()):
            return torch.where(ranks < sizes[..., None], ranks, -1)
    picks = torch.full((*sizes.shape, steps), -1, dtype=torch.int64)
    for t in range(steps):
        top = sizes - take + t
        u = (hash32(seed, n_tokens, queries, t) * (top + 1)) >> 32
        repeated = (picks[..., :t] == u[..., None]).any(-1)
        picks[..., t] = torch.where(t < take, torch.where(repeated, top, u), -1)
    return _ascending(picks)


def _ascending(units: Tensor) -> Tensor:
    """Sort the last dimension with the −1 at the end."""
    far = torch.iinfo(torch.int64).max
    ordered = units.masked_fill(units < 0, far).sort(-1).values
    return ordered.masked_fill(ordered == far, -1)


@dataclass(frozen=True)
class Pattern:
    """The rules. All sizes in units of `block_size` tokens; `placement` says where the `n_global` units lie."""

    block_size: int = 1
    window_size: int = 1
    n_random: int = 0
    n_global: int = 0
    placement: str = "first"
    symmetric: bool = False
    causal: bool = False
    seed: int = 0
    dilation: int = 1

    def __post_init__(self) -> None:
        if self.block_size < 1 or self.n_random < 0 or self.n_global < 0 or self.dilation < 1:
            raise ValueError(
                f"block_size={self.block_size} and dilation={self.dilation} must be at least 1, "
                f"n_random={self.n_random} and n_global={self.n_global} at least 0"
            )
        if self.window_size < 1 or self.window_size % 2 == 0:
            raise ValueError(
                f"window_size={self.window_size} must be odd: the whole width, w on either side is 2w + 1"
            )
        if self.placement not in PLACEMENTS:
            raise ValueError(
                f"global_tokens='{self.placement}' must be one of {', '.join(PLACEMENTS)} or a list of positions"
            )
        if not 0 <= self.seed <= _LOW:
            raise ValueError(f"seed={self.seed} must lie in [0, 2**32)")
        if self.dilation > 1 and (self.n_random or self.block_size > 1):
            raise ValueError("a dilated window goes with block_size=1 and n_random=0")
        if self.symmetric and self.causal:
            raise ValueError(
                "symmetric=True has no effect with causal=True: a link back into the future is cut"
            )

    def to_ints(self) -> list[int]:
        """The rules as integers, the form in which an operator takes them."""
        values = astuple(self)
        return [PLACEMENTS.index(value) if isinstance(value, str) else int(value) for value in values]

    @classmethod
    def from_ints(cls, values: Sequence[int]) -> Pattern:
        """The inverse of `to_ints`."""
        size, window, n_random, n_global, placement, symmetric, causal, seed, dilation = values
        return cls(
            size,
            window,
            n_random,
            n_global,
            PLACEMENTS[placement],
            bool(symmetric),
            bool(causal),
            seed,
            dilation,
        )

    @property
    def reach(self) -> int:
        """Units that the window shows on either side."""
        return self.window_size // 2

    def n_units(self, n_tokens: int) -> int:
        """Number of units; the last may be shorter."""
        return -(-n_tokens // self.block_size)

    def global_units(self, n_tokens: int) -> list[int]:
        """The placed global units, ascending."""
        n = self.n_units(n_tokens)
        g = min(self.n_global, n)
        if self.placement == "random":
            drawn = draw(self.seed, n_tokens, torch.tensor([n]), torch.tensor([n]), g)
            return [int(unit) for unit in drawn.flatten()]
        if self.placement == "spaced":
            return [i * n // g for i in range(g)]
        first = {"first": g, "last": 0, "both": -(-g // 2)}[self.placement]
        return sorted({*range(first), *range(n - (g - first), n)})

    def random_units(self, n_tokens: int, positions: Tensor | None = None) -> Tensor:
        """Units drawn by each query unit, [P, units, ≤ n_random], ascending, −1 where fewer candidates remain.

        Candidates are the units that neither the window nor a global unit gives (causal: earlier ones only).
        At block_size 1 the explicit `positions` [P, G] are global units too; otherwise P = 1.
        """
        n = self.n_units(n_tokens)
        is_global = torch.zeros(1, n, dtype=torch.bool)
        is_global[:, self.global_units(n_tokens)] = True
        if positions is not None and self.block_size == 1:
            is_global = is_global | token_flags(positions, n_tokens)
        others = is_global.to(torch.int8).argsort(dim=-1, stable=True)  # units that are not global come first
        below = F.pad((~is_global).cumsum(-1), (1, 0))  # how many of them lie below a unit
        units = torch.arange(n)
        low = below[:, (units - self.reach).clamp(min=0)]
        high = below[:, (units + self.reach + 1).clamp(max=n)]
        sizes = low if self.causal else low + below[:, -1:] - high
        ranks = draw(self.seed, n_tokens, units, sizes, self.n_random)
        ranks = torch.where(ranks >= low[..., None], ranks + (high - low)[..., None], ranks)
        drawn = others.gather(1, ranks.clamp(min=0).flatten(1)).view_as(ranks)
        return torch.where(ranks < 0, -1, drawn)

    def links(self, n_tokens: int, positions: Tensor | None = None) -> Tensor:
        """Random links of each query unit with `symmetric` applied: [P, units, L], ascending, −1 where none."""
        drawn = self.random_units(n_tokens, positions)
        if not self.symmetric or drawn.shape[-1] == 0:
            return drawn
        return torch.nn.utils.rnn.pad_sequence(
            [_symmetric(row).T for row in drawn], batch_first=True, padding_value=-1
        ).transpose(1, 2)

    def rows(self, n_tokens: int, queries: Tensor, positions: Tensor | None = None) -> Tensor:
        """The definition, read from the rules: bool [P, len(queries), N], True where the query sees the key."""
        return self._rows(queries, self.links(n_tokens, positions), self.global_flags(n_tokens, positions))

    def _rows(self, queries: Tensor, links: Tensor, is_global: Tensor) -> Tensor:
        keys = torch.arange(is_global.shape[1])
        query_unit, key_unit = queries // self.block_size, keys // self.block_size
        apart = query_unit[:, None] - key_unit
        in_window = (apart.abs() <= self.reach * self.dilation) & (apart % self.dilation == 0)
        links, n_units = links[:, query_unit], links.shape[1]
        linked = torch.zeros(*links.shape[:2], n_units + 1, dtype=torch.bool)
        linked = linked.scatter(2, torch.where(links < 0, n_units, links), True)[..., key_unit]
        seen = in_window | linked | is_global[:, None, :] | is_global[:, queries, None]
        return seen & (keys <= queries[:, None]) if self.causal else seen

    def degrees(self, n_tokens: int, positions: Tensor | None = None) -> Tensor:
        """How many keys each query sees, [P, N], in O(N)."""
        is_global, links = self.global_flags(n_tokens, positions), self.links(n_tokens, positions)
        tokens = torch.arange(n_tokens)
        stop = tokens + 1 if self.causal else torch.full_like(tokens, n_tokens)
        plain = F.pad((~is_global).long().cumsum(-1), (1, 0))  # how many tokens below are not global
        edges = (torch.arange(self.n_units(n_tokens) + 1) * self.block_size).clamp(max=n_tokens)
        inside = F.pad(plain[:, edges].diff(dim=-1), (0, 1))  # [P, units + 1]: 0 for a missing link
        links = torch.where(links < 0, links.shape[1], links).expand(len(is_global), -1, -1)
        linked = inside.gather(1, links.flatten(1)).view(links.shape)
        linked = linked.sum(-1)[:, tokens // self.block_size]
        seen = stop - plain[:, stop] + self._windowed(plain, stop) + linked  # global, near and linked keys
        return torch.where(is_global, stop, seen)

    def _windowed(self, plain: Tensor, stop: Tensor) -> Tensor:
        """Keys in each query's window that are not global, [P, N]; `plain` counts such keys below each token."""
        n = len(stop)
        tokens, size = torch.arange(n), self.block_size
        if self.dilation == 1:
            low = ((tokens // size - self.reach) * size).clamp(min=0)
            high = torch.minimum((tokens // size + self.reach + 1) * size, stop)
            return plain[:, high] - plain[:, low]
        total = torch.zeros(plain.shape[0], n, dtype=torch.int64)
        for step in range(-self.reach, self.reach + 1):
            key = tokens + step * self.dilation
            there = (key >= 0) & (key < stop)
            key = key.clamp(0, n - 1)
            total += (plain[:, key + 1] - plain[:, key]) * there
        return total

    def density(self, n_tokens: int, positions: Tensor | None = None) -> float:
        """Visible pairs over N² (mean over samples)."""
        return float(self.degrees(n_tokens, positions).double().mean()) / n_tokens

    def hops(self, n_tokens: int, query: int, key: int) -> int:
        """Layers after which `query` can depend on `key`: the length of the shortest path; −1 where there is none."""
        links, is_global = self.links(n_tokens), self.global_flags(n_tokens)
        reached = torch.arange(n_tokens) == query
        fresh, hops = reached, 0
        while not reached[key]:
            if not fresh.any():
                return -1
            seen = [self._rows(some, links, is_global)[0].any(0) for some in fresh.nonzero()[:, 0].split(256)]
            fresh = torch.stack(seen).any(0) & ~reached
            reached, hops = reached | fresh, hops + 1
        return hops

    def global_flags(self, n_tokens: int, positions: Tensor | None = None) -> Tensor:
        """Bool [P, N]: the tokens that see, and are seen by, all."""
        units = torch.zeros(self.n_units(n_tokens), dtype=torch.bool)
        units[self.global_units(n_tokens)] = True
        flags = units.repeat_interleave(self.block_size)[None, :n_tokens]
        return flags if positions is None else flags | token_flags(positions, n_tokens)


def check_positions(positions: Tensor, n_tokens: int) -> None:
    """ValueError for a position outside the sequence; −1 stands for none."""
    if positions.numel() and not (int(positions.min()) >= -1 and int(positions.max()) < n_tokens):
        outside = positions[(positions < -1) | (positions >= n_tokens)]
        raise ValueError(f"global position {int(outside[0])} lies outside the {n_tokens} tokens")


def token_flags(positions: Tensor, n_tokens: int) -> Tensor:
    """Positions [P, G] (−1 = none) as bool [P, N]; ValueError for one outside the sequence."""
    check_positions(positions, n_tokens)
    flags = torch.zeros(positions.shape[0], n_tokens + 1, dtype=torch.bool)
    index = torch.where(positions < 0, n_tokens, positions).cpu()
    return flags.scatter(1, index, True)[:, :n_tokens]


def _symmetric(drawn: Tensor) -> Tensor:
    """[units, r] → [units, L]: the links and their mirror images, each once."""
    n = drawn.shape[0]
    source = torch.arange(n)[:, None].expand_as(drawn)[drawn >= 0]
    target = drawn[drawn >= 0]
    edges = torch.cat([source * n + target, target * n + source]).unique()  # sorted
    source, target = edges // n, edges % n
    degree = torch.bincount(source, minlength=n)
    rank = torch.arange(len(edges)) - (degree.cumsum(0) - degree)[source]
    table = torch.full((n, int(degree.max()) if len(edges) else 0), -1)
    table[source, rank] = target
    return table
