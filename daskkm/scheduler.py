"""From what a user calls a scheduler to a connected client."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import signal
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskkm.errors import SchedulerError
from daskkm.plan import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed import Client

_CONNECT_SECONDS = 10
_WORKERS_SECONDS = 30
_CLOSE_SECONDS = 3


def check_name(name: str) -> str:
    """Return the name of a scheduler if it can be one.

    Parameters
    ----------
    name : str
        "local", "threads", an address with its protocol, or the path of a scheduler file.

    Returns
    -------
    str

    Raises
    ------
    SchedulerError
        If it is none of these, or there is no such file.
    """
    if name in ("local", "threads") or name.startswith(("tcp://", "tls://")):
        return name
    if not name.endswith(".json"):
        msg = (
            f"{name!r} is no scheduler; give local, threads, an address like "
            "tcp://host:8786 or the path of a scheduler file (.json)"
        )
        raise SchedulerError(msg)
    if not Path(name).is_file():
        msg = (
            f"{name}: there is no such scheduler file; "
            f"start one with: dask scheduler --scheduler-file {name}"
        )
        raise SchedulerError(msg)
    return name


@contextmanager
def connect(
    name: str,
    *,
    workers: int | None = None,
    threads_per_worker: int | None = None,
    memory_limit: str | None = None,
    dashboard_address: str = "127.0.0.1:8787",
) -> Iterator[Client | None]:
    """Connect to a scheduler, starting it if it is a local one, and make it the active one.

    On leaving, the client is closed, and so is a cluster that was started here.

    Parameters
    ----------
    name : str
        As for `check_name`. With "threads" dask's threads in this process do the work.
    workers : int, optional
        Worker processes of a local scheduler. By default there is one worker and it lives in
        this process.
    threads_per_worker : int, optional
        Of a local scheduler's workers, or of "threads". By default they share out the cores.
    memory_limit : str, optional
        Of each local worker, as in "2GB".
    dashboard_address : str
        Where a local scheduler's dashboard listens.

    Yields
    ------
    distributed.Client, or None for "threads"

    Raises
    ------
    SchedulerError
        If it cannot be reached, has no workers, cannot be started, or is lost while in use.
    """
    import dask
    from dask.system import CPU_COUNT

    check_name(name)
    if name == "threads":
        with dask.config.set(scheduler="threads", num_workers=threads_per_worker or CPU_COUNT):
            yield None
        return
    # First of all: its defaults would go with a setting that was made before them.
    import distributed  # noqa: F401

    with ExitStack() as stack:
        # The stack of centroids travels in the graph; dask would warn of it at 10 MB.
        warn = {"distributed.admin.large-graph-warning-threshold": "1GB"}
        stack.enter_context(dask.config.set(warn))
        if name == "local":
            share = max(1, CPU_COUNT // (workers or 1))
            threads = threads_per_worker or share
            client = _local(stack, workers, threads, memory_limit or "auto", dashboard_address)
        else:
            client = stack.enter_context(_remote(name))
        with _errors_named(name):
            yield client


def threads(scheduler: str | None = None) -> int:
    """Return how many tasks would be done at a time.

    Parameters
    ----------
    scheduler : str, optional
        One of dask's, by name; by default the active client's, or dask's default.

    Returns
    -------
    int
    """
    client = _client(scheduler)
    return max(1, sum(client.nthreads().values())) if client else _local_threads()


def workers(scheduler: str | None = None) -> list[Worker]:
    """Return what is known of the memory of those that would do the work.

    Parameters
    ----------
    scheduler : str, optional
        As for `threads`.

    Returns
    -------
    list of Worker
        This process, if there is no client.
    """
    client = _client(scheduler)
    if client is None:
        import psutil
        from distributed.system import memory_limit  # the container's, if it is in one

        # What is in use here may be the tiles themselves: what is left counts.
        left = memory_limit() - psutil.Process().memory_info().rss
        free = max(0, min(left, psutil.virtual_memory().available))
        return [Worker("this process", _local_threads(), free, 0)]
    return [
        Worker(
            address,
            info["nthreads"],
            info["memory_limit"] or math.inf,
            info.get("metrics", {}).get("memory", 0),
        )
        for address, info in client.scheduler_info(n_workers=-1)["workers"].items()
    ]


def _client(scheduler: str | None) -> Any:
    """Return the client that would do the work, if it is one."""
    from dask.base import get_scheduler

    found = getattr(get_scheduler(scheduler=scheduler), "__self__", None)
    return found if hasattr(found, "scheduler_info") else None


def _local_threads() -> int:
    import dask
    from dask.system import CPU_COUNT

    return int(dask.config.get("num_workers", None) or CPU_COUNT)


def _local(
    stack: ExitStack, workers: int | None, threads: int, memory_limit: str, dashboard_address: str
) -> Client:
    """Start a scheduler and workers on this machine, to be stopped with the exit stack."""
    import dask
    from distributed import Client, LocalCluster

    # Threads of this process keep all cores busy, as the kernel and the reads release the GIL,
    # and they are ready sooner: a whole sweep of 5,610 digits takes 5.3 s this way and 8.5 s with
    # two worker processes, which must each import everything (medians of runs in turn, 2 cores).
    layout = {"processes": False} if workers is None else {"host": "127.0.0.1"}
    host = dashboard_address.rpartition(":")[0]
    link = f"{{scheme}}://{host or '{host}'}:{{port}}/status"
    stack.enter_context(dask.config.set({"distributed.dashboard.link": link}))
    try:
        with nullcontext() if workers is None else _interrupts_ignored():
            cluster = LocalCluster(
                n_workers=workers or 1,
                threads_per_worker=threads,
                memory_limit=memory_limit,
                dashboard_address=dashboard_address,
                worker_dashboard_address="127.0.0.1:0",  # else on all interfaces
                # The error of a task that fails reaches the client; its log would be a second.
                silence_logs=logging.CRITICAL,
                **layout,
            )
    except (OSError, RuntimeError) as error:
        msg = (
            f"a local scheduler with its dashboard at {dashboard_address} cannot start "
            f"({error}); choose another address with --dashboard-address"
        )
        raise SchedulerError(msg) from error
    stack.enter_context(cluster)
    client: Client = stack.enter_context(Client(cluster))
    return client


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Start processes that a Ctrl-C does not reach: a terminal sends it to all of a group.

    They inherit that it is ignored, and their parent stops them.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    except Exception:
        signal.signal(signal.SIGINT, before)
        raise
    # Not when the process is ending: what ends it has its own mind about a second signal.
    signal.signal(signal.SIGINT, before)


@contextmanager
def _remote(name: str) -> Iterator[Client]:
    """Connect to a scheduler that someone else started."""
    from distributed import Client

    address = _address_in(name) if name.endswith(".json") else name
    try:
        # distributed bounds the connection but not what it then waits to hear: ask first.
        asyncio.run(asyncio.wait_for(_identify(address), _CONNECT_SECONDS))
        client = Client(address, timeout=_CONNECT_SECONDS)
    except (OSError, TimeoutError, TypeError, ValueError) as error:
        why = str(error) or f"waited {_CONNECT_SECONDS} s"
        msg = f"{address}: no scheduler answers there ({why}); start one with: dask scheduler"
        raise SchedulerError(msg) from error
    # A connection that is lost is said once, by the error that it becomes.
    for module in ("client", "batched"):
        logging.getLogger(f"distributed.{module}").setLevel(logging.CRITICAL)
    try:
        try:
            client.wait_for_workers(1, timeout=_WORKERS_SECONDS)
        except TimeoutError as error:
            msg = f"{address}: the scheduler has no workers; start some with: dask worker {address}"
            raise SchedulerError(msg) from error
        yield client
    finally:
        with suppress(TimeoutError, OSError):  # a scheduler that hangs must not keep us
            client.close(timeout=_CLOSE_SECONDS)


async def _identify(address: str) -> None:
    from distributed import rpc
    from distributed.security import Security

    arguments = Security().get_connection_args("client")
    async with rpc(address, connection_args=arguments) as scheduler:
        await scheduler.identity()


@contextmanager
def _errors_named(name: str) -> Iterator[None]:
    """Turn the ways in which distributed gives up into one that says where."""
    from distributed import CancelledError, KilledWorker
    from distributed.comm import CommClosedError

    try:
        yield
    except (CancelledError, CommClosedError) as error:
        msg = f"{name}: the connection to the scheduler was lost; start it and run again"
        raise SchedulerError(msg) from error
    except KilledWorker as error:
        msg = f"{name}: workers died of the same task again and again; give them more memory"
        raise SchedulerError(msg) from error


def _address_in(file: str) -> str:
    """Return the address that a scheduler file holds."""
    try:
        return str(json.loads(Path(file).read_text())["address"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = (
            f"{file}: this is no scheduler file ({error}); "
            f"make one with: dask scheduler --scheduler-file {file}"
        )
        raise SchedulerError(msg) from error
