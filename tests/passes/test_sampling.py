"""Samples and races: who wins depends on seed, tile and mass only."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, strategies as st

from daskkm.passes.reductions import concatenate_fields
from daskkm.passes.sampling import DrawnTiles, first_indices, sample_indices, sample_size
from daskkm.passes.seeds import exponentials

if TYPE_CHECKING:
    from collections.abc import Callable


def test_sample_indices_of_many_tiles_are_uniform_without_replacement() -> None:
    indices = sample_indices(10**9, seed=0)
    assert len(np.unique(indices)) == len(indices) == 1 << 15
    assert (np.diff(indices) > 0).all()
    counts = np.bincount(indices // 10**8, minlength=10)
    # Chi-squared with 9 degrees of freedom: 27.9 is its 99.9 % quantile.
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 27.9


def test_sample_indices_of_a_size_are_as_many_or_all() -> None:
    assert sample_indices(1000, seed=0).tolist() == list(range(1000))
    assert len(sample_indices(1000, 0, 70)) == 70
    assert sample_indices(60, 0, 70).tolist() == list(range(60))


@pytest.mark.parametrize(
    ("n_tiles", "tile_bytes", "expected"),
    [(4000, 1, 1000), (3999, 1, 100), (10**6, 10, 100), (10**6, 9, 111)],
)
def test_sample_size_is_the_larger_where_tiles_are_four_times_as_many(
    override_sizes: Callable[..., None], n_tiles: int, tile_bytes: int, expected: int
) -> None:
    override_sizes(sample_tiles=100, large_sample_bytes=1000)
    assert sample_size(n_tiles, tile_bytes) == expected


def test_first_indices_of_a_seeding_do_not_depend_on_their_number() -> None:
    assert first_indices(10**6, 5, 3).tolist()[:2] == first_indices(10**6, 2, 3).tolist()
    assert len(set(first_indices(10**6, 5, 3)) | set(first_indices(10**6, 5, 4))) == 10


def test_race_is_won_in_proportion_to_mass() -> None:
    mass = np.array([0.0, 1, 4, 9, 0])
    tiles = np.arange(5)[:, None]
    wins = np.zeros(5)
    pairs = np.zeros((5, 5))
    for seed in range(4000):
        race = DrawnTiles.race(tiles, 0, exponentials(seed, 0, 0, 0, 5), mass, 2)
        assert race.tiles[:, 0].tolist() == race.indices.tolist()
        wins[race.indices[0]] += 1
        pairs[tuple(race.indices)] += 1
    np.testing.assert_allclose(wins / 4000, mass / 14, atol=0.03)
    assert pairs[3, 2] / 4000 == pytest.approx(9 / 14 * 4 / 5, abs=0.03)


def test_race_of_few_tiles_with_mass_draws_these_only() -> None:
    mass = np.array([0.0, 1, 4, 9, 0])
    drawn = DrawnTiles.race(np.arange(5)[:, None], 10, exponentials(0, 0, 0, 0, 5), mass, 9)
    assert sorted(drawn.indices) == [11, 12, 13]


@given(
    seed=st.integers(0, 2**32 - 1),
    cuts=st.lists(st.integers(0, 40), max_size=5),
    m=st.integers(0, 45),
)
def test_race_has_the_same_winners_in_any_blocks(seed: int, cuts: list[int], m: int) -> None:
    rng = np.random.default_rng(seed)
    tiles, mass = rng.integers(0, 9, (40, 2)), rng.integers(0, 3, 40).astype(float)

    def race(lo: int, hi: int) -> DrawnTiles:
        return DrawnTiles.race(
            tiles[lo:hi], lo, exponentials(seed, 0, 0, lo, hi - lo), mass[lo:hi], m
        )

    edges = [0, *sorted(cuts), 40]
    parts = [race(lo, hi) for lo, hi in pairwise(edges)]
    for field, expected in zip(concatenate_fields(parts).top(m), race(0, 40), strict=True):
        np.testing.assert_array_equal(field, expected)


def test_top_sorts_by_arrival_then_index() -> None:
    drawn = DrawnTiles(np.array([2.0, 1, 1, 3]), np.array([7, 9, 3, 1]), np.arange(4)[:, None])
    assert drawn.top(3).indices.tolist() == [3, 9, 7]
    assert drawn.top(0).tiles.shape == (0, 1)
