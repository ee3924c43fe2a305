"""Computation on the active Dask scheduler, with bounded waits."""

from __future__ import annotations

import asyncio
import logging
import math
import warnings
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

from daskkm.errors import DaskkmError, SchedulerError
from daskkm.passes.memory import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed import Client

_log = logging.getLogger(__name__)

# Longest waits, in seconds.
CONNECT_SECONDS = 10
SILENCE_SECONDS = 60
WORKERS_SECONDS = 60
_WATCH_SECONDS = 2
_POLL_SECONDS = 0.2
_NAMES: WeakKeyDictionary[Client, str] = WeakKeyDictionary()  # a closed client has no address
_COMPARED: WeakSet[Client] = WeakSet()  # clients of workers with the versions of this process
_ACTIVE: list[Client] = []


@contextmanager
def activate(client: Client) -> Iterator[None]:
    """Wait for workers of a client, then use the client until the end of the context."""
    with _translate_errors(client):
        client.sync(_wait_for_workers, client)
        _compare_versions_once(client)
    _ACTIVE.append(client)
    try:
        yield
    finally:
        _ACTIVE.remove(client)


def find_scheduler(scheduler: Any = None) -> Any:
    """Return the active client, for all later work, or without a client `scheduler`.

    Without its scheduler a client closes, and dask would then compute in this process.
    """
    client = _find_client(scheduler)
    return scheduler if client is None else client


def compute(*lazy: Any, scheduler: Any = None) -> tuple[Any, ...]:
    """Compute dask collections as `dask.compute` does, with bounded waits.

    Raise SchedulerError if the scheduler is lost or silent, no worker takes tasks, workers die of a
    task, or workers have another version of daskkm.
    """
    import dask

    client = _find_client(scheduler)
    if client is None:
        return tuple(dask.compute(*lazy, scheduler=scheduler))
    with _translate_errors(client):
        _compare_versions_once(client)
        return tuple(dask.compute(*lazy, scheduler=partial(_get, client)))


def persist(*lazy: Any, scheduler: Any = None) -> tuple[Any, ...]:
    """Start to compute dask collections, and keep the results, as `dask.persist` does."""
    import dask

    client = _find_client(scheduler)
    if client is None:
        return tuple(dask.persist(*lazy, scheduler=scheduler))
    with _translate_errors(client):
        _compare_versions_once(client)
        with _send_graph(client):
            return tuple(dask.persist(*lazy, scheduler=client))


def is_elsewhere(scheduler: Any = None) -> bool:
    """Return True if there is a client with workers in other processes."""
    client = _find_client(scheduler)
    return client is not None and not client.scheduler.address.startswith("inproc://")


def threads(scheduler: Any = None) -> int:
    """Return the number of threads of all workers."""
    client = _find_client(scheduler)
    if client is None:
        return _local_threads()
    return max(1, sum(int(info["nthreads"]) for info in _list_workers(client).values()))


def workers(scheduler: Any = None) -> list[Worker]:
    """Return threads and memory of each worker; without a client, those of this process."""
    client = _find_client(scheduler)
    if client is None:
        import psutil
        from distributed.system import memory_limit  # of the container, if any

        # Memory in use may hold the tiles themselves: only free memory counts.
        rest = memory_limit() - psutil.Process().memory_info().rss
        free = max(0, min(rest, psutil.virtual_memory().available))
        return [Worker("this process", _local_threads(), free, 0)]
    return [
        Worker(
            address,
            info["nthreads"],
            info["memory_limit"] or math.inf,
            info.get("metrics", {}).get("memory", 0),
        )
        for address, info in _list_workers(client).items()
    ]


