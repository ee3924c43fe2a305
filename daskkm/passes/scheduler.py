"""A connected client, and what it computes: never in vain, and never without end."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import socket
import warnings
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import cache, partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from daskkm.cli import interrupts
from daskkm.errors import DaskkmError, SchedulerError
from daskkm.passes import addresses
from daskkm.passes.memory import Worker

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager

    import dask.array as da
    from distributed import Client

_CLOSE_SECONDS = 3
# How long a pass goes on without a sign of the scheduler, or without workers that take tasks.
_SILENT_SECONDS = 60
_WORKERS_SECONDS = 60
_LOOK_SECONDS = 2
_POLL_SECONDS = 0.2
# Of each client the processes that were asked for their versions, by where they are.
_ASKED: WeakKeyDictionary[Client, dict[str, str]] = WeakKeyDictionary()
# What each client's scheduler is called, which a client that is closed has forgotten.
_NAMES: WeakKeyDictionary[Client, str] = WeakKeyDictionary()
# The clients of those who are connected now.
_CONNECTED: list[Client] = []


@contextmanager
def connect(
    name: str,
    *,
    workers: int | None = None,
    threads_per_worker: int | None = None,
    memory_limit: str | None = None,
    dashboard_address: str = "127.0.0.1:8787",
    tls_ca_file: str | None = None,
    tls_cert: str | None = None,
    tls_key: str | None = None,
) -> Iterator[Client | None]:
    """Connect to a scheduler, starting it if it is a local one, and make it the active one.

    On leaving, the client is closed, and so is a cluster that was started here.

    Parameters
    ----------
    name : str
        As for `daskkm.passes.addresses.check_name`. With "threads" dask's threads in this process
        do
        the work.
    workers : int, optional
        Worker processes of a local scheduler. By default there is one worker and it lives in
        this process.
    threads_per_worker : int, optional
        Of a local scheduler's workers, or of "threads". By default they share out the cores.
    memory_limit : str, optional
        Of each local worker, as in "2GB".
    dashboard_address : str
        Where a local scheduler's dashboard listens: on loopback, if no host is named.
    tls_ca_file, tls_cert, tls_key : str, optional
        For a scheduler that others started, at a tls:// address: files in PEM form that hold the
        certificate of the authority that signed all others, a certificate to show, and its key.
        By default those of dask's settings (``distributed.comm.tls``).

    Yields
    ------
    distributed.Client, or None for "threads"

    Raises
    ------
    SchedulerError
        If it cannot be reached, has no workers, or other versions of daskkm on some, cannot be
        started, or is lost while in use; or if a certificate is missing or refused.
    """
    import dask
    from dask.system import CPU_COUNT

    addresses.check_name(name)
    if name == "threads":
        with dask.config.set(scheduler="threads", num_workers=threads_per_worker or CPU_COUNT):
            yield None
        return
    # First of all: its defaults would go with a setting that was made before them.
    import distributed  # noqa: F401

    _patience()  # a setting that is none is said before anything is started
    with ExitStack() as stack:
        # The stack of centroids travels in the graph; dask would warn of it at 10 MB.
        warn = {"distributed.admin.large-graph-warning-threshold": "1GB"}
        stack.enter_context(dask.config.set(warn))
        if name == "local":
            share = max(1, CPU_COUNT // (workers or 1))
            threads = threads_per_worker or share
            dashboard = addresses.dashboard(dashboard_address)
            scheduler = _local(workers, threads, memory_limit or "auto", dashboard)
        else:
            scheduler = _remote(name, tls_ca_file, tls_cert, tls_key)
        client = stack.enter_context(scheduler)
        _CONNECTED.append(client)
        stack.callback(_CONNECTED.remove, client)
        yield client


def check_reachable(
    name: str,
    *,
    tls_ca_file: str | None = None,
    tls_cert: str | None = None,
    tls_key: str | None = None,
) -> None:
    """See, before long work, that a scheduler that others started can be connected to after it.

    Parameters
    ----------
    name : str
    tls_ca_file, tls_cert, tls_key : str, optional
        As for `connect`.

    Raises
    ------
    SchedulerError
        If it cannot be reached, a certificate is missing or refused, or a setting is none.
    """
    _patience()
    if name not in ("local", "threads"):
        addresses.find(name, tls_ca_file, tls_cert, tls_key)


def chosen(scheduler: str | None = None) -> Any:
    """Return who would do the work, to be asked for it again: nobody else takes its place.

    A client that has lost its scheduler closes itself after a while, and dask would then go on
    in this process.

    Parameters
    ----------
    scheduler : str, optional
        As for `threads`.

    Returns
    -------
    distributed.Client, or str or None as it was given

    Raises
    ------
    SchedulerError
        If its connection is lost already.
    """
    client = _client(scheduler)
    return scheduler if client is None else client


def compute(*lazy: Any, scheduler: Any = None) -> tuple[Any, ...]:
    """Compute dask collections, as `dask.compute` does, and never wait in vain.

    Parameters
    ----------
    *lazy : dask collections
    scheduler : str or distributed.Client, optional
        As for `threads`.

    Returns
    -------
    tuple
        A result each.

    Raises
    ------
    SchedulerError
        If the scheduler is lost, or says nothing for a minute; if for so long there are no workers
        that take tasks (or as long as dask's ``distributed.scheduler.no-workers-timeout`` says);
        if workers die of a task again and again; if they cannot import what it needs; or if one
        has another version of daskkm, also if it came meanwhile.
    """
    import dask

    client = _client(scheduler)
    if client is None:
        return tuple(dask.compute(*lazy, scheduler=scheduler))
    with _errors_named(client):
        if client not in _ASKED:  # before the first task: of one without daskkm a worker may die
            client.sync(_check, client)
        return tuple(dask.compute(*lazy, scheduler=partial(_get, client)))


def persist(*lazy: Any, scheduler: Any = None) -> tuple[Any, ...]:
    """Have dask collections computed and kept, as `dask.persist` does.

    Parameters
    ----------
    *lazy, scheduler
        As for `compute`.

    Returns
    -------
    tuple
        A collection each. Where there is a client, they may still be computed when they are
        returned: `compute` waits for what is asked of them.

    Raises
    ------
    SchedulerError
        As `compute`.
    """
    import dask

    client = _client(scheduler)
    if client is None:
        return tuple(dask.persist(*lazy, scheduler=scheduler))
    with _errors_named(client):
        if client not in _ASKED:
            client.sync(_check, client)
        with _sending(client):
            return tuple(dask.persist(*lazy, scheduler=client))


def compute_chunk_sizes(array: da.Array, scheduler: Any = None) -> da.Array:
    """Return a dask array whose numbers of rows are known, after reading it.

    Parameters
    ----------
    array : dask array
        Its sizes along the other axes are known.
    scheduler : str or distributed.Client, optional
        As for `threads`.

    Returns
    -------
    dask array

    Raises
    ------
    SchedulerError
        As `compute`.
    """
    import dask.array as da

    lengths = array.map_blocks(
        _length, dtype=int, chunks=((1,) * array.numblocks[0], *((1,) for _ in array.shape[1:]))
    )
    (found,) = compute(lengths, scheduler=scheduler)
    chunks = tuple(map(int, found.ravel())), *array.chunks[1:]
    return da.Array(array.dask, array.name, chunks, meta=array._meta)


def _length(block: Any) -> Any:
    import numpy as np

    return np.full((1,) * block.ndim, len(block))


def is_elsewhere(scheduler: Any = None) -> bool:
    """Return True if there is a client, and not all of its workers are in this process.

    Parameters
    ----------
    scheduler : str or distributed.Client, optional
        As for `threads`.
    """
    client = _client(scheduler)
    return client is not None and not client.scheduler.address.startswith("inproc://")


def threads(scheduler: Any = None) -> int:
    """Return how many tasks would be done at a time.

    Parameters
    ----------
    scheduler : str or distributed.Client, optional
        One of dask's, by name, or what `chosen` returned; by default the active client's, or
        dask's default.

    Returns
    -------
    int
    """
    client = _client(scheduler)
    if client is None:
        return _local_threads()
    return max(1, sum(int(info["nthreads"]) for info in _workers_of(client).values()))


def workers(scheduler: Any = None) -> list[Worker]:
    """Return what is known of the memory of those that would do the work.

    Parameters
    ----------
    scheduler : str or distributed.Client, optional
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
        for address, info in _workers_of(client).items()
    ]


