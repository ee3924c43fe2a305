"""Test that locks of files and folders have one holder at a time, and leave no files."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from daskkm.errors import StoreError
from daskkm.storage import locks
from daskkm.storage.locations import Location, ObjectLocation, as_location
from daskkm.storage.locks import lock_file, lock_folder
from tests.processes import Process, until

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


# Leases: locks of objects

LEASE = 0.6


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Location:
    """Return a location in memory, with short leases."""
    monkeypatch.setattr(locks, "_LEASE_SECONDS", LEASE)
    return as_location(f"memory://{uuid.uuid4().hex}/t.zarr")


def test_lease_of_a_living_holder_is_refused(place: Location) -> None:
    with locks.lock(place, BUSY):
        start = time.monotonic()
        while time.monotonic() < start + 2 * LEASE:  # longer than a lease
            with pytest.raises(StoreError, match="busy"), locks.lock(place, BUSY):
                pass
            with locks.lock(place.parent / "other", BUSY):
                pass
        assert place.parent.names() == {"t.zarr.lock"}
    assert place.parent.names() == set()
    with locks.lock(place, BUSY):
        pass


def test_abandoned_lease_is_acquired_after_a_while(place: Location) -> None:
    (place.parent / "t.zarr.lock").write(b"token of a killed holder 3")
    start = time.monotonic()
    with locks.lock(place, BUSY):
        assert time.monotonic() - start >= LEASE
        with pytest.raises(StoreError, match="busy"), locks.lock(place, BUSY):
            pass
    assert place.parent.names() == set()


def test_abandoned_lease_has_one_next_holder(place: Location) -> None:
    (place.parent / "t.zarr.lock").write(b"token of a killed holder 3")
    holders, ends = [], threading.Event()

    def enter(i: int) -> bool:
        try:
            with locks.lock(place, BUSY):
                holders.append(i)
                assert ends.wait(60)
        except StoreError:
            return False
        return True

    with ThreadPoolExecutor(3) as pool:
        found = [pool.submit(enter, i) for i in range(3)]
        until(lambda: sum(future.done() for future in found) == 2)
        ends.set()
        assert sorted(future.result() for future in found) == [False, False, True]
    assert len(holders) == 1


def test_lease_that_is_released_during_the_wait_is_acquired(place: Location) -> None:
    lock = place.parent / "t.zarr.lock"
    lock.write(b"token of a holder 3")
    waiting = threading.Event()

    def enter() -> bool:
        waiting.set()
        with locks.lock(place, BUSY):
            return True

    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(enter)
        assert waiting.wait(60)
        lock.remove()
        assert found.result()


def test_lease_of_another_holder_is_not_removed(place: Location) -> None:
    """A holder that was suspended for long has lost its lease."""
    lock = place.parent / "t.zarr.lock"
    with locks.lock(place, BUSY):
        lock.write(b"token of the next holder 0")
    assert bytes(lock.read()) == b"token of the next holder 0"


def test_lease_whose_renewal_fails_is_renewed_again(
    place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first renewal is written, but its answer is lost in each attempt."""
    lock = place.parent / "t.zarr.lock"
    swap: Any = ObjectLocation.swap
    lost: list[bytes] = []

    def lose(self: ObjectLocation, old: bytes | None, new: bytes) -> None:
        swap(self, old, new)
        if new.endswith(b" 1") and not lost:
            lost.append(new)
            raise OSError(errno.EIO, "connection closed")

    monkeypatch.setattr(ObjectLocation, "swap", lose)
    with locks.lock(place, BUSY):
        until(lambda: bytes(lock.read()).endswith((b" 3", b" 4", b" 5")))
    assert lost
    assert place.parent.names() == set()


def test_lock_of_a_link_is_the_lock_of_its_target(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    link, disk = as_location(tmp_path / "link"), as_location(tmp_path / "disk")
    with locks.lock(link, BUSY), pytest.raises(StoreError, match="busy"), locks.lock(disk, BUSY):
        pass
    assert {entry.name for entry in tmp_path.iterdir()} == {"disk", "link"}
