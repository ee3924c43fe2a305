"""Blocks of a dask array against a stack of centroids.

The strategy is one task a block: it reads its tiles, labels them under every model and
returns their statistics; a tree of sums with eight branches a node brings these together.
A block is an array, or what makes arrays one after another (see `daskkm.passes.tiles`): then only
one
of them is in memory at a time, and their statistics are summed before they leave the task.
Only the stack travels out and only statistics travel back; no tile leaves its worker but those
that a seeding brings together and those that are moved into an empty cluster.
A large stack is a task of its own, so that it reaches each worker once and not with every block.
"""

from __future__ import annotations

from itertools import pairwise
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar

import dask
import dask.array as da
import numpy as np

from daskkm.errors import FitError
from daskkm.kernels import assign
from daskkm.kernels import metric_sums as spreads
from daskkm.kernels.bounds import CachedBlock
from daskkm.kernels.distances import distances_to_all, squared_distances
from daskkm.kernels.dtypes import check_finite, statistics_dtype
from daskkm.kernels.stack import PreparedStack, prepare_stack
from daskkm.kmeans.lloyd import Farthest
from daskkm.kmeans.seeding import TOO_LARGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dask.delayed import Delayed
    from numpy.typing import NDArray

    from daskkm.kernels.metric_sums import Clusters

_Found = TypeVar("_Found", bound=tuple[Any, ...])

_FAN_IN = 8
_LITTLE = 1 << 20  # bytes
_ROUNDING = 1e-13  # of a mean of many floats, relative
_FEW = 8192  # tiles for which the definition of a distance costs little


def statistics(
    X: da.Array,
    stack: NDArray[np.float64],
    offsets: NDArray[np.intp],
    *,
    weights: da.Array | None = None,
    models: Sequence[int] = (),
) -> da.Array:
    """Return the statistics of every centroid over all tiles, lazily.

    Parameters
    ----------
    X : dask array of shape (n, d)
        Tiles, in one chunk along the features.
    stack : ndarray of shape (sum of k, d), float64
    offsets : ndarray of shape (n_models + 1,), intp
    weights : dask array of shape (n,), int64 or float64, optional
        In the chunks of the tiles.
    models : sequence of int, optional
        Names of the models, by which `resident` blocks of integers know them from pass to pass;
        not with weights.

    Returns
    -------
    dask array of shape (sum of k, d + 2), int64 (float64 for float tiles or weights)
    """
    kind = statistics_dtype(X.dtype, None if weights is None else weights.dtype)
    shape = len(stack), X.shape[1] + 2
    shared: dict[str, Any] = {"stack": _shared(X, stack), "offsets": offsets}
    if models:
        return _summed(_remembered_statistics, [X], shape, kind, **shared, models=tuple(models))
    return _summed(_statistics, _with(X, weights), shape, kind, **shared)


def resident(X: da.Array) -> da.Array:
    """Return blocks that, once they are persisted, hold their tiles in memory, lazily.

    Parameters
    ----------
    X : dask array of shape (n, d)

    Returns
    -------
    dask array of shape (n, d)
        Of `CachedBlock` in place of arrays.
    """
    return X.map_blocks(CachedBlock.from_block, token="resident", dtype=X.dtype, meta=X._meta)  # noqa: S106


def labels(X: da.Array, centroids: NDArray[np.float64]) -> da.Array:
    """Return the label of every tile under one model, lazily.

    Parameters
    ----------
    X : dask array of shape (n, d)
        Tiles, in one chunk along the features.
    centroids : ndarray of shape (k, d), float64

    Returns
    -------
    dask array of shape (n,), int32
    """
    return X.map_blocks(
        _one_labels,
        token="labels",  # noqa: S106 (the name of the tasks)
        centroids=_shared(X, centroids),
        dtype=np.int32,
        drop_axis=1,
        meta=np.empty(0, np.int32),
    )


def distances(X: da.Array, centroids: NDArray[np.float64]) -> da.Array:
    """Return the Euclidean distance of every tile to every centroid, lazily.

    Parameters
    ----------
    X : dask array of shape (n, d)
        Tiles, in one chunk along the features.
    centroids : ndarray of shape (k, d), float64

    Returns
    -------
    dask array of shape (n, k), float64
    """
    return X.map_blocks(
        _one_distances,
        token="distances",  # noqa: S106 (the name of the tasks)
        centroids=_shared(X, centroids),
        dtype=np.float64,
        chunks=(X.chunks[0], (len(centroids),)),
        meta=np.empty((0, 0)),
    )


