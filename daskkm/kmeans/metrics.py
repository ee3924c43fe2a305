"""Figures by which to choose k, from what passes over the tiles have summed.

Everything here is a small sum over clusters and classes; nothing knows where tiles live.
"""

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

# A distance up to which scikit-learn takes a mean distance for zero.
_ZERO = 1e-8
_ROUNDING = 1e-15  # of a mean, relative


@dataclass(frozen=True, eq=False)  # arrays have no one answer
class Quality:
    """How well a model fits tiles, in figures that can be compared across k.

    A figure is None where it is not defined: with fewer than two clusters that have tiles,
    or with a cluster for every tile.

    Attributes
    ----------
    inertia : float
        Sum of squared distances of the tiles to their centroid.
    sizes : ndarray of shape (k,), int64
        Tiles a cluster.
    calinski_harabasz : float or None
        Scatter between the clusters over scatter within, per degree of freedom; high is good.
    davies_bouldin : float or None
        Mean over the clusters of the worst (spread + spread) / (distance of means); low is good.
    silhouette : float or None
        Simplified silhouette, 0 to 1: mean of (b - a) / max(a, b), where a is a tile's distance
        to its own centroid and b that to the nearest centroid of another cluster that has
        tiles; high is good.
    purity : float or None
        Share of the tiles that are of their cluster's commonest class; None without classes or
        where no two tiles share one, as are the next two.
    adjusted_rand : float or None
        Agreement of the pairs of tiles with the classes, 0 for chance and 1 for all.
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
    calinski_harabasz: float | None
    davies_bouldin: float | None
    silhouette: float | None
    purity: float | None
    adjusted_rand: float | None
    normalized_mutual_info: float | None


def comparable(counts: NDArray[Any]) -> bool:
    """Tell whether clusters can be compared: two have tiles, and not all of them just one.

    Parameters
    ----------
    counts : ndarray of shape (k,)
        Tiles a cluster.

    Returns
    -------
    bool
    """
    return bool(1 < np.count_nonzero(counts) < counts.sum())


def calinski_harabasz(counts: NDArray[Any], means: NDArray[np.float64], within: float) -> float:
    """Return the ratio of the scatter between clusters to that within them.

    It is (B / (m - 1)) / (W / (n - m)) for n tiles in m clusters; 1 where W = 0, as in
    scikit-learn, or is no more than the rounding of the means could make it.

    Parameters
    ----------
    counts : ndarray of shape (m,)
        Tiles of each cluster that has any.
    means : ndarray of shape (m, d), float64
        The mean tile of each.
    within : float
        Sum of squared distances of the tiles to them.

    Returns
    -------
    float

    References
    ----------
    T. Calinski and J. Harabasz, A dendrite method for cluster analysis, Communications in
    Statistics 3 (1974).
    """
    n = int(counts.sum())
    between = float(counts @ np.square(means - counts @ means / n).sum(axis=1))
    if within <= _ROUNDING**2 * float(counts @ np.square(means).sum(axis=1)):
        return 1.0
    return between * (n - len(counts)) / (within * (len(counts) - 1))


def davies_bouldin(means: NDArray[np.float64], spreads: NDArray[np.float64]) -> float:
    """Return how alike each cluster is to the one most like it, on average.

    Two clusters are as alike as the sum of their spreads is to the distance of their means.
    It is 0 where all spreads or all distances are, as in scikit-learn.

    Parameters
    ----------
    means : ndarray of shape (m, d), float64
        The mean tile of each cluster that has any.
    spreads : ndarray of shape (m,), float64
        Mean distance of its tiles to it.

    Returns
    -------
    float

    References
    ----------
    D. L. Davies and D. W. Bouldin, A cluster separation measure, IEEE Trans. Pattern Analysis
    and Machine Intelligence 1 (1979).
    """
    worst, farthest = np.empty(len(means)), 0.0
    for i, mean in enumerate(means):  # so that memory is (m, d)
        apart = np.sqrt(np.square(means - mean).sum(axis=1))
        farthest = max(farthest, float(apart.max()))
        apart[apart == 0] = np.inf
        worst[i] = ((spreads[i] + spreads) / apart).max()
    return 0.0 if (spreads <= _ZERO).all() or farthest <= _ZERO else float(worst.mean())


def purity(table: NDArray[np.int64]) -> float:
    """Return the share of the tiles that are of their cluster's commonest class.

    Parameters
    ----------
    table : ndarray of shape (k, n_classes), int64
        Tiles of each class in each cluster.

    Returns
    -------
    float
    """
    return int(table.max(axis=1).sum()) / int(table.sum())


def adjusted_rand(table: NDArray[np.int64]) -> float:
    """Return the Rand index adjusted for chance, in exact integers but for one division.

    Parameters
    ----------
    table : ndarray of shape (k, n_classes), int64
        Tiles of each class in each cluster.

    Returns
    -------
    float
        1 for two identical partitions, about 0 for independent ones.

    References
    ----------
    L. Hubert and P. Arabie, Comparing partitions, Journal of Classification 2 (1985).
    """
    # Python's integers: the products below pass int64 from some 50,000 tiles on.
    both, clusters, classes, pairs = (
        sum(count * (count - 1) for count in counts.ravel().tolist())
        for counts in (table, table.sum(axis=1), table.sum(axis=0), table.sum())
    )
    if both == clusters == classes:
        return 1.0
    numerator = 2 * (both * pairs - clusters * classes)
    return numerator / (pairs * (clusters + classes) - 2 * clusters * classes)


def normalized_mutual_info(table: NDArray[np.int64]) -> float:
    """Return the mutual information over the arithmetic mean of the entropies.

    Parameters
    ----------
    table : ndarray of shape (k, n_classes), int64
        Tiles of each class in each cluster.

    Returns
    -------
    float
        0 for independent partitions, 1 for identical ones; 1 too if both are a single part.

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
    return math.fsum(count / n * math.log(n / count) for count in counts if count)


def knee(inertias: Mapping[int, float]) -> int | None:
    """Return the k at which inertia stops falling fast.

    It is the k whose point lies farthest below the chord from the first point of the curve to
    the last, the lowest of equals. Both axes are thought to be scaled to 0 to 1, as in the
    source; the order of the points is the same without. Compared in exact fractions.

    It depends on the range of k: the chord ends at the largest, and a longer curve tends to have
    its knee farther right.

    Parameters
    ----------
    inertias : mapping of int to float
        Inertia by k.

    Returns
    -------
    int or None
        None if there are fewer than three k, or no point lies below the chord.

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
            msg = f"the inertia of k = {k} is {value}; give finite numbers"
            raise FitError(msg)
    points = sorted((int(k), Fraction(float(value))) for k, value in inertias.items())
    if len(points) < 3:
        return None
    (first, top), (last, bottom) = points[0], points[-1]
    slope = (bottom - top) / (last - first)
    below = {k: top + slope * (k - first) - value for k, value in points}
    best = max(below, key=lambda k: below[k])
    return best if below[best] > 0 else None
