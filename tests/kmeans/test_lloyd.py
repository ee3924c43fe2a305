"""Lloyd iterations over a plain function: no dask, no files."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from daskkm.kernels.statistics import Statistics
from daskkm.kmeans import lloyd
from daskkm.passes.statistics import FarthestTiles
from tests import reference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Steps = dict[int, lloyd.Step]
TWO_PAIRS = np.array([[0], [2], [10], [12]], np.uint8)


class Data:
    """Tiles in memory, measured by the reference; counts calls."""

    def __init__(self, tiles: NDArray[Any]) -> None:
        self.tiles = tiles
        self.measured: list[int] = []
        self.searches = 0

    def measure(
        self, stack: NDArray[np.float64], offsets: NDArray[np.intp], models: Sequence[int]
    ) -> Statistics:
        assert len(models) == len(offsets) - 1
        self.measured.append(len(models))
        return Statistics(reference.statistics(self.tiles, stack, offsets))

    def find_farthest(
        self, stack: NDArray[np.float64], offsets: NDArray[np.intp], wanted: Sequence[int]
    ) -> list[FarthestTiles]:
        self.searches += 1
        return [
            far(self.tiles, *reference.farthest(self.tiles, stack[lo:hi], n))
            for (lo, hi), n in zip(itertools.pairwise(offsets), wanted, strict=True)
        ]

    def fit(
        self, *initial: Any, max_iter: int = 300, tol: float = 0.0
    ) -> tuple[Steps, list[Steps]]:
        """Return the last step of each model, and the steps of each pass."""
        starts = [
            start if isinstance(start, lloyd.Step) else np.asarray(start, np.float64)
            for start in initial
        ]
        passes: list[Steps] = []
        last = lloyd.iterate(
            starts,
            self.measure,
            self.find_farthest,
            max_iter=max_iter,
            tol=tol,
            on_steps=passes.append,
        )
        return last, passes


def far(tiles: NDArray[Any], rows: NDArray[np.intp], labels: NDArray[np.intp]) -> FarthestTiles:
    """Return the tiles in `rows` as tiles far from the centroids of `labels`."""
    ones = np.ones(len(rows), int)
    return FarthestTiles(np.zeros(len(rows)), rows, tiles[rows], labels.astype(np.int32), ones)


def random_tiles(seed: int, n: int = 120, d: int = 5, dtype: str = "uint8") -> NDArray[Any]:
    """Return tiles in a few loose clumps."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(30, 220, (6, d))
    return np.clip(centres[rng.integers(0, 6, n)] + rng.normal(0, 15, (n, d)), 0, 255).astype(dtype)


def test_iterate_two_clusters_gives_the_steps_of_a_calculation_by_hand() -> None:
    last, passes = Data(TWO_PAIRS).fit([[0], [2]])
    assert [steps[0].inertia for steps in passes] == [164.0, 24.0, 4.0]
    assert [steps[0].iteration for steps in passes] == [1, 2, 3]
    assert [steps[0].shift for steps in passes] == [36.0, 10.0, 0.0]
    assert [steps[0].last for steps in passes] == [False, False, True]
    assert last[0].centroids.tolist() == [[1.0], [11.0]]
    assert last[0].counts.tolist() == [2, 2]
    assert last[0].converged
    assert last[0] is passes[-1][0]


def test_iterate_stopped_by_max_iter_measures_the_last_centroids() -> None:
    last, passes = Data(TWO_PAIRS).fit([[0], [2]], max_iter=1)
    assert len(passes) == 2  # one update, and a measure of its centroids
    assert (last[0].iteration, last[0].converged, last[0].last) == (1, False, True)
    assert last[0].centroids.tolist() == [[0.0], [8.0]]
    assert last[0].inertia == 24.0


def test_iterate_tol_is_relative_to_the_variance() -> None:
    # The variance of 0, 2, 10, 12 is 26; the squared shifts of the second update sum to 10.
    for tol, iterations in ((10 / 26, 2), (9.99 / 26, 3)):
        last, _ = Data(TWO_PAIRS).fit([[0], [2]], tol=tol)
        assert last[0].iteration == iterations
        assert last[0].converged
        assert last[0].inertia == 4.0


def test_iterate_several_models_drops_each_from_the_stack_when_it_is_done() -> None:
    tiles = random_tiles(0)
    data = Data(tiles)
    initial = [tiles[:k] for k in (1, 3, 6)]
    alone = [Data(tiles).fit(start)[0][0] for start in initial]
    together, passes = data.fit(*initial)
    assert len(passes) == max(step.iteration for step in alone)
    assert data.measured[0] == 3
    assert data.measured[-1] == 1
    for i, step in enumerate(alone):
        np.testing.assert_array_equal(together[i].centroids, step.centroids)
        assert together[i].inertia == step.inertia
        assert together[i].iteration == step.iteration


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), max_iter=st.integers(1, 9), tol=st.sampled_from([0.0, 1e-2]))
def test_iterate_from_the_steps_after_any_pass_ends_in_the_same_bits(
    seed: int, max_iter: int, tol: float
) -> None:
    tiles = random_tiles(seed, n=60)
    initial = [tiles[:2], np.vstack([tiles[:3], np.full((1, 5), 1e6)]), tiles[:5]]
    stop: dict[str, Any] = {"max_iter": max_iter, "tol": tol}
    whole, passes = Data(tiles).fit(*initial, **stop)
    known: Steps = {}
    for n, steps in enumerate(passes, 1):
        known |= steps
        rest, more = Data(tiles).fit(*(known[i] for i in range(3)), **stop)
        assert n + len(more) == len(passes)
        assert rest.keys() == {i for i, step in known.items() if not step.last}
        for i, step in (known | rest).items():
            np.testing.assert_array_equal(step.centroids, whole[i].centroids)
            np.testing.assert_array_equal(step.statistics.table, whole[i].statistics.table)
            assert (step.iteration, step.inertia) == (whole[i].iteration, whole[i].inertia)


