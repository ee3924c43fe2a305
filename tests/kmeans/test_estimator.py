"""`KMeans` as an estimator of scikit-learn, in memory and lazily."""

from __future__ import annotations

import copy
import importlib
import pickle
import shutil
from typing import TYPE_CHECKING, Any, NoReturn

import dask
import dask.array as da
import numpy as np
import pandas
import pytest
import sklearn.cluster
import zarr
from distributed import Client, LocalCluster
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import daskkm
from daskkm import KMeans

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

INITS = ["k-means++", "k-means||", "random"]


# Some checks have fewer distinct tiles than clusters, of which scikit-learn warns too.
@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
@parametrize_with_checks([KMeans()])
def test_kmeans_passes_checks_of_estimators(
    estimator: KMeans, check: Callable[[KMeans], None]
) -> None:
    check(estimator)


def make_tiles(n: int = 300, k: int = 4, dtype: str = "uint8") -> NDArray[Any]:
    rng = np.random.default_rng(1)
    centres = rng.uniform(40, 210, (k, 6))
    tiles = centres[np.arange(n) % k] + rng.normal(0, 15, (n, 6))
    return tiles.clip(0, 255).astype(dtype)


def in_blocks(tiles: NDArray[Any]) -> da.Array:
    return da.from_array(tiles, chunks=(70, 4))


def in_zarr(tiles: NDArray[Any]) -> zarr.Array[Any]:
    array = zarr.create_array({}, shape=tiles.shape, chunks=(70, 4), dtype=tiles.dtype)
    array[:] = tiles
    return array


def selected(tiles: NDArray[Any]) -> da.Array:
    """Return tiles of unknown number."""
    blocks = in_blocks(tiles)
    return blocks[blocks[:, 0] >= 0]


def refuse(*_: Any, **__: Any) -> NoReturn:
    msg = "computed"
    raise AssertionError(msg)


# Use with the rest of scikit-learn.


def test_kmeans_in_a_pipeline_predicts_and_transforms() -> None:
    tiles = make_tiles(dtype="float64")
    model = make_pipeline(StandardScaler(), KMeans(4, n_init=4, random_state=0)).fit(tiles)
    own = np.arange(len(tiles)) % 4
    assert sklearn.metrics.adjusted_rand_score(own, model.predict(tiles)) == 1
    # As a transformer: distances to the centroids determine the cluster of a tile.
    k_means = KMeans(4, n_init=4, random_state=0)
    classifier = make_pipeline(k_means, StandardScaler(), LogisticRegression())
    assert classifier.fit(tiles, own).score(tiles, own) == 1


def test_kmeans_in_a_grid_search_is_scored() -> None:
    tiles = make_tiles()
    search = GridSearchCV(KMeans(n_init=4, random_state=0), {"n_clusters": [1, 2, 4]}, cv=3)
    search.fit(tiles)
    scores = search.cv_results_["mean_test_score"]
    assert scores[0] < scores[1] < scores[2] < 0
    assert search.best_params_ == {"n_clusters": 4}
    assert search.best_estimator_.labels_.shape == (300,)


def test_kmeans_cloned_or_pickled_keeps_its_parameters() -> None:
    tiles = make_tiles()
    model = KMeans(3, init="random", n_init=2, max_iter=7, tol=0.1, random_state=5).fit(tiles)
    assert clone(model).get_params() == model.get_params()
    assert not hasattr(clone(model), "cluster_centers_")
    again = pickle.loads(pickle.dumps(model))
    assert again.get_params() == model.get_params()
    assert again.inertia_ == model.inertia_
    np.testing.assert_array_equal(again.predict(tiles), model.labels_)


def test_transform_names_its_columns() -> None:
    model = KMeans(3, random_state=0).fit(make_tiles())
    assert model.get_feature_names_out().tolist() == ["kmeans0", "kmeans1", "kmeans2"]
    distances = model.set_output(transform="default").transform(make_tiles())
    assert isinstance(distances, np.ndarray)
    assert distances.shape == (300, 3)


@pytest.mark.parametrize(
    ("holds", "weighted"),
    [(np.asarray, False), (np.asarray, True), (in_blocks, True), (in_zarr, False)],
)
def test_predict_transform_and_score_are_those_of_scikit_learn(
    holds: Callable[[NDArray[Any]], Any], weighted: bool
) -> None:
    tiles, others = make_tiles(), np.random.default_rng(0).integers(0, 256, (200, 6), np.uint8)
    weights, new_weights = (np.random.default_rng(2).uniform(0, 3, n) for n in (300, 200))
    fit = {"sample_weight": weights} if weighted else {}
    new = {"sample_weight": new_weights} if weighted else {}
    settings: dict[str, Any] = {"init": tiles[:4].astype(np.float64), "n_init": 1}
    peer = sklearn.cluster.KMeans(4, **settings).fit(tiles.astype(np.float64), **fit)
    model = KMeans(4, **settings).fit(holds(tiles), **fit)
    assert model.score(holds(tiles), **fit) == pytest.approx(-model.inertia_, rel=1e-12)
    wide = others.astype(np.float64)
    assert model.score(holds(others), **new) == pytest.approx(peer.score(wide, **new), rel=1e-10)
    np.testing.assert_array_equal(model.predict(holds(others)), peer.predict(wide))
    # scikit-learn's distances are the roots of differences: good to half the digits.
    np.testing.assert_allclose(model.transform(holds(others)), peer.transform(wide), rtol=1e-7)


