"""Metrics for the choice of k, from sums over clusters and classes."""

from __future__ import annotations

import math
from collections.abc import Mapping  # noqa: TC003 (shown by help())
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from daskkm.errors import FitError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# scikit-learn treats mean distances up to this as zero.
_ZERO = 1e-8
_ROUNDING = 1e-15  # relative, of a mean


@dataclass(frozen=True, eq=False)  # arrays do not compare to one bool
class Quality:
    """Metrics of a model's fit to tiles, comparable across k.

    Metrics that compare clusters are None for fewer than two clusters with tiles, and for a cluster
    of its own for every tile.

    Attributes
    ----------
    inertia : float
        Sum of squared distances of the tiles to their centroid.
    sizes : ndarray of shape (k,), int64
        Number of tiles in each cluster.
    calinski_harabasz : float or None
        Scatter between clusters over scatter within clusters, per degree of freedom; high is good.
    davies_bouldin : float or None
        Mean over clusters of the largest (spread + spread) / (distance of means); low is good.
    silhouette : float or None
        Simplified silhouette, 0 to 1: mean of (b - a) / max(a, b); high is good. a is the distance
        of a tile to its own centroid, b to the nearest other centroid with tiles.
    purity : float or None
        Fraction of tiles of the most frequent class of their cluster. None without classes or
        if no two tiles share a class, as are the next two metrics.
    adjusted_rand : float or None
        Agreement of pairs of tiles in clusters and classes, 0 by chance and 1 if all agree.
    normalized_mutual_info : float or None
        Mutual information of clusters and classes over the mean of their entropies, 0 to 1.

    Examples
    --------
    >>> import daskkm, numpy as np
    >>> tiles = np.array([[0], [2], [100], [102]], np.uint8)
    >>> models = daskkm.fit_sweep(tiles, [2], random_state=0).models
    >>> quality = daskkm.assess(tiles, models, classes=[0, 0, 0, 1])[2]
    >>> quality.sizes.tolist(), round(quality.silhouette, 3), quality.purity
    ([2, 2], 0.99, 0.75)
    """

    inertia: float
    sizes: NDArray[np.int64]
    calinski_harabasz: float | None = None
    davies_bouldin: float | None = None
    silhouette: float | None = None
    purity: float | None = None
    adjusted_rand: float | None = None
    normalized_mutual_info: float | None = None


def calinski_harabasz(counts: NDArray[Any], means: NDArray[np.float64], within: float) -> float:
    """Return (B / (m - 1)) / (W / (n - m)) for n tiles in m non-empty clusters.

    B is the scatter between clusters, and W, `within`, the scatter within clusters. `counts` are
    numbers of tiles, (m,), `means` the mean tiles, (m, d). The result is 1 if W = 0, as in
    scikit-learn, or if W is within the rounding of the means.

    References
    ----------
    T. Calinski and J. Harabasz, A dendrite method for cluster analysis, Communications in
    Statistics 3 (1974).
    """
    n = int(counts.sum())
    # Sums by NumPy: those by BLAS depend on the CPU.
    mean = (counts[:, None] * means).sum(axis=0) / n
    between = float((counts * np.square(means - mean).sum(axis=1)).sum())
    if within <= _ROUNDING**2 * float((counts * np.square(means).sum(axis=1)).sum()):
        return 1.0
    return between * (n - len(counts)) / (within * (len(counts) - 1))


def davies_bouldin(means: NDArray[np.float64], spreads: NDArray[np.float64]) -> float:
    """Return the mean over clusters of the similarity to the most similar other cluster.

    The similarity of two clusters is the sum of their spreads over the distance of their `means`,
    (m, d). `spreads`, (m,), are mean distances of tiles to their mean. The result is 0 if all
    spreads or all distances are 0, as in scikit-learn.

    References
    ----------
    D. L. Davies and D. W. Bouldin, A cluster separation measure, IEEE Trans. Pattern Analysis
    and Machine Intelligence 1 (1979).
    """
    worst, farthest = np.empty(len(means)), 0.0
    for i, mean in enumerate(means):  # one cluster at a time, for memory of (m, d)
        apart = np.sqrt(np.square(means - mean).sum(axis=1))
        farthest = max(farthest, float(apart.max()))
        apart[apart == 0] = np.inf
        worst[i] = ((spreads[i] + spreads) / apart).max()
    return 0.0 if (spreads <= _ZERO).all() or farthest <= _ZERO else float(worst.mean())