def _client(scheduler: Any) -> Any:
    """Return the client that would do the work, if it is one, and is still there."""
    import dask
    from dask.base import get_scheduler

    try:
        get = get_scheduler(scheduler=scheduler)
    except RuntimeError as error:
        msg = f"no scheduler can be used ({error}); make a Client that is not asynchronous"
        raise SchedulerError(msg) from error
    except ValueError as error:  # a name that dask does not know
        msg = f"dask's scheduler is not known ({error}); set another in dask.config"
        raise SchedulerError(msg) from error
    if getattr(get, "__module__", "") == "dask.multiprocessing":
        _warn_of_processes()
    found = getattr(get, "__self__", None)
    client: Any = found if hasattr(found, "scheduler_info") else None
    # One that has closed itself is not dask's choice any more: nobody takes its place, unless it is
    # another's by name.
    named = scheduler or dask.config.get("scheduler", None)
    for each in [client] if client is not None else [] if named else _CONNECTED[-1:]:
        _name(each)  # while it is known
        if each.status in ("closing", "closed"):
            raise _lost(each)
    return client


@cache
def _warn_of_processes() -> None:
    """Warn, once in this process, of the slowest of dask's schedulers."""
    msg = (
        "dask's scheduler: processes, which copy tiles and start anew in every pass. "
        "Use dask.config.set(scheduler='threads'), or a distributed.LocalCluster."
    )
    warnings.warn(msg, stacklevel=3)


