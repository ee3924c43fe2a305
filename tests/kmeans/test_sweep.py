"""Sweeps of many k: shared and counted passes, and one result for any chunks."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import daskkm
from tests import reference

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from daskkm.storage.tile_store import TileStore


class CountingRows:
    """Rows with the number of reads of each row."""

    def __init__(self, rows: NDArray[Any]) -> None:
        self.rows = rows
        self.reads = np.zeros(len(rows), int)
        self.shape, self.dtype, self.ndim = rows.shape, rows.dtype, rows.ndim
        self._lock = threading.Lock()

    def __getitem__(self, key: Any) -> NDArray[Any]:
        with self._lock:
            self.reads[key[0]] += 1
        return np.asarray(self.rows[key])


@pytest.fixture(scope="module")
def rows(digits: TileStore) -> NDArray[np.uint8]:
    return np.asarray(digits.features().compute())


def counting(rows: NDArray[Any], chunk: int = 1000) -> tuple[CountingRows, da.Array]:
    source = CountingRows(rows)
    meta = np.empty((0, 0), rows.dtype)
    return source, da.from_array(source, chunks=(chunk, -1), meta=meta, asarray=False)


def test_fit_sweep_of_many_models_reads_as_often_as_its_slowest(rows: NDArray[Any]) -> None:
    ks, n_init = range(3, 8), 4
    source, X = counting(rows)
    calls: list[daskkm.Pass] = []
    options: dict[str, Any] = {"n_init": n_init, "random_state": 0, "cache": "never"}
    daskkm.fit_sweep(X, ks, **options, on_pass=calls.append)
    steps = calls[-1].steps
    assert len(steps) == 5 * n_init
    passes = sum(done.reads_tiles for done in calls)  # that of the sample among them
    assert set(source.reads) == {passes}
    slowest = max(step.iteration for step in steps.values()) + 1  # the measure that ends it
    assert passes <= slowest + 1
    # One after another, the models would have read the tiles this often:
    assert sum(step.iteration for step in steps.values()) > 5 * passes


def test_fit_sweep_counts_the_passes_and_bytes_that_it_reads(rows: NDArray[Any]) -> None:
    source, X = counting(rows)
    result = daskkm.fit_sweep(X, [2, 3], n_init=2, random_state=0, cache="never")
    assert set(source.reads) == {result.passes}
    assert result.bytes_read == source.reads.sum() * 256
    # With relocations, and without a seeding.
    source, X = counting(rows)
    start = np.vstack([rows[:2], np.full((2, 256), 1e6)])
    result = daskkm.fit_sweep(X, [4], init=start, cache="never")
    assert set(source.reads) == {result.passes}
    assert result.bytes_read == source.reads.sum() * 256


@pytest.mark.parametrize(
    ("init", "coarse"),
    [("k-means++", True), ("k-means++", False), ("k-means||", False), ("random", True)],
)
def test_fit_sweep_with_a_cache_reads_tiles_once(
    override_sizes: Callable[..., None], init: str, coarse: bool
) -> None:
    override_sizes(sample_tiles=40)
    tiles = np.random.default_rng(0).integers(0, 256, (200, 2), np.uint8)
    call: dict[str, Any] = {"n_init": 2, "init": init, "random_state": 0, "coarse": coarse}
    found = {}
    for cache in ("auto", "always", "never"):
        source, X = counting(tiles, chunk=5)
        found[cache] = daskkm.fit_sweep(X, [2, 5], **call, cache=cache)
        assert found[cache].bytes_read == source.reads.sum() * 2
        assert (set(source.reads) == {1}) == (cache != "never")
    for k in (2, 5):
        models = [result.models[k] for result in found.values()]
        assert len({model.inertia_ for model in models}) == 1
        assert len({model.cluster_centers_.tobytes() for model in models}) == 1
        assert len({result.passes for result in found.values()}) == 1


@pytest.mark.parametrize(
    ("init", "weighted", "large"),
    [
        ("k-means++", True, 500),
        ("k-means++", False, 1200),
        ("k-means||", False, 500),
        ("random", False, 500),
    ],
)
def test_fit_sweep_coarse_ends_where_all_tiles_are_settled(
    override_sizes: Callable[..., None], init: str, weighted: bool, large: int, rows: NDArray[Any]
) -> None:
    override_sizes(sample_tiles=500, large_sample_bytes=large * 256)
    weights = np.random.default_rng(0).integers(0, 3, len(rows)) if weighted else None
    call: dict[str, Any] = {"tol": 0, "sample_weight": weights}
    results = [
        daskkm.fit_sweep(
            da.from_array(rows, chunks=(chunk, -1)),
            [3, 7],
            n_init=4,
            init=init,
            random_state=1,
            **call,
        )
        for chunk in (5610, 777)
    ]
    slow = daskkm.fit_sweep(rows, [3, 7], n_init=4, init=init, random_state=1, **call, coarse=False)
    assert results[0].passes < 0.7 * slow.passes
    for k, model in results[0].models.items():
        assert model.converged_
        assert results[1].models[k].cluster_centers_.tobytes() == model.cluster_centers_.tobytes()
        again = daskkm.fit_sweep(rows, [k], init=model.cluster_centers_, **call).models[k]
        assert (again.n_iter_, again.inertia_) == (1, model.inertia_)
        assert again.cluster_centers_.tobytes() == model.cluster_centers_.tobytes()
        assert model.inertia_ < 1.02 * slow.models[k].inertia_


@pytest.mark.parametrize("coarse", [False, True])
def test_fit_sweep_of_too_many_models_for_memory_is_refused_before_a_read(
    override_sizes: Callable[..., None], coarse: bool
) -> None:
    override_sizes(sample_tiles=24 if coarse else 100)
    read = []

    def block(block_id: tuple[int, int]) -> NDArray[Any]:
        read.append(block_id)
        return np.zeros((10, 4), np.uint8)

    X = da.map_blocks(
        block, chunks=((10,) * 3, (4,)), dtype=np.uint8, meta=np.empty((0, 0), np.uint8)
    )
    with pytest.raises(daskkm.FitError, match=r"a pass would take .* fewer k and restarts at once"):
        # No machine has the memory for the statistics of so many centroids.
        daskkm.fit_sweep(X, [3], n_init=10**12)
    assert not read


def test_fit_sweep_reads_only_blocks_that_hold_the_sample(
    override_sizes: Callable[..., None],
) -> None:
    override_sizes(sample_tiles=8)
    tiles = np.random.default_rng(0).integers(0, 256, (500, 2), np.uint8)
    source, X = counting(tiles, chunk=5)
    result = daskkm.fit_sweep(X, [2], n_init=1, max_iter=1, random_state=0, cache="never")
    assert set(source.reads) == {result.passes - 1, result.passes}
    assert (source.reads == result.passes).sum() <= 8 * 5
    assert result.bytes_read == source.reads.sum() * 2


@pytest.mark.parametrize(
    ("init", "passes", "ks", "n_init", "weighted"),
    [
        ("k-means++", 5, [5], 1, True),
        ("k-means++", 5, [2, 3, 5], 4, False),
        ("k-means||", 6, [5], 1, False),
        ("k-means||", 6, [2, 3, 5], 4, True),
    ],
)
def test_fit_sweep_seeded_in_passes_shares_them_among_models(
    override_sizes: Callable[..., None],
    init: str,
    passes: int,
    ks: list[int],
    n_init: int,
    weighted: bool,
) -> None:
    # As many passes as the largest k has centroids, or six, and the blocks of the first tiles.
    override_sizes(sample_tiles=8)
    rng = np.random.default_rng(0)
    source, X = counting(rng.integers(0, 256, (500, 2), np.uint8), chunk=5)
    weight_source, weights = counting(rng.integers(0, 3, (500, 1)), chunk=5)
    calls: list[daskkm.Pass] = []
    result = daskkm.fit_sweep(
        X,
        ks,
        n_init=n_init,
        init=init,
        max_iter=1,
        tol=0,
        random_state=0,
        sample_weight=weights[:, 0] if weighted else None,
        coarse=False,
        cache="never",
        on_pass=calls.append,
    )
    first = next(done for done in calls if done.steps)  # it measures the initial centroids
    assert first.number == passes + 2
    fitting = result.passes - first.number
    with_first_tiles = source.reads == passes + 2 + fitting
    assert set(source.reads[~with_first_tiles]) == {passes + 1 + fitting}
    seedings = 1 if init == "k-means||" else n_init
    assert 5 <= with_first_tiles.sum() <= 5 * seedings
    if weighted:  # weights are read once
        assert set(weight_source.reads) == {1}


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    cuts=st.lists(st.integers(0, 90), max_size=6),
    dtype=st.sampled_from(["uint8", "int8", "uint16", "int16"]),
    init=st.sampled_from(["k-means++", "random"]),
)
def test_fit_sweep_of_integers_in_any_chunks_gives_the_same_bits(
    seed: int, cuts: list[int], dtype: str, init: str
) -> None:
    rng = np.random.default_rng(seed)
    limits = np.iinfo(dtype)
    distinct = rng.integers(limits.min, limits.max, (25, 3), endpoint=True).astype(dtype)
    tiles = distinct[rng.integers(0, 25, 90)]
    edges = [0, *sorted(cuts), 90]
    settings: dict[str, Any] = {"n_init": 2, "init": init, "random_state": seed}
    whole = daskkm.fit_sweep(tiles, [1, 4, 9], **settings)
    chunks = tuple(np.diff(edges).tolist())
    parts = daskkm.fit_sweep(da.from_array(tiles, chunks=(chunks, (1, 2))), [9, 4, 1], **settings)
    assert list(parts.models) == [1, 4, 9]
    assert parts.passes == whole.passes
    for k, model in whole.models.items():
        assert parts.models[k].inertia_ == model.inertia_
        assert parts.models[k].restart_ == model.restart_
        np.testing.assert_array_equal(parts.models[k].cluster_centers_, model.cluster_centers_)
        np.testing.assert_array_equal(parts.models[k].counts_, model.counts_)


def test_fit_sweep_returns_counts_and_inertia_of_the_labels_it_predicts(rows: NDArray[Any]) -> None:
    for max_iter, tol in ((300, 0), (300, 1e-2), (2, 0)):
        result = daskkm.fit_sweep(rows, [5], n_init=2, max_iter=max_iter, tol=tol, random_state=0)
        model = result.models[5]
        labels = model.predict(rows)
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(np.bincount(labels, minlength=5), model.counts_)
        far = ((rows - model.cluster_centers_[labels]) ** 2).sum()
        assert model.inertia_ == pytest.approx(far, rel=1e-12)
        assert model.converged_ == (max_iter == 300)
        lazy = model.predict(da.from_array(rows, chunks=(1000, 100)))
        assert isinstance(lazy, da.Array)
        np.testing.assert_array_equal(lazy.compute(), labels)
        np.testing.assert_array_equal(
            labels, reference.labels(rows, model.cluster_centers_, np.array([0, 5]))[:, 0]
        )


def test_fit_sweep_returns_the_best_restart_as_a_fit_of_one_k_does(
    rows: NDArray[Any],
) -> None:
    calls: list[daskkm.Pass] = []
    result = daskkm.fit_sweep(rows, [3, 6], n_init=3, random_state=7, on_pass=calls.append)
    for k, model in result.models.items():
        restarts = [calls[-1].steps[k, r].inertia for r in range(3)]
        assert model.inertia_ == min(restarts)
        assert model.restart_ == restarts.index(min(restarts))
        alone = daskkm.fit_sweep(rows, [k], n_init=3, random_state=7).models[k]
        np.testing.assert_array_equal(alone.cluster_centers_, model.cluster_centers_)


def test_fit_sweep_of_the_sample_images_finds_the_five_digits(
    rows: NDArray[Any], digits: TileStore
) -> None:
    """Five clusters of the sample images are the five digits."""
    model = daskkm.fit_sweep(rows, [5], n_init=16, random_state=0).models[5]
    image = digits.provenance()["image"]
    found = np.zeros((5, 5), int)
    np.add.at(found, (model.predict(rows), image), 1)
    assert sorted(found.argmax(axis=1)) == [0, 1, 2, 3, 4]
    assert found.max(axis=1).sum() > 0.75 * len(rows)


def test_fit_sweep_from_rounded_centroids_ends_soon_and_near(rows: NDArray[Any]) -> None:
    # As from the pictures that a sweep writes.
    models = daskkm.fit_sweep(rows, [3, 5, 7], n_init=4, tol=0, random_state=0).models
    starts = {k: np.floor(model.cluster_centers_) for k, model in models.items()}
    again = daskkm.fit_sweep(rows, [3, 5, 7], init=starts, tol=0).models
    for k, model in again.items():
        assert model.n_iter_ <= 10
        moved = np.sqrt(np.square(model.cluster_centers_ - starts[k]).mean(axis=1))
        assert moved.max() < 0.9


def test_fit_sweep_with_one_seed_gives_one_result(rows: NDArray[Any]) -> None:
    def fit(seed: int | None) -> Any:
        return daskkm.fit_sweep(rows[:500], [4], n_init=1, max_iter=2, random_state=seed)

    assert fit(1).models[4].inertia_ == fit(1).models[4].inertia_
    assert fit(1).models[4].inertia_ != fit(2).models[4].inertia_
    unseeded = fit(None)
    again = fit(unseeded.random_state)
    assert again.models[4].inertia_ == unseeded.models[4].inertia_


def test_fit_sweep_of_unknown_chunks_is_that_of_known_ones(rows: NDArray[Any]) -> None:
    X = da.from_array(rows, chunks=(1000, -1))
    some = X[X[:, 100] > 10]
    assert np.isnan(some.shape[0])
    known = rows[rows[:, 100] > 10]
    a, b = (daskkm.fit_sweep(x, [3], n_init=1, random_state=0) for x in (some, known))
    assert a.models[3].inertia_ == b.models[3].inertia_
    assert a.passes == b.passes + 1  # the one that found the sizes
    assert np.isnan(some.shape[0]), "the caller's array was changed"
    labels = b.models[3].predict(some)
    assert np.isnan(labels.shape[0]), "the sizes were computed though they are not needed"
    np.testing.assert_array_equal(labels.compute(), b.models[3].predict(known))


@pytest.mark.parametrize("scale", [1, 1e-3])
def test_fit_sweep_of_floats_is_that_of_integers(rows: NDArray[Any], scale: float) -> None:
    model = daskkm.fit_sweep(rows * scale, [5], n_init=2, random_state=0).models[5]
    exact = daskkm.fit_sweep(rows, [5], n_init=2, random_state=0).models[5]
    np.testing.assert_allclose(model.cluster_centers_, exact.cluster_centers_ * scale, rtol=1e-9)
    assert model.inertia_ == pytest.approx(exact.inertia_ * scale**2, rel=1e-9)


def test_fit_sweep_of_float32_sums_in_float64() -> None:
    tiles = np.random.default_rng(0).uniform(40, 210, (500, 8)).astype(np.float32)
    model = daskkm.fit_sweep(tiles, [1], n_init=1, random_state=0).models[1]
    expected = tiles.mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(model.cluster_centers_[0], expected, rtol=1e-14)


@pytest.mark.parametrize("offset", [0, 1e6, 1e9])
def test_fit_sweep_of_floats_far_from_zero_keeps_inertia_exact(offset: float) -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 10, (5, 8))
    tiles = centres[rng.integers(0, 5, 2000)] + np.round(rng.normal(0, 1, (2000, 8)), 3)
    model = daskkm.fit_sweep(tiles + offset, [5], n_init=4, random_state=0).models[5]
    own = model.cluster_centers_[model.predict(tiles + offset)]
    assert model.inertia_ == pytest.approx(np.square(tiles + offset - own).sum(), rel=1e-6)
    exact = daskkm.fit_sweep(tiles, [5], n_init=4, random_state=0).models[5]
    assert model.inertia_ == pytest.approx(exact.inertia_, rel=1e-5)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("far", [1e6, 1e9])
def test_fit_sweep_of_floats_from_distant_centroids_keeps_inertia_exact(k: int, far: float) -> None:
    tiles = np.random.default_rng(0).standard_normal((1000, 2))
    start = np.full((k, 2), far) + np.arange(k)[:, None]
    model = daskkm.fit_sweep(tiles, [k], init=start, tol=0).models[k]
    own = model.cluster_centers_[model.predict(tiles)]
    assert model.inertia_ == pytest.approx(np.square(tiles - own).sum(), rel=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_fit_sweep_of_floats_off_their_mean_by_rounding_settles(seed: int) -> None:
    rng = np.random.default_rng(seed)
    distinct = rng.normal(0, 1, (3, 2))
    tiles = distinct[rng.integers(0, 3, 50)]
    model = daskkm.fit_sweep(tiles, [5], init=rng.normal(0, 1, (5, 2)), tol=0).models[5]
    assert model.converged_
    assert model.inertia_ < 1e-12


def test_fit_sweep_takes_ks_from_any_iterable() -> None:
    tiles = np.arange(12, dtype=np.uint8).reshape(6, 2)
    result = daskkm.fit_sweep(tiles, (k for k in np.array([3, 2])), n_init=1, random_state=0)
    assert [(k, type(k)) for k in result.models] == [(2, int), (3, int)]


def test_fit_sweep_copies_given_centroids() -> None:
    tiles = np.array([[0], [2], [10], [12]], np.uint8)
    start = np.array([[1.0], [11.0]])
    model = daskkm.fit_sweep(tiles, [2], init=start).models[2]
    np.testing.assert_array_equal(model.cluster_centers_, start)
    assert not np.shares_memory(model.cluster_centers_, start)


def test_fit_sweep_converged_after_a_relocation_is_a_fixed_point() -> None:
    tiles = np.array([[14], [1], [14], [7], [5], [0]], np.uint8)
    model = daskkm.fit_sweep(tiles, [3], init=np.array([[1], [21], [21]]), tol=0).models[3]
    assert model.converged_
    again = daskkm.fit_sweep(tiles, [3], init=model.cluster_centers_, tol=0).models[3]
    assert again.n_iter_ == 1
    np.testing.assert_array_equal(again.cluster_centers_, model.cluster_centers_)


def test_predict_of_tiles_that_are_not_finite_is_refused() -> None:
    model = daskkm.fit_sweep(np.eye(4), [2], random_state=0).models[2]
    with pytest.raises(ValueError, match="Input X contains NaN"):
        model.predict(np.full((2, 4), np.nan))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"ks": []}, "ks: empty"),
        ({"ks": 3}, r"ks: 3 is not iterable\. Give numbers of clusters, such as \[5\]"),
        ({"ks": [3, 0]}, r"ks\[1\]: 0 is not valid. Give an integer of at least 1"),
        ({"ks": [2.0]}, r"ks\[0\]: 2.0 is not valid. Give an integer"),
        ({"ks": [3, 11]}, "n_samples=10 should be >= n_clusters=11"),
        ({"n_init": 0}, "n_init: 0 is not valid. Give an integer of at least 1"),
        ({"n_init": "auto"}, "n_init: 'auto' is not valid. Give an integer"),
        ({"max_iter": 0}, "max_iter: 0"),
        ({"random_state": -1}, "random_state: -1 is not valid. Give an integer of at least 0"),
        (
            {"random_state": "dice"},
            "random_state: 'dice' is not valid. Give",
        ),
        ({"random_state": 1.0}, "random_state: 1.0"),
        ({"random_state": True}, "random_state: True"),
        ({"tol": True}, "tol: True is not valid. Give a finite number"),
        ({"max_iter": True}, "max_iter: True"),
        ({"n_init": np.True_}, "n_init: np.True_"),
        ({"coarse": "no"}, "coarse: 'no' is not valid. Give True or False"),
        ({"coarse": 1}, "coarse: 1"),
        ({"cache": "no"}, "cache: 'no' is not valid. Use one of auto, always, never"),
        ({"cache": True}, "cache: True"),
        ({"fresh": "no"}, "fresh: 'no' is not valid. Give True or False"),
        ({"init": None}, "init: None is not valid. Use one of"),
        ({"init": 3}, "init: 3 is not valid"),
        ({"ks": "37"}, r"ks\[0\]: '3' is not valid. Give an integer"),
        ({"tol": -1}, "tol: -1 is not valid. Give a finite number"),
        ({"tol": np.nan}, "tol: nan"),
        ({"tol": np.inf}, "tol: inf"),
        ({"tol": "tight"}, "tol: 'tight'"),
        ({"init": "k-means--"}, "init: 'k-means--' is not valid. Use one of k-means"),
        ({"init": np.zeros((2, 4))}, r"shape of the initial centers \(2, 4\) .* clusters 3"),
        ({"init": np.full((3, 4), np.nan)}, "init for k = 3: NaN or infinity"),
        ({"init": [[1], [2, 3], [4]]}, "init for k = 3: not an array"),
        ({"ks": [2, 3], "init": {2: np.zeros((2, 4))}}, r"initial centers \(\) does not match"),
        ({"X": [[1.0], [2.0, 3.0]]}, "X: not an array"),
        (
            {"X": np.zeros(10, np.uint8)},
            r"got 1D array instead: X has shape \(10,\). Reshape your data",
        ),
        ({"X": np.zeros((0, 4), np.uint8)}, "n_samples=0 should be >= n_clusters=3"),
        (
            {"X": np.zeros((10, 0), np.uint8)},
            r"0 feature\(s\) \(shape=\(10, 0\)\) while a minimum of 1",
        ),
        ({"X": np.ma.masked_equal(np.eye(4), 0)}, "masked array"),
        ({"X": da.from_array(np.ma.masked_equal(np.eye(4), 0))}, "masked array"),
        ({"X": np.array([[0.0], [1], [np.nan], [3]]), "init": np.eye(3)[:, :1]}, "contains NaN"),
        ({"X": np.array([[0.0], [1], [np.inf], [3]])}, "contains infinity"),
        ({"X": np.array([[0.0], [1], [1e200], [3]]), "init": np.eye(3)[:, :1]}, "too large to"),
    ],
)
def test_fit_sweep_of_arguments_that_do_not_fit_is_refused(
    changes: dict[str, Any], match: str
) -> None:
    call: dict[str, Any] = {"X": np.arange(40, dtype=np.uint8).reshape(10, 4), "ks": [3]}
    with pytest.raises((daskkm.FitError, daskkm.ParameterError), match=match):
        daskkm.fit_sweep(**call | {"random_state": 0} | changes)


def test_fit_sweep_on_an_unknown_scheduler_is_refused() -> None:
    with (
        dask.config.set(scheduler="thread"),
        pytest.raises(daskkm.SchedulerError, match=r"dask: no usable scheduler \(Expected one"),
    ):
        daskkm.fit_sweep(np.eye(4), [2])


def test_fit_sweep_of_unsupported_dtypes_and_sums_is_refused() -> None:
    with pytest.raises(TypeError, match="complex128 are not supported"):
        daskkm.fit_sweep(np.zeros((10, 4), complex), [3])
    with pytest.raises(OverflowError, match="Use at most"):
        daskkm.fit_sweep(da.zeros((10**9, 256), dtype=np.uint16, chunks=(10**6, -1)), [3])
    model = daskkm.fit_sweep(np.eye(4, dtype=np.uint8), [2], random_state=0).models[2]
    with pytest.raises(daskkm.FitError, match="X has 3 features but the model of k = 2"):
        model.predict(np.zeros((2, 3), np.uint8))


@pytest.mark.parametrize(("chunk", "seed"), [(1, 0), (7, 1), (7, 2)])
def test_fit_sweep_of_weights_at_the_limit_of_exact_sums_is_exact(
    override_sizes: Callable[..., None], chunk: int, seed: int
) -> None:
    override_sizes(sample_tiles=4)
    rng = np.random.default_rng(seed)
    tiles = np.where(rng.random((40, 2)) < 0.5, -32768, 32767).astype(np.int16)
    weights = np.full(40, (2**63 - 1) // (2 * 65535**2) // 40)
    call: dict[str, Any] = {"n_init": 1, "random_state": seed, "sample_weight": weights}
    whole = daskkm.fit_sweep(da.from_array(tiles, chunks=40), [3], **call).models[3]
    parts = daskkm.fit_sweep(da.from_array(tiles, chunks=chunk), [3], **call).models[3]
    assert parts.inertia_ == whole.inertia_
    np.testing.assert_array_equal(parts.cluster_centers_, whole.cluster_centers_)
    with pytest.raises(OverflowError, match=r"weights added up.*Use at most 1073"):
        daskkm.fit_sweep(tiles, [3], **call | {"sample_weight": weights * 2})


@pytest.mark.parametrize("weight", [1e19, 2.0**60, 2**63])
def test_fit_sweep_of_weights_beyond_int64_is_fitted_as_floats(weight: float) -> None:
    tiles = np.array([[0.0], [1], [10], [11]])
    weights = np.full(4, weight, np.uint64 if isinstance(weight, int) else np.float64)
    result = daskkm.fit_sweep(tiles, [2], init=[[0.0], [10.0]], sample_weight=weights)
    assert result.models[2].cluster_centers_.tolist() == [[0.5], [10.5]]
    assert result.models[2].inertia_ == pytest.approx(float(weight))


@pytest.mark.parametrize(
    ("apart", "dtype", "weighted"),
    [
        (apart, dtype, (i + j) % 2 == 1)
        for i, apart in enumerate([1e3, 1e5, 1e7, 1e9])
        for j, dtype in enumerate(["float64", "float32"])
    ],
)
def test_fit_sweep_of_float_clusters_far_apart_keeps_inertia_exact(
    apart: float, dtype: str, weighted: bool
) -> None:
    rng = np.random.default_rng(0)
    offsets = np.array([-1, 0, 1])[rng.integers(0, 3, 600)] * apart
    tiles = (rng.normal(0, 1, (600, 3)) + offsets[:, None]).astype(dtype)
    weights = rng.random(600) if weighted else np.ones(600)
    start = np.array([[-apart] * 3, [0.0] * 3, [apart] * 3])
    call: dict[str, Any] = {"init": start, "sample_weight": weights if weighted else None}
    model = daskkm.fit_sweep(tiles, [3], **call).models[3]
    own = model.cluster_centers_[model.predict(tiles)]
    direct = (weights[:, None] * np.square(tiles.astype(float) - own)).sum()
    assert model.inertia_ == pytest.approx(direct, rel=1e-12)
    assert daskkm.KMeans(3, init=start, n_init=1).fit(tiles, sample_weight=weights).score(
        tiles, sample_weight=weights
    ) == pytest.approx(-direct, rel=1e-12)


def test_fit_sweep_in_many_threads_leaves_the_settings_of_dask_alone(rows: NDArray[Any]) -> None:
    def fit(seed: int) -> float:
        model = daskkm.fit_sweep(rows[:600], [3], n_init=1, init="k-means||", random_state=seed)
        return model.models[3].inertia_

    before = dask.config.get("scheduler", None)
    with ThreadPoolExecutor(8) as pool:
        at_once = list(pool.map(fit, range(8)))
    assert dask.config.get("scheduler", None) == before
    assert at_once == [fit(seed) for seed in range(8)]


def test_fit_sweep_of_an_unknown_number_of_features_is_refused(rows: NDArray[Any]) -> None:
    X = da.from_array(rows[:50], chunks=(20, 100))
    with pytest.raises(daskkm.FitError, match=r"Use X\.compute_chunk_sizes\(\)"):
        daskkm.fit_sweep(X[:, X[0] >= 0], [2])


@pytest.mark.parametrize(("distinct", "k", "tol"), [(1, 2, 0), (1, 2, 1e-4), (5, 8, 0)])
def test_fit_sweep_of_many_equal_floats_settles(distinct: int, k: int, tol: float) -> None:
    tiles = np.random.default_rng(0).random((distinct, 4)).repeat(200_000 // distinct, axis=0)
    X = da.from_array(tiles, chunks=(200_000, -1))
    model = daskkm.fit_sweep(X, [k], n_init=1, tol=tol, max_iter=50, random_state=0).models[k]
    assert model.converged_
    assert model.n_iter_ <= 3
    assert model.inertia_ < 1e-20


def test_fit_sweep_of_16_bits_with_fractional_weights_cannot_overflow() -> None:
    tiles = da.zeros((10**7, 256), dtype=np.uint16, chunks=(10**6, -1))
    weights = da.full(10**7, 0.5, chunks=10**6)
    with pytest.raises(OverflowError, match="tiles: 10000000 "):
        daskkm.fit_sweep(tiles, [2], sample_weight=weights)


def test_fit_sweep_of_few_tiles_with_weight_finds_them_outside_the_sample(
    override_sizes: Callable[..., None],
) -> None:
    override_sizes(sample_tiles=32)
    tiles = np.random.default_rng(0).integers(0, 256, (2000, 2), np.uint8)
    weights = np.zeros(2000)
    weights[[3, 800, 1500, 1900]] = 1
    for seed in range(4):
        call: dict[str, Any] = {"n_init": 1, "random_state": seed, "sample_weight": weights}
        model = daskkm.fit_sweep(tiles, [4], **call).models[4]
        assert model.inertia_ == 0
        with pytest.raises(daskkm.FitError, match=r"only 0 of the 32 tiles .* have weight"):
            daskkm.fit_sweep(tiles, [4], **call, init="random")
