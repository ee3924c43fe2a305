"""Test that groups and arrays are complete, intact and of the right kind, or an error is raised."""

from __future__ import annotations

import dataclasses
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr

from daskkm.errors import DaskkmError
from daskkm.storage import chunks, commit, zarr_nodes

if TYPE_CHECKING:
    from pathlib import Path


class OddError(DaskkmError):
    pass


KIND = zarr_nodes.Kind(
    name="odd",
    noun="heap of odds",
    items="odds",
    members=frozenset({"zarr.json", "odds"}),
    error=OddError,
    create="make one",
    repair="begin anew",
)


def write(path: Path, values: list[int], kind: zarr_nodes.Kind = KIND) -> None:
    with commit.replace_node(path, kind) as partial:
        zarr_nodes.create_group(partial, kind, {})
        array = create(partial / "odds", len(values), "int64")
        array[:] = np.array(values)
        zarr_nodes.write_attributes(partial, kind, {"n": len(values)}, complete=True)


def create(path: Path, n: int, dtype: str) -> zarr.Array[Any]:
    return zarr_nodes.create_array(path, (n,), dtype, rows=2, dimensions=("odd",))


def read(path: Path) -> list[int]:
    group, attributes = zarr_nodes.open_node(path, KIND)
    array = group["odds"]
    return zarr_nodes.read_rows(array, 0, attributes["n"], KIND).tolist()  # type: ignore[no-any-return]


def test_open_node_of_missing_node_gives_a_hint(tmp_path: Path) -> None:
    write(tmp_path / "odds.zarr", [1])
    with pytest.raises(OddError) as caught:
        zarr_nodes.open_node(tmp_path / "oods.zarr", KIND)
    assert str(caught.value) == (
        f"{tmp_path}/oods.zarr: the heap of odds does not exist "
        f"(did you mean {tmp_path}/odds.zarr?). Make one"
    )


def test_open_node_of_another_kind_or_format_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = dataclasses.replace(KIND, name="even")
    write(tmp_path / "even", [1], other)
    with pytest.raises(OddError, match=r"not a heap of odds .*kind is even, not odd"):
        zarr_nodes.open_node(tmp_path / "even", KIND)
    zarr.create_group(tmp_path / "group")
    with pytest.raises(OddError, match=r"not a heap of odds \(no attributes of daskkm\)"):
        zarr_nodes.open_node(tmp_path / "group", KIND)
    write(tmp_path / "h", [1])
    monkeypatch.setattr(zarr_nodes, "FORMAT", 9)
    with pytest.raises(OddError, match="its format is 3, not 9"):
        zarr_nodes.open_node(tmp_path / "h", KIND)


def test_open_node_with_damaged_metadata_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "h", [1])
    file = tmp_path / "h" / "zarr.json"
    whole = file.read_text()
    for text, problem in (
        ("{", "metadata cannot be read .*begin anew"),
        ("[]", "no attributes of daskkm"),
        (whole.replace('"n": 1', '"n": 2'), "metadata is damaged"),
    ):
        file.write_text(text)
        with pytest.raises(OddError, match=f"h: .*{problem}"):
            zarr_nodes.open_node(tmp_path / "h", KIND)


def test_array_of_zeros_through_pickle_writes_all_chunks(tmp_path: Path) -> None:
    """Zarr reads a missing chunk as zeros, so a lost chunk would not be noticed."""
    array = create(tmp_path / "a", 3, "uint8")
    with pytest.raises(OddError, match=r"a: odd of odds 0 to 1 cannot be read .*Restore"):
        zarr_nodes.check_chunks(array, KIND)
    there = pickle.loads(pickle.dumps(array))
    there[:2] = 0
    there[2:] = 0
    zarr_nodes.check_chunks(array, KIND)
    assert zarr_nodes.read_rows(array, 0, 3, KIND).tolist() == [0, 0, 0]
    (tmp_path / "a" / "c" / "1").unlink()
    assert zarr_nodes.read_rows(array, 0, 2, KIND).tolist() == [0, 0]
    with pytest.raises(OddError, match="odds 2 to 2 cannot be read"):
        zarr_nodes.read_rows(array, 2, 3, KIND)


def test_stream_chunks_of_array_reuses_one_buffer(tmp_path: Path) -> None:
    array = create(tmp_path / "a", 5, "int32")
    array[:] = np.arange(5, dtype=np.int32)
    values, places = [], set()
    for chunk in zarr_nodes.stream_chunks(array, 0, 5, KIND):
        values += chunk.tolist()
        places.add(chunk.__array_interface__["data"][0])
        assert not chunk.flags.writeable
    assert values == [0, 1, 2, 3, 4]
    assert len(places) == 1
    assert chunks.read_rows(array, 1, 4).tolist() == [1, 2, 3]
