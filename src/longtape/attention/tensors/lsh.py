"""Reformer's windows in PyTorch's own operations, for devices without compiled loops.

The backward pass gathers and computes each round again, so that the scores of one round at a time are in memory.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from longtape.attention.operators.lsh_buckets import chunks_of, sort_tokens

_MASKED_SCORE = -1e30  # score of a key that is not there or that an earlier round showed
_SELF_SCORE = -1e20  # score of a token's own key: beaten by any other, beats hidden ones


def lsh_in_tensors(q: Tensor, v: Tensor, bucket: Tensor, visible: Tensor | None, size: int) -> Tensor:
    """The same function as `lsh_attention`; rows of hidden tokens hold anything finite."""
    wide = torch.promote_types(q.dtype, torch.float32)
    order = sort_tokens(bucket)
    hidden = None if visible is None else ~visible
    wide_q, wide_v = q.to(wide), v.to(wide)
    rounds = [_round_again(wide_q, wide_v, order, hidden, r, size) for r in range(order.shape[2])]
    shares = torch.stack([log for _, log in rounds]).softmax(0)
    joined = sum(found * share[..., None] for (found, _), share in zip(rounds, shares, strict=True))
    return torch.as_tensor(joined).to(q.dtype)


def _round_again(
    q: Tensor, v: Tensor, order: Tensor, hidden: Tensor | None, r: int, size: int
) -> tuple[Tensor, Tensor]:
    """`_attend_round`, computed again in a backward pass."""
    if not torch.is_grad_enabled():
        return _attend_round(q, v, order, hidden, r, size)
    found: tuple[Tensor, Tensor] = checkpoint(
        _attend_round, q, v, order, hidden, r, size, use_reentrant=False
    )
    return found


def _attend_round(
    q: Tensor, v: Tensor, order: Tensor, hidden: Tensor | None, r: int, size: int
) -> tuple[Tensor, Tensor]:
    """Outputs [B, H, N, D] and log-sum-exp [B, H, N] of what round r shows and no earlier one did."""
    n, order_r = order.shape[-1], order[:, :, r]
    # slots of chunks; one blank chunk in front, so that every chunk has one before it
    slots = F.pad(order_r + 1, (size, -n % size)) - 1
    token, filling = slots.clamp(min=0), slots < 0
    if hidden is not None:
        filling = filling | hidden[:, None].expand(-1, q.shape[1], -1).gather(2, token)
    queries = _gather(q, token)
    keys, values = (
        x.unfold(2, 2 * size, size) for x in (F.normalize(queries, eps=1e-12, dim=-1), _gather(v, token))
    )
    scores = queries[:, :, size:].unflatten(2, (-1, size)) @ keys * q.shape[-1] ** -0.5
    own_key = (
        token[:, :, size:].unflatten(2, (-1, size))[..., None]
        == token.unfold(2, 2 * size, size)[..., None, :]
    )
    masked = filling.unfold(2, 2 * size, size)[..., None, :] | _seen_earlier(order[:, :, :r], token, size)
    scores = scores.masked_fill(own_key, _SELF_SCORE).masked_fill(masked, _MASKED_SCORE)
    found = (scores.softmax(-1) @ values.transpose(-2, -1)).flatten(2, 3)
    place = torch.empty_like(order_r).scatter_(
        2, order_r, torch.arange(n, device=q.device).expand_as(order_r)
    )
    return _gather(found, place), scores.logsumexp(-1).flatten(2).gather(2, place)


def _seen_earlier(order: Tensor, token: Tensor, size: int) -> Tensor:
    """Which keys of each query's window [B, H, chunks, size, 2·size] a round of `order` [B, H, r, N] shows already."""
    seen = torch.zeros((), dtype=torch.bool, device=order.device)
    for earlier in range(order.shape[2]):
        there = chunks_of(order[:, :, earlier], size).gather(2, token)
        behind = (
            there[:, :, size:].unflatten(2, (-1, size))[..., None]
            - there.unfold(2, 2 * size, size)[..., None, :]
        )
        seen = seen | (behind == 0) | (behind == 1)
    return seen


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x [B, H, …, D] by index [B, H, n]."""
    return x.gather(2, index[..., None].expand(-1, -1, -1, x.shape[-1]))
