"""Test that chunks hold the exact rows of an array, for daskkm, zarr and xarray alike."""

from __future__ import annotations

import json
import pickle
import random
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as npst

from daskkm.block_sizes import override
from daskkm.storage import arrays
from daskkm.storage.arrays import ChunkedArray, ChunkError
from daskkm.storage.nodes import Node
from tests.locations import KINDS, new_location
from tests.storage.test_nodes import KIND

if TYPE_CHECKING:
    from daskkm.storage.locations import Location

DTYPES = ("uint8", "int8", "uint16", "int32", "int64", "uint64", "float32", "float64")


@st.composite
def arrays_with_values(draw: st.DrawFn) -> tuple[ChunkedArray, np.ndarray]:
    """Draw an array at no location yet, and its values."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(npst.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4))
    shape = (draw(st.integers(0, 20)), *shape[1:])
    values = draw(npst.arrays(dtype, shape))
    fill: Any = draw(st.sampled_from([0, "NaN"] if dtype.kind == "f" else [0, 1]))
    array = ChunkedArray(
        *(None, shape, dtype, draw(st.integers(1, 7))),  # type: ignore[arg-type]
        dimensions=("odd", "y", "x")[: len(shape)],
        compressed=draw(st.booleans()),
        fill_value=fill,
    )
    return array, values


def put(array: ChunkedArray, location: Location) -> ChunkedArray:
    """Return the array at a location."""
    return ChunkedArray(location, *list(vars(array).values())[1:])


def assert_same(found: Any, expected: Any) -> None:
    """Assert the same bits: NaN may have any payload."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


@settings(max_examples=40)
@given(arrays_with_values(), st.sampled_from(KINDS), st.data())
def test_read_of_any_rows_is_what_was_written(
    drawn: tuple[ChunkedArray, Any], kind: str, data: st.DataObject
) -> None:
    with new_location(kind) as location:
        array, values = put(drawn[0], location), drawn[1]
        array.write(0, values)
        array.check_sizes()
        first = data.draw(st.integers(0, len(values)))
        last = data.draw(st.integers(first, len(values)))
        assert_same(array.read(first, last), values[first:last])
        start = first - first % array.rows
        streamed = [chunk.copy() for chunk in array.stream(start, last)]
        assert_same(np.concatenate([values[:0], *streamed]), values[start:last])
        again = ChunkedArray.from_metadata(location, json.loads(json.dumps(array.metadata)))
        assert again == array
        assert_same(pickle.loads(pickle.dumps(again)).read(0, len(values)), values)


@settings(max_examples=30)
@given(arrays_with_values(), st.lists(st.integers(0, 20), max_size=4))
def test_append_in_any_split_gives_the_same_chunks(
    drawn: tuple[ChunkedArray, Any], cuts: list[int]
) -> None:
    with new_location("memory") as location:
        whole, parts = put(drawn[0], location / "whole"), put(drawn[0], location / "parts")
        values = drawn[1]
        whole.write(0, values)
        ends = [*sorted(min(cut, len(values)) for cut in cuts), len(values)]
        for first, last in zip([0, *ends], ends, strict=False):
            parts.append(first, values[first:last])
            assert_same(parts.resize(last).read(0, last), values[:last])
        assert contents(parts.location) == contents(whole.location)


def contents(location: Location) -> dict[str, bytes]:
    return {name: bytes((location / name).read()) for name in location.sizes()}


@settings(max_examples=20)
@given(arrays_with_values(), st.sampled_from(KINDS))
def test_zarr_and_xarray_read_the_same_values(drawn: tuple[ChunkedArray, Any], kind: str) -> None:
    """Each warning is an error, also one about metadata that is not consolidated."""
    with new_location(kind) as deep:
        # xarray reads the consolidated metadata of the root of a store only.
        location = deep if deep.is_local else deep.parent.parent
        array, values = put(drawn[0], location / "odds"), drawn[1]
        array.write(0, values)
        Node(location, KIND, {"odds": array}, {}).write(None)
        assert_same(np.asarray(array.open_zarr()[:]), values)
        store, path = location.open_zarr()
        assert path == ""
        group = zarr.open_group(store, mode="r")
        assert_same(np.asarray(group["odds"][:]), values)  # type: ignore[index]
        alone = zarr.open_group(store, mode="r", use_consolidated=False)
        assert_same(np.asarray(alone["odds"][:]), values)  # type: ignore[index]
        dataset = xr.open_zarr(store, mask_and_scale=False)
        assert dataset["odds"].dims == array.dimensions
        assert_same(dataset["odds"].to_numpy(), values)


def make_array(location: Location, *, compressed: bool) -> tuple[ChunkedArray, Any]:
    """Write five rows in chunks of two."""
    values = np.random.default_rng(0).integers(0, 9, (5, 3), np.int32)
    dtype = np.dtype(np.int32)
    array = ChunkedArray(location, values.shape, dtype, 2, ("odd", "x"), compressed)
    array.write(0, values)
    return array, values


