"""Kinds of arrays that tiles are read from: each works, or is an error that says what to give."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import cloudpickle
import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas
import pytest
import scipy.sparse
import xarray
import zarr
from distributed import Client, LocalCluster

import daskkm
from daskkm.errors import FitError
from daskkm.passes import arrays, scheduler
from daskkm.passes.arrays import MappedFile
from daskkm.passes.reader import Reader
from daskkm.passes.tiles import as_tiles, in_blocks

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
    """A variable of a file that xarray reads when it is sliced."""
    stored = xarray.Dataset({"x": (("tile", "feature"), PIXELS)})
    options: Any = {"zarr_format": 3, "consolidated": False}
    stored.to_zarr(folder / "set.zarr", encoding={"x": encoding}, **options)
    return xarray.open_zarr(folder / "set.zarr", chunks=None, consolidated=False)["x"]


def part_of_opened(folder: Path) -> Any:
    """A part with fewer axes of a variable of a file."""
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
def test_kinds_of_arrays_fit_the_same(kind: str, tmp_path: Path) -> None:
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
    "Dataset": (lambda _: xarray.Dataset({"a": ("x", [1.0])}), "one of them"),
    "group": (lambda folder: zarr.create_group(folder / "group"), "one of them"),
    "dict": (lambda _: {"a": X}, "'a'"),
    "path": (lambda folder: folder, "open it"),
    "str": (lambda _: "tiles.zarr", "daskkm.open_store"),
    "Delayed": (lambda _: dask.delayed(X), "from_delayed"),
    "generator": (lambda _: (row for row in X), "no array"),
    "None": (lambda _: None, "no array"),
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
def test_what_is_no_array_is_a_type_error_that_says_what_to_give(kind: str, tmp_path: Path) -> None:
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
def test_other_numbers_become_float64_block_by_block_in_every_entry(name: str) -> None:
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


def test_arrays_in_memory_are_not_copied() -> None:
    given = np.zeros((1 << 16, 256), np.uint8)
    reader = Reader(given, scheduler="threads", cache="always")
    reader.prepare(1, 1)
    tiles = as_tiles(given)
    for part in dask.compute(*tiles.to_delayed().ravel(), scheduler="threads"):
        assert np.shares_memory(part, given)
    for block in dask.compute(*reader.blocks.to_delayed().ravel(), scheduler="threads"):
        assert np.shares_memory(block.tiles, given)


def test_a_block_takes_its_own_rows_to_another_process(tmp_path: Path) -> None:
    given = np.zeros((1 << 16, 256), np.uint8)
    blocks = in_blocks(given, as_tiles(given), 1).to_delayed().ravel()
    assert len(blocks) == 4
    assert len(pickle.dumps(blocks[0].compute(scheduler="sync"))) < given.nbytes / 3
    given = mapped(tmp_path, given)
    for array in (in_blocks(given, as_tiles(given), 1), as_tiles(given)):
        assert len(cloudpickle.dumps(dict(array.dask))) < 1 << 14


def test_blocks_that_stay_in_this_process_are_pickled_without_their_rows() -> None:
    given = np.zeros((1 << 16, 256), np.uint8)
    (block, *_) = in_blocks(given, as_tiles(given), 1).to_delayed().ravel()
    block = block.compute(scheduler="sync")
    with arrays.staying():
        sent = pickle.dumps(block)
    assert np.shares_memory(pickle.loads(sent).whole()[0], given)
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        reader = Reader(given, cache="always")
        reader.prepare(1, 1)
        resident = client.compute(reader.blocks.to_delayed().ravel()[0]).result()
        assert np.shares_memory(resident.tiles, given)


def test_a_mapped_file_is_known_in_whatever_view(tmp_path: Path) -> None:
    given = mapped(tmp_path)
    for view in (given, given[5:50], given[::2], given[:, 1:3], given[3:].view(np.int8)):
        file = MappedFile.of(view)
        assert file is not None
        np.testing.assert_array_equal(file.rows(1, len(view)), view[1:])
    for other in (PIXELS, given[::-1], given + np.uint8(0), given[0], given[:0], [[1]]):
        assert MappedFile.of(other) is None
    changed = np.load(tmp_path / "x.npy", mmap_mode="c")
    changed[0] = 7
    assert MappedFile.of(changed) is None
    (tmp_path / "x.npy").unlink()
    assert MappedFile.of(given) is None
    assert centroids(given) == centroids(PIXELS)


def test_a_mapped_file_that_is_written_to_or_missing_is_an_error(tmp_path: Path) -> None:
    file = MappedFile.of(mapped(tmp_path))
    assert file is not None
    np.save(tmp_path / "x.npy", PIXELS[:30])
    with pytest.raises(FitError, match=r"x\.npy.*written to"):
        file.rows(0, 2)
    (tmp_path / "x.npy").unlink()
    with pytest.raises(FitError, match=r"x\.npy.*cannot be read"):
        file.rows(0, 2)


MEMORY = """
import resource, sys, dask, numpy as np, daskkm
dask.config.set(scheduler="threads", num_workers=2)
X = np.load(sys.argv[1], mmap_mode="r")
peaks = []
for part in (X[: len(X) // 20], X):
    model = daskkm.KMeans(2, max_iter=2, random_state=0, init=part[:2], n_init=1).fit(part)
    model.fitted_model.predict(part)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peaks[1] - peaks[0])
"""


def test_fitting_a_mapped_file_takes_no_memory_for_it(tmp_path: Path) -> None:
    tiles = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, (1 << 20, 160))
    tiles[::2] = 200
    tiles.flush()
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "x.npy")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    more = int(run.stdout) * (1 if sys.platform == "darwin" else 1024)
    assert more < tiles.nbytes / 3


def test_a_sharded_array_is_read_by_shards(tmp_path: Path) -> None:
    given = sharded(tmp_path)
    assert as_tiles(given).chunks == ((20, 20, 20), (4,))
    lazy = opened(tmp_path / "other", chunks=(5, 4), shards=(20, 4))
    assert as_tiles(lazy).chunks == ((20, 20, 20), (4,))
    assert not lazy._in_memory


def frame(**columns: Any) -> Any:
    return dd.from_pandas(pandas.DataFrame(columns), npartitions=2)


def test_a_dask_frame_keeps_its_names_and_their_order() -> None:
    given = frame(a=X[:, 0], b=X[:, 1])
    model = daskkm.KMeans(2, random_state=0).fit(given, sample_weight=frame(w=X[:, 2])["w"])
    assert model.feature_names_in_.tolist() == ["a", "b"]
    assert model.predict(given).compute().shape == (60,)
    for other in (given[["b", "a"]], given.rename(columns={"a": "c"}), given[["a"]]):
        with pytest.raises(ValueError, match="feature"):
            model.predict(other)


def test_a_dask_frame_is_never_in_memory_whole() -> None:
    lengths = []

    def watched(part: pandas.DataFrame) -> pandas.DataFrame:
        lengths.append(len(part))
        return part

    given = dd.from_pandas(pandas.DataFrame(PIXELS), npartitions=4).map_partitions(watched)
    lengths.clear()
    tiles = as_tiles(given)
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
def test_columns_of_several_dtypes_are_joined_alike(columns: Any) -> None:
    in_memory, lazy = as_tiles(pandas.DataFrame(columns)), as_tiles(frame(**columns))
    assert in_memory.dtype == lazy.dtype == np.float64
    np.testing.assert_array_equal(in_memory.compute(), lazy.compute())


MASK = np.arange(60) % 7 == 0


@pytest.mark.parametrize("lazy", [False, True])
def test_masks_are_never_lost(lazy: bool) -> None:
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


def test_sizes_are_found_by_the_scheduler_that_was_chosen() -> None:
    made: list[str] = []

    def get(graph: Any, keys: Any, **options: Any) -> Any:
        made.append("chosen")
        return dask.get(graph, keys, **options)

    def forbidden(*_: Any, **__: Any) -> Any:
        msg = "not the scheduler that was chosen"
        raise AssertionError(msg)

    some = LAZY[LAZY[:, 0] > 0.5]
    weights = da.ones(60, chunks=20)[LAZY[:, 0] > 0.5]
    with dask.config.set(scheduler=forbidden):
        reader = Reader(some, weights, scheduler=get)
    assert reader.shape[0] == (X[:, 0] > 0.5).sum()
    assert made
    assert np.isnan(some.shape[0])  # what was given stays as it was


def test_workers_too_small_for_the_tiles_are_named_before_a_pass() -> None:
    given = np.zeros((1 << 20, 300), np.uint8)
    options: dict[str, Any] = {"n_workers": 1, "threads_per_worker": 1, "memory_limit": "300MB"}
    with (
        LocalCluster(**options, processes=True, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster),
    ):
        assert scheduler.is_elsewhere()
        with pytest.raises(FitError, match=r"X: 315 MB in memory.*workers \(1\).*of 300 MB"):
            daskkm.fit_sweep(given, [2])
