"""`longtape`: the commands, and how errors become one line and an exit code.

Heavy libraries are imported inside the commands, so that `longtape --help` answers at once.
"""

from __future__ import annotations

import errno
import sys

import typer

from longtape.cli import bench, data, many, runs
from longtape.cli.audit import audit
from longtape.cli.fetch import fetch
from longtape.cli.import_file import import_file
from longtape.core.errors import LongtapeError
from longtape.core.progress import set_silent
from longtape.core.threads import wait_passively

INTERRUPTED = 130

app = typer.Typer(
    name="longtape",
    help="Long-context attention for market data, from the exchange to the tear sheet."
    "  Every command takes --quiet (no progress) and --debug (tracebacks).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(runs.demo)
app.command("run")(runs.run)
app.command("fetch")(fetch)
app.command("import")(import_file)
app.add_typer(data.app, name="data")
app.command("train")(runs.train)
app.command("forecast")(runs.forecast)
app.command("backtest")(runs.backtest)
app.command("report")(runs.report)
app.command("walk-forward")(many.walk_forward)
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
        return int(app(args=arguments, standalone_mode=False) or 0)
    except (KeyboardInterrupt, typer.Abort):
        _print_error("stopped")
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
    if hasattr(error, "format_message"):  # a usage error of the command line
        _print_error(f"{error.format_message()} Try --help.")
        return 2
    if isinstance(error, BrokenPipeError):
        return 0
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        _print_error(f"the disk is full ({error.filename or 'while writing'}); free some space and run again")
        return 1
    if isinstance(error, OSError):
        _print_error(f"{error.filename or 'file'}: {error.strerror or error}")
        return 2
    _print_error(f"unexpected error, {type(error).__name__}: {error}. Run again with --debug and report it.")
    return 1


def _print_error(text: str) -> None:
    print("longtape: " + " ".join(text.split()), file=sys.stderr, flush=True)