@pytest.mark.parametrize("compressed", [False, True])
def test_read_of_a_damaged_chunk_raises_its_index(location: Location, compressed: bool) -> None:
    array, values = make_array(location, compressed=compressed)
    file = location / array.key(1)
    whole = bytes(file.read())
    flipped = []
    for part in range(30):
        bit = random.Random(part).randrange(8 * len(whole))
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        flipped.append(bytes(damaged))
    for damaged_bytes in (*flipped, *(whole[:n] for n in range(len(whole))), whole + b"\0"):
        file.write(damaged_bytes)
        with pytest.raises(ChunkError, match=r"^\(1, '(wrong|not of)") as error:
            array.read(0, 5)
        assert error.value.args[0] == 1
        with pytest.raises(ChunkError):
            list(array.stream(2, 4))
        assert_same(array.read(0, 2), values[:2])
        assert_same(array.read(4, 5), values[4:])
    file.write(whole)
    assert_same(array.read(0, 5), values)


@pytest.mark.parametrize("compressed", [False, True])
def test_read_of_a_missing_chunk_raises_its_index(location: Location, compressed: bool) -> None:
    """Zarr reads a missing chunk as zeros, silently."""
    array, values = make_array(location, compressed=compressed)
    (location / array.key(1)).remove()
    for read in (lambda: array.read(1, 3), lambda: list(array.stream(0, 5)), array.check_sizes):
        with pytest.raises(ChunkError) as error:
            read()
        assert error.value.args == (1, "missing file")
    assert_same(array.read(4, 5), values[4:])


@pytest.mark.parametrize("compressed", [False, True])
def test_read_of_a_chunk_of_another_shape_is_refused(location: Location, compressed: bool) -> None:
    """The checksum of the chunk is right."""
    array, values = make_array(location, compressed=compressed)
    for rows in (3,) if compressed else (1, 3):
        other = ChunkedArray(location, (3, 3), array.dtype, rows, ("odd", "x"), compressed)
        other.write(0, values[:3])
        with pytest.raises(ChunkError):
            array.read(0, 2)


def test_check_sizes_of_a_chunk_cut_short_raises(location: Location) -> None:
    array, _ = make_array(location, compressed=False)
    file = location / array.key(2)
    file.write(bytes(file.read())[:-1])
    with pytest.raises(ChunkError) as error:
        array.check_sizes()
    assert error.value.args == (2, "wrong size")


@pytest.mark.parametrize("compressed", [False, True])
def test_chunks_of_zeros_are_written(location: Location, compressed: bool) -> None:
    array = ChunkedArray(location, (3,), np.dtype(np.uint8), 2, ("odd",), compressed)
    array.write(0, np.zeros(3, np.uint8))
    assert set(location.sizes()) == {"c/0", "c/1"}
    assert array.read(0, 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("fill", [0, -1, "NaN"])
def test_last_chunk_is_padded_with_the_fill_value(location: Location, fill: Any) -> None:
    dtype = np.dtype(float if fill == "NaN" else np.int32)
    array = ChunkedArray(location, (3,), dtype, 2, ("odd",), fill_value=fill)
    array.write(0, np.ones(3, dtype))
    expected = np.array([1, 1, 1, array.fill], dtype)
    np.testing.assert_array_equal(array.resize(4).read(0, 4), expected)


@pytest.mark.parametrize("compressed", [False, True])
def test_stream_of_local_chunks_reuses_one_buffer(tmp_path: Any, compressed: bool) -> None:
    from daskkm.storage.locations import as_location

    array, values = make_array(as_location(tmp_path / "a"), compressed=compressed)
    found, places = [], set()
    for chunk in array.stream(0, 5):
        found += chunk.tolist()
        places.add(chunk.__array_interface__["data"][0])
        assert not chunk.flags.writeable
    assert found == values.tolist()
    assert len(places) == 1
    # Another thread has another buffer.
    others = []
    thread = threading.Thread(
        target=lambda: others.append(next(array.stream(0, 5)).__array_interface__["data"][0])
    )
    thread.start()
    thread.join()
    assert not places & set(others)


def test_stream_of_remote_chunks_fetches_ahead_and_stops() -> None:
    with new_location("memory") as location, override(fetched_chunks=2):
        array, values = make_array(location, compressed=True)
        for n in range(4):  # chunks until the reader stops
            chunks = array.stream(0, 5)
            found = [next(chunks) for _ in range(n)]
            chunks.close()  # type: ignore[attr-defined]
            np.testing.assert_array_equal(np.concatenate([values[:0], *found]), values[: 2 * n])
        assert all(not chunk.flags.writeable for chunk in found)


def test_from_metadata_of_another_array_is_refused(location: Location) -> None:
    array, _ = make_array(location, compressed=False)
    for change in (
        {"codecs": [{"name": "bytes", "configuration": {"endian": "big"}}, {"name": "crc32c"}]},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2, 2]}}},
        {"chunk_key_encoding": {"name": "v2"}},
    ):
        with pytest.raises(ValueError, match="not an array of daskkm"):
            ChunkedArray.from_metadata(location, array.metadata | change)


def test_chunks_of_many_buffers_grow_on_demand(tmp_path: Any) -> None:
    assert len(arrays.get_buffer("test", 5)) == 5
    assert len(arrays.get_buffer("test", 3)) == 5
    assert len(arrays.get_buffer("test", 9)) == 9
