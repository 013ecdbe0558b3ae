"""Interactive figures of a run. Each takes frames or plain rows and gives a plotly figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
import polars as pl

INK, MUTED, ACCENT, WARN, BAND = "#1b2733", "#8a97a5", "#0b6bcb", "#c0392b", "rgba(11,107,203,0.15)"
PALETTE = (ACCENT, "#7f8c8d", "#d68910", "#148f77", "#884ea0", "#a04000")
_MAX_POINTS = 6_000  # more cannot be seen on a screen


def _figure(title_x: str, title_y: str, height: int = 340) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(
        height=height,
        margin={"l": 60, "r": 20, "t": 20, "b": 45},
        template="plotly_white",
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        legend={"orientation": "h", "y": 1.08, "x": 0},
        hovermode="x unified",
        xaxis_title=title_x,
        yaxis_title=title_y,
    )
    return figure


def _thin(frame: pl.DataFrame) -> pl.DataFrame:
    """At most `_MAX_POINTS` rows, the last one kept."""
    step = -(-frame.height // _MAX_POINTS)
    if step <= 1:
        return frame
    return frame[[*range(0, frame.height - 1, step), frame.height - 1]]


def _line(
    figure: go.Figure,
    x: Sequence[Any],
    y: Sequence[Any],
    name: str,
    color: str,
    width: float = 1.6,
    **more: Any,
) -> None:
    figure.add_trace(
        go.Scatter(x=x, y=y, name=name, mode="lines", line={"color": color, "width": width, **more})
    )


def equity(curves: Mapping[str, pl.DataFrame]) -> go.Figure:
    """Equity of the strategy (first) and what stands beside it, each starting at 1. Frames: timestamp, equity."""
    figure = _figure("time (UTC)", "equity, start = 1")
    for (name, frame), color in zip(curves.items(), PALETTE, strict=False):
        thin = _thin(frame)
        y = (thin["equity"] / frame["equity"][0]).to_list()
        _line(figure, thin["timestamp"].to_list(), y, name, color, 2.2 if color == ACCENT else 1.3)
    return figure


def drawdown(frame: pl.DataFrame) -> go.Figure:
    """Loss from the highest equity so far, %. Frame: timestamp, equity."""
    figure = _figure("time (UTC)", "drawdown, %", 260)
    falls = frame.with_columns(fall=100 * (pl.col("equity") / pl.col("equity").cum_max() - 1))
    thin = _thin(falls)
    figure.add_trace(
        go.Scatter(x=thin["timestamp"].to_list(), y=thin["fall"].to_list(), fill="tozeroy", name="drawdown",
                   line={"color": WARN, "width": 1})
    )  # fmt: skip
    return figure


def return_distribution(frame: pl.DataFrame) -> go.Figure:
    """Histogram of the account's returns per bar in which it moved, %, with the normal of the same moments."""
    returns = 100 * frame["equity"].pct_change().drop_nulls().to_numpy()
    returns = returns[returns != 0]
    figure = _figure("return per bar, % (bars without a position left out)", "density", 300)
    if len(returns) < 2:
        figure.add_annotation(
            text="no bar with a position", showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper"
        )
        return figure
    reach = float(np.quantile(np.abs(returns), 0.995)) or 1.0
    figure.add_trace(
        go.Histogram(x=np.clip(returns, -reach, reach), nbinsx=80, histnorm="probability density",
                     name="returns (tails gathered at the edges)", marker_color=ACCENT, opacity=0.75)
    )  # fmt: skip
    grid = np.linspace(-reach, reach, 200)
    mean, deviation = returns.mean(), returns.std()
    normal = np.exp(-0.5 * ((grid - mean) / deviation) ** 2) / (deviation * np.sqrt(2 * np.pi))
    _line(figure, grid.tolist(), normal.tolist(), "normal of the same moments", MUTED)
    return figure


def forecast_fan(forecast: pl.DataFrame, level: float, percent: bool) -> go.Figure:
    """Forecasts with their interval against the time the label is known, and what happened. One target's rows."""
    figure = _figure("end of the horizon (UTC)", "%, over the horizon" if percent else "value")
    scale = 100.0 if percent else 1.0
    tail = forecast.tail(400)
    time = tail["end"].to_list()
    upper, lower, mean = ((scale * tail[name]).to_list() for name in ("upper", "lower", "mean"))
    _line(figure, time, upper, f"{level:.0%} interval", BAND, 0)
    figure.add_trace(
        go.Scatter(
            x=time, y=lower, fill="tonexty", fillcolor=BAND, line={"width": 0}, showlegend=False, name="lower"
        )
    )
    figure.data[0].update(showlegend=False)
    figure.data[1].update(showlegend=True, name=f"{level:.0%} interval")
    actual = (scale * tail["actual"]).to_list()
    _line(figure, time, actual, "what happened", INK, 1.2)
    _line(figure, time, mean, "forecast", ACCENT, 2)
    future = tail.filter(pl.col("actual").is_null())
    if future.height:
        figure.add_vrect(
            x0=future["end"][0], x1=future["end"][-1], fillcolor="#f2d7a0", opacity=0.35, line_width=0
        )
    return figure


