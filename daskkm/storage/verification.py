"""Verify a store: read and check each chunk."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from dask.system import CPU_COUNT

from daskkm.errors import StoreError
from daskkm.storage import image_table, labels, nodes
from daskkm.storage.labels import DISTANCES, LABELS
from daskkm.storage.nodes import METADATA
from daskkm.storage.tile_store import PARTIAL, STORE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from daskkm.storage.locations import Location
    from daskkm.storage.nodes import Node

# Chunks of a task: enough that prefetching the next chunk pays.
_CHUNKS_PER_TASK = 16
_REPAIR = f"Restore the store, or remove it and {STORE.repair}"


class Finding(NamedTuple):
    """Errors of a run of chunks, the number of chunks, and the bytes of the intact chunks."""

    errors: list[StoreError]
    chunks: int = 0
    bytes: int = 0
    total: int = 0  # number of chunks of the store


def verify_store(location: Location) -> list[StoreError]:
    """Return all problems of a store, as `TileStore.verify`.

    Records of images are compared with the number of tiles, and labels with the number of clusters.
    Raise StoreError if the store cannot be opened, or is replaced during the verification.
    """
    return [error for finding in iter_findings(location) for error in finding.errors]


def iter_findings(location: Location) -> Iterator[Finding]:
    """Check the metadata of a store, then its chunks, and yield a Finding for each task."""
    node = nodes.read_node(location, STORE)
    lengths = {name: _count_written(node, name) for name in node.arrays}
    n_chunks = {name: -(-n // node.arrays[name].rows) for name, n in lengths.items()}
    yield Finding(_check_copies(node), total=sum(n_chunks.values()))
    runs = [
        (name, first * node.arrays[name].rows, lengths[name])
        for name, n in n_chunks.items()
        for first in range(0, n, _CHUNKS_PER_TASK)
    ]
    with ThreadPoolExecutor(CPU_COUNT) as pool:
        found = list(pool.map(lambda run: _check_run(node, *run), runs))
        yield from found
    if not any(finding.errors for finding in found):
        yield Finding(_check_images(node))
    if replaced := nodes.find_replacement(node):
        raise replaced


def _count_written(node: Node, name: str) -> int:
    """Return the number of rows of an array that are written: labels may be fewer than tiles."""
    folder, _, k = name.rpartition("/")
    if folder in {LABELS, DISTANCES}:
        return int(labels.find(node, folder, int(k))["n_tiles"])
    return len(node.arrays[name])


def _check_copies(node: Node) -> list[StoreError]:
    """Return an error for each array with other metadata than the root.

    An append that is not complete may have written the metadata of longer arrays.
    """
    errors = []
    is_growing = PARTIAL in node.location.names()
    for name, array in node.arrays.items():
        try:
            copy = json.loads(bytes((node.location / name / METADATA).read()))
            n = copy["shape"][0] if is_growing else len(array)
            same = n >= len(array) and copy == array.resize(n).metadata
        except (OSError, ValueError, LookupError, TypeError):
            same = False
        if not same:
            msg = f"{node.location}: the metadata of {name} has changed. {_REPAIR}"
            errors.append(StoreError(msg))
    return errors


def _check_images(node: Node) -> list[StoreError]:
    """Return an error if the images do not hold the tiles of the store."""
    images = image_table.read_images(node)
    grids = images.shape // node.arrays["tiles"].shape[1:3]
    ends = np.cumsum(grids.prod(axis=1))
    firsts = np.concatenate([[0], ends[:-1]])
    if np.array_equal(images.first_tile, firsts) and ends[-1] == len(node.arrays["tiles"]):
        return []
    msg = f"{node.location}: the records of the images do not fit the tiles. {_REPAIR}"
    return [StoreError(msg)]


def _describe_values(name: str, rows: NDArray[Any]) -> str | None:
    """Return a description of labels or distances that cannot be right, or None."""
    folder, _, k = name.rpartition("/")
    if folder not in {LABELS, DISTANCES}:
        return None
    largest = int(k) - 1 if folder == LABELS else np.finfo(np.float64).max
    return None if ((rows >= 0) & (rows <= largest)).all() else f"not all within 0 and {largest}"


def _check_run(node: Node, name: str, first: int, n: int) -> Finding:
    """Check `_CHUNKS_PER_TASK` chunks of an array with n rows, from row `first` on."""
    rows = node.arrays[name].rows
    errors: list[StoreError] = []
    n_bytes = 0
    starts = range(first, min(first + _CHUNKS_PER_TASK * rows, n), rows)
    for start in starts:
        end = min(start + rows, n)
        try:
            for values in nodes.stream_rows(node, name, start, end):
                n_bytes += values.nbytes
                if found := _describe_values(name, values):
                    span = nodes.describe_rows(node, name, start, end)
                    msg = f"{span} are wrong ({found}). To repair the array, label the tiles again"
                    errors.append(StoreError(msg))
        except StoreError as error:
            errors.append(error.with_traceback(None))
    if errors and (replaced := nodes.find_replacement(node, name)):
        errors = [replaced]  # type: ignore[list-item]
    return Finding(errors, len(starts), n_bytes)
