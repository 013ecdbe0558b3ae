"""Monte Carlo dropout (Gal & Ghahramani 2016, "Dropout as a Bayesian Approximation"): many passes, each with other
weights left out, say how unsure the network is of its own forecast.

Nothing but dropout is switched on: batch norms keep their statistics, and torch's generators stand afterwards where
they stood before. The passes of a window are drawn from its own number, so that they are the same in any company.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from longtape.attention import Attention
from longtape.core.progress import progress
from longtape.features.panel import Panel, Rows
from longtape.models.base import Model
from longtape.models.batch import Batch
from longtape.training.batches import BatchSource

Array = npt.NDArray[np.float64]
PASSES = 100
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@contextmanager
def only_dropout(model: nn.Module) -> Iterator[None]:
    """Inside, dropout of features and of attention weights is on in a model that is otherwise in eval mode."""
    switched = [module for module in model.modules() if _drops(module) and not module.training]
    for module in switched:
        module.training = True  # the flag alone: train() would reach what stands inside
    try:
        yield
    finally:
        for module in switched:
            module.training = False


def _drops(module: nn.Module) -> bool:
    if isinstance(module, Attention):
        return module.config.attention_dropout > 0
    return isinstance(module, _DROPOUT)


@torch.no_grad()
def dropout_samples(model: Model, batch: Batch, passes: int, seed: int) -> Tensor:
    """Point forecasts [passes, K] of one window, `batch` of length 1, each with its own dropout, in one batch."""
    model.eval()
    devices = [batch.x.device.index or 0] if batch.x.device.type == "cuda" else []
    with torch.random.fork_rng(devices), only_dropout(model):
        torch.manual_seed(seed)
        return model(batch.repeat(passes)).mean()


def sample_windows(model: Model, panel: Panel, origins: Rows, passes: int) -> Iterator[Array]:
    """Draws [passes, K] for each of the windows that end at `origins`, in their order."""
    source = BatchSource(model, panel)
    device = next((t.device for t in model.parameters()), torch.device("cpu"))
    with progress("forecast with dropout", len(origins), "windows") as bar:
        for origin in origins:
            seed = int(panel.ordinals[origin]) % 2**63
            batch = source.batch(np.array([origin])).to(device)
            yield dropout_samples(model, batch, passes, seed).double().cpu().numpy()
            bar.advance()
