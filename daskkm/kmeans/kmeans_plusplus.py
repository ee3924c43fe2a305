"""Greedy k-means++, and uniform draws: in memory, and in passes over all tiles.

The seeding of a restart serves every k of a sweep. Each draw depends only on earlier centroids, so
the first k centroids of a longer seeding are a seeding of k.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from daskkm.errors import FitError
from daskkm.kernels.dtypes import max_magnitude
from daskkm.passes.draws import Trial
from daskkm.passes.inputs import TOO_LARGE
from daskkm.passes.seeds import Purpose, generator

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from daskkm.kmeans.options import FitOptions, Initial
    from daskkm.kmeans.pass_record import Recorder
    from daskkm.passes.draws import Outcome
    from daskkm.passes.runner import PassRunner


def draw_in_memory(
    sample: NDArray[Any],
    weights: NDArray[Any] | None,
    ks: Sequence[int],
    n_init: int,
    method: str,
    seed: int,
) -> Iterator[dict[tuple[int, int], NDArray[np.float64]]]:
    """Draw initial centroids for each (k, restart), and yield one restart of all k at a time.

    The draws do not depend on the order of the tiles, (m, d). A tile of weight w stands for w
    tiles. Tiles repeat if k exceeds the number of distinct tiles.

    Raises
    ------
    FitError
        If squared distances, times the weights, may overflow.
    """
    _check_squares(sample, weights)
    tiles, masses = distinct_tiles(sample, weights)
    draw = {"k-means++": draw_plusplus, "random": draw_uniform}[method]
    rngs = [generator(seed, Purpose.RESTART, restart) for restart in range(n_init)]
    for restart, rows in enumerate(draw(tiles, masses, max(ks), rngs)):
        longest = tiles[rows].astype(np.float64)
        yield {(k, restart): longest[:k] for k in ks}


def _check_squares(tiles: NDArray[Any], weights: NDArray[Any] | None) -> None:
    """Raise FitError if the sum of squared distances among tiles may overflow."""
    peak = max(abs(float(tiles.min())), abs(float(tiles.max())))
    # No distance exceeds twice the peak. Python's floats overflow without a warning.
    highest = 4 * tiles.size * peak * peak * (1.0 if weights is None else float(weights.max()))
    if not highest < math.inf:
        raise FitError(TOO_LARGE)


def distinct_tiles(
    tiles: NDArray[Any], weights: NDArray[Any] | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the distinct tiles of positive weight, in order of content, with summed weights."""
    weights = np.ones(len(tiles), np.int64) if weights is None else weights
    tiles, weights = tiles[weights > 0], weights[weights > 0]
    order = np.lexsort(tiles.T[::-1])
    ordered = tiles[order]
    new = np.ones(len(tiles), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    firsts = np.flatnonzero(new)
    return ordered[firsts], np.add.reduceat(weights[order], firsts)


def draw_uniform(
    tiles: NDArray[Any], weights: NDArray[Any], k: int, rngs: Sequence[np.random.Generator]
) -> Iterator[NDArray[np.intp]]:
    """Draw k rows of distinct tiles, (m, d), by weight; rows repeat only if k exceeds m."""
    for rng in rngs:
        arrivals = rng.exponential(size=len(tiles)) / weights
        yield np.resize(np.argsort(arrivals, kind="stable"), k)


def draw_plusplus(
    tiles: NDArray[Any], weights: NDArray[Any], k: int, rngs: Sequence[np.random.Generator]
) -> Iterator[NDArray[np.intp]]:
    """Draw k rows of tiles by greedy k-means++, once for each generator.

    The first row is drawn with probability proportional to weight. After i rows, candidates are
    drawn with probability proportional to weight times squared distance to the nearest drawn tile.
    Of ``2 + int(log(i + 1))`` candidates, the candidate of least potential is chosen. Distances of
    integer tiles are exact and summed in a fixed order, so draws are the same on any machine.

    References
    ----------
    D. Arthur and S. Vassilvitskii, k-means++: the advantages of careful seeding, SODA 2007;
    the greedy variant is that of section 5.
    """
    wide = tiles.astype(_exact_float(tiles))
    if tiles.dtype.kind == "f":
        wide -= wide.mean(axis=0)  # distances of tiles far from 0 would cancel
    norms = np.square(wide).sum(axis=1, dtype=np.float64)
    for rng in rngs:
        chosen = _draw_rows(weights, rng.random(1)).tolist()
        nearest = _squared_distances(wide, norms, chosen)[:, 0]
        while len(chosen) < k:
            candidates = _draw_rows(weights * nearest, rng.random(n_candidates(len(chosen))))
            left = np.minimum(_squared_distances(wide, norms, candidates), nearest[:, None])
            best = int(np.argmin((weights[:, None] * left).sum(axis=0)))
            chosen.append(int(candidates[best]))
            nearest = left[:, best]
        yield np.array(chosen, np.intp)


def n_candidates(n_chosen: int) -> int:
    """Return the number of candidates that greedy k-means++ tries for the next centroid."""
    return 2 + int(np.log(n_chosen + 1))


def _draw_rows(mass: NDArray[Any], uniform: NDArray[np.float64]) -> NDArray[np.intp]:
    """Draw rows with probability proportional to their mass."""
    cumulative = np.cumsum(mass)
    # side="right" draws no row without mass while another row has mass.
    rows = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
    return np.asarray(np.minimum(rows, len(mass) - 1))


def _squared_distances(
    tiles: NDArray[Any], norms: NDArray[np.float64], rows: Any
) -> NDArray[np.float64]:
    """Return the squared distance of each tile to each tile in `rows`."""
    products: NDArray[np.float64] = (tiles @ tiles[rows].T).astype(np.float64)
    return np.asarray(np.maximum(norms[:, None] - 2.0 * products + norms[rows], 0.0))


def _exact_float(sample: NDArray[Any]) -> type[np.floating[Any]]:
    """Return the float type in which BLAS multiplies these tiles without rounding.

    Integers below 2**24 (2**53) are exact in float32 (float64), and so is each partial sum.
    """
    if sample.dtype.kind == "f":
        return np.float64
    peak = max_magnitude(sample.dtype)
    return np.float32 if sample.shape[1] * peak**2 < 2**24 else np.float64


def draw_in_passes(
    runner: PassRunner,
    options: FitOptions,
    recorder: Recorder,
    trials: Sequence[Trial] | None = None,
) -> Initial:
    """Draw initial centroids by greedy k-means++, in as many passes as the largest k.

    Unlike `draw_plusplus`, a step draws its candidates without replacement. Each pass measures the
    potential of each candidate, and draws the next candidates for each case. If all tiles lie on a
    centroid, the last tile repeats. Given the `trials` of an earlier pass, the seeding resumes.
    """
    if trials is None:
        firsts = runner.draw_first(options.n_init, options.seed).astype(np.float64)
        trials = [Trial(tile[:0], tile) for tile in firsts[:, None]]
        recorder.record(seeding=trials)
    k_max = options.k_max
    if k_max == 1:
        return {(1, restart): trial.candidates for restart, trial in enumerate(trials)}
    for step in range(len(trials[0].centroids) + 1, k_max + 1):
        n_draws = n_candidates(step) if step < k_max else 0
        outcomes = runner.try_candidates(trials, n_draws, options.seed, step)
        trials = [_choose(trial, outcome) for trial, outcome in zip(trials, outcomes, strict=True)]
        recorder.record(seeding=trials)
    return {(k, i): trial.centroids[:k] for k in options.ks for i, trial in enumerate(trials)}


def _choose(trial: Trial, outcome: Outcome) -> Trial:
    """Choose the candidate of the least potential; return the trial of the next centroid."""
    best = int(np.argmin(outcome.potentials))
    chosen = trial.candidates[best : best + 1]
    drawn = outcome.next_candidates[best].tiles.astype(np.float64)
    return Trial(np.vstack([trial.centroids, chosen]), drawn if len(drawn) else chosen)
