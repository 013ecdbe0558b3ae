"""ProbSparse attention of Informer (Zhou et al. 2021, arXiv:2012.07436): only peaked queries attend. O(N log N).

M(q) = max_j(q·k_j/√D) − mean_j(q·k_j/√D), estimated on a sample of factor·⌈ln M⌉ keys, says how far the attention of
a query is from uniform. The factor·⌈ln N⌉ queries of highest M attend to all keys; the others take the mean of V, which
is what uniform attention gives. The queries of a head share the sample, so that estimating is one matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from longtape.attention.base import (
    Attention,
    AttentionConfig,
    Capabilities,
    mask_heads,
    mask_padding,
    masked_softmax,
)

_FINE = 1 << 20  # resolution of a sampled key's place within its stratum
_MOST_LOG = 32  # ⌈ln N⌉ for more tokens than any memory holds
_CHUNK = 1 << 20  # scores in flight while queries are measured


def budget(factor: int, n_tokens: int) -> int:
    """factor·⌈ln n⌉ queries or keys out of n, at least 1 and at most n."""
    return max(1, min(n_tokens, factor * math.ceil(math.log(n_tokens))))


@dataclass(frozen=True)
class ProbSparseConfig(AttentionConfig):
    """`causal="masked"` is Informer's one-pass decoder: queries are chosen by looking at all steps, their scores are
    masked, and the others take the running mean of V. It is not causal in the strict sense.
    """

    causal_forms: ClassVar[tuple[bool | str, ...]] = (False, True, "masked")
    causal: bool | str = False  # type: ignore[assignment]
    factor: int = 5  # c of c·⌈ln N⌉
    seed: int = 0  # of the sampled keys

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor < 1:
            raise ValueError(f"factor={self.factor} must be at least 1")


class Chosen(NamedTuple):
    """The queries that attend."""

    queries: Tensor  # [B, H, U] positions, by falling M
    active: Tensor  # bool, [B, 1, U]: a sample with fewer visible tokens uses fewer of its places


class ProbSparseAttention(Attention):
    """Attention of the most peaked queries; the mean of V for the rest."""

    Config: ClassVar[type[AttentionConfig]] = ProbSparseConfig
    capabilities = Capabilities(cross=True)
    config: ProbSparseConfig
    jitter: Tensor

    def __init__(self, config: ProbSparseConfig) -> None:
        super().__init__(config)
        places = (config.n_heads, config.factor * _MOST_LOG)
        self.register_buffer("jitter", torch.zeros(places, dtype=torch.int64))
        self.redraw(config.seed)

    @classmethod
    def why_not_causal(cls) -> str:
        """The reason given when causal=True is refused."""
        return (
            "whether a query attends depends on the rank of its M among all queries, later ones included; "
            'causal="masked" is the form of Informer\'s one-pass decoder'
        )

    @torch.no_grad()
    def redraw(self, seed: int) -> None:
        """Sample other keys from now on."""
        generator = torch.Generator().manual_seed(seed)
        self.jitter.copy_(torch.randint(_FINE, self.jitter.shape, generator=generator))

    def forward(self, x: Tensor, visible: Tensor | None = None, **extra: Any) -> Tensor:
        """X [B, N, d_model], visible [B, N] → [B, N, d_model]; `context`, `context_visible` for cross-attention.

        All queries are measured without a graph; only the chosen ones are projected again with one.
        """
        context, context_visible = self._pop_context(x, visible, extra)
        x = mask_padding(x, visible)
        source = x if context is None else mask_padding(context, context_visible)
        keys_visible = visible if context is None else context_visible
        k, v = self.place(self.split_heads(self.k_proj(source))), self.split_heads(self.v_proj(source))
        with torch.no_grad():
            chosen = self.choose(self.place(self.split_heads(self.q_proj(x))), k, keys_visible, visible)
        attended = self._attend_active(self._project_rows(x, chosen.queries), k, v, keys_visible, chosen)
        if self.config.causal:
            return self._project_output(
                _scatter_active(running_mean(v, keys_visible), attended, chosen), visible
            )
        return self.dropout(self._project_output_lazily(mean(v, keys_visible), attended, chosen, x, visible))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, **extra: Any) -> Tensor:
        """[B, H, N, D]; visible [B, M] of the keys, `query_visible` [B, N] of the queries."""
        chosen = self.choose(q.detach(), k.detach(), visible, extra.get("query_visible"))
        attended = self._attend_active(_gather_rows(q, chosen.queries), k, v, visible, chosen)
        lazy = running_mean(v, visible) if self.config.causal else mean(v, visible).expand(q.shape)
        return _scatter_active(lazy, attended, chosen)

    def attention_probs(
        self, q: Tensor, k: Tensor, visible: Tensor | None, rows: Tensor, **extra: Any
    ) -> Tensor:
        """Weights [B, H, len(rows), M]: of an active query its softmax, of a lazy one 1/count on all it may see."""
        active = self.active(q.detach(), k.detach(), visible, extra.get("query_visible"))[:, :, rows]
        seen = torch.ones(len(rows), k.shape[2], dtype=torch.bool, device=q.device)
        if self.config.causal:
            seen = torch.arange(k.shape[2], device=q.device) <= rows[:, None]
        mask = seen if visible is None else seen & visible[:, None, None, :]
        scores = q[:, :, rows] @ mask_heads(k, visible).transpose(-2, -1) / math.sqrt(q.shape[-1])
        uniform = mask.to(q.dtype) / mask.sum(-1, keepdim=True).clamp(min=1)
        return torch.where(active[..., None], masked_softmax(scores, mask), uniform)

    def active(
        self, q: Tensor, k: Tensor, visible: Tensor | None = None, query_visible: Tensor | None = None
    ) -> Tensor:
        """Which queries attend: bool [B, H, N]. Its mean is the share of active queries."""
        chosen = self.choose(q, k, visible, query_visible)
        none = torch.zeros(q.shape[:3], dtype=torch.bool, device=q.device)
        return none.scatter(2, chosen.queries, chosen.active.expand_as(chosen.queries))

    @torch.no_grad()
    def choose(self, q: Tensor, k: Tensor, visible: Tensor | None, query_visible: Tensor | None) -> Chosen:
        """The min(N, factor·⌈ln N⌉) queries of highest estimated M; counts are of visible tokens."""
        keys, sampled = self._sample(k, visible)
        m = torch.cat([_sparsity_of(s, sampled) for s in _scores(q, keys)], -1)
        n_queries, most = q.shape[2], budget(self.config.factor, q.shape[2])
        if query_visible is None:
            return Chosen(m.topk(most).indices, m.new_ones(1, 1, most, dtype=torch.bool))
        m = m.masked_fill(~query_visible[:, None], float("-inf"))
        allowed = _budgets(self.config.factor, query_visible.sum(-1), n_queries)
        active = torch.arange(most, device=q.device) < allowed[:, None]
        return Chosen(m.topk(most).indices, active[:, None])

    def _sample(self, k: Tensor, visible: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Sampled keys [B, H, S, D], and which of the S places a sample with fewer visible keys uses, [B, 1, 1, S].

        One key from each of S equal strata of the visible keys: no key twice, and all of them when S = M.
        """
        n_keys, most = k.shape[2], budget(self.config.factor, k.shape[2])
        place = torch.arange(most, device=k.device)
        if visible is None:
            rank = self._stratified_ranks(place, n_keys, most)
            return _gather_rows(k, rank.expand(k.shape[0], -1, -1)), None
        count = visible.sum(-1)[:, None, None]
        size = _budgets(self.config.factor, count, n_keys)
        rank = self._stratified_ranks(place, count, size).clamp(max=n_keys - 1)
        visible_first = (~visible).to(torch.uint8).argsort(dim=-1, stable=True)
        position = visible_first[:, None].expand(-1, rank.shape[1], -1).gather(2, rank)
        return _gather_rows(k, position), (place < size)[:, :, None]

    def _stratified_ranks(self, place: Tensor, count: int | Tensor, size: int | Tensor) -> Tensor:
        """One rank out of every place's stratum, ⌊place·count/size⌋ … ⌊(place + 1)·count/size⌋ − 1. [(B,) H, S]."""
        first = (place * count).div(size, rounding_mode="floor")
        after = ((place + 1) * count).div(size, rounding_mode="floor")
        return first + (self.jitter[:, : len(place)] * (after - first)).div(_FINE, rounding_mode="floor")

    def _project_rows(self, x: Tensor, index: Tensor) -> Tensor:
        """Queries of the positions index [B, H, U] alone: [B, H, U, D]."""
        n_heads, head_dim = self.config.n_heads, self.config.head_dim
        first = torch.arange(x.shape[0], device=x.device)[:, None, None] * x.shape[1]
        chosen = x.flatten(0, 1).index_select(0, (first + index).flatten()).view(*index.shape, -1)
        q = chosen @ self.q_proj.weight.view(n_heads, head_dim, -1).transpose(-2, -1)
        q = q if self.q_proj.bias is None else q + self.q_proj.bias.view(n_heads, 1, head_dim)
        return self.place(q, index)

    def _attend_active(
        self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, chosen: Chosen
    ) -> Tensor:
        """Full attention of the chosen queries, [B, H, U, D]; zero where nothing is visible."""
        dropout = self.config.attention_dropout if self.training else 0.0
        mask = None if visible is None else visible[:, None, None, :]
        if self.config.causal:
            past = torch.arange(k.shape[2], device=k.device) <= chosen.queries[..., None]
            mask = past if mask is None else past & mask
        if mask is None:
            return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        sees = mask.any(-1, keepdim=True)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask | ~sees, dropout_p=dropout)
        return out.masked_fill(~sees, 0.0)

    def _project_output_lazily(
        self, lazy: Tensor, attended: Tensor, chosen: Chosen, x: Tensor, visible: Tensor | None
    ) -> Tensor:
        """Output projection [B, N, d_model] of rows that are `lazy` [B, H, 1, D] but for the chosen ones.

        The projection is linear: one projected row for all, and what the chosen ones differ by added at their places.
        """
        out, (b, n, d_model) = self.out_proj, x.shape
        common = out(lazy.transpose(1, 2).flatten(2)).expand(b, n, d_model)
        if visible is not None:
            common = torch.where(visible[..., None], common, out(lazy.new_zeros(d_model)))
        by_head = out.weight.view(d_model, self.config.n_heads, -1).permute(1, 2, 0)  # [H, D, d_model]
        difference = (attended - lazy).masked_fill(~chosen.active[..., None], 0.0) @ by_head
        first = torch.arange(b, device=x.device)[:, None, None] * n
        place = (first + chosen.queries).flatten()
        return (
            common.reshape(b * n, d_model).index_add(0, place, difference.flatten(0, 2)).view(b, n, d_model)
        )

    def _pop_context(
        self, x: Tensor, visible: Tensor | None, extra: dict[str, Any]
    ) -> tuple[Tensor | None, Tensor | None]:
        context, context_visible = super()._pop_context(x, visible, extra)
        if context is not None and self.config.causal:
            raise ValueError('causal="masked" is for self-attention; cross-attention sees the whole context')
        extra["query_visible"] = visible
        return context, context_visible


