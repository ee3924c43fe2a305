"""Reductions over the blocks of a dask array of tiles.

One task a block reads its tiles and reduces them; a tree with `sizes.fan_in` branches a node merges
the results. A block is an array, or an iterable of arrays that are read one after another (see
`daskkm.passes.tiles`): then one array at a time is in memory. No tile leaves its worker but those
that initial centroids or empty clusters need.
"""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar

import dask
import dask.array as da
import numpy as np

from daskkm.sizes import sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dask.delayed import Delayed
    from numpy.typing import NDArray

Fields = TypeVar("Fields", bound=tuple[Any, ...])


def sum_over_blocks(
    function: Callable[..., Any],
    arrays: Sequence[da.Array],
    shape: tuple[int, int],
    dtype: np.dtype[Any],
    **arguments: Any,
) -> da.Array:
    """Return the sum over blocks of ``function(block, *columns)``, (1, *shape), lazily."""
    # The name of the function names the tasks on the dashboard.
    name = function.__name__.strip("_").replace("_", "-")
    parts = da.map_blocks(
        function,
        *arrays,
        **arguments,
        token=name,
        dtype=dtype,
        chunks=((1,) * arrays[0].numblocks[0], (shape[0],), (shape[1],)),
        new_axis=2,
        meta=np.empty((0, 0, 0), dtype),
    )
    return da.reduction(
        parts,
        _add,
        _add,
        axis=0,
        split_every=sizes.fan_in,
        concatenate=False,  # a concatenation would hold all parts twice
        dtype=dtype,
        name=f"{name}-sum",
        meta=np.empty((0, 0), dtype),
    )


# An overflow is refused by name where the sum is checked.
@np.errstate(over="ignore", invalid="ignore")
def _add(parts: Any, axis: tuple[int, ...], keepdims: bool) -> NDArray[Any]:  # noqa: ARG001
    """Add arrays, or one array, along their first axis, of length 1."""
    first, *others = parts if isinstance(parts, list) else [parts]
    total = first + others[0] if others else first
    for other in others[1:]:
        total += other
    return np.asarray(total if keepdims else total[0])


