"""`Tiles.of`: the tiles of any kind of X, looked at once."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas
import pytest
import xarray
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import daskkm
from daskkm.errors import FitError
from daskkm.passes import inputs
from daskkm.passes.reductions import take_tiles
from daskkm.passes.tiles import Tiles

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

DTYPES = ["uint8", "int8", "uint16", "int16", "float32", "float64", "int32", "bool", "float16"]
NATIVE = DTYPES[:6]


def in_chunks(array: NDArray[Any], chunk: int) -> da.Array:
    return da.from_array(array, chunks=(chunk, -1))


def of_unknown_number(array: NDArray[Any], chunk: int) -> da.Array:
    lazy = in_chunks(np.repeat(array, 2, axis=0), chunk)
    return lazy[in_chunks(np.arange(2 * len(array))[:, None] % 2 == 0, chunk)[:, 0]]


def in_zarr(array: NDArray[Any], chunk: int) -> zarr.Array[Any]:
    stored = zarr.create_array(
        {}, shape=array.shape, chunks=(chunk, array.shape[1]), dtype=array.dtype
    )
    stored[:] = array
    return stored


def mapped(array: NDArray[Any], folder: str) -> NDArray[Any]:
    np.save(Path(folder, "x.npy"), array)
    return np.asarray(np.load(Path(folder, "x.npy"), mmap_mode="r"))


# Kinds of X by name: functions of an array, the length of a chunk, and a folder.
IN_MEMORY: dict[str, Callable[[NDArray[Any], int, str], Any]] = {
    "ndarray": lambda array, chunk, folder: array,
    "view": lambda array, chunk, folder: np.repeat(array, 2, axis=0)[::2],
    "Fortran order": lambda array, chunk, folder: np.asfortranarray(array),
    "big endian": lambda array, chunk, folder: array.astype(array.dtype.newbyteorder(">")),
    "pandas": lambda array, chunk, folder: pandas.DataFrame(array),
    "xarray": lambda array, chunk, folder: xarray.DataArray(array),
    "memory map": lambda array, chunk, folder: mapped(array, folder),
}
LAZY: dict[str, Callable[[NDArray[Any], int, str], Any]] = {
    "dask": lambda array, chunk, folder: in_chunks(array, chunk),
    "dask in columns": lambda array, chunk, folder: da.from_array(array, chunks=(chunk, 1)),
    "dask of unknown number": lambda array, chunk, folder: of_unknown_number(array, chunk),
    "Zarr": lambda array, chunk, folder: in_zarr(array, chunk),
    "dask frame": lambda array, chunk, folder: dd.from_pandas(
        pandas.DataFrame(array), npartitions=2
    ),
    "xarray over dask": lambda array, chunk, folder: xarray.DataArray(in_chunks(array, chunk)),
}
KINDS = IN_MEMORY | LAZY
OF_UNKNOWN_NUMBER = {"dask of unknown number", "dask frame"}


def read(X: da.Array) -> NDArray[Any]:
    """Return all tiles, in the order in which passes read them."""
    return np.asarray(take_tiles(X, np.arange(X.shape[0])).compute(scheduler="sync"))


@settings(max_examples=120)
@given(
    kind=st.sampled_from(list(KINDS)),
    dtype=st.sampled_from(DTYPES),
    shape=st.tuples(st.integers(2, 40), st.integers(1, 5)),
    chunk=st.integers(1, 40),
    threads=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_tiles_of_any_kind_are_those_of_the_array(
    kind: str, dtype: str, shape: tuple[int, int], chunk: int, threads: int, seed: int
) -> None:
    array = np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)
    expected = array if dtype in NATIVE else array.astype(np.float64)
    with tempfile.TemporaryDirectory() as folder, dask.config.set(scheduler="sync"):
        tiles = Tiles.of(KINDS[kind](array, chunk, folder))
        assert Tiles.of(tiles) is tiles
        assert tiles.dtype.newbyteorder("=") == expected.dtype
        assert tiles.array.numblocks[1] == 1
        assert tiles.is_lazy == (kind in LAZY)
        assert tiles.is_in_memory == (kind in IN_MEMORY and kind != "memory map")
        assert tiles.is_exact == (expected.dtype.kind != "f")
        assert not tiles.is_kernel_ready or tiles.is_in_memory
        np.testing.assert_array_equal(tiles.array.compute(), expected)
        sized = tiles.sized("sync")
        assert (sized.shape, sized.nbytes) == (shape, expected.nbytes)
        assert (sized.reads, sized.total_weight) == (kind in OF_UNKNOWN_NUMBER, shape[0])
        np.testing.assert_array_equal(read(sized.in_blocks(threads)), expected)


@settings(max_examples=20)
@given(
    kind=st.sampled_from(list(KINDS)),
    dtype=st.sampled_from(["uint8", "int16", "float64"]),
    chunk=st.integers(1, 40),
    weighted=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_fit_predict_and_transform_look_at_x_once_and_give_the_same_for_any_kind(
    kind: str, dtype: str, chunk: int, weighted: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    array = rng.integers(0, 100, (40, 2)).astype(dtype)
    options: dict[str, Any] = {"init": array[:3], "max_iter": 3, "tol": 0}
    options["sample_weight"] = rng.integers(0, 3, 40) + 1 if weighted else None
    looks: list[str] = []
    resolve = inputs.resolve

    def counting(X: Any) -> Any:
        looks.append(type(X).__name__)
        return resolve(X)

    with (
        tempfile.TemporaryDirectory() as folder,
        dask.config.set(scheduler="sync"),
        pytest.MonkeyPatch.context() as patch,
    ):
        expected = daskkm.fit_sweep(array, [3], **options).models[3]
        X = KINDS[kind](array, chunk, folder)
        patch.setattr(inputs, "resolve", counting)
        model = daskkm.fit_sweep(X, [3], **options).models[3]
        assert len(looks) == 1
        labels, distances = model.predict(X), model.transform(X)
        assert len(looks) == 3
        estimator = daskkm.KMeans(3, init=array[:3], n_init=1).fit(X)
        assert len(looks) == 4
        estimator.predict(X)
        assert len(looks) == 5
        for result in (labels, distances, estimator.labels_):
            assert isinstance(result, da.Array) == (kind in LAZY)
        np.testing.assert_array_equal(model.cluster_centers_, expected.cluster_centers_)
        np.testing.assert_array_equal(np.asarray(labels), expected.predict(array))
        np.testing.assert_array_equal(np.asarray(distances), expected.transform(array))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"Zarr"}))
def test_identity_of_equal_tiles_is_equal_and_of_others_is_not(kind: str, tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 100, (40, 2), np.uint8)
    (tmp_path / "a").mkdir()
    given_kind = KINDS[kind]
    first = Tiles.of(given_kind(array, 7, str(tmp_path / "a")))
    assert first.identity() == Tiles.of(first).identity()
    if kind != "memory map":  # of a file it is its path and time of modification
        assert first.identity() == Tiles.of(given_kind(array, 7, str(tmp_path / "a"))).identity()
    other = array.copy()
    other[3, 1] ^= 1
    assert first.identity() != Tiles.of(given_kind(other, 7, str(tmp_path / "a"))).identity()


def test_tiles_of_a_store_are_read_its_own_way_while_they_are_whole(
    digits: daskkm.TileStore,
) -> None:
    X = digits.features()
    for whole in (digits, X):
        tiles = Tiles.of(whole)
        assert tiles.store is digits or tiles.store.digest == digits.digest
        assert tiles.identity() == digits.digest
        assert tiles.in_blocks(2).name.startswith("chunks-")
    assert Tiles.of(digits).tile == (16, 16)
    assert Tiles.of(X).tile is None
    for other in (X[5:], X[:, :7], X.rechunk((100, -1)), X + np.uint8(0)):
        tiles = Tiles.of(other)
        assert tiles.store is None
        assert tiles.in_blocks(2) is tiles.array
    np.testing.assert_array_equal(read(Tiles.of(digits).in_blocks(2)), X.compute())


def test_fit_sweep_of_a_store_with_fractional_weights_ignores_the_cache(
    digits: daskkm.TileStore,
) -> None:
    weights = np.random.default_rng(0).random(len(digits))
    options: dict[str, Any] = {"n_init": 1, "max_iter": 3, "random_state": 0}
    always, never = (
        daskkm.fit_sweep(digits, [3], **options, sample_weight=weights, cache=cache).models[3]
        for cache in ("always", "never")
    )
    assert always.inertia_ == never.inertia_
    assert always.cluster_centers_.tobytes() == never.cluster_centers_.tobytes()


WEIGHTS: dict[str, tuple[Any, type | None]] = {
    "whole": (np.arange(40) % 3, np.int64),
    "whole floats": (np.arange(40.0) % 3, np.int64),
    "booleans": (np.arange(40) % 3 == 0, np.int64),
    "one number": (2, np.int64),
    "fractional": (np.arange(40) / 3, np.float64),
    "beyond 2**53": (np.full(40, 2.0**60), np.float64),
    "none": (None, None),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weighted_has_integers_if_all_weights_are_whole(name: str) -> None:
    weights, dtype = WEIGHTS[name]
    array = np.zeros((40, 2), np.uint8)
    tiles = Tiles.of(in_chunks(array, 7)).sized("sync").weighted(weights, "sync")
    if dtype is None:
        assert tiles.weights is None
        assert (tiles.total_weight, tiles.is_exact) == (40, True)
        return
    assert tiles.weights is not None
    assert (tiles.weights.dtype, tiles.is_exact) == (dtype, dtype is np.int64)
    assert tiles.weights.chunks == (tiles.array.chunks[0],)
    expected = np.broadcast_to(weights, 40)
    np.testing.assert_array_equal(tiles.weights.compute(scheduler="sync"), expected)
    assert tiles.total_weight == int(expected.sum())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.full(40, -1.0), r"sample_weight: negative \(-1\.0\)\. Give weights"),
        (np.zeros(40), "sample_weight: zero everywhere"),
        (np.full(40, np.nan), "Input sample_weight contains NaN"),
        (np.full(40, np.inf), "Input sample_weight contains infinity"),
        (np.full(40, 1e308), "too large to square"),
        (np.ones(39), r"shape \(39,\) .* each of the 40 tiles"),
        (np.ones((40, 1)), r"shape \(40, 1\)"),
        (["heavy"] * 40, "Give one number for each"),
        (np.ma.masked_less(np.arange(40), 2), "sample_weight: masked arrays"),
    ],
)
def test_weighted_with_weights_that_do_not_fit_is_refused(weights: Any, message: str) -> None:
    tiles = Tiles.of(np.zeros((40, 2), np.uint8)).sized("sync")
    with pytest.raises(FitError, match=message):
        tiles.weighted(weights, "sync")


def test_check_sums_that_may_overflow_int64_are_refused() -> None:
    large = da.zeros((10**9, 256), dtype=np.uint16, chunks=(10**6, -1))
    with pytest.raises(daskkm.SumOverflowError, match="Use at most 8388864 tiles"):
        Tiles.of(large).sized("sync").check_sums()
    Tiles.of(large.astype(np.float32)).sized("sync").check_sums()
