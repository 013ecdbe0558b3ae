# %% [markdown]
"""
# Informer: many steps in one pass

A decoder with a token for each day to come forecasts all of them at once, instead of feeding its own forecasts back
step by step. Here: the log return to each of the next twenty closes, on a simulated market in which what happened
twenty days ago comes back. The further the horizon, the more of that is in the path, which the interval has to tell.

    python examples/informer_many_steps.py --attention full
"""

# %%
import argparse
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import longtape as lt
from longtape.experiment import parse_experiment
from longtape.market.sources.simulate import Simulation, simulate
from longtape.report.text import table

parser = argparse.ArgumentParser(
    description="Forecast twenty steps at once with an Informer, on a simulated market."
)
masked = ["probsparse", "full", "flash", "local"]  # those whose decoder can hide later steps
parser.add_argument(
    "--attention", default="probsparse", choices=masked, help="mechanism of encoder and decoder"
)
parser.add_argument("--out", type=Path, help="new folder for what is written (default: a temporary one)")
parser.add_argument(
    "--quick", action="store_true", help="an epoch on few windows: shows that it runs, nothing else"
)
args = parser.parse_args(
    [] if "ipykernel" in sys.modules else None
)  # in a notebook: write options into the []
if args.out and args.out.exists():
    parser.error(f"--out {args.out}: is there already; name a new folder")
out = args.out or Path(tempfile.mkdtemp(prefix="longtape-"))

# %% [markdown]
# ## A market with a memory of twenty days
# u_t = ρ·u_{t−20} + √(1 − ρ²)·z_t, ρ = 0.7: of each return 49 % of the variance can be known twenty days ahead. Real
# markets are not like that.

# %%
steps = 20
market = simulate(8_000, Simulation(lag=steps, strength=0.7, seed=1), interval="1d", symbol="SIM1")
store = lt.Store(out / "store")
store.append(market.bars)

# %% [markdown]
# ## The model
# The encoder halves its length from layer to layer (distilling); ProbSparse attention lets only the queries look that
# have something to look for. The decoder begins with the newest `label_len` days and zeros for those to come, of which
# the calendar alone is known.

# %%
document = {
    "name": "Informer",
    "data": {"source": "store", "store": str(out / "store"), "symbols": ["SIM1"], "interval": "1d"},
    "features": ["log_return", "volatility(20)"],
    "targets": [f"path({steps})"],
    "split": {"train": 0.7, "validation": 0.15},
    "model": {
        "kind": "informer",
        "lookback": 40,
        "label_len": 20,
        "attention": args.attention,
        "attention_options": {"window_size": 9} if args.attention == "local" else {},
        "d_model": 32,
        "n_heads": 2,
        "n_layers": 2,
    },
    "training": {"epochs": 1 if args.quick else 5, "stride": 16 if args.quick else 1, "learning_rate": 1e-3},
    "backtest": {"signal": {"target": f"path({steps})", "horizon": steps}},
    "forecast": {"level": 0.9},
}
run = lt.train(parse_experiment(document, "informer_many_steps.py"), out / "run")
print(run.training_table())

# %% [markdown]
# ## How far does it see?
# R² against a forecast of zero, step by step, beside the best there can be: the sum of the returns that the truth
# behind the simulation knows already.

# %%
frame = run.forecast(history=True)
known = frame.drop_nulls("actual")
returns, foreseen = market.truth["log_return"].to_numpy(), market.truth["mean"].to_numpy()
opens = market.bars.timestamps
rows = []
for step in range(1, steps + 1):
    own = known.filter(known["horizon"] == step)
    at = np.searchsorted(opens, own["timestamp"].dt.timestamp("ms").to_numpy())
    best = sum(foreseen[at + k] for k in range(1, step + 1))
    actual, mean = own["actual"].to_numpy(), own["mean"].to_numpy()
    inside = (actual >= own["lower"].to_numpy()) & (actual <= own["upper"].to_numpy())
    r2 = {
        name: 1 - np.mean((actual - f) ** 2) / np.mean(actual**2)
        for name, f in (("model", mean), ("truth", best))
    }
    rows.append(
        {
            "step": step,
            "R² of the model": r2["model"],
            "R² of the truth": r2["truth"],
            "covered": inside.mean(),
        }
    )
print(table(rows[:1] + rows[4::5], "Test days; of the intervals 90 % is meant to be covered"))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained", width_ratios=[1.4, 1])
for origin in known["timestamp"].unique().sort()[::60][-5:]:
    one = known.filter(known["timestamp"] == origin).sort("horizon")
    start = int(np.searchsorted(opens, origin.timestamp() * 1000))
    days = start + np.r_[0, one["horizon"].to_numpy()]
    close = market.bars.column("close")[start]
    lower, mean, upper = (
        close * np.exp(np.r_[0, one[name].to_numpy()]) for name in ("lower", "mean", "upper")
    )
    left.fill_between(days, lower, upper, color="tab:blue", alpha=0.2, linewidth=0)
    left.plot(days, mean, color="tab:blue", linewidth=1.4)
shown = slice(int(days[0]) - 260, int(days[-1]) + 1)
left.plot(np.arange(len(opens))[shown], market.bars.column("close")[shown], color="black", linewidth=0.8)
left.set(title="Five forecasts of twenty days, and what came", xlabel="day of the simulation", ylabel="close")
for name, color in (("R² of the truth", "gray"), ("R² of the model", "tab:blue")):
    right.plot(
        [row["step"] for row in rows],
        [row[name] for row in rows],
        "o-",
        color=color,
        markersize=3,
        label=name,
    )
right.axhline(0, color="gray", linewidth=0.6)
right.set(title="How far it sees", xlabel="step")
right.legend(frameon=False)
figure.savefig(out / "informer.png", dpi=120)
print(f"picture: {out / 'informer.png'}")
