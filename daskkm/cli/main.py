"""What the commands share: how they end, where the work is done, and options to be parsed."""

from __future__ import annotations

import atexit
import gc
import math
import os
import sys
import traceback
import warnings
from difflib import get_close_matches
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

import click

from daskkm.cli import interrupts
from daskkm.errors import DaskkmError, SchedulerError, printable, reason
from daskkm.passes import addresses
from daskkm.storage import locations

if TYPE_CHECKING:
    from collections.abc import Callable


# Set to show where an error was raised.
TRACEBACK = "DASKKM_TRACEBACK"
SETTINGS: dict[str, Any] = {"show_default": True, "help_option_names": ["-h", "--help"]}


def run(
    command: click.Command, args: list[str] | None = None, prog_name: str | None = None
) -> NoReturn:
    """Run a command and exit: 0 done, 1 failed, 2 wrong usage, 130 and 143 interrupted.

    Parameters
    ----------
    command : click.Command
    args : list of str, optional
        Those of the process if not given.
    prog_name : str, optional
        Name of the program in its help; found out if not given.
    """
    gc.set_threshold(100_000)  # the usual 700 costs a twentieth of a short sweep, for nothing
    interrupts.unwind()
    atexit.register(_end_helper)  # before multiprocessing does: the last that registers goes first
    warnings.showwarning = _show_warning
    if isinstance(sys.stdout, TextIOWrapper):  # as standard error does: no name costs a result
        sys.stdout.reconfigure(errors="backslashreplace")
    status = 0
    try:
        _main(command, args, prog_name)
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except Exception as error:  # noqa: BLE001 (as of what a command imports)
        failure = Failure(in_one_line(error))
        failure.__cause__ = error
        failure.show()
        status = failure.exit_code
    interrupts.end_at_once()
    # Python looks for cycles among all that was imported before it ends: 0.7 s, for nothing.
    gc.freeze()
    sys.exit(status)


def run_module(name: str) -> NoReturn:
    """Run one of the commands as ``python -m daskkm.NAME``, and exit.

    The command is imported by its own name, so that errors of that are shown in one line too.

    Parameters
    ----------
    name : str
    """
    run(group, [name, *sys.argv[1:]], "python -m daskkm")


def _main(command: click.Command, args: list[str] | None, prog_name: str | None) -> None:
    try:
        command.main(args, prog_name, standalone_mode=False)
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
    click.echo(f"warning: {' '.join(str(message).split())}", err=True)


class Command(click.Command):
    """A command that ends with one line, whatever is raised, and names its own flags in it."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; raise ClickException, exit status 1, for any error."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except DaskkmError as error:
            names = {option.partition("=")[0] for option in error.options}
            flags = [param.opts[0] for param in self.params if param.name in names]
            raise Failure(error.with_options(flags)) from error
        except Exception as error:
            raise Failure(in_one_line(error)) from error


class Failure(click.ClickException):
    """The line with which a command fails, after a traceback if the environment asks for it.

    Parameters
    ----------
    message : str
    """

    def show(self, file: Any = None) -> None:  # noqa: ARG002
        """Print it to standard error."""
        if os.environ.get(TRACEBACK) and self.__cause__ is not None:
            traceback.print_exception(self.__cause__)
        click.echo(f"error: {self.message}", err=True)


_MOST_TEXT = 500  # characters of an error that others raised


def in_one_line(error: Exception) -> str:
    """Return a description of any error in one line, with a hint.

    Parameters
    ----------
    error : Exception

    Returns
    -------
    str
    """
    if isinstance(error, DaskkmError):
        return str(error)
    text = printable(" ".join(reason(error).split()))
    if len(text) > _MOST_TEXT:
        text = text[:_MOST_TEXT] + " …"
    if isinstance(error, OSError):  # such as of a folder that may not be entered
        where = f"{printable(str(error.filename))}: " if error.filename else ""
        return f"{where}{text}; see to that, and run again"
    if isinstance(error, MemoryError):
        return f"memory ran out ({text}); free some, or ask for less at a time"
    frames = traceback.extract_tb(error.__traceback__)
    if any(frame.name == "_load_config_file" for frame in frames):
        return f"dask's configuration: {text}; mend or remove the file"
    package = str(Path(__file__).parent)
    ours = [f for f in frames if f.filename.startswith(package) and f.filename != __file__]
    where = "".join(f" at {f.filename}:{f.lineno}" for f in (ours or frames)[-1:])
    return (
        f"internal error: {type(error).__name__}: {text}{where}; "
        f"report it with the traceback, which {TRACEBACK}=1 in the environment shows"
    )


class _Lazy(click.Group):
    """Imports a command when it is asked for: each then starts as fast as on its own."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return ["ingest", "sweep", "label", "verify"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = import_module(f"daskkm.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        names = self.list_commands(ctx)
        known = args[0] in names or args[0].startswith("-")
        if not known and not ctx.resilient_parsing:
            close = get_close_matches(args[0], names, 1)
            hint = f"Did you mean {close[0]!r}?" if close else f"Commands: {', '.join(names)}."
            ctx.fail(f"No such command {args[0]!r}. {hint}")
        return super().resolve_command(ctx, args)