# In memory, or lazily.


def test_results_for_tiles_in_memory_are_in_memory() -> None:
    tiles = make_tiles()
    for X in (tiles, tiles.tolist()):
        model = KMeans(3, random_state=0).fit(X)
        for labels in (model.labels_, model.predict(X), model.fit_predict(X)):
            assert isinstance(labels, np.ndarray)
            assert labels.dtype == np.int32
            np.testing.assert_array_equal(labels, model.labels_)
        for distances in (model.transform(X), model.fit_transform(X)):
            assert isinstance(distances, np.ndarray)
            np.testing.assert_array_equal(distances.argmin(axis=1), model.labels_)


@pytest.mark.parametrize("holds", [in_blocks, in_zarr, selected])
def test_results_for_lazy_tiles_are_lazy(holds: Callable[[NDArray[Any]], Any]) -> None:
    tiles = make_tiles()
    X = holds(tiles)
    model = KMeans(3, random_state=0).fit(X)
    with dask.config.set(scheduler=refuse):
        labels, distances = model.predict(X), model.transform(X)
    known = KMeans(3, random_state=0).fit(tiles)
    for lazy in (model.labels_, labels, model.fit_predict(X)):
        assert isinstance(lazy, da.Array)
        assert lazy.dtype == np.int32
        np.testing.assert_array_equal(lazy.compute(), known.labels_)
    for lazy in (distances, model.fit_transform(X)):
        assert isinstance(lazy, da.Array)
        np.testing.assert_array_equal(lazy.compute(), known.transform(tiles))


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint32", "bool", "float16"])
def test_fit_of_other_numbers_is_that_of_float64(dtype: str) -> None:
    tiles = (make_tiles() > 128) if dtype == "bool" else make_tiles()
    model = KMeans(3, random_state=0).fit(tiles.astype(dtype))
    wide = KMeans(3, random_state=0).fit(tiles.astype(np.float64))
    assert model.inertia_ == wide.inertia_
    np.testing.assert_array_equal(model.labels_, wide.labels_)
    lazy = KMeans(3, random_state=0).fit(in_blocks(tiles.astype(dtype)))
    np.testing.assert_array_equal(lazy.labels_, wide.labels_)


# Seeds.


def fitted(X: Any, init: str, sample_weight: Any = None) -> KMeans:
    model = KMeans(4, init=init, n_init=2, max_iter=6, random_state=3)
    return model.fit(X, sample_weight=sample_weight)


def assert_same_bits(model: KMeans, other: KMeans) -> None:
    assert model.inertia_ == other.inertia_
    assert model.n_iter_ == other.n_iter_
    np.testing.assert_array_equal(model.cluster_centers_, other.cluster_centers_)
    np.testing.assert_array_equal(model.labels_, other.labels_)


# Each init is sampled whole and beyond the sample, once with weights.
@pytest.mark.parametrize(
    ("init", "few", "weighted"),
    [(init, few, few == (i % 2 == 0)) for i, init in enumerate(INITS) for few in (True, False)],
)
def test_fit_with_one_seed_of_any_kind_of_array_gives_one_result(
    images: Path,
    tmp_path: Path,
    override_sizes: Callable[..., None],
    init: str,
    few: bool,
    weighted: bool,
) -> None:
    if not few:
        override_sizes(sample_tiles=16)
    store = daskkm.create_store(images, tmp_path / "tiles.zarr", tile=(8, 8))
    tiles = store.features().compute()
    weights = np.arange(30) % 4 if weighted else None
    chunks = [30, 7, (0, 11, 0, 19), (1, 28, 1)]
    lazy = [da.from_array(tiles, chunks=(rows, 9 * (i + 1))) for i, rows in enumerate(chunks)]
    lazy.append(lazy[1][lazy[1][:, 0] >= 0])

    expected = fitted(tiles, init, weights)
    for X in (*lazy, in_zarr(tiles), store):
        model = fitted(X, init, weights)
        assert isinstance(model.labels_, da.Array)
        assert_same_bits(model, expected)


def test_fit_with_one_seed_on_worker_processes_gives_one_result(digits: daskkm.TileStore) -> None:
    tiles = digits.features()[:1500]
    with dask.config.set(scheduler="synchronous"):
        expected = {init: fitted(tiles, init) for init in INITS}
        for model in expected.values():
            model.labels_ = model.labels_.compute()
    with (
        LocalCluster(
            2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster),
    ):
        for init, model in expected.items():
            assert_same_bits(fitted(tiles, init), model)
            assert_same_bits(fitted(tiles.compute(), init), model)


def test_fit_of_tiles_in_memory_on_a_cluster_does_not_warn() -> None:
    # Warnings are errors here, and dask warns of 10 MB.
    tiles = np.random.default_rng(0).integers(0, 256, (60_000, 256), np.uint8)
    with (
        LocalCluster(2, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster),
    ):
        model = KMeans(2, max_iter=1, random_state=0).fit(tiles)
        assert model.score(tiles) == -model.inertia_
        np.testing.assert_array_equal(model.predict(tiles), model.labels_)
        assert model.transform(tiles).shape == (60_000, 2)


