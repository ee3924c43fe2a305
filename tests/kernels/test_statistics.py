"""Statistics of clusters: the laws of a monoid, and figures against Python's integers."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import assume, given, strategies as st

from daskkm.kernels.statistics import Statistics
from tests import reference

if TYPE_CHECKING:
    from numpy.typing import NDArray


@st.composite
def tables(draw: st.DrawFn, n: int = 1) -> list[NDArray[np.int64]]:
    """Return n tables of one shape."""
    k, d = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return [rng.integers(-(2**40), 2**40, (k, d + 2)) for _ in range(n)]


@st.composite
def clusterings(draw: st.DrawFn) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return tiles and centroids, some of which may have no tile."""
    n, d, k = draw(st.integers(1, 40)), draw(st.integers(1, 6)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    low, high = draw(st.sampled_from([(0, 256), (0, 2), (250, 256)]))
    return rng.integers(low, high, (n, d), np.uint8), rng.uniform(low, high, (k, d))


def measure(tiles: NDArray[Any], centroids: NDArray[np.float64]) -> Statistics:
    return Statistics(reference.statistics(tiles, centroids, np.array([0, len(centroids)])))


def nearest(tiles: NDArray[Any], centroids: NDArray[np.float64]) -> NDArray[np.int32]:
    return reference.labels(tiles, centroids, np.array([0, len(centroids)]))[:, 0]


@given(tables(n=3))
def test_add_is_associative_and_commutative(parts: list[NDArray[np.int64]]) -> None:
    a, b, c = (Statistics(table) for table in parts)
    np.testing.assert_array_equal(((a + b) + c).table, (a + (b + c)).table)
    np.testing.assert_array_equal((a + b).table, (b + a).table)


@given(clusterings(), st.integers(0, 40))
def test_add_of_two_blocks_is_statistics_of_all_tiles(
    clustering: tuple[NDArray[Any], NDArray[np.float64]], cut: int
) -> None:
    tiles, centroids = clustering
    halves = measure(tiles[:cut], centroids) + measure(tiles[cut:], centroids)
    np.testing.assert_array_equal(halves.table, measure(tiles, centroids).table)


@given(tables(), st.lists(st.integers(0, 5), max_size=3))
def test_split_then_concatenate_gives_the_same_table(
    parts: list[NDArray[np.int64]], cuts: list[int]
) -> None:
    statistics = Statistics(parts[0])
    offsets = sorted([0, *(min(cut, len(statistics)) for cut in cuts), len(statistics)])
    models = statistics.split(offsets)
    assert [len(model) for model in models] == np.diff(offsets).tolist()
    np.testing.assert_array_equal(Statistics.concatenate(models).table, statistics.table)


@given(tables())
def test_columns_are_sums_counts_and_squares(parts: list[NDArray[np.int64]]) -> None:
    statistics = Statistics(parts[0])
    columns = (statistics.sums, statistics.counts[:, None], statistics.squares[:, None])
    np.testing.assert_array_equal(np.hstack(columns), statistics.table)
    assert statistics.exact
    assert not Statistics(parts[0].astype(float)).exact


@given(tables())
def test_total_is_sum_over_clusters(parts: list[NDArray[np.int64]]) -> None:
    total = Statistics(parts[0]).total()
    assert total.table.tolist() == [[sum(column) for column in parts[0].T.tolist()]]


@given(clusterings())
def test_means_are_exact_quotients(clustering: tuple[NDArray[Any], NDArray[np.float64]]) -> None:
    tiles, centroids = clustering
    labels = nearest(tiles, centroids)
    means = measure(tiles, centroids).means()
    for j in np.unique(labels):
        part = tiles[labels == j].astype(object)
        assert means[j].tolist() == [sum(feature) / len(part) for feature in part.T]


def test_means_of_empty_cluster_is_that_of_the_biggest() -> None:
    statistics = Statistics(np.array([[4, 2, 8], [0, 0, 0], [9, 3, 27]]))
    assert statistics.means().tolist() == [[2.0], [3.0], [3.0]]


def test_means_of_weights_below_one_divides_by_the_weight() -> None:
    statistics = Statistics(np.array([[0.5, 1.0, 0.25, 1.5], [1.0, 0.5, 0.5, 1.0], [0, 0, 0, 0]]))
    assert statistics.means().tolist() == [[2, 4], [2, 1], [2, 1]]


@given(clusterings())
def test_scatter_is_rounded_once_from_exact_integers(
    clustering: tuple[NDArray[Any], NDArray[np.float64]],
) -> None:
    tiles, centroids = clustering
    labels = nearest(tiles, centroids)
    filled = np.unique(labels)
    scatter = measure(tiles, centroids)[filled].scatter(centroids[filled])
    for j, value in zip(filled, scatter, strict=True):
        part = tiles[labels == j].astype(object)
        n, sums = len(part), part.sum(axis=0)
        assert value == (n * int((part * part).sum()) - int((sums * sums).sum())) / n


@given(clusterings(), st.booleans())
def test_inertia_is_sum_of_squared_distances(
    clustering: tuple[NDArray[Any], NDArray[np.float64]], as_float: bool
) -> None:
    tiles, centroids = clustering
    own = centroids[nearest(tiles, centroids)]
    exact = sum(
        (Fraction(int(x)) - Fraction(c)) ** 2
        for x, c in zip(tiles.ravel(), own.ravel().tolist(), strict=True)
    )
    tiles = tiles.astype(np.float32) if as_float else tiles
    value = measure(tiles, centroids).inertia(centroids)
    assert value == pytest.approx(float(exact), rel=1e-13, abs=1e-9)


@given(st.integers(0, 2**32), st.integers(1, 50), st.sampled_from(["int8", "uint16", "int16"]))
def test_inertia_and_mean_variance_of_any_integers_are_those_of_floats(
    seed: int, n: int, dtype: str
) -> None:
    rng = np.random.default_rng(seed)
    limits = np.iinfo(dtype)
    tiles = rng.integers(limits.min, limits.max, (n, 4), dtype, endpoint=True)
    centroids = tiles[rng.integers(0, n, 3)] + rng.normal(0, 1, (3, 4)) * rng.choice([0, 1, 50])
    statistics = measure(tiles, centroids)
    direct = reference.distances(tiles, centroids).min(axis=1).sum()
    assert statistics.inertia(centroids) == pytest.approx(direct, rel=1e-13, abs=1e-9)
    variance = tiles.astype(float).var(axis=0).mean()
    assert statistics.mean_variance(centroids) == pytest.approx(variance, rel=1e-13)


@given(clusterings(), st.booleans())
def test_mean_variance_is_that_of_all_tiles(
    clustering: tuple[NDArray[Any], NDArray[np.float64]], as_float: bool
) -> None:
    tiles, centroids = clustering
    expected = tiles.astype(float).var(axis=0).mean()
    tiles = tiles.astype(np.float32) if as_float else tiles
    value = measure(tiles, centroids).mean_variance(centroids)
    assert value == pytest.approx(expected, rel=1e-12, abs=1e-9)


@given(clusterings())
def test_mean_variance_of_integers_does_not_depend_on_the_clustering(
    clustering: tuple[NDArray[Any], NDArray[np.float64]],
) -> None:
    tiles, centroids = clustering
    one = measure(tiles, centroids[:1]).mean_variance(centroids[:1])
    assert measure(tiles, centroids).mean_variance(centroids) == one


def test_inertia_where_int64_products_overflow_is_exact() -> None:
    n, d = 2**38, 256  # half of the tiles are 254 everywhere, half 255
    squares = n // 2 * d * (254**2 + 255**2)
    statistics = Statistics(np.array([[n // 2 * 509] * d + [n, squares]], np.int64))
    centroid = np.full((1, d), 254.5)
    assert int(statistics.counts[0]) * int(statistics.squares[0]) >= 2**63
    assert statistics.inertia(centroid) == n * d / 4
    assert statistics.mean_variance(centroid) == 0.25


@given(clusterings())
def test_inertia_of_one_tile_a_cluster_is_zero(
    clustering: tuple[NDArray[Any], NDArray[np.float64]],
) -> None:
    tiles = np.unique(clustering[0], axis=0)
    assume(len(tiles) > 1)
    centroids = tiles.astype(np.float64)
    assert math.copysign(1, measure(tiles, centroids).inertia(centroids)) == 1
    assert measure(tiles, centroids).inertia(centroids) == 0
