"""From what a user gives to blocks of tiles.

A block is an array, or an object that makes the arrays of its tiles one after another whenever it
is iterated: a task then takes a long run of tiles in the memory of a short one, and small blocks
cost the scheduler one task and not many.
"""

from __future__ import annotations

import warnings
from collections import Counter
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import cloudpickle
import dask
import dask.array as da
import numpy as np
from dask.optimization import cull

from daskkm.errors import FitError
from daskkm.kernels.dtypes import SUPPORTED_DTYPES, check_dtype
from daskkm.passes import arrays, inputs, memory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

# More blocks than this that are shorter than that, on average, are made several a task.
_MANY_BLOCKS = 1024
_SHORT_BYTES = 2 << 20
_A_THREAD, _FEW_GROUPS = 8, 64
_LEAST_BLOCKS = 4  # a task, or it is not worth it
_ARRAY_BYTES = 4 << 20  # of a block of an array that is in memory
_RECIPES = "recipes-"
_SHARED_BYTES = 64 << 10  # of what each of several tasks may have a copy


def as_tiles(X: Any) -> da.Array:
    """Return X as a dask array with one chunk along the features.

    Parameters
    ----------
    X : TileStore, or array of shape (n, d)
        As for `daskkm.passes.inputs.recognize`.

    Returns
    -------
    dask array of shape (n, d)
        Of a dtype that is supported; tiles of other numbers become float64, block by block.

    Raises
    ------
    FitError
        If X is not two-dimensional, or masked.
    TypeError
        If X is not an array of numbers.
    """
    X = inputs.resolve(X)
    tiles = X.features() if inputs.is_store(X) else X  # a Zarr array is not read yet
    if np.isnan(tiles.shape[1:]).any():
        msg = f"X has shape {tiles.shape}; compute_chunk_sizes() tells how many features there are"
        raise FitError(msg)
    if tiles.ndim != 2:
        msg = (
            f"Expected 2D array, got {tiles.ndim}D array instead: X has shape {tiles.shape}. "
            "Reshape your data to (n_tiles, n_features)"
        )
        raise FitError(msg)
    if not tiles.shape[1]:
        msg = (
            f"Found array with 0 feature(s) (shape={tiles.shape}) while a minimum of 1 is required"
        )
        raise FitError(msg)
    dtype = _converted(tiles.dtype)
    if isinstance(tiles, np.ndarray):
        return arrays.as_arrays(tiles, dtype=dtype)
    if not isinstance(tiles, da.Array):
        length = arrays.rows_in(_ARRAY_BYTES, tiles.shape[1], tiles.dtype)
        # What is read at once: of a sharded array a shard, not the chunks in it.
        stored = getattr(tiles, "shards", None) or tiles.chunks or (length,)
        # name=False: a name made from the content would cost a read of it.
        tiles = da.from_array(tiles, chunks=(stored[0], -1), name=False)
    tiles = tiles if tiles.numblocks[1] == 1 else tiles.rechunk({1: -1})
    return tiles if tiles.dtype == dtype else tiles.astype(dtype)