def test_fit_sweep_from_centroids_that_do_not_fit_is_refused_before_a_read() -> None:
    X = da.map_blocks(lambda: 1 / 0, chunks=((9, 9), (4,)), dtype="uint8", meta=np.empty((0, 0)))
    for init in (np.zeros((2, 4)), {2: np.zeros((3, 4))}, np.zeros((3, 5)), "kmeans"):
        with pytest.raises(ValueError, match=r"initial centers|init: 'kmeans'"):
            daskkm.fit_sweep(X, [3], init=init)


def test_fit_with_a_random_state_draws_its_seed_from_it() -> None:
    tiles = make_tiles()

    def inertia(random_state: Any) -> float:
        model = KMeans(6, init="random", n_init=1, max_iter=1, random_state=random_state)
        return float(model.fit(tiles).inertia_)

    assert inertia(1) == inertia(np.int64(1)) != inertia(2)
    state = np.random.RandomState(0)
    drawn = [inertia(state), inertia(state)]
    assert drawn[0] != drawn[1]  # the state has advanced
    assert inertia(np.random.RandomState(0)) == drawn[0]
    generator = np.random.default_rng(0)
    drawn = [inertia(generator), inertia(generator)]
    assert drawn[0] != drawn[1]
    assert inertia(np.random.default_rng(0)) == drawn[0]
    before = np.random.RandomState(0).get_state()
    np.random.set_state(before)  # noqa: NPY002 (what None stands for)
    unseeded = inertia(None)
    np.random.set_state(before)  # noqa: NPY002
    assert inertia(None) == unseeded != inertia(None)


@pytest.mark.parametrize("holds", [np.asarray, in_blocks])
def test_fit_with_an_init_function_calls_it_for_each_restart(
    holds: Callable[[NDArray[Any]], Any],
) -> None:
    X = holds(make_tiles())
    calls = []

    def init(given: Any, n_clusters: int, random_state: np.random.RandomState) -> Any:
        assert given is X
        start = random_state.uniform(0, 255, (n_clusters, 6))
        calls.append(start)
        return start

    model = KMeans(4, init=init, n_init=3, random_state=0).fit(X)
    assert len(calls) == 3
    assert len({start.tobytes() for start in calls}) == 3
    assert model.inertia_ == min(KMeans(4, init=start).fit(X).inertia_ for start in calls)
    assert KMeans(4, init=init, n_init=3, random_state=0).fit(X).inertia_ == model.inertia_
    for start, again in zip(calls[:3], calls[3:], strict=True):
        np.testing.assert_array_equal(start, again)


# Number of restarts.


@pytest.mark.parametrize(("init", "restarts"), [("random", 10), ("k-means++", 1), ("k-means||", 1)])
def test_n_init_auto_is_that_of_scikit_learn(init: str, restarts: int) -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (300, 6), np.uint8)
    auto = KMeans(6, init=init, random_state=0).fit(tiles)
    given = KMeans(6, init=init, n_init=restarts, random_state=0).fit(tiles)
    assert_same_bits(auto, given)


def test_n_init_auto_of_an_init_function_is_10() -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (300, 6), np.uint8)
    calls = []

    def function(X: Any, k: int, random_state: Any) -> Any:
        calls.append(X)
        return X[:k]

    KMeans(6, init=function).fit(tiles)
    assert len(calls) == 10


def test_fit_from_an_array_is_one_restart() -> None:
    tiles = make_tiles()
    start = tiles[:4].astype(np.float64)
    expected = KMeans(4, init=start, n_init=1).fit(tiles)
    for given in (start, start.tolist()):
        assert_same_bits(KMeans(4, init=given).fit(tiles), expected)
        with pytest.warns(RuntimeWarning, match="performing only one init in KMeans instead of"):
            model = KMeans(4, init=given, n_init=5).fit(tiles)
        assert_same_bits(model, expected)


# Errors and warnings.


@pytest.mark.parametrize("holds", [np.asarray, in_blocks])
@pytest.mark.parametrize("init", INITS)
def test_fit_of_fewer_distinct_tiles_than_clusters_warns(
    holds: Callable[[NDArray[Any]], Any], init: str
) -> None:
    X = holds(np.repeat(make_tiles(2), 5, axis=0))
    message = r"Number of distinct clusters \(2\) found smaller than n_clusters \(4\)"
    with pytest.warns(ConvergenceWarning, match=message):
        model = KMeans(4, init=init, random_state=0).fit(X)
    assert model.inertia_ == 0
    assert model.cluster_centers_.shape == (4, 6)
    assert len(np.unique(np.asarray(model.labels_))) == 2


