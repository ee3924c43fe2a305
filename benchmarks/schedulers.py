"""Where the work is done: as many threads or processes for every side."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import dask
from threadpoolctl import ThreadpoolController, threadpool_limits

from daskkm.passes import connection

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager


def native(threads: int) -> AbstractContextManager[Any]:
    """Give BLAS and OpenMP, as the calling thread uses them, so many threads."""
    limits: AbstractContextManager[Any] = ThreadpoolController().limit(limits=threads)
    return limits


@contextmanager
def threads(n: int) -> Iterator[str]:
    """Run dask on n threads of this process, each with one thread of BLAS and OpenMP.

    Yields what to call it.
    """
    # OpenMP counts by thread of the caller, so each thread of the pool must be told.
    with (
        ThreadPoolExecutor(n, initializer=threadpool_limits, initargs=(1,)) as pool,
        dask.config.set(scheduler="threads", pool=pool, num_workers=n),
        threadpool_limits(1),
    ):
        yield f"dask's threads, {n}"


@contextmanager
def processes(n: int) -> Iterator[tuple[str, Any]]:
    """Run dask on n worker processes of one thread each; yields what to call it, and the client."""
    local = connection.connect(
        "local", workers=n, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    )
    with local as client:
        yield f"LocalCluster, processes of one thread: {n}", client
