"""Test that the table of images returns each record, however often it has grown."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import daskkm
from daskkm.block_sizes import override
from daskkm.storage import image_table, nodes
from daskkm.storage.arrays import ChunkedArray
from daskkm.storage.locations import LocalLocation, as_location
from daskkm.storage.nodes import Node
from daskkm.storage.records import ImageRecord, SkippedFile, grid_shape
from daskkm.storage.tile_store import STORE
from tests.locations import KINDS, new_location

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from daskkm.storage.locations import Location

TILE = (4, 3)
NAMES = st.binary(min_size=1, max_size=9).map(
    lambda b: os.fsdecode(b.translate(None, b"/\0") or b"a")
)
DIGESTS = st.one_of(st.just(""), st.binary(min_size=32, max_size=32).map(bytes.hex)).filter(
    lambda digest: digest != "0" * 64
)
# The smallest integer stands for a missing time.
TIMES = st.one_of(st.none(), st.integers(-(2**63) + 1, 2**63 - 1))
FILES: dict[str, Any] = {
    "name": NAMES,
    "size": st.integers(0, 2**63 - 1),
    "sha256": DIGESTS,
    "mtime_ns": TIMES,
    "ctime_ns": TIMES,
}
REASONS = st.text(max_size=9)


@st.composite
def image_records(draw: st.DrawFn) -> ImageRecord:
    shape = draw(st.integers(TILE[0], 40)), draw(st.integers(TILE[1], 40))
    cropped = shape[0] % TILE[0], shape[1] % TILE[1]
    file = draw(st.fixed_dictionaries(FILES))
    return ImageRecord(**file, shape=shape, cropped=cropped)


def skipped_files() -> st.SearchStrategy[SkippedFile]:
    return st.builds(
        lambda reason, file: SkippedFile(**file, reason=reason),
        REASONS,
        st.fixed_dictionaries(FILES),
    )


def make_node(location: Location) -> Node:
    tiles = ChunkedArray(location / "tiles", (0, *TILE), np.dtype(np.uint8), 5, ("tile", "y", "x"))
    return Node(location, STORE, {"tiles": tiles}, {"digest": "00"})


def append(node: Node, images: Sequence[ImageRecord], skipped: Sequence[SkippedFile]) -> Node:
    n = len(node.arrays["tiles"])
    arrays = dict(node.arrays)
    arrays |= image_table.append_images(node.location, arrays, images, TILE, n)
    arrays |= image_table.append_skipped(node.location, arrays, skipped)
    n += sum(int(np.prod(grid_shape(image.shape, TILE))) for image in images)
    arrays["tiles"] = arrays["tiles"].resize(n)
    digest = image_table.extend_digest(node.attributes["digest"], images)
    return Node(node.location, STORE, arrays, {"digest": digest})


def contents(location: Location) -> dict[str, bytes]:
    return {name: bytes((location / name).read()) for name in location.sizes()}


@settings(max_examples=12)
@given(
    st.lists(image_records(), min_size=1, max_size=12),
    st.lists(skipped_files(), max_size=5),
    st.lists(st.integers(0, 12), max_size=3),
    st.sampled_from(KINDS),
)
def test_table_that_grows_in_any_split_returns_all_records(
    images: list[ImageRecord], skipped: list[SkippedFile], cuts: list[int], kind: str
) -> None:
    with new_location(kind) as location, override(table_rows=3):
        whole = append(make_node(location / "whole"), images, skipped)
        node = make_node(location / "parts")
        ends = [*sorted(min(cut, len(images)) for cut in cuts), len(images)]
        for first, last in zip([0, *ends], ends, strict=False):
            node = append(node, images[first:last], skipped[first:last])
        node = append(node, [], skipped[len(images) :])
        for found in (whole, node):
            table = image_table.read_images(found)
            assert [asdict(image) for image in table] == [asdict(image) for image in images]
            assert [asdict(file) for file in image_table.read_skipped(found)] == [
                asdict(file) for file in skipped
            ]
        assert node.attributes == whole.attributes
        assert {name: a.metadata for name, a in node.arrays.items()} == {
            name: a.metadata for name, a in whole.arrays.items()
        }
        assert contents(node.location) == contents(whole.location)


@settings(max_examples=20)
@given(st.lists(image_records(), min_size=1, max_size=6), st.data())
def test_locate_of_any_tiles_counts_within_images(
    images: list[ImageRecord], data: st.DataObject
) -> None:
    with new_location("memory") as location:
        table = image_table.read_images(append(make_node(location), images, []))
    places = [
        (i, row, column)
        for i, image in enumerate(images)
        for row in range(image.shape[0] // TILE[0])
        for column in range(image.shape[1] // TILE[1])
    ]
    first = data.draw(st.integers(0, len(places)))
    last = data.draw(st.integers(first, len(places)))
    found = table.locate(first, last)
    assert [values.dtype for values in found.values()] == [np.int32] * 3
    assert (
        list(zip(*(values.tolist() for values in found.values()), strict=True))
        == (places[first:last])
    )


RECORDS = [
    ImageRecord(f"i_{i}", i, "ab" * 32, (8, 9), (0, 0), mtime_ns=i, ctime_ns=-i) for i in range(5)
]


def test_table_is_a_sequence_of_records() -> None:
    with new_location("memory") as location:
        table = image_table.read_images(append(make_node(location), RECORDS, []))
    assert len(table) == 5
    assert table[-1] == RECORDS[-1]
    assert table[1:4] == RECORDS[1:4]
    assert table[::-2] == RECORDS[::-2]
    assert list(table) == RECORDS
    assert RECORDS[3] in table
    assert table.first_tile.tolist() == [0, 6, 12, 18, 24]
    for i in (5, -6):
        with pytest.raises(IndexError):
            table[i]


def test_digest_depends_on_images_and_their_order() -> None:
    def digest(images: Sequence[ImageRecord]) -> str:
        return image_table.extend_digest("00", images)

    others = [
        digest(RECORDS),
        digest(RECORDS[::-1]),
        digest(RECORDS[:-1]),
        digest([ImageRecord("i_0", 0, "cd" * 32, (8, 9), (0, 0)), *RECORDS[1:]]),
        digest([ImageRecord("i_0", 0, "ab" * 32, (9, 8), (0, 0)), *RECORDS[1:]]),
        digest([]),
    ]
    assert len(set(others)) == len(others)
    without_times = [ImageRecord(i.name, i.size, i.sha256, i.shape, i.cropped) for i in RECORDS]
    assert digest(without_times) == others[0]


def test_damaged_table_names_the_chunk(location: Location) -> None:
    node = append(make_node(location), RECORDS, [])
    file = location / "images" / "size" / "c" / "0"
    file.write(b"x" * len(bytes(file.read())))
    with pytest.raises(STORE.chunk_error, match=r"images/size of rows 0 to 4 .*images/size/c/0"):  # type: ignore[arg-type]
        image_table.read_images(node)
    assert nodes.read_rows(node, "images/width").tolist() == [9] * 5


def test_open_store_of_many_images_reads_the_root_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = 200_000
    records = [ImageRecord("i.png", 1, "ab" * 32, TILE, (0, 0))] * n
    append(make_node(as_location(tmp_path)), records, []).write(None)
    assert (tmp_path / "zarr.json").stat().st_size < 32_000
    read: list[str] = []
    for name in ("read", "read_into"):
        original = getattr(LocalLocation, name)

        def recording(self: Any, *args: Any, original: Any = original) -> Any:
            read.append(self.name)
            return original(self, *args)

        monkeypatch.setattr(LocalLocation, name, recording)
    store = daskkm.open_store(tmp_path)
    assert len(store) == n
    assert read == ["zarr.json"]
    assert len(store.images) == n
    assert store.images[n - 1] == records[-1]
    assert len(read) < 100
