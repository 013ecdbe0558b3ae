"""A quick look inside a model for its report: bounded, so that it takes seconds whatever the lookback.

`longtape explain` does the same over more windows, and much more (`workflow/explain.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from longtape.core.errors import UserError
from longtape.explain.assets import asset_maps, level_maps
from longtape.explain.attention import AttentionMap, attention_maps, member_of
from longtape.features.panel import Panel, Rows
from longtape.market.rows import Rows as MarketRows
from longtape.models.base import Model
from longtape.workflow.explain import Records, Study, most_attended

Array = npt.NDArray[np.float64]
_TOKENS = 32_768  # over which losses are taken: windows × tokens of each
_WINDOWS = 32
_LONGEST = 16_384  # tokens of a window that is looked at
_WEIGHTS = 2**19  # of a layer that a map holds
_CELLS = 96  # of a drawn map, each way


@dataclass(frozen=True, eq=False)
class Inside:
    """What was found in the newest window and over `windows` windows of the test period; `missing` says why not."""

    windows: int
    seconds: float
    times: npt.NDArray[np.datetime64] | None = None  # of the newest window's bars [L]
    closes: Array | None = None  # [L]
    newest: list[Array] = field(default_factory=list)  # weight of each bar for the newest one, by layer [L]
    reached: Array | None = None  # share of each bar in what reaches the forecast [L]
    most: Records = field(default_factory=list)
    occlusion: Records = field(default_factory=list)
    maps: Mapping[str, Array] = field(default_factory=dict)  # by layer and head
    places: Mapping[str, Array] = field(default_factory=dict)  # who looks at whom, by layer
    names: list[str] = field(default_factory=list)  # of assets or levels
    missing: Mapping[str, str] = field(default_factory=dict)


def look_inside(model: Model, panel: Panel, test: Rows, bars: Sequence[MarketRows]) -> Inside:
    """Look at the newest window and at a few of the test period. bars: of the panel's assets."""
    began = time.perf_counter()
    looked_at = member_of(model).eval()
    tokens = int(getattr(looked_at.config, "n_tokens", looked_at.config.lookback))
    count = int(np.clip(_TOKENS // tokens, 4, _WINDOWS))
    origins = test[np.unique(np.linspace(0, len(test) - 1, min(count, len(test))).round().astype(int))]
    study = Study(looked_at, panel, origins, bars)
    found: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for name, part in _PARTS.items():
        try:
            if tokens > _LONGEST:
                raise UserError(
                    f"{tokens:,} tokens take longer than a report should; longtape explain looks at them"
                )
            found |= part(study)
        except UserError as reason:
            if name != "who looks at whom":  # models of one asset have nothing to miss there
                missing[name] = str(reason)
    return Inside(len(origins), time.perf_counter() - began, missing=missing, **found)


def _newest(study: Study) -> dict[str, Any]:
    """How the newest bar's tokens spread their attention over the bars of the window, heads averaged."""
    if not all(one.over_tokens for one in study.passed):
        raise UserError("the mechanism's columns are mixtures of tokens, which have no place in time")
    _ = study.rows  # every layer stands over the bars
    bars = study.model.token_bars()
    last = torch.from_numpy(np.flatnonzero(bars == bars.max()))
    weights = [one.weights(last)[0].mean((0, 1)).double().numpy() for one in study.passed]
    return {
        "newest": [study.by_bar(one) for one in weights],
        "times": study.times(study.window),
        "closes": study.closes,
    }


def _reached(study: Study) -> dict[str, Any]:
    return {
        "reached": study.reached,
        "most": most_attended(study),
        "times": study.times(study.window),
        "closes": study.closes,
    }


def _occlusion(study: Study) -> dict[str, Any]:
    return {"occlusion": study.table(study.effects.occlusion())}


def _maps(study: Study) -> dict[str, Any]:
    maps = attention_maps(study.passed, largest=_WEIGHTS)
    return {
        "maps": {
            f"layer {m.layer + 1}, head {h + 1}": _small(m, h) for m in maps for h in range(len(m.weights))
        }
    }


def _small(one: AttentionMap, head: int) -> Array:
    """Roots of the weights of a head, in cells that hold the largest of theirs."""
    weights = one.weights[head].sqrt()[None, None]
    cells = tuple(min(_CELLS, size) for size in weights.shape[2:])
    return torch.nn.functional.adaptive_max_pool2d(weights, cells)[0, 0].double().numpy()


def _places(study: Study) -> dict[str, Any]:
    """Which asset looks at which, or which level of a book."""
    try:
        maps, names = level_maps(study.model, study.passed), study.model.token_levels()
    except UserError:
        maps, names = asset_maps(study.model, study.passed), list(study.panel.assets)
    if len(names) < 2 or not maps:
        raise UserError("one asset alone")
    return {"places": {f"layer {n + 1}": m.double().numpy() for n, m in enumerate(maps)}, "names": names}


_PARTS: Mapping[str, Callable[[Study], dict[str, Any]]] = {
    "attention to history": _newest,
    "most attended bars": _reached,
    "occlusion by distance": _occlusion,
    "attention maps": _maps,
    "who looks at whom": _places,
}
