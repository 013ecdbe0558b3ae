# %% [markdown]
"""
# 2 · Architecture: what attention sees, and the model built on it

Nine mechanisms answer the same question, which earlier day matters to this one, at different cost. Here they stand side
by side on a real window of the S&P 500; then one of them becomes a model, which begins where the honest baseline ends.

    python examples/02_architecture.py --attention longformer
"""

# %%
import argparse
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import matplotlib.pyplot as plt
import numpy as np
import torch

import longtape as lt
from longtape.attention import MECHANISMS, attention_weights
from longtape.experiment import parse_experiment
from longtape.models.registry import build_model
from longtape.report.text import table
from longtape.training.batches import BatchSource
from longtape.workflow.data import RunData

parser = argparse.ArgumentParser(
    description="What attention mechanisms see, and the model built on one of them."
)
parser.add_argument("--attention", default="bigbird", choices=list(MECHANISMS), help="mechanism of the model")
parser.add_argument("--out", type=Path, help="new folder for what is written (default: a temporary one)")
parser.add_argument("--quick", action="store_true", help="windows of 128 days instead of 1,024")
args = parser.parse_args(
    [] if "ipykernel" in sys.modules else None
)  # in a notebook: write options into the []
if args.out and args.out.exists():
    parser.error(f"--out {args.out}: is there already; name a new folder")
out = args.out or Path(tempfile.mkdtemp(prefix="longtape-"))
out.mkdir(parents=True, exist_ok=True)
lookback = 128 if args.quick else 1024

# %% [markdown]
# ## An experiment, as far as its data
# An experiment is one document. `RunData` loads its bars and makes panel and split of them.

# %%
document = {
    "data": {"source": "sample", "symbols": ["SP500"]},
    "features": ["log_return", "volatility(20)", "rsi(14)", "volume_ratio(20)", "range", "weekday"],
    "targets": ["return(5)", "volatility(5)"],
    "model": {"lookback": lookback, "attention": args.attention, "d_model": 32, "n_heads": 2, "n_layers": 2},
}
data = RunData.of(parse_experiment(document, "02_architecture.py"))
panel, split = data.panel, data.split
print(data.summary())

# %% [markdown]
# ## Nine mechanisms on one window
# Every layer takes and gives [batch, tokens, d_model] and has a definition that is slow and easy to read:
# `layer.reference(x)`. What a fixed pattern sees follows from the positions alone; the others choose by content.

# %%
torch.manual_seed(0)
window = torch.from_numpy(panel.values[None, -lookback:])
window = (window - window.mean(1, keepdim=True)) / window.std(1, keepdim=True)
x = window @ torch.randn(window.shape[2], 32) / window.shape[2] ** 0.5  # stands for an embedding [1, N, 32]
options = {
    "local": {"window_size": 65},
    "longformer": {"window_size": 65, "n_global": 8},
    "bigbird": {"block_size": 16},
    "linformer": {"k": 32, "seq_len": lookback},
    "reformer": {"bucket_size": 32},
}
rows, maps = [], {}
with torch.no_grad():
    for name in MECHANISMS:
        layer = lt.build_attention(name, d_model=32, n_heads=2, **options.get(name, {})).eval()
        layer(x)  # the first call compiles
        began = perf_counter()
        y = layer(x)
        took = perf_counter() - began
        weights = attention_weights(layer, x)[0].mean(0)  # [N, N], of Linformer [N, k]; the mean of the heads
        seen = (weights > 1e-6).float().mean().item() * weights.shape[1]
        error = (y - layer.reference(x)).abs().max().item()
        rows.append(
            {"mechanism": name, "looks at, tokens": seen, "off the definition": error, "took, ms": 1e3 * took}
        )
        maps[name] = weights
print(table(rows, f"One forward pass over {lookback:,} days"))

# %%
said = {
    "full": "every pair",
    "flash": "every pair, in tiles that fit the cache",
    "local": "neighbours",
    "longformer": "neighbours and global tokens",
    "bigbird": "blocks: neighbours, global, random",
    "linformer": "32 learnt mixtures of all days",
    "performer": "every pair, by random features",
    "reformer": "those that fall into the same bucket",
    "probsparse": "few active queries, for the rest a mean",
}
figure, panels = plt.subplots(3, 3, figsize=(9, 9.4), layout="constrained")
for axes, (name, weights) in zip(panels.flat, maps.items(), strict=True):
    shade = (weights / weights.amax()).sqrt()[None]
    shade = torch.nn.functional.adaptive_max_pool2d(shade, (256, min(256, weights.shape[1])))[0]
    axes.imshow(shade.numpy(), cmap="Blues", aspect="auto", interpolation="nearest")
    axes.set(title=name, xticks=[], yticks=[])
    axes.set_xlabel(said[name], fontsize=9)
figure.suptitle(
    f"Who looks (down) at whom (across) in {lookback:,} days, oldest first: darker is more weight",
    fontsize=11,
)
figure.savefig(out / "mechanisms.png", dpi=120)
print(f"picture: {out / 'mechanisms.png'}")

# %% [markdown]
# ## The model
# Scaled inputs, an embedding, layers of attention, a head for each kind of target. Heads begin at zero, in front of a
# baseline that is fitted in closed form (ridge for returns, log-HAR for volatility): the untrained network *is* the
# baseline, and training has to improve on it.

# %%
model = build_model(data.experiment.model, data.pipeline.inputs(panel, split.train))
model.fit(panel, split.train, split.validation)
sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
print(
    table([{"part": name, "weights to train": size} for name, size in sizes.items() if size], "The network")
)

# %%
batch = BatchSource(model, panel).batch(split.test[-4:])
with torch.no_grad():
    mean = model.eval()(batch).mean()
print(
    f"windows {list(batch.x.shape)} → forecasts {list(mean.shape)}: return and volatility of the next five days"
)
shown = [{"return(5) %": 100 * r, "volatility(5) %": 100 * v} for r, v in np.asarray(mean).tolist()]
print(table(shown, "The untrained network's forecasts: those of the baselines"))