def purity(table: NDArray[np.int64]) -> float:
    """Return the fraction of tiles of the most frequent class of their cluster.

    `table`, (k, n_classes), has the number of tiles of each class in each cluster.
    """
    return int(table.max(axis=1).sum()) / int(table.sum())


def adjusted_rand(table: NDArray[np.int64]) -> float:
    """Return the adjusted Rand index: 1 for identical partitions, about 0 if independent.

    The result is one division of exact integers.

    References
    ----------
    L. Hubert and P. Arabie, Comparing partitions, Journal of Classification 2 (1985).
    """
    # Python's integers: the products below exceed int64 from about 50,000 tiles on.
    both, clusters, classes, pairs = (
        sum(count * (count - 1) for count in counts.ravel().tolist())
        for counts in (table, table.sum(axis=1), table.sum(axis=0), table.sum())
    )
    if both == clusters == classes:
        return 1.0
    numerator = 2 * (both * pairs - clusters * classes)
    return numerator / (pairs * (clusters + classes) - 2 * clusters * classes)


def normalized_mutual_info(table: NDArray[np.int64]) -> float:
    """Return the mutual information over the arithmetic mean of the entropies, 0 to 1.

    The result is 1 for identical partitions, also if both have a single part.

    References
    ----------
    A. Strehl and J. Ghosh, Cluster ensembles, Journal of Machine Learning Research 3 (2002).
    """
    clusters, classes = table.sum(axis=1).tolist(), table.sum(axis=0).tolist()
    n = sum(clusters)
    # Ratios of exact integers, so that independence gives log(1) = 0.
    shared = math.fsum(
        count / n * math.log(n * count / (clusters[i] * classes[j]))
        for i, row in enumerate(table.tolist())
        for j, count in enumerate(row)
        if count
    )
    mean = (_entropy(clusters, n) + _entropy(classes, n)) / 2
    return max(shared / mean, 0.0) if mean else 1.0


def _entropy(counts: list[int], n: int) -> float:
    """Return the entropy of a partition of n tiles."""
    return math.fsum(count / n * math.log(n / count) for count in counts if count)


def knee(inertias: Mapping[int, float]) -> int | None:
    """Return the k at which inertia stops falling fast.

    The knee is the point farthest below the chord between the ends of the curve, the lowest k of
    equals. Distances are compared in exact fractions. The knee depends on the range of k: a longer
    curve tends to have its knee farther right.

    Parameters
    ----------
    inertias : mapping of int to float
        Inertia by k.

    Returns
    -------
    int or None
        None with fewer than three k, or if no point lies below the chord.

    Raises
    ------
    FitError
        If an inertia is not finite.

    References
    ----------
    V. Satopää, J. Albrecht, D. Irwin and B. Raghavan, Finding a "Kneedle" in a haystack,
    ICDCS Workshops (2011).

    Examples
    --------
    >>> knee({1: 100.0, 2: 40.0, 3: 10.0, 4: 8.0, 5: 7.0})
    3
    """
    for k, value in inertias.items():
        if not math.isfinite(value):
            msg = f"inertias: {value} for k = {k} is not finite. Give finite numbers"
            raise FitError(msg)
    points = sorted((int(k), Fraction(float(value))) for k, value in inertias.items())
    if len(points) < 3:
        return None
    (first, top), (last, bottom) = points[0], points[-1]
    slope = (bottom - top) / (last - first)
    below = {k: top + slope * (k - first) - value for k, value in points}
    best = max(below, key=lambda k: below[k])
    return best if below[best] > 0 else None
