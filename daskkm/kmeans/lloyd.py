"""Lloyd's algorithm for many models at once, over an injected measure of the data.

Each pass measures the stack of all models that are still moving, then moves each of them
on its own. Where the data lives, and how a pass over it is made, the loop never learns.

Source: S. P. Lloyd, Least squares quantization in PCM, IEEE Trans. Inf. Theory 28 (1982);
the meaning of `tol`, of `n_iter` and the relocation of empty clusters are scikit-learn's.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    #: One read of all tiles: (stack, offsets, models) to the statistics (sum of k, d + 2).
    Measure = Callable[[NDArray[np.float64], NDArray[np.intp], Sequence[int]], NDArray[Any]]
    #: (stack, offsets, how many for each model) to the tiles farthest from their own
    #: centroid, one `Farthest` a model.
    FindFarthest = Callable[
        [NDArray[np.float64], NDArray[np.intp], Sequence[int]], Sequence["Farthest"]
    ]

_NOTHING = 1e-12  # of a cluster's weight


class Farthest(NamedTuple):
    """Tiles that lie far from their own centroid."""

    distances: NDArray[np.float64]  # (m,), squared
    indices: NDArray[np.int64]  # (m,), global
    tiles: NDArray[Any]  # (m, d)
    labels: NDArray[np.int32]  # (m,)
    weights: NDArray[Any]  # (m,), above 0

    def most(self, m: int) -> Farthest:
        """Return the m farthest, farthest first, lowest index on ties."""
        order = np.lexsort((self.indices, -self.distances))[:m]
        return Farthest._make(each[order] for each in self)


@dataclass(frozen=True, slots=True)
class Step:
    """What one pass did to one model.

    Attributes
    ----------
    iteration : int
        Updates of the centroids so far, this pass's included.
    centroids : ndarray of shape (k, d), float64
        The centroids that the pass measured; counts and inertia are theirs.
    statistics : ndarray of shape (k, d + 2), int64 or float64
        What the pass measured of these centroids' tiles.
    inertia : float
        Sum of squared distances of all tiles to their nearest centroid.
    shift : float
        Sum of the squared distances by which the last update moved the centroids.
    converged : bool
        Whether the last update moved them by no more than `tol`; by nothing at all, if the
        clusters settled.
    last : bool
        Whether the model is done: centroids, counts, inertia and iteration are its result.
    updated : ndarray of shape (k, d), float64
        The centroids after the last update, which the next pass measures.
    """

    iteration: int
    centroids: NDArray[np.float64]
    statistics: NDArray[Any]
    inertia: float
    shift: float
    converged: bool
    last: bool
    updated: NDArray[np.float64]

    @property
    def counts(self) -> NDArray[Any]:
        """Weight of the tiles of each cluster: their number, unless they have weights.

        (k,), int64, or float64 if some are fractional.
        """
        counts = self.statistics[:, -2]
        if counts.max() < 2**53 and np.array_equal(counts, np.rint(counts)):
            return counts.astype(np.int64)
        return counts.copy()


def iterate(
    starts: Sequence[NDArray[np.float64] | Step],
    measure: Measure,
    find_farthest: FindFarthest,
    *,
    max_iter: int,
    tol: float,
    variance: Callable[[NDArray[Any], NDArray[np.float64]], float] | None = None,
) -> Iterator[dict[int, Step]]:
    """Run Lloyd's iterations for all models, one pass over the data a round.

    A model leaves the stack as soon as it is done. One that was stopped by `tol` or
    `max_iter` is measured once more, without an update, so that what it returns belongs
    together; one whose update moved nothing needs no such pass.

    Parameters
    ----------
    starts : sequence of ndarray of shape (k, d), float64, or Step
        The starting centroids of each model, or its last step: from there it goes on, to the
        same bits as if it had not been cut short.
    measure : callable
        ``measure(stack, offsets, models)`` returns the statistics of every centroid, as
        `daskkm.kernels.assign.block_statistics` defines them, over all tiles. `models` are the
        places
        in `starts` of those that are measured.
    find_farthest : callable
        ``find_farthest(stack, offsets, wanted)`` returns for each model the `wanted` tiles
        farthest from their own centroid; only called when a cluster is empty.
    max_iter : int
        Most updates of a model.
    tol : float
        A model has converged when ``sum_j |shift_j|**2 <= tol * mean(var(tiles, axis=0))``.
    variance : callable, optional
        Returns ``mean(var(tiles, axis=0))``, after each pass, because that of floats is only
        as good as the centroids; called with the first model's statistics and centroids, from
        which `mean_variance` takes it if this is not given.

    Yields
    ------
    dict of int to Step
        What the pass did, by the model's place in `starts`.
    """
    models = {
        i: _Model.after(start, max_iter) if isinstance(start, Step) else _Model(start)
        for i, start in enumerate(starts)
        if not (isinstance(start, Step) and start.last)
    }
    while models:
        offsets = np.cumsum([0, *(len(m.centroids) for m in models.values())], dtype=np.intp)
        stack = np.concatenate([m.centroids for m in models.values()])
        statistics = measure(stack, offsets, list(models))
        parts = [statistics[lo:hi] for lo, hi in pairwise(offsets)]
        tolerance = tol * (variance or mean_variance)(parts[0], stack[: offsets[1]])
        updates = _refill(stack, offsets, parts, list(models.values()), find_farthest)
        steps = {
            i: models[i].advance(measured, update, tolerance, max_iter)
            for i, measured, update in zip(models, parts, updates, strict=True)
        }
        yield steps
        models = {i: model for i, model in models.items() if not steps[i].last}


@dataclass(slots=True)
class _Model:
    """A fit between two passes."""

    centroids: NDArray[np.float64]
    iteration: int = 0
    shift: float = np.inf
    converged: bool = False
    stopped: bool = False

    @classmethod
    def after(cls, step: Step, max_iter: int) -> Self:
        """Return the model as a step left it."""
        stopped = step.converged or step.iteration >= max_iter
        return cls(step.updated, step.iteration, step.shift, step.converged, stopped)

    @np.errstate(over="ignore")  # the shift of centroids from very far off may be infinite
    def advance(
        self,
        measured: NDArray[Any],
        update: NDArray[Any],
        tolerance: float,
        max_iter: int,
    ) -> Step:
        """Move the centroids to the means of `update` and say what happened."""
        centroids, last = self.centroids, self.stopped
        if not self.stopped:
            self.centroids = means(update)
            self.iteration += 1
            self.shift = float(np.square(self.centroids - centroids).sum())
            # Settled clusters give the same means again, to the bit: a shift of exactly 0.
            self.converged = self.shift <= tolerance
            self.stopped = self.converged or self.iteration >= max_iter
            last = self.stopped and np.array_equal(self.centroids, centroids)
        return Step(
            iteration=self.iteration,
            centroids=centroids,
            statistics=measured,
            inertia=inertia(measured, centroids),
            shift=self.shift,
            converged=self.converged,
            last=last,
            updated=self.centroids,
        )


def best(steps: Mapping[tuple[int, int], Step]) -> dict[int, tuple[int, Step]]:
    """Return the restart of least inertia for each k, the first of equals, and its last step."""
    found: dict[int, tuple[int, Step]] = {}
    for (k, restart), step in steps.items():
        if k not in found or step.inertia < found[k][1].inertia:
            found[k] = restart, step
    return dict(sorted(found.items()))


def means(statistics: NDArray[Any]) -> NDArray[np.float64]:
    """Return the mean tile of each cluster; an empty one takes the biggest cluster's.

    Parameters
    ----------
    statistics : ndarray of shape (k, d + 2), int64 or float64

    Returns
    -------
    ndarray of shape (k, d), float64
    """
    sums, counts = statistics[:, :-2], statistics[:, -2]
    # Not max(counts, 1): fractional weights may add up to less.
    centroids = sums / np.where(counts > 0, counts, 1)[:, None]
    centroids[counts == 0] = centroids[np.argmax(counts)]
    return np.asarray(centroids, np.float64)


def inertia(statistics: NDArray[Any], centroids: NDArray[np.float64]) -> float:
    """Return the sum of squared distances of all tiles to the centroids they belong to.

    Float statistics hold it. For integer ones, with m_j the mean of cluster j, it is
    ``sum_j (Q_j - |S_j|**2 / n_j) + n_j |c_j - m_j|**2``. The first bracket would cancel badly
    in floating point, so it is taken as ``(n_j Q_j - |S_j|**2) / n_j`` in exact integers.
    Neither term is ever negative, and the sum runs in the order of the centroids.

    Parameters
    ----------
    statistics : ndarray of shape (k, d + 2), int64 or float64
        As `daskkm.kernels.assign.block_statistics` defines them: sums S, counts n and squares Q.
    centroids : ndarray of shape (k, d), float64

    Returns
    -------
    float
    """
    if statistics.dtype.kind == "f":
        return float(sum(statistics[:, -1]))
    filled = statistics[:, -2] > 0
    part, centroids = statistics[filled], centroids[filled]
    return float(sum(scatter(part, centroids) + _off_mean(part, centroids)))


def mean_variance(statistics: NDArray[Any], centroids: NDArray[np.float64]) -> float:
    """Return mean(var(tiles, axis=0)) from the statistics of any clustering of the tiles.

    Parameters
    ----------
    statistics : ndarray of shape (k, d + 2), int64 or float64
    centroids : ndarray of shape (k, d), float64

    Returns
    -------
    float
    """
    n, d = statistics[:, -2].sum(), centroids.shape[1]
    if statistics.dtype.kind == "i":
        return float(scatter(statistics.sum(axis=0, keepdims=True), centroids[:1])[0] / n / d)
    part, centroids = (each[statistics[:, -2] > 0] for each in (statistics, centroids))
    counts, middles = part[:, -2], means(part)
    between = np.square(middles - counts @ middles / n).sum(axis=1)
    return float((scatter(part, centroids) + counts * between).sum() / n / d)


def scatter(statistics: NDArray[Any], centroids: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each cluster's sum of squared distances to its mean.

    Parameters
    ----------
    statistics : ndarray of shape (k, d + 2), int64 or float64
        Of clusters that are not empty.
    centroids : ndarray of shape (k, d), float64

    Returns
    -------
    ndarray of shape (k,), float64
    """
    sums, counts, squares = statistics[:, :-2], statistics[:, -2], statistics[:, -1]
    if statistics.dtype.kind == "f":
        return np.asarray(np.maximum(squares - _off_mean(statistics, centroids), 0.0))
    # int64 while it fits, else Python's integers: exact both ways.
    if int(counts.max()) * int(squares.max()) >= 2**63:
        sums, counts, squares = (a.astype(object) for a in (sums, counts, squares))
    # By Cauchy-Schwarz |S|^2 <= n Q, so the check above covers both products.
    return np.asarray((counts * squares - (sums * sums).sum(axis=1)) / counts, np.float64)


