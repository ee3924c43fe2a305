"""Group of commands, and the end of each command: one line and an exit status."""

from __future__ import annotations

import gc
import os
import sys
import traceback
import warnings
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

import click

from daskkm.cli import ingest, label, sweep, verify
from daskkm.cli.interrupts import is_unwinding, unwind_on_signals
from daskkm.cli.options import SETTINGS
from daskkm.cli.progress import print_above
from daskkm.errors import DaskkmError, printable, reason

# Environment variable that turns tracebacks on.
TRACEBACK = "DASKKM_TRACEBACK"
_MAX_CHARACTERS = 500  # of the text of another package's error


class Failure(click.ClickException):
    """Failure of a command: one line, after a traceback if the environment asks for one."""

    def show(self, file: Any = None) -> None:  # noqa: ARG002
        """Print the line to standard error."""
        if os.environ.get(TRACEBACK) and self.__cause__ is not None:
            traceback.print_exception(self.__cause__)
        click.echo(f"error: {self.message}", err=True)


class Group(click.Group):
    """Commands that raise Failure for any error, with flags in place of parameters."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except DaskkmError as error:
            names = {option.partition("=")[0] for option in error.options}
            params = self.commands[str(ctx.invoked_subcommand)].params
            flags = [param.opts[0] for param in params if param.name in names]
            raise Failure(error.with_options(flags)) from error
        except Exception as error:
            raise Failure(describe_error(error)) from error


@click.group("daskkm", cls=Group, context_settings=SETTINGS)
@click.version_option(package_name="daskkm", prog_name="daskkm")
def group() -> None:
    """k-means over image tiles that do not fit in memory."""


for module in (ingest, sweep, label, verify):
    group.add_command(module.command)


@click.command("daskkm", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def dask_command(args: tuple[str, ...]) -> None:
    """k-means over image tiles that do not fit in memory."""
    with unwind_on_signals():
        run(list(args), "dask daskkm")


def run_module(name: str) -> NoReturn:
    """Run a command as ``python -m daskkm.NAME``, and exit."""
    run([name, *sys.argv[1:]], "python -m daskkm")


def run(args: list[str] | None = None, prog_name: str | None = None) -> NoReturn:
    """Run a command, of the process by default, and exit: 0 done, 1 failed, 2 wrong usage."""
    gc.set_threshold(100_000)  # the usual 700 costs 5 % of a short sweep
    warnings.showwarning = _show_warning
    if isinstance(sys.stdout, TextIOWrapper):  # as standard error: no name of a file fails
        sys.stdout.reconfigure(errors="backslashreplace")
    status = 0
    try:
        group.main(args, prog_name, standalone_mode=False)
    except click.ClickException as error:
        if not is_unwinding():
            error.show()
        status = error.exit_code
    # Without a freeze, Python looks for cycles among all imported objects: 0.7 s.
    gc.freeze()
    sys.exit(status)


def describe_error(error: Exception) -> str:
    """Return a description of another package's error, in one line with a hint."""
    text = printable(" ".join(reason(error).split()))
    if len(text) > _MAX_CHARACTERS:
        text = text[:_MAX_CHARACTERS] + " …"
    if isinstance(error, OSError):
        where = f"{printable(str(error.filename))}: " if error.filename else ""
        return f"{where}{text}. Correct this, and run again"
    if isinstance(error, MemoryError):
        return f"out of memory ({text}). Free some, or ask for less at a time"
    frames = traceback.extract_tb(error.__traceback__)
    if any(frame.name == "_load_config_file" for frame in frames):
        return f"dask's configuration: {text}. Correct or remove the file"
    package = str(Path(__file__).parent.parent)
    ours = [f for f in frames if f.filename.startswith(package) and f.filename != __file__]
    where = "".join(f" at {f.filename}:{f.lineno}" for f in (ours or frames)[-1:])
    return (
        f"internal error: {type(error).__name__}: {text}{where}. "
        f"Report it with the traceback that {TRACEBACK}=1 in the environment shows"
    )


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print_above(f"warning: {' '.join(str(message).split())}")