@click.command("daskkm", cls=_Lazy, context_settings=SETTINGS)
@click.version_option(package_name="daskkm", prog_name="daskkm")
def group() -> None:
    """k-means over image tiles that do not fit in memory."""


@click.command("daskkm", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def dask_command(args: tuple[str, ...]) -> None:
    """k-means over image tiles that do not fit in memory."""
    run(group, list(args), "dask daskkm")


def given(name: str) -> bool:
    """Tell whether an option, by the name of its parameter, was given on the command line."""
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


def count(n: int, noun: str) -> str:
    """Return a number of things in words: 1 image, 2 images."""
    return f"{n} {noun}{'s' * (n != 1)}"


_LEAST_MEMORY = 300_000_000
# Which options a scheduler follows, and one that others started.
_FOLLOWS = {
    "local": ("workers", "threads_per_worker", "memory_limit", "dashboard_address"),
    "threads": ("threads_per_worker",),
}
_OTHERS_FOLLOW = ("tls_ca_file", "tls_cert", "tls_key")


_DASKS_THREADS = ("threads", "threading")


def _scheduler_name(ctx: click.Context, param: click.Parameter, value: str | None) -> str:
    """Return the name of the scheduler: the one that was given, or dask is set to, or local."""
    setting = ""
    if value is None:
        import dask

        value = "local"
        if address := dask.config.get("scheduler-address", None):
            setting = " (dask's setting scheduler-address, or DASK_SCHEDULER_ADDRESS)"
            scheme = dask.config.get("distributed.comm.default-scheme", "tcp")
            plain = "://" not in str(address) and not str(address).endswith(".json")
            value = f"{scheme}://{address}" if plain else str(address)
        elif (named := dask.config.get("scheduler", None)) in _DASKS_THREADS:
            value = "threads"
        elif named:
            click.echo(
                f"warning: dask's setting scheduler is {named!r}; this command works on a local "
                "scheduler instead (--scheduler)",
                err=True,
            )
    try:
        return addresses.check_name(value)
    except SchedulerError as error:
        msg = f"{error}{setting}"
        raise click.BadParameter(msg, ctx, param) from error


def _followed(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Refuse an option that the scheduler would not follow."""
    name = ctx.params["scheduler_name"]
    follows = () if name.startswith("tcp:") else _FOLLOWS.get(name, _OTHERS_FOLLOW)
    if given(str(param.name)) and param.name not in follows:
        by_dask = name != "local" and not given("scheduler_name")
        why = ", which dask is set to; name another" if by_dask else ""
        msg = f"{param.opts[0]} has no use with --scheduler {name}{why}"
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
        if problem := locations.url_problem(value):
            self.fail(problem, param, ctx)
        return super().convert(value, param, ctx)


_SCHEDULER_OPTIONS = (
    click.option(
        "--scheduler",
        "scheduler_name",
        callback=_scheduler_name,
        is_eager=True,  # it is known when the others are looked at
        metavar="NAME",
        help="local, threads, tcp://host:8786, tls://host:8786 or a scheduler file (.json).  "
        "[default: dask's setting, else local]",
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
    """Add the options that say where the work is done, for `daskkm.passes.scheduler.connect`.

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

quiet_option = click.option(
    "--quiet",
    "-q",
    is_flag=True,
    help="No progress and no explanations; results, warnings and errors only.",
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
            if not numbers:
                self.fail(f"{part!r} runs backwards; write {hi}-{lo}", param, ctx)
            if not int(lo):
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
