"""Starting centroids: what a draw may depend on, and what it may not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskkm.kmeans import seeding

if TYPE_CHECKING:
    from numpy.typing import NDArray


def make_tiles(seed: int, n: int, distinct: int) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (distinct, 6), np.uint8)[rng.integers(0, distinct, n)]


def starts(*args: Any) -> dict[tuple[int, int], NDArray[np.float64]]:
    """Those of all restarts."""
    return {name: start for drawn in seeding.starts(*args) for name, start in drawn.items()}


def ones(tiles: NDArray[Any]) -> NDArray[np.int64]:
    return np.ones(len(tiles), np.int64)


def test_few_tiles_are_all_in_the_sample() -> None:
    assert seeding.sample_indices(1000, seed=0).tolist() == list(range(1000))


def test_many_tiles_are_sampled_uniformly_without_replacement() -> None:
    indices = seeding.sample_indices(10**9, seed=0)
    assert len(np.unique(indices)) == len(indices) == 1 << 15
    assert (np.diff(indices) > 0).all()
    counts = np.bincount(indices // 10**8, minlength=10)
    # Chi-squared with 9 degrees of freedom: 27.9 is its 99.9 % quantile.
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 27.9


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(9, 60),
    distinct=st.integers(1, 60),
    method=st.sampled_from(["k-means++", "random"]),
)
def test_the_first_k_of_a_longer_seeding_are_the_seeding_of_k(
    seed: int, n: int, distinct: int, method: str
) -> None:
    sample = make_tiles(seed, n, distinct)
    together = starts(sample, None, [2, 5, 9], 3, method, seed)
    assert list(together) == [(k, r) for r in range(3) for k in (2, 5, 9)]
    for (k, restart), start in together.items():
        alone = starts(sample, None, [k], restart + 1, method, seed)[k, restart]
        np.testing.assert_array_equal(start, alone)
        # Every centroid is a tile, and none is drawn twice while there are others.
        held = {tuple(tile) for tile in sample.tolist()}
        drawn = {tuple(tile) for tile in start.tolist()}
        assert drawn <= held
        assert len(drawn) == min(k, len(held))


def test_restarts_and_seeds_differ() -> None:
    sample = make_tiles(0, 500, 500)
    drawn = starts(sample, None, [4], 5, "k-means++", 0)
    others = starts(sample, None, [4], 5, "k-means++", 1)
    assert len({start.tobytes() for start in (*drawn.values(), *others.values())}) == 10


def test_draws_do_not_depend_on_the_type_that_holds_the_tiles() -> None:
    """float32 and float64 products are both exact, and so lead to the same draws."""
    sample = make_tiles(0, 3000, 3000)
    assert seeding._exact_type(sample) is np.float32
    wide = sample.astype(np.uint16)
    assert seeding._exact_type(wide) is np.float64
    for restart in range(5):
        np.testing.assert_array_equal(
            next(
                seeding.kmeans_plusplus(sample, ones(sample), 20, [np.random.default_rng(restart)])
            ),
            next(seeding.kmeans_plusplus(wide, ones(wide), 20, [np.random.default_rng(restart)])),
        )


@pytest.mark.parametrize("seed", range(5))
def test_kmeans_plusplus_finds_well_separated_clusters(seed: int) -> None:
    rng = np.random.default_rng(seed)
    centres = np.repeat([[0], [80], [160], [240]], 10, axis=1)
    own = rng.integers(0, 4, 400)
    sample = (centres[own] + rng.integers(0, 9, (400, 10))).astype(np.uint8)
    (chosen,) = seeding.kmeans_plusplus(sample, ones(sample), 4, [np.random.default_rng(seed)])
    assert sorted(own[chosen]) == [0, 1, 2, 3]


@pytest.mark.parametrize("offset", [0, 1e8, -1e12])
def test_float_tiles_far_from_zero(offset: float) -> None:
    sample = np.array([[offset], [offset + 1], [offset + 2]])
    for chosen in seeding.kmeans_plusplus(
        sample, ones(sample), 3, [np.random.default_rng(i) for i in range(20)]
    ):
        assert sorted(chosen) == [0, 1, 2]


def test_distinct_tiles_and_their_weights() -> None:
    tiles = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, -0.0], [5.0, 5.0], [0.0, 2.0]])
    found, weights = seeding.distinct(tiles, np.array([1, 2, 3, 0, 4]))
    assert found.tolist() == [[0, 2], [1, 0]]
    assert weights.tolist() == [6, 4]
    found, weights = seeding.distinct(tiles, None)
    assert found.tolist() == [[0, 2], [1, 0], [5, 5]]
    assert weights.tolist() == [2, 2, 1]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(9, 60),
    method=st.sampled_from(["k-means++", "random"]),
)
def test_a_weight_is_a_number_of_tiles_in_any_order(seed: int, n: int, method: str) -> None:
    rng = np.random.default_rng(seed)
    sample = make_tiles(seed, n, 30)
    weights = rng.integers(0, 4, n) | (np.arange(n) == 0)
    repeated = rng.permutation(sample.repeat(weights, axis=0))
    weighted = starts(sample, weights, [2, 5], 3, method, seed)
    for name, start in starts(repeated, None, [2, 5], 3, method, seed).items():
        np.testing.assert_array_equal(start, weighted[name])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**40), st.lists(st.integers(0, 9), max_size=9), st.integers(0, 3))
def test_arrivals_are_those_of_any_blocks(first: int, sizes: list[int], step: int) -> None:
    parts, start = [], first
    for n in sizes:
        parts.append(seeding.arrivals(7, 1, step, start, n))
        start += n
    whole = seeding.arrivals(7, 1, step, first, start - first)
    np.testing.assert_array_equal(np.concatenate([*parts, []]), whole)
    assert (whole > 0).all()


def test_arrivals_are_exponential_and_independent() -> None:
    streams = [
        seeding.arrivals(*names, 0, 200_000)
        for names in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))
    ]
    for stream in streams:
        for t in (0.01, 0.5, 1, 3):  # five standard deviations
            assert np.mean(stream > t) == pytest.approx(np.exp(-t), abs=5 * 0.5 / 200_000**0.5)
    correlation = np.corrcoef([*streams, np.roll(streams[0], 1)])
    assert np.abs(correlation - np.eye(5)).max() < 5 / 200_000**0.5


def test_the_logarithm() -> None:
    u = np.concatenate(
        [np.geomspace(2.0**-53, 0.999, 100_000), 1 - np.geomspace(2.0**-53, 0.1, 999)]
    )
    np.testing.assert_allclose(seeding._minus_log(u), -np.log(u), rtol=1e-12)


def test_a_race_is_won_in_proportion_to_mass() -> None:
    mass = np.array([0.0, 1, 4, 9, 0])
    tiles = np.arange(5)[:, None]
    wins = np.zeros(5)
    pairs = np.zeros((5, 5))
    for seed in range(4000):
        race = seeding.Drawn.race(tiles, 0, seeding.arrivals(seed, 0, 0, 0, 5), mass, 2)
        assert race.tiles[:, 0].tolist() == race.indices.tolist()
        wins[race.indices[0]] += 1
        pairs[tuple(race.indices)] += 1
    np.testing.assert_allclose(wins / 4000, mass / 14, atol=0.03)
    assert pairs[3, 2] / 4000 == pytest.approx(9 / 14 * 4 / 5, abs=0.03)
    few = seeding.Drawn.race(tiles, 10, seeding.arrivals(0, 0, 0, 0, 5), mass, 9)
    assert sorted(few.indices) == [11, 12, 13]


def test_a_draw_is_proportional_to_the_squared_distance() -> None:
    # From 0, tiles 1, 2 and 3 lie at 1, 4 and 9: alone, they would be drawn in that ratio.
    # The best of two draws leaves the least potential: from 2 that is 1 + 1, from 3 1 + 1 too.
    sample = np.array([[0], [1], [2], [3]], np.uint8)
    seconds = []
    rngs = [np.random.default_rng(seed) for seed in range(3000)]
    for first, second in seeding.kmeans_plusplus(sample, ones(sample), 2, rngs):
        if first == 0:
            seconds.append(int(second))
    share = np.bincount(seconds, minlength=4) / len(seconds)
    # 1 leaves 1 + 4, so it is kept only if both draws are 1: (1/14)**2. Of 2 and 3, which leave
    # 2 each, the first drawn is kept, or the only one: 4 to 9.
    expected = np.array([0, 1 / 196, 195 / 196 * 4 / 13, 195 / 196 * 9 / 13])
    np.testing.assert_allclose(share, expected, atol=0.05)
