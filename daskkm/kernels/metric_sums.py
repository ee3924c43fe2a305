"""One block of tiles against the clusters of many models: distances, added up by cluster.

A tile has three distances under a model: to its own centroid and to the nearest other (for the
silhouette), and to the mean of its cluster (for Davies-Bouldin). Labels are always `kernel`'s; for
the distances there are two ways:

* By definition they are the reference's of `kernel`: float64 sums in index order.
* By products, which are of 8-bit tiles, they cost little more than labels. The scores of `kernel`'s
  fast path, ``x.q`` with weights q in units of u, are exact integers, so they give exact distances
  to centroids that lie a little aside: with z the centre of all models and ``c' = z - q u / 2``,
  ``|x - c'|^2 = |x - z|^2 + u x.q + (|c'|^2 - |z|^2)``. A feature of c' is at most u / 4 off that
  of c, so by the triangle inequality a distance is off by at most sqrt(d) u / 4, and by far
  less on average. Means are rounded in the same way.

Sums of integer tiles are in fixed point, so that no order of tiles or blocks changes a bit of them.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from daskkm.kernels import assign
from daskkm.kernels.compilation import compile_kernel
from daskkm.kernels.distances import distances_to_all, nearest_two, squared_distances
from daskkm.kernels.dtypes import checked, distance_dtype, span, statistics_dtype
from daskkm.kernels.products import LANES, PANEL, dot_vectors

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PANEL = 2048  # tiles whose distances to all centroids are in memory at once


class Clusters(NamedTuple):
    """The clusters of all models, each of which has tiles, one model after another.

    Attributes
    ----------
    stack, means : ndarray of shape (sum of k, d), float64
        Centroids, and the mean tile of each cluster.
    offsets : ndarray of shape (n_models + 1,), intp
        Model m owns the rows ``offsets[m]:offsets[m + 1]``.
    """

    stack: NDArray[np.float64]
    means: NDArray[np.float64]
    offsets: NDArray[np.intp]


class Scales(NamedTuple):
    """Units in one of a distance and of a silhouette: powers of two."""

    distance: float
    silhouette: float


class Products(NamedTuple):
    """Clusters made ready for distances by products."""

    centre: NDArray[Any]  # (d,): a tile
    prepared: assign.Prepared
    to_centroids: NDArray[np.float64]  # (sum of k,): |c'|^2 - |z|^2, less the score's bias
    weights: NDArray[np.int16]  # (sum of k, d): of the means
    units: NDArray[np.float64]  # (n_models,): of these
    to_means: NDArray[np.float64]


def scales(n: int, d: int, dtype: np.dtype[Any]) -> Scales:
    """Return the units of fixed point in which distances and silhouettes are summed.

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
    Scales
        1 for float tiles.
    """
    if dtype.kind == "f":
        return Scales(1.0, 1.0)
    longest = math.sqrt(d) * span(dtype)
    return Scales(
        2.0 ** (62 - math.ceil(math.log2(n * longest))), 2.0 ** (62 - math.ceil(math.log2(n)))
    )


def add_up(
    tiles: NDArray[Any],
    clusters: Clusters,
    scales: Scales,
    codes: NDArray[np.intp] | None,
    n_classes: int,
    products: Products | None = None,
) -> NDArray[Any]:
    """Return how the tiles of every cluster spread over distance and classes.

    Parameters
    ----------
    tiles : ndarray of shape (n, d)
        Any dtype that `kernel.label_block` takes, finite; n may be 0.
    clusters : Clusters
    scales : Scales
    codes : ndarray of shape (n,), intp, or None
        The class of each tile, counted from 0.
    n_classes : int
    products : Products, optional
        What `prepare` makes of the clusters; without it distances are by definition.

    Returns
    -------
    ndarray of shape (sum of k, 3 + n_classes), int64 (float64 for float tiles)
        Per cluster, over its tiles: the sum of their distances to its mean and that of their
        simplified silhouettes, both times their scale; the sum of the squares of those distances
        for float tiles, else 0; the tiles of each class.
    """
    tiles, _ = checked(tiles, clusters.stack, clusters.offsets)
    found = np.zeros((len(clusters.stack), 3 + n_classes), statistics_dtype(tiles.dtype))
    codes = np.empty(0, np.intp) if codes is None else codes
    if products is None:
        _by_definition(tiles, clusters, scales, codes, found)
    else:
        work, turned = assign.workspace(tiles, products.prepared)
        zero = distance_dtype(tiles)(0)
        _by_products(tiles, products, work, turned, zero, scales, codes, found)
    return found


def _by_definition(
    tiles: NDArray[Any],
    clusters: Clusters,
    scales: Scales,
    codes: NDArray[np.intp],
    found: NDArray[Any],
) -> None:
    """Add the reference's distances up, a panel of one model at a time."""
    for lo, hi in pairwise(clusters.offsets):
        stack, means = clusters.stack[lo:hi], clusters.means[lo:hi]
        for start in range(0, len(tiles), _PANEL):
            panel = tiles[start : start + _PANEL]
            labels, own, other = nearest_two(distances_to_all(panel, stack))
            to_mean = squared_distances(panel, means, labels)
            one = np.array([lo, hi])
            own, other, to_mean, labels = own[None], other[None], to_mean[None], labels[None]
            _finish(own, other, to_mean, scales)
            _add(own, to_mean, len(panel), labels, one, scales, found)
            _count(codes[start : start + _PANEL], labels, one, found)