def test_fit_of_one_tile_has_it_as_centroid() -> None:
    tiles = make_tiles(1)
    model = KMeans(1).fit(tiles)
    np.testing.assert_array_equal(model.cluster_centers_, tiles)
    assert (model.inertia_, model.labels_.tolist()) == (0, [0])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"n_clusters": 0}, "n_clusters: 0 is not valid. Give an integer of at least 1"),
        ({"n_clusters": 2.0}, "n_clusters: 2.0 is not valid. Give"),
        ({"n_clusters": "many"}, "n_clusters: 'many' is not valid. Give"),
        ({"n_clusters": True}, "n_clusters: True is not valid. Give"),
        ({"n_init": 0}, "n_init: 0 is not valid. Give an integer of at least 1"),
        ({"n_init": "often"}, "n_init: 'often' is not valid. Give"),
        ({"n_clusters": np.True_}, "n_clusters: np.True_ is not valid. Give"),
        ({"n_init": True}, "n_init: True is not valid. Give"),
        ({"n_init": np.ones(3)}, "n_init: array"),
        ({"init": None}, "init: None is not valid. Use one of"),
        ({"init": {3: np.zeros((3, 6))}}, "init: a mapping"),
        ({"max_iter": 2.0}, "max_iter: 2.0"),
        ({"tol": True}, "tol: True"),
        ({"coarse": None}, "coarse: None"),
        ({"cache": True}, "cache: True"),
        ({"copy_x": "no"}, "copy_x: 'no' is not valid. Give True or False"),
        ({"algorithm": "full"}, "algorithm: 'full' is not valid. Use one of lloyd, elkan, auto"),
        ({"algorithm": None}, "algorithm: None"),
        ({"verbose": -1}, "verbose: -1 is not valid. Give an integer of at least 0"),
        ({"verbose": "yes"}, "verbose: 'yes'"),
        ({"random_state": 1.5}, "random_state: 1.5"),
    ],
)
def test_fit_with_parameters_that_do_not_fit_is_refused(
    changes: dict[str, Any], match: str
) -> None:
    with pytest.raises(daskkm.ParameterError, match=match) as error:
        KMeans(**{"n_clusters": 3} | changes).fit(make_tiles())
    assert isinstance(error.value, ValueError)  # as scikit-learn's InvalidParameterError
    assert isinstance(error.value, TypeError)


@pytest.mark.parametrize(
    ("init", "match"),
    [
        (np.zeros((2, 6)), r"shape of the initial centers \(2, 6\) .* the number of clusters 3"),
        (np.zeros((3, 5)), r"centers \(3, 5\) .* the number of features of the data 6"),
        (lambda X, k, random_state: X[: k - 1], r"\(2, 6\) does not match the number of clusters"),
        (np.full((3, 6), np.nan), "init for k = 3: NaN or infinity"),
        (np.ma.masked_less(np.zeros((3, 6)), 1), "init for k = 3: masked arrays"),
        (np.zeros((3, 6), complex), "init for k = 3: .* masked or complex"),
    ],
)
@pytest.mark.parametrize("holds", [np.asarray, in_blocks])
def test_fit_from_centroids_that_do_not_fit_is_refused(
    holds: Callable[[NDArray[Any]], Any], init: Any, match: str
) -> None:
    with pytest.raises((daskkm.FitError, daskkm.ParameterError), match=match):
        KMeans(3, init=init, n_init=1).fit(holds(make_tiles()))


@pytest.mark.parametrize("holds", [np.asarray, in_blocks, in_zarr, selected])
def test_fit_of_fewer_tiles_than_clusters_is_refused(holds: Callable[[NDArray[Any]], Any]) -> None:
    with pytest.raises(daskkm.FitError, match="n_samples=300 should be >= n_clusters=301"):
        KMeans(301).fit(holds(make_tiles()))


def spoilt(value: Any) -> NDArray[np.float64]:
    tiles = make_tiles(dtype="float64")
    tiles[33, 2] = value
    return tiles