def _off_mean(statistics: NDArray[Any], centroids: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each cluster's n |c - m|^2: by how much its tiles are farther off than its mean."""
    counts = statistics[:, -2]
    return np.asarray(counts * np.square(centroids - means(statistics)).sum(axis=1))


def _refill(
    stack: NDArray[np.float64],
    offsets: NDArray[np.intp],
    parts: list[NDArray[Any]],
    models: list[_Model],
    find_farthest: FindFarthest,
) -> list[NDArray[Any]]:
    """Give each empty cluster a tile: the statistics from which the models are updated.

    The empty clusters of all models share one more read of the data.
    """
    wanted = [
        0 if model.stopped else int(np.count_nonzero(part[:, -2] == 0))
        for model, part in zip(models, parts, strict=True)
    ]
    if not any(wanted):
        return parts
    farthest = find_farthest(stack, offsets, wanted)
    return [
        relocate(part, far) if n else part
        for part, far, n in zip(parts, farthest, wanted, strict=True)
    ]


def relocate(statistics: NDArray[Any], farthest: Farthest) -> NDArray[Any]:
    """Move the farthest tiles out of their clusters and into the empty ones.

    Parameters
    ----------
    statistics : ndarray of shape (k, d + 2), int64 or float64
    farthest : Farthest
        One tile for each empty cluster, in their order; fewer leave the rest empty.

    Returns
    -------
    ndarray of shape (k, d + 2)
        Sums and counts after the moves. Squares stay: no update has a use for them.
    """
    moved = statistics.copy()
    empty = np.flatnonzero(statistics[:, -2] == 0)
    # Fractional weights round: taken away again, they may leave something that is nothing.
    nothing = statistics[:, -2] * (_NOTHING if statistics.dtype.kind == "f" else 0)
    # strict=False: there are fewer tiles than empty clusters when no more lie off a centroid.
    found = zip(empty, farthest.tiles, farthest.labels, farthest.weights, strict=False)
    for cluster, tile, label, weight in found:
        row = weight * np.append(tile.astype(statistics.dtype), 1)
        moved[label, :-1] -= row
        if moved[label, -2] <= nothing[label]:
            moved[label] = 0
        moved[cluster, :-1] = row
    return moved