def weights_decided(forecast: pl.DataFrame) -> go.Figure:
    """The share of the equity that was decided on at each origin. One target's rows."""
    figure = _figure("decided at (UTC)", "share of the equity, %")
    tail = forecast.tail(400)
    _line(figure, tail["known_at"].to_list(), (100 * tail["mean"]).to_list(), "weight", ACCENT, 2)
    return figure


def coverage_by_horizon(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Share of labels inside their interval against the horizon, bounds of a block bootstrap, and the level that it
    should be. Rows: symbol, target, horizon, level, coverage, from, to.
    """
    figure = _figure("horizon, bars", "coverage, %", 320)
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(f"{row['symbol']} {row['target']}, {row['level']:.0%}", []).append(row)
    for color, (name, own) in zip(PALETTE * len(groups), groups.items(), strict=False):
        shares = [100 * row["coverage"] for row in own]
        above = [_reach(100 * row["to"] - share) for row, share in zip(own, shares, strict=True)]
        below = [_reach(share - 100 * row["from"]) for row, share in zip(own, shares, strict=True)]
        bounds = {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1}
        figure.add_trace(
            go.Scatter(x=[row["horizon"] for row in own], y=shares, error_y=bounds, name=name, mode="markers",
                       marker={"color": color, "size": 7})
        )  # fmt: skip
    for level in sorted({row["level"] for row in rows}):
        figure.add_hline(y=100 * level, line_dash="dot", line_color=MUTED)
    return figure


def _reach(distance: float) -> float:
    """How far a bar reaches: nothing where the bootstrap says nothing."""
    return max(distance, 0.0) if np.isfinite(distance) else 0.0


def learning_curve(history: Sequence[Mapping[str, float]]) -> go.Figure:
    """Training and validation loss per epoch; epoch 0 is the skip alone."""
    figure = _figure("epoch (0 = closed-form skip alone)", "loss", 300)
    epochs = [entry["epoch"] for entry in history]
    trained = [(entry["epoch"], entry["train"]) for entry in history if "train" in entry]
    _line(figure, [e for e, _ in trained], [v for _, v in trained], "training (with dropout)", MUTED)
    _line(figure, epochs, [entry["validation"] for entry in history], "validation", ACCENT, 2.2)
    best = min(history, key=lambda entry: entry["validation"])
    figure.add_trace(
        go.Scatter(x=[best["epoch"]], y=[best["validation"]], mode="markers", name="kept",
                   marker={"color": WARN, "size": 11, "symbol": "star"})
    )  # fmt: skip
    figure.update_xaxes(dtick=1)
    return figure


def random_sharpes(draws: npt.NDArray[np.float64], own: float) -> go.Figure:
    """Histogram of the Sharpe ratios of random strategies, and where the strategy stands (a line)."""
    figure = _figure("Sharpe ratio", "random strategies", 280)
    known = draws[np.isfinite(draws)]
    figure.add_trace(
        go.Histogram(x=known, nbinsx=30, marker_color=MUTED, name="random strategies", opacity=0.8)
    )
    if np.isfinite(own):
        figure.add_vline(x=own, line_color=ACCENT, line_width=3)
    return figure


def bars(rows: Sequence[Mapping[str, Any]], x: str, y: str, unit: str) -> go.Figure:
    """One bar per row."""
    figure = _figure(x, unit, 280)
    heights: npt.NDArray[np.float64] = np.array([row[y] for row in rows], dtype=float)
    colors = [ACCENT if height >= 0 else WARN for height in heights]
    figure.add_trace(go.Bar(x=[str(row[x]) for row in rows], y=heights, marker_color=colors, name=y))
    return figure


def search_history(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Validation loss of every trial (a dot; hollow where it was pruned) and the best so far (a line)."""
    figure = _figure("trial", "validation loss", 320)
    numbers = [row["trial"] for row in rows]
    losses = [row["validation"] for row in rows]
    symbols = ["circle-open" if row["pruned"] else "circle" for row in rows]
    figure.add_trace(
        go.Scatter(
            x=numbers, y=losses, mode="markers", name="trial", marker={"color": MUTED, "symbol": symbols}
        )
    )
    _line(figure, numbers, np.minimum.accumulate(losses).tolist(), "best so far", ACCENT, 2.2)
    return figure


def search_slice(rows: Sequence[Mapping[str, Any]], field: str) -> go.Figure:
    """Validation loss against the value of one searched field; darker: later."""
    figure = _figure(field, "validation loss", 280)
    values = [row[field] for row in rows]
    plain = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    figure.add_trace(
        go.Scatter(
            x=values if plain else [str(value) for value in values],
            y=[row["validation"] for row in rows],
            mode="markers",
            name="trial",
            marker={"color": [row["trial"] for row in rows], "colorscale": "Blues", "size": 9},
        )
    )
    return figure