def sparsity(q: Tensor, k: Tensor, visible: Tensor | None = None) -> Tensor:
    """M of every query over all keys, [B, H, N]: 0 for uniform attention, at most the range of its scores."""
    seen = None if visible is None else visible[:, None, None, :]
    return torch.cat([_sparsity_of(scores, seen) for scores in _scores(q, mask_heads(k, visible))], -1)


def divergence(q: Tensor, k: Tensor, visible: Tensor | None = None) -> Tensor:
    """KL(uniform ‖ attention) of every query, [B, H, N]: logsumexp − mean − ln M; M(q) − ln M ≤ KL ≤ M(q)."""
    seen = None if visible is None else visible[:, None, None, :]
    parts = [_divergence_of(scores, seen) for scores in _scores(q, mask_heads(k, visible))]
    return torch.cat(parts, -1)


def mean(v: Tensor, visible: Tensor | None) -> Tensor:
    """Mean of the visible values, [B, H, 1, D]."""
    if visible is None:
        return v.mean(2, keepdim=True)
    count = visible.sum(-1).clamp(min=1)[:, None, None, None]
    return mask_heads(v, visible).sum(2, keepdim=True) / count


def running_mean(v: Tensor, visible: Tensor | None) -> Tensor:
    """Mean of the visible values up to each position, [B, H, M, D]; summed in at least float32."""
    wide = mask_heads(v, visible).to(torch.promote_types(v.dtype, torch.float32))
    seen = v.new_ones(v.shape[0], v.shape[2], dtype=torch.int64) if visible is None else visible.long()
    return (wide.cumsum(2) / seen.cumsum(-1).clamp(min=1)[:, None, :, None]).to(v.dtype)


