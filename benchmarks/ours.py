"""daskkm's own sides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.timing import Outcome
from daskkm.kmeans import lloyd
from daskkm.kmeans.sweep import fit_sweep
from daskkm.passes.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from benchmarks.timing import Work
    from daskkm.kmeans.lloyd import Step


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
    """Return the fits of all starts by Lloyd's iterations.

    The reader is made before: what it keeps resident is ready, as a peer's float32 is.
    """
    source = Reader(X, cache=cache, bounds=bounds)
    source.prepare(len(starts), sum(map(len, starts.values())))

    def work() -> Outcome:
        before = source.passes
        last: dict[int, Step] = {}
        for steps in lloyd.iterate(list(starts.values()), source.measure, source.farthest, **stop):
            last |= steps
        ends = [last[i] for i in range(len(starts))]
        said = {
            "iterations": [end.iteration for end in ends],
            "passes": source.passes - before,
        }
        return Outcome([end.centroids for end in ends], said)

    return work
