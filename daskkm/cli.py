"""What the commands share: how they end, where the work is done, and options to be parsed."""

from __future__ import annotations

import atexit
import gc
import math
import sys
import warnings
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

import click

from daskkm import addresses, interrupts, paths
from daskkm.errors import DaskkmError, SchedulerError

if TYPE_CHECKING:
    from collections.abc import Callable


def run(command: click.Command, args: list[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 done, 1 failed, 2 wrong usage, 130 and 143 interrupted.

    Parameters
    ----------
    command : click.Command
    args : list of str, optional
        Those of the process if not given.
    """
    interrupts.unwind()
    atexit.register(_end_helper)  # before multiprocessing does: the last that registers goes first
    warnings.showwarning = _show_warning
    if isinstance(sys.stdout, TextIOWrapper):  # as standard error does: no name costs a result
        sys.stdout.reconfigure(errors="backslashreplace")
    status = 0
    try:
        _main(command, args)
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except OSError as error:  # such as of a folder that may not be entered, asked for what it holds
        what = f"{error.filename}: " if error.filename else ""
        click.echo(f"error: {what}{error.strerror or error}; see to that, and run again", err=True)
        status = 1
    interrupts.end_at_once()
    # Python looks for cycles among all that was imported before it ends: 0.7 s, for nothing.
    gc.freeze()
    sys.exit(status)


def _main(command: click.Command, args: list[str] | None) -> None:
    try:
        command.main(args, standalone_mode=False)
    finally:
        interrupts.end_if_interrupted()  # whatever the interrupt has become on its way


def _end_helper() -> None:
    """Wait for the process with which multiprocessing cleans up: it would outlive the command."""
    helper = sys.modules.get("multiprocessing.resource_tracker")
    if helper is not None:
        helper._resource_tracker._stop()


def _show_warning(
    message: Warning | str,
    category: type[Warning],  # noqa: ARG001
    filename: str,  # noqa: ARG001
    lineno: int,  # noqa: ARG001
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    click.echo(f"warning: {message}", err=True)


class Command(click.Command):
    """A command whose errors name its own flags where they name parameters."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; raise ClickException, exit status 1, for a DaskkmError."""
        try:
            return super().invoke(ctx)
        except DaskkmError as error:
            names = {option.partition("=")[0] for option in error.options}
            flags = [param.opts[0] for param in self.params if param.name in names]
            raise _Failed(error.with_options(flags)) from error


class _Failed(click.ClickException):
    def show(self, file: Any = None) -> None:  # noqa: ARG002
        click.echo(f"error: {self.message}", err=True)


class _Lazy(click.Group):
    """Imports a command when it is asked for: each then starts as fast as on its own."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return ["ingest", "sweep", "label", "verify"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = import_module(f"daskkm.{cmd_name}").command
        return command


@click.command(cls=_Lazy)
@click.version_option(package_name="daskkm", prog_name="daskkm")
def group() -> None:
    """k-means over image tiles that do not fit in memory."""


def given(name: str) -> bool:
    """Tell whether an option, by the name of its parameter, was given on the command line."""
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


def count(n: int, noun: str) -> str:
    """Return a number of things in words: 1 sheet, 2 sheets."""
    return f"{n} {noun}{'s' * (n != 1)}"


_LEAST_MEMORY = 300_000_000
# Which options a scheduler follows, and one that others started.
_FOLLOWS = {
    "local": ("workers", "threads_per_worker", "memory_limit", "dashboard_address"),
    "threads": ("threads_per_worker",),
}
_OTHERS_FOLLOW = ("tls_ca_file", "tls_cert", "tls_key")


def _scheduler_name(ctx: click.Context, param: click.Parameter, value: str) -> str:
    try:
        return addresses.check_name(value)
    except SchedulerError as error:
        raise click.BadParameter(str(error), ctx, param) from error


def _followed(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Refuse an option that the scheduler would not follow."""
    name = ctx.params["scheduler_name"]
    follows = () if name.startswith("tcp:") else _FOLLOWS.get(name, _OTHERS_FOLLOW)
    if given(str(param.name)) and param.name not in follows:
        msg = f"{param.opts[0]} has no use with --scheduler {name}"
        raise click.UsageError(msg)
    return value


def _memory(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None:
        from dask.utils import parse_bytes

        try:
            enough = parse_bytes(value) >= _LEAST_MEMORY
        except (ValueError, OverflowError):
            enough = False
        if not enough:
            msg = f"{value!r} is not a size like 2GB, of at least 300MB, which a worker needs"
            raise click.BadParameter(msg, ctx, param)
    _followed(ctx, param, value)
    return value


def _address(ctx: click.Context, param: click.Parameter, value: str) -> str:
    _followed(ctx, param, value)
    try:
        return addresses.dashboard(value)
    except SchedulerError as error:
        raise click.BadParameter(str(error), ctx, param) from error


class LocalPath(click.Path):
    """A path of a local file or folder, as a Path if not told otherwise; a URL is wrong usage."""

    def __init__(self, *, path_type: type[str | Path] = Path, **settings: Any) -> None:
        super().__init__(path_type=path_type, **settings)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return it as `path_type`."""
        if problem := paths.url_problem(value):
            self.fail(problem, param, ctx)
        return super().convert(value, param, ctx)


_SCHEDULER_OPTIONS = (
    click.option(
        "--scheduler",
        "scheduler_name",
        default="local",
        callback=_scheduler_name,
        is_eager=True,  # it is known when the others are looked at
        metavar="NAME",
        help="local, threads, tcp://host:8786, tls://host:8786 or a scheduler file (.json).",
    ),
    click.option(
        "--workers",
        type=click.IntRange(1),
        callback=_followed,
        help="Worker processes of a local scheduler.  [default: one worker in this process]",
    ),
    click.option(
        "--threads-per-worker",
        type=click.IntRange(1),
        callback=_followed,
        help="Threads of each local worker.  [default: its share of the cores]",
    ),
    click.option(
        "--memory-limit",
        callback=_memory,
        help="Memory of each local worker, as in 2GB.  [default: its share of the machine]",
    ),
    click.option(
        "--dashboard-address",
        default="127.0.0.1:8787",
        callback=_address,
        help="Where a local scheduler's dashboard listens; on loopback if no host is named.",
    ),
    *(
        click.option(
            f"--tls-{name}",
            type=LocalPath(exists=True, dir_okay=False, path_type=str),
            callback=_followed,
            help=f"{what}, in PEM form, for a tls:// scheduler.  [default: dask's settings]",
        )
        for name, what in (
            ("ca-file", "Certificate of the authority that signed all others"),
            ("cert", "Your certificate"),
            ("key", "The key of your certificate"),
        )
    ),
)
_Command = TypeVar("_Command", bound="Callable[..., Any]")


def scheduler_options(command: _Command) -> _Command:
    """Add the options that say where the work is done, for `daskkm.scheduler.connect`.

    The function is given the scheduler's name as `scheduler_name` and the other arguments of
    `connect` by their names. An option that the scheduler would not follow is wrong usage.
    """
    for option in reversed(_SCHEDULER_OPTIONS):
        command = option(command)
    return command


overwrite_option = click.option(
    "--overwrite",
    is_flag=True,
    help="Replace a store that does not hold what is asked for, and its labels.",
)

_MOST = 100_000
_DIGITS = 9  # of any number in a list; Python refuses to read those of thousands


class KList(click.ParamType[tuple[int, ...]]):
    """Numbers of clusters: numbers and ranges between commas, as in 2,4,8-12."""

    name = "list"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Return the numbers, ascending, each once."""
        if not isinstance(value, str):
            return tuple(value)
        ks: set[int] = set()
        for part in value.split(","):
            lo, dash, hi = part.strip().partition("-")
            if not (lo.isdecimal() and (hi.isdecimal() or not dash)):
                self.fail(f"{part!r} is neither a number nor a range like 3-7", param, ctx)
            if max(len(lo), len(hi)) > _DIGITS or max(int(lo), int(hi or lo)) > _MOST:
                self.fail(f"{part!r} goes beyond the most that makes sense, {_MOST}", param, ctx)
            numbers = range(int(lo), int(hi or lo) + 1)
            if not numbers or not int(lo):
                self.fail(f"{part!r} holds no k of 1 or more", param, ctx)
            ks.update(numbers)
        return tuple(sorted(ks))


class Number(click.FloatRange):
    """A number of 0 or more."""

    name = "number"

    def __init__(self) -> None:
        super().__init__(0)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return it as it is; NaN is none, though it lies within any range."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return number


class TileSize(click.ParamType[tuple[int, int]]):
    """Height and width of a tile in pixels: one number for both, or two around an x."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Return (height, width)."""
        if not isinstance(value, str):
            return (value[0], value[1])
        height, x, width = value.lower().partition("x")
        size = (height, width if x else height)
        if not all(side.isdecimal() and len(side) <= _DIGITS and int(side) for side in size):
            self.fail(f"{value!r} is not a size like 16 or 16x24", param, ctx)
        return (int(size[0]), int(size[1]))
