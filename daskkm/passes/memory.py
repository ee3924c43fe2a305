"""How long blocks are, what memory a pass takes, and what may stay there."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from daskkm.errors import FitError

if TYPE_CHECKING:
    from collections.abc import Sequence

# From 4 MiB on a task's work, a millisecond and more, outweighs what scheduling it costs.
_LEAST_BYTES = 4 << 20
_MOST_BYTES = 64 << 20
# Blocks for each thread, for balance, and in all: the scheduler's time goes by their number.
_A_THREAD = 8
_MANY_BLOCKS = 4096

_SAFE = 0.8  # of a worker's memory: from there on dask lets it begin no task
_KEPT = 0.5
_WAITING = 8  # results that wait for their sum, a thread


def block_bytes(total: int, threads: int) -> int:
    """Return how many bytes of tiles make a block.

    A thread has eight blocks, unless they would be shorter than 4 MiB or longer than 64 MiB; there
    are 4,096 at most in any case.

    Parameters
    ----------
    total : int
        Bytes of all tiles.
    threads : int
        Of all workers together.

    Returns
    -------
    int
    """
    balanced = min(max(-(-total // (_A_THREAD * threads)), _LEAST_BYTES), _MOST_BYTES)
    return max(balanced, -(-total // _MANY_BLOCKS))


class Worker(NamedTuple):
    """What is known of a worker's memory, in bytes."""

    name: str
    threads: int
    limit: float  # infinity if it has none
    used: float


def peak(rows: int, d: int, piece: int, threads: int) -> int:
    """Return the bytes that a pass takes from a worker at most, its blocks streamed.

    Parameters
    ----------
    rows : int
        Of the stack: the sum of all k.
    d : int
        Features.
    piece : int
        Bytes of tiles that a task has in memory at once.
    threads : int
        Of the worker: tasks at a time.

    Returns
    -------
    int
    """
    statistics = 8 * rows * (d + 2)
    # A task holds a piece, its sums and its weights in the making, and what it has summed so far.
    task = 2 * piece + 3 * statistics
    # The stack, once a worker; what waits for its sum, a node of the tree for each thread.
    return threads * task + 8 * rows * d + _WAITING * threads * statistics


def check(workers: Sequence[Worker], rows: int, d: int, piece: int) -> None:
    """Raise if a pass would take more memory than a worker has.

    Parameters
    ----------
    workers : sequence of Worker
    rows, d, piece : int
        As for `peak`.

    Raises
    ------
    FitError
        It says what the memory would be for.
    """
    for worker in workers:
        needed = peak(rows, d, piece, worker.threads)
        if worker.used + needed > _SAFE * worker.limit:
            msg = (
                f"{worker.name}: a pass would take {_size(needed)} beside the {_size(worker.used)} "
                f"in use, of {_size(worker.limit)} ({worker.threads} threads, blocks of "
                f"{_size(piece)}, {rows} centroids of {d} features); give workers more memory or "
                "fewer threads, X shorter blocks, or fit fewer k and restarts at once"
            )
            raise FitError(msg)


def check_sent(workers: Sequence[Worker], n_bytes: int) -> None:
    """Raise if tiles that are sent to workers do not fit into their memory.

    Parameters
    ----------
    workers : sequence of Worker
    n_bytes : int
        Of all tiles.

    Raises
    ------
    FitError
    """
    left = sum(max(0.0, _SAFE * worker.limit - worker.used) for worker in workers)
    if n_bytes > left:
        total = sum(worker.limit for worker in workers)
        msg = (
            f"X: {_size(n_bytes)} in memory here, but the workers ({len(workers)}) can take "
            f"{_size(left)} more, of {_size(total)}. Start more workers, or give X as a Zarr "
            "array, a memory-mapped file or a dask array, which they read in parts."
        )
        raise FitError(msg)


def check_sample(worker: Worker, size: int, d: int, itemsize: int) -> None:
    """Raise if a sample that starts are drawn from would take more memory than there is.

    Parameters
    ----------
    worker : Worker
        Where they are drawn.
    size, d, itemsize : int
        Tiles of the sample, features of each, and bytes of a feature.

    Raises
    ------
    FitError
    """
    # The tiles, again in the order of their content, and in floats that multiply exactly.
    needed = size * d * (2 * itemsize + 8)
    if worker.used + needed > _SAFE * worker.limit:
        msg = (
            f"{worker.name}: to draw starts from {size} tiles would take {_size(needed)} of the "
            f"{_size(worker.limit)} that are free; give starting centroids, or use k-means|| "
            "without coarse"
        )
        raise FitError(msg)


def room(workers: Sequence[Worker], rows: int, d: int, piece: int) -> float:
    """Return how many bytes may stay in the workers' memory while passes are made.

    Half of a worker's memory, less what is in use before and what a pass takes: dask begins to
    move data to disk from 0.6 of it on, and does not spread it evenly.

    Parameters
    ----------
    workers, rows, d, piece
        As for `check`.

    Returns
    -------
    float
    """
    # Of a worker that was given no limit nothing is known.
    known = (w for w in workers if w.limit < math.inf)
    left = (_KEPT * w.limit - w.used - peak(rows, d, piece, w.threads) for w in known)
    return sum(max(0.0, each) for each in left)


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"
