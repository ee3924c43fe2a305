"""Shared options of commands, and types of values."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from daskkm.errors import ParameterError, SchedulerError
from daskkm.passes import connection
from daskkm.storage import locations

if TYPE_CHECKING:
    from collections.abc import Callable

SETTINGS: dict[str, Any] = {"show_default": True, "help_option_names": ["-h", "--help"]}
_MAX_K = 100_000
_MIN_MEMORY = 300_000_000  # of a worker
# Names of parameters that apply to each kind of scheduler.
_APPLY_TO = {
    "local": ("workers", "threads_per_worker", "memory_limit", "dashboard_address"),
    "threads": ("threads_per_worker",),
    "tcp": (),
    "tls": ("tls_ca_file", "tls_cert", "tls_key"),
}
_Command = TypeVar("_Command", bound="Callable[..., Any]")


class LocationType(click.Path):
    """Local path or URL of a file or folder."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a Location; wrong usage if the URL cannot be opened."""
        text = str(value)
        if not locations.is_url(text):  # the path as given, for messages
            text = str(super().convert(value, param, ctx))
        try:
            return locations.as_location(text)
        except ParameterError as error:
            self.fail(str(error), param, ctx)


def parse_ks(text: str) -> tuple[int, ...]:
    """Return the numbers of clusters in text such as 2,4,8-12: ascending, each once."""
    ks: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part, re.ASCII)
        lo, hi = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= lo <= hi <= _MAX_K:
            msg = f"{part[:20]!r}: not a k or an ascending range from 1 to {_MAX_K}. Give 2 or 3-7"
            raise click.BadParameter(msg)
        ks.update(range(lo, hi + 1))
    return tuple(sorted(ks))


def parse_tile(text: str) -> tuple[int, int]:
    """Return height and width from text such as 16 or 16x24."""
    found = re.fullmatch(r"0*([1-9]\d{0,8})(?:x0*([1-9]\d{0,8}))?", text.lower(), re.ASCII)
    if not found:
        msg = f"{text[:20]!r}: not a size. Give 16 or 16x24, in pixels"
        raise click.BadParameter(msg)
    return (int(found[1]), int(found[2] or found[1]))


def is_given(name: str) -> bool:
    """Return True if the option with this parameter name is on the command line."""
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


def _choose_scheduler(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str:
    """Return the name of the scheduler: the option, else dask's setting, else local."""
    setting = ""
    if value is None:
        value, setting = _read_dask_setting()
    try:
        return connection.check_name(value)
    except SchedulerError as error:
        msg = f"{error}{setting}"
        raise click.BadParameter(msg) from error


def _read_dask_setting() -> tuple[str, str]:
    """Return the scheduler of dask's configuration, else local, and a note on the setting."""
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
            f"warning: dask's setting scheduler: {name!r} is ignored. The command uses local "
            "(--scheduler)",
            err=True,
        )
    return "local", ""


def _check_applies(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Raise UsageError if an option does not apply to the scheduler."""
    name = ctx.params["scheduler_name"]
    options = _APPLY_TO.get(name.partition(":")[0], _APPLY_TO["tls"])
    if is_given(str(param.name)) and param.name not in options:
        by_dask = name != "local" and not is_given("scheduler_name")
        why = ", which dask is set to; name another" if by_dask else ""
        msg = f"{param.opts[0]}: not used with --scheduler {name}{why}"
        raise click.UsageError(msg)
    return value


def check_memory(text: str) -> str:
    """Return a size such as 2GB; raise BadParameter if too little for a worker."""
    from dask.utils import parse_bytes

    with suppress(ValueError, OverflowError):
        if parse_bytes(text) >= _MIN_MEMORY:
            return text
    msg = f"{text!r}: not a size of at least 300MB. Give a size such as 2GB"
    raise click.BadParameter(msg)


def check_address(text: str) -> str:
    """Return an address such as 127.0.0.1:8787; raise BadParameter for other text."""
    if not re.fullmatch(r"[^:/]*:\d{1,5}", text) or int(text.rpartition(":")[2]) > 65535:
        msg = f"{text!r}: not an address. Give a host and port, such as 127.0.0.1:8787"
        raise click.BadParameter(msg)
    return text


def _make_tls_option(name: str, content: str) -> Callable[[_Command], _Command]:
    return click.option(
        f"--tls-{name}",
        type=click.Path(exists=True, dir_okay=False),
        callback=_check_applies,
        help=f"{content}, in PEM form, for a tls:// scheduler.  [default: dask's settings]",
    )


_SCHEDULER_OPTIONS = (
    click.option(
        "--scheduler",
        "scheduler_name",
        callback=_choose_scheduler,
        is_eager=True,  # before callbacks of other options
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
        type=check_memory,
        metavar="SIZE",
        callback=_check_applies,
        help="Memory of each local worker, as in 2GB.  [default: its share of the machine]",
    ),
    click.option(
        "--dashboard-address",
        default="127.0.0.1:8787",
        type=check_address,
        metavar="ADDRESS",
        callback=_check_applies,
        help="Address of a local scheduler's dashboard; on loopback if no host is named.",
    ),
    _make_tls_option("ca-file", "Certificate of the authority that signed all others"),
    _make_tls_option("cert", "Your certificate"),
    _make_tls_option("key", "The key of your certificate"),
)


def scheduler(command: _Command) -> _Command:
    """Add the options of `daskkm.passes.connection.connect`."""
    for option in reversed(_SCHEDULER_OPTIONS):
        command = option(command)
    return command


overwrite = click.option(
    "--overwrite",
    is_flag=True,
    help="Replace a store of other content, with its labels.",
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
    help="Fail at, or skip, a file that is not an image or does not fit the others.",
)
store = click.option(
    "--store",
    "store_path",
    type=LocationType(),
    default="store/tiles.zarr",
    help="The Zarr store of tiles.",
)
