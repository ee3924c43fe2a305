"""Test that a node is what its root says, and that its root is intact and of the right kind."""

from __future__ import annotations

import dataclasses
import errno
import json
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr

from daskkm.errors import DaskkmError
from daskkm.storage import nodes
from daskkm.storage.arrays import ChunkedArray
from daskkm.storage.locations import (
    ConflictError,
    LocalLocation,
    ObjectLocation,
    ZarrLocation,
    as_location,
)
from daskkm.storage.nodes import METADATA, Node
from tests.locations import SHARED_KINDS, new_location

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from daskkm.storage.locations import Location

pytestmark = pytest.mark.faults


class OddError(DaskkmError):
    pass


class ChunkOddError(OddError):
    pass


KIND = nodes.Kind(
    name="odd",
    noun="heap of odds",
    items="odds",
    members=frozenset({METADATA, "odds", "more"}),
    contents=r".*/zarr\.json|odds/c|more/\d+",
    error=OddError,
    create="make one",
    repair="begin anew",
    chunk_error=ChunkOddError,
)


def write(location: Location, values: list[int], kind: nodes.Kind = KIND, **own: Any) -> Node:
    """Write a node in place of any older one."""
    nodes.remove_node(location, kind)
    arrays = {name: make_array(location / name, values) for name in ("odds", "more/5")}
    return Node(location, kind, arrays, {"id": f"id of {values}", **own}).write(None)


def make_array(location: Location, values: list[int]) -> ChunkedArray:
    array = ChunkedArray(location, (len(values),), np.dtype(np.int64), 2, ("odd",))
    array.write(0, np.array(values, np.int64))
    return array


def read(location: Location) -> list[int]:
    node = nodes.read_node(location, KIND)
    assert nodes.read_rows(node, "more/5").tolist() == nodes.read_rows(node, "odds").tolist()
    return nodes.read_rows(node, "odds").tolist()  # type: ignore[no-any-return]


def contents(location: Location) -> dict[str, bytes]:
    return {name: bytes((location / name).read()) for name in location.sizes()}


def test_read_node_returns_arrays_and_attributes(location: Location) -> None:
    for values in ([1, 3, 5], [7], []):
        written = write(location, values, note="ä", nested={"a": [1]})
        found = nodes.read_node(location, KIND)
        assert found == written
        assert found.attributes["nested"] == {"a": [1]}
        assert found.attributes["note"] == "ä"
        assert read(location) == values
    assert location.names() <= KIND.members


def test_copies_of_metadata_equal_the_root(location: Location) -> None:
    write(location, [1, 3, 5])
    document = json.loads(bytes((location / METADATA).read()))
    copies = document["consolidated_metadata"]["metadata"]
    assert set(copies) == {"odds", "more", "more/5"}
    for name, copy in copies.items():
        assert json.loads(bytes((location / name / METADATA).read())) == copy


