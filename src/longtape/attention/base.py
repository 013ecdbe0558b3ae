"""What every mechanism shares: projections, heads, padding, and the promise of a readable reference.

Shapes: B batch, H heads, N tokens, M keys, D head width, d_model = H·D.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, overload

import torch
from torch import Tensor, nn

from longtape.attention.dropout import Dropout
from longtape.attention.rotary import rotate


@dataclass(frozen=True)
class Capabilities:
    """What a mechanism can do; asking for more raises."""

    exact: bool = False  # equals full attention on the pairs it shows, for any input
    causal: bool = False  # causal=True is defined
    cross: bool = False  # layer(x, context=…) is defined
    weights: bool = True  # attention_weights gives rows that sum to 1
    fixed_length: bool = False  # built for one seq_len
    fixed_pattern: bool = False  # visible_pairs(N) is defined
    rotary: bool = True  # rotary=True is defined: each key is the key of one position
    newest: bool = False  # layer(x, newest=True) is defined, at the cost of one query


@dataclass(frozen=True)
class AttentionConfig:
    """Options common to all mechanisms. `seq_len` is only needed where a mechanism is built for one length."""

    d_model: int
    n_heads: int
    seq_len: int | None = None
    dropout: float = 0.0  # on the output
    attention_dropout: float = 0.0  # on attention weights
    causal: bool = False
    rotary: bool = False  # queries and keys are turned by their positions (`rotary.py`)
    causal_forms: ClassVar[tuple[bool | str, ...]] = (False, True)  # what `causal` may be

    def __post_init__(self) -> None:
        if self.causal not in self.causal_forms:
            raise ValueError(f"causal={self.causal!r} must be one of {self.causal_forms}")
        if self.d_model < 1 or self.n_heads < 1 or self.d_model % self.n_heads:
            raise ValueError(f"d_model={self.d_model} must be a positive multiple of n_heads={self.n_heads}")
        if self.seq_len is not None and self.seq_len < 1:
            raise ValueError(f"seq_len={self.seq_len} must be at least 1")
        if self.rotary and self.head_dim % 2:
            raise ValueError(
                f"rotary positions turn pairs of coordinates: heads of width {self.head_dim} are odd"
            )
        for name in ("dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1)")

    @property
    def head_dim(self) -> int:
        """D."""
        return self.d_model // self.n_heads


class Attention(nn.Module, ABC):
    """Base of the mechanisms; each gives `attend` (fast) and `attention_probs`, from which the definition follows.

    Where the definition is more than weights times values, a mechanism has an `attend_reference` of its own.
    """

    Config: ClassVar[type[AttentionConfig]] = AttentionConfig
    capabilities: ClassVar[Capabilities] = Capabilities()
    can_share: ClassVar[bool] = False  # takes shared=other_layer when built
    inputs: ClassVar[tuple[str, ...]] = ()  # what `forward` takes beside x, visible, context, context_visible
    in_tensors = False  # PyTorch's own operations alone, where `to_tensors` was called

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        if config.causal is True and not self.capabilities.causal:
            raise ValueError(f"{type(self).__name__} is not causal: {self.why_not_causal()}")
        if config.rotary and not self.capabilities.rotary:
            raise ValueError(f"{type(self).__name__} has no rotary form: its keys are mixtures of positions")
        self.config = config
        self.q_proj = nn.Linear(config.d_model, config.d_model)
        if self.has_key_projection():
            self.k_proj = nn.Linear(config.d_model, config.d_model)
        self.v_proj = nn.Linear(config.d_model, config.d_model)
        self.out_proj = nn.Linear(config.d_model, config.d_model)
        self.dropout = Dropout(config.dropout)

    @classmethod
    def why_not_causal(cls) -> str:
        """The reason given when causal=True is refused."""
        return "its definition mixes all positions"

    @classmethod
    def has_key_projection(cls) -> bool:
        """False where queries and keys share one projection (Reformer)."""
        return True

    def forward(self, x: Tensor, visible: Tensor | None = None, **extra: Any) -> Tensor:
        """X [B, N, d_model], visible [B, N] bool (True = a real token) → [B, N, d_model].

        `extra` is what a mechanism declares: `context`, `context_visible` (cross-attention), `global_positions`; with
        `newest=True` the output of the last token alone, [B, 1, d_model].
        """
        if self.capabilities.newest and extra.pop("newest", False):
            return self._newest(x, visible)
        return self._project_and_attend(self.attend, x, visible, extra)

    def reference(self, x: Tensor, visible: Tensor | None = None, **extra: Any) -> Tensor:
        """The slow, dense, readable definition with the same weights: the specification of `forward`."""
        return self._project_and_attend(self.attend_reference, x, visible, extra)

    def _newest(self, x: Tensor, visible: Tensor | None) -> Tensor:
        check_input(x, visible, self.config.d_model)
        x, last = mask_padding(x, visible), None if visible is None else visible[:, -1:]
        q = self.place(
            self.split_heads(self.q_proj(x[:, -1:])), torch.tensor([x.shape[1] - 1], device=x.device)
        )
        k = self.place(self.split_heads(self.k_proj(x)))
        return self._project_output(self.attend_newest(q, k, self.split_heads(self.v_proj(x)), visible), last)

    def attend_newest(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        """The last query alone, q [B, H, 1, D]; k and v [B, H, N, D], visible [B, N] → [B, H, 1, D]."""
        raise NotImplementedError

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, **extra: Any) -> Tensor:
        """Fast path. q [B, H, N, D], k and v [B, H, M, D], visible [B, M] → [B, H, N, D]."""

    def attend_reference(
        self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, **extra: Any
    ) -> Tensor:
        """The definition, all N×M weights in memory; same arguments as `attend`."""
        rows = torch.arange(q.shape[2], device=q.device)
        return self.attention_probs(q, k, visible, rows, **extra) @ mask_heads(v, visible)

    @abstractmethod
    def attention_probs(
        self, q: Tensor, k: Tensor, visible: Tensor | None, rows: Tensor, **extra: Any
    ) -> Tensor:
        """Attention weights of the chosen query rows, [B, H, len(rows), M]; each row of a visible query sums to 1."""

    def visible_pairs(self, n_tokens: int) -> Tensor:
        """Bool [N, N]: which key (column) each query (row) sees. Only where the pattern is fixed."""
        raise ValueError(
            f"{type(self).__name__} has no fixed pattern: what a query sees depends on the input"
        )

    def global_flags(self, n_tokens: int, global_positions: Tensor | None = None) -> Tensor | None:
        """Bool [1 or B, N]: the tokens that see, and are seen by, all; None where the mechanism has no such tokens."""
        return None

    def project(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """X → q, k, v as [B, H, N, D] views of the projections."""
        source = x if context is None else context
        q = self.place(self.split_heads(self.q_proj(x)))
        k = self.place(self.split_heads(self.k_proj(source))) if self.has_key_projection() else q
        return q, k, self.split_heads(self.v_proj(source))

    def place(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Queries or keys [B, H, N, D] turned by their positions (0 … N − 1 by default), where positions are rotary."""
        return rotate(x, positions) if self.config.rotary else x

    def extra_inputs(self, x: Tensor) -> dict[str, Any]:
        """What `attend` and `attention_probs` take of x beside q, k and v, by name."""
        return {}

    def to_tensors(self, n_tokens: int) -> None:
        """From now on PyTorch's own operations alone, for inference on inputs of `n_tokens` without padding: what a
        graph for other programs can hold.
        """
        self.in_tensors = True

    def split_heads(self, x: Tensor) -> Tensor:
        """[B, N, H·D] → [B, H, N, D], a view."""
        return x.unflatten(-1, (self.config.n_heads, self.config.head_dim)).transpose(1, 2)

    def _project_and_attend(
        self, attend: Any, x: Tensor, visible: Tensor | None, extra: dict[str, Any]
    ) -> Tensor:
        context, context_visible = self._pop_context(x, visible, extra)
        x, context = mask_padding(x, visible), mask_padding(context, context_visible)
        q, k, v = self.project(x, context)
        y = attend(q, k, v, visible if context is None else context_visible, **extra, **self.extra_inputs(x))
        return self._project_output(y, visible)

    def _project_output(self, y: Tensor, visible: Tensor | None) -> Tensor:
        """[B, H, N, D] → [B, N, d_model]: heads joined, rows of padded queries zero, output projection."""
        return self.dropout(self.out_proj(mask_padding(y.transpose(1, 2).flatten(2), visible)))

    def _pop_context(
        self, x: Tensor, visible: Tensor | None, extra: dict[str, Any]
    ) -> tuple[Tensor | None, Tensor | None]:
        check_input(x, visible, self.config.d_model)
        context, context_visible = extra.pop("context", None), extra.pop("context_visible", None)
        for name in extra:
            if name not in self.inputs:
                raise ValueError(f"{type(self).__name__} takes no '{name}'")
        if context is not None and self.config.rotary:
            raise ValueError(
                "rotary positions are for self-attention: a context has no position relative to x"
            )
        if context is not None and not self.capabilities.cross:
            raise ValueError(f"{type(self).__name__} has no cross-attention form")
        if context is None and context_visible is not None:
            raise ValueError("context_visible was given without context")
        if context is not None:
            check_input(context, context_visible, self.config.d_model)
        return context, context_visible


