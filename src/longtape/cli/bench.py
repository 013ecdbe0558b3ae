"""`longtape bench`: how fast things are on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure longtape on this machine."""


@app.command("attention")
def attention(
    lengths: Annotated[str, typer.Option(help="Tokens, with commas between lengths.")] = "1024,4096",
    mechanisms: Annotated[str, typer.Option(help="Names with commas between them, or all.")] = "all",
    peers: Annotated[
        bool, typer.Option("--peers/--no-peers", help="Measure installed libraries beside them.")
    ] = True,
    repeats: Annotated[int, typer.Option(help="Rounds; every subject takes its turn in each.")] = 3,
    batch: Annotated[int, typer.Option(help="Sequences at once.")] = 1,
    d_model: Annotated[int, typer.Option(help="Width of the layer.")] = 256,
    heads: Annotated[int, typer.Option(help="Attention heads.")] = 8,
    dtype: Annotated[str, typer.Option(help="float32, float64, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")] = "cpu",
    out: Annotated[
        Path | None, typer.Option(help="Folder for attention.md, attention.json and attention.png.")
    ] = None,
) -> None:
    """Time, memory and error of the attention mechanisms, each measurement in its own process.

    Example: longtape bench attention --lengths 1024,4096,16384 --mechanisms flash,bigbird --out bench
    """
    from longtape.attention import MECHANISMS
    from longtape.benchmarking.attention import bench as bench_attention
    from longtape.core.errors import UserError

    names = list(MECHANISMS) if mechanisms == "all" else [name.strip() for name in mechanisms.split(",")]
    try:
        sizes = [int(text) for text in lengths.split(",")]
    except ValueError:
        raise UserError(f"--lengths: '{lengths}' is not a list of numbers; write 1024,4096") from None
    shape = {"batch": batch, "d_model": d_model, "n_heads": heads, "dtype": dtype, "device": device}
    text = bench_attention(sizes, names, peers=peers, repeats=repeats, out=out, **shape)
    typer.echo(text, nl=False)


@app.command("data")
def data(
    rows: Annotated[int, typer.Option(min=10_000, help="Candles, and trades, to measure with.")] = 10_000_000,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each measurement.")] = 5,
    out: Annotated[Path | None, typer.Option(help="Folder for data.md.")] = None,
) -> None:
    """Time of the store, of data check, and of bars from trades.

    Example: longtape bench data --rows 1000000
    """
    from longtape.benchmarking.data import bench

    typer.echo(bench(rows, repeats, out), nl=False)


@app.command("training")
def training(
    attention: Annotated[str, typer.Option(help="Mechanism of the encoder.")] = "bigbird",
    lookback: Annotated[int, typer.Option(min=2, help="Bars in a window.")] = 512,
    d_model: Annotated[int, typer.Option(min=4, help="Width of the model; a multiple of four.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Windows in a step.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Steps to take the median of.")] = 10,
    out: Annotated[Path | None, typer.Option(help="Folder for training.md.")] = None,
) -> None:
    """Where the time of a training step goes: attention, feed-forward, norms, dropout, optimiser, data, rest.

    Example: longtape bench training --attention flash --lookback 2048
    """
    from longtape.benchmarking.training import bench

    typer.echo(bench(attention, lookback, d_model, batch, repeats, out), nl=False)
