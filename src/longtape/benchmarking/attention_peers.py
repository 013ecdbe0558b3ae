"""Other people's attention layers under one roof, [B, N, d_model] → [B, N, d_model], for side-by-side measurement.

Each is a whole layer with its projections; a library that lacks the output projection gets one. Every builder imports
its library only when called. Masks and plans that a library's model makes once per batch are made when building.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longtape.attention import build_attention


@dataclass(frozen=True)
class Shape:
    """What a peer is built for."""

    tokens: int
    batch: int
    d_model: int
    n_heads: int


@dataclass(frozen=True)
class Peer:
    """A peer's package (None: torch alone), the mechanism it corresponds to, its settings, and how to build it."""

    package: str | None
    mechanism: str
    settings: str
    build: Callable[[Shape], nn.Module]

    @property
    def installed(self) -> bool:
        """Whether its package is there."""
        return self.package is None or find_spec(self.package) is not None


class Projected(nn.Module):
    """Query, key, value and output projections around `attend(q, k, v)` on [B, H, N, D]."""

    def __init__(self, shape: Shape, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.n_heads, self.attend = shape.n_heads, attend
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(shape.d_model, shape.d_model) for _ in range(4)
        )

    def project(self, x: Tensor) -> list[Tensor]:
        """X → q, k, v as [B, H, N, D]."""
        parts = (projection(x) for projection in (self.q_proj, self.k_proj, self.v_proj))
        return [part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in parts]

    def forward(self, x: Tensor) -> Tensor:
        """X → attention → output projection."""
        return self.out_proj(self.attend(*self.project(x)).transpose(1, 2).flatten(2))


class Wrapped(nn.Module):
    """A library's layer called its own way, with an output projection where it has none."""

    def __init__(
        self, layer: nn.Module, call: Callable[[nn.Module, Tensor], Tensor], out: int | None
    ) -> None:
        super().__init__()
        self.layer, self.call = layer, call
        self.out_proj = nn.Identity() if out is None else nn.Linear(out, out)

    def forward(self, x: Tensor) -> Tensor:
        """X → the library's layer → output projection."""
        return self.out_proj(self.call(self.layer, x))


def _sdpa(shape: Shape) -> nn.Module:
    return Projected(shape, F.scaled_dot_product_attention)


def _dense(shape: Shape) -> nn.Module:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v

    return Projected(shape, attend)


def _token_mask(shape: Shape) -> Tensor:
    layer = build_attention(
        "bigbird",
        d_model=shape.d_model,
        n_heads=shape.n_heads,
        block_size=1,
        window_size=7,
        n_random=3,
        n_global=2,
    )
    return layer.visible_pairs(shape.tokens)


def _masked_softmax(shape: Shape) -> nn.Module:
    hidden = ~_token_mask(shape)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        return scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v

    return Projected(shape, attend)


