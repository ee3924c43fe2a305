"""Lloyd's algorithm for many models at once, over an injected measure of the tiles.

Each pass measures the stack of all models that still move, then updates each model on its own. The
loop never learns where the tiles are, or how a pass is made.

Source: S. P. Lloyd, Least squares quantization in PCM, IEEE Trans. Inf. Theory 28 (1982). The
meaning of `tol` and `n_iter`, and the relocation of empty clusters, are those of scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from daskkm.kernels.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from daskkm.passes.statistics import FarthestTiles

    #: One pass: (stack, offsets, models) to the statistics of each centroid.
    Measure = Callable[[NDArray[np.float64], NDArray[np.intp], Sequence[int]], Statistics]
    #: One pass: (stack, offsets, number of tiles for each model) to the tiles of each model that
    #: are farthest from their own centroid.
    FindFarthest = Callable[
        [NDArray[np.float64], NDArray[np.intp], Sequence[int]], Sequence[FarthestTiles]
    ]

# Rounding of fractional weights, relative to the weight of the cluster.
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Step:
    """Result of one pass for one model.

    Attributes
    ----------
    iteration : int
        Updates of the centroids so far, including that of this pass.
    centroids : ndarray of shape (k, d), float64
        Measured centroids, to which statistics, counts and inertia belong.
    statistics : Statistics
    inertia : float
        Sum of squared distances of all tiles to their nearest centroid.
    shift : float
        Sum of squared distances by which the last update moved the centroids.
    converged : bool
        True if the last update moved the centroids by no more than `tol`.
    last : bool
        True if this step is the result of the model.
    updated : ndarray of shape (k, d), float64
        Centroids after the last update, which the next pass measures.
    """

    iteration: int
    centroids: NDArray[np.float64]
    statistics: Statistics
    inertia: float
    shift: float
    converged: bool
    last: bool
    updated: NDArray[np.float64]

    @property
    def counts(self) -> NDArray[Any]:
        """Weight of the tiles of each cluster: (k,), int64, or float64 for fractional weights."""
        counts = self.statistics.counts
        if counts.max() < 2**53 and np.array_equal(counts, np.rint(counts)):
            return counts.astype(np.int64)
        return counts.copy()


def iterate(
    initial: Sequence[NDArray[np.float64] | Step],
    measure: Measure,
    find_farthest: FindFarthest,
    *,
    max_iter: int,
    tol: float,
    variance: Callable[[Statistics, NDArray[np.float64]], float] = Statistics.mean_variance,
    on_steps: Callable[[dict[int, Step]], None] | None = None,
) -> dict[int, Step]:
    """Run Lloyd iterations of all models, one pass over the tiles a round.

    A done model leaves the stack. If `tol` or `max_iter` stops a model, one more pass measures the
    model without an update, so that its result is consistent. A model whose last update moved
    nothing needs no such pass.

    Parameters
    ----------
    initial : sequence of ndarray of shape (k, d), float64, or Step
        Initial centroids of each model, or the last step of a resumed model.
    measure : callable
        ``measure(stack, offsets, models)`` returns the statistics of each centroid over all tiles.
        `models` are the positions in `initial` of the measured models.
    find_farthest : callable
        ``find_farthest(stack, offsets, wanted)`` returns, for each model m, the ``wanted[m]`` tiles
        farthest from their own centroid. Called only when a cluster is empty.
    max_iter : int
        Maximum number of updates of a model.
    tol : float
        A model has converged when ``sum_j |shift_j|**2 <= tol * mean(var(tiles, axis=0))``.
    variance : callable, optional
        Returns ``mean(var(tiles, axis=0))`` from the first model's statistics and centroids. Called
        after each pass, because the variance of floats is only as exact as the centroids.
    on_steps : callable, optional
        Called after each pass with the steps of the measured models, by position in `initial`.

    Returns
    -------
    dict of int to Step
        Last step of each measured model, by position in `initial`.
    """
    models = {
        i: _Model.resume(start, max_iter) if isinstance(start, Step) else _Model(start)
        for i, start in enumerate(initial)
        if not (isinstance(start, Step) and start.last)
    }
    results: dict[int, Step] = {}
    while models:
        offsets = np.cumsum([0, *(len(m.centroids) for m in models.values())], dtype=np.intp)
        stack = np.concatenate([m.centroids for m in models.values()])
        measured = measure(stack, offsets, list(models)).split(offsets)
        tolerance = tol * variance(measured[0], stack[: offsets[1]])
        updates = _fill_empty_clusters(
            stack, offsets, measured, list(models.values()), find_farthest
        )
        steps = {
            i: models[i].advance(statistics, update, tolerance, max_iter)
            for i, statistics, update in zip(models, measured, updates, strict=True)
        }
        results |= steps
        if on_steps is not None:
            on_steps(steps)
        models = {i: model for i, model in models.items() if not steps[i].last}
    return results


@dataclass(slots=True)
class _Model:
    """State of a model between two passes."""

    centroids: NDArray[np.float64]
    iteration: int = 0
    shift: float = np.inf
    converged: bool = False
    stopped: bool = False

    @classmethod
    def resume(cls, step: Step, max_iter: int) -> Self:
        """Return the state after a step."""
        stopped = step.converged or step.iteration >= max_iter
        return cls(step.updated, step.iteration, step.shift, step.converged, stopped)

    @np.errstate(over="ignore")  # the shift of very distant centroids may be infinite
    def advance(
        self, measured: Statistics, update: Statistics, tolerance: float, max_iter: int
    ) -> Step:
        """Move the centroids to the means of `update`, and return the step of this pass."""
        centroids, last = self.centroids, self.stopped
        if not self.stopped:
            self.centroids = update.means()
            self.iteration += 1
            self.shift = float(np.square(self.centroids - centroids).sum())
            # Settled clusters have the same means to the bit, so the shift is exactly 0.
            self.converged = self.shift <= tolerance
            self.stopped = self.converged or self.iteration >= max_iter
            last = self.stopped and np.array_equal(self.centroids, centroids)
        return Step(
            iteration=self.iteration,
            centroids=centroids,
            statistics=measured,
            inertia=measured.inertia(centroids),
            shift=self.shift,
            converged=self.converged,
            last=last,
            updated=self.centroids,
        )


def best_restarts(steps: Mapping[tuple[int, int], Step]) -> dict[int, tuple[int, Step]]:
    """Return, for each k, the restart of least inertia (the first of equals) and its step."""
    best: dict[int, tuple[int, Step]] = {}
    for (k, restart), step in steps.items():
        if k not in best or step.inertia < best[k][1].inertia:
            best[k] = restart, step
    return dict(sorted(best.items()))


def _fill_empty_clusters(
    stack: NDArray[np.float64],
    offsets: NDArray[np.intp],
    measured: list[Statistics],
    models: list[_Model],
    find_farthest: FindFarthest,
) -> list[Statistics]:
    """Return the statistics that update each model, after moving a tile to each empty cluster.

    The empty clusters of all models share one more pass.
    """
    wanted = [
        0 if model.stopped else int(np.count_nonzero(statistics.counts == 0))
        for model, statistics in zip(models, measured, strict=True)
    ]
    if not any(wanted):
        return measured
    farthest = find_farthest(stack, offsets, wanted)
    return [
        relocate(statistics, far) if n else statistics
        for statistics, far, n in zip(measured, farthest, wanted, strict=True)
    ]


def relocate(statistics: Statistics, farthest: FarthestTiles) -> Statistics:
    """Return statistics after a move of the farthest tiles to empty clusters, in order of both.

    Squares stay the same, because no update needs squares. Clusters stay empty if there are fewer
    tiles than empty clusters.
    """
    table = statistics.table.copy()
    moved = Statistics(table)
    empty = np.flatnonzero(statistics.counts == 0)
    # The sum of fractional weights, less all of these weights, may be a rounding error above 0.
    rest = statistics.counts * (0 if statistics.exact else _ROUNDING)
    # Fewer tiles than empty clusters may lie off their centroid, hence strict=False.
    tiles = zip(empty, farthest.tiles, farthest.labels, farthest.weights, strict=False)
    for cluster, tile, label, weight in tiles:
        moved.sums[label] -= weight * tile.astype(table.dtype)
        moved.counts[label] -= weight
        if moved.counts[label] <= rest[label]:
            table[label] = 0
        moved.sums[cluster] = weight * tile.astype(table.dtype)
        moved.counts[cluster] = weight
    return moved
