"""What anyone can say of an order book or a tape: the sign of an imbalance, logistic regressions on two numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from longtape.core.errors import UserError
from longtape.features.panel import Panel, Rows
from longtape.features.target_kinds import TERCILES, TargetKind
from longtape.features.trade_features import IMBALANCE_TRADES, RULE_TRADES
from longtape.models.base import Array, ModelConfig, only_kinds
from longtape.models.closed_forms import FromBaselines
from longtape.models.linear_baseline import LinearBaseline, Scale

PENALTY = 1.0  # on the squares of the slopes, where each row counts 1; on the intercepts a thousandth of it
_STEPS = 50


class BookBaselineConfig(ModelConfig):
    """A model of the best level of a book, or of the last trades, without options."""

    def refuse_targets(self, kinds: Mapping[str, TargetKind]) -> None:
        only_kinds(self, kinds, (TERCILES.name, "direction"))


class OfQuotes(LinearBaseline):
    """Logits [B, A, n, 3] from a row's imbalance and micro-price (`Panel.quotes`)."""

    n_rows = 2

    def row_inputs(self, panel: Panel) -> Array:
        if panel.quotes is None:
            raise UserError(
                "model: imbalance and micro-price are those of order books; name data.kind: books"
            )
        return panel.quotes

    def fit(self, panel: Panel, columns: Rows, train: Rows, validation: Rows, scale: Scale) -> None:
        quotes = self.row_inputs(panel)[train]
        for place in np.ndindex(columns.shape):
            labels = panel.targets[train, columns[place]]
            known = np.isfinite(labels)
            self.fit_one(place, quotes[known], labels[known].astype(np.int64))

    def fit_one(self, place: tuple[int, ...], quotes: Array, classes: Rows) -> None:
        """Fit one target (asset, place in its kind) on rows' quotes [m, 2] and classes [m]."""
        raise NotImplementedError


class ImbalanceSign(OfQuotes):
    """Up where more waits at the best bid than at the best ask, down where less. How sure: the share of training rows
    in which that was right, at least a little more than a guess.
    """

    hits: Tensor

    def __init__(self, n_assets: int, n_targets: int) -> None:
        super().__init__()
        self.register_buffer("hits", torch.full((n_assets, n_targets), 0.5, dtype=torch.float64))

    def fit_one(self, place: tuple[int, ...], quotes: Array, classes: Rows) -> None:
        hits = (1 + np.sign(quotes[:, 0]) == classes).mean()
        self.hits[place] = float(np.clip(hits, 0.34, 1 - 1e-6))

    def forward(self, scaled: Tensor, rows: Tensor) -> Tensor:
        side = 1 + rows[:, 0].sign().long()
        sure = self.hits[None, :, :, None]
        is_side = torch.nn.functional.one_hot(side, 3)[:, None, None, :].bool()
        return torch.where(is_side, sure, (1 - sure) / 2).log().float()


class BookLogit(OfQuotes):
    """Multinomial logistic regression on imbalance and micro-price, by Newton's method with a small ridge."""

    weights: Tensor
    centre: Tensor
    spread: Tensor

    def __init__(self, n_assets: int, n_targets: int, n_classes: int = 3) -> None:
        super().__init__()
        self.n_classes = n_classes
        shape = (n_assets, n_targets)
        self.register_buffer("weights", torch.zeros(*shape, 3, n_classes, dtype=torch.float64))
        self.register_buffer("centre", torch.zeros(*shape, 2, dtype=torch.float64))
        self.register_buffer("spread", torch.ones(*shape, 2, dtype=torch.float64))

    def fit_one(self, place: tuple[int, ...], quotes: Array, classes: Rows) -> None:
        centre, spread = quotes.mean(axis=0), quotes.std(axis=0)
        spread[spread == 0] = 1.0
        design = np.concatenate([np.ones((len(quotes), 1)), (quotes - centre) / spread], axis=1)
        self.centre[place], self.spread[place] = torch.from_numpy(centre), torch.from_numpy(spread)
        self.weights[place] = torch.from_numpy(multinomial_logit(design, classes, self.n_classes))

    def forward(self, scaled: Tensor, rows: Tensor) -> Tensor:
        x = (rows[:, None, None] - self.centre) / self.spread
        logits = self.weights[..., 0, :] + torch.einsum("bani,anim->banm", x, self.weights[..., 1:, :])
        return logits.float()


class TapeLogit(BookLogit):
    """The same on who took in the newest trade and the imbalance of the last hundred (`Panel.tape`)."""

    @property
    def reach(self) -> int:
        """What the imbalance and the tick rule read."""
        return max(IMBALANCE_TRADES, RULE_TRADES + 1)

    def row_inputs(self, panel: Panel) -> Array:
        if panel.tape is None:
            raise UserError("model: takers are those of trades; name data.kind: trades")
        return panel.tape


def multinomial_logit(design: Array, classes: Rows, n_classes: int) -> Array:
    """Weights [F, M] that minimise −Σ ln p(class) + ½·penalty·Σ w², p = softmax(x·w); column 0 of x [m, F] is one."""
    n_inputs = design.shape[1]
    came = np.eye(n_classes)[classes]
    penalty = np.full((n_inputs, n_classes), PENALTY)
    penalty[0] /= 1_000
    weights = np.zeros((n_inputs, n_classes))
    for _ in range(_STEPS):
        p = _softmax(design @ weights)
        gradient = design.T @ (p - came) + penalty * weights
        step = np.linalg.solve(_hessian(design, p) + np.diag(penalty.ravel()), gradient.ravel())
        weights -= step.reshape(weights.shape) / max(1.0, np.abs(step).max() / 2)
        if np.abs(step).max() < 1e-10:
            break
    return weights


def _softmax(logits: Array) -> Array:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Array = raised / raised.sum(axis=1, keepdims=True)
    return shares


def _hessian(design: Array, p: Array) -> Array:
    """[F·M, F·M]: Σ over rows of (x xᵀ) ⊗ (diag(p) − p pᵀ)."""
    curve = np.einsum("bm,mk->bmk", p, np.eye(p.shape[1])) - np.einsum("bm,bk->bmk", p, p)
    size = design.shape[1] * p.shape[1]
    whole: Array = np.einsum("bf,bg,bmk->fmgk", design, design, curve, optimize=True).reshape(size, size)
    return whole


class OfBook(FromBaselines):
    """A closed-form model of the best level of a book."""

    Config = BookBaselineConfig

    @classmethod
    def reads(cls, panel: Panel) -> bool:
        return panel.quotes is not None


class ImbalanceSignModel(OfBook):
    """The sign of the imbalance of the best level."""

    title = "sign of the imbalance"

    def build(self, kind: str) -> LinearBaseline:
        return ImbalanceSign(*self.inputs.kinds[kind].shape)


class BookLogitModel(OfBook):
    """Logistic regression on imbalance and micro-price of the best level."""

    title = "logit of imbalance and micro-price"

    def build(self, kind: str) -> LinearBaseline:
        return BookLogit(*self.inputs.kinds[kind].shape)


class TapeLogitModel(FromBaselines):
    """Logistic regression on the newest taker and the imbalance of the last hundred trades."""

    Config = BookBaselineConfig
    title = "logit of takers"

    @classmethod
    def reads(cls, panel: Panel) -> bool:
        return panel.tape is not None

    def build(self, kind: str) -> LinearBaseline:
        return TapeLogit(*self.inputs.kinds[kind].shape)
