"""Draws of tiles in passes over all tiles: the candidates of k-means++ and k-means||."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import dask
import numpy as np

from daskkm.kernels.dtypes import statistics_dtype
from daskkm.passes.inputs import check_sums_finite
from daskkm.passes.reductions import concatenate_fields, gather, gather_with_notes
from daskkm.passes.sampling import DrawnTiles
from daskkm.passes.scheduler import compute, persist
from daskkm.passes.seeds import exponentials

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import dask.array as da
    from dask.delayed import Delayed
    from numpy.typing import NDArray

# Note of a tile: the nearest candidate of k-means||, and the squared distance.
_NOTE = np.dtype([("label", np.int32), ("distance", np.float64)])
NOTE_BYTES = _NOTE.itemsize


class Trial(NamedTuple):
    """Candidates for the next centroid of one seeding in a pass of k-means++."""

    centroids: NDArray[np.float64]  # (i, d): centroids so far
    candidates: NDArray[np.float64]  # (c, d)


class Outcome(NamedTuple):
    """Result of a pass of k-means++ for each candidate: its effect as the next centroid."""

    potentials: list[float]  # (c,): weighted sum of squared distances to the nearest centroid
    next_candidates: list[DrawnTiles]  # (c,): drawn tiles


def try_candidates(
    X: da.Array,
    trials: Sequence[Trial],
    n_draws: int,
    seed: int,
    step: int,
    *,
    weights: da.Array | None = None,
) -> Delayed:
    """Return the outcome of the trial of each seeding, lazily.

    Parameters
    ----------
    X : dask array of shape (n, d)
    trials : sequence of Trial
        One trial for each seeding.
    n_draws : int
        Tiles to draw for each candidate, without replacement, with probability proportional to
        weight times squared distance to the nearest centroid.
    seed, step : int
        Of the fit, and the pass, for `daskkm.passes.seeds.exponentials`.
    weights : dask array of shape (n,), optional
        In the chunks of X.

    Returns
    -------
    Delayed tuple of Outcome
    """

    def merge(parts: list[tuple[Outcome, ...]]) -> tuple[Outcome, ...]:
        return tuple(
            Outcome(
                [sum(of_one) for of_one in zip(*(o.potentials for o in outcomes), strict=True)],
                [
                    concatenate_fields(of_one).top(n_draws)
                    for of_one in zip(*(o.next_candidates for o in outcomes), strict=True)
                ],
            )
            for outcomes in zip(*parts, strict=True)
        )

    return gather(
        _try_candidates,
        X,
        weights,
        merge,
        trials=dask.delayed(list(trials), pure=True, traverse=False),
        n_draws=n_draws,
        seed=seed,
        step=step,
    )


# The first pass that measures tiles raises an error for an overflow.
@np.errstate(over="ignore", invalid="ignore")
def _try_candidates(
    tiles: NDArray[Any],
    first: int,
    weights: NDArray[Any] | None = None,
    *,
    trials: Sequence[Trial],
    n_draws: int,
    seed: int,
    step: int,
) -> tuple[Outcome, ...]:
    from daskkm.kernels import assign, distances

    dtype = statistics_dtype(tiles.dtype, None if weights is None else weights.dtype)
    outcomes = []
    for seeding, (centroids, candidates) in enumerate(trials):
        potential = distances.distances_to_all(tiles, candidates)
        if len(centroids):
            labels = assign.label_block(tiles, centroids, np.array([0, len(centroids)]))[:, 0]
            nearest = distances.squared_distances(tiles, centroids, labels)
            potential = np.minimum(potential, nearest[:, None])
        if weights is not None:
            potential *= weights[:, None]
        times = exponentials(seed, seeding, step, first, len(tiles))
        drawn = [DrawnTiles.race(tiles, first, times, mass, n_draws) for mass in potential.T]
        outcomes.append(Outcome(potential.astype(dtype).sum(axis=0).tolist(), drawn))
    return tuple(outcomes)


def draw_by_weight(weights: da.Array, n: int, seed: int) -> Delayed:
    """Draw n tiles, independently, with probability proportional to weight, lazily.

    Returns
    -------
    Delayed list of DrawnTiles
        One draw each, with weights in place of tiles.
    """

    def merge(parts: list[list[DrawnTiles]]) -> list[DrawnTiles]:
        return [concatenate_fields(of_one).top(1) for of_one in zip(*parts, strict=True)]

    return gather(_draw_by_weight, weights[:, None], None, merge, n=n, seed=seed)


def _draw_by_weight(weights: NDArray[Any], first: int, *, n: int, seed: int) -> list[DrawnTiles]:
    n_tiles = len(weights)
    return [
        DrawnTiles.race(weights, first, exponentials(seed, i, 0, first, n_tiles), weights[:, 0], 1)
        for i in range(n)
    ]


class Rounds:
    """Passes of k-means||; each pass measures tiles against new candidates only.

    A note of each tile stays in memory from pass to pass; dask recomputes lost notes. Without notes
    each pass measures all candidates, to the same bits.

    Parameters
    ----------
    X : dask array of shape (n, d)
    weights : dask array of shape (n,), or None
    scheduler : object
        As for `daskkm.passes.scheduler.compute`.
    keep : bool
        True if notes stay in memory.
    on_pass : callable
        Called before each pass.
    """

    def __init__(
        self,
        X: da.Array,
        weights: da.Array | None,
        scheduler: Any,
        *,
        keep: bool,
        on_pass: Callable[[], None],
    ) -> None:
        self._X, self._weights, self._scheduler = X, weights, scheduler
        self._keep, self._on_pass = keep, on_pass
        self._notes: da.Array | None = None
        self._n_measured = 0

    def draw(self, candidates: NDArray[Any], n_draws: int, seed: int, step: int) -> DrawnTiles:
        """Make a pass: draw tiles without replacement.

        `candidates`, (m, d), are all candidates, in the order of the passes. The probability of a
        tile is proportional to weight times squared distance to the nearest candidate.
        """

        def merge(parts: list[DrawnTiles]) -> DrawnTiles:
            return concatenate_fields(parts).top(n_draws)

        arguments = {"n_draws": n_draws, "seed": seed, "step": step}
        drawn: DrawnTiles = self._make_pass(candidates, _race, merge, arguments)
        return drawn

    def weigh(self, candidates: NDArray[Any]) -> NDArray[Any]:
        """Make a pass: return the weight of the tiles nearest to each candidate, (m,)."""

        def merge(parts: list[tuple[NDArray[Any], float]]) -> tuple[NDArray[Any], float]:
            weights, potentials = zip(*parts, strict=True)
            return sum(weights), sum(potentials)  # type: ignore[return-value]

        weights: NDArray[Any]
        arguments = {"n_candidates": len(candidates)}
        weights, potential = self._make_pass(candidates, _weigh, merge, arguments)
        check_sums_finite(potential)
        return weights

    def _make_pass(
        self,
        candidates: NDArray[Any],
        reduce_piece: Callable[..., Any],
        merge: Callable[[list[Any]], Any],
        arguments: dict[str, Any],
    ) -> Any:
        """Measure new candidates, then reduce tiles and notes."""
        self._on_pass()
        n_measured = 0 if self._notes is None else self._n_measured
        columns = [] if self._notes is None else [self._notes]
        columns += [] if self._weights is None else [self._weights[:, None]]
        new = candidates[n_measured:].astype(np.float64)
        notes, result = gather_with_notes(
            _round,
            [self._X, *columns],
            merge,
            _NOTE,
            new=dask.delayed(new, pure=True, traverse=False),
            n_measured=n_measured,
            weighted=self._weights is not None,
            reduce_piece=reduce_piece,
            **arguments,
        )
        if self._keep:
            notes, result = persist(notes, result, scheduler=self._scheduler)
            self._notes, self._n_measured = notes, len(candidates)
        return compute(result.to_delayed().item(), scheduler=self._scheduler)[0]


# The first pass that measures tiles raises an error for an overflow.
@np.errstate(over="ignore", invalid="ignore")
def _round(
    tiles: NDArray[Any],
    first: int,
    *columns: NDArray[Any],
    new: NDArray[np.float64],
    n_measured: int,
    weighted: bool,
    reduce_piece: Callable[..., Any],
    **arguments: Any,
) -> tuple[NDArray[Any], Any]:
    """Return the notes and the reduction of a piece."""
    from daskkm.kernels import assign, distances

    before = columns[: len(columns) - weighted]
    weights = columns[-1] if weighted else None
    notes = before[0].copy() if before else np.array((0, np.inf), _NOTE).repeat(len(tiles))
    if len(new):
        labels = assign.label_block(tiles, new, np.array([0, len(new)]))[:, 0]
        to_new = distances.squared_distances(tiles, new, labels)
        # On ties the first candidate, as for labels.
        nearer = to_new < notes["distance"]
        notes["label"][nearer] = n_measured + labels[nearer]
        notes["distance"][nearer] = to_new[nearer]
    return notes[:, None], reduce_piece(tiles, first, notes, weights, **arguments)


def _race(
    tiles: NDArray[Any],
    first: int,
    notes: NDArray[Any],
    weights: NDArray[Any] | None,
    *,
    n_draws: int,
    seed: int,
    step: int,
) -> DrawnTiles:
    times = exponentials(seed, 0, step, first, len(tiles))
    mass = notes["distance"] if weights is None else notes["distance"] * weights
    return DrawnTiles.race(tiles, first, times, mass, n_draws)


def _weigh(
    tiles: NDArray[Any],
    first: int,  # noqa: ARG001
    notes: NDArray[Any],
    weights: NDArray[Any] | None,
    *,
    n_candidates: int,
) -> tuple[NDArray[Any], float]:
    dtype = statistics_dtype(tiles.dtype, None if weights is None else weights.dtype)
    each = np.ones(len(tiles)) if weights is None else weights
    # Whole weights add up to less than 2**53: exact.
    total = np.bincount(notes["label"], each, minlength=n_candidates).astype(dtype)
    return total, float(notes["distance"] @ each)
