"""Statistics of clusters: vector sum, count and sum of squares.

A block of tiles gives one `Statistics`, blocks are added, and each figure of a clustering is one
division at the end. Integer statistics are exact, so sums have the same bits in any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """Statistics of k clusters of tiles with d features: a monoid under addition.

    Attributes
    ----------
    table : ndarray of shape (k, d + 2), int64 or float64
        Vector sum, count and sum of squares, as from `daskkm.kernels.assign.block_statistics`.
    """

    table: NDArray[Any]

    @staticmethod
    def concatenate(parts: Iterable[Statistics]) -> Statistics:
        """Return the clusters of all parts in order."""
        return Statistics(np.concatenate([part.table for part in parts]))

    def split(self, offsets: NDArray[np.intp] | Sequence[int]) -> list[Statistics]:
        """Return each model's clusters; model m has the rows ``offsets[m]:offsets[m + 1]``."""
        return [self[first:last] for first, last in pairwise(offsets)]

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(self.table + other.table)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, rows: slice | NDArray[Any]) -> Statistics:
        # Not one index: a row is no table.
        return Statistics(self.table[rows])

    @property
    def sums(self) -> NDArray[Any]:
        """Vector sums of the tiles, (k, d)."""
        return self.table[:, :-2]

    @property
    def counts(self) -> NDArray[Any]:
        """Number of tiles, or total weight, (k,)."""
        return self.table[:, -2]

    @property
    def squares(self) -> NDArray[Any]:
        """Sums of squared norms if exact, else of squared distances to the centroid, (k,)."""
        return self.table[:, -1]

    @property
    def exact(self) -> bool:
        """Return True if the table holds exact integers."""
        return self.table.dtype.kind == "i"

    def total(self) -> Statistics:
        """Return the sum over all clusters, as one cluster."""
        return Statistics(self.table.sum(axis=0, keepdims=True))

    def means(self) -> NDArray[np.float64]:
        """Return the mean tile of each cluster, (k, d); an empty cluster gets the biggest's."""
        # Not max(counts, 1): fractional weights may add up to less.
        centroids = self.sums / np.where(self.counts > 0, self.counts, 1)[:, None]
        centroids[self.counts == 0] = centroids[np.argmax(self.counts)]
        return np.asarray(centroids, np.float64)

    def inertia(self, centroids: NDArray[np.float64]) -> float:
        """Return the sum of squared distances of all tiles to their own centroid, as measured.

        Float statistics hold the distances. For integers, with m_j the mean of cluster j,
        inertia is ``sum_j (Q_j - |S_j|**2 / n_j) + n_j |c_j - m_j|**2``. The first bracket would
        cancel in floating point, so `scatter` computes exact integers. Neither term is negative,
        and the sum runs in the order of the centroids.
        """
        if not self.exact:
            return float(sum(self.squares))
        filled = self.counts > 0
        part, centroids = self[filled], centroids[filled]
        return float(sum(part.scatter(centroids) + part._shift_to_means(centroids)))

    def scatter(self, centroids: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return each cluster's sum of squared distances to its mean, (k,); no cluster is empty.

        For integers the sum is ``(n_j Q_j - |S_j|**2) / n_j``, exact but for the division.
        """
        sums, counts, squares = self.sums, self.counts, self.squares
        if not self.exact:
            return np.asarray(np.maximum(squares - self._shift_to_means(centroids), 0.0))
        # int64 if no product overflows, else Python's integers.
        if int(counts.max()) * int(squares.max()) >= 2**63:
            sums, counts, squares = (a.astype(object) for a in (sums, counts, squares))
        # By Cauchy-Schwarz |S|^2 <= n Q, so the check above covers both products.
        return np.asarray((counts * squares - (sums * sums).sum(axis=1)) / counts, np.float64)

    def mean_variance(self, centroids: NDArray[np.float64]) -> float:
        """Return mean(var(tiles, axis=0)), the same for any clustering of the tiles."""
        n, d = self.counts.sum(), centroids.shape[1]
        if self.exact:
            return float(self.total().scatter(centroids[:1])[0] / n / d)
        filled = self.counts > 0
        part, centroids = self[filled], centroids[filled]
        means = part.means()
        between = np.square(means - part.counts @ means / n).sum(axis=1)
        return float((part.scatter(centroids) + part.counts * between).sum() / n / d)

    def _shift_to_means(self, centroids: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return n |c - m|^2 of each cluster, (k,): inertia about the centroid minus scatter."""
        return np.asarray(self.counts * np.square(centroids - self.means()).sum(axis=1))
