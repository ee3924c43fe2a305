"""Groups and arrays: whole or not there, of their kind, and never over anything else."""

from __future__ import annotations

import dataclasses
import errno
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr

from daskkm.errors import DaskkmError
from daskkm.storage import commit, nodes


class OddError(DaskkmError):
    pass


KIND = nodes.Kind(
    name="odd",
    noun="heap of odds",
    rows="odds",
    members=frozenset({"zarr.json", "odds"}),
    error=OddError,
    make="make one",
    mend="begin anew",
)


def write(path: Path, values: list[int], kind: nodes.Kind = KIND) -> None:
    with commit.replacing(path, kind) as partial:
        group = nodes.create_group(partial, kind)
        array = nodes.create_array(group, "odds", (len(values),), "int64", kind, rows=2)
        array[:] = np.array(values)
        nodes.complete(group, kind, {"n": len(values)})


def read(path: Path) -> list[int]:
    group, said = nodes.open_node(path, KIND)
    return nodes.read(nodes.member(group, "odds", KIND), 0, said["n"], KIND).tolist()  # type: ignore[no-any-return]


def test_what_is_written_is_read_and_replaced(tmp_path: Path) -> None:
    for values in ([1, 3, 5], [7], []):
        write(tmp_path / "deep" / "h.zarr", values)
        assert read(tmp_path / "deep" / "h.zarr") == values
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["h.zarr"]


def test_what_is_not_completed_is_not_seen_and_costs_nothing(tmp_path: Path) -> None:
    write(tmp_path / "h.zarr", [1])

    def fail() -> None:
        with commit.replacing(tmp_path / "h.zarr", KIND) as partial:
            nodes.create_group(partial, KIND)
            nodes.open_node(partial, KIND)

    with pytest.raises(OddError, match=r"partial: the heap of odds is not complete; begin"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["h.zarr"]
    assert read(tmp_path / "h.zarr") == [1]
    with pytest.raises(OddError, match="there is no heap of odds; make one"):
        nodes.open_node(tmp_path / "none", KIND)


def test_only_its_own_kind_and_format_is_read_or_replaced(tmp_path: Path) -> None:
    newer = dataclasses.replace(KIND, format=3)
    other = dataclasses.replace(KIND, name="even")
    for kind, why in ((newer, "format is 3, not 2"), (other, "kind is even, not odd")):
        path = tmp_path / kind.name
        write(path, [1], kind)
        with pytest.raises(OddError, match=why):
            nodes.open_node(path, KIND)
        with pytest.raises(OddError, match=f"to be replaced .*{why}.*choose another place"):
            write(path, [3])
    write(tmp_path / "more", [1])
    (tmp_path / "more" / "evens").mkdir()
    with pytest.raises(OddError, match="it holds evens"):
        write(tmp_path / "more", [3])
    assert read(tmp_path / "more") == [1]


def test_whatever_else_is_there_is_seen_where_it_may_be(tmp_path: Path) -> None:
    for place in (".git", "odds/notes.txt", "odds/.git", "odds/evens/zarr.json"):
        write(tmp_path / "h", [1])
        stray = tmp_path / "h" / place
        stray.parent.mkdir(exist_ok=True)
        stray.touch()
        first = "/".join(place.split("/")[:2])
        with pytest.raises(OddError, match=f"it holds {first}.*; choose another place"):
            write(tmp_path / "h", [3])
        assert read(tmp_path / "h") == [1]
        shutil.rmtree(tmp_path / "h")
    (tmp_path / "dots" / ".git").mkdir(parents=True)
    with pytest.raises(OddError, match=r"it holds \.git"):
        write(tmp_path / "dots", [1])
    assert (tmp_path / "dots" / ".git").exists()
    write(tmp_path / "h", [1])
    for left in (".DS_Store", ".nfs0001", "odds/.DS_Store"):
        (tmp_path / "h" / left).touch()
    write(tmp_path / "h", [3])
    assert read(tmp_path / "h") == [3]


def test_groups_in_it_hold_what_their_names_say(tmp_path: Path) -> None:
    kind = dataclasses.replace(KIND, members=KIND.members | {"sets"}, names=(("sets", "[0-9]+"),))
    for name, refused in (("12", False), ("12.0a1b2c3d.partial", False), ("mine", True)):
        write(tmp_path / "h", [1], kind)
        folder = tmp_path / "h" / "sets" / name
        zarr.create_array(folder, shape=(2,), dtype="u1")
        if refused:
            with pytest.raises(OddError, match=f"it holds sets/{name}"):
                write(tmp_path / "h", [3], kind)
            assert folder.exists()
            continue
        (folder / "notes.txt").touch()
        with pytest.raises(OddError, match=f"it holds sets/{name}/notes.txt"):
            write(tmp_path / "h", [3], kind)
        (folder / "notes.txt").unlink()
        write(tmp_path / "h", [3], kind)
        assert not folder.exists()


def test_no_two_writers_have_the_same_place_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "h"
    write(path, [0])
    with commit.replacing(path, KIND) as one, commit.replacing(path, KIND) as other:
        assert one != other
        for partial, value in ((one, 1), (other, 2)):
            group = nodes.create_group(partial, KIND)
            nodes.create_array(group, "odds", (1,), "int64", KIND, rows=1)[:] = np.array([value])
            nodes.complete(group, KIND, {"n": 1})
    assert read(path) == [1]  # the last to end
    assert [entry.name for entry in tmp_path.iterdir()] == ["h"]


def test_many_writers_at_once_and_the_last_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "h"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda value: write(path, [value] * 3), range(60)))
    assert len(set(read(path))) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["h"]