def _converted(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return what tiles of a dtype become: float64, if they are numbers that are not supported."""
    if dtype.kind in "biuf" and dtype.newbyteorder("=") not in SUPPORTED_DTYPES:
        return np.dtype(np.float64)
    check_dtype(dtype)
    return dtype


def in_blocks(X: Any, tiles: da.Array, threads: int) -> da.Array:
    """Return the tiles in blocks for passes over them.

    Parameters
    ----------
    X : object
        As `daskkm.passes.inputs.resolve` returns it.
    tiles : dask array of shape (n, d)
        What `as_tiles` made of it, of known sizes.
    threads : int
        Of all workers together.

    Returns
    -------
    dask array of shape (n, d)
        Its blocks are arrays or, as said above, objects in place of them.
    """
    n_bytes = tiles.shape[0] * tiles.shape[1] * tiles.dtype.itemsize
    if (store := _store_of(X)) is not None:
        return store.streamed(memory.block_bytes(n_bytes, threads))
    if isinstance(X, np.ndarray):
        return arrays.in_blocks(X, memory.block_bytes(n_bytes, threads), tiles.dtype)
    return _grouped(tiles, threads)


@contextmanager
def sending(*arrays: Any) -> Iterator[None]:
    """Keep dask from advice against sending arrays to workers, where one of them is in memory.

    Where they lie, there is no other way.
    """
    with warnings.catch_warnings():
        if not all(array is None or inputs.is_lazy(array) for array in arrays):
            warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
        yield


def identity(X: Any) -> str:
    """Return what tiles are the same by, in whatever process: a digest, or a name of dask's."""
    X = inputs.recognize(X)
    if (store := _store_of(X)) is not None:
        return str(store.digest)
    return str(dask.base.tokenize(arrays.MappedFile.of(X) or X))


def _store_of(X: Any) -> Any:
    """Return the store that X is, or of which the dask array X is all tiles; else None."""
    if inputs.is_store(X):
        return X
    return getattr(X, "tile_store", None) if isinstance(X, da.Array) else None


def tile_shape(X: Any) -> tuple[int, ...] | None:
    """Return the shape of a tile, (height, width) or (height, width, bands), where X has one."""
    return X.tile if inputs.is_store(X) else None


class Recipe:
    """A run of short blocks that are made one after another, whenever it is iterated.

    Parameters
    ----------
    steps : sequence of pairs
        Of each block, its key and the graph by which dask makes it, with nothing else in it.
    """

    def __init__(self, steps: Sequence[tuple[Any, Mapping[Any, Any]]]) -> None:
        self.steps = steps

    def __iter__(self) -> Iterator[NDArray[Any]]:
        for key, graph in self.steps:
            yield dask.get(graph, key)

    def whole(self) -> tuple[NDArray[Any], list[int]]:
        """Make all of them, as one array, and say how many tiles are in each."""
        made = list(self)
        return np.concatenate(made), list(map(len, made))


def has_recipes(blocks: da.Array) -> bool:
    """Tell whether blocks are recipes, all that is needed to make them."""
    return str(blocks.name).startswith(_RECIPES)


def piece_bytes(tiles: da.Array) -> int:
    """Return how many bytes of tiles a task has in memory at once."""
    return int(max(tiles.chunks[0]) * tiles.shape[1] * tiles.dtype.itemsize)


def _grouped(tiles: da.Array, threads: int) -> da.Array:
    """Return short blocks as few recipes, if each can be made on its own; else as they are."""
    sizes = np.asarray(tiles.chunks[0])
    row = tiles.shape[1] * tiles.dtype.itemsize
    short = len(sizes) > _MANY_BLOCKS and int(sizes.sum()) * row < _SHORT_BYTES * len(sizes)
    if not short or any(layer.annotations for layer in tiles.dask.layers.values()):
        return tiles
    keys = [keys[0] for keys in tiles.__dask_keys__()]
    n_groups = min(max(_A_THREAD * threads, _FEW_GROUPS), len(keys) // _LEAST_BLOCKS)
    cuts = np.linspace(0, len(keys), n_groups + 1).astype(int).tolist()
    (optimized,) = dask.optimize(tiles)
    graph = dict(optimized.dask)
    # What workers hold is not in a graph: keys are missing, or dependencies are.
    needed = set(keys).union(*(node.dependencies for node in graph.values()))
    if needed - graph.keys() or any(_is_elsewhere(node) for node in graph.values()):
        return tiles
    parts = [cull(graph, [key])[0] for key in keys]
    seen = Counter(key for part in parts for key in part)
    if not all(_may_be_copied(graph[key]) for key, n in seen.items() if n > 1):
        return tiles
    name = f"{_RECIPES}{dask.base.tokenize(tiles.name, cuts)}"
    recipes = {
        (name, i, 0): Recipe(list(zip(keys[lo:hi], parts[lo:hi], strict=True)))
        for i, (lo, hi) in enumerate(pairwise(cuts))
    }
    lengths = tuple(int(sizes[lo:hi].sum()) for lo, hi in pairwise(cuts))
    return da.Array(recipes, name, chunks=(lengths, tiles.chunks[1]), meta=tiles._meta)


def _may_be_copied(node: Any) -> bool:
    """Tell whether a node of a graph is small data, such as an open Zarr array."""
    # By what is sent: an object may say nothing of what it holds.
    return hasattr(node, "value") and _is_sent_in(_SHARED_BYTES, node.value)


def _is_sent_in(most: int, value: Any) -> bool:
    """Tell whether an object can be sent in so many bytes, without making more of them."""
    if isinstance(value, np.ndarray) and value.nbytes > most:  # a file that is mapped is copied
        return False
    try:
        cloudpickle.dump(value, _Short(most))
    except Exception:  # noqa: BLE001 (whatever it may be that objects raise: it cannot)
        return False
    return True


class _Short:
    """A file of so many bytes at most."""

    def __init__(self, most: int) -> None:
        self._left = most

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self._left -= size
        if self._left < 0:
            raise OSError
        return size


def _is_elsewhere(node: Any) -> bool:
    """Tell whether a node stands for what workers hold."""
    return type(getattr(node, "value", None)).__module__.startswith("distributed")
