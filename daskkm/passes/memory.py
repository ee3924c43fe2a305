"""Sizes of blocks, memory that a pass takes, and memory for cached tiles."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from daskkm.block_sizes import sizes
from daskkm.errors import FitError

if TYPE_CHECKING:
    from collections.abc import Sequence

# Share of a worker's memory above which dask starts no more tasks.
_LIMIT = 0.8
# Share of a worker's memory for cached tiles: from 0.6 on dask moves data to disk.
_CACHE = 0.5


def block_bytes(total: int, threads: int, *, remote: bool = False) -> int:
    """Return the bytes of tiles in a block, for `total` bytes of tiles and threads of all workers.

    A thread has `sizes.blocks_per_thread` blocks, of `sizes.block_bytes_min` to
    `sizes.block_bytes_max`; tiles of a remote store have fewer and longer blocks. There are at most
    `sizes.blocks_max` blocks, which may be longer.
    """
    per_thread = sizes.remote_blocks_per_thread if remote else sizes.blocks_per_thread
    most = sizes.remote_block_bytes_max if remote else sizes.block_bytes_max
    balanced = -(-total // (per_thread * threads))
    balanced = min(max(balanced, sizes.block_bytes_min), most)
    return max(balanced, -(-total // sizes.blocks_max))


class Worker(NamedTuple):
    """Threads and memory of a worker, in bytes."""

    name: str
    threads: int
    limit: float  # infinite if the worker has no limit
    used: float


class Work(NamedTuple):
    """Sizes of a pass."""

    centroids: int  # in the stack
    features: int
    piece: int  # bytes of tiles that a task reads at once


def peak(work: Work, threads: int) -> int:
    """Return the largest memory that a pass takes from a worker, in bytes."""
    statistics = 8 * work.centroids * (work.features + 2)
    # A task holds a piece with sums and weights, and the sums so far.
    task = 2 * work.piece + 3 * statistics
    # The stack once a worker; for each thread, results to add.
    stack = 8 * work.centroids * work.features
    return threads * task + stack + sizes.fan_in * threads * statistics


def bound_bytes(n: int, d: int, n_models: int, n_centroids: int, n_blocks: int) -> int:
    """Return the bytes of the bounds of n cached tiles."""
    # A bound and a label a tile and model, a radius a tile; a stack and statistics a block.
    return n * (8 * n_models + 4) + n_blocks * n_centroids * 8 * (2 * d + 2)


def check(workers: Sequence[Worker], work: Work) -> None:
    """Raise FitError if a pass would take more memory than a worker has."""
    for worker in workers:
        needed = peak(work, worker.threads)
        if worker.used + needed > _LIMIT * worker.limit:
            msg = (
                f"{worker.name}: a pass would take {_size(needed)} beside the {_size(worker.used)} "
                f"in use, of {_size(worker.limit)} ({worker.threads} threads, blocks of "
                f"{_size(work.piece)}, {work.centroids} centroids of {work.features} features). "
                "Give workers more memory or fewer threads, X shorter blocks, or fit fewer k and "
                "restarts at once"
            )
            raise FitError(msg)


def check_sent(workers: Sequence[Worker], n_bytes: int) -> None:
    """Raise FitError if tiles do not fit into the memory of the workers."""
    free = sum(max(0.0, _LIMIT * worker.limit - worker.used) for worker in workers)
    if n_bytes > free:
        total = sum(worker.limit for worker in workers)
        msg = (
            f"X: {_size(n_bytes)} in memory here, but the workers ({len(workers)}) can take "
            f"{_size(free)} more, of {_size(total)}. Start more workers, or give X as a Zarr "
            "array, a memory-mapped file or a dask array, which workers read in parts"
        )
        raise FitError(msg)


def check_sample(worker: Worker, size: int, d: int, itemsize: int) -> None:
    """Raise FitError if a sample of `size` tiles of d features does not fit into memory here."""
    # The tiles, a sorted copy, and floats that multiply exactly.
    needed = size * d * (2 * itemsize + 8)
    if worker.used + needed > _LIMIT * worker.limit:
        msg = (
            f"{worker.name}: drawing initial centroids from {size} tiles would take "
            f"{_size(needed)} of the {_size(worker.limit)} that are free. Give initial centroids, "
            "or use k-means|| with coarse=False"
        )
        raise FitError(msg)


def room(workers: Sequence[Worker], work: Work) -> float:
    """Return the bytes that may stay in the workers' memory during passes."""
    # The memory of a worker without a limit is unknown.
    limited = (worker for worker in workers if worker.limit < math.inf)
    free = (_CACHE * w.limit - w.used - peak(work, w.threads) for w in limited)
    return sum(max(0.0, each) for each in free)


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"
