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
_AT_ONCE = fcntl.LOCK_NB


@contextmanager
def held(path: Path, opened: Callable[[], int], busy: Exception) -> Iterator[None]:
    """Hold the exclusive lock of a folder.

    Parameters
    ----------
    path : Path
    opened : callable
        Returns a descriptor of it, making it if need be.
    busy : Exception
        What is raised if another has it.

    Raises
    ------
    OSError
        As `opened` raises it.
    """
    try:
        lock, _ = _locked(path, opened, fcntl.LOCK_EX | _AT_ONCE)
    except BlockingIOError as error:
        raise busy from error
    try:
        yield
    finally:
        os.close(lock)


@contextmanager
def shared(
    path: Path, busy: Exception, first: Callable[[], None], *, alone: bool = False
) -> Iterator[None]:
    """Hold the lock of a file, shared with others or alone.

    `flock` need not turn an exclusive lock into a shared one in one step. So whoever asks for this
    lock, or lets go of it, holds ``NAME.turn`` meanwhile: no one asks between the two steps.

    Parameters
    ----------
    path : Path
        The file. The last one to let go of it removes it, if it is empty.
    busy : Exception
        What is raised if there are others and `alone` is True, or another is alone.
    first : callable
        Called where there are no others, before any come.
    alone : bool, default False
        Whether there may be no others.

    Raises
    ------
    OSError
        If the file cannot be made, or as `first` raises it.
    """
    with _turn(path, _open_in_folder):
        lock = _join(path, busy, first, alone=alone)
    try:
        yield
    finally:
        _leave(lock, path)


def _join(path: Path, busy: Exception, first: Callable[[], None], *, alone: bool) -> int:
    """Return the descriptor of a file that is locked."""
    try:
        lock, is_locked = _locked(path, lambda: _open_in_folder(path), fcntl.LOCK_EX | _AT_ONCE)
    except BlockingIOError as error:
        if alone:
            raise busy from error
        try:
            return _locked(path, lambda: _open_in_folder(path), fcntl.LOCK_SH | _AT_ONCE)[0]
        except BlockingIOError:
            raise busy from error
    try:
        if is_locked:
            first()
        if not alone:
            _flock(lock, fcntl.LOCK_SH)
    except BaseException:
        _remove_if_last(lock, path)
        os.close(lock)
        raise
    return lock


def _leave(lock: int, path: Path) -> None:
    """Let go of a lock, and remove its file if there are no others."""
    try:
        # As where there is no space for it, or the folder is gone, which is not made again.
        with suppress(OSError), _turn(path, _open):
            _remove_if_last(lock, path)
    finally:
        os.close(lock)


@contextmanager
def _turn(path: Path, opened: Callable[[Path], int]) -> Iterator[None]:
    """Wait for the turn to ask for the lock of a file, or to let go of it."""
    turn = path.with_name(f"{path.name}.turn")
    lock, _ = _locked(turn, lambda: opened(turn), fcntl.LOCK_EX)
    try:
        yield
    finally:
        _remove_if_last(lock, turn)
        os.close(lock)


def _open_in_folder(path: Path) -> int:
    """Open a file, and make the folder that it is to be in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return _open(path)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)


def _locked(path: Path, opened: Callable[[], int], how: int) -> tuple[int, bool]:
    """Return the descriptor of what is at a path, locked, and whether there are locks.

    Raises
    ------
    BlockingIOError
        If others have it, where it is not waited for.
    """
    while True:
        lock = opened()
        try:
            is_locked = _flock(lock, how)
            # Those who had it before may just have removed it: then it is no one's.
            if not is_locked or _is_at(lock, path):
                return lock, is_locked
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _remove_if_last(lock: int, path: Path) -> None:
    """Remove the file of a lock if it is empty and no one else has the lock."""
    with suppress(OSError):  # such as where others have it
        _flock(lock, fcntl.LOCK_EX | _AT_ONCE)
        status = os.fstat(lock)
        if _is_at(lock, path) and stat.S_ISREG(status.st_mode) and not status.st_size:
            path.unlink()


def _flock(lock: int, how: int) -> bool:
    """Lock what is open, and return True if there are locks."""
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
