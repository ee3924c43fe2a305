"""Results of KMeans are those of scikit-learn from the same centroids, for any kind of array."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import dask
import dask.array as da
import numpy as np
import pytest
import sklearn.cluster
import zarr
from threadpoolctl import threadpool_limits

from daskkm import KMeans, fit_sweep
from tests import reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray


class Case(NamedTuple):
    """Tiles and options of a fit."""

    seed: int
    dtype: str
    weights: str
    tol: float
    max_iter: int
    empties: int  # initial centroids too distant to get a tile
    lazy: str  # kind of array beside NumPy's

    def __str__(self) -> str:
        return (
            f"{self.seed}: {self.dtype}, {self.weights} weights, tol {self.tol:g}, "
            f"max_iter {self.max_iter}, {self.empties} empty, {self.lazy}"
        )


class Problem(NamedTuple):
    """Tiles of a case, their weights and initial centroids."""

    tiles: NDArray[Any]
    weights: NDArray[Any] | None
    start: NDArray[np.float64]


def make(case: Case) -> Problem:
    """Draw the tiles around k centres, so that clusters overlap; n, d and k differ too."""
    rng = np.random.default_rng(case.seed)
    n, d, k = rng.integers([120, 1, 3], [320, 20, 9], endpoint=True)
    centres = rng.uniform(40, 210, (k + 2, d))
    tiles = centres[rng.integers(0, len(centres), n)] + rng.normal(0, 22, (n, d))
    if case.dtype == "uint8":
        tiles = tiles.clip(0, 255)
    elif case.dtype == "int16":
        tiles = (tiles - 120) * 200
    tiles = tiles.clip(-32768, 32767).astype(case.dtype)
    start = tiles[rng.choice(n, k, replace=False)] + rng.normal(0, 0.01, (k, d))
    start[rng.choice(k, case.empties, replace=False)] += 1e6
    # scikit-learn also relocates tiles that weigh nothing, which we never do: tiles weigh
    # nothing only where no cluster starts empty.
    least = 0 if case.empties == 0 else 1
    weights: NDArray[Any] | None = None
    if case.weights == "whole":
        weights = rng.integers(least, 4, n).astype(rng.choice(["int64", "uint8", "float64"]))
    elif case.weights == "fractional":
        weights = rng.uniform(0.1, 3, n) * (rng.random(n) >= 0.1 * (1 - least))
    return Problem(tiles, weights, start)


def in_zarr(tiles: NDArray[Any]) -> zarr.Array[Any]:
    array = zarr.create_array({}, shape=tiles.shape, chunks=(110, 5), dtype=tiles.dtype)
    array[:] = tiles
    return array


def of_unknown_size(tiles: NDArray[Any]) -> da.Array:
    """Return the tiles as a selection from others, of unknown number."""
    doubled = da.from_array(np.repeat(tiles, 2, axis=0), chunks=(251, -1))
    return doubled[da.from_array(np.arange(len(doubled)) % 2 == 0, chunks=251)]


LAZY: dict[str, Callable[[NDArray[Any]], Any]] = {
    "rows": lambda tiles: da.from_array(tiles, chunks=(111, -1)),
    "columns": lambda tiles: da.from_array(tiles, chunks=(160, (tiles.shape[1] + 1) // 2)),
    "empty blocks": lambda tiles: da.from_array(tiles, chunks=((0, 50, 0, len(tiles) - 50), -1)),
    "unknown size": of_unknown_size,
    "zarr": in_zarr,
}


def cases() -> list[Case]:
    """Every dtype under every kind of weights, with every second of 15 starts and stops."""
    dtypes = ["uint8", "int16", "float32", "float64"]
    weights = ["no", "whole", "fractional"]
    stops = [(0, 300), (1e-4, 300), (1e-2, 300), (1e-4, 3), (0, 1)]
    found = []
    for seed, (dtype, kind, (tol, max_iter), some) in enumerate(
        product(dtypes, weights, stops, range(3))
    ):
        if seed % 2:
            continue
        # The third of each three leaves two or three clusters empty, in turn.
        empties = some + (some == 2) * (seed // 3 % 2)
        # Each way to start and to stop meets every kind of array.
        lazy = list(LAZY)[(seed + seed // 15) % len(LAZY)]
        found.append(Case(seed, dtype, kind, tol, max_iter, empties, lazy))
    return found


def fitted(case: Case, problem: Problem, X: Any, weights: Any) -> KMeans:
    k = len(problem.start)
    model = KMeans(k, init=problem.start, n_init=1, max_iter=case.max_iter, tol=case.tol)
    with dask.config.set(scheduler="synchronous"):
        model.fit(X, sample_weight=weights)
        model.labels_ = np.asarray(model.labels_)
    return model


def fitted_peer(case: Case, problem: Problem) -> sklearn.cluster.KMeans:
    """Fit scikit-learn to float64 copies of the same values."""
    return sklearn.cluster.KMeans(
        len(problem.start),
        init=problem.start,
        n_init=1,
        max_iter=case.max_iter,
        tol=case.tol,
        algorithm="lloyd",
    ).fit(problem.tiles.astype(np.float64), sample_weight=problem.weights)


def in_the_order_of(peer: sklearn.cluster.KMeans, model: KMeans, empty: Any) -> NDArray[np.intp]:
    """Return the order of our centroids that corresponds to the peer's.

    Several empty clusters take the farthest tiles in the order of their distances, but
    scikit-learn's in that of a partition: which of them takes which may differ, no more.
    """
    order = reference.distances(peer.cluster_centers_, model.cluster_centers_).argmin(axis=1)
    assert sorted(order) == list(range(len(order)))
    filled = np.setdiff1d(np.arange(len(order)), empty)
    np.testing.assert_array_equal(order[filled], filled)
    return np.asarray(order)


def assert_same_answer(model: KMeans, peer: sklearn.cluster.KMeans, problem: Problem) -> None:
    empty = np.flatnonzero((problem.start > 5e5).any(axis=1))
    order = np.arange(len(problem.start))
    if len(empty) > 1:
        order = in_the_order_of(peer, model, empty)
    assert model.n_iter_ == peer.n_iter_
    np.testing.assert_array_equal(model.labels_, order[peer.labels_])
    # Means near 0 are differences of numbers as large as the tiles.
    far = 1e-12 * np.abs(problem.tiles.astype(np.float64)).max()
    np.testing.assert_allclose(
        model.cluster_centers_[order], peer.cluster_centers_, rtol=1e-9, atol=far
    )
    assert model.inertia_ == pytest.approx(peer.inertia_, rel=1e-10)
    counts = np.bincount(model.labels_, problem.weights, len(order))
    np.testing.assert_allclose(model.fitted_model.counts_, counts, rtol=1e-12)


def assert_same_bits(model: KMeans, other: KMeans) -> None:
    assert model.inertia_ == other.inertia_
    np.testing.assert_array_equal(model.cluster_centers_, other.cluster_centers_)
    np.testing.assert_array_equal(model.labels_, other.labels_)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Keep scikit-learn's threads from waiting for each other: the tiles are few."""
    with threadpool_limits(1):
        yield


@pytest.mark.parametrize("case", cases(), ids=str)
def test_fit_of_each_case_is_that_of_scikit_learn(case: Case) -> None:
    problem = make(case)
    peer = fitted_peer(case, problem)
    whole = fitted(case, problem, problem.tiles, problem.weights)
    assert_same_answer(whole, peer, problem)
    weights = problem.weights
    if weights is not None and case.seed % 4:
        weights = da.from_array(weights, chunks=150)
    lazy = fitted(case, problem, LAZY[case.lazy](problem.tiles), weights)
    assert_same_answer(lazy, peer, problem)
    if problem.tiles.dtype.kind != "f" and case.weights != "fractional":
        assert_same_bits(lazy, whole)


@pytest.mark.parametrize("seed", range(3))
def test_fit_sweep_ends_at_the_centroids_of_the_notebook(seed: int) -> None:
    case = Case(seed, "uint8", "no", 0, 100, 0, "rows")
    tiles, _, start = make(case)
    expected, labels = reference.notebook(tiles, start, case.max_iter)
    model = fit_sweep(tiles, [len(start)], init=start, tol=0).models[len(start)]
    np.testing.assert_array_equal(model.cluster_centers_, expected)
    np.testing.assert_array_equal(model.predict(tiles), labels)