def prepare(dtype: np.dtype[Any], clusters: Clusters) -> Products | None:
    """Return clusters ready for distances by products; None if their numbers are too large.

    Parameters
    ----------
    dtype : numpy.dtype
        Of the tiles, 8 bits.
    clusters : Clusters
    """
    limits = np.iinfo(dtype)
    # One for all models, so that |x - z| is measured once; a tile, so that it is exact.
    centre = np.clip(np.rint(clusters.means.mean(axis=0)), limits.min, limits.max)
    ready = [
        assign.prepare(dtype, rows, clusters.offsets, centre)
        for rows in (clusters.stack, clusters.means)
    ]
    if not all(np.isfinite(prepared.unit).all() for prepared in ready):
        return None
    weights = [_whole(prepared, len(centre)) for prepared in ready]
    to_centroids, to_means = (
        _constants(prepared, whole, centre) for prepared, whole in zip(ready, weights, strict=True)
    )
    of_centroids, of_means = ready
    # The products with the means start at 0.
    to_means += of_means.unit.repeat(np.diff(clusters.offsets)) * of_means.bias
    return Products(
        centre.astype(dtype), of_centroids, to_centroids, weights[1], of_means.unit, to_means
    )


def _whole(prepared: assign.Prepared, d: int) -> NDArray[np.int16]:
    """Return the weights as they were before `products.pairs`."""
    return np.ascontiguousarray(prepared.weights.view(np.int16)[:, :d])