def _budgets(factor: int, count: Tensor, most: int) -> Tensor:
    """`budget` of every count."""
    wanted = factor * count.clamp(min=1).double().log().ceil().long()
    return torch.minimum(wanted, count).clamp(1, most)


def _scores(q: Tensor, keys: Tensor) -> Iterator[Tensor]:
    """q·k/√D for some queries at a time, [B, H, n, keys]."""
    size = max(1, _CHUNK // max(1, q.shape[0] * q.shape[1] * keys.shape[2]))
    scaled = (keys / math.sqrt(q.shape[-1])).transpose(-2, -1)
    for start in range(0, q.shape[2], size):
        yield q[:, :, start : start + size] @ scaled


def _sparsity_of(scores: Tensor, seen: Tensor | None) -> Tensor:
    """Maximum − mean of the last dimension, over what is seen."""
    if seen is None:
        return scores.amax(-1) - scores.mean(-1)
    total = scores.masked_fill(~seen, 0.0).sum(-1)
    return scores.masked_fill(~seen, float("-inf")).amax(-1) - total / seen.sum(-1).clamp(min=1)


def _divergence_of(scores: Tensor, seen: Tensor | None) -> Tensor:
    if seen is None:
        return scores.logsumexp(-1) - scores.mean(-1) - math.log(scores.shape[-1])
    count = seen.sum(-1).clamp(min=1)
    total = scores.masked_fill(~seen, 0.0).sum(-1)
    return (
        scores.masked_fill(~seen, float("-inf")).logsumexp(-1) - total / count - count.to(scores.dtype).log()
    )


def _gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """x [B, H, N, D] at index [B, H, U] → [B, H, U, D]."""
    return x.gather(2, index[..., None].expand(*index.shape, x.shape[-1]))


def _scatter_active(lazy: Tensor, attended: Tensor, chosen: Chosen) -> Tensor:
    """`lazy` [B, H, N, D] with the rows of active chosen queries replaced by `attended` [B, H, U, D]."""
    new = torch.where(chosen.active[..., None], attended, _gather_rows(lazy, chosen.queries))
    return lazy.scatter(2, chosen.queries[..., None].expand_as(new), new)
