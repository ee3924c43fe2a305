"""Kinds of X, weights and classes: each is recognized, or an error says what to give."""

from __future__ import annotations

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
from daskkm.passes.tiles import Tiles

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

X = np.random.default_rng(0).random((60, 4))
PIXELS = np.random.default_rng(1).integers(0, 256, (60, 4), np.uint8)
LAZY = da.from_array(X, chunks=(20, 4))
FIT: dict[str, Any] = {"n_init": 2, "random_state": 0, "max_iter": 5}


def centroids(given: Any, **more: Any) -> bytes:
    return daskkm.fit_sweep(given, [3], **FIT, **more).models[3].cluster_centers_.tobytes()


def mapped(folder: Path, array: NDArray[Any] = PIXELS, mode: Any = "r") -> NDArray[Any]:
    np.save(folder / "x.npy", array)
    return np.asarray(np.load(folder / "x.npy", mmap_mode=mode))


def sharded(folder: Path) -> zarr.Array[Any]:
    array = zarr.create_array(
        folder / "x.zarr", shape=(60, 4), chunks=(5, 2), shards=(20, 4), dtype="uint8"
    )
    array[:] = PIXELS
    return array


def opened(folder: Path, **encoding: Any) -> Any:
    """Return a variable of a file, which xarray reads when it is sliced."""
    stored = xarray.Dataset({"x": (("tile", "feature"), PIXELS)})
    options: Any = {"zarr_format": 3, "consolidated": False}
    stored.to_zarr(folder / "set.zarr", encoding={"x": encoding}, **options)
    return xarray.open_zarr(folder / "set.zarr", chunks=None, consolidated=False)["x"]


def part_of_opened(folder: Path) -> Any:
    """Return a part, with fewer axes, of a variable of a file."""
    stored = xarray.Dataset({"x": (("band", "tile", "feature"), np.stack([PIXELS, PIXELS[::-1]]))})
    stored.to_zarr(folder / "set.zarr", zarr_format=3, consolidated=False)
    return xarray.open_zarr(folder / "set.zarr", chunks=None, consolidated=False)["x"].isel(band=0)


KINDS: dict[str, Callable[[Path], Any]] = {
    "memmap": mapped,
    "view of a memmap": lambda folder: mapped(folder, np.vstack([PIXELS[:3], PIXELS]))[3:],
    "memmap in Fortran's order": lambda folder: mapped(folder, np.asfortranarray(PIXELS)),
    "columns of a memmap": lambda folder: mapped(folder, np.hstack([PIXELS, PIXELS]))[:, 4:],
    "memmap copied on write": lambda folder: mapped(folder, mode="c"),
    "Fortran's order": lambda _: np.asfortranarray(PIXELS),
    "rows backwards": lambda _: PIXELS[::-1].copy()[::-1],
    "sharded Zarr": sharded,
    "DataArray": lambda _: xarray.DataArray(PIXELS),
    "DataArray over dask": lambda _: xarray.DataArray(da.from_array(PIXELS, chunks=(20, 4))),
    "DataArray not yet read": opened,
    "part of a DataArray not yet read": part_of_opened,
    "Variable": lambda _: xarray.Variable(("tile", "feature"), PIXELS),
    "pandas": lambda _: pandas.DataFrame(PIXELS),
    "dask data frame": lambda _: dd.from_pandas(pandas.DataFrame(PIXELS), npartitions=3),
}


@pytest.mark.parametrize("kind", KINDS)
def test_fit_of_each_kind_of_array_gives_the_same(kind: str, tmp_path: Path) -> None:
    given = KINDS[kind](tmp_path)
    assert centroids(given) == centroids(PIXELS)
    model = daskkm.KMeans(3, random_state=0).fit(PIXELS)
    other = daskkm.KMeans(3, random_state=0).fit(given)
    assert other.cluster_centers_.tobytes() == model.cluster_centers_.tobytes()
    lazy = "dask" in kind or "Zarr" in kind or "not yet" in kind
    assert isinstance(other.labels_, da.Array) is lazy
    for method in ("predict", "transform"):
        found = getattr(other, method)(given)
        assert isinstance(found, da.Array) is lazy
        np.testing.assert_array_equal(np.asarray(found), getattr(model, method)(PIXELS))
    figures = daskkm.assess(given, {3: model})
    assert figures[3].inertia == model.inertia_


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "Dataset": (lambda _: xarray.Dataset({"a": ("x", [1.0])}), "Give one of them"),
    "group": (lambda folder: zarr.create_group(folder / "group"), "Give one of them"),
    "dict": (lambda _: {"a": X}, "'a'"),
    "path": (lambda folder: folder, "Open it by"),
    "str": (lambda _: "tiles.zarr", "daskkm.open_store"),
    "Delayed": (lambda _: dask.delayed(X), "from_delayed"),
    "generator": (lambda _: (row for row in X), "a generator is not an array"),
    "None": (lambda _: None, "a NoneType is not an array"),
    "sparse": (lambda _: scipy.sparse.csr_array(X), "Sparse data was passed"),
    "sparse blocks": (lambda _: LAZY.map_blocks(scipy.sparse.csr_matrix), "toarray"),
    "text": (lambda _: np.full((60, 4), "a"), "dtype"),
    "lazy text": (lambda _: da.from_array(np.full((60, 4), "a")), "dtype"),
    "lazy complex": (lambda _: LAZY * 1j, "dtype"),
    "frame of text": (
        lambda _: dd.from_pandas(pandas.DataFrame({"a": ["b"], "c": [1]}), npartitions=1),
        "'a'",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_resolve_of_anything_but_an_array_says_what_to_give(kind: str, tmp_path: Path) -> None:
    make, words = REFUSED[kind]
    given = make(tmp_path)
    model = daskkm.KMeans(3, random_state=0).fit(X)
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


@pytest.mark.parametrize("name", ["bool", "int32", "int64", "uint32", "uint64", "float16"])
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
    given = sharded(tmp_path)
    assert Tiles.of(given).array.chunks == ((20, 20, 20), (4,))
    lazy = opened(tmp_path / "other", chunks=(5, 4), shards=(20, 4))
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
    model = daskkm.KMeans(3, random_state=0).fit(X)
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
