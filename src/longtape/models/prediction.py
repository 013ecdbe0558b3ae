"""What a model says of the future: distributions in original units, and the losses that train them.

A head gives one `Distribution` for each kind of target, every tensor [B, A, n] (windows, assets, targets of the kind);
a `Prediction` holds them all and speaks of targets as columns [B, K], in the order of the panel.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from longtape.core.scoring import SMALLEST_VARIANCE
from longtape.models.batch import Batch
from longtape.models.student_t import t_cdf, t_density, t_quantile

_LEAST_DEVIATION = 0.01  # of an account, in training deviations: one that holds nothing has no Sharpe ratio


class Distribution(ABC):
    """The forecast of some targets, [...] each."""

    @abstractmethod
    def mean(self) -> Tensor:
        """Expected value [...], original units."""

    @abstractmethod
    def loss(self, y: Tensor) -> Tensor:
        """What training minimises, [...], of labels `y` [...] in original units; free of the unit."""

    def loss_in_blocks(self, y: Tensor, block: int) -> Tensor:
        """`loss` where it depends on the rows around: the first axis holds blocks of `block` consecutive rows."""
        return self.loss(y)

    def quantile(self, p: float) -> Tensor | None:
        """The value [...] that is not exceeded with probability `p`; None where only a point is forecast."""
        return None

    def samples(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws, [n, ...]; a point forecast is drawn n times."""
        mean = self.mean()
        return mean.expand(n, *mean.shape)

    def crps(self, y: Tensor) -> Tensor:
        """Continuous ranked probability score [...] (Matheson & Winkler 1976); of a point, its absolute error."""
        return (y - self.mean()).abs()

    def stated(self) -> dict[str, Tensor]:
        """What makes the distribution beside its mean, by name, [...] or [..., n] each; nothing for a point."""
        return {}

    @classmethod
    @abstractmethod
    def average(cls, members: Sequence[Self]) -> Self:
        """One forecast from several models of equal standing."""


def _mean_of(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).mean(0)


@dataclass(frozen=True, eq=False)
class Point(Distribution):
    """An expected value. `scale` [...] is the training deviation, which makes the loss free of the unit."""

    value: Tensor
    scale: Tensor
    error: Literal["squared", "huber"] = "squared"

    def mean(self) -> Tensor:
        return self.value

    def loss(self, y: Tensor) -> Tensor:
        """Squared error, or Huber's with its knee at one deviation (Huber 1964), doubled to match near zero."""
        miss = (self.value - y) / self.scale
        if self.error == "squared":
            return miss.square()
        return 2 * F.huber_loss(miss, torch.zeros_like(miss), reduction="none")

    @classmethod
    def average(cls, members: Sequence[Point]) -> Point:
        return cls(_mean_of([m.value for m in members]), members[0].scale, members[0].error)


@dataclass(frozen=True, eq=False)
class LogVariance(Distribution):
    """A volatility: the root of the expected variance, of which the logarithm is kept."""

    log_variance: Tensor
    clip: float = math.inf  # the largest surprise that training minds
    added: Tensor | None = None  # what the network adds to its start, where a gate is to be set

    def mean(self) -> Tensor:
        return (0.5 * self.log_variance).exp()

    def loss(self, y: Tensor) -> Tensor:
        """QLIKE, e^s − s − 1 of the surprise s = ln y² − ln σ² (Patton 2011), at most `clip`."""
        surprise = self.surprise(y).clamp_max(self.clip)
        return surprise.exp() - surprise - 1

    def surprise(self, y: Tensor) -> Tensor:
        """ln y² − ln σ², [...]."""
        return y.square().clamp_min(SMALLEST_VARIANCE).log() - self.log_variance

    @classmethod
    def average(cls, members: Sequence[LogVariance]) -> LogVariance:
        """The mean of the variances."""
        each = torch.stack([m.log_variance for m in members])
        return cls(each.logsumexp(0) - math.log(len(members)), members[0].clip)