@pytest.mark.parametrize(
    ("X", "error", "match"),
    [
        (spoilt(np.nan), daskkm.FitError, "Input X contains NaN. Drop"),
        (spoilt(np.inf), daskkm.FitError, "Input X contains infinity. Drop"),
        (in_blocks(spoilt(np.nan)), daskkm.FitError, "Input X contains NaN. Drop"),
        (in_blocks(spoilt(np.inf)), daskkm.FitError, "Input X contains infinity. Drop"),
        (sparse.csr_array(make_tiles()), TypeError, "[Ss]parse"),
        (make_tiles() * 1j, ValueError, "Complex data not supported"),
        (in_blocks(make_tiles() * 1j), ValueError, "Complex data not supported"),
        (make_tiles().astype("M8[s]"), TypeError, "datetime64.* are not supported"),
        (in_blocks(make_tiles().astype("M8[s]")), TypeError, "datetime64.* are not supported"),
        (make_tiles()[0], ValueError, "Expected 2D array, got 1D"),
        (
            da.from_array(make_tiles()[0]),
            ValueError,
            "Expected 2D array, got 1D .*Reshape your data",
        ),
        (make_tiles()[:0], ValueError, r"Found array with 0 sample\(s\) \(shape=\(0, 6\)\)"),
        (in_blocks(make_tiles()[:0]), ValueError, r"Found array with 0 sample\(s\)"),
        (
            make_tiles()[:, :0],
            ValueError,
            r"0 feature\(s\) \(shape=\(300, 0\)\) while a minimum of 1",
        ),
        (da.zeros((9, 0)), ValueError, r"0 feature\(s\) \(shape=\(9, 0\)\) while a minimum of 1"),
        (np.ma.masked_equal(make_tiles(), 0), ValueError, "X: masked arrays"),
        ([["a", "b"]] * 4, ValueError, "could not convert string"),
    ],
    ids=[
        "NaN",
        "infinity",
        "NaN in blocks",
        "infinity in blocks",
        "sparse",
        "complex",
        "complex in blocks",
        "times",
        "times in blocks",
        "one axis",
        "one axis in blocks",
        "no tiles",
        "no tiles in blocks",
        "no features",
        "no features in blocks",
        "masked",
        "words",
    ],
)
def test_fit_of_tiles_that_do_not_fit_is_refused(
    X: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        KMeans(3, random_state=0).fit(X)


@pytest.mark.parametrize("holds", [np.asarray, in_blocks, in_zarr])
def test_methods_given_another_number_of_features_refuse_it(
    holds: Callable[[NDArray[Any]], Any],
) -> None:
    tiles = make_tiles()
    model = KMeans(3, random_state=0).fit(holds(tiles))
    for method in (model.predict, model.transform, model.score):
        with pytest.raises(ValueError, match="X has 5 features, but KMeans is expecting 6"):
            method(holds(tiles[:, :5]))


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        (np.full(300, -1.0), r"sample_weight: negative \(-1\.0\)\. Give weights of at least 0"),
        (np.r_[np.ones(299), -1], r"sample_weight: negative \(-1\.0\)"),
        (np.r_[np.ones(299), np.nan], "Input sample_weight contains NaN"),
        (np.r_[np.ones(299), np.inf], "Input sample_weight contains infinity"),
        (np.full(300, 1e308), "sample_weight, is too large to square and sum up"),
        (np.zeros(300), "zero everywhere"),
        (np.ones(299), r"shape \(299,\) .* for each of the 300 tiles"),
        (np.ones((300, 1)), r"shape \(300, 1\)"),
        (["heavy"] * 300, "Give one number for each"),
    ],
    ids=[
        "all negative",
        "one negative",
        "NaN",
        "infinite",
        "huge",
        "zero",
        "too few",
        "two axes",
        "words",
    ],
)
@pytest.mark.parametrize("holds", [np.asarray, in_blocks])
def test_fit_and_score_with_weights_that_do_not_fit_are_refused(
    holds: Callable[[NDArray[Any]], Any], weights: Any, match: str
) -> None:
    X = holds(make_tiles())
    model = KMeans(3, random_state=0).fit(X)
    for method in (model.fit, model.score):
        with pytest.raises(daskkm.FitError, match=match):
            method(X, sample_weight=weights)


def test_fit_with_weights_of_unknown_number_is_that_of_known() -> None:
    tiles = make_tiles()
    bright = tiles[:, 0] > 100
    weights = np.arange(300) % 3
    blocks, lazy = in_blocks(tiles), da.from_array(weights, chunks=70)
    some = KMeans(3, random_state=0).fit(blocks[bright], sample_weight=lazy[bright])
    X, sample_weight = blocks[blocks[:, 0] > 100], lazy[blocks[:, 0] > 100]
    unknown = KMeans(3, random_state=0).fit(X, sample_weight=sample_weight)
    assert_same_bits(unknown, some)
    assert np.isnan(sample_weight.shape[0]), "the caller's array was changed"


def test_fit_of_a_sample_without_weight_is_refused(override_sizes: Callable[..., None]) -> None:
    override_sizes(sample_tiles=8)
    weights = np.arange(300) == 299
    message = "only 0 of the 8 tiles of the sample have weight"
    with pytest.raises(daskkm.FitError, match=message):
        KMeans(1, init="random", random_state=0).fit(make_tiles(), sample_weight=weights)


