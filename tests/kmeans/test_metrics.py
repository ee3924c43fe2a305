"""Metrics for the choice of k: equal to scikit-learn's, of the same bits in any chunks."""

from __future__ import annotations

from dataclasses import astuple, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from sklearn import metrics as sklearn_metrics

import daskkm
from daskkm import block_sizes
from daskkm.kernels import metric_sums
from daskkm.kmeans import metrics
from daskkm.kmeans.assessment import assess_counted
from daskkm.kmeans.model import FittedModel
from tests import reference
from tests.kmeans.test_sweep import counting

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

DTYPES = ("uint8", "int8", "uint16", "int16", "float32", "float64")
KINDS = ("any", "exact", "duplicates", "empty")


def model_of(centroids: NDArray[Any], tiles: NDArray[Any]) -> FittedModel:
    """Return a model of any centroids."""
    centroids = np.asarray(centroids, np.float64)
    labels = reference.distances(tiles, centroids).argmin(axis=1)
    counts = np.bincount(labels, minlength=len(centroids))
    return FittedModel(centroids, counts, 0.0, 1, True, 0, tiles.dtype, None)


def make_case(seed: int, dtype: str, kind: str) -> tuple[NDArray[Any], dict[int, FittedModel]]:
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(5, 120)), int(rng.integers(1, 12))
    centres = rng.integers(0, 100, (4, d))
    tiles = centres[rng.integers(0, 4, n)] + rng.integers(0, 28, (n, d))
    if kind == "duplicates":
        tiles = tiles[rng.integers(0, 4, n)]
    tiles = tiles.astype(dtype)
    models = {}
    for k in {1, 2, 3, 7, min(n, 30), n}:
        own = tiles[rng.choice(n, k, replace=k > n)].astype(np.float64)
        noise = 0 if kind == "exact" else rng.normal(0, 5, own.shape)
        models[k] = model_of(own + noise, tiles)
        if k > 2 and kind == "empty":
            models[k] = model_of(np.vstack([own[1:], np.full(d, 1e6)]), tiles)
    return tiles, models


def silhouette(tiles: NDArray[Any], centroids: NDArray[np.float64]) -> float:
    """Return the simplified silhouette by its definition, tile by tile."""
    far = np.sqrt(reference.distances(tiles, centroids))
    labels = far.argmin(axis=1)
    total = 0.0
    for row, own in zip(far, labels, strict=True):
        b = min(row[j] for j in set(labels.tolist()) - {own})
        total += (b - row[own]) / max(b, row[own]) if b else 0.0
    return total / len(tiles)


