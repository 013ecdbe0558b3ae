"""GARCH(1, 1): Bollerslev (1986), "Generalized Autoregressive Conditional Heteroskedasticity".

    σ²_{t+1} = ω + α r²_t + β σ²_t,    E σ²_{t+1+k} = ω (1 + ρ + … + ρ^{k−1}) + ρᵏ σ²_{t+1},    ρ = α + β

Normal likelihood of returns about zero, maximised by the package `arch` on the training rows (as a baseline anew each
month); what is forecast over h bars is the sum of h expected variances. The recursion is taken as what it comes to
once it has forgotten its start, ω/(1 − β) + α Σ βⁱ r²_{t−i}, weights below 10⁻⁵ of the whole left out. The hour of the
week is not known to it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from longtape.core.errors import UserError, require
from longtape.features.panel import Panel, Rows
from longtape.models.base import Array, ModelConfig, ModelInputs
from longtape.models.closed_forms import LastValue, VolatilityConfig
from longtape.models.ewma import fading_variance, rows_of
from longtape.models.har import squared_returns

LARGEST_BETA = 0.9995  # which halves in 1,386 bars: what fades more slowly is a level, and has no end
LEAST_ROWS = 100


@dataclass(frozen=True)
class GarchFit:
    """The three parameters, of returns in their own unit."""

    omega: float
    alpha: float
    beta: float

    def summed(self, next_variance: Array, horizon: int) -> Array:
        """Σ of the expected variances of the next `horizon` bars, of which the first is `next_variance` [T]."""
        total, expected = np.zeros_like(next_variance), next_variance
        for _ in range(horizon):
            total = total + expected
            expected = self.omega + (self.alpha + self.beta) * expected
        return total


class GarchConfig(VolatilityConfig):
    """GARCH(1, 1) without options."""

    package = "arch"


class Garch(LastValue):
    """GARCH(1, 1) of every asset."""

    Config: ClassVar[type[ModelConfig]] = GarchConfig
    title = "GARCH(1, 1)"
    refits_monthly = True
    found: Tensor

    def __init__(self, config: ModelConfig, inputs: ModelInputs) -> None:
        super().__init__(config, inputs)
        self.register_buffer("found", torch.zeros(len(inputs.assets), 3, dtype=torch.float64))

    @property
    def rows_read(self) -> int:
        return max(rows_of(fit.beta) if fit.beta > 0 else 1 for fit in self._fits())

    def fit(self, panel: Panel, train: Rows, validation: Rows) -> None:
        """From the returns of the training rows. UserError where the package `arch` is missing."""
        self.refuse_rows(panel, train)
        for asset in range(len(self.inputs.assets)):
            found = fit_garch(_moves(panel, asset, train))
            self.found[asset] = torch.tensor([found.omega, found.alpha, found.beta], dtype=torch.float64)

    def refuse_rows(self, panel: Panel, train: Rows) -> None:
        for asset, symbol in enumerate(self.inputs.assets):
            moved = int(np.count_nonzero(_moves(panel, asset, train)))
            if moved < LEAST_ROWS:
                raise UserError(
                    f"model.kind: {symbol} has moved in {moved} training rows, and a fit of GARCH takes {LEAST_ROWS};"
                    " load more data"
                )

    def row_inputs(self, panel: Panel) -> Array:
        """[T, K]: the expected sum of squared returns over each horizon."""
        fits, out = self._fits(), np.empty((len(panel), len(self.inputs.targets)))
        following = [next_variance(panel, asset, fit) for asset, fit in enumerate(fits)]
        for k, target in enumerate(self.inputs.targets):
            asset = self.inputs.assets.index(target.asset)
            out[:, k] = fits[asset].summed(following[asset], target.horizon)
        return out

    def _fits(self) -> list[GarchFit]:
        return [GarchFit(*row) for row in self.found.tolist()]


def _moves(panel: Panel, asset: int, rows: Rows) -> Array:
    """Returns of the bars among `rows` that are there."""
    moves = np.diff(np.log(panel.closes[:, asset]), prepend=np.nan)[rows]
    return moves[panel.present[rows, asset] & np.isfinite(moves)]


def next_variance(panel: Panel, asset: int, fit: GarchFit) -> Array:
    """σ² of the next bar [T], at every row."""
    if fit.beta <= 0:
        squares = np.nan_to_num(squared_returns(panel, asset))
        return fit.omega + fit.alpha * squares
    return (fit.omega + fit.alpha * fading_variance(panel, asset, fit.beta)) / (1 - fit.beta)


def fit_garch(moves: Array) -> GarchFit:
    """Of most likelihood; β at most 0.9995, and 0 where nothing that has been moves the variance.

    `moves` are counted in their own deviation, as `arch` asks for numbers near one.
    """
    arch = require("arch", "baselines")
    unit = float(np.sqrt((moves**2).mean()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an optimiser that stopped early, at what is likeliest so far
        model = arch.arch_model(moves / unit, mean="Zero", vol="GARCH", p=1, q=1, rescale=False)
        found = model.fit(disp="off", show_warning=False)
    omega, alpha, beta = (float(found.params[name]) for name in ("omega", "alpha[1]", "beta[1]"))
    if alpha < 1e-6:  # then β says how fast a variance comes to its level at which it always is
        return GarchFit(unit**2, 0.0, 0.0)
    return GarchFit(omega * unit**2, alpha, min(beta, LARGEST_BETA))
