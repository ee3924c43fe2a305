"""Test that locks of files and folders have one holder at a time, and leave no files."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from daskkm.errors import StoreError
from daskkm.storage.locks import lock_file, lock_folder
from tests.processes import Process

pytestmark = pytest.mark.faults

Lock = Callable[[Path, Exception], AbstractContextManager[None]]

BUSY = StoreError("busy")

HOLDER = """if True:
    import signal, sys
    from pathlib import Path
    from daskkm.errors import StoreError
    from daskkm.storage.locks import lock_file
    with lock_file(Path(sys.argv[1]), StoreError("busy")):
        print("locked", flush=True)
        signal.pause()
"""


@pytest.mark.parametrize("lock", [lock_file, lock_folder])
def test_lock_of_locked_path_is_refused(tmp_path: Path, lock: Lock) -> None:
    for _ in range(2):
        with lock(tmp_path / "a", BUSY):
            with pytest.raises(StoreError, match="busy"), lock(tmp_path / "a", BUSY):
                pass
            with lock(tmp_path / "b", BUSY):
                pass
    assert {entry.name for entry in tmp_path.iterdir()} == (
        set() if lock is lock_file else {"a", "b"}
    )


def test_lock_file_of_killed_process_is_acquired_and_removed(tmp_path: Path) -> None:
    with Process("-c", HOLDER, tmp_path / "a") as holder:
        holder.wait_for("locked")
        with pytest.raises(StoreError, match="busy"), lock_file(tmp_path / "a", BUSY):
            pass
        os.kill(holder.pid, 9)
        holder.wait()
    assert (tmp_path / "a").exists()
    with lock_file(tmp_path / "a", BUSY):
        pass
    assert not list(tmp_path.iterdir())


def test_lock_file_by_many_threads_has_one_holder(tmp_path: Path) -> None:
    holders: list[int] = []

    def enter(i: int) -> bool:
        try:
            with lock_file(tmp_path / "a", BUSY):
                holders.append(i)
                os.sched_yield()
                assert holders == [i]
                holders.clear()
        except StoreError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert any(pool.map(enter, range(300)))
    assert not list(tmp_path.iterdir())


def test_lock_file_with_content_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("precious")
    with lock_file(tmp_path / "a", BUSY):
        pass
    assert (tmp_path / "a").read_text() == "precious"


def test_lock_file_in_removed_folder_creates_no_folder(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    with lock_file(tmp_path / "labels" / "a", BUSY):
        shutil.rmtree(tmp_path / "labels")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lock", [lock_file, lock_folder])
def test_lock_on_file_system_without_locks_is_granted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lock: Lock
) -> None:
    def without(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", without)
    with lock(tmp_path / "a", BUSY), lock(tmp_path / "a", BUSY):
        pass
