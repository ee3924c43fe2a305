"""`KMeans` among scikit-learn's estimators, and beyond memory."""

from __future__ import annotations

import pickle
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


# Fewer tiles differ than there are clusters in some: that is said, as scikit-learn's own says it.
@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
@parametrize_with_checks([KMeans()])
def test_it_is_an_estimator(estimator: KMeans, check: Callable[[KMeans], None]) -> None:
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
    """Return tiles of which only a read tells how many there are."""
    blocks = in_blocks(tiles)
    return blocks[blocks[:, 0] >= 0]


def refuse(*_: Any, **__: Any) -> NoReturn:
    msg = "something was computed"
    raise AssertionError(msg)


# Beside the rest of scikit-learn.


def test_in_a_pipeline() -> None:
    tiles = make_tiles(dtype="float64")
    model = make_pipeline(StandardScaler(), KMeans(4, n_init=4, random_state=0)).fit(tiles)
    own = np.arange(len(tiles)) % 4
    assert sklearn.metrics.adjusted_rand_score(own, model.predict(tiles)) == 1
    # As a transformer: the distances to the centroids say which cluster a tile is of.
    k_means = KMeans(4, n_init=4, random_state=0)
    classifier = make_pipeline(k_means, StandardScaler(), LogisticRegression())
    assert classifier.fit(tiles, own).score(tiles, own) == 1


def test_in_a_grid_search() -> None:
    tiles = make_tiles()
    search = GridSearchCV(KMeans(n_init=4, random_state=0), {"n_clusters": [1, 2, 4]}, cv=3)
    search.fit(tiles)
    scores = search.cv_results_["mean_test_score"]
    assert scores[0] < scores[1] < scores[2] < 0
    assert search.best_params_ == {"n_clusters": 4}
    assert search.best_estimator_.labels_.shape == (300,)


def test_clones_and_pickles() -> None:
    tiles = make_tiles()
    model = KMeans(3, init="random", n_init=2, max_iter=7, tol=0.1, random_state=5).fit(tiles)
    assert clone(model).get_params() == model.get_params()
    assert not hasattr(clone(model), "cluster_centers_")
    again = pickle.loads(pickle.dumps(model))
    assert again.get_params() == model.get_params()
    assert again.inertia_ == model.inertia_
    np.testing.assert_array_equal(again.predict(tiles), model.labels_)


def test_columns_of_a_transform_have_names() -> None:
    model = KMeans(3, random_state=0).fit(make_tiles())
    assert model.get_feature_names_out().tolist() == ["kmeans0", "kmeans1", "kmeans2"]
    distances = model.set_output(transform="default").transform(make_tiles())
    assert isinstance(distances, np.ndarray)
    assert distances.shape == (300, 3)