def _find_client(scheduler: Any) -> Any:
    """Return the client that dask would use, or None; raise SchedulerError for a closed client."""
    import dask
    from dask.base import get_scheduler

    try:
        get = get_scheduler(scheduler=scheduler)
    except (RuntimeError, ValueError) as error:
        msg = (
            f"dask: no usable scheduler ({error}). "
            "Set a scheduler in dask.config, or use a Client that is not asynchronous"
        )
        raise SchedulerError(msg) from error
    if getattr(get, "__module__", "") == "dask.multiprocessing":
        _warn_of_processes()
    owner = getattr(get, "__self__", None)
    client: Any = owner if hasattr(owner, "scheduler_info") else None
    # dask ignores a closed client. Only a scheduler by name may replace the client.
    named = scheduler or dask.config.get("scheduler", None)
    last = client if client is not None or named or not _ACTIVE else _ACTIVE[-1]
    if last is not None:
        _name(last)  # while the address is known
        if last.status in ("closing", "closed"):
            raise _lost(last)
    return client


@cache
def _warn_of_processes() -> None:
    """Warn, once in this process, of the slowest scheduler of dask."""
    msg = (
        "dask's scheduler: processes, which copy tiles and start anew in every pass. "
        "Use dask.config.set(scheduler='threads'), or a distributed.LocalCluster"
    )
    warnings.warn(msg, stacklevel=3)


def _local_threads() -> int:
    import dask
    from dask.system import CPU_COUNT

    return int(dask.config.get("num_workers", None) or CPU_COUNT)


def _list_workers(client: Client) -> dict[str, dict[str, Any]]:
    """Return the scheduler's description of each worker, by address."""
    with _translate_errors(client):
        return dict(client.sync(_identify, client)["workers"])


def _get(client: Client, expr: Any, keys: Any, **kwargs: Any) -> Any:
    """Compute keys of a graph as `Client.get` does, but with bounded waits."""
    from distributed.worker import thread_state

    if getattr(thread_state, "key", False):  # within a task the worker waits
        return client.get(expr, keys, **kwargs)
    with _send_graph(client):
        futures = client.get(expr, keys, sync=False, **kwargs)
    return client.sync(_gather, client, futures)


def _send_graph(client: Client) -> AbstractContextManager[None]:
    """Return a context in which graphs for a scheduler in this process hold no tiles.

    The scheduler sends tiles to workers in other processes.
    """
    from distributed import LocalCluster

    from daskkm.passes import arrays  # not at the top: commands start without NumPy

    return (
        arrays.pickling_by_reference()
        if isinstance(client.cluster, LocalCluster)
        else nullcontext()
    )