# Each dtype meets each kind of tiles twice, and either meets each kind of classes: seed % 4.
@pytest.mark.parametrize(
    ("seed", "dtype", "kind"),
    [
        (24 * again + 4 * i + (i + j) % 4, dtype, kind)
        for again in range(2)
        for i, dtype in enumerate(DTYPES)
        for j, kind in enumerate(KINDS)
    ],
)
def test_assess_gives_the_metrics_of_scikit_learn(seed: int, dtype: str, kind: str) -> None:
    tiles, models = make_case(seed, dtype, kind)
    classes = np.random.default_rng(seed).integers(0, [1, 2, 5, 1000][seed % 4], len(tiles))
    chunks = max(1, len(tiles) // 3)
    found = daskkm.assess(da.from_array(tiles, chunks=(chunks, -1)), models, classes=classes)
    assert list(found) == list(models)
    wide = tiles.astype(np.float64)
    for k, model in models.items():
        q, labels = found[k], model.predict(tiles)
        np.testing.assert_array_equal(q.sizes, np.bincount(labels, minlength=k))
        assert q.inertia == pytest.approx(
            np.square(wide - model.cluster_centers_[labels]).sum(), rel=1e-9, abs=1e-9
        )
        if len(np.unique(classes)) == len(tiles):
            assert astuple(q)[5:] == (None, None, None)
        else:
            table = np.zeros((k, 1000), int)
            np.add.at(table, (labels, classes), 1)
            assert q.purity == table.max(axis=1).sum() / len(tiles)
            rand = sklearn_metrics.adjusted_rand_score(classes, labels)
            assert q.adjusted_rand == pytest.approx(rand, abs=1e-12)
            mutual = sklearn_metrics.normalized_mutual_info_score(classes, labels)
            assert q.normalized_mutual_info == pytest.approx(mutual, abs=1e-12)
        if not 1 < len(set(labels.tolist())) < len(tiles):
            assert astuple(q)[2:5] == (None, None, None)
            with pytest.raises(ValueError, match="Valid values are 2 to n_samples"):
                sklearn_metrics.davies_bouldin_score(wide, labels)
            continue
        peer = sklearn_metrics.calinski_harabasz_score(wide, labels)
        assert q.calinski_harabasz == pytest.approx(peer, rel=1e-9)
        # The peer's distances cancel: for zero it may have 1e-6.
        peer = sklearn_metrics.davies_bouldin_score(wide, labels)
        assert q.davies_bouldin == pytest.approx(peer, rel=1e-9, abs=1e-6)
        own = silhouette(tiles, model.cluster_centers_)
        assert q.silhouette == pytest.approx(own, rel=1e-9)


@pytest.mark.parametrize("few", [0, 8192])
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    cuts=st.lists(st.integers(0, 90), max_size=6),
    dtype=st.sampled_from(DTYPES[:4]),
)
def test_assess_in_any_chunks_gives_the_same_bits(
    few: int, seed: int, cuts: list[int], dtype: str
) -> None:
    rng = np.random.default_rng(seed)
    limits = np.iinfo(dtype)
    distinct = rng.integers(limits.min, limits.max, (40, 3), endpoint=True).astype(dtype)
    tiles, classes = distinct[rng.integers(0, 40, 90)], rng.integers(0, 4, 90)
    models = {k: model_of(rng.normal(0, limits.max, (k, 3)), tiles) for k in (1, 3, 8)}
    chunks = tuple(np.diff([0, *sorted(cuts), 90]).tolist())
    with block_sizes.override(exact_metric_tiles=few):
        whole = daskkm.assess(tiles, models, classes=classes)
        parts = daskkm.assess(
            da.from_array(tiles, chunks=(chunks, (1, 2))),
            models,
            classes=da.from_array(classes, chunks=17),
        )
    for k in models:
        for one, other in zip(astuple(whole[k]), astuple(parts[k]), strict=True):
            np.testing.assert_array_equal(one, other)


def test_assess_of_the_sample_images_prefers_five_clusters(digits: daskkm.TileStore) -> None:
    models = daskkm.fit_sweep(digits, [3, 5, 7], n_init=4, random_state=0).models
    found = daskkm.assess(digits, models, classes=digits.provenance()["image"])
    for k, model in models.items():
        assert found[k].inertia == model.inertia_
        np.testing.assert_array_equal(found[k].sizes, model.counts_)
    assert max(found, key=lambda k: found[k].adjusted_rand or 0) == 5
    without = daskkm.assess(digits, models)[5]
    none = replace(found[5], purity=None, adjusted_rand=None, normalized_mutual_info=None)
    assert repr(without) == repr(none)