@pytest.mark.parametrize("holds", [np.asarray, in_blocks, in_zarr])
@pytest.mark.parametrize("weighted", [False, True])
def test_predictions_transforms_and_scores_are_scikit_learns(
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


def test_what_is_in_memory_is_answered_in_memory() -> None:
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
def test_what_is_lazy_is_answered_lazily(holds: Callable[[NDArray[Any]], Any]) -> None:
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
def test_other_numbers_in_memory_are_converted(dtype: str) -> None:
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


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("few", [True, False], ids=["sampled whole", "beyond the sample"])
def test_a_seed_stands_for_one_result(
    sheets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    init: str,
    weighted: bool,
    few: bool,
) -> None:
    if not few:
        monkeypatch.setattr("daskkm.seeding._SAMPLE", 16)
    store = daskkm.ingest(sheets, tmp_path / "tiles.zarr", tile=(8, 8))
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


def test_a_seed_stands_for_one_result_on_processes_too(digits: daskkm.TileStore) -> None:
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


def test_tiles_in_memory_go_to_workers_without_a_warning() -> None:
    """Warnings are errors here, and dask warns of 10 MB."""
    tiles = np.random.default_rng(0).integers(0, 256, (120_000, 256), np.uint8)
    with (
        LocalCluster(2, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster),
    ):
        model = KMeans(2, max_iter=1, random_state=0).fit(tiles)
        assert model.score(tiles) == -model.inertia_
        np.testing.assert_array_equal(model.predict(tiles), model.labels_)
        assert model.transform(tiles).shape == (120_000, 2)


def test_starts_that_do_not_fit_are_said_before_tiles_are_read() -> None:
    X = da.map_blocks(lambda: 1 / 0, chunks=((9, 9), (4,)), dtype="uint8", meta=np.empty((0, 0)))
    for init in (np.zeros((2, 4)), {2: np.zeros((3, 4))}, np.zeros((3, 5)), "kmeans"):
        with pytest.raises(daskkm.FitError, match=r"starting centroids for k = 3|not known"):
            daskkm.fit_sweep(X, [3], init=init)


def test_random_states() -> None:
    tiles = make_tiles()

    def inertia(random_state: Any) -> float:
        model = KMeans(6, init="random", n_init=1, max_iter=1, random_state=random_state)
        return float(model.fit(tiles).inertia_)

    assert inertia(1) == inertia(np.int64(1)) != inertia(2)
    state = np.random.RandomState(0)
    drawn = [inertia(state), inertia(state)]
    assert drawn[0] != drawn[1]  # the state has moved on
    assert inertia(np.random.RandomState(0)) == drawn[0]
    before = np.random.RandomState(0).get_state()
    np.random.set_state(before)  # noqa: NPY002 (what None stands for)
    unseeded = inertia(None)
    np.random.set_state(before)  # noqa: NPY002
    assert inertia(None) == unseeded != inertia(None)


@pytest.mark.parametrize("holds", [np.asarray, in_blocks])
def test_a_callable_start_is_called_for_each_restart(
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


# How often it starts.


@pytest.mark.parametrize(("init", "restarts"), [("random", 10), ("k-means++", 1), ("k-means||", 1)])
def test_restarts_are_as_many_as_scikit_learns(init: str, restarts: int) -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (300, 6), np.uint8)
    auto = KMeans(6, init=init, random_state=0).fit(tiles)
    given = KMeans(6, init=init, n_init=restarts, random_state=0).fit(tiles)
    assert_same_bits(auto, given)
    calls = []

    def function(X: Any, k: int, random_state: Any) -> Any:
        calls.append(X)
        return X[:k]

    KMeans(6, init=function).fit(tiles)
    assert len(calls) == 10


def test_one_start_is_one_restart() -> None:
    tiles = make_tiles()
    start = tiles[:4].astype(np.float64)
    expected = KMeans(4, init=start, n_init=1).fit(tiles)
    for given in (start, start.tolist()):
        assert_same_bits(KMeans(4, init=given).fit(tiles), expected)
        with pytest.warns(RuntimeWarning, match="performing only one init in KMeans instead of"):
            model = KMeans(4, init=given, n_init=5).fit(tiles)
        assert_same_bits(model, expected)


# What does not fit.


@pytest.mark.parametrize("holds", [np.asarray, in_blocks])
@pytest.mark.parametrize("init", INITS)
def test_fewer_distinct_tiles_than_clusters(
    holds: Callable[[NDArray[Any]], Any], init: str
) -> None:
    X = holds(np.repeat(make_tiles(2), 5, axis=0))
    message = r"Number of distinct clusters \(2\) found smaller than n_clusters \(4\)"
    with pytest.warns(ConvergenceWarning, match=message):
        model = KMeans(4, init=init, random_state=0).fit(X)
    assert model.inertia_ == 0
    assert model.cluster_centers_.shape == (4, 6)
    assert len(np.unique(np.asarray(model.labels_))) == 2


def test_one_tile_is_its_centroid() -> None:
    tiles = make_tiles(1)
    model = KMeans(1).fit(tiles)
    np.testing.assert_array_equal(model.cluster_centers_, tiles)
    assert (model.inertia_, model.labels_.tolist()) == (0, [0])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"n_clusters": 0}, "n_clusters is 0; give an integer of at least 1"),
        ({"n_clusters": 2.0}, "n_clusters is 2.0; give"),
        ({"n_clusters": "many"}, "n_clusters is 'many'; give"),
        ({"n_clusters": True}, "n_clusters is True; give"),
        ({"n_clusters": 301}, "n_samples=300 should be >= n_clusters=301"),
        ({"n_init": 0}, "n_init is 0; give an integer of at least 1"),
        ({"n_init": "often"}, "n_init is 'often'; give"),
        ({"init": "k-means"}, "init 'k-means' is not known; use one of"),
        ({"init": None}, r"starting centroids for k = 3 have shape \(\)"),
        ({"init": np.zeros((2, 6))}, r"k = 3 have shape \(2, 6\); give .* shape \(3, 6\)"),
        ({"init": lambda X, k, random_state: X[: k - 1]}, r"have shape \(2, 6\)"),
        ({"max_iter": 0}, "max_iter is 0"),
        ({"tol": -1}, "tol is -1"),
        ({"random_state": "dice"}, "'dice' cannot be used to seed"),
        ({"random_state": -1}, "random_state is -1"),
    ],
)
@pytest.mark.parametrize("holds", [np.asarray, in_blocks, in_zarr])
def test_settings_that_do_not_fit_are_refused(
    holds: Callable[[NDArray[Any]], Any], changes: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        KMeans(**{"n_clusters": 3} | changes).fit(holds(make_tiles()))


def test_too_few_tiles_of_an_unknown_number() -> None:
    with pytest.raises(daskkm.FitError, match="there are 300 tiles, too few for k = 301"):
        KMeans(301).fit(selected(make_tiles()))


def spoilt(value: Any) -> NDArray[np.float64]:
    tiles = make_tiles(dtype="float64")
    tiles[33, 2] = value
    return tiles


@pytest.mark.parametrize(
    ("X", "error", "match"),
    [
        (spoilt(np.nan), ValueError, "contains NaN"),
        (spoilt(np.inf), ValueError, "contains infinity"),
        (in_blocks(spoilt(np.nan)), ValueError, "hold NaN, infinity"),
        (in_blocks(spoilt(np.inf)), ValueError, "hold NaN, infinity"),
        (sparse.csr_array(make_tiles()), TypeError, "[Ss]parse"),
        (make_tiles() * 1j, ValueError, "Complex data not supported"),
        (in_blocks(make_tiles() * 1j), TypeError, "complex128 are not supported"),
        (make_tiles()[0], ValueError, "Expected 2D array, got 1D"),
        (da.from_array(make_tiles()[0]), ValueError, r"X has shape \(6,\)"),
        (make_tiles()[:0], ValueError, r"0 sample\(s\)"),
        (in_blocks(make_tiles()[:0]), ValueError, "n_samples=0"),
        (np.ma.masked_equal(make_tiles(), 0), ValueError, "masked array"),
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
        "one axis",
        "one axis in blocks",
        "no tiles",
        "no tiles in blocks",
        "masked",
        "words",
    ],
)
def test_tiles_that_do_not_fit_are_refused(X: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        KMeans(3, random_state=0).fit(X)


@pytest.mark.parametrize("holds", [np.asarray, in_blocks, in_zarr])
def test_other_numbers_of_features_are_refused(holds: Callable[[NDArray[Any]], Any]) -> None:
    tiles = make_tiles()
    model = KMeans(3, random_state=0).fit(holds(tiles))
    for method in (model.predict, model.transform, model.score):
        with pytest.raises(ValueError, match="X has 5 features, but KMeans is expecting 6"):
            method(holds(tiles[:, :5]))


def test_nothing_is_said_before_a_fit() -> None:
    model = KMeans(3)
    for method in (model.predict, model.transform, model.score):
        with pytest.raises(NotFittedError):
            method(make_tiles())


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        (np.full(300, -1.0), "negative or not finite somewhere, or zero everywhere"),
        (np.r_[np.ones(299), -1], "negative"),
        (np.r_[np.ones(299), np.nan], "not finite"),
        (np.r_[np.ones(299), np.inf], "not finite"),
        (np.zeros(300), "zero everywhere"),
        (np.ones(299), r"shape \(299,\) .* for each of the 300 tiles"),
        (np.ones((300, 1)), r"shape \(300, 1\)"),
        (["heavy"] * 300, "give one number for each"),
    ],
    ids=[
        "all negative",
        "one negative",
        "NaN",
        "infinite",
        "zero",
        "too few",
        "two axes",
        "words",
    ],
)
@pytest.mark.parametrize("holds", [np.asarray, in_blocks])
def test_weights_that_do_not_fit_are_refused(
    holds: Callable[[NDArray[Any]], Any], weights: Any, match: str
) -> None:
    X = holds(make_tiles())
    model = KMeans(3, random_state=0).fit(X)
    for method in (model.fit, model.score):
        with pytest.raises(daskkm.FitError, match=match):
            method(X, sample_weight=weights)


