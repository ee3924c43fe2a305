"""Lloyd's iterations over a plain function: no dask, no files."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskkm.kmeans import lloyd
from tests import reference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class Data:
    """Tiles in memory, measured by the reference; counts what it is asked for."""

    def __init__(self, tiles: NDArray[Any]) -> None:
        self.tiles = tiles
        self.measured: list[int] = []
        self.searched = 0

    def measure(
        self, stack: NDArray[np.float64], offsets: NDArray[np.intp], models: Sequence[int]
    ) -> NDArray[Any]:
        self.measured.append(len(offsets) - 1)
        return reference.statistics(self.tiles, stack, offsets)

    def farthest(
        self, stack: NDArray[np.float64], offsets: NDArray[np.intp], wanted: Sequence[int]
    ) -> list[lloyd.Farthest]:
        self.searched += 1
        found = []
        for m, n in enumerate(wanted):
            rows, own = reference.farthest(self.tiles, stack[offsets[m] : offsets[m + 1]], n)
            found.append(
                lloyd.Farthest(
                    np.zeros(len(rows)),
                    rows,
                    self.tiles[rows],
                    own.astype(np.int32),
                    np.ones(len(rows), int),
                )
            )
        return found

    def fit(
        self, *starts: Any, max_iter: int = 300, tol: float = 0.0
    ) -> tuple[dict[int, lloyd.Step], list[dict[int, lloyd.Step]]]:
        """Return every model's last step, and all rounds."""
        arrays = [np.asarray(start, np.float64) for start in starts]
        rounds = list(
            lloyd.iterate(arrays, self.measure, self.farthest, max_iter=max_iter, tol=tol)
        )
        return {i: step for steps in rounds for i, step in steps.items()}, rounds


