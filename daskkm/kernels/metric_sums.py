"""One block of tiles against the clusters of many models: sums of distances per cluster.

A tile has three distances under a model: to its own centroid and to the nearest other (for the
silhouette), and to the mean of its cluster (for Davies-Bouldin). `daskkm.kernels.assign` gives the
labels. Distances are computed in one of two ways:

* By definition, with the reference: float64 sums in index order.
* By products, for 8-bit tiles, at little more than the cost of labels. The scores of the fast path,
  ``x.q`` with weights q in units of u, are exact integers. So distances to slightly displaced
  centroids are exact: with z the centre of all models and ``c' = z - q u / 2``,
  ``|x - c'|^2 = |x - z|^2 + u x.q + (|c'|^2 - |z|^2)``. The features of c' and c differ by at most
  u / 4. By the triangle inequality a distance is off by at most sqrt(d) u / 4, and by far less on
  average. Means are rounded in the same way.

Sums of integer tiles are in fixed point: the order of tiles and blocks changes no bit.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from daskkm.kernels.assign import allocate_workspace, label_panel
from daskkm.kernels.compilation import compile_kernel
from daskkm.kernels.distances import distances_to_all, find_nearest_two, squared_distances
from daskkm.kernels.dtypes import check_shapes, distance_dtype, max_difference, statistics_dtype
from daskkm.kernels.prepared_stack import PreparedStack, prepare_stack, unpack_pairs
from daskkm.kernels.simd_products import LANES, PANEL, dot_vectors

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PANEL = 2048  # tiles whose distances to all centroids are in memory at once


class Clusters(NamedTuple):
    """The clusters of all models, one model after another; no cluster is empty."""

    stack: NDArray[np.float64]  # (sum of k, d): centroids
    means: NDArray[np.float64]  # (sum of k, d): the mean tile of each cluster
    offsets: NDArray[np.intp]  # (n_models + 1,): model m owns the rows offsets[m]:offsets[m + 1]


class Scales(NamedTuple):
    """Factors of fixed point for distances and for silhouettes: powers of two, or 1 for floats."""

    distance: float
    silhouette: float


class Products(NamedTuple):
    """Clusters prepared for distances by products."""

    centre: NDArray[Any]  # (d,): z, a tile
    prepared: PreparedStack  # of the centroids
    to_centroids: NDArray[np.float64]  # (sum of k,): |c'|^2 - |z|^2, less the score's bias
    weights: NDArray[np.int16]  # (sum of k, d): of the means
    units: NDArray[np.float64]  # (n_models,): of the weights of the means
    to_means: NDArray[np.float64]  # (sum of k,): |m'|^2 - |z|^2


def fixed_point_scales(n: int, d: int, dtype: np.dtype[Any]) -> Scales:
    """Return the scales for sums over n tiles of d features.

    Sums of integers do not depend on the order. So each distance is rounded to a multiple of 2**-p,
    with p as large as n of the largest distance allow below 2**62. Floats are not scaled.
    """
    if dtype.kind == "f":
        return Scales(1.0, 1.0)
    longest = math.sqrt(d) * max_difference(dtype)
    return Scales(
        2.0 ** (62 - math.ceil(math.log2(n * longest))), 2.0 ** (62 - math.ceil(math.log2(n)))
    )


def sum_distances(
    tiles: NDArray[Any],
    clusters: Clusters,
    scales: Scales,
    codes: NDArray[np.intp] | None,
    n_classes: int,
    products: Products | None = None,
) -> NDArray[Any]:
    """Return each cluster's sums of distances and silhouettes, and counts of classes.

    Parameters
    ----------
    tiles : ndarray of shape (n, d)
        As for `label_block`.
    clusters : Clusters
    scales : Scales
    codes : ndarray of shape (n,), intp, or None
        The class of each tile, counted from 0.
    n_classes : int
    products : Products, optional
        The result of `prepare_products`. If not given, distances are computed by definition.

    Returns
    -------
    ndarray of shape (sum of k, 3 + n_classes), int64 (float64 for float tiles)
        Sums over the tiles of each cluster: distances to the mean and simplified silhouettes, both
        times their scale; squared distances to the mean for float tiles, else 0; counts of classes.
    """
    tiles, _ = check_shapes(tiles, clusters.stack, clusters.offsets)
    sums = np.zeros((len(clusters.stack), 3 + n_classes), statistics_dtype(tiles.dtype))
    codes = np.empty(0, np.intp) if codes is None else codes
    if products is None:
        _sum_by_definition(tiles, clusters, scales, codes, sums)
    else:
        work = allocate_workspace(tiles, products.prepared)
        zero = distance_dtype(tiles)(0)
        _sum_by_products(tiles, products, *work, zero, scales, codes, sums)
    return sums


def _sum_by_definition(
    tiles: NDArray[Any],
    clusters: Clusters,
    scales: Scales,
    codes: NDArray[np.intp],
    sums: NDArray[Any],
) -> None:
    """Sum the reference's distances, a panel of one model at a time."""
    for lo, hi in pairwise(clusters.offsets):
        stack, means = clusters.stack[lo:hi], clusters.means[lo:hi]
        for start in range(0, len(tiles), _PANEL):
            panel = tiles[start : start + _PANEL]
            labels, own, other = find_nearest_two(distances_to_all(panel, stack))
            to_mean = squared_distances(panel, means, labels)
            one = np.array([lo, hi])
            own, other, to_mean, labels = own[None], other[None], to_mean[None], labels[None]
            _scale(own, other, to_mean, scales)
            _add_to_clusters(own, to_mean, len(panel), labels, one, scales, sums)
            _count_classes(codes[start : start + _PANEL], labels, one, sums)