def _constants(
    prepared: assign.Prepared, weights: NDArray[np.int16], centre: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return what is added to |x - z|^2 + u score for |x - c'|^2."""
    wide, unit = weights.astype(np.int64), prepared.unit.repeat(np.diff(prepared.offsets))
    products = (wide * centre.astype(np.int64)).sum(axis=1)
    found: NDArray[np.float64] = unit * (
        np.square(wide).sum(axis=1) * (unit / 4) - products - prepared.bias
    )
    return found


@compile_kernel
def _by_products(
    tiles: Any,
    products: Any,
    work: Any,
    turned: Any,
    zero: Any,
    scales: Any,
    codes: Any,
    found: Any,
) -> None:
    """Label all tiles and add their distances up, a panel at a time while it is in cache."""
    prepared = products.prepared
    base = np.zeros(PANEL)
    # All models at once, because each call costs what its arrays cost numba to count.
    own, other, to_mean = np.zeros((3, len(prepared.offsets) - 1, PANEL))
    for start in range(0, len(tiles), PANEL):
        panel = tiles[start : start + PANEL]
        assign.label_panel(panel, prepared, work, turned)
        _to_centre(panel, products.centre, zero, base)
        _to_centroids(products, work.scores, work.labels, base, own, other)
        _to_means(panel, products, work.labels, base, to_mean)
        _finish(own, other, to_mean, scales)
        _add(own, to_mean, len(panel), work.labels, prepared.offsets, scales, found)
        _count(codes[start : start + PANEL], work.labels, prepared.offsets, found)


@compile_kernel
def _to_centre(tiles: Any, centre: Any, zero: Any, squares: Any) -> None:
    """Write each tile's squared distance to the centre, an integer of the type of `zero`."""
    number = type(zero)
    for i in range(len(tiles)):
        total = zero
        for p in range(tiles.shape[1]):
            difference = number(tiles[i, p]) - number(centre[p])
            total = number(total + number(difference * difference))
        squares[i] = total


@compile_kernel
def _to_centroids(products: Any, scores: Any, labels: Any, base: Any, own: Any, other: Any) -> None:
    """Write the squared distances to each tile's own centroid and to the nearest other.

    Without branches, for all tiles of a panel, the last one's idle columns too.
    """
    offsets, units = products.prepared.offsets, products.prepared.unit
    for m in range(len(units)):
        first, unit = offsets[m], units[m]
        for i in range(PANEL):
            own[m, i] = other[m, i] = np.inf
        for j in range(first, offsets[m + 1]):
            constant = products.to_centroids[j]
            for i in range(PANEL):
                distance = base[i] + (unit * np.float64(scores[j, i]) + constant)
                mine = labels[m, i] == j - first
                own[m, i] = distance if mine else own[m, i]
                other[m, i] = min(other[m, i], np.inf if mine else distance)


@compile_kernel
def _to_means(panel: Any, products: Any, labels: Any, base: Any, to_mean: Any) -> None:
    """Write each tile's squared distance to the mean of its cluster."""
    offsets, weights, d = products.prepared.offsets, products.weights, panel.shape[1]
    whole = d - d % (2 * LANES)
    for m in range(len(offsets) - 1):
        unit = products.units[m]
        for i in range(len(panel)):
            j = offsets[m] + labels[m, i]
            # `kernel.prepare` sees to it that 32 bits hold any sum.
            total = dot_vectors(panel, i, weights, j, whole) if whole else np.int32(0)
            for p in range(whole, d):
                total += np.int32(panel[i, p]) * np.int32(weights[j, p])
            to_mean[m, i] = base[i] + (unit * np.float64(total) + products.to_means[j])


# A division that may raise keeps a loop from being made of vectors.
@compile_kernel(error_model="numpy")
def _finish(own: Any, other: Any, to_mean: Any, scales: Any) -> None:
    """Turn squared distances into silhouettes, in place of the first, and distances to means.

    In units of 1 / scale, whole ones if these are not 1. Rows are models, columns tiles.
    """
    distance, silhouette = scales
    whole = distance != 1.0
    for m in range(own.shape[0]):
        for i in range(own.shape[1]):
            a, b = np.sqrt(max(own[m, i], 0.0)), np.sqrt(max(other[m, i], 0.0))
            # Rounded, b may be less than a. It is infinite if there is no other cluster.
            found = silhouette * ((b - a) / b if a < b < np.inf else 0.0)
            own[m, i] = np.rint(found) if whole else found
            found = distance * np.sqrt(max(to_mean[m, i], 0.0))
            to_mean[m, i] = np.rint(found) if whole else found


@compile_kernel
def _add(
    silhouettes: Any, distances: Any, n: int, labels: Any, offsets: Any, scales: Any, found: Any
) -> None:
    """Add the silhouettes and distances of n tiles to the sums of their clusters."""
    number = found.dtype.type
    for m in range(len(offsets) - 1):
        for i in range(n):
            j = offsets[m] + labels[m, i]
            found[j, 0] += number(distances[m, i])
            found[j, 1] += number(silhouettes[m, i])
            if scales.distance == 1.0:
                found[j, 2] += number(distances[m, i] * distances[m, i])


@compile_kernel
def _count(codes: Any, labels: Any, offsets: Any, found: Any) -> None:
    """Count the tiles of each class in each cluster."""
    for m in range(len(offsets) - 1):
        for i in range(len(codes)):
            found[offsets[m] + labels[m, i], 3 + codes[i]] += 1
