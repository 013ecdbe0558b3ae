"""Reformer (Kitaev et al. 2020, arXiv:2001.04451): tokens look among those that hash alike. O(N·n_hashes·bucket_size).

Queries are their own keys at unit length: scores q·(k/|k|)/√D. In each round a locality-sensitive hash gives every
token a bucket; tokens are sorted by bucket, then position, and cut into chunks of `bucket_size`. A token sees its own
chunk and the one before. The rounds show it a union of keys: one met in several rounds counts once. It sees itself
only where it sees nothing else.

Padding sorts last, and the number of buckets follows the number of visible tokens. Known differences from public code:
there the first chunk wraps around to the last one, and a key met twice counts twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from longtape.attention.base import Attention, AttentionConfig, Capabilities, mask_heads, masked_softmax
from longtape.attention.operators.lsh import lsh_attention
from longtape.attention.operators.lsh_buckets import AXES, chunks_of, digits_of, sort_tokens
from longtape.attention.operators.lsh_hash import HAS_LOOPS, hash_tokens
from longtape.attention.tensors.lsh import lsh_in_tensors

_DIGITS = 4  # 2^24 buckets
_ROTATED = 1 << 20  # rotated coordinates in flight


@dataclass(frozen=True)
class ReformerConfig(AttentionConfig):
    """`attention_dropout` is refused: a key's weight is spread over sorted rounds."""

    bucket_size: int = 64  # tokens in a chunk
    n_hashes: int = 4  # rounds
    seed: int = 0  # of the rotations

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("bucket_size", "n_hashes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.attention_dropout:
            raise ValueError(
                "reformer has no attention_dropout: its weights exist only chunk by chunk, round by round"
            )


class ReformerAttention(Attention):
    """LSH attention with one projection for queries and keys."""

    Config: ClassVar[type[AttentionConfig]] = ReformerConfig
    capabilities = Capabilities()
    config: ReformerConfig
    rotations: Tensor

    def __init__(self, config: ReformerConfig) -> None:
        super().__init__(config)
        shape = (config.n_heads, config.n_hashes, _DIGITS * AXES, config.head_dim)
        self.register_buffer("rotations", torch.empty(shape))
        self.redraw(config.seed)

    @classmethod
    def why_not_causal(cls) -> str:
        """The reason given when causal=True is refused."""
        return "where the chunks of sorted tokens begin depends on how many later tokens share each bucket"

    @classmethod
    def has_key_projection(cls) -> bool:
        """No: a key is its query at unit length."""
        return False

    @torch.no_grad()
    def redraw(self, seed: int) -> None:
        """Hash by other rotations from now on."""
        generator = torch.Generator().manual_seed(seed)
        self.rotations.copy_(torch.randn(self.rotations.shape, generator=generator))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, **extra: Any) -> Tensor:
        """Chunk by chunk, round by round. `k` is not used: it is q."""
        if self.in_tensors:
            return lsh_in_tensors(q, v, self.hash(q, visible), visible, self.config.bucket_size)
        with torch.autocast(q.device.type, enabled=False):
            return lsh_attention(q, v, self.hash(q, visible), visible, self.config.bucket_size)

    def attention_probs(
        self, q: Tensor, k: Tensor, visible: Tensor | None, rows: Tensor, **extra: Any
    ) -> Tensor:
        """Weights [B, H, len(rows), N]."""
        chunk = chunks_of(sort_tokens(self.hash(q, visible)), self.config.bucket_size)  # [B, H, R, N]
        behind = chunk[..., rows, None] - chunk[..., None, :]
        seen = ((behind == 0) | (behind == 1)).any(2)  # in some round, [B, H, len(rows), N]
        if visible is not None:
            seen = seen & visible[:, None, None, :]
        own_key = rows[:, None] == torch.arange(q.shape[2], device=q.device)
        others = seen & ~own_key
        seen = torch.where(others.any(-1, keepdim=True), others, seen)
        q = mask_heads(q, visible)
        unit = q / q.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        return masked_softmax(q[:, :, rows] @ unit.transpose(-2, -1) / math.sqrt(q.shape[-1]), seen)

    @torch.no_grad()
    def hash(self, q: Tensor, visible: Tensor | None = None) -> Tensor:
        """Bucket of every token in every round, int64 [B, H, n_hashes, N]; padded tokens come after all buckets.

        There are 2^p buckets, the first power of two with at most `bucket_size` visible tokens each. The p bits are cut
        into digits of at most 6, each the nearest of ±(rotated axes), the paper's argmax([xR; −xR]), with its own R.
        """
        if q.device.type == "cpu" and HAS_LOOPS and not self.in_tensors:
            return hash_tokens(q, self.rotations, visible, self.config.bucket_size)
        return self.hash_in_tensors(q, visible)

    def hash_in_tensors(self, q: Tensor, visible: Tensor | None = None) -> Tensor:
        """The same in tensor operations, for devices without compiled loops."""
        n, size = q.shape[2], self.config.bucket_size
        wide = q.to(torch.promote_types(q.dtype, torch.float32))
        if visible is None:
            return self._hash_in_chunks(wide, digits_of(n, size))
        digits = [digits_of(count, size) for count in visible.sum(-1).tolist()]
        samples = [self._hash_in_chunks(x[None], mine) for x, mine in zip(wide, digits, strict=True)]
        return torch.cat(samples).masked_fill(~visible[:, None, None], 2 ** sum(digits_of(n, size)))

    def _hash_in_chunks(self, q: Tensor, widths: list[int]) -> Tensor:
        """Bucket [B, H, R, N] in 0 … 2^Σwidths − 1, some tokens at a time."""
        coordinates = q.shape[0] * q.shape[1] * self.config.n_hashes * 2 ** max(widths, default=0)
        return torch.cat(
            [self._hash_chunk(x, widths) for x in q.split(max(1, _ROTATED // coordinates), 2)], -1
        )

    def _hash_chunk(self, q: Tensor, widths: list[int]) -> Tensor:
        shape = (*q.shape[:2], self.config.n_hashes, q.shape[2])
        bucket = torch.zeros(shape, dtype=torch.int64, device=q.device)
        for digit, width in enumerate(widths):
            start = digit * AXES
            rotations = self.rotations[:, :, start : start + 2 ** (width - 1)].flatten(1, 2).to(q.dtype)
            rotated = (rotations @ q.transpose(-2, -1)).unflatten(2, (self.config.n_hashes, -1))
            bucket = (bucket << width) + nearest_axis(rotated, width)
        return bucket


def nearest_axis(rotated: Tensor, width: int) -> Tensor:
    """argmax([x; −x]) over the 2^(width−1) coordinates in the last dimension but one, as int64.

    The magnitudes of floats are ordered as integers: with the number of the signed axis in place of the last `width`
    bits of the mantissa, the largest integer names its axis. Magnitudes that differ only in those bits are ties.
    """
    whole = torch.int64 if rotated.dtype == torch.float64 else torch.int32
    bits, low = rotated.view(whole), (1 << width) - 1
    negative = (bits < 0).to(whole) << (width - 1)
    axis = torch.arange(rotated.shape[-2], dtype=whole, device=rotated.device)[:, None]
    magnitude = bits & (torch.iinfo(whole).max - low)
    return ((magnitude | axis | negative).amax(-2) & low).long()