def _local_threads() -> int:
    import dask
    from dask.system import CPU_COUNT

    return int(dask.config.get("num_workers", None) or CPU_COUNT)


def _workers_of(client: Client) -> dict[str, dict[str, Any]]:
    """Return what the scheduler knows of each worker, by its address."""
    with _errors_named(client):
        return dict(client.sync(_check, client)["workers"])


def _get(client: Client, expr: Any, keys: Any, **kwargs: Any) -> Any:
    """Compute keys of a graph as `Client.get` does, which waits for ever."""
    from distributed.worker import thread_state

    if getattr(thread_state, "key", False):  # a task itself: its worker knows how to wait
        return client.get(expr, keys, **kwargs)
    with _sending(client):
        futures = client.get(expr, keys, sync=False, **kwargs)
    return client.sync(_gather, client, futures)


def _sending(client: Client) -> AbstractContextManager[None]:
    """Return a context in which a graph is sent, without tiles if the scheduler is in this process.

    It has them already. It sends them on to workers in other processes.
    """
    from distributed import LocalCluster

    from daskkm.passes import arrays  # not at the top: commands begin without NumPy

    return (
        arrays.pickling_by_reference()
        if isinstance(client.cluster, LocalCluster)
        else nullcontext()
    )


async def _gather(client: Client, futures: Any) -> Any:
    """Wait for results as long as there is someone to bring them, and see who that was."""
    gathering = asyncio.ensure_future(client.gather(futures, asynchronous=True))
    watching = asyncio.ensure_future(_watch(client))
    try:
        await asyncio.wait({gathering, watching}, return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            await watching
        watching.cancel()
        await _check(client)  # workers that came meanwhile
        return gathering.result()
    except (SchedulerError, asyncio.CancelledError):
        # Not the task, which would leave tasks of its own behind: it ends by its futures.
        await client.cancel(futures, asynchronous=True)
        gathering.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        raise
    finally:
        watching.cancel()


async def _watch(client: Client) -> None:
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        await _wait_for_workers(client)


async def _wait_for_workers(client: Client) -> None:
    """Return when there are workers that take tasks."""
    now = asyncio.get_running_loop().time
    patience = _patience()
    since = now()
    while True:
        found = (await _check(client))["workers"]
        if any(worker["status"] == "running" for worker in found.values()):
            return
        if now() - since > patience:
            raise _idle(client, found, patience)
        await asyncio.sleep(_POLL_SECONDS)


async def _check(client: Client) -> dict[str, Any]:
    """Return what a scheduler says of itself, once it and its workers are known to have our daskkm.

    Each is asked once; a worker that does not answer, the next time again.
    """
    from importlib.metadata import version

    found: dict[str, Any] = await _answer(client, "identity")
    there = {found["address"]: found["id"]}
    there |= {address: worker["local_directory"] for address, worker in found["workers"].items()}
    known = _ASKED.get(client, {})
    new = {address for address, process in there.items() if known.get(address) != process}
    if new:
        here = {package: version(package) for package in ("daskkm", "zarr")}
        versions = await _versions(client, list(here), found["address"], new)
        _compare(client, here, versions)
        new -= versions.keys()
    _ASKED[client] = {address: there[address] for address in there.keys() - new}
    return found


async def _answer(client: Client, ask: str, **arguments: Any) -> Any:
    """Return what a scheduler answers, which may take it a while, but not for ever."""
    try:
        if client.status == "running":  # else it would be waited for until it is there again
            asking = getattr(client.scheduler, ask)(**arguments)
            return await asyncio.wait_for(asking, _SILENT_SECONDS)
    except TimeoutError as error:
        raise _silent(client) from error
    except OSError as error:
        raise _lost(client) from error
    raise _lost(client)


def _patience() -> float:
    """Return how many seconds to wait for workers: a minute, unless dask is told otherwise."""
    import dask
    from dask.utils import parse_timedelta

    name = "distributed.scheduler.no-workers-timeout"
    setting = dask.config.get(name, None)
    try:
        return _WORKERS_SECONDS if setting is None else float(parse_timedelta(setting))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        msg = f"{name} is {setting!r} in dask's settings, which is no time; give one like 60s"
        raise SchedulerError(msg) from error


def _lost(client: Client) -> SchedulerError:
    msg = f"{_name(client)}: the connection to the scheduler was lost; start it and run again"
    return SchedulerError(msg)


def _silent(client: Client) -> SchedulerError:
    msg = (
        f"{_name(client)}: the scheduler has not answered for {_SILENT_SECONDS:g} s; "
        "see what keeps it, and run again"
    )
    return SchedulerError(msg)


def _idle(client: Client, workers: Mapping[str, Any], patience: float) -> SchedulerError:
    if workers:
        what = f"for {patience:g} s all workers have paused, their memory full: {_some(workers)}"
        do = "give them more memory"
    else:
        what = f"for {patience:g} s there have been no workers"
        do = f"start some with: dask worker {client.scheduler.address}"
    msg = f"{_name(client)}: {what}; {do}"
    return SchedulerError(msg)


def _name(client: Client) -> str:
    """Return what a scheduler is called in messages."""
    from distributed import LocalCluster

    if client not in _NAMES:
        local = isinstance(client.cluster, LocalCluster)
        _NAMES[client] = "local" if local else str(client.scheduler.address)
    return _NAMES[client]


def _some(names: Iterable[str]) -> str:
    """Return the first of many names, in words."""
    first, *more = sorted(names)
    return f"{first} and {len(more)} more" if more else first


@contextmanager
def _local(
    workers: int | None, threads: int, memory_limit: str, dashboard_address: str
) -> Iterator[Client]:
    """Start a scheduler and workers on this machine, and stop them at the end."""
    import dask
    from distributed import Client, LocalCluster
    from distributed.utils import LoopRunner

    # Threads of this process keep all cores busy, as the kernel and the reads release the GIL,
    # and they are ready sooner: a whole sweep of 5,610 digits takes 5.3 s this way and 8.5 s with
    # two worker processes, which must each import everything (medians of runs in turn, 2 cores).
    layout = {"processes": False} if workers is None else {"host": "127.0.0.1"}
    host = dashboard_address.partition(":")[0]
    settings = {
        "distributed.dashboard.link": f"{{scheme}}://{host}:{{port}}/status",
        "distributed.comm.require-encryption": False,  # nothing leaves the machine
    }
    with dask.config.set(settings), ExitStack() as stack:
        try:
            if workers is not None:
                from multiprocessing import resource_tracker

                # Its start lets interrupts through again in whichever thread needs it first.
                resource_tracker.ensure_running()
            with interrupts.postponed():
                loop = LoopRunner()
                with interrupts.unreached():
                    loop.start()
                stack.callback(loop.stop)
                cluster = stack.enter_context(
                    LocalCluster(
                        loop=loop.loop,
                        n_workers=workers or 1,
                        threads_per_worker=threads,
                        memory_limit=memory_limit,
                        dashboard_address=dashboard_address,
                        worker_dashboard_address="127.0.0.1:0",  # else on all interfaces
                        # The error of a failed task reaches the client; its log would be a second.
                        silence_logs=logging.CRITICAL,
                        **layout,
                    )
                )
                client: Client = stack.enter_context(Client(cluster))
        except (OSError, RuntimeError) as error:
            cause = addresses.causes(error)[-1]
            options: tuple[str, ...] = ()
            if isinstance(cause, socket.gaierror) or (
                isinstance(cause, OSError)
                and cause.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES)
                and cause.filename is None
            ):
                what = f"a local scheduler with its dashboard at {dashboard_address}"
                do, options = "choose another address", ("dashboard_address",)
            else:
                what, do = "a local scheduler", "see to that, and run again"
            msg = f"{what} cannot start ({cause}); {do}"
            raise SchedulerError(msg, options=options) from error
        try:
            yield client
        finally:
            with interrupts.postponed():
                stack.close()


