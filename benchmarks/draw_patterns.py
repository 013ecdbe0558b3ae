"""Draw what a query sees under each mechanism, for docs/attention.md: python benchmarks/draw_patterns.py [FOLDER]."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

from longtape.attention import MECHANISMS, attention_weights, build_attention

N = 64
OPTIONS = {
    "full": {},
    "flash": {"causal": True},
    "local": {"window_size": 9},
    "longformer": {"window_size": 9, "n_global": 3, "global_tokens": "spaced"},
    "bigbird": {"block_size": 4, "window_size": 3, "n_random": 2, "n_global": 2},
    "linformer": {"k": 16},
    "performer": {},
    "reformer": {"bucket_size": 8, "n_hashes": 2},
    "probsparse": {"factor": 2},
}
CAPTIONS = {
    "full": "every query sees every key",
    "flash": "the same function; here causal",
    "local": "window 9",
    "longformer": "window 9, 3 spaced global tokens",
    "bigbird": "blocks of 4: window 3, 2 random,\nfirst and last global",
    "linformer": "weights on 16 mixtures of keys",
    "performer": "weights by random features",
    "reformer": "2 rounds of hashing, buckets of 8",
    "probsparse": "active queries look, lazy ones\ntake the mean",
}


def picture(name: str) -> torch.Tensor:
    """What the first head of a layer sees, [N, N] (Linformer [N, k]) between 0 and 1."""
    torch.manual_seed(0)
    layer = build_attention(name, d_model=16, n_heads=2, seq_len=N, **OPTIONS[name]).eval()
    if layer.capabilities.fixed_pattern:
        return layer.visible_pairs(N).float()
    wave = torch.sin(torch.arange(N)[:, None] / torch.linspace(1.5, 12, 16))
    weights = attention_weights(layer, 3 * wave[None] + torch.randn(1, N, 16))[0, 0]
    return (weights / weights.amax()).sqrt()


def draw(name: str, folder: Path) -> None:
    """One small PNG."""
    seen = picture(name)
    figure = Figure(figsize=(2.6, 2.9), layout="constrained")
    axes = figure.subplots()
    axes.imshow(seen, cmap="Blues", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    axes.set_title(f"{name}\n{CAPTIONS[name]}", fontsize=8)
    axes.set_xlabel("mixture" if name == "linformer" else "key", fontsize=7)
    axes.set_ylabel("query", fontsize=7)
    axes.tick_params(labelsize=6)
    figure.savefig(folder / f"pattern_{name}.png", dpi=90, metadata={"Software": None})


def main() -> None:
    """Draw every mechanism."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs" / "images")
    folder.mkdir(parents=True, exist_ok=True)
    for name in MECHANISMS:
        draw(name, folder)


if __name__ == "__main__":
    main()