def test_fit_of_a_data_frame_takes_columns_of_any_name() -> None:
    frame = pandas.DataFrame({"features": [0.0, 1, 10, 11], "chunks": [0.0, 0, 5, 5]})
    model = KMeans(2, random_state=0).fit(frame)
    assert sorted(model.cluster_centers_.tolist()) == [[0.5, 0], [10.5, 5]]
    assert model.feature_names_in_.tolist() == ["features", "chunks"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_methods_given_tiles_that_are_not_finite_refuse_them_when_read(bad: float) -> None:
    tiles = make_tiles(dtype="float64")
    model = KMeans(3, random_state=0).fit(tiles)
    tiles[250, 2] = bad
    for method in (model.predict, model.transform):
        lazy = method(in_blocks(tiles))
        with pytest.raises(daskkm.FitError, match="Input X contains"):
            lazy.compute()
        with pytest.raises(daskkm.FitError, match="Input X contains"):
            method(tiles)
    for method in (model.score, model.fit):
        for X in (tiles, in_blocks(tiles)):
            with pytest.raises(daskkm.FitError, match="Input X contains"):
                method(X)


def test_fit_of_big_endian_tiles_is_that_of_native() -> None:
    tiles = make_tiles(dtype="uint16")
    model = KMeans(3, random_state=0).fit(tiles)
    other = KMeans(3, random_state=0).fit(tiles.astype(">u2"))
    assert other.fitted_model.dtype == np.dtype("uint16") == model.fitted_model.dtype
    np.testing.assert_array_equal(other.cluster_centers_, model.cluster_centers_)
    lazy = KMeans(3, random_state=0).fit(in_blocks(tiles.astype(">u2")))
    np.testing.assert_array_equal(lazy.cluster_centers_, model.cluster_centers_)


def test_fit_takes_weights_by_position_and_as_one_number() -> None:
    tiles = make_tiles()
    weights = np.arange(len(tiles)) % 3
    model = KMeans(3, random_state=0).fit(tiles, sample_weight=weights)
    assert_same_bits(KMeans(3, random_state=0).fit(tiles, None, weights), model)
    again, weighted = KMeans(3, random_state=0), {"sample_weight": weights}
    np.testing.assert_array_equal(again.fit_predict(tiles, **weighted), model.labels_)
    np.testing.assert_array_equal(again.fit_transform(tiles, **weighted), model.transform(tiles))
    one = KMeans(3, random_state=0).fit(tiles, sample_weight=2.0)
    assert one.inertia_ == 2 * KMeans(3, random_state=0).fit(tiles).inertia_


def test_init_function_is_given_an_array_of_known_size() -> None:
    def init(X: da.Array, k: int, random_state: np.random.RandomState) -> Any:
        assert isinstance(random_state, np.random.RandomState)
        return X[:k].compute()

    tiles = make_tiles()
    model = KMeans(3, init=init, n_init=1).fit(selected(tiles))
    kept = selected(tiles).compute()
    expected = KMeans(3, init=kept[:3], n_init=1).fit(kept)
    np.testing.assert_array_equal(model.cluster_centers_, expected.cluster_centers_)


def test_load_model_returns_the_model_that_was_saved(tmp_path: Path) -> None:
    tiles = pandas.DataFrame(make_tiles(dtype="float64"), columns=list("abcdef"))
    inits: list[Any] = ["k-means||", tiles.to_numpy()[:3], tiles.to_numpy()[:3].tolist()]
    for init in inits:
        model = KMeans(init=init, n_init=1, tol=np.float64(1e-3), random_state=7)
        model.set_params(n_clusters=np.int64(3))
        model.fit(tiles).save(tmp_path / "model.zarr")
        again = daskkm.load_model(tmp_path / "model.zarr")
        for name, value in model.get_params().items():
            np.testing.assert_array_equal(again.get_params()[name], value)
        np.testing.assert_array_equal(again.cluster_centers_, model.cluster_centers_)
        np.testing.assert_array_equal(again.fitted_model.counts_, model.fitted_model.counts_)
        np.testing.assert_array_equal(again.predict(tiles), model.labels_)
        assert (again.inertia_, again.n_iter_) == (model.inertia_, model.n_iter_)
        assert again.n_features_in_ == 6
        assert again.feature_names_in_.tolist() == list("abcdef")
        assert again.score(tiles) == model.score(tiles)
        again.fit(tiles)
        assert again.inertia_ == model.inertia_


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"init": lambda X, k, random_state: X[:k]}, r"hold init \(<function.*set_params\(init="),
        ({"random_state": np.random.RandomState(0)}, r"hold random_state \(RandomState"),
    ],
)
def test_save_of_parameters_that_need_a_pickle_is_refused(
    params: dict[str, Any], match: str, tmp_path: Path
) -> None:
    model = KMeans(2, n_init=1, **params).fit(make_tiles())
    with pytest.raises(daskkm.ModelError, match=match):
        model.save(tmp_path / "model.zarr")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "settings",
    [
        {"params": None},
        {"params": [1]},
        {"params": {"lr": 3}},
    ],
)
def test_load_model_with_unknown_parameters_is_refused(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    model = KMeans(2, random_state=0).fit(make_tiles())
    model.fitted_model.save(tmp_path / "model.zarr", settings=settings)
    with pytest.raises(daskkm.ModelError, match=r"model\.zarr: .* Fit the model again"):
        daskkm.load_model(tmp_path / "model.zarr")
    model.fitted_model.save(tmp_path / "model.zarr")
    assert daskkm.load_model(tmp_path / "model.zarr").n_clusters == 2


def test_save_after_set_params_saves_the_new_parameters(tmp_path: Path) -> None:
    model = KMeans(2, random_state=0).fit(make_tiles())
    model.set_params(n_clusters=5).save(tmp_path / "model.zarr")
    again = daskkm.load_model(tmp_path / "model.zarr")
    assert (again.n_clusters, again.cluster_centers_.shape) == (5, (2, 6))
    np.testing.assert_array_equal(again.predict(make_tiles()), model.labels_)


# Assigned centroids.


def results_of_methods(model: KMeans, X: Any, folder: Path) -> list[Any]:
    """Return the result of each method, of the model and of a saved copy."""
    model.save(folder / "model.zarr")
    found: list[Any] = []
    for each in (model, daskkm.load_model(folder / "model.zarr")):
        found += [each.predict(X), each.transform(X), each.score(X), each.cluster_centers_]
        found.append(each.get_feature_names_out())
    return [np.asarray(part) for part in found]


def assigned(model: KMeans, centroids: Any) -> KMeans:
    model.cluster_centers_ = centroids
    return model


@pytest.mark.parametrize("holds", [np.asarray, in_blocks])
def test_methods_after_assigned_centroids_use_them(
    holds: Callable[[NDArray[Any]], Any], tmp_path: Path
) -> None:
    X = holds(make_tiles())
    fitted = KMeans(4, random_state=0).fit(X)
    order = np.array([2, 0, 3, 1])
    centroids = fitted.cluster_centers_[order]
    labels = np.argsort(order)[np.asarray(fitted.labels_)]
    expected = np.asarray(fitted.transform(X))[:, order]
    models = [
        assigned(clone(fitted), centroids),
        assigned(KMeans(), centroids),
        assigned(KMeans(3, random_state=0).fit(X), centroids.tolist()),
        assigned(fitted, centroids),
        pickle.loads(pickle.dumps(fitted)),
        copy.deepcopy(fitted),
    ]
    for model in models:
        predicted, distances, score, centers, names, *again = results_of_methods(model, X, tmp_path)
        np.testing.assert_array_equal(predicted, labels)
        np.testing.assert_array_equal(distances, expected)
        np.testing.assert_array_equal(centers, centroids)
        assert score == pytest.approx(-fitted.inertia_)
        assert names.tolist() == [f"kmeans{i}" for i in range(4)]
        for part, other in zip([predicted, distances, score, centers, names], again, strict=True):
            np.testing.assert_array_equal(part, other)
    assert not hasattr(clone(fitted), "cluster_centers_")


def test_assigned_centroids_leave_labels_and_inertia_of_the_fit() -> None:
    tiles = make_tiles()
    model = KMeans(3, random_state=0).fit(tiles)
    labels, inertia = model.labels_.copy(), model.inertia_
    centroids = model.cluster_centers_[::-1].copy()
    model.cluster_centers_ = centroids
    np.testing.assert_array_equal(model.labels_, labels)
    assert model.inertia_ == inertia
    # The counts and inertia of other centroids are not those of the model that is saved.
    assert np.isnan(model.fitted_model.counts_).all()
    assert np.isnan(model.fitted_model.inertia_)
    centroids[:] = 0
    np.testing.assert_array_equal(model.predict(tiles), 2 - labels)
    again = model.fit(tiles)
    assert again.fitted_model.counts_.sum() == 300


def test_assigned_centroids_with_other_features_drop_their_names() -> None:
    frame = pandas.DataFrame(make_tiles(dtype="float64"), columns=list("abcdef"))
    model = KMeans(3, random_state=0).fit(frame)
    model.cluster_centers_ = model.cluster_centers_ + 1
    assert model.feature_names_in_.tolist() == list("abcdef")
    model.cluster_centers_ = model.cluster_centers_[:, :5]
    assert (model.n_features_in_, hasattr(model, "feature_names_in_")) == (5, False)
    assert model.predict(frame.to_numpy()[:, :5]).shape == (300,)
    with pytest.raises(ValueError, match="X has 6 features, but KMeans is expecting 5"):
        model.predict(frame.to_numpy())


@pytest.mark.parametrize(
    "centroids",
    [None, "many", 3.0, np.zeros(3), np.zeros((0, 3)), [[1, np.nan]], [[1], [2, 3]], [[1j]]],
)
def test_assigned_centroids_that_are_not_a_matrix_are_refused(centroids: Any) -> None:
    model = KMeans(2, random_state=0).fit(make_tiles())
    before = model.cluster_centers_
    with pytest.raises(daskkm.ParameterError, match="cluster_centers_"):
        model.cluster_centers_ = centroids
    assert model.cluster_centers_ is before


def test_label_by_assigned_centroids_writes_their_labels(
    digits: daskkm.TileStore, tmp_path: Path
) -> None:
    store = daskkm.open_store(shutil.copytree(digits.path, tmp_path / "tiles.zarr"))
    model = assigned(KMeans(2), [np.zeros(256), np.full(256, 255.0)])
    store.label(model)
    np.testing.assert_array_equal(store.labels(2), model.predict(store))
    assert daskkm.assess(store, {2: model})[2].inertia == -model.score(store)


@pytest.mark.parametrize(
    "ask",
    [
        lambda model, store: model.predict(store),
        lambda model, store: model.transform(store),
        lambda model, store: model.score(store),
        lambda model, store: model.get_feature_names_out(),
        lambda model, store: model.save("model.zarr"),
        lambda model, store: model.cluster_centers_,
        lambda model, store: model.fitted_model,
        lambda model, store: store.label(model),
        lambda model, store: daskkm.assess(store, {8: model}),
    ],
)
def test_methods_of_an_unfitted_model_raise_one_error(
    ask: Callable[[KMeans, Any], Any], digits: daskkm.TileStore
) -> None:
    model = KMeans()
    model.labels_ = np.zeros(3)  # this attribute does not make the model fitted
    with pytest.raises(NotFittedError, match="This KMeans instance is not fitted yet"):
        ask(model, digits)


# Parameters of scikit-learn's KMeans.


@pytest.mark.parametrize(
    ("algorithm", "copy_x"), [("lloyd", True), ("elkan", False), ("auto", False)]
)
def test_algorithm_and_copy_x_do_not_change_result_or_tiles(algorithm: str, copy_x: bool) -> None:
    tiles = make_tiles(dtype="float64")
    before = tiles.copy()
    model = KMeans(3, random_state=0, algorithm=algorithm, copy_x=copy_x).fit(tiles)
    assert_same_bits(model, KMeans(3, random_state=0).fit(tiles))
    np.testing.assert_array_equal(tiles, before)


@pytest.mark.parametrize(("init", "n_init"), [("random", 1), ("random", 3), ("k-means||", 2)])
def test_verbose_prints_a_line_for_each_pass(
    init: str, n_init: int, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"init": init, "n_init": n_init, "random_state": 0, "tol": 0}
    silent = KMeans(3, **settings).fit(make_tiles())
    assert capsys.readouterr().out == ""
    model = KMeans(3, verbose=True, **settings).fit(make_tiles())
    assert_same_bits(model, silent)
    lines = capsys.readouterr().out.splitlines()
    passes = [line for line in lines if line.startswith("Iteration ")]
    assert [line.startswith("Iteration 0, inertia ") for line in passes].count(True) == 1
    assert f"inertia {model.inertia_}" in passes[-1]
    assert lines.count("Initialization complete") == 1
    assert len(set(lines)) == len(lines)  # no line repeats
    seeding = [line for line in lines if line.startswith("Initialization, pass ")]
    assert len(set(seeding)) == len(seeding) == (1 if init == "random" else 7)
    assert sum("strict convergence" in line for line in lines) == n_init


def test_cluster_centers_are_read_only() -> None:
    model = KMeans(3, random_state=0).fit(make_tiles())
    with pytest.raises(ValueError, match="read-only"):
        model.cluster_centers_[0] = 0
    model.cluster_centers_ = model.cluster_centers_[::-1]
    with pytest.raises(ValueError, match="read-only"):
        model.cluster_centers_[0] = 0


@pytest.mark.parametrize(
    ("holds", "container"),
    [
        (np.asarray, "pandas"),
        (np.asarray, "polars"),
        (in_blocks, "pandas"),
        (in_zarr, "polars"),
        (selected, "polars"),
    ],
)
def test_transform_with_set_output_returns_data_frames(
    holds: Callable[[NDArray[Any]], Any], container: str
) -> None:
    module = importlib.import_module(container)
    X = holds(make_tiles())
    model = KMeans(3, random_state=0).fit(X)
    expected = np.asarray(model.transform(X))
    model.set_output(transform=container)
    framed = [model.transform(X), model.fit_transform(X)]
    with sklearn.config_context(transform_output=container):
        framed.append(KMeans(3, random_state=0).fit(X).transform(X))
    for frame in framed:
        assert isinstance(frame, module.DataFrame)
        assert list(frame.columns) == ["kmeans0", "kmeans1", "kmeans2"]
        np.testing.assert_array_equal(frame.to_numpy(), expected)


# Values too large to square.


TOO_LARGE: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "all": lambda tiles: tiles * 1e200,
    "one": lambda tiles: np.where(np.arange(300)[:, None] == 77, 1e200, tiles),
    "to sum": lambda tiles: tiles / 255 * 1.3e154,
    "most": lambda tiles: tiles / 255 * 1.7e308,
}


