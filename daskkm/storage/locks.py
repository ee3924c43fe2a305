"""Exclusive locks between processes: the system releases them when a process ends, however it ends.

A file system without locks is taken to have one writer.
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
def lock_folder(folder: Path, busy: Exception) -> Iterator[None]:
    """Lock a folder, made if it is missing; raise `busy` if another process has locked it."""

    def open_folder() -> int:
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)

    descriptor = _lock(folder, open_folder, busy)
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def lock_file(path: Path, busy: Exception) -> Iterator[None]:
    """Lock a file, made if it is missing and removed at the end; raise `busy` if it is locked.

    Unlike locks of folders, those of files hold between machines on NFS.
    """
    descriptor = _lock(
        path, lambda: os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), busy
    )
    try:
        yield
    finally:
        with suppress(OSError):  # the folder may be gone
            if not os.fstat(descriptor).st_size:  # else the file is the user's
                path.unlink()
        os.close(descriptor)


def _lock(path: Path, open_path: Callable[[], int], busy: Exception) -> int:
    """Return the descriptor of a file or folder that is locked and lies at the path."""
    while True:
        descriptor = open_path()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise busy from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
            return descriptor
        # The holder before may just have removed the file.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)
