"""Greedy k-means++ and uniform draws: reproducibility and distribution."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from daskkm.kmeans import kmeans_plusplus
from daskkm.kmeans.kmeans_plusplus import distinct_tiles, draw_in_memory, draw_plusplus
from daskkm.kmeans.options import FitOptions
from daskkm.passes.draws import Outcome, Trial
from daskkm.passes.sampling import DrawnTiles

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

METHODS = st.sampled_from(["k-means++", "random"])


def make_tiles(seed: int, n: int, distinct: int) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (distinct, 6), np.uint8)[rng.integers(0, distinct, n)]


def initial_centroids(*args: Any) -> dict[tuple[int, int], NDArray[np.float64]]:
    """Return the draws of all restarts."""
    return {name: start for drawn in draw_in_memory(*args) for name, start in drawn.items()}


def generators(n: int) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in range(n)]


def ones(tiles: NDArray[Any]) -> NDArray[np.int64]:
    return np.ones(len(tiles), np.int64)


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(9, 60),
    distinct=st.integers(1, 60),
    method=METHODS,
)
def test_draw_in_memory_for_several_k_starts_each_alike(
    seed: int, n: int, distinct: int, method: str
) -> None:
    sample = make_tiles(seed, n, distinct)
    together = initial_centroids(sample, None, [2, 5, 9], 3, method, seed)
    assert list(together) == [(k, r) for r in range(3) for k in (2, 5, 9)]
    tiles = set(map(tuple, sample.tolist()))
    for (k, restart), centroids in together.items():
        alone = initial_centroids(sample, None, [k], restart + 1, method, seed)[k, restart]
        np.testing.assert_array_equal(centroids, alone)
        # Each centroid is a tile, and none is drawn twice while there are others.
        drawn = set(map(tuple, centroids.tolist()))
        assert drawn <= tiles
        assert len(drawn) == min(k, len(tiles))


def test_draw_in_memory_of_other_restarts_and_seeds_differs() -> None:
    sample = make_tiles(0, 500, 500)
    drawn = initial_centroids(sample, None, [4], 5, "k-means++", 0)
    others = initial_centroids(sample, None, [4], 5, "k-means++", 1)
    assert len({start.tobytes() for start in (*drawn.values(), *others.values())}) == 10


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(9, 60), method=METHODS)
def test_draw_in_memory_of_weight_w_is_that_of_w_tiles_in_any_order(
    seed: int, n: int, method: str
) -> None:
    rng = np.random.default_rng(seed)
    sample = make_tiles(seed, n, 30)
    weights = rng.integers(0, 4, n) | (np.arange(n) == 0)
    repeated = rng.permutation(sample.repeat(weights, axis=0))
    weighted = initial_centroids(sample, weights, [2, 5], 3, method, seed)
    for name, start in initial_centroids(repeated, None, [2, 5], 3, method, seed).items():
        np.testing.assert_array_equal(start, weighted[name])


def test_draw_plusplus_does_not_depend_on_the_type_of_the_tiles() -> None:
    # Products of uint8 are exact in float32, those of uint16 in float64.
    sample = make_tiles(0, 3000, 3000)
    wide = sample.astype(np.uint16)
    assert kmeans_plusplus._exact_float(sample) is np.float32
    assert kmeans_plusplus._exact_float(wide) is np.float64
    narrow = draw_plusplus(sample, ones(sample), 20, generators(5))
    for rows, other in zip(narrow, draw_plusplus(wide, ones(wide), 20, generators(5)), strict=True):
        np.testing.assert_array_equal(rows, other)


@pytest.mark.parametrize("seed", range(5))
def test_draw_plusplus_of_separate_clusters_draws_one_tile_of_each(seed: int) -> None:
    rng = np.random.default_rng(seed)
    centres = np.repeat([[0], [80], [160], [240]], 10, axis=1)
    own = rng.integers(0, 4, 400)
    sample = (centres[own] + rng.integers(0, 9, (400, 10))).astype(np.uint8)
    (chosen,) = draw_plusplus(sample, ones(sample), 4, [np.random.default_rng(seed)])
    assert sorted(own[chosen]) == [0, 1, 2, 3]


@pytest.mark.parametrize("offset", [0, 1e8, -1e12])
def test_draw_plusplus_of_floats_far_from_zero_draws_no_tile_twice(offset: float) -> None:
    sample = np.array([[offset], [offset + 1], [offset + 2]])
    for chosen in draw_plusplus(sample, ones(sample), 3, generators(20)):
        assert sorted(chosen) == [0, 1, 2]


def test_draw_plusplus_is_proportional_to_the_squared_distance() -> None:
    # From 0, tiles 1, 2 and 3 are at squared distances 1, 4 and 9: one draw has this ratio. The
    # better of two draws is chosen: 2 and 3 leave a potential of 2, and 1 leaves 1 + 4.
    sample = np.array([[0], [1], [2], [3]], np.uint8)
    drawn = draw_plusplus(sample, ones(sample), 2, generators(3000))
    seconds = [int(second) for first, second in drawn if first == 0]
    share = np.bincount(seconds, minlength=4) / len(seconds)
    # 1 is chosen only if both draws are 1: (1/14)**2. Of 2 and 3 the first drawn is chosen, or the
    # only one: 4 to 9.
    expected = np.array([0, 1 / 196, 195 / 196 * 4 / 13, 195 / 196 * 9 / 13])
    np.testing.assert_allclose(share, expected, atol=0.05)


def test_distinct_tiles_are_ordered_with_the_sums_of_their_weights() -> None:
    tiles = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, -0.0], [5.0, 5.0], [0.0, 2.0]])
    distinct, weights = distinct_tiles(tiles, np.array([1, 2, 3, 0, 4]))
    assert distinct.tolist() == [[0, 2], [1, 0]]
    assert weights.tolist() == [6, 4]
    distinct, weights = distinct_tiles(tiles, None)
    assert distinct.tolist() == [[0, 2], [1, 0], [5, 5]]
    assert weights.tolist() == [2, 2, 1]


def draw_in_passes(k: int, start: float, try_candidates: Callable[..., list[Outcome]]) -> Any:
    """Return k centroids drawn by k-means++ in passes made by `try_candidates`."""
    runner: Any = SimpleNamespace(try_candidates=try_candidates)
    recorder: Any = SimpleNamespace(record=lambda seeding: None)
    trials = [Trial(np.empty((0, 1)), np.array([[start]]))]
    options = FitOptions.validate([k], random_state=0)
    return kmeans_plusplus.draw_in_passes(runner, options, recorder, trials)[k, 0].tolist()


def test_draw_in_passes_chooses_the_candidate_of_least_potential() -> None:
    def try_candidates(
        trials: Sequence[Trial], n_draws: int, seed: int, step: int
    ) -> list[Outcome]:
        """Return outcomes for tiles 0 to 9 on a line; draw the tiles from `step` on, in order."""
        ((chosen, candidates),) = trials
        tiles = np.arange(10.0)
        potentials = [
            float(np.square(tiles[:, None] - np.append(chosen, candidate)).min(axis=1).sum())
            for candidate in candidates
        ]
        indices = np.arange(step, step + n_draws)
        drawn = DrawnTiles(np.ones(n_draws), indices, tiles[indices][:, None])
        return [Outcome(potentials, [drawn] * len(candidates))]

    # The tiles 1 and 2 are the candidates: 2 leaves less.
    assert kmeans_plusplus.n_candidates(1) == 2
    assert draw_in_passes(2, 0.0, try_candidates) == [[0.0], [2.0]]


def test_draw_in_passes_of_identical_tiles_repeats_the_last() -> None:
    def try_candidates(trials: Sequence[Trial], *_: int) -> list[Outcome]:
        none = DrawnTiles(np.empty(0), np.empty(0, int), np.empty((0, 1)))
        n = len(trials[0].candidates)
        return [Outcome([0.0] * n, [none] * n)]

    assert draw_in_passes(3, 7.0, try_candidates) == [[7.0], [7.0], [7.0]]
