# %% [markdown]
"""
# 1 · Data: from candles to what a model may see

Twenty years of the S&P 500, day by day: stored, checked, turned into features that cannot see the future, and split
so that no label of one period reaches into the next.

    python examples/01_data.py            # takes seconds; needs the extra `sample`
"""

# %%
import argparse
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import longtape as lt
from longtape.features.build import FeaturesConfig, build
from longtape.features.splits import SplitConfig, chronological
from longtape.market.quality import check
from longtape.market.sources import sample
from longtape.report.text import table

parser = argparse.ArgumentParser(description="From candles to features, targets and a split.")
parser.add_argument("--out", type=Path, help="new folder for what is written (default: a temporary one)")
parser.add_argument("--quick", action="store_true", help="the newest five years only")
args = parser.parse_args(
    [] if "ipykernel" in sys.modules else None
)  # in a notebook: write options into the []
if args.out and args.out.exists():
    parser.error(f"--out {args.out}: is there already; name a new folder")
out = args.out or Path(tempfile.mkdtemp(prefix="longtape-"))
out.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## Candles in a store
# `timestamp` is when a bar opens, in UTC. A store keeps Parquet files, month by month or year by year, and takes each
# bar once: what is appended again is known already. Candles of your own come from `lt.read_bars("candles.csv", …)`.

# %%
bars = sample.load("SP500")
bars = bars.between("2014-01-01") if args.quick else bars
store = lt.Store(out / "store")
store.append(bars)
print(f"appended again: {store.append(bars).added} new bars")
bars = store.read("SP500", "1d")
print(table(bars.frame.tail(3).drop("adj_close").to_dicts(), "The newest days of the store"))

# %% [markdown]
# ## Are they sound?
# Gaps are counted against the calendar of the exchange: weekends and holidays are no gaps.

# %%
report = check(bars)
print(f"sound: {report.ok}; bars missing while the market was open: {report.missing}")
for finding in report.findings:
    print(f"  {finding.severity}: {finding.meaning} ({finding.count} times)")

# %% [markdown]
# ## Features and targets
# Each is written as an expression. A row of the panel holds what is known at the close of its bar; a target is what
# came after, and knows when it was known.

# %%
wanted = FeaturesConfig(
    features=["log_return", "volatility(20)", "rsi(14)", "volume_ratio(20)", "weekday"],
    targets=["return(5)", "volatility(5)"],
)
panel = build([bars], wanted)
newest = panel.to_frame().tail(7).drop("weekday.sin", "weekday.cos", "SP500 volume_ratio(20)")
print(table(newest.to_dicts(), "The newest rows: their targets are not known yet"))

# %% [markdown]
# **Nothing sees the future.** Cut the data off in the middle: the rows before the cut have the same bits. (`longtape
# audit` does this, and more, to a whole experiment.)

# %%
middle = len(panel) // 2
cut = build([bars.with_frame(bars.frame.head(middle))], wanted)
assert np.array_equal(cut.values, panel.values[:middle], equal_nan=True)
print(
    f"{middle:,} rows are the same to the last bit without the {len(panel) - middle:,} days that came after"
)

# %% [markdown]
# ## A split by time
# Windows of a model may look back into earlier periods, labels never forward into later ones: the last days of each
# period, whose labels end in the next, are left out. Intervals are calibrated on days that serve nothing else. The
# first window begins when every feature has seen enough (`panel.warm_up`) and ends a lookback later.

# %%
split = chronological(panel, lookback=256, config=SplitConfig(train=0.6, validation=0.2))
periods = {name: getattr(split, name) for name in ("train", "validation", "calibration", "test")}
for name, rows in periods.items():
    first, last = panel.timestamps[rows[[0, -1]]].astype("datetime64[ms]").astype("datetime64[D]")
    print(f"{name:12} {len(rows):5,} windows, the first ends on {first}, the last on {last}")

# %%
days = panel.timestamps.astype("datetime64[ms]")
figure, (top, low) = plt.subplots(
    2, 1, sharex=True, figsize=(9, 5.5), layout="constrained", height_ratios=[2, 1]
)
top.plot(days, panel.closes[:, 0], color="black", linewidth=0.8)
top.set(ylabel="close", title="S&P 500: what is trained on, and what is kept to judge by")
for color, (name, rows) in zip(
    ("tab:blue", "tab:orange", "tab:green", "tab:red"), periods.items(), strict=True
):
    top.axvspan(days[rows[0]], days[rows[-1]], color=color, alpha=0.15, linewidth=0, label=name)
top.legend(loc="upper left", frameon=False, ncols=4)
seen, came = 100 * panel.values[:, 1], 100 * panel.targets[:, 1] / np.sqrt(5)
low.plot(days, came, color="tab:gray", linewidth=0.6, label="a day of the next 5: the target volatility(5)")
low.plot(
    days, seen, color="tab:blue", linewidth=0.9, label="a day of the last 20: the feature volatility(20)"
)
low.set_ylabel("volatility, %")
low.legend(loc="upper left", frameon=False, fontsize=8)
figure.savefig(out / "data.png", dpi=120)
print(f"picture: {out / 'data.png'}")