def test_assess_counts_the_two_passes_that_it_makes() -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (500, 6), np.uint8)
    models = {k: model_of(tiles[:k], tiles) for k in (1, 2, 9)}
    classes = np.arange(500) % 3
    source, X = counting(tiles, chunk=64)
    found = assess_counted(X, models, classes)
    assert set(source.reads) == {found.passes} == {2}
    assert found.bytes_read == source.reads.sum() * 6
    source, X = counting(tiles, chunk=64)
    found = assess_counted(X[X[:, 0] >= 0], models, classes)
    assert np.isnan(X[X[:, 0] >= 0].shape[0])
    assert set(source.reads) == {found.passes} == {3}
    assert found.bytes_read == source.reads.sum() * 6


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 200),
    d=st.integers(1, 70),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    dtype=st.sampled_from(DTYPES[:2]),
    apart=st.sampled_from([0.1, 5.0, 1e4]),
)
def test_add_up_by_products_gives_distances_to_rounded_centroids(
    seed: int, n: int, d: int, sizes: list[int], dtype: str, apart: float
) -> None:
    rng = np.random.default_rng(seed)
    limits = np.iinfo(dtype)
    tiles = rng.integers(limits.min, limits.max, (n, d), dtype, endpoint=True)
    offsets = np.cumsum([0, *sizes])
    near = tiles[rng.integers(0, n, offsets[-1])].astype(float)
    clusters = metric_sums.Clusters(
        near + rng.normal(0, apart, near.shape), near + rng.normal(0, 1, near.shape), offsets
    )
    scales, codes = metric_sums.fixed_point_scales(n, d, tiles.dtype), rng.integers(0, 3, n)
    products = metric_sums.prepare_products(tiles.dtype, clusters)
    assert products is not None
    found = metric_sums.sum_distances(tiles, clusters, scales, codes, 3, products)
    exact = metric_sums.sum_distances(tiles, clusters, scales, codes, 3)
    np.testing.assert_array_equal(found[:, 3:], exact[:, 3:])
    # Rounded centroids and means, a quarter of a unit off at most.
    weights = products.prepared.weights.view(np.int16)[:, :d]
    for rounded, of, units in (
        (weights, clusters.stack, products.prepared.unit),
        (products.weights, clusters.means, products.units),
    ):
        unit = units.repeat(sizes)[:, None]
        off = np.abs(products.centre - unit * rounded / 2 - of)
        assert (off <= unit / 4 * (1 + 1e-9)).all()
    for m, (lo, hi) in enumerate(pairwise(offsets)):
        unit, own = products.prepared.unit[m], products.units[m]
        squares = reference.distances(tiles, clusters.stack[lo:hi])
        labels, rows = squares.argmin(axis=1), np.arange(n)
        far = np.sqrt(reference.distances(tiles, products.centre - unit * weights[lo:hi] / 2))
        a = far[rows, labels]
        far[rows, labels] = np.inf
        b = np.maximum(far.min(axis=1), a)
        silhouettes = np.where((b > 0) & (b < np.inf), 1 - a / np.where(b > 0, b, 1), 0.0)
        means = products.centre - own * products.weights[lo:hi] / 2
        apart_from_mean = np.sqrt(reference.distances(tiles, means))[rows, labels]
        for column, values in enumerate((apart_from_mean, silhouettes)):
            sums = np.bincount(labels, values, minlength=hi - lo)
            counts = np.bincount(labels, minlength=hi - lo)
            np.testing.assert_allclose(
                found[lo:hi, column] / scales[column], sums, rtol=1e-9, atol=1e-5 * counts.max()
            )


def test_prepare_of_centroids_too_large_for_products_returns_none() -> None:
    tiles = np.arange(8, dtype=np.uint8).reshape(4, 2)
    clusters = metric_sums.Clusters(np.full((1, 2), 1e200), np.ones((1, 2)), np.array([0, 1]))
    assert metric_sums.prepare_products(tiles.dtype, clusters) is None


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_assess_of_many_tiles_is_close_to_the_definition(
    dtype: str, override_sizes: Callable[..., None]
) -> None:
    rng = np.random.default_rng(0)
    centres = rng.integers(-100, 100, (5, 16))
    tiles = centres[rng.integers(0, 5, 9000)] + rng.normal(0, 9, (9000, 16))
    limits = np.iinfo(dtype)
    tiles = np.clip(np.rint(tiles) + 128 * (dtype == "uint8"), limits.min, limits.max).astype(dtype)
    models = {k: model_of(tiles[:k] + rng.normal(0, 1, (k, 16)), tiles) for k in (2, 5, 9)}
    classes = rng.integers(0, 3, 9000)
    fast = daskkm.assess(tiles, models, classes=classes)
    override_sizes(exact_metric_tiles=9000)
    exact = daskkm.assess(tiles, models, classes=classes)
    for k in models:
        assert fast[k].silhouette == pytest.approx(exact[k].silhouette, abs=1e-5)
        assert fast[k].silhouette != exact[k].silhouette
        assert fast[k].davies_bouldin == pytest.approx(exact[k].davies_bouldin, rel=1e-5)
        others = (replace(each[k], silhouette=None, davies_bouldin=None) for each in (fast, exact))
        assert len(set(map(repr, others))) == 1


