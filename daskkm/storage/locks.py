"""Acquire exclusive locks between processes.

The system releases a lock of a local file when its process ends; on a file system without locks,
every lock is granted. Elsewhere a lock is an object that its holder renews: an object that does not
change for `_LEASE_SECONDS` has lost its holder.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from daskkm.storage.locations import ConflictError, LocalLocation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from daskkm.storage.locations import Location

_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}  # on some network file systems
_LEASE_SECONDS = 30.0
_RENEWALS = 6  # within a lease


def lock(location: Location, error: Exception) -> AbstractContextManager[None]:
    """Lock what is at a location by ``NAME.lock`` beside it; raise `error` if it is locked."""
    location = location.resolve()
    beside = location.parent / f"{location.name}.lock"
    if isinstance(beside, LocalLocation):
        beside.path.parent.mkdir(parents=True, exist_ok=True)
        return lock_file(beside.path, error)
    return _lease(beside, error)


@contextmanager
def wait_for_commit(location: Location) -> Iterator[None]:
    """Wait for a lock of the moment in which a local root is replaced."""
    if not isinstance(location, LocalLocation):
        yield  # objects are replaced on condition
        return
    descriptor = os.open(location.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _lease(location: Location, error: Exception) -> Iterator[None]:
    """Hold an object, and renew it until the end; raise `error` if another holder renews it."""
    number, token = 0, uuid.uuid4().hex
    content = f"{token} 0".encode()
    try:
        location.swap(None, content)
    except ConflictError:
        try:
            location.swap(_await_abandoned(location, error), content)
        except ConflictError:
            raise error from None
    ended = threading.Event()

    def renew() -> None:
        nonlocal content, number
        while not ended.wait(_LEASE_SECONDS / _RENEWALS):
            number += 1
            new = f"{token} {number}".encode()
            with suppress(OSError):  # the next renewal tries again
                try:
                    location.swap(content, new)
                    content = new
                except OSError:  # the put may have succeeded
                    present = bytes(location.read())
                    if present.startswith(token.encode()):
                        content = present

    thread = threading.Thread(target=renew, name="daskkm-lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with suppress(OSError):
            if bytes(location.read()) == content:
                location.remove()


def _await_abandoned(location: Location, error: Exception) -> bytes | None:
    """Return the content of a lock that is not renewed, or None if it is removed."""

    def read() -> bytes | None:
        try:
            return bytes(location.read())
        except FileNotFoundError:
            return None

    content, end = read(), time.monotonic() + _LEASE_SECONDS
    while content is not None and time.monotonic() < end:
        time.sleep(_LEASE_SECONDS / _RENEWALS / 2)
        if (now := read()) != content:
            if now is None:
                return None
            raise error
    return content


@contextmanager
def lock_folder(folder: Path, error: Exception) -> Iterator[None]:
    """Create and lock a folder; raise `error` if another process holds the lock."""

    def open_folder() -> int:
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)

    descriptor = _lock(folder, open_folder, error)
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def lock_file(path: Path, error: Exception) -> Iterator[None]:
    """Create and lock a file, and remove the file at exit; raise `error` if the lock is taken.

    On NFS, locks of files work between machines; locks of folders do not.
    """
    descriptor = _lock(
        path, lambda: os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), error
    )
    try:
        yield
    finally:
        with suppress(OSError):  # the folder may be gone
            if not os.fstat(descriptor).st_size:  # a file with content belongs to the user
                path.unlink()
        os.close(descriptor)


def _lock(path: Path, open_path: Callable[[], int], error: Exception) -> int:
    """Open and lock a file or folder; return the descriptor."""
    while True:
        descriptor = open_path()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as blocked:
            os.close(descriptor)
            raise error from blocked
        except OSError as failure:
            if failure.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
            return descriptor
        # Another process may have removed the file since it was opened.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)
