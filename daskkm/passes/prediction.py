"""Labels of tiles, and distances to the centroids of one model, lazily."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask
import numpy as np

from daskkm.kernels.dtypes import check_finite
from daskkm.passes.inputs import check_sums_finite
from daskkm.passes.reductions import gather, share

if TYPE_CHECKING:
    import dask.array as da
    from dask.delayed import Delayed
    from numpy.typing import NDArray


def labels(X: da.Array, centroids: NDArray[np.float64]) -> da.Array:
    """Return the label of each tile, (n,) int32, lazily."""
    return X.map_blocks(
        _labels,
        token="labels",  # noqa: S106 (the name of the tasks)
        centroids=share(X, centroids),
        dtype=np.int32,
        drop_axis=1,
        meta=np.empty(0, np.int32),
    )


def distances(X: da.Array, centroids: NDArray[np.float64]) -> da.Array:
    """Return the Euclidean distance of each tile to each centroid, (n, k) float64, lazily."""
    return X.map_blocks(
        _distances,
        token="distances",  # noqa: S106 (the name of the tasks)
        centroids=share(X, centroids),
        dtype=np.float64,
        chunks=(X.chunks[0], (len(centroids),)),
        meta=np.empty((0, 0)),
    )


def write(
    X: da.Array, centroids: NDArray[np.float64], labels: Any, distances: Any = None
) -> Delayed:
    """Write the label of each tile, and optionally the distances, lazily.

    Each task writes the rows of one block, on a worker; only counts come back.

    Parameters
    ----------
    X : dask array of shape (n, d)
    centroids : ndarray of shape (k, d), float64
    labels : object
        Supports ``labels[first:last] = …``, a block at a time.
    distances : object, optional
        Supports ``distances[first:last] = …``, ``distances.rows`` rows at a time.

    Returns
    -------
    Delayed ndarray of shape (k,), int64
        Number of tiles of each label.
    """
    # A task of its own, with a unique name.
    targets = dask.delayed((labels, distances), pure=False, traverse=False)
    return gather(_write, X, None, sum, centroids=share(X, centroids), targets=targets)


def _labels(tiles: NDArray[Any], centroids: NDArray[np.float64]) -> NDArray[np.int32]:
    from daskkm.kernels.assign import label_block

    return label_block(tiles, centroids, np.array([0, len(centroids)]))[:, 0]


def _distances(tiles: NDArray[Any], centroids: NDArray[np.float64]) -> NDArray[np.float64]:
    from daskkm.kernels.distances import distances_to_all

    check_finite(tiles)
    squared = distances_to_all(tiles, centroids)
    check_sums_finite(squared)
    return np.sqrt(squared, out=squared)


def _write(
    tiles: NDArray[Any],
    first: int,
    *,
    centroids: NDArray[np.float64],
    targets: tuple[Any, Any],
) -> NDArray[np.int64]:
    labels, distances = targets
    own = _labels(tiles, centroids)
    labels[first : first + len(tiles)] = own
    # The distances to many clusters are many times the size of the block.
    for lo in range(0, len(tiles), distances.rows) if distances is not None else ():
        part = _distances(tiles[lo : lo + distances.rows], centroids)
        distances[first + lo : first + lo + len(part)] = part
    return np.bincount(own, minlength=len(centroids))
