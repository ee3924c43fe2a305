"""One Lloyd iteration in memory: uint8 by daskkm, float32 made ready beforehand by its peers."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import data, peers, schedulers
from benchmarks.timing import Case, Outcome, interleaved, judge
from daskkm.kernels import assign
from daskkm.kernels.statistics import Statistics
from daskkm.passes import statistics
from daskkm.passes.tiles import Tiles

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from benchmarks.timing import Work


def measure(
    folder: Path,  # noqa: ARG001 (these tiles are in memory)
    *,
    ks: Sequence[int],
    tiles: int,
    rounds: int,
    threads: Sequence[int] = (1,),
    with_faiss: bool = False,
) -> list[Case]:
    """Compare an iteration of all ks; scikit-learn needs one each."""
    X = data.make(0, tiles)
    ready = X.astype(np.float32)
    starts = list(data.starts(ks, tiles).values())
    cases = []
    for n in threads:
        notes = peers.missing("faiss") if with_faiss else []
        with schedulers.threads(n):
            sides = {
                "daskkm": ours(X, starts, n),
                "scikit-learn": peers.sklearn_iterations(ready, starts, n),
            }
            if with_faiss and not notes:
                sides["faiss"] = peers.faiss_iteration(ready, starts[0], n)
            found = interleaved(sides, rounds)
        judge(found, [X])
        what = f"k = {', '.join(map(str, ks))}; {tiles:,} tiles"
        sizes = {"tiles": tiles, "k": list(ks), "rounds": rounds, "threads": n}
        where = f"{n} thread{'s' * (n > 1)}"
        cases.append(Case(what, where, "daskkm", found, sizes, notes=notes))
    return cases


def ours(X: NDArray[np.uint8], starts: Sequence[NDArray[np.float64]], threads: int) -> Work:
    """Return an iteration of all models by daskkm: the kernel alone, or dask's threads over it."""
    stack, offsets = np.concatenate(starts), np.array([0, *accumulate(map(len, starts))])
    array = Tiles.of(X).array

    def table() -> NDArray[Any]:
        if threads == 1:
            return assign.block_statistics(X, stack, offsets)
        return np.asarray(statistics.statistics(array, stack, offsets).compute())

    def work() -> Outcome:
        return Outcome(np.split(Statistics(table()).means(), offsets[1:-1]))

    return work