def test_assess_with_classes_of_one_tile_each_leaves_them_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tiles = np.arange(40, dtype=np.uint8).reshape(10, 4)
    models = {2: model_of(tiles[[0, 9]], tiles)}
    for classes in (np.arange(10), da.arange(10, chunks=3)[::-1]):
        caplog.clear()
        found = daskkm.assess(tiles, models, classes=classes)[2]
        assert astuple(found)[5:] == (None, None, None)
        assert repr(found) == repr(daskkm.assess(tiles, models)[2])
        assert caplog.messages == [
            "classes: no two tiles share a class. Purity, ARI and NMI are left out."
        ]
    caplog.clear()
    assert daskkm.assess(tiles, models, classes=np.arange(10) // 2)[2].purity == 0.4
    assert not caplog.messages


def test_assess_of_unknown_chunks_is_that_of_known_ones() -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (300, 4), np.uint8)
    classes, X = np.arange(300) % 4, da.from_array(tiles, chunks=(70, -1))
    models = {3: model_of(tiles[:3], tiles)}
    lazy = daskkm.assess(
        X[X[:, 0] > 99], models, classes=da.from_array(classes, chunks=50)[X[:, 0] > 99]
    )
    known = daskkm.assess(tiles[tiles[:, 0] > 99], models, classes=classes[tiles[:, 0] > 99])
    assert repr(lazy) == repr(known)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_assess_of_identical_tiles_has_sizes_and_classes_only(k: int) -> None:
    tiles = np.full((20, 3), 7, np.uint8)
    found = daskkm.assess(tiles, {k: model_of(tiles[:k], tiles)}, classes=np.zeros(20, int))[k]
    assert found.sizes.tolist() == [20] + [0] * (k - 1)
    assert astuple(found)[2:] == (None, None, None, 1.0, 1.0, 1.0)


def test_assess_of_clusters_of_copies_follows_scikit_learn() -> None:
    # No scatter within clusters: the conventions are those of scikit-learn.
    tiles = np.repeat(np.array([[0, 0], [9, 9]], np.uint8), 5, axis=0)
    found = daskkm.assess(tiles, {2: model_of(tiles[[0, 9]], tiles)})[2]
    assert (found.calinski_harabasz, found.davies_bouldin, found.silhouette) == (1.0, 0.0, 1.0)


def test_assess_with_an_empty_cluster_ignores_it() -> None:
    # A copy of a centroid has no tiles, and would make each silhouette next to it 0.
    tiles = np.array([[0], [2], [10], [12]], np.uint8)
    found = {
        len(c): daskkm.assess(tiles, {0: model_of(np.array(c), tiles)})[0]
        for c in ([[1], [11]], [[1], [11], [1]])
    }
    assert found[3].sizes.tolist() == [2, 2, 0]
    assert found[3].silhouette == found[2].silhouette
    assert found[3].davies_bouldin == found[2].davies_bouldin == 0.2


@pytest.mark.parametrize("offset", [0, 1e6, 1e9])
def test_assess_of_floats_far_from_zero_is_that_near_zero(offset: float) -> None:
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 2000, (400, 3)) / 1024
    model = model_of(tiles[:4], tiles)
    near = astuple(daskkm.assess(tiles, {4: model})[4])
    moved = replace(model, cluster_centers_=model.cluster_centers_ + offset)
    far = astuple(daskkm.assess(tiles + offset, {4: moved})[4])
    assert near[2:5] == pytest.approx(far[2:5], rel=1e-6)
    assert near[0] == pytest.approx(far[0], rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES[:4])
@pytest.mark.parametrize("n", [1, 5, 2**20, 10**9])
def test_scales_of_fixed_point_cannot_overflow_and_use_61_bits(n: int, dtype: str) -> None:
    limits = np.iinfo(dtype)
    longest = (int(limits.max) - int(limits.min)) * 16
    distance, unit = metric_sums.fixed_point_scales(n, 256, np.dtype(dtype))
    # Each may be half a unit more than it was.
    assert 2**61 <= n * longest * int(distance) <= 2**62 - n
    assert 2**61 <= n * int(unit) <= 2**62
    if n == 10**9 and dtype == "uint8":
        assert (distance, unit) == (2.0**20, 2.0**32)


def test_metrics_of_pairs_beyond_int64_are_exact() -> None:
    table = np.array([[2 * 10**9, 0], [10**9, 3 * 10**9]])
    small = table // 10**6
    assert metrics.adjusted_rand(table) == pytest.approx(metrics.adjusted_rand(small), rel=1e-3)
    assert metrics.normalized_mutual_info(table) == metrics.normalized_mutual_info(small)
    assert metrics.normalized_mutual_info(np.full((3, 4), 10**9)) == 0.0


