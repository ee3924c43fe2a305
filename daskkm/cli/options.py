"""Options that commands share, and types of their values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from daskkm.errors import SchedulerError
from daskkm.passes import connection
from daskkm.storage import locations

if TYPE_CHECKING:
    from collections.abc import Callable

SETTINGS: dict[str, Any] = {"show_default": True, "help_option_names": ["-h", "--help"]}
_MAX_K = 100_000
_MAX_DIGITS = 9  # of a number; Python refuses to read those of thousands
_MIN_MEMORY = 300_000_000  # of a worker
_DASHBOARD = re.compile(r"[^:/]*:\d{1,5}")
# Options that apply to a kind of scheduler, by the names of their parameters.
_APPLY_TO = {
    "local": ("workers", "threads_per_worker", "memory_limit", "dashboard_address"),
    "threads": ("threads_per_worker",),
    "tcp": (),
    "tls": ("tls_ca_file", "tls_cert", "tls_key"),
}
_Command = TypeVar("_Command", bound="Callable[..., Any]")


class LocalPath(click.Path):
    """A path of a local file or folder, as a Path by default; a URL is wrong usage."""

    def __init__(self, *, path_type: type[str | Path] = Path, **settings: Any) -> None:
        super().__init__(path_type=path_type, **settings)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path as `path_type`."""
        if problem := locations.url_problem(value):
            self.fail(problem, param, ctx)
        return super().convert(value, param, ctx)


def k_list(text: str) -> tuple[int, ...]:
    """Return the numbers of clusters in text such as 2,4,8-12: ascending, each once."""
    ks: set[int] = set()
    for part in text.split(","):
        lo, dash, hi = part.strip().partition("-")
        if not (lo.isdecimal() and (hi.isdecimal() or not dash)):
            problem = "is neither a number nor a range like 3-7"
        elif max(len(lo), len(hi)) > _MAX_DIGITS or max(int(lo), int(hi or lo)) > _MAX_K:
            problem = f"exceeds the maximum of {_MAX_K}"
        elif int(hi or lo) < int(lo):
            problem = f"runs backwards; write {hi}-{lo}"
        elif not int(lo):
            problem = "holds no k of 1 or more"
        else:
            ks.update(range(int(lo), int(hi or lo) + 1))
            continue
        msg = f"{part[:_MAX_DIGITS]!r} {problem}"
        raise click.BadParameter(msg)
    return tuple(sorted(ks))


def tile_size(text: str) -> tuple[int, int]:
    """Return height and width from text such as 16 or 16x24."""
    height, x, width = text.lower().partition("x")
    size = (height, width if x else height)
    if not all(side.isdecimal() and len(side) <= _MAX_DIGITS and int(side) for side in size):
        msg = f"{text!r} is not a size like 16 or 16x24"
        raise click.BadParameter(msg)
    return (int(size[0]), int(size[1]))


def is_given(name: str) -> bool:
    """Return True if an option, by the name of its parameter, is on the command line."""
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


def _scheduler_name(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str:
    """Return the name of the scheduler: as given, else dask's setting, else local."""
    setting = ""
    if value is None:
        value, setting = _dask_setting()
    try:
        return connection.check_name(value)
    except SchedulerError as error:
        msg = f"{error}{setting}"
        raise click.BadParameter(msg) from error


def _dask_setting() -> tuple[str, str]:
    """Return the scheduler that dask is set to, else local, and how to call that setting."""
    import dask

    if address := dask.config.get("scheduler-address", None):
        setting = " (dask's setting scheduler-address, or DASK_SCHEDULER_ADDRESS)"
        if "://" in str(address) or str(address).endswith(".json"):
            return str(address), setting
        return f"{dask.config.get('distributed.comm.default-scheme', 'tcp')}://{address}", setting
    name = dask.config.get("scheduler", None)
    if name in ("threads", "threading"):
        return "threads", ""
    if name:
        click.echo(
            f"warning: dask's setting scheduler is {name!r}. This command uses a local scheduler "
            "instead (--scheduler)",
            err=True,
        )
    return "local", ""


def _check_applies(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Refuse an option that does not apply to the scheduler."""
    name = ctx.params["scheduler_name"]
    options = _APPLY_TO.get(name.partition(":")[0], _APPLY_TO["tls"])
    if is_given(str(param.name)) and param.name not in options:
        by_dask = name != "local" and not is_given("scheduler_name")
        why = ", which dask is set to; name another" if by_dask else ""
        msg = f"{param.opts[0]} has no use with --scheduler {name}{why}"
        raise click.UsageError(msg)
    return value


def _memory(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None:
        from dask.utils import parse_bytes

        try:
            is_enough = parse_bytes(value) >= _MIN_MEMORY
        except (ValueError, OverflowError):
            is_enough = False
        if not is_enough:
            msg = f"{value!r} is not a size like 2GB, of at least 300MB, which a worker needs"
            raise click.BadParameter(msg)
    _check_applies(ctx, param, value)
    return value


def _dashboard(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if not _DASHBOARD.fullmatch(value) or int(value.rpartition(":")[2]) > 65535:
        msg = f"{value!r} is not an address like 127.0.0.1:8787"
        raise click.BadParameter(msg)
    _check_applies(ctx, param, value)
    return value


def _tls_option(name: str, what: str) -> Callable[[_Command], _Command]:
    return click.option(
        f"--tls-{name}",
        type=LocalPath(exists=True, dir_okay=False, path_type=str),
        callback=_check_applies,
        help=f"{what}, in PEM form, for a tls:// scheduler.  [default: dask's settings]",
    )


_SCHEDULER_OPTIONS = (
    click.option(
        "--scheduler",
        "scheduler_name",
        callback=_scheduler_name,
        is_eager=True,  # it is known when the others are checked
        metavar="NAME",
        help="local, threads, tcp://host:8786, tls://host:8786 or a scheduler file (.json).  "
        "[default: dask's setting, else local]",
    ),
    click.option(
        "--workers",
        type=click.IntRange(1),
        callback=_check_applies,
        help="Worker processes of a local scheduler.  [default: one worker in this process]",
    ),
    click.option(
        "--threads-per-worker",
        type=click.IntRange(1),
        callback=_check_applies,
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
        callback=_dashboard,
        help="Address of a local scheduler's dashboard; on loopback if no host is named.",
    ),
    _tls_option("ca-file", "Certificate of the authority that signed all others"),
    _tls_option("cert", "Your certificate"),
    _tls_option("key", "The key of your certificate"),
)


def scheduler(command: _Command) -> _Command:
    """Add the options of `daskkm.passes.connection.connect`, its name as `scheduler_name`."""
    for option in reversed(_SCHEDULER_OPTIONS):
        command = option(command)
    return command


overwrite = click.option(
    "--overwrite",
    is_flag=True,
    help="Replace a store that does not hold what is asked for, and its labels.",
)
quiet = click.option(
    "--quiet",
    "-q",
    is_flag=True,
    help="No progress and no explanations; results, warnings and errors only.",
)
on_bad = click.option(
    "--on-bad",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    help="What to do with a file that is not an image, or does not fit the others.",
)


store = click.option(
    "--store",
    "store_path",
    type=LocalPath(),
    default=Path("store/tiles.zarr"),
    help="The Zarr store of tiles.",
)
