"""Locks of the system, by which runs know of each other: they end with a process, however it does.

Where a file system has none, who writes there is trusted to be the only one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}  # on some network file systems


@contextmanager
def held(
    path: Path,
    opened: Callable[[], int],
    busy: Exception,
    *,
    alone: bool = True,
    first: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Be the only one who holds a lock, or one of those who share it.

    Parameters
    ----------
    path : Path
        A folder; or a file, which the last one to let go of it removes, if it is empty.
    opened : callable
        Returns a descriptor of it, making it if need be.
    busy : Exception
        What is raised if there are others, and may be none.
    alone : bool, default True
        Whether there may be no others.
    first : callable, optional
        Called where there are no others, before any come.

    Raises
    ------
    OSError
        As `opened` and `first` raise it.
    """
    lock = _locked(path, opened, busy, alone=alone, first=first)
    try:
        yield
    finally:
        _release(lock, path)


def _locked(
    path: Path,
    opened: Callable[[], int],
    busy: Exception,
    *,
    alone: bool,
    first: Callable[[], None],
) -> int:
    """Return the descriptor of what is at a path, locked."""
    while True:
        lock = opened()
        try:
            try:
                if not _flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    return lock
                if _is_at(lock, path):
                    first()
            except BlockingIOError as error:
                if alone:
                    raise busy from error
            if not alone:
                _flock(lock, fcntl.LOCK_SH)
            # Those who had it before may just have removed it: then it is no one's.
            if _is_at(lock, path):
                return lock
        except BaseException:
            _release(lock, path)
            raise
        os.close(lock)


def _release(lock: int, path: Path) -> None:
    try:
        with suppress(OSError):  # such as where others have it
            _flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(lock)
            if _is_at(lock, path) and stat.S_ISREG(status.st_mode) and not status.st_size:
                path.unlink()
    finally:
        os.close(lock)


def _flock(lock: int, how: int) -> bool:
    """Lock what is open, and tell whether there are locks."""
    try:
        fcntl.flock(lock, how)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _is_at(lock: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(lock), path.stat())
    return False
