"""What the tests compare with: the definitions, written as plainly as NumPy allows."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def distances(tiles: NDArray[Any], centroids: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared distances (n, k): float64, feature after feature, in index order."""
    total = np.zeros((len(tiles), len(centroids)))
    with np.errstate(all="ignore"):
        for p in range(tiles.shape[1]):
            difference = tiles[:, p, None].astype(np.float64) - centroids[None, :, p]
            total += difference * difference
    return total


def labels(
    tiles: NDArray[Any], stack: NDArray[np.float64], offsets: NDArray[np.intp]
) -> NDArray[np.int32]:
    """Label of every tile under every model: the first that minimises the distance."""
    far = distances(tiles, stack)
    columns = [far[:, lo:hi].argmin(axis=1) for lo, hi in pairwise(offsets)]
    return np.stack(columns, axis=1).astype(np.int32)


def statistics(
    tiles: NDArray[Any], stack: NDArray[np.float64], offsets: NDArray[np.intp]
) -> NDArray[Any]:
    """Sum, count and squares of the tiles of every centroid: of floats, squared distances."""
    wide = tiles.astype(np.float64 if tiles.dtype.kind == "f" else np.int64)
    ones = np.ones_like(wide, shape=(len(wide), 1))
    total = np.zeros((len(stack), tiles.shape[1] + 2), wide.dtype)
    for m, own in enumerate(labels(tiles, stack, offsets).T):
        about = stack[offsets[m] + own] if tiles.dtype.kind == "f" else 0
        squares = ((wide - about) ** 2).sum(axis=1, dtype=wide.dtype)[:, None]
        np.add.at(total, offsets[m] + own, np.hstack([wide, ones, squares]))
    return total


def farthest(
    tiles: NDArray[Any], centroids: NDArray[np.float64], m: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices and labels of the m tiles farthest from their own centroid, first on ties."""
    far = distances(tiles, centroids)
    own, own_label = far.min(axis=1), far.argmin(axis=1)
    order = np.lexsort((np.arange(len(tiles)), -own))
    order = order[own[order] > 0][:m]
    return order, own_label[order]


def notebook(
    tiles: NDArray[Any], centroids: NDArray[np.float64], n_iter: int
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Lloyd's iteration as the original notebook wrote it: a fixed number of rounds."""
    for _ in range(n_iter):
        nearest = [np.argmin([((x - c) ** 2).sum() for c in centroids]) for x in tiles * 1.0]
        own = np.array(nearest)
        centroids = np.array([tiles[own == j].mean(axis=0) for j in range(len(centroids))])
    return centroids, own
