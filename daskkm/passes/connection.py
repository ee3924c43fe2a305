"""Connection to a Dask scheduler: local, or remote."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskkm.errors import SchedulerError, reason
from daskkm.passes import scheduler

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from distributed import Client, Security

_CLOSE_SECONDS = 3
_ADDRESS = ("tcp://", "tls://")
# Names of parameters of `connect` in distributed.
_TLS = {"tls_ca_file": "tls_ca_file", "tls_cert": "tls_client_cert", "tls_key": "tls_client_key"}


def check_name(name: str) -> str:
    """Return the name of a scheduler; raise SchedulerError for an invalid name."""
    if name in ("local", "threads") or name.startswith(_ADDRESS) or Path(name).is_file():
        return name
    msg = (
        f"{name!r}: not a scheduler. Give local, threads, an address like tcp://host:8786, or a "
        "file written with: dask scheduler --scheduler-file FILE"
    )
    raise SchedulerError(msg)


def check_reachable(name: str, **settings: Any) -> None:
    """Raise SchedulerError if a remote scheduler does not answer."""
    if name not in ("local", "threads"):
        _find(name, settings)


@contextmanager
def connect(
    name: str,
    *,
    workers: int | None = None,
    threads_per_worker: int | None = None,
    memory_limit: str | None = None,
    dashboard_address: str = "127.0.0.1:8787",
    **tls: str | None,
) -> Iterator[Client | None]:
    """Connect to a scheduler and make the client the active client; close the client at the end.

    "local" starts a scheduler on this machine, with a worker in this process or with `workers`
    processes. "threads" uses dask's threads and yields None. Any other name is an address or a
    scheduler file, with the files `tls_ca_file`, `tls_cert` and `tls_key` for a tls:// address.
    """
    import dask
    from dask.system import CPU_COUNT

    check_name(name)
    if name == "threads":
        with dask.config.set(scheduler="threads", num_workers=threads_per_worker or CPU_COUNT):
            yield None
        return
    import distributed  # noqa: F401  # before dask.config.set, which would undo its defaults

    if name == "local":
        threads = threads_per_worker or max(1, CPU_COUNT // (workers or 1))
        connection = _start_local(workers, threads, memory_limit or "auto", dashboard_address)
    else:
        connection = _connect_remote(name, tls)
    # The stack of centroids travels in the graph; dask would warn above 10 MB.
    warn = {"distributed.admin.large-graph-warning-threshold": "1GB"}
    with dask.config.set(warn), connection as client, scheduler.activate(client):
        yield client


@contextmanager
def _start_local(
    n_workers: int | None, threads: int, memory_limit: str, dashboard_address: str
) -> Iterator[Client]:
    """Run a scheduler and workers on this machine within the context."""
    import dask
    from distributed import Client, LocalCluster

    # Threads of this process keep all cores busy, because kernels and reads release the GIL. Worker
    # processes import everything first: a sweep of 5,610 digits takes 8.5 s with two processes, and
    # 5.3 s with threads (medians, 2 cores).
    layout = {"processes": False} if n_workers is None else {"host": "127.0.0.1"}
    host, _, port = dashboard_address.rpartition(":")
    host = host or "127.0.0.1"
    settings = {
        "distributed.dashboard.link": f"{{scheme}}://{host}:{{port}}/status",
        "distributed.comm.require-encryption": False,  # nothing leaves the machine
    }
    with dask.config.set(settings):
        try:
            with _block_interrupts():
                cluster = LocalCluster(
                    n_workers=n_workers or 1,
                    threads_per_worker=threads,
                    memory_limit=memory_limit,
                    dashboard_address=f"{host}:{port}",
                    worker_dashboard_address="127.0.0.1:0",  # else on all interfaces
                    # The error of a failed task reaches the client without the log.
                    silence_logs=logging.CRITICAL,
                    **layout,
                )
        except (OSError, RuntimeError) as error:
            msg = f"local scheduler: cannot start ({_first_cause(error)}). Try another address"
            raise SchedulerError(msg, options=("dashboard_address",)) from error
        with cluster, Client(cluster) as client:
            yield client


@contextmanager
def _block_interrupts() -> Iterator[None]:
    """Block Ctrl-C in threads and processes that start within the context."""
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # a later start would unblock signals
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def _connect_remote(name: str, tls: Mapping[str, str | None]) -> Iterator[Client]:
    """Connect to a running scheduler."""
    from distributed import Client

    address, security = _find(name, tls)
    for module in ("client", "batched"):  # a lost connection is an error, and needs no log
        logging.getLogger(f"distributed.{module}").setLevel(logging.CRITICAL)
    with _translate_connection_errors(address):
        client = Client(address, timeout=scheduler.CONNECT_SECONDS, security=security)
    try:
        yield client
    finally:
        with suppress(TimeoutError, OSError):  # a frozen scheduler must not delay the end
            client.close(timeout=_CLOSE_SECONDS)


def _find(name: str, settings: Mapping[str, Any]) -> tuple[str, Security]:
    """Return address and certificates of a scheduler; raise SchedulerError without an answer."""
    from distributed import Security
    from distributed.utils import LoopRunner

    address = name if name.startswith(_ADDRESS) else _read_address(name)
    given = {_TLS[name]: file for name, file in settings.items() if name in _TLS and file}
    with _translate_connection_errors(address):
        security = Security(require_encryption=True, **given) if given else Security()
        # In a loop of another thread: in a notebook a loop runs in this thread.
        kind = LoopRunner().run_sync(_ask_type, address, security)
    if kind != "Scheduler":
        msg = f"{address}: not a scheduler but a {kind.lower()}. Give the address of the scheduler"
        raise SchedulerError(msg)
    return address, security


async def _ask_type(address: str, security: Security) -> str:
    """Return the type of the server at an address; without an answer Client would wait for ever."""
    from distributed import rpc

    arguments = security.get_connection_args("client")
    seconds = scheduler.CONNECT_SECONDS
    async with rpc(address, timeout=seconds, connection_args=arguments) as server:
        return str((await asyncio.wait_for(server.identity(), 1.5 * seconds))["type"])


def _read_address(file: str) -> str:
    """Return the address in a scheduler file."""
    try:
        return str(json.loads(Path(file).read_text())["address"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        msg = f"{file}: not a scheduler file ({error!r}). Write a file with: dask scheduler"
        raise SchedulerError(msg) from error


@contextmanager
def _translate_connection_errors(name: str) -> Iterator[None]:
    """Raise SchedulerError for errors of distributed and ssl."""
    try:
        yield
    except Exception as error:
        is_tls = name.startswith("tls://")
        start = "Check the address, or start a scheduler with: dask scheduler"
        hint = "Check address and certificates" if is_tls else start
        msg = f"{name}: no scheduler answers ({_first_cause(error)}). {hint}"
        raise SchedulerError(msg, options=tuple(_TLS) if is_tls else ()) from error


def _first_cause(error: BaseException) -> str:
    """Return a description of the first cause of an error, other than a cancellation."""
    while cause := error.__cause__ or error.__context__:
        if isinstance(cause, asyncio.CancelledError):
            break
        error = cause
    return reason(error)
