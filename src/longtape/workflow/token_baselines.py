"""What can be said of sequences without reading the order of their tokens. Probabilities [n, K, M] of the test rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from longtape.models.tokens import TokensConfig
from longtape.workflow.token_data import TokenData

Array = npt.NDArray[np.float64]
PENALTIES = (
    0.1,
    1.0,
    10.0,
    100.0,
)  # on half the squares of the slopes; the one of least validation loss is taken


def frequencies(data: TokenData, config: TokensConfig) -> Array:
    """The classes' frequencies in training: the majority class."""
    shares = _shares(data.panel.targets[data.train], config.classes)
    return np.broadcast_to(shares, (len(data.test), config.n_labels, config.classes))


def usual_label_of_id(data: TokenData, config: TokensConfig) -> Array:
    """For labels of tokens: how often an id had each class in training, whatever stands around it."""
    ids, labels = data.panel.values[data.train].astype(np.int64), data.panel.targets[data.train]
    shares = np.stack([_shares(labels[ids == one], config.classes) for one in range(config.vocabulary)])
    return shares[np.maximum(data.panel.values[data.test].astype(np.int64), 0)]


def bag_of_tokens(data: TokenData, config: TokensConfig) -> Array:
    """Logistic regression on ln(1 + count) of every id, standardised by the training rows."""
    parts = (data.train, data.validation, data.test)
    train, validation, test = (np.log1p(data.counts(rows, config.vocabulary)) for rows in parts)
    centre, spread = train.mean(axis=0), train.std(axis=0)
    spread[spread == 0] = 1.0
    x, checked, asked = (torch.from_numpy((part - centre) / spread) for part in (train, validation, test))
    y, wanted = (torch.from_numpy(data.panel.targets[rows, 0]) for rows in parts[:2])
    known, judged = y.isfinite(), wanted.isfinite()
    best, least = torch.zeros(x.shape[1] + 1, config.classes, dtype=torch.float64), float("inf")
    for penalty in PENALTIES:
        weights = _logit(x[known], y[known].long(), config.classes, penalty)
        loss = torch.nn.functional.cross_entropy(_logits(checked[judged], weights), wanted[judged].long())
        if float(loss) < least:
            best, least = weights, float(loss)
    found: Array = _logits(asked, best).softmax(-1)[:, None].numpy()
    return found


def _shares(labels: Array, classes: int) -> Array:
    """One more of each class than was seen (Laplace), over all."""
    seen = np.array([(labels == m).sum() + 1.0 for m in range(classes)])
    shares: Array = seen / seen.sum()
    return shares


def _logits(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return weights[0] + x @ weights[1:]


def _logit(x: torch.Tensor, y: torch.Tensor, classes: int, penalty: float) -> torch.Tensor:
    """Weights [1 + F, M] of least penalised cross-entropy, by L-BFGS in float64."""
    weights = torch.zeros(x.shape[1] + 1, classes, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        search.zero_grad()
        fit = torch.nn.functional.cross_entropy(_logits(x, weights), y, reduction="sum")
        total = fit + 0.5 * penalty * (weights[1:] ** 2).sum()
        total.backward()
        return total

    search.step(loss)
    return weights.detach()
