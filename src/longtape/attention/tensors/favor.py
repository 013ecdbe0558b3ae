"""Kernels of Performer: φ(Q)(φ(K)ᵀV) normalised, forward and backward in cache-sized chunks of tokens.

Features are computed again in the backward pass instead of being kept. Exponents are in base 2: `exp2` is the fastest
exponential on CPU. G = B·H groups; a state S [G, m, D+1] is Σ_j φ(k_j)[v_j, 1], its last column the normaliser.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longtape.attention.base import mask_heads

_CHUNK = 1 << 19  # features in flight
_CAUSAL_CHUNK = 128  # tokens whose products with each other are formed
_LOWEST = -1e30  # the maximum over no keys


class Features(NamedTuple):
    """φ(x) = 2^(x·weight − half·|x|²), and the derivative of its natural logarithm."""

    weight: Tensor  # [G, D, m]
    half: float

    @classmethod
    def of(cls, directions: Tensor, x: Tensor) -> Features:
        """For directions [m, D] and x [B, H, N, D], in at least float32."""
        wide = directions.to(torch.promote_types(x.dtype, torch.float32)).T
        weight = wide * (x.shape[-1] ** -0.25 / math.log(2))
        return cls(weight.expand(x.shape[0] * x.shape[1], -1, -1), x.shape[-1] ** -0.5 / math.log(2) / 2)

    def of_queries(self, q: Tensor) -> Tensor:
        """φ(q) up to a factor of each row, which cancels: relative to its largest feature. [G, n, m]."""
        log = torch.bmm(q, self.weight)
        return log.sub_(log.amax(-1, keepdim=True)).exp2_()

    def log_of_keys(self, k: Tensor, hidden: Tensor | None) -> Tensor:
        """log₂ φ(k), [G, n, m]; −∞ for hidden [G, n, 1] keys."""
        log = torch.bmm(k, self.weight)
        log.sub_(k.square().sum(-1, keepdim=True), alpha=self.half)
        return log if hidden is None else log.masked_fill_(hidden, float("-inf"))

    def back_to_queries(self, d_log: Tensor) -> Tensor:
        """Gradient of q from that of ln φ(q)."""
        return torch.bmm(d_log, self.weight.transpose(1, 2)).mul_(math.log(2))

    def back_to_keys(self, d_log: Tensor, k: Tensor) -> Tensor:
        """Gradient of k from that of ln φ(k)."""
        pull = d_log.sum(-1, keepdim=True).mul_(2 * self.half * math.log(2))
        return self.back_to_queries(d_log).addcmul_(pull, k, value=-1)


def favor_in_tensors(
    q: Tensor, k: Tensor, v: Tensor, directions: Tensor, visible: Tensor | None = None
) -> Tensor:
    """FAVOR+ of q [B, H, N, D], k and v [B, H, M, D] with directions [m, D]; visible [B, M] → [B, H, N, D]."""
    out: Tensor = _Favor.apply(q, mask_heads(k, visible), mask_heads(v, visible), directions, visible)
    return out


def favor_causal_in_tensors(
    q: Tensor, k: Tensor, v: Tensor, directions: Tensor, visible: Tensor | None = None
) -> Tensor:
    """The same over keys j ≤ i: a running state between chunks, masked products within one."""
    out: Tensor = _FavorCausal.apply(q, mask_heads(k, visible), mask_heads(v, visible), directions, visible)
    return out


class _Favor(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, directions: Tensor, visible: Tensor | None
    ) -> Tensor:
        features = Features.of(directions, q)
        state, top = _state_of(features, k, v, visible)
        ctx.save_for_backward(q, k, v, directions, visible, state, top)
        out = _empty_like(q)
        for rows in _chunks(q, features):
            both = torch.bmm(features.of_queries(_take(q, rows)), state)
            _put(out, rows, _quotient(both)[0])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """In the precision of the forward, whatever autocast is on."""
        with torch.autocast(grads[0].device.type, enabled=False):
            return _Favor.differentiate(ctx, *grads)

    @staticmethod
    def differentiate(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, directions, visible, state, top = ctx.saved_tensors
        features = Features.of(directions, q)
        d_state, d_q = torch.zeros_like(state), _empty_like(q)
        for rows in _chunks(q, features):
            phi = features.of_queries(_take(q, rows))
            d_both = _quotient_backward(torch.bmm(phi, state), _take(grads[0], rows))
            d_state.baddbmm_(phi.transpose(1, 2), d_both)
            d_phi = torch.bmm(d_both, state.transpose(1, 2))
            _put(d_q, rows, features.back_to_queries(d_phi.mul_(phi)))
        d_values, d_count = d_state[..., :-1].contiguous(), d_state[..., -1].unsqueeze(1)
        d_k, d_v = _empty_like(k), _empty_like(v)
        for rows in _chunks(k, features):
            keys, values = _take(k, rows), _take(v, rows)
            phi = features.log_of_keys(keys, _hidden(visible, k, rows)).sub_(top).exp2_()
            _put(d_v, rows, torch.bmm(phi, d_values))
            d_log = torch.baddbmm(d_count, values, d_values.transpose(1, 2)).mul_(phi)
            _put(d_k, rows, features.back_to_keys(d_log, keys))
        return d_q, d_k, d_v, None, None


def _state_of(features: Features, k: Tensor, v: Tensor, visible: Tensor | None) -> tuple[Tensor, Tensor]:
    """S relative to the largest exponent of its group, and that exponent [G, 1, 1]."""
    groups, width, m = features.weight.shape
    state = features.weight.new_zeros(groups, m, width)
    count = features.weight.new_zeros(groups, m)
    top = features.weight.new_full((groups, 1, 1), _LOWEST)
    for rows in _chunks(k, features):
        log = features.log_of_keys(_take(k, rows), _hidden(visible, k, rows))
        higher = torch.maximum(top, log.amax((1, 2), keepdim=True))
        shrink, top = torch.exp2(top - higher), higher
        phi = log.sub_(top).exp2_()
        state = torch.baddbmm(state * shrink, phi.transpose(1, 2), _take(v, rows))
        count = count * shrink[..., 0] + phi.sum(1)
    return torch.cat([state, count[..., None]], -1), top


class _FavorCausal(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, directions: Tensor, visible: Tensor | None
    ) -> Tensor:
        features, out = Features.of(directions, q), _empty_like(q)
        state, top = _no_past(features)
        tops = []
        for rows in _causal_chunks(q):
            part = _CausalChunk.of(features, q, k, v, visible, rows, top)
            _put(out, rows, _quotient(part.totals(state))[0])
            state, top = part.grow(state, top), part.run[:, -1:]
            tops.append(part.run)
        ctx.save_for_backward(q, k, v, directions, visible, torch.cat(tops, 1))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """In the precision of the forward, whatever autocast is on."""
        with torch.autocast(grads[0].device.type, enabled=False):
            return _FavorCausal.differentiate(ctx, *grads)

    @staticmethod
    def differentiate(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, directions, visible, run = ctx.saved_tensors
        features = Features.of(directions, q)
        d_q, d_k, d_v = _empty_like(q), _empty_like(k), _empty_like(v)
        groups, width, _ = features.weight.shape
        d_totals = features.weight.new_empty(groups, q.shape[2], width + 1)
        state, top = _no_past(features)
        for rows in _causal_chunks(q):  # onward: q, and what happens within a chunk
            part = _CausalChunk.of(features, q, k, v, visible, rows, top)
            d_total = _quotient_backward(part.totals(state), _take(grads[0], rows))
            d_totals[:, rows] = d_total
            d_phi_q, d_log_k, d_values = part.within_backward(d_total, state)
            _put(d_q, rows, features.back_to_queries(d_phi_q.mul_(part.phi_q)))
            _put(d_k, rows, features.back_to_keys(d_log_k, part.k))
            _put(d_v, rows, d_values)
            state, top = part.grow(state, top), part.run[:, -1:]
        d_state = torch.zeros_like(state)
        for rows in reversed(list(_causal_chunks(q))):  # and back: k and v of later chunks' states
            top = run[:, rows.start - 1 : rows.start] if rows.start else _no_past(features)[1]
            part = _CausalChunk.of(features, q, k, v, visible, rows, top)
            d_log_k, d_values = part.carried_backward(d_state)
            _add(d_k, rows, features.back_to_keys(d_log_k, part.k))
            _add(d_v, rows, d_values)
            d_state = d_state * torch.exp2(top - part.run[:, -1:])[..., None]
            d_state.baddbmm_((part.phi_q * part.past).transpose(1, 2), d_totals[:, rows])
        return d_q, d_k, d_v, None, None


class _CausalChunk(NamedTuple):
    """One chunk of n tokens. Exponents of key j are relative to its own `largest`, sums of row i to `run`, the largest
    among keys up to i: nothing in a row depends on what comes after it.
    """

    k: Tensor  # [G, n, D]
    v: Tensor  # [G, n, D]
    phi_q: Tensor  # [G, n, m]
    phi_k: Tensor  # [G, n, m]
    largest: Tensor  # [G, n]
    run: Tensor  # [G, n]
    decay: Tensor  # [G, n, n] 2^(largest_j − run_i), 0 for later keys
    past: Tensor  # [G, n, 1] what the state counts for in row i

    @classmethod
    def of(
        cls,
        features: Features,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        visible: Tensor | None,
        rows: slice,
        top: Tensor,
    ) -> _CausalChunk:
        keys = _take(k, rows)
        log = features.log_of_keys(keys, _hidden(visible, k, rows))
        largest = log.amax(-1).clamp_(min=_LOWEST)
        run = torch.maximum(top, largest.cummax(-1).values)
        exponent = largest[:, None, :] - run[:, :, None]
        later = torch.ones(exponent.shape[1:], dtype=torch.bool, device=q.device).triu_(1)
        return cls(
            k=keys,
            v=_take(v, rows),
            phi_q=features.of_queries(_take(q, rows)),
            phi_k=log.sub_(largest[..., None]).exp2_(),
            largest=largest,
            run=run,
            decay=exponent.masked_fill_(later, float("-inf")).exp2_(),
            past=torch.exp2(top - run)[..., None],
        )

    @property
    def within(self) -> Tensor:
        """Weights of the chunk's own keys, [G, n, n]."""
        return torch.bmm(self.phi_q, self.phi_k.transpose(1, 2)).mul_(self.decay)

    def totals(self, state: Tensor) -> Tensor:
        """Σ_j≤i weights × [v_j, 1], [G, n, D+1]."""
        within = self.within
        own = torch.cat([torch.bmm(within, self.v), within.sum(-1, keepdim=True)], -1)
        return own.addcmul_(torch.bmm(self.phi_q, state), self.past)

    def carried(self) -> Tensor:
        """φ(k) relative to the end of the chunk."""
        return self.phi_k * torch.exp2(self.largest - self.run[:, -1:])[..., None]

    def within_backward(self, d_total: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of φ(q), and of ln φ(k) and v as keys of their own chunk, from that of `totals`."""
        d_within = torch.baddbmm(d_total[..., -1:], d_total[..., :-1], self.v.transpose(1, 2)).mul_(
            self.decay
        )
        d_phi_q = torch.bmm(d_total, state.transpose(1, 2)).mul_(self.past).baddbmm_(d_within, self.phi_k)
        d_log_k = torch.bmm(d_within.transpose(1, 2), self.phi_q).mul_(self.phi_k)
        return d_phi_q, d_log_k, torch.bmm(self.within.transpose(1, 2), d_total[..., :-1])

    def carried_backward(self, d_state: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of ln φ(k) and v from that of the state after this chunk."""
        phi_k, d_values = self.carried(), d_state[..., :-1]
        d_log_k = torch.baddbmm(d_state[..., -1].unsqueeze(1), self.v, d_values.transpose(1, 2)).mul_(phi_k)
        return d_log_k, torch.bmm(phi_k, d_values)

    def grow(self, state: Tensor, top: Tensor) -> Tensor:
        """The state after this chunk."""
        phi, shrink = self.carried(), torch.exp2(top - self.run[:, -1:])[..., None]
        new = torch.cat([torch.bmm(phi.transpose(1, 2), self.v), phi.sum(1)[..., None]], -1)
        return new.addcmul_(state, shrink)


def _no_past(features: Features) -> tuple[Tensor, Tensor]:
    groups, width, m = features.weight.shape
    return features.weight.new_zeros(groups, m, width + 1), features.weight.new_full((groups, 1), _LOWEST)


def _quotient(both: Tensor) -> tuple[Tensor, Tensor]:
    """[numerator, denominator] → quotient, denominator; 0 where nothing is seen or every feature underflows."""
    denominator = both[..., -1:].clamp(min=torch.finfo(both.dtype).tiny)
    return both[..., :-1] / denominator, denominator


def _quotient_backward(both: Tensor, d_out: Tensor) -> Tensor:
    out, denominator = _quotient(both)
    pull = (d_out * out).sum(-1, keepdim=True).neg_()
    return torch.cat([d_out, pull], -1).div_(denominator)


def _chunks(x: Tensor, features: Features) -> Iterator[slice]:
    size = max(1, _CHUNK // (features.weight.shape[0] * features.weight.shape[2]))
    for start in range(0, x.shape[2], size):
        yield slice(start, min(start + size, x.shape[2]))


def _causal_chunks(x: Tensor) -> Iterator[slice]:
    for start in range(0, x.shape[2], _CAUSAL_CHUNK):
        yield slice(start, min(start + _CAUSAL_CHUNK, x.shape[2]))


def _empty_like(x: Tensor) -> Tensor:
    """[B, H, N, D] laid out by tokens, as the projections are."""
    b, h, n, d = x.shape
    return x.new_empty(b, n, h, d).transpose(1, 2)


def _take(x: Tensor, rows: slice) -> Tensor:
    """Tokens `rows` of x [B, H, N, D] as [G, n, D] in at least float32."""
    return x[:, :, rows].flatten(0, 1).to(torch.promote_types(x.dtype, torch.float32))


def _put(x: Tensor, rows: slice, part: Tensor) -> None:
    x[:, :, rows] = part.unflatten(0, x.shape[:2]).to(x.dtype)


def _add(x: Tensor, rows: slice, part: Tensor) -> None:
    x[:, :, rows] += part.unflatten(0, x.shape[:2]).to(x.dtype)


def _hidden(visible: Tensor | None, x: Tensor, rows: slice) -> Tensor | None:
    if visible is None:
        return None
    return ~visible[:, None, rows, None].expand(-1, x.shape[1], -1, -1).flatten(0, 1)
