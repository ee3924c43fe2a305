"""k-means||: rounds that draw candidates from all tiles.

All k and restarts of a sweep share the candidates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from daskkm.passes.sampling import DrawnTiles

    #: (candidates so far, tiles to draw, round) to the drawn tiles: one pass.
    Draw = Callable[[NDArray[Any], int, int], DrawnTiles]

ROUNDS = 5
# Candidates a round for each centroid of the largest k. Above _MANY candidates a round, _LEAST of
# each centroid. At k = 1,000 (100,000 float32 tiles of 384) 800 candidates cost half as much as
# 2,000 and leave 1.10 times their potential, 1.00 times after the fit to the sample.
_OVERSAMPLING, _LEAST_OVERSAMPLING = 2, 0.5
_MANY_CANDIDATES = 800


class Candidates(NamedTuple):
    """Candidates drawn so far."""

    tiles: NDArray[Any]  # (m, d)
    rounds: int  # that drew them
    weights: NDArray[Any] | None = None  # (m,), of the tiles nearest to each, once known


def n_candidates(k: int) -> int:
    """Return the number of candidates for k clusters."""
    return 1 + ROUNDS * _n_draws(k)


def _n_draws(k: int) -> int:
    """Return the number of candidates that a round draws."""
    return min(_OVERSAMPLING * k, max(_MANY_CANDIDATES, int(_LEAST_OVERSAMPLING * k)))


def draw_candidates(
    candidates: Candidates, k: int, draw: Draw, on_round: Callable[[Candidates], None]
) -> Candidates:
    """Draw the candidates of k-means||, in `ROUNDS` passes over all tiles.

    Each round draws 2 k tiles without replacement. Above k = 400 it draws 800, or k / 2 if that is
    more. The probability of a tile is proportional to its weight times its squared distance to the
    nearest candidate.

    Parameters
    ----------
    candidates : Candidates
        The first candidate, or the candidates of an earlier round.
    k : int
        Largest number of clusters.
    draw : callable
        ``draw(tiles, n_draws, round)`` makes a pass.
    on_round : callable
        Called after each pass with the candidates, from which the rounds can resume.

    Returns
    -------
    Candidates
        `n_candidates` of them; fewer if all tiles lie on a candidate.

    References
    ----------
    B. Bahmani, B. Moseley, A. Vattani, R. Kumar and S. Vassilvitskii, Scalable k-means++,
    PVLDB 5 (2012), algorithm 2; rounds of a fixed size are a variant of its section 5.
    """
    for step in range(candidates.rounds + 1, ROUNDS + 1):
        drawn = draw(candidates.tiles, _n_draws(k), step)
        candidates = Candidates(np.concatenate([candidates.tiles, drawn.tiles]), step)
        on_round(candidates)
    return candidates
