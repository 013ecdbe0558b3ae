"""Longformer: window + global tokens with projections of their own (Beltagy et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longtape.attention.base import Attention, AttentionConfig, Capabilities, masked_softmax
from longtape.attention.full import full_attention
from longtape.attention.operators.block_sparse import pattern_attention
from longtape.attention.pattern import Pattern, check_positions, token_flags
from longtape.attention.patterned import explicit_tokens
from longtape.attention.tensors.block_sparse import TiledPattern

Projections = tuple[Tensor, Tensor, Tensor]  # q, k, v


@torch.library.custom_op("longtape::global_positions", mutates_args=())
def _all_positions(q: Tensor, given: Tensor | None, placement: list[int], listed: list[int]) -> Tensor:
    """Placed, listed and given global tokens, each once: [B, G], −1 = none; an operator, so that N may be symbolic."""
    placed = Pattern.from_ints(placement).global_units(q.shape[2])
    missing = Pattern.from_ints(placement).n_global - len(placed)
    fixed = torch.tensor([*placed, *[-1] * missing, *listed], dtype=torch.int64, device=q.device)
    named = fixed.expand(len(q), -1)
    if given is not None:
        named = torch.cat([named, given.to(q.device)], 1)
    check_positions(named, q.shape[2])
    ordered = named.sort(1).values
    repeated = F.pad(ordered[:, 1:] == ordered[:, :-1], (1, 0))
    return ordered.masked_fill(repeated, -1)


@_all_positions.register_fake
def _(q: Tensor, given: Tensor | None, placement: list[int], listed: list[int]) -> Tensor:
    count = Pattern.from_ints(placement).n_global + len(listed) + (0 if given is None else given.shape[1])
    return q.new_empty((q.shape[0], count), dtype=torch.int64)


@dataclass(frozen=True)
class LongformerConfig(AttentionConfig):
    """All sizes in tokens. `dilation`: step of the window, one for all heads or one for each.

    `global_tokens`: "first", "last", "both", "random" or "spaced", or a list of positions, which then are the global
    tokens in place of the `n_global` placed ones.
    """

    window_size: int = 257
    n_global: int = 1
    global_tokens: str | Sequence[int] = "first"
    dilation: int | Sequence[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.global_tokens, str):
            object.__setattr__(self, "global_tokens", explicit_tokens(self.global_tokens))
        if not isinstance(self.dilation, int):
            object.__setattr__(self, "dilation", tuple(int(d) for d in self.dilation))
        if len(self.dilations()) != self.n_heads:
            raise ValueError(
                f"dilation={self.dilation} must be one number or {self.n_heads}, one for each head"
            )
        self.patterns()  # refuses what makes no pattern

    def dilations(self) -> tuple[int, ...]:
        """The step of each head."""
        return (self.dilation,) * self.n_heads if isinstance(self.dilation, int) else tuple(self.dilation)

    def patterns(self) -> tuple[Pattern, ...]:
        """The window of each head."""
        return tuple(
            Pattern(window_size=self.window_size, causal=bool(self.causal), dilation=d)
            for d in self.dilations()
        )

    def placement(self) -> Pattern:
        """The rules that place the global tokens."""
        if isinstance(self.global_tokens, str):
            return Pattern(n_global=self.n_global, placement=self.global_tokens)
        return Pattern()


class LongformerAttention(Attention):
    """A local query sees its window and the global keys; a global query sees all, through q, k and v of its own.

    `layer(x, global_positions=…)` [B, G] names further global tokens for each sample (−1 = none).
    """

    Config = LongformerConfig
    capabilities = Capabilities(causal=True, fixed_pattern=True)
    inputs: ClassVar[tuple[str, ...]] = ("global_positions",)
    placed: Tensor  # global tokens of one length, in PyTorch's own operations

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__(config)
        self.patterns, self.placement = config.patterns(), config.placement()
        self.global_tokens = explicit_tokens(config.global_tokens)
        self.global_q_proj = nn.Linear(config.d_model, config.d_model)
        self.global_k_proj = nn.Linear(config.d_model, config.d_model)
        self.global_v_proj = nn.Linear(config.d_model, config.d_model)

    def extra_inputs(self, x: Tensor) -> dict[str, Any]:
        return {"source": x}

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        visible: Tensor | None,
        global_positions: Tensor | None = None,
        source: Tensor | None = None,
        **extra: Any,
    ) -> Tensor:
        assert source is not None  # noqa: S101 (project_more gives it)
        if self.in_tensors:
            return self._attend_tiles(q, k, v, source)
        positions = self.positions(q, global_positions)
        dropout = self.config.attention_dropout if self.training else 0.0
        return window_attention(
            q, k, v, self.patterns, positions, self.project_global(source, positions), visible, dropout
        )

    def to_tensors(self, n_tokens: int) -> None:
        super().to_tensors(n_tokens)
        placed = self._all_global(n_tokens).unique()
        self.register_buffer("placed", placed, persistent=False)
        self.heads_of = {p: [h for h, own in enumerate(self.patterns) if own == p] for p in self.patterns}
        self.tiles = nn.ModuleList(TiledPattern(p, n_tokens, placed[None]) for p in self.heads_of)

    def _attend_tiles(self, q: Tensor, k: Tensor, v: Tensor, source: Tensor) -> Tensor:
        """Head by head of one dilation, in PyTorch's own operations."""
        wide = self.project_global(source, self.placed.expand(len(q), -1))
        out: list[Tensor] = [q] * len(self.patterns)
        for tiles, heads in zip(self.tiles, self.heads_of.values(), strict=True):
            theirs = None if wide is None else tuple(x[:, heads] for x in wide)
            y = tiles(q[:, heads], k[:, heads], v[:, heads], of_global=theirs)
            for i, head in enumerate(heads):
                out[head] = y[:, i]
        return torch.stack(out, 1)

    def project_global(self, source: Tensor, positions: Tensor) -> Projections | None:
        """Queries at `positions`, keys and values of all tokens, through the projections of the global tokens."""
        if positions.shape[1] == 0:
            return None
        chosen = positions.clamp(min=0)[..., None].expand(-1, -1, source.shape[-1])
        return (
            self.place(self.split_heads(self.global_q_proj(source.gather(1, chosen))), positions[:, None]),
            self.place(self.split_heads(self.global_k_proj(source))),
            self.split_heads(self.global_v_proj(source)),
        )

    def attend_reference(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        visible: Tensor | None,
        global_positions: Tensor | None = None,
        source: Tensor | None = None,
        **extra: Any,
    ) -> Tensor:
        assert source is not None  # noqa: S101
        rows = torch.arange(q.shape[2])
        seen, is_global = self._attention_mask(rows, q, visible, global_positions)
        projections = (self.global_q_proj, self.global_k_proj, self.global_v_proj)
        global_q, global_k, global_v = (self.split_heads(project(source)) for project in projections)
        global_q, global_k = self.place(global_q), self.place(global_k)
        wide = full_attention(global_q, global_k, global_v, seen)
        return torch.where(is_global, wide, full_attention(q, k, v, seen))

    def attention_probs(
        self,
        q: Tensor,
        k: Tensor,
        visible: Tensor | None,
        rows: Tensor,
        global_positions: Tensor | None = None,
        source: Tensor | None = None,
        **extra: Any,
    ) -> Tensor:
        assert source is not None  # noqa: S101
        seen, is_global = self._attention_mask(rows.cpu(), q, visible, global_positions)
        global_q = self.place(self.split_heads(self.global_q_proj(source[:, rows])), rows)
        global_k = self.place(self.split_heads(self.global_k_proj(source)))
        scores = torch.where(
            is_global, global_q @ global_k.transpose(-2, -1), q[:, :, rows] @ k.transpose(-2, -1)
        )
        return masked_softmax(scores * self.config.head_dim**-0.5, seen)

    def visible_pairs(self, n_tokens: int) -> Tensor:
        """Bool [N, N]; with different dilations, what any head sees."""
        rows = torch.arange(n_tokens)
        named = self._all_global(n_tokens)[None]
        return torch.stack([p.rows(n_tokens, rows, named)[0] for p in set(self.patterns)]).any(0)

    def global_flags(self, n_tokens: int, global_positions: Tensor | None = None) -> Tensor | None:
        named = self._all_global(n_tokens)[None]
        if global_positions is not None:
            named = torch.cat([named.expand(len(global_positions), -1), global_positions.cpu()], 1)
        return token_flags(named, n_tokens) if named.shape[1] else None

    def positions(self, q: Tensor, global_positions: Tensor | None) -> Tensor:
        """All global tokens, each once: [B, G] int64, −1 = none."""
        found: Tensor = _all_positions(
            q, global_positions, self.placement.to_ints(), list(self.global_tokens)
        )
        return found

    def _all_global(self, n_tokens: int) -> Tensor:
        return torch.tensor([*self.placement.global_units(n_tokens), *self.global_tokens], dtype=torch.int64)

    def _attention_mask(
        self, rows: Tensor, q: Tensor, visible: Tensor | None, global_positions: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """By definition: bool [B, H, rows, N] what is seen, [B, 1, rows, 1] which rows are global."""
        n, positions = q.shape[2], self.positions(q, global_positions).cpu()
        seen = torch.stack([p.rows(n, rows, positions) for p in self.patterns], 1).to(q.device)
        if visible is not None:
            seen = seen & visible[:, None, None]
        is_global = self.placement.global_flags(n, positions)[:, None, rows, None]
        return seen, is_global.to(q.device)


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    patterns: Sequence[Pattern],
    positions: Tensor | None,
    global_qkv: Projections | None,
    visible: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Window of each head, global keys at `positions` [B, G] for all, global queries through their `global_qkv`."""
    if global_qkv is None:
        positions = None
    if len(set(patterns)) == 1:
        return pattern_attention(
            q, k, v, patterns[0], visible=visible, positions=positions, global_qkv=global_qkv, dropout=dropout
        )
    out: list[Tensor] = [q] * len(patterns)
    for pattern in dict.fromkeys(patterns):  # not a set: its order differs from process to process
        heads = [h for h, other in enumerate(patterns) if other == pattern]
        theirs: Projections | None = None
        if global_qkv is not None:
            theirs = (global_qkv[0][:, heads], global_qkv[1][:, heads], global_qkv[2][:, heads])
        y = pattern_attention(
            q[:, heads], k[:, heads], v[:, heads], pattern,
            visible=visible, positions=positions, global_qkv=theirs, dropout=dropout,
        )  # fmt: skip
        for i, head in enumerate(heads):
            out[head] = y[:, i]
    return torch.stack(out, 1)