def fail_after(n: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Let each write fail after n; return a function that counts the writes."""
    count = 0
    for kind in (LocalLocation, ObjectLocation, ZarrLocation):

        def write(self: Any, *parts: Any, put: Any = kind.write) -> None:
            nonlocal count
            count += 1
            if count > n:
                raise OSError(errno.ENOSPC, "No space left on device")
            put(self, *parts)

        def swap(self: Any, old: Any, new: Any, put: Any = kind.swap) -> None:
            if isinstance(self, ObjectLocation) and count >= n:  # no other `write`
                raise OSError(errno.ENOSPC, "No space left on device")
            put(self, old, new)

        monkeypatch.setattr(kind, "write", write)
        monkeypatch.setattr(kind, "swap", swap)
    return lambda: count


def test_write_of_node_that_fails_anywhere_leaves_no_node(
    location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(location, [1, 3, 5])
    total = len(location.sizes())
    for n in range(total):
        nodes.remove_node(location, KIND)
        with monkeypatch.context() as patched:
            fail_after(n, patched)
            with pytest.raises(OSError, match="No space"):
                write(location, [1, 3, 5])
        with pytest.raises(OddError, match=r"not a heap of odds|does not exist"):
            nodes.read_node(location, KIND)
        assert nodes.find_obstacle(location, KIND) is None
    with monkeypatch.context() as patched:
        fail_after(total, patched)
        write(location, [1, 3, 5])
    assert read(location) == [1, 3, 5]


def test_update_that_fails_anywhere_leaves_the_older_node(
    location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    def grow(node: Node) -> Node:
        for array in node.arrays.values():
            array.append(3, np.array([7, 9]))
        return node.resize(dict.fromkeys(node.arrays, 5))

    for n in range(6):  # writes of chunks, of copies of metadata, and of the root
        write(location, [1, 3, 5])
        before = nodes.read_node(location, KIND)
        with monkeypatch.context() as patched:
            fail_after(n, patched)
            with pytest.raises(OddError, match=r"cannot be written \(No"):
                nodes.update_node(location, KIND, grow)
        assert read(location) == [1, 3, 5]
        assert nodes.read_node(location, KIND) == before
        nodes.update_node(location, KIND, grow)
        assert read(location) == [1, 3, 5, 7, 9]
        # A reader of the shorter node reads on.
        assert nodes.read_rows(before, "odds").tolist() == [1, 3, 5]
        assert nodes.find_replacement(before) is None


def test_write_over_another_root_raises_conflict(location: Location) -> None:
    first = write(location, [1])
    second = dataclasses.replace(first, attributes={**first.attributes, "n": 2})
    with pytest.raises(ConflictError):
        second.write(None)
    later = second.write(first.content)
    third = dataclasses.replace(first, attributes={**first.attributes, "n": 3})
    with pytest.raises(ConflictError):
        third.write(first.content)
    assert nodes.read_node(location, KIND) == later


@pytest.mark.parametrize("kind", SHARED_KINDS)
def test_updates_of_two_writers_at_once_keep_both_changes(kind: str) -> None:
    with new_location(kind) as location:
        write(location, [1])
        start = threading.Barrier(2)

        def update(name: str) -> None:
            start.wait()
            for i in range(10):
                nodes.update_node(
                    location,
                    KIND,
                    lambda node, key=f"{name} {i}": dataclasses.replace(  # type: ignore[misc]
                        node, attributes=node.attributes | {key: 1}
                    ),
                )

        threads = [threading.Thread(target=update, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = nodes.read_node(location, KIND).attributes
        assert {key for key in found if " " in key} == {f"{n} {i}" for n in "ab" for i in range(10)}


def test_read_node_with_any_damaged_byte_is_refused(location: Location) -> None:
    write(location, [1])
    root = location / METADATA
    whole = bytes(root.read())
    for i in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[i] ^= 1
        root.write(damaged)
        with pytest.raises(OddError, match="heap of odds"):
            nodes.read_node(location, KIND)
    for content, problem in (
        (whole[:-9], r"metadata cannot be read .*begin anew"),
        (b"[]", "no attributes of daskkm"),
        (b"", "metadata cannot be read"),
        (whole + b" ", r"metadata is damaged \(wrong checksum\)"),
    ):
        root.write(content)
        with pytest.raises(OddError, match=problem):
            nodes.read_node(location, KIND)
    root.write(whole)
    assert read(location) == [1]


def test_read_node_of_missing_node_gives_a_hint(location: Location) -> None:
    write(location.parent / "odds.zarr", [1])
    with pytest.raises(OddError) as caught:
        nodes.read_node(location.parent / "oods.zarr", KIND)
    folder = location.parent
    assert str(caught.value) == (
        f"{folder}/oods.zarr: the heap of odds does not exist "
        f"(did you mean {folder}/odds.zarr?). Make one"
    )
    (location / "a").write(b"1")
    with pytest.raises(OddError, match=r"x\.zarr: not a heap of odds\. Make one"):
        nodes.read_node(location, KIND)
    with pytest.raises(OddError, match=r"x\.zarr/a: not a heap of odds\. Make one"):
        nodes.read_node(location / "a", KIND)


def test_read_node_of_another_kind_or_format_is_refused(
    location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(location, [1], dataclasses.replace(KIND, name="even"))
    with pytest.raises(OddError, match=r"not a heap of odds .*kind is even, not odd"):
        nodes.read_node(location, KIND)
    (location / METADATA).write(b'{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    with pytest.raises(OddError, match=r"not a heap of odds \(no attributes of daskkm\)"):
        nodes.read_node(location, KIND)
    write(location, [1])
    monkeypatch.setattr(nodes, "FORMAT", 9)
    with pytest.raises(OddError, match="its format is 4, not 9"):
        nodes.read_node(location, KIND)


@pytest.mark.parametrize(
    "stray", ["thesis.tex", ".git/config", "odds/a.png", "more/5.png", "odds", "more/x/1/a.png"]
)
def test_check_free_of_other_content_is_refused(location: Location, stray: str) -> None:
    """Folders of users may have the names of members, such as `images`."""
    nodes.check_free(location, KIND)
    (location / stray).write(b"precious")
    before = contents(location)
    named = stray if stray.startswith("odds") else "/".join(stray.split("/")[:2])
    named = ".git" if stray.startswith(".git") else named
    with pytest.raises(OddError, match=rf"folder holds {named}\)\. Choose another location"):
        nodes.check_free(location, KIND)
    assert contents(location) == before


def test_check_free_of_a_file_is_refused(location: Location) -> None:
    location.write(b"precious")
    with pytest.raises(OddError, match=r"not a heap of odds that daskkm may replace \(a file\)"):
        nodes.check_free(location, KIND)


def test_check_free_of_nodes_and_remains_is_done(location: Location) -> None:
    write(location, [1])
    nodes.check_free(location, KIND)
    (location / METADATA).write(b"{")  # damaged
    (location / ".DS_Store").write(b"")
    nodes.check_free(location, KIND)
    (location / METADATA).remove()
    for name in list(location.sizes()):
        nodes.check_free(location, KIND)
        (location / name).remove()
    write(location, [1], dataclasses.replace(KIND, name="even"))
    with pytest.raises(OddError, match=r"may replace .*kind is even, not odd"):
        nodes.check_free(location, KIND)


def test_check_free_of_a_link_loop_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OddError, match="Choose another location"):
        nodes.check_free(as_location(tmp_path / "loop"), KIND)


def test_remove_node_that_is_killed_leaves_no_node(
    location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(location, [1])
    for kind in (LocalLocation, ObjectLocation, ZarrLocation):
        remove = kind.remove

        def stop(self: Any, remove: Any = remove) -> None:
            if self.name != METADATA:
                raise KeyboardInterrupt
            remove(self)

        monkeypatch.setattr(kind, "remove", stop)
    with pytest.raises(KeyboardInterrupt):
        nodes.remove_node(location, KIND)
    with pytest.raises(OddError, match="not a heap of odds"):
        nodes.read_node(location, KIND)
    assert nodes.find_obstacle(location, KIND) is None


def test_read_of_a_bad_chunk_names_rows_and_file(location: Location) -> None:
    node = write(location, [1, 3, 5])
    chunk = location / "odds" / "c" / "1"
    whole = bytes(chunk.read())
    for damage, problem in ((whole[:-1], "wrong size"), (b"x" * len(whole), "wrong checksum")):
        chunk.write(damage)
        with pytest.raises(ChunkOddError) as error:
            nodes.read_rows(node, "odds")
        assert str(error.value) == (
            f"{location}: odds of rows 2 to 2 cannot be read from chunk odds/c/1 ({problem}). "
            "Restore the heap of odds, or remove it and begin anew"
        )
    (location / "more" / "5" / "c" / "0").remove()
    with pytest.raises(ChunkOddError, match=r"more/5 of rows 0 to 1 .* \(missing file\)"):
        list(nodes.stream_rows(node, "more/5", 0, 3))


def test_read_of_a_removed_or_replaced_node_is_refused(location: Location) -> None:
    node = write(location, [1, 3, 5])
    write(location, [7])
    with pytest.raises(OddError, match=r"odds: replaced during a read\. Open the heap of odds"):
        nodes.read_rows(node, "odds")
    nodes.remove_node(location, KIND)
    assert nodes.find_replacement(node) is not None
    location.remove()
    with pytest.raises(OddError, match=r"not found\. Every worker needs this location"):
        nodes.read_rows(node, "odds")


def test_zarr_opens_the_arrays_of_a_node(location: Location) -> None:
    write(location, [1, 3, 5])
    store, path = location.open_zarr()
    group: Any = zarr.open_group(store, path=path, mode="r")
    assert {name for name, _ in group.members(None)} == {"odds", "more", "more/5"}
    assert group["more/5"][:].tolist() == [1, 3, 5]