def write_labels(
    X: da.Array, centroids: NDArray[np.float64], labels: Any, distances: Any = None
) -> Delayed:
    """Write the label of every tile under one model, and the distances if asked to, lazily.

    Every task writes what is of its own block, wherever it runs; only sizes come back.

    Parameters
    ----------
    X : dask array of shape (n, d)
        Tiles, in one chunk along the features.
    centroids : ndarray of shape (k, d), float64
    labels : object
        Runs of rows are written to it by ``labels[first:last] = …``, a block at a time.
    distances : object, optional
        Likewise, but ``distances.rows`` at a time.

    Returns
    -------
    Delayed ndarray of shape (k,), int64
        How many tiles each label was given.
    """
    # A task of its own, under a name that no other run has.
    targets = dask.delayed((labels, distances), pure=False, traverse=False)
    return gathered(_one_written, X, None, sum, centroids=_shared(X, centroids), targets=targets)


def farthest(
    X: da.Array,
    stack: NDArray[np.float64],
    offsets: NDArray[np.intp],
    wanted: Sequence[int],
    *,
    weights: da.Array | None = None,
) -> Delayed:
    """Return for each model the tiles farthest from their own centroid, lazily.

    Tiles that lie on their centroid, floats within rounding, are never among them, nor are
    those without weight.

    Parameters
    ----------
    X, stack, offsets, weights
        As for `statistics`.
    wanted : sequence of int
        How many tiles each model asks for.

    Returns
    -------
    Delayed tuple of Farthest
        One a model; farthest first, lowest global index on ties.
    """

    def merge(found: list[tuple[Farthest, ...]]) -> tuple[Farthest, ...]:
        """Join what the blocks found, and keep the farthest for each model."""
        return tuple(
            joined(blocks).most(m)
            for blocks, m in zip(zip(*found, strict=True), wanted, strict=True)
        )

    return gathered(
        _one_farthest, X, weights, merge, stack=_shared(X, stack), offsets=offsets, wanted=wanted
    )


def _with(X: da.Array, column: da.Array | None) -> list[da.Array]:
    """Return what goes to `map_blocks`: the tiles, and a number for each of them if there is."""
    return [X] if column is None else [X, column[:, None]]


def _summed(
    function: Callable[..., Any],
    arrays: Sequence[da.Array],
    shape: tuple[int, int],
    kind: np.dtype[Any],
    **arguments: Any,
) -> da.Array:
    """Return the sum over all tiles of what a function makes of a block, (1, *shape), lazily."""
    # Its name says on the dashboard what is summed.
    name = function.__name__.strip("_").replace("_", "-")
    parts = da.map_blocks(
        function,
        *arrays,
        **arguments,
        token=name,
        dtype=kind,
        chunks=((1,) * arrays[0].numblocks[0], (shape[0],), (shape[1],)),
        new_axis=2,
        meta=np.empty((0, 0, 0), kind),
    )
    return da.reduction(
        parts,
        _added,
        _added,
        axis=0,
        split_every=_FAN_IN,
        concatenate=False,  # which would hold all parts twice
        dtype=kind,
        name=f"{name}-sum",
        meta=np.empty((0, 0), kind),
    )


# What overflows is refused where statistics are checked, by name.
@np.errstate(over="ignore", invalid="ignore")
def _added(parts: Any, axis: tuple[int, ...], keepdims: bool) -> NDArray[Any]:  # noqa: ARG001
    """Add up one array, or several, along their first axis, of length 1."""
    first, *others = parts if isinstance(parts, list) else [parts]
    total = first + others[0] if others else first
    for other in others[1:]:
        total += other
    return np.asarray(total if keepdims else total[0])


@np.errstate(over="ignore", invalid="ignore")
def _summed_pieces(
    function: Callable[..., NDArray[Any]], block: Any, columns: Sequence[NDArray[Any]]
) -> NDArray[Any]:
    """Return the sum of what a function makes of the pieces of a block, and of its columns."""
    total, start = None, 0
    for tiles in _pieces(block):
        rows = slice(start, start + len(tiles))
        part = function(tiles, *(column[rows, 0] for column in columns))
        total = part if total is None else np.add(total, part, out=total)
        start = rows.stop
    return np.asarray(total)[None]


