"""daskkm's own sides, and what of it is not yet here."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from benchmarks.timing import Outcome
from daskkm import lloyd
from daskkm.fit import fit_sweep
from daskkm.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from benchmarks.timing import Work
    from daskkm.lloyd import Step


def takes(function: Callable[..., Any], name: str) -> bool:
    """Tell whether a function has a keyword."""
    return name in inspect.signature(function).parameters


def reader(X: Any, **wanted: Any) -> Reader:
    """Return a reader, with those of the keywords that it takes."""
    return Reader(X, **{name: value for name, value in wanted.items() if takes(Reader, name)})


def sweep(X: Any, starts: Mapping[int, NDArray[Any]], **settings: Any) -> Work:
    """Return a sweep as a user makes it."""

    def work() -> Outcome:
        result = fit_sweep(X, list(starts), init=starts, **settings)
        models = result.models.values()
        said = {"iterations": [model.n_iter_ for model in models], "passes": result.passes}
        return Outcome([model.cluster_centers_ for model in models], said)

    return work


def lloyds(
    X: Any, starts: Mapping[int, NDArray[Any]], wanted: Mapping[str, Any], **stop: Any
) -> Work:
    """Return the fits of all starts by Lloyd's iterations, through a reader with these keywords.

    The reader is made before: what it keeps resident is ready, as a peer's float32 is.
    """
    source = reader(X, **wanted)

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
