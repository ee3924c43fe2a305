"""Rounds of k-means||: how many candidates, and resumed from any round."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from daskkm.kmeans.kmeans_parallel import ROUNDS, Candidates, draw_candidates, n_candidates
from daskkm.passes.sampling import DrawnTiles

if TYPE_CHECKING:
    from numpy.typing import NDArray


def draw(tiles: NDArray[Any], n_draws: int, step: int) -> DrawnTiles:
    """Draw tiles that tell the round and the number of candidates before it."""
    values = np.array([[step, len(tiles)]] * n_draws)
    return DrawnTiles(np.ones(n_draws), np.arange(n_draws), values)


def test_n_candidates_is_10_k_but_no_more_than_4000_or_2_and_a_half_k() -> None:
    sizes = [n_candidates(k) for k in range(1, 10_000)]
    assert sizes == sorted(sizes)
    assert sizes[:400] == [1 + 10 * k for k in range(1, 401)]
    assert all(2.5 * k - 5 < size <= max(4001, 2.5 * k + 1) for k, size in enumerate(sizes, 1))


def test_draw_candidates_from_any_round_draws_the_same() -> None:
    states = [Candidates(np.zeros((1, 2), int), rounds=0)]
    drawn = draw_candidates(states[0], 3, draw, states.append)
    assert len(drawn.tiles) == n_candidates(3)
    assert [state.rounds for state in states] == list(range(ROUNDS + 1))
    for state in states:
        np.testing.assert_array_equal(
            draw_candidates(state, 3, draw, lambda _: None).tiles, drawn.tiles
        )