def _masked_sdpa(shape: Shape) -> nn.Module:
    mask = _token_mask(shape)
    return Projected(shape, lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


def _transformers_bigbird(shape: Shape) -> nn.Module:
    from transformers import BigBirdConfig
    from transformers.models.big_bird import modeling_big_bird as library

    config = BigBirdConfig(
        hidden_size=shape.d_model,
        num_attention_heads=shape.n_heads,
        block_size=64,
        num_random_blocks=3,
        max_position_embeddings=shape.tokens,
    )
    everything = torch.ones(shape.batch, shape.tokens)
    blocked, band, rows, columns = library.BigBirdModel.create_masks_for_block_sparse_attn(everything, 64)

    def call(layer: nn.Module, x: Tensor) -> Tensor:
        masks = [mask.to(x.dtype) for mask in (band, rows, columns, blocked, blocked)]
        return layer(x, *masks)[0]

    return Wrapped(library.BigBirdBlockSparseAttention(config, seed=0), call, shape.d_model)


def _transformers_longformer(shape: Shape) -> nn.Module:
    from transformers import LongformerConfig
    from transformers.models.longformer import modeling_longformer as library

    config = LongformerConfig(
        hidden_size=shape.d_model,
        num_attention_heads=shape.n_heads,
        attention_window=[256],
        attention_probs_dropout_prob=0.0,
    )
    everywhere = (torch.arange(shape.tokens) < 64).expand(shape.batch, -1)
    masked = torch.zeros_like(everywhere)

    def call(layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x, 10_000.0 * everywhere.to(x.dtype), masked, everywhere, True)[0]

    return Wrapped(library.LongformerSelfAttention(config, layer_id=0), call, shape.d_model)


def _transformers_reformer(shape: Shape) -> nn.Module:
    from transformers import ReformerConfig
    from transformers.models.reformer import modeling_reformer as library

    config = ReformerConfig(
        hidden_size=shape.d_model,
        num_attention_heads=shape.n_heads,
        attention_head_size=shape.d_model // shape.n_heads,
        lsh_attn_chunk_length=64,
        num_hashes=4,
        lsh_attention_probs_dropout_prob=0.0,
        max_position_embeddings=shape.tokens,
        hash_seed=0,
        is_decoder=False,
    )
    return Wrapped(library.LSHSelfAttention(config, layer_idx=0), lambda layer, x: layer(x)[0], shape.d_model)


def _transformers_informer(shape: Shape) -> nn.Module:
    from transformers.models.informer import modeling_informer as library

    layer = library.InformerProbSparseAttention(shape.d_model, shape.n_heads, sampling_factor=5)
    return Wrapped(layer, lambda layer, x: layer(x)[0], None)


def _original_informer(shape: Shape) -> nn.Module:
    from neuralforecast.models.informer import ProbAttention

    probsparse = ProbAttention(mask_flag=False, factor=5, attention_dropout=0.0)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = probsparse(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), None)[0]
        return out if out.shape == q.shape else out.transpose(1, 2)

    return Projected(shape, attend)


def _reformer_pytorch(shape: Shape) -> nn.Module:
    from reformer_pytorch import LSHSelfAttention

    layer = LSHSelfAttention(shape.d_model, heads=shape.n_heads, bucket_size=64, n_hashes=4)
    return Wrapped(layer, lambda layer, x: layer(x), None)


def _linformer(shape: Shape) -> nn.Module:
    from linformer import LinformerSelfAttention

    layer = LinformerSelfAttention(shape.d_model, shape.tokens, k=256, heads=shape.n_heads)
    return Wrapped(layer, lambda layer, x: layer(x), None)


def _performer_pytorch(shape: Shape) -> nn.Module:
    from performer_pytorch import SelfAttention

    layer = SelfAttention(shape.d_model, heads=shape.n_heads, dim_head=shape.d_model // shape.n_heads)
    return Wrapped(layer, lambda layer, x: layer(x), None)


PEERS: dict[str, Peer] = {
    "SDPA": Peer(None, "flash", "exact, fused", _sdpa),
    "dense softmax": Peer(None, "full", "exact, weights in memory", _dense),
    "masked softmax": Peer(
        None, "bigbird", "window 7, 3 random, 2 global tokens as a dense mask", _masked_softmax
    ),
    "masked SDPA": Peer(None, "bigbird", "the same mask in fused attention", _masked_sdpa),
    "transformers BigBird": Peer(
        "transformers", "bigbird", "block 64, 3 random, evaluation plan", _transformers_bigbird
    ),
    "transformers Longformer": Peer(
        "transformers", "longformer", "window 256, 64 global", _transformers_longformer
    ),
    "transformers Reformer": Peer("transformers", "reformer", "chunk 64, 4 hashes", _transformers_reformer),
    "reformer-pytorch": Peer("reformer_pytorch", "reformer", "bucket 64, 4 hashes", _reformer_pytorch),
    "transformers Informer": Peer("transformers", "probsparse", "factor 5", _transformers_informer),
    "original Informer": Peer(
        "neuralforecast", "probsparse", "factor 5, as in neuralforecast", _original_informer
    ),
    "linformer package": Peer("linformer", "linformer", "k 256, E and F shared by the heads", _linformer),
    "performer-pytorch": Peer(
        "performer_pytorch", "performer", "110 features at width 32", _performer_pytorch
    ),
}