def prepare_products(dtype: np.dtype[Any], clusters: Clusters) -> Products | None:
    """Return clusters prepared for products with 8-bit tiles, or None if numbers are too large."""
    limits = np.iinfo(dtype)
    # One centre for all models, so that |x - z| is measured once. A tile, so that |x - z| is exact.
    centre = np.clip(np.rint(clusters.means.mean(axis=0)), limits.min, limits.max)
    both = [
        prepare_stack(dtype, rows, clusters.offsets, centre)
        for rows in (clusters.stack, clusters.means)
    ]
    if not all(np.isfinite(prepared.unit).all() for prepared in both):
        return None
    weights = [unpack_pairs(prepared.weights, len(centre)) for prepared in both]
    to_centroids, to_means = (
        _compute_constants(prepared, whole, centre)
        for prepared, whole in zip(both, weights, strict=True)
    )
    centroids, means = both
    # The products with the means start at 0, not at the bias.
    to_means += means.unit.repeat(np.diff(clusters.offsets)) * means.bias
    return Products(centre.astype(dtype), centroids, to_centroids, weights[1], means.unit, to_means)


def _compute_constants(
    prepared: PreparedStack, weights: NDArray[np.int16], centre: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the term of |x - c'|^2 besides |x - z|^2 + u score, (sum of k,)."""
    wide, unit = weights.astype(np.int64), prepared.unit.repeat(np.diff(prepared.offsets))
    products = (wide * centre.astype(np.int64)).sum(axis=1)
    constants: NDArray[np.float64] = unit * (
        np.square(wide).sum(axis=1) * (unit / 4) - products - prepared.bias
    )
    return constants


@compile_kernel
def _sum_by_products(
    tiles: Any,
    products: Any,
    work: Any,
    pairs: Any,
    zero: Any,
    scales: Any,
    codes: Any,
    sums: Any,
) -> None:
    """Label all tiles and sum their distances, a panel at a time while the panel is in cache."""
    prepared = products.prepared
    base = np.zeros(PANEL)
    # All models at once: each call costs reference counting of arrays.
    own, other, to_mean = np.zeros((3, len(prepared.offsets) - 1, PANEL))
    for start in range(0, len(tiles), PANEL):
        panel = tiles[start : start + PANEL]
        label_panel(panel, prepared, work, pairs)
        _measure_centre(panel, products.centre, zero, base)
        _measure_centroids(products, work.scores, work.labels, base, own, other)
        _measure_means(panel, products, work.labels, base, to_mean)
        _scale(own, other, to_mean, scales)
        _add_to_clusters(own, to_mean, len(panel), work.labels, prepared.offsets, scales, sums)
        _count_classes(codes[start : start + PANEL], work.labels, prepared.offsets, sums)


@compile_kernel
def _measure_centre(tiles: Any, centre: Any, zero: Any, squares: Any) -> None:
    """Write each tile's squared distance to the centre, exact in the type of `zero`."""
    number = type(zero)
    for i in range(len(tiles)):
        total = zero
        for p in range(tiles.shape[1]):
            difference = number(tiles[i, p]) - number(centre[p])
            total = number(total + number(difference * difference))
        squares[i] = total


@compile_kernel
def _measure_centroids(
    products: Any, scores: Any, labels: Any, base: Any, own: Any, other: Any
) -> None:
    """Write the squared distances to each tile's own centroid and to the nearest other.

    Without branches, also for the idle columns of a last panel.
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
def _measure_means(panel: Any, products: Any, labels: Any, base: Any, to_mean: Any) -> None:
    """Write each tile's squared distance to the mean of its cluster."""
    offsets, weights, d = products.prepared.offsets, products.weights, panel.shape[1]
    whole = d - d % (2 * LANES)
    for m in range(len(offsets) - 1):
        unit = products.units[m]
        for i in range(len(panel)):
            j = offsets[m] + labels[m, i]
            # `prepare_stack` chose the unit such that 32 bits hold any sum.
            total = dot_vectors(panel, i, weights, j, whole) if whole else np.int32(0)
            for p in range(whole, d):
                total += np.int32(panel[i, p]) * np.int32(weights[j, p])
            to_mean[m, i] = base[i] + (unit * np.float64(total) + products.to_means[j])


# A division that may raise prevents vectorisation.
@compile_kernel(error_model="numpy")
def _scale(own: Any, other: Any, to_mean: Any, scales: Any) -> None:
    """Replace `own` by silhouettes and `to_mean` by distances, both scaled; round unless scale 1.

    Rows are models, columns tiles.
    """
    distance, silhouette = scales
    whole = distance != 1.0
    for m in range(own.shape[0]):
        for i in range(own.shape[1]):
            a, b = np.sqrt(max(own[m, i], 0.0)), np.sqrt(max(other[m, i], 0.0))
            # By rounding, b may be less than a. Without another cluster, b is infinite.
            scaled = silhouette * ((b - a) / b if a < b < np.inf else 0.0)
            own[m, i] = np.rint(scaled) if whole else scaled
            scaled = distance * np.sqrt(max(to_mean[m, i], 0.0))
            to_mean[m, i] = np.rint(scaled) if whole else scaled


@compile_kernel
def _add_to_clusters(
    silhouettes: Any, distances: Any, n: int, labels: Any, offsets: Any, scales: Any, sums: Any
) -> None:
    """Add the silhouettes and distances of n tiles to the sums of their clusters."""
    number = sums.dtype.type
    for m in range(len(offsets) - 1):
        for i in range(n):
            j = offsets[m] + labels[m, i]
            sums[j, 0] += number(distances[m, i])
            sums[j, 1] += number(silhouettes[m, i])
            if scales.distance == 1.0:
                sums[j, 2] += number(distances[m, i] * distances[m, i])


@compile_kernel
def _count_classes(codes: Any, labels: Any, offsets: Any, sums: Any) -> None:
    """Count the tiles of each class in each cluster."""
    for m in range(len(offsets) - 1):
        for i in range(len(codes)):
            sums[offsets[m] + labels[m, i], 3 + codes[i]] += 1