@contextmanager
def _remote(
    name: str, tls_ca_file: str | None, tls_cert: str | None, tls_key: str | None
) -> Iterator[Client]:
    """Connect to a scheduler that someone else started."""
    from distributed import Client

    address, security = addresses.find(name, tls_ca_file, tls_cert, tls_key)
    with addresses.reaching(address, security):
        client = Client(address, timeout=addresses.CONNECT_SECONDS, security=security)
    # A connection that is lost is said once, by the error that it becomes.
    loggers = [logging.getLogger(f"distributed.{module}") for module in ("client", "batched")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with _errors_named(client):
            client.sync(_wait_for_workers, client)
        yield client
    finally:
        # A scheduler that hangs must not keep us.
        with interrupts.postponed(), suppress(TimeoutError, OSError):
            client.close(timeout=_CLOSE_SECONDS)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _compare(
    client: Client, here: Mapping[str, str], found: Mapping[str, Mapping[str, str | None]]
) -> None:
    """Raise or warn if versions of packages elsewhere, by address, are not those here."""
    for package, ours in here.items():
        others = {address: said[package] for address, said in found.items()}
        others = {address: theirs for address, theirs in others.items() if theirs != ours}
        if not others:
            continue
        missing = [address for address, theirs in others.items() if theirs is None]
        theirs = "missing" if missing else next(iter(others.values()))
        where = _some(missing or others)
        said = f"{package} is {ours} here, but {theirs} at {where}"
        if package == "daskkm" or missing:
            msg = f"{_name(client)}: {said}; install the same everywhere, and start them again"
            raise SchedulerError(msg)
        warnings.warn(f"{_name(client)}: {said}", stacklevel=2)


async def _versions(
    client: Client, packages: list[str], scheduler: str, asked: set[str]
) -> dict[str, dict[str, str | None]]:
    """Return the versions of packages on a scheduler and on workers, by address."""

    async def of(worker: str) -> dict[str, Any]:
        """One by one: a worker that does not answer is the scheduler's to remove."""
        if worker == scheduler:
            return {worker: await _answer(client, "versions", packages=packages)}
        with suppress(OSError, TimeoutError):
            asking = client.scheduler.broadcast(
                msg={"op": "versions", "packages": packages}, workers=[worker], on_error="ignore"
            )
            return dict(await asyncio.wait_for(asking, addresses.CONNECT_SECONDS))
        return {}

    found: dict[str, Any] = {}
    for each in await asyncio.gather(*map(of, asked)):
        found |= each
    return {address: said["packages"] for address, said in found.items()}


@contextmanager
def _errors_named(client: Client) -> Iterator[None]:
    """Turn the ways in which distributed gives up into one that says where."""
    from distributed import CancelledError, KilledWorker
    from distributed.comm import CommClosedError
    from distributed.scheduler import NoValidWorkerError, NoWorkerError

    name = _name(client)
    try:
        yield
    except DaskkmError:
        raise
    except (CancelledError, CommClosedError) as error:
        if isinstance(error, CommClosedError) or client.status != "running":
            raise _lost(client) from error
        msg = f"{name}: the scheduler has called the work off ({error}); see its log, and run again"
        raise SchedulerError(msg) from error
    except (NoWorkerError, NoValidWorkerError) as error:
        raise _idle(client, _workers_of(client), _patience()) from error
    except KilledWorker as error:
        msg = (
            f"{name}: {error.allowed_failures + 1} workers died of the same task, the last "
            f"{error.last_worker.address}; see its log, and if memory ran out give them more"
        )
        raise SchedulerError(msg) from error
    except ImportError as error:
        msg = f"{name}: a worker cannot import what it needs ({error}); install it there"
        raise SchedulerError(msg) from error
