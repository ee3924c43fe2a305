"""Squared distances by the definition: float64, summed in index order, exact to the last bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from daskkm.kernels.compilation import compile_kernel
from daskkm.kernels.dtypes import check_shapes, distance_dtype, max_difference, read_only

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Tiles with sums side by side (64 to 256 are equally fast), and features that are added between the
# load and the store of a sum.
_LANES = 128
_FEATURES = 8


def squared_distances(
    tiles: NDArray[Any], centroids: NDArray[np.float64], labels: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Return each tile's squared distance to its own centroid by the reference, (n,)."""
    distances = np.empty(len(tiles))
    if _are_tiles(tiles.dtype, centroids):
        arrays = (read_only(tiles), read_only(centroids.astype(tiles.dtype)), labels)
        _own_whole_distances(*arrays, distance_dtype(tiles)(0), distances)
        return distances
    _own_distances(read_only(tiles), read_only(centroids), labels, distances)
    return distances


def distances_to_all(tiles: NDArray[Any], centroids: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return every tile's squared distance to every centroid by the reference, (n, k).

    Several times faster than `squared_distances`, with the same bits: the vectors of the CPU run
    across tiles. Float tiles may contain NaN or infinity.
    """
    tiles, centroids = check_shapes(tiles, centroids, np.array([0, len(centroids)]))
    distances = np.empty((len(tiles), len(centroids)))
    if _are_tiles(tiles.dtype, centroids):
        whole = read_only(centroids.astype(tiles.dtype))
        _whole_distances(tiles, whole, distance_dtype(tiles)(0), distances)
        return distances
    # A padding feature, 0 in tile and centroid, adds +0.0 to a sum and changes no bit.
    features = -(-tiles.shape[1] // _FEATURES) * _FEATURES
    padded = np.zeros((len(centroids), features))
    padded[:, : tiles.shape[1]] = centroids
    _distances_to_all(tiles, read_only(padded), distances)
    return distances


def find_nearest_two(
    distances: NDArray[np.float64],
) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.float64]]:
    """Return labels, and distances to the own and to the nearest other centroid, (n,) each.

    A label is the first of the nearest centroids. The third array is infinite if k = 1. Finite
    `distances` are those of `distances_to_all`, (n, k).
    """
    labels = np.empty(len(distances), np.int32)
    own, other = np.empty(len(distances)), np.empty(len(distances))
    _find_nearest_two(distances, labels, own, other)
    return labels, own, other


def _are_tiles(dtype: np.dtype[Any], centroids: NDArray[np.float64]) -> bool:
    """Return True if centroids are integers of the tiles' dtype, as drawn tiles are."""
    if dtype.kind == "f" or centroids.shape[1] * max_difference(dtype) ** 2 >= 2**53:
        return False
    limits = np.iinfo(dtype)
    inside = (centroids >= limits.min) & (centroids <= limits.max)
    return bool((inside & (centroids == np.floor(centroids))).all())


@compile_kernel
def squared_distance(tile: Any, centroid: Any) -> Any:
    """Return the reference distance: float64, in index order, neither FMA nor reassociation."""
    total = 0.0
    for p in range(len(tile)):
        difference = np.float64(tile[p]) - centroid[p]
        total += difference * difference
    return total


@compile_kernel
def _own_distances(tiles: Any, centroids: Any, labels: Any, distances: Any) -> None:
    """Write each tile's distance to its own centroid, eight tiles at a time.

    A sum in order waits for each addition, and eight sums wait together. Squares need no order, so
    vectors compute some features of each tile first.
    """
    n, d = tiles.shape
    squares = np.zeros((8, 8 * _FEATURES))
    for i in range(0, n, 8):
        t0 = t1 = t2 = t3 = t4 = t5 = t6 = t7 = 0.0
        for first in range(0, d, squares.shape[1]):
            last = min(first + squares.shape[1], d)
            for r in range(min(8, n - i)):
                tile, centroid = tiles[i + r, first:last], centroids[labels[i + r], first:last]
                for p in range(last - first):
                    difference = np.float64(tile[p]) - centroid[p]
                    squares[r, p] = difference * difference
            for p in range(last - first):
                t0, t1 = t0 + squares[0, p], t1 + squares[1, p]
                t2, t3 = t2 + squares[2, p], t3 + squares[3, p]
                t4, t5 = t4 + squares[4, p], t5 + squares[5, p]
                t6, t7 = t6 + squares[6, p], t7 + squares[7, p]
        totals = t0, t1, t2, t3, t4, t5, t6, t7
        for r in range(min(8, n - i)):
            distances[i + r] = totals[r]


@compile_kernel
def _whole_distances(tiles: Any, centroids: Any, zero: Any, distances: Any) -> None:
    """Write all distances between tiles and tiles, summed in integers."""
    for i in range(len(tiles)):
        for j in range(len(centroids)):
            distances[i, j] = _whole_distance(tiles[i], centroids[j], zero)


@compile_kernel
def _own_whole_distances(
    tiles: Any, centroids: Any, labels: Any, zero: Any, distances: Any
) -> None:
    """Write each tile's distance to its own centroid, summed in integers."""
    for i in range(len(tiles)):
        distances[i] = _whole_distance(tiles[i], centroids[labels[i]], zero)


@compile_kernel
def _whole_distance(tile: Any, centroid: Any, zero: Any) -> Any:
    """Return the distance, summed in integers: below 2**53 the reference does not round."""
    number = type(zero)
    total = zero
    for p in range(len(tile)):
        difference = number(tile[p]) - number(centroid[p])
        total += difference * difference
    return total


@compile_kernel
def _distances_to_all(tiles: Any, centroids: Any, distances: Any) -> None:
    """Write all distances, a panel of tiles and a few features at a time.

    Features are widened and transposed first, so that tiles lie side by side in L1.
    """
    d, k = tiles.shape[1], len(centroids)
    wide = np.zeros((_FEATURES, _LANES))
    sums = np.empty((k, _LANES))
    for start in range(0, len(tiles), _LANES):
        panel = tiles[start : start + _LANES]
        m = len(panel)
        sums[:] = 0.0
        for first in range(0, centroids.shape[1], _FEATURES):
            for q in range(_FEATURES):
                for i in range(m):
                    wide[q, i] = np.float64(panel[i, first + q]) if first + q < d else 0.0
            _add_squares(wide, centroids[:, first : first + _FEATURES], sums, m)
        for i in range(m):
            for j in range(k):
                distances[start + i, j] = sums[j, i]


@compile_kernel
def _add_squares(wide: Any, centroids: Any, sums: Any, m: int) -> None:
    """Add the squared differences of a few features, in order, to the sums of m tiles.

    Eight additions share a load and a store of the sum, and neighbouring tiles share a vector.
    """
    x0, x1, x2, x3 = wide[0], wide[1], wide[2], wide[3]
    x4, x5, x6, x7 = wide[4], wide[5], wide[6], wide[7]
    for j in range(len(centroids)):
        c0, c1, c2, c3 = centroids[j, 0], centroids[j, 1], centroids[j, 2], centroids[j, 3]
        c4, c5, c6, c7 = centroids[j, 4], centroids[j, 5], centroids[j, 6], centroids[j, 7]
        row = sums[j]
        for i in range(m):
            total = row[i]
            total += (x0[i] - c0) * (x0[i] - c0)
            total += (x1[i] - c1) * (x1[i] - c1)
            total += (x2[i] - c2) * (x2[i] - c2)
            total += (x3[i] - c3) * (x3[i] - c3)
            total += (x4[i] - c4) * (x4[i] - c4)
            total += (x5[i] - c5) * (x5[i] - c5)
            total += (x6[i] - c6) * (x6[i] - c6)
            total += (x7[i] - c7) * (x7[i] - c7)
            row[i] = total


@compile_kernel
def _find_nearest_two(distances: Any, labels: Any, own: Any, other: Any) -> None:
    """Write the label and the two least distances of each row."""
    for i in range(len(distances)):
        row = distances[i]
        label, least, second = 0, row[0], np.inf
        for j in range(1, len(row)):
            distance = row[j]
            second = min(second, max(distance, least))
            label = j if distance < least else label
            least = min(least, distance)
        labels[i], own[i], other[i] = label, least, second