def test_what_a_killed_run_left_beside_it_is_in_no_ones_way(tmp_path: Path) -> None:
    write(tmp_path / "h", [0])
    for left in ("h.00000001.old", "h.00000002.partial", "h.1.old", "g.00000001.old"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "zarr.json").touch()
    (tmp_path / "h.00000003.old").mkdir()
    (tmp_path / "h.00000003.old" / "thesis.tex").touch()
    (tmp_path / "h.lock").touch()
    write(tmp_path / "h", [1])
    assert read(tmp_path / "h") == [1]
    # What may be someone else's stays.
    assert {entry.name for entry in tmp_path.iterdir()} == {
        *("h", "h.1.old", "g.00000001.old", "h.00000003.old")
    }


def test_what_cannot_be_put_in_its_place_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rename = tmp_path / "h", Path.rename
    write(path, [1])

    def fail(self: Path, target: Path) -> Path:
        if self.suffix == ".partial":
            raise OSError(errno.EROFS, "Read-only file system")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    fixed = dataclasses.replace(KIND, placed=False)
    for kind, advice in ((KIND, "or choose another place"), (fixed, "or see that the folder can")):
        with pytest.raises(OddError, match=f"cannot be written .*Read-only.*make room {advice}"):
            write(path, [3], kind)
        assert read(path) == [1]
        assert [entry.name for entry in tmp_path.iterdir()] == ["h"]


def test_more_chunks_than_are_read_are_refused_before_one_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daskkm.storage.metadata.MOST_CHUNKS", 3)
    write(tmp_path / "h.zarr", [1, 3, 5, 7, 9, 11])
    assert len(read(tmp_path / "h.zarr")) == 6
    with (
        pytest.raises(OddError, match=r"a: 7 odds are too many .* more than 3 chunks of 2; spread"),
        nodes.write_errors_named(tmp_path / "a", KIND),
    ):
        nodes.create_array(tmp_path / "a", None, (7,), "int64", KIND, rows=2)
    assert [entry.name for entry in tmp_path.iterdir()] == ["h.zarr"]


def test_zeros_are_written_also_through_a_pickle(tmp_path: Path) -> None:
    """A chunk left out reads as zeros, and could not be told from one that was lost."""
    array = nodes.create_array(tmp_path / "a", None, (3,), "uint8", KIND, rows=2)
    with pytest.raises(OddError, match=r"a: odd of odds 0 to 1 cannot be read .*restore"):
        nodes.check(array, KIND)
    there = pickle.loads(pickle.dumps(array))
    there[:2] = 0
    there[2:] = 0
    nodes.check(array, KIND)
    assert nodes.read(array, 0, 3, KIND).tolist() == [0, 0, 0]
    (tmp_path / "a" / "c" / "1").unlink()
    assert nodes.read(array, 0, 2, KIND).tolist() == [0, 0]
    with pytest.raises(OddError, match="odds 2 to 2 cannot be read"):
        nodes.read(array, 2, 3, KIND)


def test_metadata_that_is_missing_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "h.zarr"
    write(path, [1])
    group, _ = nodes.open_node(path, KIND)
    (path / "odds" / "zarr.json").write_text("{")
    with pytest.raises(OddError, match=r"h\.zarr: the metadata of odds cannot be read"):
        nodes.member(group, "odds", KIND)
    (path / "odds" / "zarr.json").unlink()
    with pytest.raises(OddError, match=r"h\.zarr: the heap of odds has no array 'odds'"):
        nodes.member(group, "odds", KIND)
    (path / "zarr.json").write_text("{")
    with pytest.raises(OddError, match=r"h\.zarr: the metadata cannot be read .*begin anew"):
        nodes.open_node(path, KIND)


def test_metadata_that_lead_nowhere_are_not_waited_for(tmp_path: Path) -> None:
    node = tmp_path / "node.zarr"
    node.mkdir()
    (node / "zarr.json").symlink_to(tmp_path / "unmounted" / "zarr.json")
    with pytest.raises(OddError, match=r"zarr\.json is a link"):
        commit.check_free(node, KIND)
    assert (node / "zarr.json").is_symlink()
