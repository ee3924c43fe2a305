"""Locks: no one comes between an exclusive lock and the shared one that it becomes."""

from __future__ import annotations

import fcntl
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from daskkm.errors import StoreError
from daskkm.storage import commit
from daskkm.storage.tile_store import STORE
from tests.processes import Process, until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.faults

# Asks for a lock alone, and says so before it waits for anything.
ALONE = """if True:
    import fcntl, sys
    from pathlib import Path
    from daskkm.storage import commit
    from daskkm.errors import StoreError
    from daskkm.storage.tile_store import STORE
    flock = fcntl.flock

    def said(lock, how):
        if not how & fcntl.LOCK_NB:
            print("waits", flush=True)
        flock(lock, how)

    fcntl.flock = said
    try:
        with commit.held(Path(sys.argv[1]), STORE, alone=True):
            print("alone", flush=True)
            sys.stdin.read()
    except StoreError as error:
        print("refused", flush=True)
"""


def test_no_one_is_alone_between_the_steps_in_which_a_lock_is_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As systems may have it, of which another process then takes advantage."""
    flock = fcntl.flock
    others: list[Process] = []

    def in_two_steps(lock: int, how: int) -> None:
        if how & fcntl.LOCK_SH and not others:
            flock(lock, fcntl.LOCK_UN)
            others.append(Process("-c", ALONE, tmp_path / "t.zarr"))
            until(lambda: {"waits", "alone"} & set(others[0].output))
            how |= fcntl.LOCK_NB
        flock(lock, how)

    monkeypatch.setattr(fcntl, "flock", in_two_steps)
    with commit.held(tmp_path / "t.zarr", STORE):
        with others[0] as other:
            assert other.wait() == 0, other.lines
        assert other.output[0] == "waits"
        assert other.output[-1] == "refused"
    assert not list(tmp_path.iterdir())


def test_shared_lock_where_another_is_alone_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "t.zarr"
    with commit.held(place, STORE, alone=True):
        for alone in (False, True):
            with (
                pytest.raises(StoreError, match="another run is writing this store"),
                commit.held(place, STORE, alone=alone),
            ):
                pass
    assert not list(tmp_path.iterdir())


def test_many_at_once_share_a_lock_or_are_alone_and_leave_nothing(tmp_path: Path) -> None:
    place = tmp_path / "t.zarr"
    inside: list[bool] = []

    def enter(i: int) -> bool:
        alone = i % 3 == 0
        try:
            with commit.held(place, STORE, alone=alone):
                inside.append(alone)
                assert not alone or len(inside) == 1
                os.sched_yield()
                assert not alone or inside == [True]
                inside.remove(alone)
        except StoreError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        entered: Any = list(pool.map(enter, range(300)))
    assert any(entered)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    with commit.held(tmp_path / "labels" / "3", STORE):
        shutil.rmtree(tmp_path / "labels")
    assert not list(tmp_path.iterdir())


def test_lock_files_of_killed_runs_are_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "t.zarr.lock").touch()
    (tmp_path / "t.zarr.lock.turn").touch()
    with commit.held(tmp_path / "t.zarr", STORE):
        assert [entry.name for entry in tmp_path.iterdir()] == ["t.zarr.lock"]
    assert not list(tmp_path.iterdir())
