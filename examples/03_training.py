# %% [markdown]
"""
# 3 · Training: from the baseline onwards

One experiment, trained and watched. Epoch 0 of the learning curve is the honest baseline, fitted in closed form; the
network is kept only where it does better on days that it was not trained on.

    python examples/03_training.py --attention performer
"""

# %%
import argparse
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

import longtape as lt
from longtape.attention import MECHANISMS
from longtape.experiment import parse_experiment
from longtape.report.text import table
from longtape.training.observers import Observer, StepReport

parser = argparse.ArgumentParser(description="Train a model on S&P 500 days and watch it.")
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
# ## The experiment
# The same document as an experiment file. What is left out has a default (`longtape config FILE` prints them all).

# %%
options = {"bigbird": {"block_size": 32}, "local": {"window_size": 65}, "longformer": {"window_size": 65}}
document = {
    "name": "Training",
    "seed": 0,
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
    "training": {"epochs": 1 if args.quick else 5, "stride": 16 if args.quick else 1, "learning_rate": 5e-4},
}
experiment = parse_experiment(document, "03_training.py")

# %% [markdown]
# ## Training, watched
# An observer is told of every step and every epoch; none of them changes a number. Ctrl-C stops between two steps, and
# `resume=True` goes on to the same numbers, bit for bit.


# %%
class Steps(Observer):
    """Keeps what every step reports."""

    def __init__(self) -> None:
        self.reports: list[StepReport] = []

    def on_step(self, report: StepReport) -> None:
        """A step is done."""
        self.reports.append(report)


steps = Steps()
run = lt.train(experiment, out / "run", observers=[steps])
print(run.training_table())

# %% [markdown]
# ## What was learnt
# Squared errors for returns, QLIKE for volatility, both free of their unit. The validation loss says whether what was
# learnt holds on later days. Markets are nearly noise, so most of the way the baseline is hard to beat.

# %%
(history,) = run.folder.histories
validation = [entry["validation"] for entry in history]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
left.plot([entry["epoch"] for entry in history], validation, "o-", color="tab:blue", label="network")
left.axhline(validation[0], color="tab:gray", linestyle=":", label="epoch 0: the closed-form baseline")
left.set(xlabel="epoch", ylabel="loss", title="On validation days")
left.legend(frameon=False, fontsize=8)
right.plot([one.number for one in steps.reports], [one.mean_loss for one in steps.reports], color="tab:blue")
right.set(xlabel="step", ylabel="mean loss of the epoch so far", title="On training days")
rate = right.twinx()
rate.plot([one.number for one in steps.reports], [one.rate for one in steps.reports], color="tab:orange")
rate.set_ylabel("learning rate", color="tab:orange")
figure.savefig(out / "training.png", dpi=120)
best = min(range(len(validation)), key=validation.__getitem__)
print(f"picture: {out / 'training.png'}")
print(f"kept: epoch {best}, validation loss {validation[best]:.4f} (baseline {validation[0]:.4f})")

# %% [markdown]
# ## Does it hold on the test days?
# These were never looked at until now. Each forecast stands beside zero, the last value and log-HAR; p is that of a
# test whether the difference could be luck.

# %%
scores = run.score().skills
for target, lines in scores.items():
    print(table(lines, f"Test days: {target}"), end="\n\n")
