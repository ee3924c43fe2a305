"""Blocks of a dask array against a stack of centroids.

The strategy is one task a block: it reads its tiles, labels them under every model and
returns their statistics; a tree of sums with eight branches a node brings these together.
Only the stack travels out and only statistics travel back; no tile leaves its worker but those
that a seeding brings together and those that are moved into an empty cluster.
The stack is a task of its own, so that it reaches each worker once and not with every block.
"""

from __future__ import annotations

import math
import warnings
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import dask
import dask.array as da
import numpy as np

from daskkm import kernel, seeding
from daskkm.errors import FitError
from daskkm.lloyd import Farthest
from daskkm.seeding import Drawn, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dask.delayed import Delayed
    from numpy.typing import NDArray

    from daskkm.seeding import Trial

_Found = TypeVar("_Found", Drawn, Farthest)

_FAN_IN = 8
_BLOCK_BYTES = 4 << 20  # of arrays that have no chunks of their own: those of a store
_ROUNDING = 1e-13  # of a mean of many floats, relative
_PANEL = 1024  # tiles whose distances to all centroids are in memory at once


def as_tiles(X: Any) -> da.Array:
    """Return X as a dask array with one chunk along the features.

    Parameters
    ----------
    X : TileStore, or array of shape (n, d)
        An array is one of dask's, NumPy's or Zarr's, or anything else with a shape, a dtype,
        slices and, if it has them, ``chunks``.

    Returns
    -------
    dask array of shape (n, d)

    Raises
    ------
    FitError
        If X is not two-dimensional, or masked.
    TypeError
        If the dtype of X is not supported.
    """
    if np.ma.isMaskedArray(getattr(X, "_meta", X)):
        msg = "X is a masked array, and k-means has no use for a mask; fill it or drop the tiles"
        raise FitError(msg)
    if hasattr(type(X), "features"):  # a TileStore, which this module need not know
        X = X.features()
    try:
        tiles = X if is_lazy(X) else np.asarray(X)  # a Zarr array is not read yet
    except ValueError as error:
        msg = f"X is no array ({error}); give it as (n_tiles, n_features)"
        raise FitError(msg) from error
    if np.isnan(tiles.shape[1:]).any():
        msg = f"X has shape {tiles.shape}; compute_chunk_sizes() tells how many features there are"
        raise FitError(msg)
    if tiles.ndim != 2 or not tiles.shape[1]:
        msg = f"X has shape {tiles.shape}; give it as (n_tiles, n_features)"
        raise FitError(msg)
    kernel.check_dtype(tiles.dtype)
    if not isinstance(tiles, da.Array):
        rows = max(1, _BLOCK_BYTES // (tiles.shape[1] * tiles.dtype.itemsize))
        # name=False: a name made from the content would cost a read of it.
        chunks = getattr(X, "chunks", None) if is_lazy(X) else None
        tiles = da.from_array(tiles, chunks=chunks or (rows, -1), name=False)
    return tiles if tiles.numblocks[1] == 1 else tiles.rechunk({1: -1})


def is_lazy(X: Any) -> bool:
    """Tell whether X is read block by block: a dask or Zarr array, or a TileStore."""
    # Of its type: a data frame has columns for attributes, and these may have any name.
    return hasattr(type(X), "chunks") or hasattr(type(X), "features")


@contextmanager
def sending(X: Any) -> Iterator[None]:
    """Keep dask from advice against sending tiles to workers, where X is in memory.

    Where they lie, there is no other way.
    """
    with warnings.catch_warnings():
        if not is_lazy(X):
            warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
        yield


def tile_shape(X: Any) -> tuple[int, ...] | None:
    """Return the shape of a tile, (height, width) or (height, width, bands), where X has one."""
    return X.tile if hasattr(type(X), "features") else None


def statistics(
    X: da.Array,
    stack: NDArray[np.float64],
    offsets: NDArray[np.intp],
    *,
    weights: da.Array | None = None,
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

    Returns
    -------
    dask array of shape (sum of k, d + 2), int64 (float64 for float tiles or weights)
    """
    kind = kernel.statistics_dtype(X.dtype, None if weights is None else weights.dtype)
    shape = len(stack), X.shape[1] + 2
    return _summed(
        _one_statistics, _with(X, weights), shape, kind, stack=_shared(stack), offsets=offsets
    )


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
        centroids=_shared(centroids),
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
        centroids=_shared(centroids),
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
    return _gathered(_one_written, X, None, sum, centroids=_shared(centroids), targets=targets)


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
            _joined(blocks).most(m)
            for blocks, m in zip(zip(*found, strict=True), wanted, strict=True)
        )

    return _gathered(
        _one_farthest, X, weights, merge, stack=_shared(stack), offsets=offsets, wanted=wanted
    )


def trials(
    X: da.Array,
    trials: Sequence[Trial],
    n_draws: int,
    seed: int,
    step: int,
    *,
    weights: da.Array | None = None,
) -> Delayed:
    """Try candidates for the next centroid of each seeding, and draw the next ones, lazily.

    Parameters
    ----------
    X, weights
        As for `statistics`.
    trials : sequence of Trial
        One a seeding.
    n_draws : int
        How many tiles to draw, without replacement, each with probability proportional to its
        weight times its squared distance to the nearest of the centroids.
    seed, step : int
        What the draws depend on, beside the place of the seeding and of the tiles.

    Returns
    -------
    Delayed tuple of Outcome
        One a seeding.
    """

    def merge(outcomes: list[tuple[Outcome, ...]]) -> tuple[Outcome, ...]:
        """Add up what the candidates leave, and keep the first of the draws."""
        return tuple(
            Outcome(
                [sum(of_one) for of_one in zip(*(o.potentials for o in blocks), strict=True)],
                [
                    _joined(of_one).first(n_draws)
                    for of_one in zip(*(o.drawn for o in blocks), strict=True)
                ],
            )
            for blocks in zip(*outcomes, strict=True)
        )

    return _gathered(
        _one_trials,
        X,
        weights,
        merge,
        trials=dask.delayed(list(trials), pure=True, traverse=False),
        n_draws=n_draws,
        seed=seed,
        step=step,
    )


def drawn(weights: da.Array, n: int, seed: int) -> Delayed:
    """Draw n tiles with probability proportional to their weight, lazily, from that alone.

    Parameters
    ----------
    weights : dask array of shape (n_tiles,), int64 or float64
    n, seed : int

    Returns
    -------
    Delayed list of Drawn
        Independent draws of one each; as its tile, the weight.
    """

    def merge(found: list[list[Drawn]]) -> list[Drawn]:
        return [_joined(of_one).first(1) for of_one in zip(*found, strict=True)]

    return _gathered(_one_drawn, weights[:, None], None, merge, n=n, seed=seed)


def _with(X: da.Array, column: da.Array | None) -> list[da.Array]:
    """Return what goes to `map_blocks`: the tiles, and a number for each of them if there is."""
    return [X] if column is None else [X, column[:, None]]


def _summed(
    function: Callable[..., NDArray[Any]],
    arrays: Sequence[da.Array],
    shape: tuple[int, int],
    kind: np.dtype[Any],
    **arguments: Any,
) -> da.Array:
    """Return the sum over the blocks of what a function makes of each, (1, *shape), lazily."""
    # Its name says on the dashboard what is summed.
    name = function.__name__.removeprefix("_one_")
    parts = da.map_blocks(
        function,
        *arrays,
        **arguments,
        dtype=kind,
        chunks=((1,) * arrays[0].numblocks[0], (shape[0],), (shape[1],)),
        new_axis=2,
        meta=np.empty((0, 0, 0), kind),
    )
    return da.reduction(
        parts,
        np.sum,
        np.sum,
        axis=0,
        split_every=_FAN_IN,
        dtype=kind,
        name=name,
        meta=np.empty((0, 0), kind),
    )


def _gathered(
    function: Callable[..., Any],
    X: da.Array,
    weights: da.Array | None,
    merge: Callable[[list[Any]], Any],
    **arguments: Any,
) -> Delayed:
    """Return what a function finds in the blocks, merged by a tree, lazily.

    The function takes a block, the global index of its first tile, then the weights if there
    are any. What it returns may be any object: only dask's tree of reductions, which is quick
    to build for thousands of blocks, takes it for an array.
    """
    firsts = np.cumsum([0, *X.chunks[0][:-1]])[:, None]
    tiles, *rest = _with(X, weights)
    parts = da.map_blocks(
        function,
        tiles,
        da.from_array(firsts, chunks=1, name=f"firsts-{dask.base.tokenize(X.chunks)}"),
        *rest,
        **arguments,
        dtype=object,
        chunks=((1,) * X.numblocks[0],),
        drop_axis=1,
        meta=np.empty(0, object),
    )

    def merged(found: Any, **_: Any) -> Any:
        return merge(found) if isinstance(found, list) else found

    whole = da.reduction(
        parts,
        lambda found, **_: found,
        merged,
        axis=0,
        split_every=_FAN_IN,
        concatenate=False,
        dtype=object,
        name=function.__name__.removeprefix("_one_"),
        meta=np.empty((), object),
    )
    delayed: Delayed = whole.to_delayed().item()
    return delayed


def _joined(found: Sequence[_Found]) -> _Found:
    """Join what was found in several blocks, field by field."""
    return type(found[0])._make(map(np.concatenate, zip(*found, strict=True)))


def spread(
    X: da.Array,
    stack: NDArray[np.float64],
    offsets: NDArray[np.intp],
    means: NDArray[np.float64],
    filled: NDArray[np.bool_],
    scales: tuple[float, float],
    classes: da.Array | None,
    names: NDArray[Any],
) -> da.Array:
    """Return how the tiles of every cluster spread, over distance and classes, lazily.

    Parameters
    ----------
    X, stack, offsets
        As for `statistics`; float tiles are finite.
    means : ndarray of shape (sum of k, d), float64
        The mean tile of each cluster.
    filled : ndarray of shape (sum of k,), bool
        Which clusters have tiles.
    scales : tuple of two floats
        As `spread_scales` gives them.
    classes : dask array of shape (n,), or None
        The class of each tile, in the chunks of X.
    names : ndarray of shape (n_classes,)
        The classes that occur, in order.

    Returns
    -------
    dask array of shape (sum of k, 3 + n_classes), int64 (float64 for float tiles)
        Per centroid, over the tiles labelled with it: the sum of their distances to the mean
        and that of their simplified silhouettes, both times their scale; for float tiles the
        sum of the squares of those distances; the tiles of each class.
    """
    return _summed(
        _one_spread,
        _with(X, classes),
        (len(stack), 3 + len(names)),
        kernel.statistics_dtype(X.dtype),
        stack=_shared(stack),
        offsets=offsets,
        means=_shared(means),
        filled=filled,
        scales=scales,
        names=names,
    )


def spread_scales(n: int, d: int, dtype: np.dtype[Any]) -> tuple[float, float]:
    """Return the units of fixed point in which `spread` sums distances and silhouettes.

    Integers do not care in which order they are added, so each distance is rounded to a
    multiple of 2**-p, with p as large as keeps the sum of n of the largest below 2**62.
    Floats, whose labels' statistics depend on chunks anyway, are summed as they are.

    Parameters
    ----------
    n, d : int
        Tiles, and features of each.
    dtype : numpy.dtype
        Of the tiles.

    Returns
    -------
    tuple of two floats
        Powers of two, of at least n times the largest distance and n; 1 for float tiles.
    """
    if dtype.kind == "f":
        return 1.0, 1.0
    longest = math.sqrt(d) * kernel.span(dtype)
    return 2.0 ** (62 - math.ceil(math.log2(n * longest))), 2.0 ** (62 - math.ceil(math.log2(n)))


def _shared(stack: NDArray[np.float64]) -> Delayed:
    """Make the stack a task, under a name that says so on the dashboard."""
    return dask.delayed(stack, name=f"stack-{dask.base.tokenize(stack)}")


def _one_statistics(
    tiles: NDArray[Any],
    weights: NDArray[Any] | None = None,
    *,
    stack: NDArray[np.float64],
    offsets: NDArray[np.intp],
) -> NDArray[Any]:
    weights = None if weights is None else weights[:, 0]
    return kernel.block_statistics(tiles, stack, offsets, weights)[None]


def _one_spread(
    tiles: NDArray[Any],
    classes: NDArray[Any] | None = None,
    *,
    stack: NDArray[np.float64],
    offsets: NDArray[np.intp],
    means: NDArray[np.float64],
    filled: NDArray[np.bool_],
    scales: tuple[float, float],
    names: NDArray[Any],
) -> NDArray[Any]:
    """Return a block's `spread`, model by model and cluster by cluster."""
    kind = kernel.statistics_dtype(tiles.dtype)
    found = np.zeros((1, len(stack), 3 + len(names)), kind)
    codes = None if classes is None else np.searchsorted(names, classes[:, 0])
    for lo, hi in pairwise(offsets):
        labels, silhouettes = _silhouettes(tiles, stack[lo:hi], filled[lo:hi])
        for j in np.unique(labels):
            own, row = labels == j, found[0, lo + j]
            distances = np.sqrt(kernel.distances_to_all(tiles[own], means[lo + j][None]))
            row[0] = _fixed(distances, scales[0], kind).sum()
            row[1] = _fixed(silhouettes[own], scales[1], kind).sum()
            if kind.kind == "f":
                row[2] = np.square(distances).sum()
            if codes is not None:
                row[3:] = np.bincount(codes[own], minlength=len(names))
    return found


def _silhouettes(
    tiles: NDArray[Any], centroids: NDArray[np.float64], filled: NDArray[np.bool_]
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return each tile's label and simplified silhouette under one model."""
    labels, silhouettes = np.empty(len(tiles), np.intp), np.empty(len(tiles))
    for start in range(0, len(tiles), _PANEL):
        panel = slice(start, start + _PANEL)
        squares = kernel.distances_to_all(tiles[panel], centroids)
        labels[panel], own, other = kernel.nearest_two(squares, filled)
        a, b = np.sqrt(own), np.sqrt(other)
        # b is never less than a. It is infinite if there is no other cluster: no silhouette.
        known = (b > 0) & (b < np.inf)
        silhouettes[panel] = np.divide(b - a, b, out=np.zeros_like(b), where=known)
    return labels, silhouettes


def _fixed(values: NDArray[np.float64], scale: float, kind: np.dtype[Any]) -> NDArray[Any]:
    """Return values in units of 1 / scale: whole ones, if they are summed as integers."""
    scaled = values * scale
    return scaled if kind.kind == "f" else np.rint(scaled).astype(kind)


def _one_labels(tiles: NDArray[Any], centroids: NDArray[np.float64]) -> NDArray[np.int32]:
    return kernel.label_block(tiles, centroids, np.array([0, len(centroids)]))[:, 0]


def _one_distances(tiles: NDArray[Any], centroids: NDArray[np.float64]) -> NDArray[np.float64]:
    kernel.check_finite(tiles)
    distances = kernel.distances_to_all(tiles, centroids)
    return np.sqrt(distances, out=distances)


def _one_written(
    tiles: NDArray[Any],
    first: NDArray[np.int64],
    *,
    centroids: NDArray[np.float64],
    targets: tuple[Any, Any],
) -> NDArray[np.int64]:
    labels, distances = targets
    start, own = int(first[0, 0]), _one_labels(tiles, centroids)
    labels[start : start + len(tiles)] = own
    # For many clusters, the distances of a block are many times the block.
    for lo in range(0, len(tiles), distances.rows) if distances is not None else ():
        part = _one_distances(tiles[lo : lo + distances.rows], centroids)
        distances[start + lo : start + lo + len(part)] = part
    return np.bincount(own, minlength=len(centroids))


def _one_farthest(
    tiles: NDArray[Any],
    first: NDArray[np.int64],
    weights: NDArray[Any] | None = None,
    *,
    stack: NDArray[np.float64],
    offsets: NDArray[np.intp],
    wanted: Sequence[int],
) -> tuple[Farthest, ...]:
    """Return a block's farthest tiles, model by model."""
    weights = np.ones(len(tiles), np.int64) if weights is None else weights[:, 0]
    found = []
    for (lo, hi), m in zip(pairwise(offsets), wanted, strict=True):
        centroids = stack[lo:hi]
        # The labels of no tile cost nothing.
        own = _one_labels(tiles if m else tiles[:0], centroids)
        distances = kernel.squared_distances(tiles[: len(own)], centroids, own)
        off = np.flatnonzero(
            (distances > _on_centroid(tiles[: len(own)])) & (weights[: len(own)] > 0)
        )
        found.append(
            Farthest(distances[off], first[0, 0] + off, tiles[off], own[off], weights[off]).most(m)
        )
    return tuple(found)


def _on_centroid(tiles: NDArray[Any]) -> NDArray[np.float64] | float:
    """Return the squared distance up to which a tile lies on its centroid.

    The mean of equal floats need not be that float: relocated, such tiles would go on to be.
    """
    if tiles.dtype.kind != "f":
        return 0.0
    return np.asarray(_ROUNDING**2 * np.square(tiles, dtype=np.float64).sum(axis=1))


def _one_drawn(
    weights: NDArray[Any], first: NDArray[np.int64], *, n: int, seed: int
) -> list[Drawn]:
    start = int(first[0, 0])
    return [
        Drawn.race(
            weights, start, seeding.arrivals(seed, i, 0, start, len(weights)), weights[:, 0], 1
        )
        for i in range(n)
    ]


def _one_trials(
    tiles: NDArray[Any],
    first: NDArray[np.int64],
    weights: NDArray[Any] | None = None,
    *,
    trials: Sequence[Trial],
    n_draws: int,
    seed: int,
    step: int,
) -> tuple[Outcome, ...]:
    """Return what the candidates of each seeding leave of a block, and draw from it."""
    kind = kernel.statistics_dtype(tiles.dtype, None if weights is None else weights.dtype)
    outcomes = []
    for place, (chosen, candidates) in enumerate(trials):
        left = kernel.distances_to_all(tiles, candidates)
        if len(chosen):
            own = _one_labels(tiles, chosen)
            left = np.minimum(left, kernel.squared_distances(tiles, chosen, own)[:, None])
        if weights is not None:
            left *= weights
        arrivals = seeding.arrivals(seed, place, step, int(first[0, 0]), len(tiles))
        drawn = [Drawn.race(tiles, int(first[0, 0]), arrivals, mass, n_draws) for mass in left.T]
        outcomes.append(Outcome(left.astype(kind).sum(axis=0).tolist(), drawn))
    return tuple(outcomes)
