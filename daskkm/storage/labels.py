"""Write and open labels and distances in a store: Zarr arrays ``labels/K``, ``distances/K``.

A chunk of labels has as many rows as a chunk of tiles, and so has a whole number of chunks of
distances. Thus a task that reads a chunk of tiles writes whole chunks.
"""

from __future__ import annotations

import math
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import zarr
from zarr.errors import ContainsGroupError

from daskkm.block_sizes import sizes
from daskkm.errors import CorruptChunkError, StoreError
from daskkm.storage import commit, metadata, zarr_nodes
from daskkm.storage.zarr_nodes import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

LABELS = Kind(
    name="labels",
    noun="set of labels",
    items="tiles",
    members=frozenset({metadata.FILE, "c"}),
    error=StoreError,
    create="label the store first",
    repair="label the tiles again",
    chunk_error=CorruptChunkError,
    inner=True,
)
DISTANCES = replace(
    LABELS,
    name="distances",
    noun="set of distances",
    create="label the store with distances first",
    repair="label the tiles again, with distances",
)


def get_path(store: Path, kind: Kind, k: int) -> Path:
    """Return the folder of labels or distances for k clusters."""
    return store / kind.name / str(k)


def list_ks(store: Path, kind: Kind) -> list[int]:
    """Return the values of k for which a store has labels or distances."""
    folder = store / kind.name
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal() and str(int(name)) == name)


def list_labels(store: Path) -> list[str]:
    """Return the paths of all labels and distances in a store, such as "labels/5"."""
    return [f"{kind.name}/{k}" for kind in (LABELS, DISTANCES) for k in list_ks(store, kind)]


def open_labels(store: Path, k: int, n: int) -> zarr.Array[Any]:
    """Open the labels of n tiles, (n,) int32."""
    return _open_array(store, LABELS, k, (n,), "int32")[0]


def open_distances(store: Path, k: int, n: int) -> zarr.Array[Any]:
    """Open the distances of n tiles to k centroids, (n, k) float64; check that the labels match."""
    array, attributes = _open_array(store, DISTANCES, k, (n, k), "float64")
    if attributes != zarr_nodes.open_node(get_path(store, LABELS, k), LABELS)[1]:
        msg = (
            f"{get_path(store, DISTANCES, k)}: the distances are from another model than the "
            f"labels. To repair the distances, {DISTANCES.repair}"
        )
        raise StoreError(msg)
    return array


def _open_array(
    store: Path, kind: Kind, k: int, shape: tuple[int, ...], dtype: str
) -> tuple[zarr.Array[Any], dict[str, Any]]:
    path = get_path(store, kind, k)
    array, attributes = zarr_nodes.open_node(path, kind)
    if (array.shape, array.dtype, attributes.get("k")) != (shape, dtype, k):
        msg = (
            f"{path}: not a {kind.noun} of this store ({array.dtype} of shape {array.shape}, not "
            f"{dtype} of shape {shape}). To repair the array, {kind.repair}"
        )
        raise StoreError(msg)
    return array, attributes


@dataclass(frozen=True)
class Target:
    """Writer of labels or distances, for tasks on any worker.

    Each write covers whole chunks, or the last chunk.
    """

    array: zarr.Array[Any]
    path: Path
    partial: Path
    kind: Kind

    @property
    def rows(self) -> int:
        """Number of rows of a chunk."""
        return self.array.chunks[0]

    def __setitem__(self, key: Any, rows: NDArray[Any]) -> None:
        with zarr_nodes.translate_write_errors(self.path, self.kind):
            # Zarr would create the folder again after the failure of another task removed it.
            (self.partial / metadata.FILE).stat()
            self.array[key] = rows

    def n_written(self) -> int:
        """Return the number of chunks written so far by all workers."""
        with suppress(OSError):
            return sum(1 for _ in (self.partial / "c").iterdir())
        return 0

    def complete(self, attributes: Mapping[str, Any]) -> None:
        """Check that all chunks exist, and mark the array as complete."""
        zarr_nodes.check_chunks(self.array, self.kind)
        with zarr_nodes.translate_write_errors(self.path, self.kind):
            zarr_nodes.write_attributes(self.partial, self.kind, attributes, complete=True)

    def put(self) -> None:
        """Move the array to its location."""
        commit.put_node(self.partial, self.path, self.kind)


@contextmanager
def open_label_targets(
    store: Path, tiles: zarr.Array[Any], attributes: Mapping[str, Any], *, distances: bool
) -> Iterator[tuple[Target, Target | None]]:
    """Yield targets for labels, (n,) int32, and for distances, (n, k) float64, or None.

    The new arrays replace arrays of the same k at exit. The attributes identify the model and hold
    ``k``. Older distances are always removed, since they may be from another model.
    """
    k, n = attributes["k"], tiles.shape[0]
    stale = get_path(store, DISTANCES, k)
    with ExitStack() as stack:
        rows = min(tiles.chunks[0], n)
        labels = stack.enter_context(_new_target(store, LABELS, k, (n,), "int32", rows))
        target = None
        if distances:
            part = choose_part_rows(rows, 8 * k, alone=n == rows)
            new = _new_target(store, DISTANCES, k, (n, k), "float64", part)
            target = stack.enter_context(new)
        else:
            commit.check_free(stale, DISTANCES)
            commit.remove_leftovers(stale, DISTANCES)
        yield labels, target
        for each in filter(None, (labels, target)):
            each.complete(attributes)
        # After a kill at any moment, a reader finds matching labels and distances, or no distances.
        with (
            zarr_nodes.translate_write_errors(stale, DISTANCES),
            commit.set_aside(stale, DISTANCES),
        ):
            labels.put()
        if target is not None:
            target.put()


@contextmanager
def _new_target(
    store: Path, kind: Kind, k: int, shape: tuple[int, ...], dtype: str, rows: int
) -> Iterator[Target]:
    path = get_path(store, kind, k)
    # Another run may create the group at the same time.
    with zarr_nodes.translate_write_errors(path, kind), suppress(ContainsGroupError):
        (store / metadata.FILE).stat()  # a removed store must not appear again
        zarr.open_group(path.parent, mode="a", zarr_format=3)
    with commit.open_partial(path, kind) as partial:
        with zarr_nodes.translate_write_errors(path, kind):
            dimensions = ("tile", "cluster")[: len(shape)]
            array = zarr_nodes.create_array(
                partial, shape, dtype, rows=rows, dimensions=dimensions, kind=kind
            )
        yield Target(array, path, partial, kind)


def choose_part_rows(rows: int, row_bytes: int, *, alone: bool) -> int:
    """Return the number of rows of a chunk of about `sizes.chunk_bytes`, for a task of `rows` rows.

    Unless the task is alone, the result divides `rows`: the divisor nearest in ratio.
    """
    wanted = max(1, sizes.chunk_bytes // row_bytes)
    if alone:
        return min(rows, wanted)
    divisors = [d for d in range(1, math.isqrt(rows) + 1) if rows % d == 0]
    divisors += [rows // d for d in divisors]
    return min(divisors, key=lambda d: abs(math.log(d / wanted)))
