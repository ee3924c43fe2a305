"""Build dask arrays that read the chunks of a store."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Self

import dask.array as da
import numpy as np
from dask.array.core import normalize_chunks
from dask.base import tokenize

from daskkm.storage import nodes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from daskkm.storage.nodes import Node
    from daskkm.storage.tile_store import TileStore


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
    node: Node, name: str, row: tuple[int, ...] = (), n_written: int | None = None
) -> da.Array:
    """Return a lazy array with one block for each chunk; each item has the shape `row`.

    Rows from `n_written` on have the fill value.
    """
    array = node.arrays[name]
    shape = (len(array), *row)
    return da.map_blocks(
        _read_rows,
        node=node,
        array_name=name,
        row=row,
        n_written=len(array) if n_written is None else n_written,
        chunks=normalize_chunks((array.rows, *row), shape),
        dtype=array.dtype,
        meta=np.empty((0,) * len(shape), array.dtype),
        name=f"{name}-{tokenize(name, row, node.content)}",
    )


def _read_rows(
    node: Node, array_name: str, row: tuple[int, ...], n_written: int, block_id: tuple[int, ...]
) -> NDArray[Any]:
    """Read one chunk, with each item in the shape `row`."""
    array = node.arrays[array_name]
    first = block_id[0] * array.rows
    last = min(first + array.rows, len(array))
    end = max(first, min(last, n_written))
    block = np.full((last - first, *array.shape[1:]), array.fill, array.dtype)
    if end > first:
        block[: end - first] = nodes.read_rows(node, array_name, first, end)
    _check_present(node, array_name)
    return block.reshape(len(block), *row)


def build_stream_array(node: Node, name: str, block_bytes: int, first: int) -> da.Array:
    """Return a lazy array, (n - first, d), whose blocks are `Chunks` of at least `block_bytes`."""
    array = node.arrays[name]
    n, d = len(array) - first, math.prod(array.shape[1:])
    rows = array.rows * -(-block_bytes // array.chunk_bytes)
    return da.map_blocks(
        Chunks,
        node=node,
        array_name=name,
        rows=rows,
        first=first,
        chunks=normalize_chunks((rows, d), (n, d)),
        dtype=array.dtype,
        meta=np.empty((0, 0), array.dtype),
        name=f"chunks-{tokenize(node.content, rows, first)}",
    )


class Chunks:
    """Block of at most `rows` tiles, read chunk by chunk during iteration."""

    def __init__(
        self, node: Node, array_name: str, rows: int, first: int, block_id: tuple[int, ...]
    ) -> None:
        self._node, self._name = node, array_name
        self._first = first + block_id[0] * rows
        self._last = min(self._first + rows, len(node.arrays[array_name]))

    def __len__(self) -> int:
        return self._last - self._first

    def __iter__(self) -> Iterator[NDArray[Any]]:
        """Yield each chunk, (m, n_features), in a buffer that the next chunk overwrites."""
        for chunk in nodes.stream_rows(self._node, self._name, self._first, self._last):
            yield chunk.reshape(len(chunk), -1)
        _check_present(self._node, self._name)

    def whole(self) -> tuple[NDArray[Any], list[int]]:
        """Return all tiles, (n, n_features), and the number of tiles in each chunk."""
        tiles = nodes.read_rows(self._node, self._name, self._first, self._last)
        _check_present(self._node, self._name)
        rows = self._node.arrays[self._name].rows
        starts = range(0, len(tiles), rows)
        return tiles.reshape(len(tiles), -1), [min(rows, len(tiles) - start) for start in starts]


def _check_present(node: Node, name: str) -> None:
    """Raise StoreError if the array was replaced: chunks of all stores have the same names."""
    if error := nodes.find_replacement(node, name):
        raise error
