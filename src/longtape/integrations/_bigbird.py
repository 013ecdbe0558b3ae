"""Block-sparse attention of transformers' BigBird through longtape's kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.models.big_bird import modeling_big_bird as library

from longtape.attention.operators.block_sparse import block_sparse_attention

OLD_PLAN_LENGTHS = (1024, 3072, 4096)  # for which the library draws from the first 1,024 tokens only


class BlockSparse(library.BigBirdBlockSparseAttention):
    """The library's module with another forward; its weights, names and planner are kept."""

    def forward(
        self,
        hidden_states: Tensor,
        band_mask: Tensor | None = None,
        from_mask: Tensor | None = None,
        to_mask: Tensor | None = None,
        from_blocked_mask: Tensor | None = None,
        to_blocked_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Hidden states [B, N, width] and the mask of real tokens `to_mask` [B, 1, 1, N] → [B, N, width]."""
        heads = (self.num_attention_heads, self.attention_head_size)
        parts = (layer(hidden_states) for layer in (self.query, self.key, self.value))
        q, k, v = (part.unflatten(-1, heads).transpose(1, 2) for part in parts)
        visible = None if to_mask is None else to_mask[:, 0, 0] > 0
        y = self.attend(q, k, v, visible).transpose(1, 2).flatten(2)
        return (y if visible is None else y.masked_fill(~visible[..., None], 0.0)), None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        """One table for all heads in eval; in training each head has its own."""
        n = q.shape[2]
        return block_sparse_attention(
            q,
            k,
            v,
            self.table(n).to(q.device),
            block_size=self.block_size,
            dense=(0, n // self.block_size - 1),
            visible=visible,
        )

    def table(self, n_tokens: int) -> Tensor:
        """Key blocks of each query block, with the library's repeats: [blocks, W] in eval, else [heads, blocks, W]."""
        tables = self.__dict__.setdefault("_tables", {})
        key = (n_tokens, self.training)
        if key not in tables:
            every = block_table(torch.from_numpy(self.random_blocks(n_tokens)).long())
            tables[key] = every if self.training else every[0]
        return tables[key]

    def random_blocks(self, n_tokens: int) -> np.ndarray:
        """[heads, blocks − 2, r]: what the library draws for the inner blocks, from its own seed per layer."""
        state = np.random.get_state()  # noqa: NPY002 (the library draws from this generator)
        np.random.seed(self.seed)  # noqa: NPY002
        try:
            return np.stack(self._draw(n_tokens))
        finally:
            np.random.set_state(state)  # noqa: NPY002

    def _draw(self, n_tokens: int) -> list[np.ndarray]:
        size, r = self.block_size, self.num_random_blocks
        if n_tokens in OLD_PLAN_LENGTHS:
            longest, inner = self.max_seqlen, n_tokens // size - 2
            return [
                self._bigbird_block_rand_mask(longest, longest, size, size, r, last_idx=1024)[:inner]
                for _ in range(self.num_attention_heads)
            ]
        ends, counts = self._get_rand_attn_plan(n_tokens, size, r)
        return self._bigbird_block_rand_mask_with_head(
            from_seq_length=n_tokens,
            to_seq_length=n_tokens,
            from_block_size=size,
            to_block_size=size,
            num_heads=self.num_attention_heads,
            plan_from_length=ends,
            plan_num_rand_blocks=counts,
        )


class SelfAttention(library.BigBirdAttention):
    """Keeps block-sparse attention accelerated when the model is switched to full attention and back."""

    def set_attention_type(self, value: str, layer_idx: int | None = None) -> None:
        """`block_sparse` or `original_full`."""
        super().set_attention_type(value, layer_idx)
        accelerate_layer(self)


def block_table(random: Tensor) -> Tensor:
    """Random blocks [P, blocks − 2, r] → key blocks of every query block [P, blocks, 5 + r], −1 = none."""
    inner = torch.arange(1, random.shape[1] + 1)
    last = random.shape[1] + 1
    fixed = torch.stack(
        [inner - 1, inner, inner + 1, torch.zeros_like(inner), torch.full_like(inner, last)], -1
    )
    fixed[0, 0] = -1  # the window of block 1 reaches the first block, that of the last but one the last
    fixed[-1, 2] = -1
    table = torch.cat([fixed.expand(len(random), -1, -1), random], -1)
    return nn.functional.pad(table, (0, 0, 1, 1), value=-1)


def accelerate_layer(layer: nn.Module) -> None:
    """The module stays the same object with another class, so that hooks and references to it keep holding."""
    layer.__class__ = SelfAttention
    if isinstance(layer.self, library.BigBirdBlockSparseAttention):
        layer.self.__class__ = BlockSparse


def refuse_maps(model: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Before a forward: ValueError where attention maps are asked for."""
    wanted = kwargs.get("output_attentions")
    if model.config.output_attentions if wanted is None else wanted:
        raise ValueError(
            "an accelerated BigBird makes no attention maps; ask an unaccelerated copy of the model for them"
        )


def replace(model: nn.Module) -> int:
    """Accelerate every block-sparse layer; how many there are."""
    layers = [
        module
        for module in model.modules()
        if isinstance(module, library.BigBirdAttention)
        and isinstance(module.self, library.BigBirdBlockSparseAttention)
    ]
    fresh = [layer for layer in layers if not isinstance(layer, SelfAttention)]
    for layer in fresh:
        accelerate_layer(layer)
    for module in model.modules() if fresh else ():
        if isinstance(module, library.BigBirdModel):
            module.register_forward_pre_hook(refuse_maps, with_kwargs=True)
    return len(layers)