@dataclass(frozen=True, eq=False)
class Quantiles(Distribution):
    """Values [..., Q] at `levels` (ascending) that do not cross; straight lines between them."""

    values: Tensor
    levels: tuple[float, ...]
    scale: Tensor

    def mean(self) -> Tensor:
        """The integral of the quantile function, flat beyond the outermost levels."""
        widths = torch.tensor(self._weights(), device=self.values.device, dtype=self.values.dtype)
        return (self.values * widths).sum(-1)

    def _weights(self) -> list[float]:
        """The share of probability that lies nearest to each level."""
        middles = [(a + b) / 2 for a, b in zip(self.levels, self.levels[1:], strict=False)]
        return [b - a for a, b in zip([0.0, *middles], [*middles, 1.0], strict=True)]

    def loss(self, y: Tensor) -> Tensor:
        """Pinball loss summed over the levels (Koenker & Bassett 1978)."""
        return self._pinball(y).sum(-1)

    def _pinball(self, y: Tensor) -> Tensor:
        levels = torch.tensor(self.levels, device=y.device, dtype=self.values.dtype)
        miss = (y[..., None] - self.values) / self.scale[..., None]
        return torch.maximum(levels * miss, (levels - 1) * miss)

    def quantile(self, p: float) -> Tensor | None:
        """None outside the levels: nothing is known of the tails."""
        if not self.levels[0] <= p <= self.levels[-1]:
            return None
        above = next(i for i, level in enumerate(self.levels) if level >= p)
        if self.levels[above] == p:
            return self.values[..., above]
        low, high = self.levels[above - 1], self.levels[above]
        return torch.lerp(self.values[..., above - 1], self.values[..., above], (p - low) / (high - low))

    def samples(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Inverse transform; what falls beyond the outermost levels takes their values."""
        shape = (n, *self.values.shape[:-1])
        levels = torch.tensor(self.levels, device=self.values.device, dtype=self.values.dtype)
        p = torch.rand(shape, generator=generator, device=levels.device, dtype=levels.dtype)
        p = p.clamp(levels[0], levels[-1])
        above = torch.searchsorted(levels, p).clamp(1, len(levels) - 1)
        part = (p - levels[above - 1]) / (levels[above] - levels[above - 1])
        values = self.values.expand(n, *self.values.shape)
        low, high = (values.gather(-1, at[..., None]).squeeze(-1) for at in (above - 1, above))
        return torch.lerp(low, high, part)

    def crps(self, y: Tensor) -> Tensor:
        """2 ∫ pinball dp, each level standing for the probability nearest to it."""
        widths = torch.tensor(self._weights(), device=y.device, dtype=self.values.dtype)
        return 2 * (self._pinball(y) * widths).sum(-1) * self.scale

    def stated(self) -> dict[str, Tensor]:
        return {"quantiles": self.values}

    @classmethod
    def average(cls, members: Sequence[Quantiles]) -> Quantiles:
        """Quantile by quantile (Vincent 1912): shapes stay, levels keep their meaning."""
        return cls(_mean_of([m.values for m in members]), members[0].levels, members[0].scale)


@dataclass(frozen=True, eq=False)
class StudentT(Distribution):
    """Location, spread and degrees of freedom (> 2), [...] each."""

    location: Tensor
    spread: Tensor
    freedom: Tensor
    scale: Tensor

    def mean(self) -> Tensor:
        return self.location

    def loss(self, y: Tensor) -> Tensor:
        """Negative log-likelihood, less that of one training deviation."""
        law = torch.distributions.StudentT(self.freedom, self.location, self.spread)
        return -law.log_prob(y) - self.scale.log()

    def quantile(self, p: float) -> Tensor | None:
        level = torch.full_like(self.freedom, p, dtype=torch.float64)
        return self.location + self.spread * t_quantile(level, self.freedom.double()).to(self.spread.dtype)

    def samples(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        shape = (n, *self.location.shape)
        device = self.location.device
        p = torch.rand(shape, generator=generator, device=device, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
        drawn = t_quantile(p, self.freedom.double().expand(shape))
        return self.location + self.spread * drawn.to(self.spread.dtype)

    def crps(self, y: Tensor) -> Tensor:
        """Closed form of Jordan, Krüger & Lerch (2019), "Evaluating Probabilistic Forecasts with scoringRules"."""
        freedom = self.freedom.double()
        z = ((y - self.location) / self.spread).double()
        ln_gamma_half = 0.5 * math.log(math.pi)
        ln_b_half = ln_gamma_half + torch.lgamma(freedom / 2) - torch.lgamma((freedom + 1) / 2)
        ln_b_more = ln_gamma_half + torch.lgamma(freedom - 0.5) - torch.lgamma(freedom)
        below = t_cdf(z, freedom)
        known = z * (2 * below - 1) + 2 * t_density(z, freedom) * (freedom + z * z) / (freedom - 1)
        spread = 2 * freedom.sqrt() / (freedom - 1) * (ln_b_more - 2 * ln_b_half).exp()
        return (known - spread).to(self.spread.dtype) * self.spread

    def stated(self) -> dict[str, Tensor]:
        return {"spread": self.spread, "freedom": self.freedom}

    @classmethod
    def average(cls, members: Sequence[StudentT]) -> StudentT:
        """Parameter by parameter."""
        location, spread, freedom = (
            _mean_of([getattr(m, name) for m in members]) for name in ("location", "spread", "freedom")
        )
        return cls(location, spread, freedom, members[0].scale)


@dataclass(frozen=True, eq=False)
class Categorical(Distribution):
    """Classes 0 … M − 1 in order, by their logits [..., M]."""

    logits: Tensor

    def probabilities(self) -> Tensor:
        """[..., M]."""
        return self.logits.softmax(-1)

    def mean(self) -> Tensor:
        """The expected class."""
        p = self.probabilities()
        return (p * torch.arange(p.shape[-1], device=p.device)).sum(-1)

    def loss(self, y: Tensor) -> Tensor:
        """Cross-entropy on logits."""
        chosen = y.long().unsqueeze(-1)
        return -self.logits.log_softmax(-1).gather(-1, chosen).squeeze(-1)

    def quantile(self, p: float) -> Tensor | None:
        """The first class up to which the probability reaches `p`."""
        reached = self.probabilities().cumsum(-1) >= p - 1e-7
        return reached.long().argmax(-1).to(self.logits.dtype)

    def samples(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        p = self.probabilities()
        drawn = torch.multinomial(p.flatten(0, -2), n, replacement=True, generator=generator)
        return drawn.T.reshape(n, *p.shape[:-1]).to(p.dtype)

    def crps(self, y: Tensor) -> Tensor:
        """The ranked probability score Σ (P(class ≤ m) − 1[y ≤ m])² (Epstein 1969)."""
        p = self.probabilities()
        reached = y[..., None] <= torch.arange(p.shape[-1], device=p.device)
        return (p.cumsum(-1) - reached.to(p.dtype)).square().sum(-1)

    def stated(self) -> dict[str, Tensor]:
        return {"probabilities": self.probabilities()}

    @classmethod
    def average(cls, members: Sequence[Categorical]) -> Categorical:
        """The mean of the probabilities."""
        return cls(_mean_of([m.probabilities() for m in members]).log())


@dataclass(frozen=True, eq=False)
class Weights(Distribution):
    """Shares of the equity in [−1, 1], [B, A, n], where the label is a log return; `scale` [A, n] is its deviation.

    Losses are in units of the assets' mean deviation, and their mean over the assets is that of the account.
    """

    share: Tensor
    scale: Tensor
    objective: Literal["return", "sharpe"] = "return"
    turnover_cost: float = 0.0  # of the value that a change of weight trades

    def mean(self) -> Tensor:
        return self.share

    def loss(self, y: Tensor) -> Tensor:
        """−A · weight · simple return. ValueError where the loss is defined for rows in a row only."""
        if self.objective == "sharpe" or self.turnover_cost:
            raise ValueError("turnover and Sharpe ratio are those of consecutive rows; give blocks of them")
        return -self._n_assets * self._earned(y)

    def loss_in_blocks(self, y: Tensor, block: int) -> Tensor:
        """−A · (weight · simple return − cost · |change of weight|), or −Sharpe of all assets together.

        What stood before the first row of a block is not known: its change counts as the mean of the others'.
        """
        if block == 1:
            return self.loss(y)
        rows = (self._earned(y) - self._costs(block)).unflatten(0, (-1, block))  # [blocks, block, A, n]
        if self.objective == "return":
            return -self._n_assets * rows.flatten(0, 1)
        account = rows.sum(2, keepdim=True)
        spread = (account.var(1, correction=0, keepdim=True) + _LEAST_DEVIATION**2).sqrt()
        return -(account.mean(1, keepdim=True) / spread).expand(rows.shape).flatten(0, 1)

    @property
    def _n_assets(self) -> int:
        return self.share.shape[-2]

    def _unit(self) -> Tensor:
        return self.scale.mean(-2, keepdim=True)

    def _earned(self, y: Tensor) -> Tensor:
        return self.share * torch.expm1(y) / self._unit()

    def _costs(self, block: int) -> Tensor:
        changes = self.share.unflatten(0, (-1, block)).diff(dim=1).abs()
        changes = torch.cat([changes.mean(1, keepdim=True), changes], 1)
        return self.turnover_cost * changes.flatten(0, 1) / self._unit()

    @classmethod
    def average(cls, members: Sequence[Weights]) -> Weights:
        first = members[0]
        share = _mean_of([m.share for m in members])
        return cls(share, first.scale, first.objective, first.turnover_cost)


@dataclass(frozen=True, eq=False)
class Prediction:
    """The distributions of a model's targets: `parts[i]` [B, A, n] speaks of the columns `columns[i]` [A, n].

    What only training reads: `weights` [K], what a label of each target counts, 1 by default, and `dense`, a prediction
    from each of the N tokens of every window [B·N, …], whose loss on `Batch.y_rows` is added `dense_weight` times.
    """

    parts: tuple[Distribution, ...]
    columns: tuple[Tensor, ...]
    weights: Tensor | None = None
    dense: Prediction | None = None
    dense_weight: float = 0.0

    def mean(self) -> Tensor:
        """Point forecasts [B, K] in original units."""
        return self._flat([part.mean() for part in self.parts])

    def quantile(self, p: float) -> Tensor:
        """Quantiles [B, K]; NaN where only a point is forecast."""
        found = [(part.quantile(p), part.mean()) for part in self.parts]
        return self._flat([torch.full_like(m, torch.nan) if q is None else q for q, m in found])

    def samples(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws [n, B, K], each target by itself."""
        return self._flat([part.samples(n, generator) for part in self.parts])

    def crps(self, y: Tensor) -> Tensor:
        """[B, K] for labels [B, K]."""
        return self._flat([part.crps(own) for part, own in zip(self.parts, self._of(y), strict=True)])

    def losses(self, y: Tensor, block: int = 1) -> Tensor:
        """[B, K]: each target's training loss; the windows stand in blocks of so many consecutive rows."""
        parts = zip(self.parts, self._of(y), strict=True)
        return self._flat([part.loss_in_blocks(own, block) for part, own in parts])

    def loss(self, y: Tensor, known: Tensor | None = None, block: int = 1) -> Tensor:
        """Mean training loss over windows and targets; labels y [B, K], `known` [B, K] False where there is none."""
        if known is None:
            known = torch.ones_like(y, dtype=torch.bool)
        # What is unknown is replaced before the loss, because a NaN in an unused branch still spoils gradients.
        losses = self.losses(torch.where(known, y, torch.zeros_like(y)), block)
        if self.weights is None:
            return torch.where(known, losses, 0.0).sum() / known.sum().clamp_min(1)
        counted = known * self.weights
        return (counted * torch.where(known, losses, 0.0)).sum() / counted.sum().clamp_min(self.weights.max())

    def training_loss(self, batch: Batch) -> Tensor:
        """The mean loss on the labels of a batch, and, where there is a dense prediction, on those of earlier rows."""
        loss = self.loss(batch.y, batch.y_present, batch.block)
        if self.dense is None:
            return loss
        labels = batch.y_rows.flatten(0, 1)
        return loss + self.dense_weight * self.dense.loss(labels, labels.isfinite())

    def probabilities(self) -> Tensor | None:
        """Class probabilities [B, K, M], zero beyond a target's own classes; None where no target has classes."""
        sizes = [part.logits.shape[-1] for part in self.parts if isinstance(part, Categorical)]
        if not sizes:
            return None
        mean = self.mean()
        out = mean.new_zeros(*mean.shape, max(sizes))
        for part, columns in zip(self.parts, self.columns, strict=True):
            if isinstance(part, Categorical):
                p = part.probabilities()
                out[:, columns.flatten(), : p.shape[-1]] = p.flatten(1, 2)
        return out

    @staticmethod
    def average(members: Sequence[Prediction]) -> Prediction:
        """One prediction from several models of equal standing."""
        kinds = zip(*(member.parts for member in members), strict=True)
        return Prediction(tuple(type(same[0]).average(same) for same in kinds), members[0].columns)

    def _of(self, y: Tensor) -> list[Tensor]:
        return [y[..., columns] for columns in self.columns]

    def _flat(self, parts: Sequence[Tensor]) -> Tensor:
        """Parts [..., A, n] side by side [..., K], in the order of the panel's columns."""
        order = torch.cat([columns.flatten() for columns in self.columns]).argsort()
        return torch.cat([part.flatten(-2) for part in parts], -1)[..., order]