def test_weights_selected_with_their_tiles() -> None:
    tiles = make_tiles()
    bright = tiles[:, 0] > 100
    weights = np.arange(300) % 3
    blocks, lazy = in_blocks(tiles), da.from_array(weights, chunks=70)
    some = KMeans(3, random_state=0).fit(blocks[bright], sample_weight=lazy[bright])
    X, sample_weight = blocks[blocks[:, 0] > 100], lazy[blocks[:, 0] > 100]
    unknown = KMeans(3, random_state=0).fit(X, sample_weight=sample_weight)
    assert_same_bits(unknown, some)
    assert np.isnan(sample_weight.shape[0]), "the caller's array was changed"


def test_a_sample_without_weight_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daskkm.seeding._SAMPLE", 8)
    weights = np.arange(300) == 299
    with pytest.raises(
        daskkm.FitError, match="only 0 of the 8 tiles that starts are drawn from have weight"
    ):
        KMeans(1, init="random", random_state=0).fit(make_tiles(), sample_weight=weights)


def test_columns_of_a_data_frame_may_have_any_name() -> None:
    frame = pandas.DataFrame({"features": [0.0, 1, 10, 11], "chunks": [0.0, 0, 5, 5]})
    model = KMeans(2, random_state=0).fit(frame)
    assert sorted(model.cluster_centers_.tolist()) == [[0.5, 0], [10.5, 5]]
    assert model.feature_names_in_.tolist() == ["features", "chunks"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_tiles_that_are_not_finite_are_found_when_they_are_read(bad: float) -> None:
    tiles = make_tiles(dtype="float64")
    model = KMeans(3, random_state=0).fit(tiles)
    tiles[250, 2] = bad
    for method in (model.predict, model.transform):
        lazy = method(in_blocks(tiles))
        with pytest.raises(ValueError, match="NaN or infinity"):
            lazy.compute()
    for method in (model.score, model.fit):
        with pytest.raises(ValueError, match=r"NaN|infinity"):
            method(in_blocks(tiles))


def test_big_endian_tiles_are_tiles() -> None:
    tiles = make_tiles(dtype="uint16")
    model = KMeans(3, random_state=0).fit(tiles)
    other = KMeans(3, random_state=0).fit(tiles.astype(">u2"))
    assert other.fitted_.dtype == np.dtype("uint16") == model.fitted_.dtype
    np.testing.assert_array_equal(other.cluster_centers_, model.cluster_centers_)
    lazy = KMeans(3, random_state=0).fit(in_blocks(tiles.astype(">u2")))
    np.testing.assert_array_equal(lazy.cluster_centers_, model.cluster_centers_)


def test_weights_by_place_and_as_one_number() -> None:
    tiles = make_tiles()
    weights = np.arange(len(tiles)) % 3
    model = KMeans(3, random_state=0).fit(tiles, sample_weight=weights)
    again = KMeans(3, random_state=0)
    np.testing.assert_array_equal(again.fit_predict(tiles, None, weights), model.labels_)
    np.testing.assert_array_equal(again.fit_transform(tiles, None, weights), model.transform(tiles))
    one = KMeans(3, random_state=0).fit(tiles, sample_weight=2.0)
    assert one.inertia_ == 2 * KMeans(3, random_state=0).fit(tiles).inertia_


def test_a_mapping_is_no_start() -> None:
    tiles = make_tiles()
    init: Any = {2: tiles[:2]}
    with pytest.raises(daskkm.FitError, match="init is a mapping"):
        KMeans(2, init=init).fit(tiles)


def test_a_function_is_given_an_array_whose_size_is_known() -> None:
    def init(X: da.Array, k: int, random_state: np.random.RandomState) -> Any:
        assert isinstance(random_state, np.random.RandomState)
        return X[:k].compute()

    tiles = make_tiles()
    model = KMeans(3, init=init, n_init=1).fit(selected(tiles))
    kept = selected(tiles).compute()
    expected = KMeans(3, init=kept[:3], n_init=1).fit(kept)
    np.testing.assert_array_equal(model.cluster_centers_, expected.cluster_centers_)


def test_a_model_is_saved_and_loaded(tmp_path: Path) -> None:
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
        np.testing.assert_array_equal(again.fitted_.counts_, model.fitted_.counts_)
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
        ({"init": lambda X, k, random_state: X[:k]}, r"init is <function.*set_params\(init="),
        ({"random_state": np.random.RandomState(0)}, r"random_state is RandomState"),
    ],
)
def test_what_only_a_pickle_could_hold_is_not_saved(
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
        {"params": {"n_clusters": 99}},
        {"params": {"n_clusters": 2}, "feature_names": ["a"]},
        {"params": {"n_clusters": 2}, "feature_names": 5},
    ],
)
def test_parameters_that_are_no_estimators_are_not_loaded(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    model = KMeans(2, random_state=0).fit(make_tiles())
    model.fitted_.save(tmp_path / "model.zarr", settings=settings)
    with pytest.raises(daskkm.ModelError, match=r"model\.zarr: the saved model's parameters"):
        daskkm.load_model(tmp_path / "model.zarr")
    model.fitted_.save(tmp_path / "model.zarr")
    assert daskkm.load_model(tmp_path / "model.zarr").n_clusters == 2
