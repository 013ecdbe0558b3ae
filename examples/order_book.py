# %% [markdown]
"""
# The order book: where the price goes in the next updates

A row is an update of the book, not a candle; the target is whether the mean mid price of the next updates is lower,
flat or higher. Books are not ours to give away and the simulator has none, so **name a recording of your own**: Parquet
with `timestamp, bid_price_1, bid_size_1, ask_price_1, ask_size_1, …`, a Bybit ob500 archive or a Binance depth log.

    python examples/order_book.py recording.parquet --symbol BTCUSDT
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
from longtape.core.instrument import Instrument
from longtape.experiment import parse_experiment
from longtape.market.book_files import read_books
from longtape.report.text import table

parser = argparse.ArgumentParser(description="Forecast the next updates of an order book that you recorded.")
parser.add_argument(
    "book", type=Path, help="your recording (Parquet, a Bybit ob500 archive, a Binance depth log)"
)
parser.add_argument("--symbol", default="BTCUSDT", help="the instrument of the recording")
parser.add_argument("--levels", type=int, default=5, help="levels of each side that are read (default: 5)")
parser.add_argument("--attention", default="bigbird", choices=list(MECHANISMS), help="mechanism of the model")
parser.add_argument("--out", type=Path, help="new folder for what is written (default: a temporary one)")
parser.add_argument(
    "--quick", action="store_true", help="an epoch on few windows: shows that it runs, nothing else"
)
args = parser.parse_args(
    ["book.parquet"] if "ipykernel" in sys.modules else None
)  # in a notebook: options go here
if not args.book.is_file():
    parser.error(f"{args.book}: no such file; name a recording of your own")
if args.out and args.out.exists():
    parser.error(f"--out {args.out}: is there already; name a new folder")
out = args.out or Path(tempfile.mkdtemp(prefix="longtape-"))

# %% [markdown]
# ## The recording
# The tick is read from the prices themselves: the smallest spread.

# %%
books = read_books(args.book, Instrument("file", "spot", args.symbol), args.levels)
mid = (books.column("bid_price_1") + books.column("ask_price_1")) / 2
spread = books.column("ask_price_1") - books.column("bid_price_1")
tick = float(np.round(np.nanmin(spread[spread > 0]), 8))
seconds = (books.timestamps[-1] - books.timestamps[0]) / 1000
moved = np.mean(np.diff(mid) != 0)
print(f"{len(books):,} updates in {seconds:,.0f} s; tick {tick:g}; the mid moved in {moved:.1%} of them")

# %% [markdown]
# ## The model
# A token for each snapshot: distance in ticks and logarithm of size of every level. Classes by terciles of the training
# rows' moves, so that each is a third there.

# %%
options = {
    "bigbird": {"block_size": 16, "n_random": 1},
    "local": {"window_size": 17},
    "longformer": {"window_size": 17},
}
document = {
    "name": "Order book",
    "data": {
        "source": "file",
        "kind": "books",
        "path": str(args.book.resolve()),
        "symbols": [args.symbol],
        "depth": args.levels,
    },
    "features": [f"book({args.levels}, {tick:f}, 0.001)", "book_imbalance(1)", "micro_price_distance"],
    "targets": ["smoothed_direction(10)", "smoothed_direction(50)"],
    "split": {"train": 0.6, "validation": 0.2},
    "model": {
        "kind": "order_book",
        "lookback": 64,
        "levels": args.levels,
        "attention": args.attention,
        "attention_options": options.get(args.attention, {}),
        "d_model": 32,
        "n_heads": 2,
        "n_layers": 2,
        "dropout": 0.2,
    },
    "training": {"epochs": 1 if args.quick else 4, "stride": 16 if args.quick else 2, "learning_rate": 5e-4},
}
run = lt.train(parse_experiment(document, "order_book.py"), out / "run")

# %% [markdown]
# ## Beside what needs no network
# The sign of the imbalance, and a logistic regression on imbalance and micro-price, are hard to beat: what waits in the
# book says most of what can be known of the next moves. p: could the difference from the model be luck? (The network
# begins as that regression; where training never did better on validation updates, the two are the same.)

# %%
results = run.score()
for target, rows in results.skills.items():
    measures = ("model", "log loss", "macro F1", "MCC", "p, differs from longtape")
    print(
        table([{name: row.get(name) for name in measures} for row in rows], f"Test updates: {target}"),
        end="\n\n",
    )

# %%
frame = results.forecasts.filter(results.forecasts["target"] == "smoothed_direction(50)").drop_nulls("actual")
lean = (frame["p2"] - frame["p0"]).to_numpy()  # P(up) − P(down)
came = frame["actual"].to_numpy() - 1  # −1, 0, 1
groups = np.array_split(np.argsort(lean), 10)
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained", width_ratios=[1.5, 1])
at = np.searchsorted(books.timestamps, frame["timestamp"].dt.timestamp("ms").to_numpy())[-2000:]
left.plot(at, mid[at], color="black", linewidth=0.8)
left.scatter(at, mid[at], c=lean[-2000:], cmap="coolwarm", vmin=-1, vmax=1, s=6)
left.set(title="Mid price; red leans up, blue down", xlabel="update", ylabel="mid")
right.plot([lean[g].mean() for g in groups], [came[g].mean() for g in groups], "o-", color="tab:blue")
right.axline((0, 0), slope=1, color="gray", linestyle=":", linewidth=1)
right.set(
    title="Is the lean worth something?", xlabel="P(up) − P(down), tenths", ylabel="up − down that came"
)
figure.savefig(out / "order_book.png", dpi=120)
print(f"picture: {out / 'order_book.png'}")
