"""`longtape`: the commands, and how errors become one line and an exit code.

Heavy libraries are imported inside the commands, so that `longtape --help` answers at once.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from longtape.cli import bench, data, many, runs
from longtape.cli.audit import audit
from longtape.cli.compare import compare
from longtape.cli.explain import explain
from longtape.cli.export import export
from longtape.cli.fetch import fetch
from longtape.cli.import_file import import_file
from longtape.cli.init import config, init
from longtape.core.errors import LongtapeError
from longtape.core.files import is_full
from longtape.core.progress import set_silent
from longtape.core.threads import wait_passively

INTERRUPTED = 130


class _Stopped(Exception):
    """Ctrl-C, with what was saved and how to go on."""


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """Keep what an interrupted command says; typer would make it an exit code without a word."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise _Stopped(str(stop)) from stop


app = typer.Typer(
    name="longtape",
    cls=_Commands,
    help="Long-context attention for market data, from the exchange to the tear sheet."
    "  Every command takes --quiet (no progress) and --debug (tracebacks).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        from longtape import __version__

        typer.echo(f"longtape {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


app.command("demo")(runs.demo)
app.command("init")(init)
app.command("config")(config)
app.command("run")(runs.run)
app.command("fetch")(fetch)
app.command("import")(import_file)
app.add_typer(data.app, name="data")
app.command("train")(runs.train)
app.command("forecast")(runs.forecast)
app.command("explain")(explain)
app.command("export")(export)
app.command("backtest")(runs.backtest)
app.command("report")(runs.report)
app.command("walk-forward")(many.walk_forward)
app.command("compare")(compare)
app.command("runs")(many.runs)
app.command("tune")(many.tune)
app.command("audit")(audit)
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Entry point of the `longtape` command."""
    wait_passively()
    sys.exit(execute(sys.argv[1:]))


def execute(arguments: list[str]) -> int:
    """Run one command line; returns its exit code: 0, 1 (service, check), 2 (user's mistake), 130 (Ctrl-C)."""
    debug = "--debug" in arguments
    set_silent("--quiet" in arguments)
    arguments = [argument for argument in arguments if argument not in ("--debug", "--quiet")]
    try:
        return int(app(args=arguments, prog_name="longtape", standalone_mode=False) or 0)
    except (_Stopped, KeyboardInterrupt, typer.Abort) as stop:
        _print_error(": ".join(filter(None, ["stopped", str(stop)])))
        return INTERRUPTED
    except Exception as error:
        if debug:
            raise
        return _report_error(error)
    finally:
        set_silent(False)


def _report_error(error: Exception) -> int:
    if isinstance(error, LongtapeError):
        _print_error(str(error))
        return error.exit_code
    if type(error).__name__ == "NoArgsIsHelpError":  # a group by itself: its help is no mistake
        typer.echo(error.ctx.get_help())  # type: ignore[attr-defined]
        return 0
    if hasattr(error, "format_message"):  # a usage error of the command line
        _print_error(f"{error.format_message()} Try --help.")
        return 2
    if isinstance(error, BrokenPipeError):
        return 0
    if is_full(error):
        where = getattr(error, "filename", None) or "while writing"
        _print_error(f"the disk is full ({where}); free some space and run again")
        return 2
    if isinstance(error, OSError):
        _print_error(f"{error.filename or 'file'}: {error.strerror or error}")
        return 2
    _print_error(f"unexpected error, {type(error).__name__}: {error}. Run again with --debug and report it.")
    return 1


def _print_error(text: str) -> None:
    print("longtape: " + " ".join(text.split()), file=sys.stderr, flush=True)
