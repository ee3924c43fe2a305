"""k-means||: rounds that draw candidates from all tiles.

All k and restarts of a sweep share the candidates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from daskkm.kmeans.options import FitOptions
    from daskkm.kmeans.pass_record import Recorder
    from daskkm.passes.runner import PassRunner

ROUNDS = 5
# Candidates of a round for each centroid of the largest k; above _MANY_CANDIDATES only
# _LEAST_OVERSAMPLING. At k = 1,000 (100,000 float32 tiles, d = 384) 800 candidates cost half as
# much as 2,000. The potential is 1.10 times as large, 1.00 times after the fit to the sample.
_OVERSAMPLING, _LEAST_OVERSAMPLING = 2, 0.5
_MANY_CANDIDATES = 800


class Candidates(NamedTuple):
    """Candidates of k-means||."""

    tiles: NDArray[Any]  # (m, d)
    rounds: int  # rounds so far
    weights: NDArray[Any] | None = None  # (m,), weights of the clusters of the candidates


def n_candidates(k: int) -> int:
    """Return the number of candidates for k clusters."""
    return 1 + ROUNDS * _n_draws(k)


def _n_draws(k: int) -> int:
    """Return the number of candidates that a round draws."""
    return min(_OVERSAMPLING * k, max(_MANY_CANDIDATES, int(_LEAST_OVERSAMPLING * k)))


def draw_candidates(
    runner: PassRunner, options: FitOptions, recorder: Recorder, candidates: Candidates | None
) -> Candidates:
    """Draw the candidates of k-means|| in `ROUNDS` passes, and weight the candidates in one pass.

    Each round draws 2 k tiles for the largest k; above k = 400, the larger of 800 and k / 2. Tiles
    are drawn without replacement, with probability proportional to weight times squared distance to
    the nearest candidate. If all tiles lie on a candidate, a round draws fewer tiles. Given the
    `candidates` of an earlier pass, the rounds resume.

    References
    ----------
    B. Bahmani, B. Moseley, A. Vattani, R. Kumar and S. Vassilvitskii, Scalable k-means++,
    PVLDB 5 (2012), algorithm 2; rounds of a fixed size are a variant of its section 5.
    """
    if candidates is None:
        candidates = Candidates(runner.draw_first(1, options.seed), rounds=0)
        recorder.record(seeding=candidates)
    if candidates.weights is not None:
        return candidates
    rounds, n_draws = runner.start_rounds(), _n_draws(options.k_max)
    for step in range(candidates.rounds + 1, ROUNDS + 1):
        drawn = rounds.draw(candidates.tiles, n_draws, options.seed, step)
        candidates = Candidates(np.concatenate([candidates.tiles, drawn.tiles]), step)
        recorder.record(seeding=candidates)
    candidates = candidates._replace(weights=rounds.weigh(candidates.tiles))
    recorder.record(seeding=candidates)
    return candidates