@overload
def mask_padding(x: Tensor, visible: Tensor | None) -> Tensor: ...
@overload
def mask_padding(x: None, visible: Tensor | None) -> None: ...
def mask_padding(x: Tensor | None, visible: Tensor | None) -> Tensor | None:
    """Padded tokens → 0: a NaN among them would reach the weights' gradients through 0 · NaN."""
    if x is None or visible is None:
        return x
    return x.masked_fill(~visible[..., None], 0.0)


def mask_heads(x: Tensor, visible: Tensor | None) -> Tensor:
    """`mask_padding` of x [B, H, N, D] by visible [B, N]."""
    return x if visible is None else x.masked_fill(~visible[:, None, :, None], 0.0)


def check_input(x: Tensor, visible: Tensor | None, d_model: int) -> None:
    """ValueError unless x is [B, N, d_model] and visible is bool [B, N]."""
    if x.dim() != 3 or x.shape[-1] != d_model:
        raise ValueError(f"x must be [B, N, {d_model}], got {list(x.shape)}")
    if visible is not None and (visible.dtype != torch.bool or visible.shape != x.shape[:2]):
        raise ValueError(
            f"visible must be bool {list(x.shape[:2])}, got {visible.dtype} {list(visible.shape)}"
        )


@torch.no_grad()
def attention_weights(
    layer: Attention,
    x: Tensor,
    rows: Tensor | list[int] | None = None,
    visible: Tensor | None = None,
    **extra: Any,
) -> Tensor:
    """Weights of `layer` on x [B, N, d_model]: [B, H, N or len(rows), N] (Linformer: k columns); rows sum to 1.

    Never changes what the layer computes. ValueError where a mechanism has no weights.
    """
    if not layer.capabilities.weights:
        raise ValueError(f"{type(layer).__name__} has no attention weights")
    context, context_visible = layer._pop_context(x, visible, extra)
    x, context = mask_padding(x, visible), mask_padding(context, context_visible)
    q, k, _ = layer.project(x, context)
    chosen = (
        torch.arange(x.shape[1], device=x.device) if rows is None else torch.as_tensor(rows, device=x.device)
    )
    extra |= layer.extra_inputs(x)
    return layer.attention_probs(q, k, visible if context is None else context_visible, chosen, **extra)


def masked_softmax(scores: Tensor, visible: Tensor | None) -> Tensor:
    """Softmax over the last dimension on visible entries; a row that sees nothing is zero, never NaN."""
    if visible is None:
        return scores.softmax(-1)
    weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    return weights.masked_fill(~visible.any(-1, keepdim=True), 0.0)
