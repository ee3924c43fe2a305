"""Acquire exclusive locks between processes. The system releases a lock when its process ends.

On a file system without locks, every lock is granted.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}  # on some network file systems


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