async def _gather(client: Client, futures: Any) -> Any:
    """Return results of futures; raise SchedulerError if scheduler or workers are lost."""
    gathering = asyncio.ensure_future(client.gather(futures, asynchronous=True))
    watching = asyncio.ensure_future(_watch(client))
    try:
        await asyncio.wait({gathering, watching}, return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            await watching
        return gathering.result()
    except (SchedulerError, asyncio.CancelledError):
        # A cancelled `gathering` would leave tasks behind: cancel the futures.
        await client.cancel(futures, asynchronous=True)
        gathering.add_done_callback(lambda done: done.cancelled() or done.exception())
        raise
    finally:
        watching.cancel()


async def _watch(client: Client) -> None:
    """Raise SchedulerError once the scheduler is silent, or no worker takes tasks."""
    while True:
        await asyncio.sleep(_WATCH_SECONDS)
        await _wait_for_workers(client)


async def _wait_for_workers(client: Client) -> None:
    """Wait until a worker takes tasks; raise SchedulerError after a timeout."""
    now = asyncio.get_running_loop().time
    end = now() + _workers_timeout()
    while True:
        found = (await _identify(client))["workers"].values()
        if any(worker["status"] == "running" for worker in found):
            return
        if now() > end:
            raise _idle(client)
        await asyncio.sleep(_POLL_SECONDS)


def _workers_timeout() -> float:
    """Return the seconds to wait for workers: dask's setting, or the default."""
    import dask
    from dask.utils import parse_timedelta

    setting = dask.config.get("distributed.scheduler.no-workers-timeout", None)
    return WORKERS_SECONDS if setting is None else float(parse_timedelta(setting))


async def _identify(client: Client) -> dict[str, Any]:
    """Return the scheduler's description of scheduler and workers."""
    try:
        if client.status == "running":  # else the call would wait for a restart of the scheduler
            return dict(await asyncio.wait_for(client.scheduler.identity(), SILENCE_SECONDS))
    except TimeoutError as error:
        msg = (
            f"{_name(client)}: the scheduler has not answered for {SILENCE_SECONDS:g} s. "
            "See the log of the scheduler, and run again"
        )
        raise SchedulerError(msg) from error
    except OSError as error:
        raise _lost(client) from error
    raise _lost(client)


def _compare_versions_once(client: Client) -> None:
    """Compare versions before the first task: a worker without daskkm may die of a task."""
    from distributed import LocalCluster

    if client not in _COMPARED and not isinstance(client.cluster, LocalCluster):
        client.sync(_compare_versions, client)
        _COMPARED.add(client)


async def _compare_versions(client: Client) -> None:
    """Raise SchedulerError for another daskkm, or no zarr, elsewhere; warn of another zarr."""
    from importlib.metadata import version

    try:
        answer = client.get_versions(packages=["daskkm", "zarr"])
        found = await asyncio.wait_for(answer, CONNECT_SECONDS)
    except TimeoutError:  # the scheduler will remove a frozen worker
        _log.warning("%s: a worker does not answer; versions are not compared", _name(client))
        return
    except OSError as error:
        raise _lost(client) from error
    processes = {client.scheduler.address: found["scheduler"], **found["workers"]}
    for package in ("daskkm", "zarr"):
        for address, process in processes.items():
            here, there = version(package), process["packages"][package] or "missing"
            if here == there:
                continue
            msg = f"{_name(client)}: {package} is {here} here, but {there} at {address}"
            if package == "daskkm" or there == "missing":
                msg += ". Install equal versions, and restart the workers"
                raise SchedulerError(msg)
            warnings.warn(msg, stacklevel=2)


@contextmanager
def _translate_errors(client: Client) -> Iterator[None]:
    """Raise SchedulerError for errors of distributed."""
    from distributed import CancelledError, KilledWorker
    from distributed.comm import CommClosedError
    from distributed.scheduler import NoValidWorkerError, NoWorkerError

    name = _name(client)
    try:
        yield
    except DaskkmError:
        raise
    except (NoWorkerError, NoValidWorkerError) as error:
        raise _idle(client) from error
    except (CancelledError, CommClosedError) as error:
        if isinstance(error, CommClosedError) or client.status != "running":
            raise _lost(client) from error
        msg = f"{name}: the scheduler cancelled the work ({error}). See the log, and run again"
        raise SchedulerError(msg) from error
    except KilledWorker as error:
        msg = (
            f"{name}: {error.allowed_failures + 1} workers died of the same task, the last "
            f"{error.last_worker.address}. See the log of this worker, or give workers more memory"
        )
        raise SchedulerError(msg) from error


def _lost(client: Client) -> SchedulerError:
    msg = f"{_name(client)}: the connection to the scheduler was lost. Start a scheduler again"
    return SchedulerError(msg)


def _idle(client: Client) -> SchedulerError:
    return SchedulerError(
        f"{_name(client)}: no worker has taken tasks for {_workers_timeout():g} s. Start workers "
        f"with: dask worker {client.scheduler.address}. Give paused workers more memory"
    )


def _name(client: Client) -> str:
    """Return the name of a scheduler for messages."""
    from distributed import LocalCluster

    if client not in _NAMES:
        is_local = isinstance(client.cluster, LocalCluster)
        _NAMES[client] = "local" if is_local else str(client.scheduler.address)
    return _NAMES[client]