def taken(X: da.Array, indices: NDArray[np.int64]) -> Delayed:
    """Bring some tiles together, lazily.

    Parameters
    ----------
    X : dask array of shape (n, d)
    indices : ndarray of shape (m,), int64, ascending
        Global; at least one. Blocks without any are not read.

    Returns
    -------
    Delayed ndarray of shape (m, d)
    """
    return gathered(
        _one_taken,
        X,
        None,
        np.concatenate,
        only=_holding(X, indices),
        indices=_shared(X, indices, "indices"),
    )


def beside(X: da.Array, indices: NDArray[np.int64]) -> int:
    """Return how many tiles are in the blocks that hold these."""
    return int(np.asarray(X.chunks[0])[_holding(X, indices)].sum())


def _holding(X: da.Array, indices: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return which blocks hold these tiles, ascending."""
    ends = np.cumsum(X.chunks[0])
    return np.unique(np.searchsorted(ends, indices, side="right"))


def gathered(
    function: Callable[..., Any],
    X: da.Array,
    weights: da.Array | None,
    merge: Callable[[list[Any]], Any],
    *,
    only: NDArray[np.intp] | None = None,
    **arguments: Any,
) -> Delayed:
    """Return what a function finds among all tiles, merged by a tree, lazily.

    Parameters
    ----------
    function : callable
        It takes some tiles, the global index of the first of them, then their weights if there
        are any. What it returns may be any object: only dask's tree of reductions, which is quick
        to build for thousands of blocks, takes it for an array.
    X, weights
        As for `statistics`.
    merge : callable
        Makes one of a list of what the function returns, in the order of the tiles.
    only : ndarray of intp, ascending, optional
        The blocks to look at, by default all.
    **arguments : object
        What else the function takes.

    Returns
    -------
    Delayed object
    """
    name = function.__name__.removeprefix("_one_")
    arguments |= {"function": function, "merge": merge}
    parts = _found(_merged_pieces, _with(X, weights), name, only=only, **arguments)
    delayed: Delayed = _merged(parts, merge, name).to_delayed().item()
    return delayed


def noted(
    function: Callable[..., tuple[NDArray[Any], Any]],
    arrays: Sequence[da.Array],
    merge: Callable[[list[Any]], Any],
    kind: np.dtype[Any],
    **arguments: Any,
) -> tuple[da.Array, da.Array]:
    """Return what a function notes of every tile, and what it finds among all, of one read, lazily.

    Parameters
    ----------
    function : callable
        As for `gathered`, but that it returns two objects: the notes, an array of shape
        (n_tiles, 1), and what it finds.
    arrays : sequence of dask arrays
        The tiles, and arrays of shape (n, 1) in their chunks.
    merge : callable
        As for `gathered`.
    kind : numpy.dtype
        Of the notes.
    **arguments : object
        What else the function takes.

    Returns
    -------
    notes : dask array of shape (n, 1)
    found : dask array
        Of one object. Only together the two cost one read: persist both at once.
    """
    name = function.__name__.removeprefix("_one_")
    parts = _found(_noted_pieces, arrays, name, function=function, merge=merge, **arguments)
    notes = parts.map_blocks(
        itemgetter(0),
        token=f"{name}-notes",
        dtype=kind,
        chunks=(arrays[0].chunks[0], (1,)),
        meta=np.empty((0, 0), kind),
    )
    found = parts.map_blocks(
        itemgetter(1), token=f"{name}-found", dtype=object, meta=np.empty((0, 0), object)
    )
    return notes, _merged(found, merge, name)


def _found(
    of_block: Callable[..., Any],
    arrays: Sequence[da.Array],
    name: str,
    *,
    only: NDArray[np.intp] | None = None,
    **arguments: Any,
) -> da.Array:
    """Return what a function finds in each block, an object each, lazily."""
    chunks = arrays[0].chunks
    firsts = np.cumsum([0, *chunks[0][:-1]])[:, None]
    if only is not None:
        firsts, arrays = firsts[only], [array.blocks[only] for array in arrays]
    tiles, *rest = arrays
    return da.map_blocks(
        of_block,
        tiles,
        da.from_array(firsts, chunks=1, name=f"firsts-{dask.base.tokenize(chunks, only)}"),
        *rest,
        **arguments,
        token=name,
        dtype=object,
        # Two axes, as the tiles have: to drop one dask would join the blocks along it first.
        chunks=((1,) * len(firsts), (1,)),
        meta=np.empty((0, 0), object),
    )


def _merged(parts: da.Array, merge: Callable[[list[Any]], Any], name: str) -> da.Array:
    """Return one object of those that were found in all blocks, by a tree, lazily."""

    def merged(found: Any, **_: Any) -> Any:
        return merge(found) if isinstance(found, list) else found

    return da.reduction(
        parts,
        lambda found, **_: found,
        merged,
        axis=0,
        split_every=_FAN_IN,
        concatenate=False,
        dtype=object,
        name=f"{name}-merge",
        meta=np.empty(0, object),
    )


def _merged_pieces(
    block: Any,
    first: NDArray[np.int64],
    *columns: NDArray[Any],
    function: Callable[..., Any],
    merge: Callable[[list[Any]], Any],
    **arguments: Any,
) -> Any:
    """Return what a function finds in the pieces of a block, merged."""
    found: list[Any] = []
    start = 0
    for tiles in _pieces(block):
        rows = slice(start, start + len(tiles))
        new = function(tiles, int(first[0, 0]) + start, *(c[rows, 0] for c in columns), **arguments)
        found = [merge([*found, new])] if found else [new]
        start = rows.stop
    return found[0]


def _noted_pieces(
    block: Any,
    first: NDArray[np.int64],
    *columns: NDArray[Any],
    function: Callable[..., tuple[NDArray[Any], Any]],
    merge: Callable[[list[Any]], Any],
    **arguments: Any,
) -> tuple[NDArray[Any], Any]:
    """Return what a function notes in the pieces of a block, and what it finds, merged."""
    notes: list[NDArray[Any]] = []

    def find(*given: Any, **others: Any) -> Any:
        new, found = function(*given, **others)
        notes.append(new)
        return found

    found = _merged_pieces(block, first, *columns, function=find, merge=merge, **arguments)
    return np.concatenate(notes), found


def _pieces(block: Any) -> Iterable[NDArray[Any]]:
    """Return the arrays of a block's tiles. Each may be overwritten by the next."""
    return [block] if isinstance(block, np.ndarray) else block


def joined(found: Sequence[_Found]) -> _Found:
    """Join what was found in several places, field by field.

    Parameters
    ----------
    found : sequence of named tuples of ndarray

    Returns
    -------
    named tuple of ndarray
    """
    return type(found[0])(*map(np.concatenate, zip(*found, strict=True)))


def spread(
    X: da.Array,
    clusters: Clusters,
    classes: da.Array | None,
    names: NDArray[Any],
) -> da.Array:
    """Return how the tiles of every cluster spread, over distance and classes, lazily.

    Parameters
    ----------
    X : dask array of shape (n, d)
        Tiles, in one chunk along the features; finite.
    clusters : Clusters
        All that have tiles.
    classes : dask array of shape (n,), or None
        The class of each tile, in the chunks of X.
    names : ndarray of shape (n_classes,)
        The classes that occur, in order.

    Returns
    -------
    dask array of shape (sum of k, 3 + n_classes), int64 (float64 for float tiles)
        As `daskkm.kernels.metric_sums.sum_distances`; by products where there are more than 8,192
        8-bit tiles.
    """
    n, d = X.shape
    return _summed(
        _spread,
        _with(X, classes),
        (len(clusters.stack), 3 + len(names)),
        statistics_dtype(X.dtype),
        stack=_shared(X, clusters.stack),
        means=_shared(X, clusters.means, "means"),
        offsets=clusters.offsets,
        scales=spreads.fixed_point_scales(n, d, X.dtype),
        names=names,
        rounded=X.dtype.itemsize == 1 and n > _FEW,
    )


def _shared(X: da.Array, array: NDArray[Any], name: str = "stack") -> Any:
    """Return an array as the tasks of all blocks take it, on the dashboard under a name.

    As a task of its own it reaches each worker once; but then all others wait for that one, which
    takes longer than to send each its own, where that is little.
    """
    if array.nbytes * X.numblocks[0] <= _LITTLE:
        return array
    return dask.delayed(array, name=f"{name}-{dask.base.tokenize(array)}")


def _one_taken(tiles: NDArray[Any], first: int, *, indices: NDArray[np.int64]) -> NDArray[Any]:
    lo, hi = np.searchsorted(indices, [first, first + len(tiles)])
    return tiles[indices[lo:hi] - first]


def _statistics(
    block: Any, *weights: NDArray[Any], stack: NDArray[np.float64], offsets: NDArray[np.intp]
) -> NDArray[Any]:
    prepared: PreparedStack | None = None

    def of_piece(tiles: NDArray[Any], weights: NDArray[Any] | None = None) -> NDArray[Any]:
        nonlocal prepared  # once for all pieces
        prepared = prepared or prepare_stack(tiles.dtype, stack, offsets)
        return assign.block_statistics(tiles, stack, offsets, weights, prepared)

    return _summed_pieces(of_piece, block, weights)


def _remembered_statistics(
    block: CachedBlock,
    *,
    stack: NDArray[np.float64],
    offsets: NDArray[np.intp],
    models: tuple[int, ...],
) -> NDArray[Any]:
    return block.statistics(stack, offsets, models)[None]


def _spread(
    block: Any,
    *classes: NDArray[Any],
    stack: NDArray[np.float64],
    means: NDArray[np.float64],
    offsets: NDArray[np.intp],
    scales: spreads.Scales,
    names: NDArray[Any],
    rounded: bool,
) -> NDArray[Any]:
    clusters = spreads.Clusters(stack, means, offsets)
    products: spreads.Products | None = None

    def of_piece(tiles: NDArray[Any], classes: NDArray[Any] | None = None) -> NDArray[Any]:
        nonlocal products  # once for all pieces
        codes = None if classes is None else np.searchsorted(names, classes)
        if rounded:
            products = products or spreads.prepare_products(tiles.dtype, clusters)
        return spreads.sum_distances(tiles, clusters, scales, codes, len(names), products)

    return _summed_pieces(of_piece, block, classes)


def _one_labels(tiles: NDArray[Any], centroids: NDArray[np.float64]) -> NDArray[np.int32]:
    return assign.label_block(tiles, centroids, np.array([0, len(centroids)]))[:, 0]


def _one_distances(tiles: NDArray[Any], centroids: NDArray[np.float64]) -> NDArray[np.float64]:
    check_finite(tiles)
    distances = distances_to_all(tiles, centroids)
    if not np.isfinite(distances).all():
        raise FitError(TOO_LARGE)
    return np.sqrt(distances, out=distances)


def _one_written(
    tiles: NDArray[Any],
    first: int,
    *,
    centroids: NDArray[np.float64],
    targets: tuple[Any, Any],
) -> NDArray[np.int64]:
    labels, distances = targets
    own = _one_labels(tiles, centroids)
    labels[first : first + len(tiles)] = own
    # For many clusters, the distances of a block are many times the block.
    for lo in range(0, len(tiles), distances.rows) if distances is not None else ():
        part = _one_distances(tiles[lo : lo + distances.rows], centroids)
        distances[first + lo : first + lo + len(part)] = part
    return np.bincount(own, minlength=len(centroids))


def _one_farthest(
    tiles: NDArray[Any],
    first: int,
    weights: NDArray[Any] | None = None,
    *,
    stack: NDArray[np.float64],
    offsets: NDArray[np.intp],
    wanted: Sequence[int],
) -> tuple[Farthest, ...]:
    """Return a block's farthest tiles, model by model."""
    exact = weights is None and tiles.dtype.kind != "f"
    weights = np.ones(len(tiles), np.int64) if weights is None else weights
    found = []
    for (lo, hi), m in zip(pairwise(offsets), wanted, strict=True):
        centroids = stack[lo:hi]
        # The labels of no tile cost nothing.
        own = _one_labels(tiles if m else tiles[:0], centroids)
        distances = squared_distances(tiles[: len(own)], centroids, own)
        off = np.flatnonzero(
            (distances > _on_centroid(tiles[: len(own)], exact=exact)) & (weights[: len(own)] > 0)
        )
        found.append(
            Farthest(distances[off], first + off, tiles[off], own[off], weights[off]).most(m)
        )
    return tuple(found)


def _on_centroid(tiles: NDArray[Any], *, exact: bool) -> NDArray[np.float64] | float:
    """Return the squared distance up to which a tile lies on its centroid.

    The mean of equal floats, or weighted, need not be that tile: relocated, it would go on to be.
    """
    if exact:
        return 0.0
    return np.asarray(_ROUNDING**2 * np.square(tiles, dtype=np.float64).sum(axis=1))
