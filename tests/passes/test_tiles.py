"""Tiles of any kind of X, and their weights."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import daskkm
from daskkm.errors import FitError
from daskkm.passes.reductions import take_tiles
from daskkm.passes.tiles import Tiles
from tests.passes.kinds import IN_MEMORY, KINDS, LAZY, MAPPED, STORED, UNKNOWN_NUMBER, in_chunks

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

NATIVE = ["uint8", "int8", "uint16", "int16", "float32", "float64"]
DTYPES = [*NATIVE, "bool", "int32", "int64", "uint32", "uint64", "float16"]


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
        assert tiles.is_in_memory == (kind in IN_MEMORY)
        assert tiles.is_exact == (expected.dtype.kind != "f")
        np.testing.assert_array_equal(tiles.array.compute(), expected)
        sized = tiles.with_known_size("sync")
        assert (sized.shape, sized.nbytes) == (shape, expected.nbytes)
        assert (sized.reads, sized.total_weight) == (kind in UNKNOWN_NUMBER, shape[0])
        np.testing.assert_array_equal(read(sized.in_blocks(threads)), expected)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(STORED)))
def test_identity_of_equal_tiles_is_equal_and_of_others_is_not(kind: str, tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 100, (40, 2), np.uint8)
    (tmp_path / "a").mkdir()
    given_kind = KINDS[kind]
    first = Tiles.of(given_kind(array, 7, str(tmp_path / "a")))
    assert first.identity() == Tiles.of(first).identity()
    if kind not in MAPPED:  # the path and time of modification of a file
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
    tiles = Tiles.of(in_chunks(array, 7)).with_known_size("sync").with_weights(weights, "sync")
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
    tiles = Tiles.of(np.zeros((40, 2), np.uint8)).with_known_size("sync")
    with pytest.raises(FitError, match=message):
        tiles.with_weights(weights, "sync")


def test_check_sums_that_may_overflow_int64_are_refused() -> None:
    large = da.zeros((10**9, 256), dtype=np.uint16, chunks=(10**6, -1))
    with pytest.raises(daskkm.SumOverflowError, match="Use at most 8388864 tiles"):
        Tiles.of(large).with_known_size("sync").check_sums()
    Tiles.of(large.astype(np.float32)).with_known_size("sync").check_sums()