@np.errstate(over="ignore", invalid="ignore")
def sum_over_pieces(
    function: Callable[..., NDArray[Any]], block: Any, columns: Sequence[NDArray[Any]]
) -> NDArray[Any]:
    """Return the sum of ``function(tiles, *columns)`` over the pieces of a block: (1, ...)."""
    total, start = None, 0
    for tiles in pieces(block):
        rows = slice(start, start + len(tiles))
        part = function(tiles, *(column[rows, 0] for column in columns))
        total = part if total is None else np.add(total, part, out=total)
        start = rows.stop
    return np.asarray(total)[None]


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
        index of the first tile. dask takes the objects for arrays: its tree of reductions is quick
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
    arguments |= {"function": function, "merge": merge}
    parts = _map_objects(_merge_pieces, with_column(X, weights), name, only=only, **arguments)
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
        Both cost one read only if they are computed together: persist both at once.
    """
    name = _task_name(function)
    parts = _map_objects(_note_pieces, arrays, name, function=function, merge=merge, **arguments)
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
    return function.__name__.strip("_").replace("_", "-")


def _map_objects(
    of_block: Callable[..., Any],
    arrays: Sequence[da.Array],
    name: str,
    *,
    only: NDArray[np.intp] | None = None,
    **arguments: Any,
) -> da.Array:
    """Return one object for each block, lazily."""
    chunks = arrays[0].chunks
    firsts = np.cumsum([0, *chunks[0][:-1]])[:, None]
    if only is not None:
        firsts, arrays = firsts[only], [array.blocks[only] for array in arrays]
    tiles, *columns = arrays
    return da.map_blocks(
        of_block,
        tiles,
        da.from_array(firsts, chunks=1, name=f"firsts-{dask.base.tokenize(chunks, only)}"),
        *columns,
        **arguments,
        token=name,
        dtype=object,
        # Two axes, as the tiles have: to drop an axis dask would first join the blocks along it.
        chunks=((1,) * len(firsts), (1,)),
        meta=np.empty((0, 0), object),
    )


def _merge_tree(parts: da.Array, merge: Callable[[list[Any]], Any], name: str) -> da.Array:
    """Return one object for the objects of all blocks, merged by a tree, lazily."""

    def merge_node(results: Any, **_: Any) -> Any:
        return merge(results) if isinstance(results, list) else results

    return da.reduction(
        parts,
        lambda results, **_: results,
        merge_node,
        axis=0,
        split_every=sizes.fan_in,
        concatenate=False,
        dtype=object,
        name=f"{name}-merge",
        meta=np.empty(0, object),
    )


def _merge_pieces(
    block: Any,
    first: NDArray[np.int64],
    *columns: NDArray[Any],
    function: Callable[..., Any],
    merge: Callable[[list[Any]], Any],
    **arguments: Any,
) -> Any:
    """Return the merged results of a function on the pieces of a block."""
    merged: list[Any] = []
    start = 0
    for tiles in pieces(block):
        rows = slice(start, start + len(tiles))
        new = function(tiles, int(first[0, 0]) + start, *(c[rows, 0] for c in columns), **arguments)
        merged = [merge([*merged, new])] if merged else [new]
        start = rows.stop
    return merged[0]


def _note_pieces(
    block: Any,
    first: NDArray[np.int64],
    *columns: NDArray[Any],
    function: Callable[..., tuple[NDArray[Any], Any]],
    merge: Callable[[list[Any]], Any],
    **arguments: Any,
) -> tuple[NDArray[Any], Any]:
    """Return the notes of the tiles of a block, and the merged results on its pieces."""
    notes: list[NDArray[Any]] = []

    def split(*args: Any, **kwargs: Any) -> Any:
        new, result = function(*args, **kwargs)
        notes.append(new)
        return result

    result = _merge_pieces(block, first, *columns, function=split, merge=merge, **arguments)
    return np.concatenate(notes), result


def pieces(block: Any) -> Iterable[NDArray[Any]]:
    """Return the arrays of tiles of a block, each of which may be overwritten by the next."""
    return [block] if isinstance(block, np.ndarray) else block


def with_column(X: da.Array, column: da.Array | None) -> list[da.Array]:
    """Return the tiles, and the column of shape (n, 1) if there is one."""
    return [X] if column is None else [X, column[:, None]]


def concatenate_fields(parts: Sequence[Fields]) -> Fields:
    """Return named tuples of arrays concatenated field by field."""
    return type(parts[0])(*map(np.concatenate, zip(*parts, strict=True)))


def share(X: da.Array, array: NDArray[Any], name: str = "stack") -> Any:
    """Return an array in the form in which the tasks of all blocks take it.

    A small array travels with each task. A large one is a task of its own and reaches each worker
    once, but all other tasks wait for it.
    """
    if array.nbytes * X.numblocks[0] <= sizes.shared_bytes:
        return array
    return dask.delayed(array, name=f"{name}-{dask.base.tokenize(array)}")


def take_tiles(X: da.Array, indices: NDArray[np.int64]) -> Delayed:
    """Return the tiles of the given global indices (at least one, ascending), (m, d), lazily.

    Blocks without any of them are not read.
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
    """Return the number of tiles in the blocks that hold the given global indices."""
    return int(np.asarray(X.chunks[0])[_blocks_of(X, indices)].sum())


def _blocks_of(X: da.Array, indices: NDArray[np.int64]) -> NDArray[np.intp]:
    return np.unique(np.searchsorted(np.cumsum(X.chunks[0]), indices, side="right"))


def _take(tiles: NDArray[Any], first: int, *, indices: NDArray[np.int64]) -> NDArray[Any]:
    lo, hi = np.searchsorted(indices, [first, first + len(tiles)])
    return tiles[indices[lo:hi] - first]
