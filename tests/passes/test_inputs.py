"""Kinds of X, weights and classes: each is recognized, or an error says what to give."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas
import pytest
import scipy.sparse
import xarray
import zarr

import daskkm
from daskkm.errors import FitError
from daskkm.passes import inputs
from daskkm.passes.tiles import Tiles
from tests.passes.kinds import KINDS, LAZY, in_file, in_shards

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

X = np.random.default_rng(0).random((60, 4))
PIXELS = np.random.default_rng(1).integers(0, 256, (60, 4), np.uint8)
LAZY_X = da.from_array(X, chunks=(20, 4))
FIT: dict[str, Any] = {"n_init": 1, "random_state": 0, "max_iter": 5}


def centroids(given: Any, **more: Any) -> bytes:
    return daskkm.fit_sweep(given, [3], **FIT, **more).models[3].cluster_centers_.tobytes()


@cache
def fitted_to_pixels() -> daskkm.KMeans:
    return daskkm.KMeans(3, **FIT).fit(PIXELS)


@cache
def fitted_with_weights() -> bytes:
    return centroids(PIXELS, sample_weight=np.arange(60) % 3)


@pytest.mark.parametrize("kind", KINDS)
def test_fit_of_each_kind_of_array_looks_at_it_once_and_gives_the_same(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Any] = []
    resolve = inputs.resolve

    def counting(X: Any) -> Any:
        looks.append(X)
        return resolve(X)

    given, weights = KINDS[kind](PIXELS, 5, str(tmp_path)), np.arange(60) % 3
    model, expected = fitted_to_pixels(), fitted_with_weights()
    results = {name: getattr(model, name)(PIXELS) for name in ("predict", "transform")}
    monkeypatch.setattr(inputs, "resolve", counting)
    with dask.config.set(scheduler="sync"):
        assert centroids(given, sample_weight=weights) == expected
        other = daskkm.KMeans(3, **FIT).fit(given)
        assert other.cluster_centers_.tobytes() == model.cluster_centers_.tobytes()
        assert isinstance(other.labels_, da.Array) is (kind in LAZY)
        for name, result in results.items():
            found = getattr(other, name)(given)
            assert isinstance(found, da.Array) is (kind in LAZY)
            np.testing.assert_array_equal(np.asarray(found), result)
        assert daskkm.assess(given, {3: model})[3].inertia == model.inertia_
    assert len(looks) == 5


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "Dataset": (lambda _: xarray.Dataset({"a": ("x", [1.0])}), "Give one array"),
    "group": (lambda folder: zarr.create_group(folder / "group"), "Give one array"),
    "dict": (lambda _: {"a": X}, "'a'"),
    "path": (lambda folder: folder, "Open the path by"),
    "str": (lambda _: "tiles.zarr", "daskkm.open_store"),
    "Delayed": (lambda _: dask.delayed(X), "from_delayed"),
    "generator": (lambda _: (row for row in X), "not an array but a generator"),
    "None": (lambda _: None, "not an array but a NoneType"),
    "sparse": (lambda _: scipy.sparse.csr_array(X), "Sparse data was passed"),
    "sparse blocks": (lambda _: LAZY_X.map_blocks(scipy.sparse.csr_matrix), "X: blocks of scipy"),
    "text": (lambda _: np.full((60, 4), "a"), "dtype"),
    "lazy text": (lambda _: da.from_array(np.full((60, 4), "a")), "dtype"),
    "lazy complex": (lambda _: LAZY_X * 1j, "dtype"),
    "frame of text": (
        lambda _: dd.from_pandas(pandas.DataFrame({"a": ["b"], "c": [1]}), npartitions=1),
        "'a'",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_resolve_of_anything_but_an_array_says_what_to_give(kind: str, tmp_path: Path) -> None:
    make, words = REFUSED[kind]
    given, model = make(tmp_path), fitted_to_pixels()
    for call in (
        lambda: daskkm.fit_sweep(given, [3]),
        lambda: model.fitted_model.predict(given),
        lambda: daskkm.assess(given, {3: model}),
    ):
        with pytest.raises(TypeError, match=words) as raised:
            call()
        assert "\n" not in str(raised.value)
    with pytest.raises((TypeError, ValueError)):  # scikit-learn's own words for what is in memory
        daskkm.KMeans(3).fit(given)


@pytest.mark.parametrize("name", ["bool", "int64"])
def test_fit_of_other_numbers_is_that_of_float64(name: str) -> None:
    given = (X * 9 > 4 if name == "bool" else X * 9).astype(name)
    lazy = da.from_array(given, chunks=(20, 4))
    wanted = centroids(given.astype(np.float64))
    sets = [given, lazy, lazy.rechunk((60, 4))]
    assert [centroids(each) for each in sets] == [wanted, centroids(lazy.astype(float)), wanted]
    model = daskkm.KMeans(3, random_state=0).fit(given)
    assert model.fitted_model.dtype == np.float64
    np.testing.assert_array_equal(model.predict(lazy), model.predict(given))
    np.testing.assert_array_equal(
        model.fitted_model.transform(lazy), model.fitted_model.transform(given)
    )
    assert daskkm.assess(lazy, {3: model}).keys() == {3}


def test_tiles_of_a_sharded_array_are_read_by_shards(tmp_path: Path) -> None:
    assert Tiles.of(in_shards(PIXELS, 5)).array.chunks == ((20, 20, 20), (4,))
    lazy = in_file(PIXELS, tmp_path, chunks=(5, 4), shards=(20, 4))
    assert Tiles.of(lazy).array.chunks == ((20, 20, 20), (4,))
    assert not lazy._in_memory


def frame(**columns: Any) -> Any:
    return dd.from_pandas(pandas.DataFrame(columns), npartitions=2)


def test_fit_of_a_dask_frame_keeps_names_and_their_order() -> None:
    given = frame(a=X[:, 0], b=X[:, 1])
    model = daskkm.KMeans(2, random_state=0).fit(given, sample_weight=frame(w=X[:, 2])["w"])
    assert model.feature_names_in_.tolist() == ["a", "b"]
    assert model.predict(given).compute().shape == (60,)
    for other in (given[["b", "a"]], given.rename(columns={"a": "c"}), given[["a"]]):
        with pytest.raises(ValueError, match="feature"):
            model.predict(other)


def test_fit_of_a_dask_frame_reads_it_part_by_part() -> None:
    lengths = []

    def watched(part: pandas.DataFrame) -> pandas.DataFrame:
        lengths.append(len(part))
        return part

    given = dd.from_pandas(pandas.DataFrame(PIXELS), npartitions=4).map_partitions(watched)
    lengths.clear()
    tiles = Tiles.of(given)
    assert not lengths
    assert tiles.dtype == np.uint8
    assert centroids(given) == centroids(PIXELS)
    assert max(lengths) == 15


@pytest.mark.parametrize(
    "columns",
    [
        {"a": [1, 2, 3], "b": [0.5, 1, 2]},
        {"a": [True, False, True], "b": [0.5, 1, 2]},
        {"a": pandas.array([1, 2, 3], "Int64"), "b": pandas.array([0.5, 1, 2], "Float64")},
    ],
)
def test_resolve_of_columns_of_several_dtypes_is_float64_in_memory_and_lazily(columns: Any) -> None:
    in_memory, lazy = Tiles.of(pandas.DataFrame(columns)), Tiles.of(frame(**columns))
    assert in_memory.dtype == lazy.dtype == np.float64
    np.testing.assert_array_equal(in_memory.array.compute(), lazy.array.compute())


MASK = np.arange(60) % 7 == 0


@pytest.mark.parametrize("lazy", [False, True])
def test_masked_arrays_are_refused_wherever_they_are_given(lazy: bool) -> None:
    weights = np.ma.masked_array(np.ones(60), MASK)
    classes = np.ma.masked_array(np.arange(60) % 3, MASK)
    start = np.ma.masked_array(X[:3], X[:3] > 0.9)
    model = fitted_to_pixels()
    if lazy:
        weights, classes = da.from_array(weights), da.from_array(classes)
    masked = list(np.ma.masked_array(X, X > 0.5))
    calls: list[Callable[[], Any]] = [
        lambda: daskkm.fit_sweep(X, [3], sample_weight=weights),
        lambda: daskkm.KMeans(3).fit(X, sample_weight=weights),
        lambda: model.score(X, sample_weight=weights),
        lambda: daskkm.assess(X, {3: model}, classes=classes),
        lambda: daskkm.fit_sweep(X, [3], init=start),
        lambda: daskkm.fit_sweep(X, [3], init={3: start}),
        lambda: daskkm.fit_sweep(X, [3], init=lambda *_, **__: start),
        lambda: daskkm.KMeans(3, init=start).fit(X),
        lambda: daskkm.KMeans(3, init=list(start)).fit(X),
        lambda: daskkm.fit_sweep(masked, [3]),
        lambda: daskkm.KMeans(3).fit(masked),
        lambda: model.predict(masked),
    ]
    for call in calls:
        with pytest.raises(FitError, match="masked"):
            call()
