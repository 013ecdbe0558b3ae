# %% [markdown]
"""
# 4 · Prediction and attention: what comes next, and what the model looked at

A trained model forecasts the next ten days with intervals; then it is asked how well its intervals held, which days
it looked at, and what its loss would be without them.

    python examples/04_prediction_and_attention.py --attention flash
"""

# %%
import argparse
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import longtape as lt
from longtape.attention import MECHANISMS
from longtape.experiment import parse_experiment
from longtape.explain.attention import record, row_weights
from longtape.report.text import table
from longtape.training.batches import BatchSource

parser = argparse.ArgumentParser(description="Forecast the next days, and look at what the model looked at.")
parser.add_argument("--attention", default="bigbird", choices=list(MECHANISMS), help="mechanism of the model")
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
# ## A trained run
# `path(10)` is the log return to each of the next ten closes: ten forecasts at once, each with its own interval.

# %%
options = {"bigbird": {"block_size": 32}, "local": {"window_size": 65}, "longformer": {"window_size": 65}}
document = {
    "name": "Prediction and attention",
    "data": {"source": "sample", "symbols": ["SP500"]},
    "features": ["log_return", "volatility(20)", "rsi(14)", "volume_ratio(20)", "range", "weekday"],
    "targets": ["path(10)", "volatility(10)"],
    "split": {"train_until": "2010-01-01", "validation_until": "2014-01-01"},
    "model": {
        "lookback": 64 if args.quick else 256,
        "attention": args.attention,
        "attention_options": options.get(args.attention, {}),
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
    },
    "training": {"epochs": 1 if args.quick else 3, "stride": 16 if args.quick else 2, "learning_rate": 5e-4},
    "forecast": {"level": 0.9},
    "backtest": {"signal": {"target": "path(10)", "horizon": 10}},  # which of the ten would be traded
}
lt.train(parse_experiment(document, "04_prediction_and_attention.py"), out / "run")
run = lt.load_run(out / "run")  # everything that a forecast needs lies in the folder

# %% [markdown]
# ## The next ten days
# `run.forecast()` looks past the end of the data; the days to come are those of the exchange's calendar.

# %%
newest = run.forecast()
path = newest.filter(newest["target"] == "path(10)")
columns = ["end", "horizon", "mean", "lower", "upper", "price"]
print(table(path.select(columns).to_dicts(), "The next ten closes: log return from the newest, and price"))

# %% [markdown]
# ## Did the intervals hold?
# They come from calibration days that served nothing else. On the test days 90 % of what happened should lie within;
# `from` and `to` say how far luck explains a difference.

# %%
covered = [row for row in run.score().coverage if row["horizon"] in (1, 2, 5, 10)]
print(table(covered, "Intervals on the test days"))

# %% [markdown]
# ## What it looked at
# Two questions that are often mixed up. *Weights*: where does the newest day look in the last layer? *Effect*: by how
# much does the loss on test days rise when days are taken away? A day can be looked at and not matter.

# %%
explained = run.explain(out / "explain", windows=16 if args.quick else 64)
effects = explained.parts["Occlusion by distance"]
print(table(effects, "Rise of the loss without some days, with its 95 % interval"))
print("\n".join(explained.notes))
print(f"all tables and {len(explained.pictures)} pictures: {out / 'explain'}")

# %%
model, panel = run.fitted.model, run.data.panel
passed = record(model, BatchSource(model, panel).batch(np.array([len(panel) - 1])))
heads = row_weights(passed[-1])[0]  # [heads, tokens]: the newest day's look at history

figure, (top, middle, low) = plt.subplots(
    3, 1, figsize=(9, 8.5), layout="constrained", height_ratios=[1.6, 1, 1]
)
times = panel.known_at[-60:].astype("datetime64[ms]")
ahead = np.r_[times[-1:], path["end"].dt.timestamp("ms").to_numpy().astype("datetime64[ms]")]
close = panel.closes[-1, 0]
lower, upper, price = (
    np.r_[close, close * np.exp(path[name].to_numpy())] for name in ("lower", "upper", "mean")
)
top.plot(times, panel.closes[-60:, 0], color="black", linewidth=1)
top.fill_between(ahead, lower, upper, color="tab:blue", alpha=0.2, linewidth=0, label="90 % interval")
top.plot(ahead, price, color="tab:blue", label="forecast")
top.set(title="S&P 500: the last sixty days and the next ten", ylabel="close")
top.legend(frameon=False, loc="lower left")
for number, weights in enumerate(heads.numpy(), 1):
    middle.plot(np.arange(len(weights))[::-1], weights, linewidth=0.8, label=f"head {number}")
middle.invert_xaxis()
where = "days before the newest" if passed[-1].over_tokens else "mixtures of days (no place in time)"
middle.set(title=f"Where the newest day looks ({args.attention}, last layer)", xlabel=where, ylabel="weight")
middle.set_ylim(0, 1.25 * float(heads.max()))  # room for the legend
middle.legend(frameon=False, ncols=4, fontsize=8, loc="upper left")
names = [row["without"] for row in effects]
low.barh(names, [row["effect"] for row in effects], color="tab:blue", alpha=0.5)
low.hlines(
    names, [row["from"] for row in effects], [row["to"] for row in effects], color="black", linewidth=1
)
low.axvline(0, color="gray", linewidth=0.8)
low.invert_yaxis()
low.set(
    title="What the loss would be without them", xlabel="rise of the loss on test days", ylabel="days before"
)
figure.savefig(out / "prediction.png", dpi=120)
print(f"picture: {out / 'prediction.png'}")
