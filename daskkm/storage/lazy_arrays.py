"""Build dask arrays that read the chunks of a store."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Self

import dask.array as da
import numpy as np
from dask.array.core import normalize_chunks
from dask.base import tokenize

from daskkm.storage import zarr_nodes

if TYPE_CHECKING:
    from collections.abc import Iterator

    import zarr
    from numpy.typing import NDArray

    from daskkm.storage.tile_store import TileStore
    from daskkm.storage.versions import Version
    from daskkm.storage.zarr_nodes import Kind


class StoreArray(da.Array):  # type: ignore[misc]
    """Dask array of all tiles of a store, with a reference to the store.

    Operations on a StoreArray return plain dask arrays.
    """

    def __new__(cls, store: TileStore, tiles: da.Array) -> Self:  # noqa: D102
        array: Self = super().__new__(cls, tiles.dask, tiles.name, tiles.chunks, meta=tiles._meta)
        array._tile_store, array._store_name = store, tiles.name
        return array

    @property
    def tile_store(self) -> TileStore | None:
        """Store of the tiles, or None after a change in place."""
        return self._tile_store if self.name == self._store_name else None


def build_lazy_array(
    array: zarr.Array[Any], kind: Kind, version: Version, row: tuple[int, ...] = ()
) -> da.Array:
    """Return a lazy array with one block for each chunk; each item has the shape `row`."""
    shape = (array.shape[0], *row)
    name = array.path or kind.name
    return da.map_blocks(
        _read_rows,
        array=array,
        row=row,
        kind=kind,
        version=version,
        chunks=normalize_chunks((array.chunks[0], *row), shape),
        dtype=array.dtype,
        meta=np.empty((0,) * len(shape), array.dtype),
        name=f"{name}-{tokenize(name, row, version.digests)}",
    )


def _read_rows(
    array: zarr.Array[Any],
    row: tuple[int, ...],
    kind: Kind,
    version: Version,
    block_id: tuple[int, ...],
) -> NDArray[Any]:
    """Read one chunk, with each item in the shape `row`."""
    rows = array.chunks[0]
    first = block_id[0] * rows
    with version.guard_read():
        block = zarr_nodes.read_rows(array, first, min(first + rows, array.shape[0]), kind)
    return block.reshape(len(block), *row)


def build_stream_array(
    array: zarr.Array[Any], kind: Kind, version: Version, block_bytes: int
) -> da.Array:
    """Return a lazy array, (n, d), whose blocks are `Chunks` of at least `block_bytes`."""
    n, d = array.shape[0], math.prod(array.shape[1:])
    rows = array.chunks[0]
    rows *= -(-block_bytes // (rows * d * array.dtype.itemsize))
    return da.map_blocks(
        Chunks,
        array=array,
        kind=kind,
        version=version,
        rows=rows,
        chunks=normalize_chunks((rows, d), (n, d)),
        dtype=array.dtype,
        meta=np.empty((0, 0), array.dtype),
        name=f"chunks-{tokenize(version.digests, rows)}",
    )


class Chunks:
    """Block of at most `rows` tiles, read chunk by chunk during iteration."""

    def __init__(
        self,
        array: zarr.Array[Any],
        kind: Kind,
        version: Version,
        rows: int,
        block_id: tuple[int, ...],
    ) -> None:
        self._array, self._kind, self._version = array, kind, version
        self._first = block_id[0] * rows
        self._last = min(self._first + rows, array.shape[0])

    def __len__(self) -> int:
        return self._last - self._first

    def __iter__(self) -> Iterator[NDArray[Any]]:
        """Yield each chunk, (m, n_features), in a buffer that the next chunk overwrites."""
        with self._version.guard_read():
            for chunk in zarr_nodes.stream_chunks(self._array, self._first, self._last, self._kind):
                yield chunk.reshape(len(chunk), -1)

    def whole(self) -> tuple[NDArray[Any], list[int]]:
        """Return all tiles, (n, n_features), and the number of tiles in each chunk."""
        with self._version.guard_read():
            tiles = zarr_nodes.read_rows(self._array, self._first, self._last, self._kind)
        rows = self._array.chunks[0]
        starts = range(0, len(tiles), rows)
        return tiles.reshape(len(tiles), -1), [min(rows, len(tiles) - start) for start in starts]
