"""`longtape explain`: everything that can be said of what a run's model looked at, part by part.

A part that does not exist for a model or a mechanism is listed with the reason; the others are unaffected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from longtape.attention.linformer import LinformerAttention
from longtape.core.clock import iso
from longtape.core.errors import UserError
from longtape.core.files import write_json
from longtape.evaluation.statistics import mean_difference_interval
from longtape.explain.assets import asset_maps, level_maps
from longtape.explain.attention import (
    AttentionMap,
    Passed,
    attention_maps,
    layers_of,
    member_of,
    record,
    rollout,
    row_weights,
)
from longtape.explain.effects import Effect, Effects
from longtape.explain.queries import Queries, graph, queries
from longtape.explain.spectrum import (
    ENERGY,
    effective_rank,
    energy_of,
    projection_error,
    rank_error,
    smallest_k,
)
from longtape.features.panel import Panel, Rows
from longtape.market.bars import Bars
from longtape.market.rows import Rows as MarketRows
from longtape.models.base import Model
from longtape.models.batch import Batch
from longtape.models.network import Network
from longtape.report import explain_pictures as draw
from longtape.report.pictures import save
from longtape.report.text import TextTable
from longtape.training.batches import BatchSource

Records = list[dict[str, Any]]
TOLERANCE = 0.1  # of Linformer's error
_SHOWN = 192  # query rows of a map that are drawn
_ORIGINS = 64  # forecasts in the picture of the newest position over time
_MOST = 10  # bars that are listed


@dataclass(frozen=True, eq=False)
class Part:
    """Rows for a table, and pictures by name."""

    rows: Records
    pictures: Mapping[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Explanation:
    """What was found, what does not exist and why, and where the pictures are."""

    parts: Mapping[str, Records]
    missing: Mapping[str, str]
    pictures: Sequence[str]
    windows: int
    notes: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found = {"windows": self.windows, "notes": list(self.notes), "parts": dict(self.parts)}
        return found | {"missing": dict(self.missing), "pictures": list(self.pictures)}

    def text(self) -> str:
        """Every table, then what there is none of."""
        tables = [str(TextTable(rows, title)) for title, rows in self.parts.items()]
        missing = [f"- {reason}" for reason in self.missing.values()]
        return "\n\n".join([*tables, "\n".join(["Not for this run", *missing]), *self.notes])


@dataclass(frozen=True, eq=False)
class Study:
    """A model, its data, the newest window, and windows of the test period over which losses are taken."""

    model: Model
    panel: Panel
    origins: Rows
    bars: Sequence[MarketRows] = ()  # of the panel's assets

    @cached_property
    def newest(self) -> Batch:
        """The newest window."""
        return BatchSource(self.model, self.panel).batch(np.array([len(self.panel) - 1]))

    @cached_property
    def passed(self) -> list[Passed]:
        """What each layer was given of it. UserError for a model without attention."""
        layers_of(self.model)
        return record(self.model, self.newest)

    @property
    def has_bars(self) -> bool:
        """True where the model's tokens are bars of the window."""
        try:
            return len(self.rows) > 0
        except UserError:
            return False

    @cached_property
    def rows(self) -> Rows:
        """Panel row of each token of the newest window; the window's first for a token that is no bar."""
        first, bars = len(self.panel) - self.model.config.lookback, self.model.token_bars()
        if any(one.n_tokens != len(bars) for one in self.passed):
            raise UserError(
                f"model '{self.model.config.kind}' has layers over other tokens than the bars of the window"
            )
        return first + np.maximum(bars, 0)

    @property
    def token_assets(self) -> Rows:
        """The asset of each token; the first where a token is of all."""
        try:
            found = self.model.token_assets(self.passed[0].layer)
        except UserError:
            found = None
        return np.zeros(self.passed[0].n_tokens, np.int64) if found is None else found

    @cached_property
    def window(self) -> Rows:
        """Panel rows of the newest window [lookback]."""
        return np.arange(len(self.panel) - self.model.config.lookback, len(self.panel))

    @cached_property
    def closes(self) -> npt.NDArray[np.float64]:
        """Of the first asset in the newest window [lookback]."""
        return self.panel.closes[self.window, 0]

    def by_bar(self, of_tokens: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """What the tokens [N] of each bar of the newest window have together [lookback]; a token that is no bar is left
        out.
        """
        _ = self.rows  # every layer stands over the bars
        bars = self.model.token_bars()
        together = np.bincount(bars[bars >= 0], of_tokens[bars >= 0], len(self.window))
        return together.astype(np.float64)

    @cached_property
    def reached_of(self) -> dict[int, npt.NDArray[np.float64]]:
        """Share of each bar of the newest window in what reaches the forecast (rollout) [lookback]: for each
        asset that has tokens of its own, else for all together under the first.
        """
        read = self.model.pooled_weights(self.newest).detach()
        flow = rollout(self.passed, read)[0].double().numpy()
        return {
            int(asset): self.by_bar(np.where(self.token_assets == asset, flow, 0.0))
            for asset in np.unique(self.token_assets)
        }

    @property
    def reached(self) -> npt.NDArray[np.float64]:
        """The same of all assets together [lookback]."""
        return np.sum(list(self.reached_of.values()), axis=0)

    def times(self, rows: Rows) -> npt.NDArray[np.datetime64]:
        """When rows of the panel open."""
        return self.panel.timestamps[rows].astype("datetime64[ms]")

    @cached_property
    def effects(self) -> Effects:
        """Losses of the test windows."""
        return Effects(self.model, self.panel, self.origins)

    @property
    def horizon(self) -> int:
        """Windows of the sample that one label covers."""
        apart = max(1, int(np.median(np.diff(self.origins)))) if len(self.origins) > 1 else 1
        return -(-max(target.horizon for target in self.panel.target_columns) // apart)

    def table(self, effects: Sequence[Effect]) -> Records:
        """A row for each effect, with the interval of a block bootstrap."""
        rows = []
        for one in effects:
            found = mean_difference_interval(one.without, one.whole, horizon=self.horizon)
            rows.append({"without": one.name, "effect": found.value, "from": found.lower, "to": found.upper})
        return rows


def explain_run(
    model: Model, panel: Panel, test: Rows, bars: Sequence[MarketRows], out: Path, windows: int
) -> Explanation:
    """Every part, over at most `windows` evenly spaced windows of the test period; pictures and explain.json in `out`.

    bars: of the panel's assets, for what happened at the bars that were looked at.
    """
    looked_at = member_of(model)
    origins = test[np.unique(np.linspace(0, len(test) - 1, min(windows, len(test))).round().astype(int))]
    study = Study(looked_at.eval(), panel, origins, bars)
    parts: dict[str, Records] = {}
    missing: dict[str, str] = {}
    pictures: list[str] = []
    for name, make in PARTS.items():
        try:
            part = make(study)
        except UserError as reason:
            missing[name] = str(reason)
            continue
        parts[name] = part.rows
        pictures += [str(save(figure, out / f"{stem}.png").name) for stem, figure in part.pictures.items()]
    notes = [] if looked_at is model else ["The run averages several models; the first is looked at."]
    if isinstance(looked_at, Network) and looked_at.is_its_start:
        notes.append(
            "The network is as it began, because it was never better on validation windows: the forecast is that of the"
            " closed-form start, and where the network looks changes nothing."
        )
    found = Explanation(parts, missing, pictures, len(origins), notes)
    write_json(out / "explain.json", found.to_dict())
    return found


def _attention(study: Study) -> Part:
    """Layer by layer and head by head, in the newest window."""
    maps = attention_maps(study.passed)
    bars, columns = study.times(study.rows), study.passed[0].over_tokens
    rows = []
    for one in maps:
        back = len(study.panel) - 1 - study.rows
        for head, weights in enumerate(one.weights.numpy()):
            newest = weights[-1] / max(weights[-1].sum(), 1e-30)
            distance = float(newest @ back) if columns else None
            entropy = float(-(newest * np.log(np.maximum(newest, 1e-30))).sum())
            rows.append({"layer": one.layer + 1, "head": head + 1, "columns": weights.shape[1],
                         "newest looks back, bars": distance, "entropy of the newest row": entropy})  # fmt: skip
    shown = [_thinned(one) for one in maps]
    picture = draw.head_maps(
        [m.weights.numpy() for m in shown], bars[shown[0].rows], bars if columns else None
    )
    return Part(rows, {"attention": picture})


def _thinned(one: AttentionMap) -> AttentionMap:
    keep = np.unique(np.linspace(0, len(one.rows) - 1, min(_SHOWN, len(one.rows))).round().astype(int))
    return AttentionMap(one.layer, one.rows[keep], one.weights[:, keep])


def _newest_over_time(study: Study) -> Part:
    """Where the newest position looks in the last layer, forecast after forecast."""
    if not study.passed[-1].over_tokens:
        raise UserError(
            "attention over time: the mechanism's columns are mixtures, which have no place in time"
        )
    _ = study.rows  # every layer stands over the bars
    source = BatchSource(study.model, study.panel)
    chosen = study.origins[:: max(1, len(study.origins) // _ORIGINS)]
    found = [
        row_weights(record(study.model, source.batch(np.array([o])))[-1])[0].mean(0).numpy() for o in chosen
    ]
    weights = np.stack(found)
    back = study.model.config.lookback - 1 - np.maximum(study.model.token_bars(), 0)
    mean = weights.mean(0)
    top = np.argsort(-mean)[:_MOST]
    rows = [
        {
            "bars back": int(back[t]),
            "mean weight": float(mean[t]),
            "deviation over time": float(weights[:, t].std()),
        }
        for t in top
    ]
    picture = draw.newest_over_time(weights, study.times(chosen), back.tolist())
    return Part(rows, {"attention_over_time": picture})


def _most_attended(study: Study) -> Part:
    """The bars of the newest window from which most reaches the forecast, and what happened there."""
    sizes = study.reached / np.sort(study.reached)[-2:].min()  # the newest keeps much of itself
    title = (
        f"Bars from which most reaches the newest forecast (attention rollout), on {study.panel.assets[0]}"
    )
    picture = draw.on_price(study.times(study.window), study.closes, {"share": np.minimum(sizes, 1)}, title)
    return Part(most_attended(study), {"most_attended": picture})


def most_attended(study: Study, count: int = _MOST) -> Records:
    """The bars from which most reaches the newest forecast: when, how far back, of which asset where tokens are of
    single ones, the share, and how large the bar's return, range and volume are among those of the window.
    """
    shares = [
        (share, place, asset) for asset, each in study.reached_of.items() for place, share in enumerate(each)
    ]
    shares.sort(key=lambda one: -one[0])
    rows = []
    for share, place, asset in shares[:count]:
        if share > 0:
            symbol = {"symbol": study.panel.assets[asset]} if len(study.reached_of) > 1 else {}
            ranks = {f"rank of {name}": int(of_bars[place]) for name, of_bars in _ranks(study, asset).items()}
            opened, back = (
                iso(int(study.panel.timestamps[study.window[place]])),
                len(study.window) - 1 - place,
            )
            rows.append({"bar": opened, "bars back": back, **symbol, "share": float(share), **ranks})
    return rows


def _ranks(study: Study, asset: int) -> dict[str, Rows]:
    """Of an asset's bars in the newest window, 1 for the largest; events have returns alone."""
    closes = np.log(study.panel.closes[:, asset])
    moves = np.abs(np.diff(closes[study.window], prepend=closes[max(study.window[0] - 1, 0)]))
    ranked = {"return": moves, **_range_and_volume(study, asset)}
    return {name: _rank(values) for name, values in ranked.items()}


def _rank(values: npt.NDArray[np.float64]) -> Rows:
    """1 for the largest; what is not known comes last."""
    order = np.empty(len(values), np.int64)
    order[np.argsort(-values, kind="stable")] = np.arange(1, len(values) + 1)
    return order


def _range_and_volume(study: Study, asset: int) -> dict[str, npt.NDArray[np.float64]]:
    """Of an asset's bars in the newest window; events have neither."""
    bars = next((one for one in study.bars if one.symbol == study.panel.assets[asset]), None)
    if not isinstance(bars, Bars):
        return {}
    at = np.searchsorted(bars.timestamps, study.panel.timestamps[study.window], side="right") - 1
    high, low, close, volume = (bars.column(name)[at] for name in ("high", "low", "close", "volume"))
    return {"range": (high - low) / close, "volume": volume}


def _pattern(study: Study) -> Part:
    """What queries see under the first layer's mechanism, in the newest window."""
    one = study.passed[0]
    keep = torch.linspace(0, one.n_tokens - 1, min(256, one.n_tokens)).round().long().unique()
    weights = one.weights(keep)[0].amax(0)
    fixed = one.layer.capabilities.fixed_pattern
    shown = (weights > 0).float() if fixed else (weights / weights.amax()).sqrt()
    name = one.mechanism
    rows = [{"mechanism": name, "tokens": one.n_tokens, "columns": weights.shape[1], "fixed pattern": fixed}]
    return Part(
        rows, {"pattern": draw.pattern(shown.numpy(), f"{name}: {'who sees whom' if fixed else '√ weight'}")}
    )


def _global_tokens(study: Study) -> Part:
    layers_of(study.model)
    rows = study.table(study.effects.global_tokens())
    return Part(rows, {"global_tokens": draw.effect_bars(rows, "Global tokens set to zero")})


def _occlusion(study: Study) -> Part:
    rows = study.table(study.effects.occlusion())
    return Part(rows, {"occlusion": draw.effect_bars(rows, "Bars taken away, by distance from the newest")})


def _features(study: Study) -> Part:
    rows = study.table(study.effects.features(block=max(study.horizon, 1)))
    rows.sort(key=lambda row: -row["effect"])
    return Part(rows, {"features": draw.effect_bars(rows, "Features exchanged between windows, in blocks")})


def _rank_of_attention(study: Study) -> Part:
    curves = [energy_of(one) for one in study.passed]
    rows = []
    for layer, curve in enumerate(curves):
        ranks = effective_rank(curve).double()
        rows.append({"layer": layer + 1, "of": curve.shape[1], f"effective rank ({ENERGY:.0%})": float(ranks.mean()),
                     "smallest head": int(ranks.min()), "largest head": int(ranks.max())})  # fmt: skip
    return Part(rows, {"energy": draw.energy_curves([c.mean(0).numpy() for c in curves], ENERGY)})


def _linformer(study: Study) -> Part:
    """Error of attention of rank k against k, and the smallest k within the tolerance, by the spectrum."""
    one = study.passed[0]
    if isinstance(one.layer, LinformerAttention):
        raise UserError("error against k: this is a linformer; its attention has k columns already")
    curve = energy_of(one)
    ks = [k for k in (2**i for i in range(1, 12)) if k <= one.n_tokens]
    rows = [
        {"k": k, "best of rank k": rank_error(curve, k), "random projection": projection_error(one, k)}
        for k in ks
    ]
    smallest: dict[str, Any] = {
        "k": smallest_k(curve, TOLERANCE),
        "best of rank k": TOLERANCE,
        "note": "smallest k within",
    }
    return Part([*rows, smallest], {"error_by_k": draw.error_by_k(rows, TOLERANCE)})


def _queries(study: Study) -> Part:
    found = [queries(one) for one in study.passed]
    rows = [{"layer": n + 1, "mean M": float(q.m.mean()), "largest M": float(q.m.max()), "mean KL": float(q.kl.mean()),
             "active": q.share_active, "chosen by": "the layer" if q.chosen else "rank of M"}
            for n, q in enumerate(found)]  # fmt: skip
    return Part(rows, {"queries": _active_picture(study, found[0])} if study.has_bars else {})


def _active_picture(study: Study, found: Queries) -> Figure:
    title = "Queries of the first layer in the newest window"
    closes = study.panel.closes[study.rows, study.token_assets]
    active, m, kl = (one.double().numpy() for one in (found.active, found.m, found.kl))
    return draw.queries_on_price(study.times(study.rows), closes, active, m, kl, title)


def _graph(study: Study) -> Part:
    found = graph(study.passed)
    return Part(
        [
            {
                "density": found.density,
                "hops from the newest token to the oldest": found.hops,
                "layers": found.layers,
            }
        ]
    )


def _assets(study: Study) -> Part:
    """Which asset looks at which, at the newest moment."""
    names = study.panel.assets
    maps = asset_maps(study.model, study.passed)
    return Part(_map_rows(maps, names), {"assets": draw.asset_grid([one.numpy() for one in maps], names)})


def _map_rows(maps: Sequence[Tensor], names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "layer": layer + 1,
            "looks": names[a],
            **{f"at {names[b]}": float(one[a, b]) for b in range(len(names))},
        }
        for layer, one in enumerate(maps)
        for a in range(len(names))
    ]


def _levels(study: Study) -> Part:
    """Which level of the newest snapshot of a book looks at which."""
    names = study.model.token_levels()
    maps = level_maps(study.model, study.passed)
    return Part(_map_rows(maps, names), {"levels": draw.asset_grid([one.numpy() for one in maps], names)})


def _levels_that_matter(study: Study) -> Part:
    """The rise of the loss when a level's columns are exchanged between windows."""
    rows = study.table(study.effects.levels(block=max(study.horizon, 1)))
    return Part(
        rows, {"levels_that_matter": draw.effect_bars(rows, "Levels exchanged between windows, in blocks")}
    )


PARTS: Mapping[str, Callable[[Study], Part]] = {
    "Attention of the newest window": _attention,
    "The newest position over time": _newest_over_time,
    "Most attended bars": _most_attended,
    "Pattern": _pattern,
    "Global tokens": _global_tokens,
    "Occlusion by distance": _occlusion,
    "Features": _features,
    "Effective rank": _rank_of_attention,
    "Error of rank k": _linformer,
    "Queries": _queries,
    "Graph": _graph,
    "Assets": _assets,
    "Levels": _levels,
    "Levels that matter": _levels_that_matter,
}
