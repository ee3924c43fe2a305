"""Verify a store: read and check each chunk."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from dask.system import CPU_COUNT

from daskkm.errors import StoreError
from daskkm.storage import labels, locations, metadata, zarr_nodes
from daskkm.storage.labels import DISTANCES, LABELS
from daskkm.storage.tile_store import PROVENANCE, STORE, TileStore
from daskkm.storage.versions import Version
from daskkm.storage.writer import compute_provenance

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import zarr
    from numpy.typing import NDArray

    from daskkm.storage.zarr_nodes import Kind

# Chunks of a task: enough that prefetching the next chunk pays.
_CHUNKS_PER_TASK = 16
_REPAIR = f"Restore the store, or remove it and {STORE.repair}"


class Finding(NamedTuple):
    """Errors of a run of chunks, the number of chunks, and the bytes of the intact chunks."""

    errors: list[StoreError]
    chunks: int = 0
    bytes: int = 0
    total: int = 0  # number of chunks of the store


class _Checked(NamedTuple):
    """Array of a store, with a function that describes a problem of rows from `first` on."""

    array: zarr.Array[Any]
    kind: Kind
    version: Version
    problem: Callable[[NDArray[Any], int], str | None]


def verify_store(path: str | os.PathLike[str]) -> list[StoreError]:
    """Return all problems of a store, as `TileStore.verify`.

    Provenance is compared with the images, and labels with the number of clusters. Raise StoreError
    if the store cannot be opened, or is replaced during the verification.
    """
    path = locations.as_local_path(path, StoreError)
    return [error for finding in iter_findings(path) for error in finding.errors]


def iter_findings(path: Path) -> Iterator[Finding]:
    """Check the metadata of a store, then its chunks, and yield a Finding for each task."""
    path = path.absolute()
    version = Version().extend(path)
    group, attributes = zarr_nodes.open_node(path, STORE)
    store = TileStore(path, group, attributes, version)
    errors = _check_copies(path)
    arrays = [
        *_list_store_arrays(store, group, version),
        *_list_label_arrays(store, version, errors),
    ]
    yield Finding(errors, total=sum(checked.array.cdata_shape[0] for checked in arrays))
    runs = [
        (checked, first)
        for checked in arrays
        for first in range(0, checked.array.shape[0], _CHUNKS_PER_TASK * checked.array.chunks[0])
    ]
    with ThreadPoolExecutor(CPU_COUNT) as pool:
        yield from pool.map(lambda run: _check_run(*run), runs)
    version.check()


def _check_copies(path: Path) -> list[StoreError]:
    """Return an error for each array with other metadata than the copy in the root."""
    errors = []
    document = json.loads((path / metadata.FILE).read_bytes())
    for name, copy in document[metadata.CONSOLIDATED]["metadata"].items():
        try:
            same = json.loads((path / name / metadata.FILE).read_bytes()) == copy
        except (OSError, ValueError):
            same = False
        if not same:
            msg = f"{path}: the metadata of {name} has changed. {_REPAIR}"
            errors.append(StoreError(msg))
    return errors


def _list_store_arrays(store: TileStore, group: Any, version: Version) -> Iterator[_Checked]:
    yield _Checked(store.tiles, STORE, version, lambda _rows, _first: None)
    for name in PROVENANCE:
        yield _Checked(group[name], STORE, version, partial(_compare_with_images, store, name))


def _list_label_arrays(
    store: TileStore, version: Version, errors: list[StoreError]
) -> Iterator[_Checked]:
    """Yield labels and distances; append an error for each array that cannot be opened."""
    openers = {LABELS: labels.open_labels, DISTANCES: labels.open_distances}
    for kind, open_array in openers.items():
        for k in labels.list_ks(store.path, kind):
            own = version.extend(labels.get_path(store.path, kind, k))
            try:
                array = open_array(store.path, k, len(store))
            except StoreError as error:
                errors.append(own.find_replacement() or error)
            else:
                yield _Checked(array, kind, own, partial(_compare_with_range, kind, k))


def _compare_with_images(store: TileStore, name: str, rows: NDArray[Any], first: int) -> str | None:
    expected = compute_provenance(store.images, store.tile, first, first + len(rows))[name]
    return None if np.array_equal(rows, expected) else "not the provenance of the images"


def _compare_with_range(kind: Kind, k: int, rows: NDArray[Any], _first: int) -> str | None:
    largest = k - 1 if kind is LABELS else np.finfo(np.float64).max
    return None if ((rows >= 0) & (rows <= largest)).all() else f"not all within 0 and {largest}"


def _check_run(store_array: _Checked, first: int) -> Finding:
    """Check `_CHUNKS_PER_TASK` chunks of an array from row `first` on."""
    array, kind, version, problem = store_array
    rows, n = array.chunks[0], array.shape[0]
    errors: list[StoreError] = []
    n_bytes = 0
    starts = range(first, min(first + _CHUNKS_PER_TASK * rows, n), rows)
    for start in starts:
        end = min(start + rows, n)
        try:
            for values in zarr_nodes.stream_chunks(array, start, end, kind):
                n_bytes += values.nbytes
                if found := problem(values, start):
                    span = zarr_nodes.describe_rows(array, start, end, kind)
                    hint = f"To repair the array, {kind.repair}"
                    errors.append(StoreError(f"{span} are wrong ({found}). {hint}"))
        except StoreError as error:
            errors.append(error.with_traceback(None))
    if errors and (replaced := version.find_replacement()):
        errors = [replaced]
    return Finding(errors, len(starts), n_bytes)
