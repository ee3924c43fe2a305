"""Groups and arrays: whole or not there, of their kind, and never over anything else."""

from __future__ import annotations

import dataclasses
import pickle
from typing import TYPE_CHECKING

import numpy as np
import pytest

from daskkm import groups
from daskkm.errors import DaskkmError

if TYPE_CHECKING:
    from pathlib import Path


class OddError(DaskkmError):
    pass


KIND = groups.Kind(
    name="odd",
    noun="heap of odds",
    rows="odds",
    members=frozenset({"zarr.json", "odds"}),
    error=OddError,
    make="make one",
    mend="begin anew",
)


def write(path: Path, values: list[int], kind: groups.Kind = KIND) -> None:
    with groups.replacing(path, kind) as partial:
        group = groups.create_group(partial)
        array = groups.create_array(group, "odds", (len(values),), "int64", rows=2)
        array[:] = np.array(values)
        groups.complete(group, kind, {"n": len(values)})


def read(path: Path) -> list[int]:
    group, said = groups.open_node(path, KIND)
    return groups.read(groups.member(group, "odds", KIND), 0, said["n"], KIND).tolist()  # type: ignore[no-any-return]


def test_what_is_written_is_read_and_replaced(tmp_path: Path) -> None:
    for values in ([1, 3, 5], [7], []):
        write(tmp_path / "deep" / "h.zarr", values)
        assert read(tmp_path / "deep" / "h.zarr") == values
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["h.zarr"]


def test_what_is_not_completed_is_not_seen_and_costs_nothing(tmp_path: Path) -> None:
    write(tmp_path / "h.zarr", [1])

    def fail() -> None:
        with groups.replacing(tmp_path / "h.zarr", KIND) as partial:
            groups.create_group(partial)
            groups.open_node(partial, KIND)

    with pytest.raises(OddError, match=r"partial: this is not a heap of odds .*begin anew"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["h.zarr"]
    assert read(tmp_path / "h.zarr") == [1]
    with pytest.raises(OddError, match="there is no heap of odds; make one"):
        groups.open_node(tmp_path / "none", KIND)


def test_only_its_own_kind_and_format_is_read_or_replaced(tmp_path: Path) -> None:
    newer = dataclasses.replace(KIND, format=2)
    other = dataclasses.replace(KIND, name="even")
    for kind, why in ((newer, "format is 2, not 1"), (other, "kind is even, not odd")):
        path = tmp_path / kind.name
        write(path, [1], kind)
        with pytest.raises(OddError, match=why):
            groups.open_node(path, KIND)
        with pytest.raises(OddError, match=f"to be replaced .*{why}.*choose another place"):
            write(path, [3])
    write(tmp_path / "more", [1])
    (tmp_path / "more" / "evens").mkdir()
    with pytest.raises(OddError, match="it holds evens"):
        write(tmp_path / "more", [3])
    assert read(tmp_path / "more") == [1]


def test_zeros_are_written_also_through_a_pickle(tmp_path: Path) -> None:
    """A chunk left out reads as zeros, and could not be told from one that was lost."""
    array = groups.create_array(tmp_path / "a", None, (3,), "uint8", rows=2)
    with pytest.raises(OddError, match=r"a: odd of odds 0 to 2 cannot be read .*restore"):
        groups.check(array, KIND)
    there = pickle.loads(pickle.dumps(array))
    there[:2] = 0
    there[2:] = 0
    groups.check(array, KIND)
    assert groups.read(array, 0, 3, KIND).tolist() == [0, 0, 0]
    (tmp_path / "a" / "c" / "1").unlink()
    assert groups.read(array, 0, 2, KIND).tolist() == [0, 0]
    with pytest.raises(OddError, match="odds 2 to 2 cannot be read"):
        groups.read(array, 2, 3, KIND)


def test_metadata_that_is_missing_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "h.zarr"
    write(path, [1])
    group, _ = groups.open_node(path, KIND)
    (path / "odds" / "zarr.json").write_text("{")
    with pytest.raises(OddError, match=r"h\.zarr: the metadata of odds cannot be read"):
        groups.member(group, "odds", KIND)
    (path / "odds" / "zarr.json").unlink()
    with pytest.raises(OddError, match=r"h\.zarr: the heap of odds has no array 'odds'"):
        groups.member(group, "odds", KIND)
    (path / "zarr.json").write_text("{")
    with pytest.raises(OddError, match=r"h\.zarr: the metadata cannot be read .*begin anew"):
        groups.open_node(path, KIND)