@pytest.mark.parametrize(
    ("values", "init", "holds"),
    [
        (values, init, (np.asarray, in_blocks)[(i + j) % 2])
        for i, values in enumerate(TOO_LARGE)
        for j, init in enumerate([*INITS, "array"])
    ],
)
def test_fit_of_values_too_large_to_square_is_refused_without_a_warning(
    values: str, init: str, holds: Callable[[NDArray[Any]], Any]
) -> None:
    # Warnings are errors here.
    tiles = TOO_LARGE[values](make_tiles(dtype="float64"))
    start: Any = tiles[:3] if init == "array" else init
    with pytest.raises(daskkm.FitError, match=r"too large to square and sum up\. Scale"):
        KMeans(3, init=start, n_init=1, random_state=0).fit(holds(tiles))


@pytest.mark.parametrize("holds", [np.asarray, in_blocks])
def test_methods_given_values_too_large_to_square_refuse_them(
    holds: Callable[[NDArray[Any]], Any],
) -> None:
    tiles = make_tiles(dtype="float64")
    model = KMeans(3, random_state=0).fit(tiles)
    for method in (model.transform, model.score):
        with pytest.raises(daskkm.FitError, match="too large to square"):
            np.asarray(method(holds(tiles * 1e200)))


@pytest.mark.parametrize(
    ("init", "dtype"),
    [("k-means++", "uint16"), ("k-means||", "float64"), ("random", "uint16")],
)
def test_fit_with_weights_too_large_is_refused_without_a_warning(init: str, dtype: str) -> None:
    tiles = make_tiles(dtype="float64") * 257
    with pytest.raises(daskkm.FitError, match="too large to square and sum up"):
        KMeans(3, init=init, random_state=0).fit(tiles.astype(dtype), sample_weight=1e300)


def test_fit_of_the_largest_float32_is_finite() -> None:
    tiles = (make_tiles(dtype="float64") / 255 * np.finfo(np.float32).max).astype(np.float32)
    model = KMeans(3, random_state=0).fit(tiles)
    assert np.isfinite(model.inertia_)
    assert model.cluster_centers_.dtype == model.transform(tiles).dtype == np.float64
    far = KMeans(2, init=np.array([[0.0] * 6, [1e200] * 6])).fit(make_tiles())
    assert np.isfinite(far.inertia_)
