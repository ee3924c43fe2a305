"""Reductions over the blocks of a dask array of tiles.

One task a block reads tiles and reduces them; a tree with `sizes.fan_in` branches a node merges the
results. A block is an array, or an iterable of pieces: arrays of tiles, each of which may overwrite
the previous array. Then one piece at a time is in memory. A tile leaves its worker only if initial
centroids or empty clusters need the tile.
"""

from __future__ import annotations

from functools import partial, reduce
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar

import dask
import dask.array as da
import numpy as np

from daskkm.block_sizes import sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dask.delayed import Delayed
    from numpy.typing import NDArray

Fields = TypeVar("Fields", bound=tuple[Any, ...])


def sum_over_blocks(
    function: Callable[..., NDArray[Any]], arrays: Sequence[da.Array], **arguments: Any
) -> da.Array:
    """Return the sum over blocks of ``function(block, *columns)``, lazily.

    `arrays` are the tiles, and columns of shape (n, 1).

    Returns
    -------
    dask array of one object, an array
    """
    name = _task_name(function)
    return _merge_tree(_map_objects(function, arrays, name, **arguments), _add, name)


# The sum is checked for an overflow later, with an error that names X.
@np.errstate(over="ignore", invalid="ignore")
def _add(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """Add arrays into a new array: dask may still need the parts."""
    first, *others = parts
    total = first + others[0] if others else first
    for other in others[1:]:
        total += other
    return total


@np.errstate(over="ignore", invalid="ignore")
def sum_over_pieces(
    function: Callable[..., NDArray[Any]], block: Any, columns: Sequence[NDArray[Any]]
) -> NDArray[Any]:
    """Return the sum of ``function(tiles, *columns)`` over the pieces of a block."""
    return reduce(
        lambda total, part: np.add(total, part, out=total),
        (function(*piece) for piece in _pieces(block, columns)),
    )


def _pieces(block: Any, columns: Sequence[NDArray[Any]]) -> Iterator[tuple[NDArray[Any], ...]]:
    """Yield the tiles of each piece of a block, and their rows of the columns."""
    start = 0
    for tiles in [block] if isinstance(block, np.ndarray) else block:
        rows = slice(start, start + len(tiles))
        yield tiles, *(column[rows, 0] for column in columns)
        start = rows.stop


def gather(
    function: Callable[..., Any],
    X: da.Array,
    weights: da.Array | None,
    merge: Callable[[list[Any]], Any],
    *,
    only: NDArray[np.intp] | None = None,
    **arguments: Any,
) -> Delayed:
    """Return the results of a function on all tiles, merged by a tree, lazily.

    Parameters
    ----------
    function : callable
        ``function(tiles, first, *weights, **arguments)`` returns any object; `first` is the global
        index of the first tile. dask treats objects as arrays: its tree of reductions is quick
        to build for thousands of blocks.
    X : dask array of shape (n, d)
    weights : dask array of shape (n,), or None
        In the chunks of X.
    merge : callable
        Returns one object for a list of results, in the order of the tiles.
    only : ndarray of intp, ascending, optional
        Blocks to read; all by default.
    """
    name = _task_name(function)
    arrays = _insert_firsts(with_column(X, weights), only)
    parts = _map_objects(_merge_pieces, arrays, name, function=function, merge=merge, **arguments)
    delayed: Delayed = _merge_tree(parts, merge, name).to_delayed().item()
    return delayed


def gather_with_notes(
    function: Callable[..., tuple[NDArray[Any], Any]],
    arrays: Sequence[da.Array],
    merge: Callable[[list[Any]], Any],
    dtype: np.dtype[Any],
    **arguments: Any,
) -> tuple[da.Array, da.Array]:
    """Return a note of each tile, and the merged results on all tiles, from one read, lazily.

    As `gather`, except that `function` returns two objects: notes, of shape (n_tiles, 1) and the
    given dtype, and the result to merge. `arrays` are the tiles, and columns of shape (n, 1).

    Returns
    -------
    notes : dask array of shape (n, 1)
    result : dask array of one object
        Persist both at once: computed apart, each costs a read.
    """
    name = _task_name(function)
    parts = _map_objects(
        _note_pieces, _insert_firsts(arrays), name, function=function, merge=merge, **arguments
    )
    notes = parts.map_blocks(
        itemgetter(0),
        token=f"{name}-notes",
        dtype=dtype,
        chunks=(arrays[0].chunks[0], (1,)),
        meta=np.empty((0, 0), dtype),
    )
    results = parts.map_blocks(
        itemgetter(1), token=f"{name}-results", dtype=object, meta=np.empty((0, 0), object)
    )
    return notes, _merge_tree(results, merge, name)


def _task_name(function: Callable[..., Any]) -> str:
    """Return the name of tasks on the dashboard."""
    return function.__name__.strip("_").replace("_", "-")


def _insert_firsts(
    arrays: Sequence[da.Array], only: NDArray[np.intp] | None = None
) -> list[da.Array]:
    """Return some or all blocks of arrays; insert the index of the first tile as second array."""
    chunks = arrays[0].chunks
    firsts = np.cumsum([0, *chunks[0][:-1]])[:, None]
    if only is not None:
        firsts, arrays = firsts[only], [array.blocks[only] for array in arrays]
    name = f"firsts-{dask.base.tokenize(chunks, only)}"
    return [arrays[0], da.from_array(firsts, chunks=1, name=name), *arrays[1:]]


def _map_objects(
    of_block: Callable[..., Any], arrays: Sequence[da.Array], name: str, **arguments: Any
) -> da.Array:
    """Return one object for each block, lazily."""
    return da.map_blocks(
        of_block,
        *arrays,
        **arguments,
        token=name,
        dtype=object,
        # Two axes, as tiles have: to drop an axis dask would first concatenate the blocks.
        chunks=((1,) * arrays[0].numblocks[0], (1,)),
        meta=np.empty((0, 0), object),
    )


def _merge_tree(parts: da.Array, merge: Callable[[list[Any]], Any], name: str) -> da.Array:
    """Return the objects of all blocks, merged by a tree into one object, lazily."""
    # Not closures: dask would pickle them to find a name.
    return da.reduction(
        parts,
        _keep_results,
        partial(_merge_node, merge=merge),
        axis=0,
        split_every=sizes.fan_in,
        concatenate=False,
        dtype=object,
        name=f"{name}-merge",
        meta=np.empty(0, object),
    )


def _keep_results(results: Any, **_: Any) -> Any:
    return results


def _merge_node(results: Any, merge: Callable[[list[Any]], Any], **_: Any) -> Any:
    return merge(results) if isinstance(results, list) else results


def _merge_pieces(
    block: Any,
    first: NDArray[np.int64],
    *columns: NDArray[Any],
    function: Callable[..., Any],
    merge: Callable[[list[Any]], Any],
    **arguments: Any,
) -> Any:
    """Return the merged results of a function on the pieces of a block."""
    results = _map_pieces(function, block, first, columns, arguments)
    return reduce(lambda merged, result: merge([merged, result]), results)


def _note_pieces(
    block: Any,
    first: NDArray[np.int64],
    *columns: NDArray[Any],
    function: Callable[..., tuple[NDArray[Any], Any]],
    merge: Callable[[list[Any]], Any],
    **arguments: Any,
) -> tuple[NDArray[Any], Any]:
    """Return the notes of the tiles of a block, and the merged results on the pieces."""
    pairs = _map_pieces(function, block, first, columns, arguments)
    notes, merged = next(pairs)
    all_notes = [notes]
    for notes, result in pairs:
        all_notes.append(notes)
        merged = merge([merged, result])
    return np.concatenate(all_notes), merged


def _map_pieces(
    function: Callable[..., Any],
    block: Any,
    first: NDArray[np.int64],
    columns: Sequence[NDArray[Any]],
    arguments: dict[str, Any],
) -> Iterator[Any]:
    """Yield ``function(tiles, first, *columns, **arguments)`` for each piece of a block."""
    start = int(first[0, 0])
    for tiles, *rows in _pieces(block, columns):
        yield function(tiles, start, *rows, **arguments)
        start += len(tiles)


def with_column(X: da.Array, column: da.Array | None) -> list[da.Array]:
    """Return the tiles, and the column in shape (n, 1) unless the column is None."""
    return [X] if column is None else [X, column[:, None]]


def concatenate_fields(parts: Sequence[Fields]) -> Fields:
    """Return named tuples of arrays concatenated field by field."""
    return type(parts[0])(*map(np.concatenate, zip(*parts, strict=True)))


def share(X: da.Array, array: NDArray[Any], name: str = "stack") -> Any:
    """Return an array as an argument for the tasks of all blocks.

    A small array travels with each task. A large array is a task of its own and reaches each worker
    once, but all other tasks wait for the array.
    """
    if array.nbytes * X.numblocks[0] <= sizes.shared_bytes:
        return array
    return dask.delayed(array, name=f"{name}-{dask.base.tokenize(array)}")


def take_tiles(X: da.Array, indices: NDArray[np.int64]) -> Delayed:
    """Return the tiles of ascending global indices (at least one), (m, d), lazily.

    Blocks without these tiles are not read.
    """
    return gather(
        _take,
        X,
        None,
        np.concatenate,
        only=_blocks_of(X, indices),
        indices=share(X, indices, "indices"),
    )


def count_tiles_in_blocks(X: da.Array, indices: NDArray[np.int64]) -> int:
    """Return the number of tiles in the blocks that `take_tiles` would read."""
    return int(np.asarray(X.chunks[0])[_blocks_of(X, indices)].sum())


def _blocks_of(X: da.Array, indices: NDArray[np.int64]) -> NDArray[np.intp]:
    return np.unique(np.searchsorted(np.cumsum(X.chunks[0]), indices, side="right"))


def _take(tiles: NDArray[Any], first: int, *, indices: NDArray[np.int64]) -> NDArray[Any]:
    lo, hi = np.searchsorted(indices, [first, first + len(tiles)])
    return tiles[indices[lo:hi] - first]
