"""daskkm's own sides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.timing import Outcome
from daskkm.kmeans import lloyd
from daskkm.kmeans.sweep import fit_sweep
from daskkm.passes.runner import PassRunner

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from benchmarks.timing import Work


def sweep(X: Any, ks: Sequence[int], **settings: Any) -> Work:
    """Return a sweep as a user makes it."""

    def work() -> Outcome:
        result = fit_sweep(X, ks, **settings)
        models = result.models.values()
        said = {"iterations": [model.n_iter_ for model in models], "passes": result.passes}
        return Outcome([model.cluster_centers_ for model in models], said)

    return work


def lloyds(
    X: Any, starts: Mapping[int, NDArray[Any]], *, cache: str, bounds: bool, **stop: Any
) -> Work:
    """Return the fits from all initial centroids by Lloyd's iterations.

    The runner is made before: tiles that it caches are ready, as a peer's float32 is.
    """
    runner = PassRunner(X, cache=cache, bounds=bounds)
    runner.prepare(len(starts), sum(map(len, starts.values())))

    def work() -> Outcome:
        before = runner.passes
        last = lloyd.iterate(list(starts.values()), runner.measure, runner.find_farthest, **stop)
        ends = [last[i] for i in range(len(starts))]
        said = {
            "iterations": [end.iteration for end in ends],
            "passes": runner.passes - before,
        }
        return Outcome([end.centroids for end in ends], said)

    return work
