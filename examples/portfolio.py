# %% [markdown]
"""
# A portfolio: several assets at once, on a market whose truth is known

Real stocks may not ship with the package, so these are simulated, with a lag planted in each: what happened five days
ago says a quarter of the variance of today. **Nothing here says anything of real markets**: the example shows that
the model finds what is there, how much of it, and what costs leave of it.

    python examples/portfolio.py --attention full
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

parser = argparse.ArgumentParser(description="Forecast and trade several simulated assets with one model.")
joint = [
    "full",
    "flash",
    "local",
    "bigbird",
    "performer",
]  # those for which the order of assets cannot matter
parser.add_argument("--attention", default="flash", choices=joint, help="mechanism of the model")
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
# ## Six assets, and their truth
# With u the standardised return and z normal: u_t = ½·u_{t−5} + √¾·z_t. Who knows this explains a quarter of the
# variance; nobody can explain more.

# %%
markets = {
    f"SIM{n}": simulate(3_000, Simulation(lag=5, strength=0.5, seed=n), interval="1d", symbol=f"SIM{n}")
    for n in range(1, 7)
}
names = list(markets)
store = lt.Store(out / "store")
for market in markets.values():
    store.append(market.bars)
print(store)

# %% [markdown]
# ## One model for all
# A token for each asset and day. All assets share the weights, so permuted assets give permuted forecasts. `rank` goes
# long where most is expected and short where least, with half of the equity each: the market's own way does not matter.

# %%
document = {
    "name": "Portfolio",
    "data": {"source": "store", "store": str(out / "store"), "symbols": names, "interval": "1d"},
    "features": ["log_return", "lag(log_return, 4)", "volatility(20)", "rank(log_return)"],
    "targets": ["return(1)"],
    "split": {"train": 0.6, "validation": 0.2},
    "model": {
        "kind": "portfolio",
        "lookback": 16,
        "attention": args.attention,
        "attention_options": {"block_size": 3, "n_random": 1, "n_global": 0}
        if args.attention == "bigbird"
        else {},
        "d_model": 16,
        "n_heads": 2,
        "n_layers": 1,
    },
    "training": {"epochs": 1 if args.quick else 4, "stride": 16 if args.quick else 1, "learning_rate": 1e-3},
    "backtest": {
        "signal": {"name": "rank", "target": "return(1)", "options": {"quantile": 0.34}, "holding": "newest"},
        "costs": {"fee": 0.0005},
    },
}
run = lt.train(parse_experiment(document, "portfolio.py"), out / "run")
result = run.backtest()

# %% [markdown]
# ## How much of it was found?
# The simulator keeps what could be known of each return before it happened: its forecasts are the best there can be.

# %%
rows = []
for name, market in markets.items():
    truth = market.truth.filter(market.truth["timestamp"] > result.equity["timestamp"][0])
    missed, moved = (truth["log_return"] - truth["mean"]).pow(2).sum(), truth["log_return"].pow(2).sum()
    own = run.results.skills[f"{name} return(1)"][0]["R² against zero"]
    rows.append({"asset": name, "R² of the model": own, "R² of who knows the truth": 1 - missed / moved})
print(table(rows, "Explained on the test days"))

# %% [markdown]
# ## What is left after costs
# A daily change of the whole portfolio is dear. The break-even cost says how much of it the gain would bear.

# %%
judged = run.results.judgement
print(table(judged.costs.rows, "After costs, in basis points a side"))
print("\n".join(f"- {line}" for line in judged.verdict))

# %% [markdown]
# The verdict calls such figures implausible, and right it is: a real market does not have them.

# %%
times = result.equity["timestamp"].to_numpy()
figure, (top, low) = plt.subplots(2, 1, figsize=(9, 6), layout="constrained", height_ratios=[2, 1])
top.plot(
    times,
    result.history.equity / result.initial_capital,
    color="tab:blue",
    label="long and short, after 5 bp a side",
)
hold = judged.benchmarks["buy & hold"]
top.plot(
    times,
    hold.history.equity / hold.initial_capital,
    color="black",
    linewidth=1,
    label="an equal share of each",
)
top.set(ylabel="equity, start = 1", title="Simulated: the lag is planted, so there is something to find")
top.legend(frameon=False, loc="upper left")
closes = np.stack([one.between(int(result.clock[0])).column("close") for one in run.data.bars])
held = result.positions.select(names).to_numpy().T * closes / result.history.equity
drawn = low.imshow(held[:, -60:], cmap="RdBu", vmin=-0.3, vmax=0.3, aspect="auto", interpolation="nearest")
low.set(
    yticks=range(len(names)), yticklabels=names, xlabel="the last 60 days", title="Share of the equity held"
)
figure.colorbar(drawn, ax=low)
figure.savefig(out / "portfolio.png", dpi=120)
print(f"picture: {out / 'portfolio.png'}")
