"""Test that commits replace whole nodes, by one writer at a time, and no other content."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path

import pytest

from daskkm.storage import commit, zarr_nodes
from tests.storage.test_zarr_nodes import KIND, OddError, read, write

pytestmark = pytest.mark.faults


def test_replace_node_of_same_kind_is_done(tmp_path: Path) -> None:
    for values in ([1, 3, 5], [7], []):
        write(tmp_path / "deep" / "h.zarr", values)
        assert read(tmp_path / "deep" / "h.zarr") == values
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["h.zarr"]


def test_replace_node_after_error_keeps_older_node(tmp_path: Path) -> None:
    write(tmp_path / "h.zarr", [1])

    def fail() -> None:
        with commit.replace_node(tmp_path / "h.zarr", KIND) as partial:
            zarr_nodes.create_group(partial, KIND, {})
            zarr_nodes.open_node(partial, KIND)

    with pytest.raises(OddError, match=r"partial: the heap of odds is not complete\. Begin anew"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["h.zarr"]
    assert read(tmp_path / "h.zarr") == [1]


def test_replace_node_during_another_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "h"
    with commit.replace_node(path, KIND) as partial:
        with pytest.raises(OddError, match="another run is writing this heap of odds"):
            write(path, [3])
        zarr_nodes.create_group(partial, KIND, {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["h"]


@pytest.mark.parametrize("name", ["thesis.tex", ".git"])
def test_replace_node_over_other_content_is_refused(tmp_path: Path, name: str) -> None:
    for path in (tmp_path / "folder", tmp_path / "node"):
        if path.name == "node":
            write(path, [1])
        (path / name).mkdir(parents=True)
        with pytest.raises(OddError, match=rf"the folder holds {name}.*Choose another location"):
            write(path, [3])
        assert (path / name).exists()
    (tmp_path / "file").touch()
    with pytest.raises(OddError, match=r"\(a file\)"):
        write(tmp_path / "file", [3])


def test_replace_node_of_another_kind_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "h", [1], dataclasses.replace(KIND, name="even"))
    with pytest.raises(OddError, match=r"may replace .*kind is even, not odd"):
        write(tmp_path / "h", [3])


def test_replace_node_over_system_files_is_done(tmp_path: Path) -> None:
    (tmp_path / "h").mkdir()
    for _ in range(2):  # over an empty folder, then over a node
        (tmp_path / "h" / ".DS_Store").touch()
        write(tmp_path / "h", [3])
        assert read(tmp_path / "h") == [3]


def test_replace_node_with_damaged_metadata_is_done(tmp_path: Path) -> None:
    write(tmp_path / "h", [1])
    (tmp_path / "h" / "zarr.json").write_text("{")
    write(tmp_path / "h", [3])
    assert read(tmp_path / "h") == [3]


def test_replace_node_without_permission_keeps_older_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rename = tmp_path / "h", Path.rename
    write(path, [1])

    def fail(self: Path, target: Path) -> Path:
        if self.suffix == ".partial":
            raise OSError(errno.EROFS, "Read-only file system")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    inner = dataclasses.replace(KIND, inner=True)
    for kind, hint in ((KIND, "choose another location"), (inner, "check that the folder can")):
        with pytest.raises(OddError, match=rf"cannot be written \(Read-only.*Make room, or {hint}"):
            write(path, [3], kind)
        assert read(path) == [1]
        assert [entry.name for entry in tmp_path.iterdir()] == ["h"]


@pytest.mark.parametrize("has_new", [False, True])
def test_replace_node_after_kill_during_commit_restores_older_node(
    tmp_path: Path, has_new: bool
) -> None:
    path = tmp_path / "h"
    write(path, [0])
    path.rename(tmp_path / ".h.old")
    if has_new:
        write(tmp_path / "new", [1])
        (tmp_path / "new").rename(path)
    with commit.lock_location(path, KIND):
        assert read(path) == [int(has_new)]
    assert [entry.name for entry in tmp_path.iterdir()] == ["h"]


def test_replace_node_over_other_content_after_kill_keeps_older_node(
    tmp_path: Path,
) -> None:
    path = tmp_path / "h"
    write(path, [0])
    path.rename(tmp_path / ".h.old")
    (path / "odds").mkdir(parents=True)
    with pytest.raises(OddError, match=r"h: not a heap of odds .*the folder has no zarr\.json"):
        write(path, [1])
    (path / "odds").rmdir()
    path.rmdir()
    with commit.lock_location(path, KIND):
        assert read(path) == [0]


def test_remove_leftovers_of_killed_runs_keeps_other_files(tmp_path: Path) -> None:
    path = tmp_path / "h"
    write(path, [1])
    zarr_nodes.create_group(tmp_path / "h.partial", KIND, {})
    (tmp_path / "h.lock").touch()
    with commit.lock_location(path, KIND):
        commit.remove_leftovers(path, KIND)
        assert (tmp_path / "h.partial").exists()
    commit.remove_leftovers(path, KIND)
    assert [entry.name for entry in tmp_path.iterdir()] == ["h"]
    (tmp_path / "h.partial").mkdir()
    (tmp_path / "h.partial" / "thesis.tex").touch()
    commit.remove_leftovers(path, KIND)
    assert (tmp_path / "h.partial" / "thesis.tex").exists()


def test_check_free_of_link_loop_or_current_folder_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for path in (tmp_path / "loop", Path()):
        with pytest.raises(OddError, match="Choose another location"):
            commit.check_free(path, KIND)
