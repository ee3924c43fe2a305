"""Statistics of all clusters, tiles for empty clusters, and sums for metrics, lazily."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from daskkm.block_sizes import sizes
from daskkm.passes.reductions import (
    concatenate_fields,
    gather,
    share,
    sum_over_blocks,
    sum_over_pieces,
    with_column,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import dask.array as da
    from dask.delayed import Delayed
    from numpy.typing import NDArray

    from daskkm.kernels.bounds import CachedBlock
    from daskkm.kernels.metric_sums import Clusters, Scales

# Rounding error of a mean of many floats, relative.
_ROUNDING = 1e-13


def statistics(
    X: da.Array,
    stack: NDArray[np.float64],
    offsets: NDArray[np.intp],
    *,
    weights: da.Array | None = None,
    models: Sequence[int] = (),
) -> da.Array:
    """Return the table of statistics of each centroid over all tiles, lazily.

    Parameters
    ----------
    X : dask array of shape (n, d)
        One chunk along the features.
    stack : ndarray of shape (sum of k, d), float64
    offsets : ndarray of shape (n_models + 1,), intp
    weights : dask array of shape (n,), int64 or float64, optional
        In the chunks of X.
    models : sequence of int, optional
        Names of the models in all passes, for the bounds of `cache_blocks`; not with weights.

    Returns
    -------
    dask array of one object
        The table of `daskkm.kernels.statistics.Statistics`: ndarray of shape (sum of k, d + 2),
        int64 (float64 for float tiles or weights).
    """
    arguments: dict[str, Any] = {"stack": share(X, stack), "offsets": offsets}
    if models:
        return sum_over_blocks(_update_statistics, [X], **arguments, models=tuple(models))
    return sum_over_blocks(_statistics, with_column(X, weights), **arguments)


def cache_blocks(X: da.Array) -> da.Array:
    """Return blocks of `CachedBlock`, lazily; persisted blocks hold tiles and bounds."""
    return X.map_blocks(_cache_block, token="cache-tiles", dtype=X.dtype, meta=X._meta)  # noqa: S106


def _cache_block(block: Any) -> CachedBlock:
    from daskkm.kernels.bounds import CachedBlock

    return CachedBlock.from_block(block)


def _statistics(
    block: Any, *weights: NDArray[Any], stack: NDArray[np.float64], offsets: NDArray[np.intp]
) -> NDArray[Any]:
    from daskkm.kernels.assign import block_statistics
    from daskkm.kernels.prepared_stack import PreparedStack, prepare_stack

    prepared: PreparedStack | None = None

    def of_piece(tiles: NDArray[Any], weights: NDArray[Any] | None = None) -> NDArray[Any]:
        nonlocal prepared  # once for all pieces
        prepared = prepared or prepare_stack(tiles.dtype, stack, offsets)
        return block_statistics(tiles, stack, offsets, weights, prepared)

    return sum_over_pieces(of_piece, block, weights)


def _update_statistics(
    block: CachedBlock,
    *,
    stack: NDArray[np.float64],
    offsets: NDArray[np.intp],
    models: tuple[int, ...],
) -> NDArray[Any]:
    return block.statistics(stack, offsets, models)


class FarthestTiles(NamedTuple):
    """Tiles of one model that are farthest from their own centroid."""

    distances: NDArray[np.float64]  # (m,), squared
    indices: NDArray[np.int64]  # (m,), global
    tiles: NDArray[Any]  # (m, d)
    labels: NDArray[np.int32]  # (m,)
    weights: NDArray[Any]  # (m,), above 0

    def top(self, m: int) -> FarthestTiles:
        """Return the m farthest tiles, farthest first, lowest index on ties."""
        order = np.lexsort((self.indices, -self.distances))[:m]
        return FarthestTiles._make(field[order] for field in self)


def find_farthest(
    X: da.Array,
    stack: NDArray[np.float64],
    offsets: NDArray[np.intp],
    n_farthest: Sequence[int],
    *,
    weights: da.Array | None = None,
) -> Delayed:
    """Find the `n_farthest` farthest tiles of each model, lazily.

    Other parameters are those of `statistics`. Tiles on their own centroid (floats: within
    rounding) and tiles without weight are left out.

    Returns
    -------
    Delayed tuple of FarthestTiles
    """

    def merge(parts: list[tuple[FarthestTiles, ...]]) -> tuple[FarthestTiles, ...]:
        return tuple(
            concatenate_fields(of_model).top(m)
            for of_model, m in zip(zip(*parts, strict=True), n_farthest, strict=True)
        )

    arguments = {"stack": share(X, stack), "offsets": offsets, "n_farthest": n_farthest}
    return gather(_find_farthest, X, weights, merge, **arguments)


def _find_farthest(
    tiles: NDArray[Any],
    first: int,
    weights: NDArray[Any] | None = None,
    *,
    stack: NDArray[np.float64],
    offsets: NDArray[np.intp],
    n_farthest: Sequence[int],
) -> tuple[FarthestTiles, ...]:
    exact = weights is None and tiles.dtype.kind != "f"
    weights = np.ones(len(tiles), np.int64) if weights is None else weights
    pairs = zip(pairwise(offsets), n_farthest, strict=True)
    return tuple(
        _find_in_model(tiles if m else tiles[:0], first, weights, stack[lo:hi], m, exact=exact)
        for (lo, hi), m in pairs
    )


def _find_in_model(
    tiles: NDArray[Any],
    first: int,
    weights: NDArray[Any],
    centroids: NDArray[np.float64],
    m: int,
    *,
    exact: bool,
) -> FarthestTiles:
    from daskkm.kernels.assign import label_block
    from daskkm.kernels.distances import squared_distances

    labels = label_block(tiles, centroids, np.array([0, len(centroids)]))[:, 0]
    distances = squared_distances(tiles, centroids, labels)
    # The mean of equal floats, or of weighted tiles, may differ from each tile in the last bit:
    # a relocation would repeat for ever.
    on_centroid = 0.0 if exact else _ROUNDING**2 * np.square(tiles, dtype=np.float64).sum(axis=1)
    off = np.flatnonzero((distances > on_centroid) & (weights[: len(tiles)] > 0))
    return FarthestTiles(distances[off], first + off, tiles[off], labels[off], weights[off]).top(m)


def metric_sums(
    X: da.Array,
    clusters: Clusters,
    scales: Scales,
    classes: da.Array | None,
    names: NDArray[Any],
) -> da.Array:
    """Return sums of distances, and counts of classes, of each cluster over its tiles, lazily.

    Parameters
    ----------
    X : dask array of shape (n, d)
        Finite, in one chunk along the features.
    clusters : Clusters
        All clusters with tiles.
    scales : Scales
    classes : dask array of shape (n,), or None
        Class of each tile, in the chunks of X.
    names : ndarray of shape (n_classes,)
        Classes of the tiles, ascending.

    Returns
    -------
    dask array of one object
        The table of `daskkm.kernels.metric_sums.sum_distances`: ndarray of shape
        (sum of k, 3 + n_classes), int64 (float64 for float tiles); by products above
        `sizes.exact_metric_tiles` 8-bit tiles.
    """
    return sum_over_blocks(
        _metric_sums,
        with_column(X, classes),
        stack=share(X, clusters.stack),
        means=share(X, clusters.means, "means"),
        offsets=clusters.offsets,
        scales=scales,
        names=names,
        rounded=X.dtype.itemsize == 1 and X.shape[0] > sizes.exact_metric_tiles,
    )


def _metric_sums(
    block: Any,
    *classes: NDArray[Any],
    stack: NDArray[np.float64],
    means: NDArray[np.float64],
    offsets: NDArray[np.intp],
    scales: Scales,
    names: NDArray[Any],
    rounded: bool,
) -> NDArray[Any]:
    from daskkm.kernels import metric_sums

    clusters = metric_sums.Clusters(stack, means, offsets)
    products: metric_sums.Products | None = None

    def of_piece(tiles: NDArray[Any], classes: NDArray[Any] | None = None) -> NDArray[Any]:
        nonlocal products  # once for all pieces
        codes = None if classes is None else np.searchsorted(names, classes)
        if rounded:
            products = products or metric_sums.prepare_products(tiles.dtype, clusters)
        return metric_sums.sum_distances(tiles, clusters, scales, codes, len(names), products)

    return sum_over_pieces(of_piece, block, classes)