def random_tiles(seed: int, n: int = 120, d: int = 5, dtype: str = "uint8") -> NDArray[Any]:
    """Tiles in a few loose clumps."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(30, 220, (6, d))
    return np.clip(centres[rng.integers(0, 6, n)] + rng.normal(0, 15, (n, d)), 0, 255).astype(dtype)


def test_two_clusters_by_hand() -> None:
    data = Data(np.array([[0], [2], [10], [12]], np.uint8))
    last, rounds = data.fit([[0], [2]])
    assert [steps[0].inertia for steps in rounds] == [164.0, 24.0, 4.0]
    assert [steps[0].iteration for steps in rounds] == [1, 2, 3]
    assert [steps[0].shift for steps in rounds] == [36.0, 10.0, 0.0]
    assert [steps[0].last for steps in rounds] == [False, False, True]
    assert last[0].centroids.tolist() == [[1.0], [11.0]]
    assert last[0].counts.tolist() == [2, 2]
    assert last[0].converged


def test_max_iter_stops_and_what_is_returned_belongs_together() -> None:
    data = Data(np.array([[0], [2], [10], [12]], np.uint8))
    last, rounds = data.fit([[0], [2]], max_iter=1)
    assert len(rounds) == 2  # one update, and a measure of what it led to
    assert (last[0].iteration, last[0].converged, last[0].last) == (1, False, True)
    assert last[0].centroids.tolist() == [[0.0], [8.0]]
    assert last[0].inertia == 24.0


def test_tol_is_relative_to_the_variance() -> None:
    # Variance of 0, 2, 10, 12 is 26; the second update shifts by 10 in all.
    data = Data(np.array([[0], [2], [10], [12]], np.uint8))
    for tol, iterations in ((10 / 26, 2), (9.99 / 26, 3)):
        last, _ = data.fit([[0], [2]], tol=tol)
        assert last[0].iteration == iterations
        assert last[0].converged
        assert last[0].inertia == 4.0


def test_models_leave_the_stack_when_they_are_done() -> None:
    tiles = random_tiles(0)
    data = Data(tiles)
    starts = [tiles[:k] for k in (1, 3, 6)]
    alone = [Data(tiles).fit(start)[0][0] for start in starts]
    together, rounds = data.fit(*starts)
    assert len(rounds) == max(step.iteration for step in alone)
    assert data.measured[0] == 3
    assert data.measured[-1] == 1
    for i, step in enumerate(alone):
        np.testing.assert_array_equal(together[i].centroids, step.centroids)
        assert together[i].inertia == step.inertia
        assert together[i].iteration == step.iteration


def test_empty_clusters_of_all_models_share_one_search() -> None:
    tiles = random_tiles(1)
    far = np.full((2, 5), 1e6)
    data = Data(tiles)
    last, _ = data.fit(np.vstack([tiles[:2], far]), np.vstack([tiles[5:6], far]), tiles[:3])
    assert data.searched == 1
    assert all(step.counts.min() > 0 for step in last.values())


def test_relocation_takes_the_farthest_first_and_the_first_on_ties() -> None:
    tiles = np.array([[100], [0], [200], [100], [103]], np.uint8)
    statistics = reference.statistics(tiles, np.array([[900.0], [100], [990]]), np.array([0, 3]))
    order, labels = reference.farthest(tiles, np.array([[900.0], [100], [990]]), 2)
    assert order.tolist() == [1, 2]
    moved = lloyd.relocate(
        statistics,
        lloyd.Farthest(np.zeros(2), order, tiles[order], labels.astype(np.int32), np.ones(2, int)),
    )
    assert moved[:, :-1].tolist() == [[0, 1], [303, 3], [200, 1]]


def test_relocation_leaves_a_light_rest_of_a_heavy_cluster() -> None:
    statistics = np.array([[10**15 + 1, 10**13 + 1, 0], [0, 0, 0]])
    far = lloyd.Farthest(
        np.zeros(1), np.zeros(1, int), np.array([[100]]), np.zeros(1, np.int32), np.array([10**13])
    )
    moved = lloyd.relocate(statistics, far)
    assert moved[:, :-1].tolist() == [[1, 1], [10**15, 10**13]]


def test_farthest_most_sorts_by_distance_then_index() -> None:
    found = lloyd.Farthest(
        np.array([1.0, 4.0, 4.0, 2.0]),
        np.array([7, 9, 3, 1]),
        np.arange(4)[:, None],
        np.zeros(4, np.int32),
        np.ones(4, int),
    )
    assert found.most(3).indices.tolist() == [3, 9, 1]
    assert found.most(0).tiles.shape == (0, 1)


@pytest.mark.parametrize("k", [2, 5])
def test_identical_tiles_end_with_every_centroid_on_them(k: int) -> None:
    data = Data(np.full((9, 4), 7, np.uint8))
    last, rounds = data.fit(np.arange(4.0 * k).reshape(k, 4))
    assert len(rounds) < 6
    assert last[0].inertia == 0.0
    assert last[0].counts.sum() == 9
    np.testing.assert_array_equal(last[0].centroids, np.full((k, 4), 7.0))


def test_more_clusters_than_distinct_tiles() -> None:
    tiles = np.array([[0, 0], [9, 9], [0, 0], [9, 9]], np.uint8)
    last, rounds = Data(tiles).fit(tiles[[0, 0, 1, 1]])
    assert len(rounds) < 6
    assert last[0].inertia == 0.0
    assert np.isfinite(last[0].centroids).all()


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    k=st.integers(1, 9),
    dtype=st.sampled_from(["uint8", "int16", "float64"]),
)
def test_inertia_never_rises_and_a_settled_model_is_a_fixed_point(
    seed: int, k: int, dtype: str
) -> None:
    tiles = random_tiles(seed, n=60, d=3, dtype=dtype)
    start = np.random.default_rng(seed).normal(128, 60, (k, 3))
    last, rounds = Data(tiles).fit(start)
    course = [steps[0].inertia for steps in rounds]
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(course))
    again, _ = Data(tiles).fit(last[0].centroids)
    np.testing.assert_array_equal(again[0].centroids, last[0].centroids)
    assert again[0].inertia == last[0].inertia


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 50),
    dtype=st.sampled_from(["uint8", "int8", "uint16", "int16"]),
)
def test_inertia_from_statistics_is_the_sum_of_squared_distances(
    seed: int, n: int, dtype: str
) -> None:
    rng = np.random.default_rng(seed)
    limits = np.iinfo(dtype)
    tiles = rng.integers(limits.min, limits.max, (n, 4), endpoint=True).astype(dtype)
    centroids = tiles[rng.integers(0, n, 3)] + rng.normal(0, 1, (3, 4)) * rng.choice([0, 1, 50])
    statistics = reference.statistics(tiles, centroids, np.array([0, 3]))
    direct = reference.distances(tiles, centroids).min(axis=1).sum()
    assert lloyd.inertia(statistics, centroids) == pytest.approx(direct, rel=1e-13, abs=1e-9)
    variance = lloyd.mean_variance(statistics, centroids)
    assert variance == pytest.approx(tiles.astype(float).var(axis=0).mean(), rel=1e-13)


def test_inertia_is_exact_where_int64_would_overflow() -> None:
    # A billion tiles, half 254 and half 255: sums of squares beyond 2**63.
    n, d = 10**9, 256
    statistics = np.array([[n // 2 * 509] * d + [n, n // 2 * (254**2 + 255**2) * d]])
    centroid = np.full((1, d), 254.5)
    assert lloyd.inertia(statistics, centroid) == n * d / 4
    assert lloyd.mean_variance(statistics, centroid) == 0.25


def test_inertia_of_tiles_on_their_centroids_is_zero_and_never_negative() -> None:
    tiles = np.repeat(np.array([[255] * 256, [254] * 256], np.uint8), 1000, axis=0)
    centroids = np.array([[255.0] * 256, [254.0] * 256])
    statistics = reference.statistics(tiles, centroids, np.array([0, 2]))
    assert lloyd.inertia(statistics, centroids) == 0.0


def test_the_notebooks_loop_ends_at_the_same_centroids() -> None:
    tiles = random_tiles(3)
    expected, labels = reference.notebook(tiles, tiles[:4] * 1.0, 100)
    last, _ = Data(tiles).fit(tiles[:4])
    np.testing.assert_array_equal(last[0].centroids, expected)
    np.testing.assert_array_equal(last[0].counts, np.bincount(labels))


def test_means_of_clusters_that_weigh_less_than_one_tile() -> None:
    statistics = np.array([[0.5, 1.0, 0.25, 5.0], [0.0, 0.0, 0.0, 0.0], [6.0, 3.0, 3.0, 15.0]])
    np.testing.assert_array_equal(lloyd.means(statistics), [[2, 4], [2, 1], [2, 1]])
