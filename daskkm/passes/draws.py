"""Draws of tiles in passes: which blocks hold the next candidates of a seeding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask
import numpy as np

from daskkm.kernels import assign
from daskkm.kernels.distances import distances_to_all, squared_distances
from daskkm.kernels.dtypes import statistics_dtype
from daskkm.kmeans import seeding
from daskkm.kmeans.seeding import Drawn, Outcome
from daskkm.passes.reductions import gathered, joined, noted
from daskkm.passes.scheduler import compute, persist

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import dask.array as da
    from dask.delayed import Delayed
    from numpy.typing import NDArray

    from daskkm.kmeans.seeding import Trial

# Of each tile, which candidate of k-means|| is nearest, and how far it is, squared.
_NOTE = np.dtype([("label", np.int32), ("distance", np.float64)])
NOTE_BYTES = _NOTE.itemsize


def trials(
    X: da.Array,
    trials: Sequence[Trial],
    n_draws: int,
    seed: int,
    step: int,
    *,
    weights: da.Array | None = None,
) -> Delayed:
    """Try candidates for the next centroid of each seeding, and draw the next ones, lazily.

    Parameters
    ----------
    X, weights
        As for `daskkm.passes.reductions.statistics`.
    trials : sequence of Trial
        One a seeding.
    n_draws : int
        How many tiles to draw, without replacement, each with probability proportional to its
        weight times its squared distance to the nearest of the centroids.
    seed, step : int
        What the draws depend on, beside the place of the seeding and of the tiles.

    Returns
    -------
    Delayed tuple of Outcome
        One a seeding.
    """

    def merge(outcomes: list[tuple[Outcome, ...]]) -> tuple[Outcome, ...]:
        """Add up what the candidates leave, and keep the first of the draws."""
        return tuple(
            Outcome(
                [sum(of_one) for of_one in zip(*(o.potentials for o in blocks), strict=True)],
                [
                    joined(of_one).first(n_draws)
                    for of_one in zip(*(o.drawn for o in blocks), strict=True)
                ],
            )
            for blocks in zip(*outcomes, strict=True)
        )

    return gathered(
        _one_trials,
        X,
        weights,
        merge,
        trials=dask.delayed(list(trials), pure=True, traverse=False),
        n_draws=n_draws,
        seed=seed,
        step=step,
    )


def drawn(weights: da.Array, n: int, seed: int) -> Delayed:
    """Draw n tiles with probability proportional to their weight, lazily, from that alone.

    Parameters
    ----------
    weights : dask array of shape (n_tiles,), int64 or float64
    n, seed : int

    Returns
    -------
    Delayed list of Drawn
        Independent draws of one each; as its tile, the weight.
    """

    def merge(found: list[list[Drawn]]) -> list[Drawn]:
        return [joined(of_one).first(1) for of_one in zip(*found, strict=True)]

    return gathered(_one_drawn, weights[:, None], None, merge, n=n, seed=seed)


class Rounds:
    """The passes of k-means||: each measures the tiles against the candidates that are new to it.

    Notes of each tile's nearest candidate stay beside the tiles from pass to pass, persisted like
    any dask collection: those that are lost with their worker are made again. Without them a pass
    measures all candidates, to the same bits.

    Parameters
    ----------
    X, weights
        As for `daskkm.passes.reductions.statistics`.
    scheduler : object
        As for `daskkm.passes.scheduler.compute`.
    keep : bool
        Whether notes stay.
    """

    def __init__(
        self, X: da.Array, weights: da.Array | None, scheduler: Any, *, keep: bool
    ) -> None:
        self._X, self._weights, self._scheduler, self._keep = X, weights, scheduler, keep
        self._notes: da.Array | None = None
        self._known = 0

    def draw(self, candidates: NDArray[Any], n_draws: int, seed: int, step: int) -> Drawn:
        """Make a pass that draws tiles, without replacement.

        Parameters
        ----------
        candidates : ndarray of shape (m, d)
            All of them, those of the passes before first.
        n_draws, seed, step
            As for `trials`, of the first seeding; the draws are those of its last candidate.
        """

        def merge(found: list[Drawn]) -> Drawn:
            return joined(found).first(n_draws)

        arguments = {"n_draws": n_draws, "seed": seed, "step": step}
        found: Drawn = self._pass(candidates, _race, merge, arguments)
        return found

    def weigh(self, candidates: NDArray[Any]) -> tuple[NDArray[Any], float]:
        """Make a pass: the weight of the tiles nearest to each candidate, and what they leave.

        Returns
        -------
        weights : ndarray of shape (m,), int64 or float64
        left : float
            The weighted sum of squared distances to the nearest candidate.
        """

        def merge(found: list[tuple[NDArray[Any], float]]) -> tuple[NDArray[Any], float]:
            weights, left = zip(*found, strict=True)
            return sum(weights), sum(left)  # type: ignore[return-value]

        found: tuple[NDArray[Any], float] = self._pass(
            candidates, _weigh, merge, {"n_candidates": len(candidates)}
        )
        return found

    def _pass(
        self,
        candidates: NDArray[Any],
        find: Callable[..., Any],
        merge: Callable[[list[Any]], Any],
        arguments: dict[str, Any],
    ) -> Any:
        """Measure what is new, then find something among the tiles by their notes."""
        known = 0 if self._notes is None else self._known
        columns = [] if self._notes is None else [self._notes]
        columns += [] if self._weights is None else [self._weights[:, None]]
        new = candidates[known:].astype(np.float64)
        notes, found = noted(
            _one_round,
            [self._X, *columns],
            merge,
            _NOTE,
            new=dask.delayed(new, pure=True, traverse=False),
            known=known,
            weighted=self._weights is not None,
            find=find,
            **arguments,
        )
        if self._keep:
            notes, found = persist(notes, found, scheduler=self._scheduler)
            self._notes, self._known = notes, len(candidates)
        return compute(found.to_delayed().item(), scheduler=self._scheduler)[0]


# What overflows is refused by the first pass that measures the tiles.
@np.errstate(over="ignore", invalid="ignore")
def _one_round(
    tiles: NDArray[Any],
    first: int,
    *columns: NDArray[Any],
    new: NDArray[np.float64],
    known: int,
    weighted: bool,
    find: Callable[..., Any],
    **arguments: Any,
) -> tuple[NDArray[Any], Any]:
    """Return the notes of a piece, and what is found by them."""
    before = columns[: len(columns) - weighted]
    weights = columns[-1] if weighted else None
    notes = before[0].copy() if before else np.array((0, np.inf), _NOTE).repeat(len(tiles))
    if len(new):
        own = assign.label_block(tiles, new, np.array([0, len(new)]))[:, 0]
        distances = squared_distances(tiles, new, own)
        # As the labels among all candidates: of equals the first.
        nearer = distances < notes["distance"]
        notes["label"][nearer] = known + own[nearer]
        notes["distance"][nearer] = distances[nearer]
    return notes[:, None], find(tiles, first, notes, weights, **arguments)


def _race(
    tiles: NDArray[Any],
    first: int,
    notes: NDArray[Any],
    weights: NDArray[Any] | None,
    *,
    n_draws: int,
    seed: int,
    step: int,
) -> Drawn:
    """Draw from a piece, in proportion to the weight times the squared distance."""
    arrivals = seeding.arrivals(seed, 0, step, first, len(tiles))
    mass = notes["distance"] if weights is None else notes["distance"] * weights
    return Drawn.race(tiles, first, arrivals, mass, n_draws)


def _weigh(
    tiles: NDArray[Any],
    first: int,  # noqa: ARG001
    notes: NDArray[Any],
    weights: NDArray[Any] | None,
    *,
    n_candidates: int,
) -> tuple[NDArray[Any], float]:
    """Return the weight of the tiles nearest to each candidate, and what they leave."""
    kind = statistics_dtype(tiles.dtype, None if weights is None else weights.dtype)
    each = np.ones(len(tiles)) if weights is None else weights
    # Whole weights add up to less than 2**53: exact.
    total = np.bincount(notes["label"], each, minlength=n_candidates).astype(kind)
    return total, float(notes["distance"] @ each)


def _one_drawn(weights: NDArray[Any], first: int, *, n: int, seed: int) -> list[Drawn]:
    return [
        Drawn.race(
            weights, first, seeding.arrivals(seed, i, 0, first, len(weights)), weights[:, 0], 1
        )
        for i in range(n)
    ]


# What overflows is refused by the first pass that measures the tiles.
@np.errstate(over="ignore", invalid="ignore")
def _one_trials(
    tiles: NDArray[Any],
    first: int,
    weights: NDArray[Any] | None = None,
    *,
    trials: Sequence[Trial],
    n_draws: int,
    seed: int,
    step: int,
) -> tuple[Outcome, ...]:
    """Return what the candidates of each seeding leave of a block, and draw from it."""
    kind = statistics_dtype(tiles.dtype, None if weights is None else weights.dtype)
    outcomes = []
    for place, (chosen, candidates) in enumerate(trials):
        left = distances_to_all(tiles, candidates)
        if len(chosen):
            own = assign.label_block(tiles, chosen, np.array([0, len(chosen)]))[:, 0]
            left = np.minimum(left, squared_distances(tiles, chosen, own)[:, None])
        if weights is not None:
            left *= weights[:, None]
        arrivals = seeding.arrivals(seed, place, step, first, len(tiles))
        drawn = [Drawn.race(tiles, first, arrivals, mass, n_draws) for mass in left.T]
        outcomes.append(Outcome(left.astype(kind).sum(axis=0).tolist(), drawn))
    return tuple(outcomes)
