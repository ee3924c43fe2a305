"""Lloyd iterations of many models over the tiles of a `PassRunner`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from daskkm.kmeans import lloyd
from daskkm.kmeans.lloyd import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from daskkm.kernels.statistics import Statistics
    from daskkm.passes.runner import PassRunner

    Steps = dict[tuple[int, int], Step]


def fit_models(
    runner: PassRunner,
    initial: Mapping[tuple[int, int], NDArray[np.float64] | Step],
    max_iter: int,
    tol: float,
    on_steps: Callable[[Steps], None],
    references: list[tuple[Statistics, NDArray[np.float64]]] | None = None,
) -> Steps:
    """Run Lloyd iterations from the initial centroids, or the last step, of each (k, restart).

    `max_iter` and `tol` are those of `daskkm.kmeans.lloyd.iterate`. `on_steps` is called after each
    pass with the last step of each model. `Variance` extends the `references`.
    """
    names = list(initial)
    steps = {name: step for name, step in initial.items() if isinstance(step, Step)}
    variance = Variance(runner, references, wanted=tol > 0)

    def update(done: Mapping[int, Step]) -> None:
        steps.update({names[i]: step for i, step in done.items()})
        on_steps(steps)

    lloyd.iterate(
        list(initial.values()),
        variance.measure,
        runner.find_farthest,
        max_iter=max_iter,
        tol=tol,
        variance=variance,
        on_steps=update,
    )
    return steps


class Variance:
    """Mean variance of the features of the tiles without their weights, to which `tol` is relative.

    Weighted statistics do not give this variance. So the first two passes also measure the tiles
    without weights about a point: a centroid in the first pass, and in the second the mean, about
    which squares are exact.
    """

    def __init__(
        self,
        runner: PassRunner,
        references: list[tuple[Statistics, NDArray[np.float64]]] | None,
        *,
        wanted: bool,
    ) -> None:
        self._runner = runner
        self._references = [] if references is None else references
        self._wanted = wanted and runner.weights is not None

    def measure(
        self, stack: NDArray[np.float64], offsets: NDArray[np.intp], models: Sequence[int]
    ) -> Statistics:
        """Make a pass: return the statistics of each centroid."""
        if not self._wanted or len(self._references) > 1:
            return self._runner.measure(stack, offsets, models)
        point = self._references[0][0].means() if self._references else stack[:1]
        stacks = [(stack, offsets, models), (point, np.array([0, 1]), ())]
        measured, reference = self._runner.measure_all(stacks)
        self._references.append((reference, point))
        return measured

    def __call__(self, statistics: Statistics, centroids: NDArray[np.float64]) -> float:
        """Return the mean variance; without weights, from the statistics of one model."""
        if self._references:
            statistics, centroids = self._references[-1]
        return statistics.mean_variance(centroids)
