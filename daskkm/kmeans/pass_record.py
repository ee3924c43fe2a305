"""Record of the passes of a fit: for the user's callback, and for a checkpoint."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from daskkm.kernels.statistics import Statistics
    from daskkm.kmeans.kmeans_parallel import Candidates
    from daskkm.kmeans.lloyd import Step
    from daskkm.passes.draws import Trial
    from daskkm.passes.runner import PassRunner

    #: State of a seeding in passes.
    Seeding: TypeAlias = Sequence[Trial] | Candidates


@dataclass(frozen=True, eq=False)
class Pass:
    """Pass or other stage of a fit: the argument of `on_pass`.

    Attributes
    ----------
    number : int
        Passes so far.
    stage : str
        "pass": a pass over all tiles. "sample": a sample was read. "draw": the initial centroids of
        a restart were drawn in memory. "sample fit", "candidate fit": an iteration over a sample,
        or over the candidates of k-means||, in memory.
    seconds : float
        Wall time of the pass or stage.
    steps : dict of (k, restart) to Step
        Last step of each model. Empty while initial centroids are drawn. A resumed fit leaves out
        models that were done without being the best. A step has the attributes ``iteration``,
        ``inertia``, ``centroids``, ``counts``, ``shift``, ``converged`` and ``last``, which is True
        if the model is done.
    bytes_read : int
        Bytes of tiles read so far.

    Examples
    --------
    >>> import daskkm, numpy as np
    >>> tiles = np.array([[0], [2], [100], [102]], np.uint8)
    >>> def show(done):
    ...     for (k, restart), step in done.steps.items():
    ...         print(done.number, k, step.inertia)
    >>> init = np.array([[0.0], [102.0]])
    >>> result = daskkm.fit_sweep(tiles, [2], init=init, on_pass=show)
    1 2 8.0
    2 2 4.0
    """

    number: int
    stage: str
    seconds: float
    steps: dict[tuple[int, int], Step]
    bytes_read: int

    @property
    def reads_tiles(self) -> bool:
        """True if the stage is a pass over all tiles or over blocks that hold the sample."""
        return self.stage in ("pass", "sample")


@dataclass(frozen=True, eq=False)
class State:
    """State of a fit after a pass, from which the fit can resume.

    Attributes
    ----------
    number, bytes_read, steps
        As for `Pass`.
    seeding : sequence of Trial, or Candidates, or None
        State of a seeding in passes.
    references : sequence of (Statistics, ndarray of shape (1, d))
        Statistics of all tiles without their weights about a point, for their variance.
    total : ndarray of shape (d + 2,), int64, or None
        Statistics of all tiles, if sums are exact.
    """

    number: int = 0
    bytes_read: int = 0
    steps: Mapping[tuple[int, int], Step] = field(default_factory=dict)
    seeding: Seeding | None = None
    references: Sequence[tuple[Statistics, NDArray[np.float64]]] = ()
    total: NDArray[np.int64] | None = None


class Recorder:
    """Record of a fit: calls `save` after each pass over all tiles, `on_pass` after each stage."""

    def __init__(
        self,
        runner: PassRunner,
        save: Callable[[State], None] | None = None,
        on_pass: Callable[[Pass], Any] | None = None,
    ) -> None:
        self._runner = runner
        self._save = save
        self._on_pass = on_pass
        self._last = time.perf_counter()
        self.references: list[tuple[Statistics, NDArray[np.float64]]] = []

    def resume(self, state: State) -> None:
        """Set counts, total and references to those of a state."""
        runner = self._runner
        runner.passes, runner.bytes_read = state.number, state.bytes_read
        runner.total, self.references = state.total, list(state.references)

    def record(
        self,
        stage: str = "pass",
        steps: Mapping[tuple[int, int], Step] | None = None,
        seeding: Seeding | None = None,
    ) -> None:
        """Record that a pass or another stage has ended."""
        before, self._last = self._last, time.perf_counter()
        runner, known = self._runner, dict(steps or {})
        if stage == "pass" and self._save is not None:
            references = list(self.references)
            self._save(
                State(runner.passes, runner.bytes_read, known, seeding, references, runner.total)
            )
        if self._on_pass is not None:
            seconds = self._last - before
            self._on_pass(Pass(runner.passes, stage, seconds, known, runner.bytes_read))