def test_iterate_empty_clusters_of_all_models_share_one_search() -> None:
    tiles = random_tiles(1)
    distant = np.full((2, 5), 1e6)
    data = Data(tiles)
    last, _ = data.fit(np.vstack([tiles[:2], distant]), np.vstack([tiles[5:6], distant]), tiles[:3])
    assert data.searches == 1
    assert all(step.counts.min() > 0 for step in last.values())


def test_relocate_moves_the_farthest_first_and_the_first_of_equals() -> None:
    tiles = np.array([[100], [0], [200], [100], [103]], np.uint8)
    centroids = np.array([[900.0], [100], [990]])
    rows, labels = reference.farthest(tiles, centroids, 2)
    assert rows.tolist() == [1, 2]
    table = reference.statistics(tiles, centroids, np.array([0, 3]))
    moved = lloyd.relocate(Statistics(table), far(tiles, rows, labels))
    assert moved.sums.tolist() == [[0], [303], [200]]
    assert moved.counts.tolist() == [1, 3, 1]


def test_relocate_from_a_heavy_cluster_leaves_its_light_rest() -> None:
    table = np.array([[10**15 + 1, 10**13 + 1, 0], [0, 0, 0]])
    tile = far(np.array([[100]]), np.zeros(1, int), np.zeros(1, int))
    moved = lloyd.relocate(Statistics(table), tile._replace(weights=np.array([10**13])))
    assert moved.sums.tolist() == [[1], [10**15]]
    assert moved.counts.tolist() == [1, 10**13]


def test_relocate_leaves_its_argument_alone() -> None:
    table = np.array([[6, 3, 14], [0, 0, 0]])
    before = table.copy()
    lloyd.relocate(Statistics(table), far(np.array([[3]]), np.zeros(1, int), np.zeros(1, int)))
    np.testing.assert_array_equal(table, before)


@pytest.mark.parametrize("k", [2, 5])
def test_iterate_identical_tiles_ends_with_each_centroid_on_them(k: int) -> None:
    last, passes = Data(np.full((9, 4), 7, np.uint8)).fit(np.arange(4.0 * k).reshape(k, 4))
    assert len(passes) < 6
    assert last[0].inertia == 0.0
    assert last[0].counts.sum() == 9
    np.testing.assert_array_equal(last[0].centroids, np.full((k, 4), 7.0))


def test_iterate_more_clusters_than_distinct_tiles_ends_soon() -> None:
    tiles = np.array([[0, 0], [9, 9], [0, 0], [9, 9]], np.uint8)
    last, passes = Data(tiles).fit(tiles[[0, 0, 1, 1]])
    assert len(passes) < 6
    assert last[0].inertia == 0.0
    assert np.isfinite(last[0].centroids).all()


@settings(max_examples=80)
@given(
    seed=st.integers(0, 2**32 - 1),
    k=st.integers(1, 9),
    dtype=st.sampled_from(["uint8", "int16", "float64"]),
)
def test_iterate_never_raises_inertia_and_ends_in_a_fixed_point(
    seed: int, k: int, dtype: str
) -> None:
    tiles = random_tiles(seed, n=60, d=3, dtype=dtype)
    start = np.random.default_rng(seed).normal(128, 60, (k, 3))
    last, passes = Data(tiles).fit(start)
    inertias = [steps[0].inertia for steps in passes]
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(inertias))
    again, _ = Data(tiles).fit(last[0].centroids)
    np.testing.assert_array_equal(again[0].centroids, last[0].centroids)
    assert again[0].inertia == last[0].inertia


def test_iterate_ends_at_the_centroids_of_the_notebook() -> None:
    tiles = random_tiles(3)
    expected, labels = reference.notebook(tiles, tiles[:4] * 1.0, 100)
    last, _ = Data(tiles).fit(tiles[:4])
    np.testing.assert_array_equal(last[0].centroids, expected)
    np.testing.assert_array_equal(last[0].counts, np.bincount(labels))


@pytest.mark.parametrize(
    ("weights", "dtype"), [([3, 1], np.int64), ([3.0, 1.0], np.int64), ([2.5, 1.5], np.float64)]
)
def test_step_counts_are_integers_if_all_are_whole(weights: list[float], dtype: type) -> None:
    table = np.array([[0, weight, 0] for weight in weights])
    none = np.zeros((2, 1))
    step = lloyd.Step(1, none, Statistics(table), 0.0, 0.0, True, True, none)
    assert step.counts.dtype == dtype
    assert step.counts.tolist() == weights


def test_best_restarts_returns_the_first_of_equal_inertia_by_ascending_k() -> None:
    none = np.zeros((1, 1))

    def step(inertia: float) -> lloyd.Step:
        return lloyd.Step(1, none, Statistics(none), inertia, 0.0, True, True, none)

    steps = {(5, 0): step(2.0), (3, 0): step(9.0), (3, 1): step(4.0), (3, 2): step(4.0)}
    best = lloyd.best_restarts(steps)
    assert [(k, restart) for k, (restart, _) in best.items()] == [(3, 1), (5, 0)]
    assert best[3][1] is steps[3, 1]