@pytest.mark.parametrize(
    ("inertias", "expected"),
    [
        ({}, None),
        ({2: 5.0}, None),
        ({2: 5.0, 3: 1.0}, None),
        ({1: 100.0, 2: 40.0, 3: 10.0, 4: 8.0, 5: 7.0}, 3),
        ({5: 7.0, 4: 8.0, 3: 10.0, 2: 40.0, 1: 100.0}, 3),  # in any order
        ({1: 3.0, 2: 2.0, 3: 1.0}, None),  # a straight line
        ({1: 10.0, 2: 9.0, 3: 1.0}, None),  # above the chord
        ({1: 12.0, 2: 8.0, 3: 5.0, 4: 3.0}, 2),  # 2 and 3 lie equally far below
        ({2: 100.0, 4: 30.0, 10: 20.0, 20: 10.0}, 4),  # not evenly spaced
        ({1: 5.0, 2: 5.0, 3: 5.0}, None),
        ({1: 0.0, 2: 0.0, 3: 0.0}, None),
        ({1: 5.0, 2: 4.0, 3: 5.0}, 2),
        ({np.int64(1): np.float64(9), np.int64(2): np.float64(2), np.int64(3): np.float64(1)}, 2),
    ],
)
def test_knee_is_farthest_below_the_chord(inertias: dict[int, float], expected: int | None) -> None:
    assert daskkm.knee(inertias) == expected


def test_knee_of_inertia_that_is_not_finite_is_refused() -> None:
    with pytest.raises(daskkm.FitError, match=r"nan for k = 2 is not finite\. Give finite"):
        daskkm.knee({1: 1.0, 2: float("nan"), 3: 0.0})


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"models": {}}, "models: {} is not a mapping. Give at least one model by its k"),
        ({"models": [1]}, r"models: \[1\] is not a mapping"),
        ({"models": {2: "m.zarr"}}, "str is not a model. Fit a daskkm.KMeans"),
        ({"classes": [[1], [2, 3]]}, "classes: not an array"),
        ({"X": np.zeros((10, 3), np.uint8)}, "X has 3 features but the model of k = 2 .* on 4"),
        ({"X": np.zeros((0, 4), np.uint8)}, "X: no tiles"),
        ({"X": np.full((10, 4), 1e200)}, "too large to square"),
        (
            {"classes": np.zeros(9, int)},
            r"classes: int64 of shape \(9,\) for 10 tiles\. Give each tile one",
        ),
        ({"classes": np.zeros((10, 1), int)}, r"of shape \(10, 1\) for 10 tiles"),
        ({"classes": da.zeros(11, dtype=int)}, r"of shape \(11,\) for 10 tiles"),
        ({"classes": np.zeros(10)}, r"classes: float64 of shape \(10,\)"),
        ({"classes": np.ma.masked_less(np.arange(10), 2)}, "classes: masked arrays"),
        (
            {"classes": da.from_array(np.ma.masked_less(np.arange(10), 2))},
            "classes: masked arrays",
        ),
        ({"classes": np.arange(10) - 1}, r"classes: -1 is negative\. Number classes from 0"),
        ({"classes": da.arange(10) - 3}, "classes: -3 is negative"),
    ],
)
def test_assess_of_arguments_that_do_not_fit_is_refused(
    changes: dict[str, Any], match: str
) -> None:
    tiles = np.arange(40, dtype=np.uint8).reshape(10, 4)
    call: dict[str, Any] = {"X": tiles, "models": {2: model_of(tiles[:2], tiles)}}
    with pytest.raises((daskkm.FitError, daskkm.ParameterError), match=match):
        daskkm.assess(**call | changes)


def test_assess_of_tiles_that_are_not_finite_is_refused() -> None:
    tiles = np.eye(4)
    models = {2: model_of(tiles[:2], tiles)}
    with pytest.raises(ValueError, match="Input X contains NaN"):
        daskkm.assess(np.full((4, 4), np.nan), models)


@pytest.mark.parametrize("far", [1e5, 1e7, 1e9])
def test_assess_of_floats_far_from_the_fitted_is_exact(far: float) -> None:
    half = np.random.default_rng(0).normal(0, 1, (200, 3))
    tiles = np.vstack([half, half])  # twice the same: no mean is off the axis
    tiles[200:, 0] += 20
    model = daskkm.KMeans(2, random_state=0).fit(tiles)
    away = tiles.copy()
    away[:, 1] += far
    found = daskkm.assess(away, {2: model})[2]
    labels = model.predict(away)
    expected = sklearn_metrics.calinski_harabasz_score(away - np.array([0, far, 0]), labels)
    assert found.calinski_harabasz == pytest.approx(expected, rel=1e-4)
