# %% [markdown]
"""
# 5 · Backtest: what a forecast is worth after costs

Forecasts become weights, weights become orders at the next open, and costs are paid. Then the sceptic's questions: what
would buying and holding have given, what would chance have given, and how much cost does the gain bear?

    python examples/05_backtest.py --attention linformer
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
from longtape.backtest import judge
from longtape.backtest.signals import SignalConfig, weights_from_forecast
from longtape.experiment import parse_experiment
from longtape.report.text import table

parser = argparse.ArgumentParser(description="Trade forecasts with costs, and judge what came of it.")
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
# ## Forecasts of the test period
# Trained until 2010, tuned and calibrated until 2012, forecast from then on: nothing below has seen its own future.

# %%
options = {"bigbird": {"block_size": 32}, "local": {"window_size": 65}, "longformer": {"window_size": 65}}
document = {
    "name": "Backtest",
    "data": {"source": "sample", "symbols": ["SP500"]},
    "features": ["log_return", "volatility(20)", "rsi(14)", "volume_ratio(20)", "range", "weekday"],
    "targets": ["return(5)", "volatility(5)"],
    "split": {"train_until": "2010-01-01", "validation_until": "2012-01-01"},
    "model": {
        "lookback": 64 if args.quick else 256,
        "attention": args.attention,
        "attention_options": options.get(args.attention, {}),
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
    },
    "training": {"epochs": 1 if args.quick else 3, "stride": 16 if args.quick else 2, "learning_rate": 5e-4},
}
run = lt.train(parse_experiment(document, "05_backtest.py"), out / "run")
forecasts = run.forecast(history=True)

# %% [markdown]
# ## From forecasts to weights
# A weight is the share of the equity to hold, decided at a bar's close. `threshold` is long above zero and short below;
# a forecast over five days is held in five tranches, so that overlapping returns are counted once.

# %%
signal = SignalConfig(name="threshold", target="return(5)", holding="ladder")
weights = weights_from_forecast(forecasts, signal, periods_per_year=252)
print(table(weights.tail(3).to_dicts(), "The newest weights"))

# %% [markdown]
# ## The account
# Any frame of weights can be traded, from longtape or not. Orders fill at the next open, never on the bar that decided.

# %%
bars = [one.between(weights["timestamp"][0]) for one in run.data.bars]
costs = lt.Costs(fee=0.0005)  # 5 bp of the traded value, a side; what is not named is zero
result = lt.run_backtest(weights, bars, costs=costs)
print(table([result.account], "Where the money went"))
print(table(result.trades.tail(3).to_dicts(), "The newest closed trades"))

# %% [markdown]
# ## The judgement
# On the same bars and terms: buy & hold, doing nothing, momentum, mean reversion; 200 random strategies with the same
# turnover and exposure; bootstrap samples; other costs. "No edge after costs" is a result, and the usual one.

# %%
judged = judge(result)
everyone = {"longtape": result, **judged.benchmarks}
measures = ("annual_return", "volatility", "sharpe", "max_drawdown", "turnover", "costs")
print(
    table(
        [{"strategy": n, **{m: r.metrics[m] for m in measures}} for n, r in everyone.items()], "After costs"
    )
)
print(table(judged.costs.rows, "The same at other costs"))
print("\n".join(f"- {sentence}" for sentence in judged.verdict))

# %%
times = result.equity["timestamp"].to_numpy()
figure, (top, low) = plt.subplots(
    2, 1, sharex=True, figsize=(9, 6), layout="constrained", height_ratios=[2.4, 1]
)
band = np.quantile(judged.random.equity, (0.05, 0.95), axis=0)
top.fill_between(
    times[judged.random.bars], *band, color="gray", alpha=0.2, linewidth=0, label="90 % of random strategies"
)
for color, (name, one) in zip(("tab:blue", "black"), list(everyone.items())[:2], strict=True):
    curve = one.history.equity / one.initial_capital
    top.plot(times, curve, color=color, linewidth=1.2, label=name)
    low.plot(times, 100 * (curve / np.maximum.accumulate(curve) - 1), color=color, linewidth=0.8)
top.set(title="S&P 500, after 5 bp a side", ylabel="equity, start = 1")
top.legend(frameon=False, loc="upper left")
low.set_ylabel("drawdown, %")
figure.savefig(out / "backtest.png", dpi=120)
print(f"picture: {out / 'backtest.png'}")

# %% [markdown]
# Everything of this example, and more, is on one page: `run.report()` writes report.html into the run's folder.
