"""Commit nodes: write them beside their location, and move them there when they are complete.

Beside a location NAME lie ``NAME.lock`` while a run writes, ``NAME.partial``, which that run
writes, and ``.NAME.old``, a node that is being replaced. After a killed run the next one
restores the old node, or removes it.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from daskkm.errors import translate_errors
from daskkm.storage import locks, metadata, zarr_nodes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from daskkm.storage.zarr_nodes import Kind

# Files of the system, and of Zarr or daskkm killed while one of them wrote a file.
_IGNORED = re.compile(r"\.DS_Store|\.nfs.*|.*\.[0-9a-f]{32}\.partial|\.zarr\.json\.partial")


@contextmanager
def replace_node(path: str | os.PathLike[str], kind: Kind) -> Iterator[Path]:
    """Yield a folder to write a node to, and put it at `path` when the context ends.

    A node of the kind that is there is replaced. If the context fails, nothing changes.
    """
    with open_partial(path, kind) as partial:
        yield partial
        put_node(partial, path, kind)


@contextmanager
def open_partial(
    path: str | os.PathLike[str], kind: Kind, *, resume: bool = False
) -> Iterator[Path]:
    """Lock a location, and yield the folder in which a node for it is written, for `put` to move.

    Without `resume` that folder is missing at first, and removed at the end. Raise the kind's error
    if `path` holds something else or another run writes there.
    """
    location = check_free(path, kind)
    with lock_location(location, kind):
        partial = partial_path(location)
        check_replaceable(partial, kind)
        with zarr_nodes.translate_write_errors(location, kind):
            if resume:
                _remove_temporary_files(partial)
            else:
                remove_node(partial)
        try:
            yield partial
        finally:
            if not resume:
                _discard_partial(partial)


@contextmanager
def lock_location(location: Path, kind: Kind) -> Iterator[None]:
    """Hold the write lock of a location, with the node that a killed run moved away restored."""
    msg = f"{location}: another run is writing this {kind.noun}. Wait until it ends"
    with ExitStack() as stack:
        with zarr_nodes.translate_write_errors(location, kind):
            if not kind.inner:  # else a store that is gone would be made again
                location.parent.mkdir(parents=True, exist_ok=True)
            path = location.with_name(f"{location.name}.lock")
            stack.enter_context(locks.lock_file(path, kind.error(msg)))
            _recover(location, kind)
        yield


def put_node(partial: Path, path: str | os.PathLike[str], kind: Kind) -> None:
    """Move a complete node to its location; the node that was there is removed after that."""
    location = check_free(path, kind)  # again: much may have happened since
    with zarr_nodes.translate_write_errors(location, kind), set_aside(location, kind):
        partial.rename(location)


@contextmanager
def set_aside(location: Path, kind: Kind) -> Iterator[None]:
    """Move a node away; remove it when the context ends, or move it back if the context fails."""
    old = _get_old_path(location)
    with suppress(FileNotFoundError):
        location.rename(old)
    try:
        yield
    except BaseException:
        with suppress(OSError, kind.error):
            _recover(location, kind)
        raise
    with suppress(OSError):  # else the next run does it
        remove_node(old)


def _recover(location: Path, kind: Kind) -> None:
    """Move back a node that was set aside, or remove it if another one is at its location."""
    old = _get_old_path(location)
    if not old.exists():
        return
    check_replaceable(old, kind)
    if (location / metadata.FILE).exists():
        remove_node(old)
    elif not location.exists() or is_empty(location):
        old.rename(location)


def remove_leftovers(path: str | os.PathLike[str], kind: Kind) -> None:
    """Remove the leftovers of killed runs beside a location, unless a run writes there now."""
    location = Path(os.path.realpath(path))
    partial = partial_path(location)
    leftovers = partial, _get_old_path(location), location.with_name(f"{location.name}.lock")
    if any(leftover.exists() for leftover in leftovers):
        with suppress(kind.error), lock_location(location, kind):
            check_replaceable(partial, kind)
            remove_node(partial)


def partial_path(path: str | os.PathLike[str]) -> Path:
    """Return the folder in which a node for a location is written."""
    location = Path(os.path.realpath(path))
    return location.with_name(f"{location.name}.partial")


def _get_old_path(location: Path) -> Path:
    return location.with_name(f".{location.name}.old")


def check_free(path: str | os.PathLike[str], kind: Kind) -> Path:
    """Return the location of a path, through links; raise the kind's error unless it is free.

    A location is free if nothing but a node of the kind would be replaced there.
    """
    location = Path(path)
    with suppress(OSError, RuntimeError):  # of a loop of links, which the check finds
        location = location if kind.inner else location.resolve()
    check_replaceable(location, kind)
    return location


def check_replaceable(path: Path, kind: Kind) -> None:
    """Raise the kind's error unless a path is free, an empty folder, or a node of the kind."""
    hint = "Move it elsewhere" if kind.inner else "Choose another location"
    with translate_errors(kind.error, path, f"a {kind.noun} cannot be put there", hint):
        obstacle = _find_obstacle(path, kind)
    if obstacle:
        msg = f"{path}: not a {kind.noun} of daskkm's to be replaced ({obstacle}). {hint}"
        raise kind.error(msg)


def _find_obstacle(path: Path, kind: Kind) -> str | None:
    if os.path.ismount(path) or path == Path.cwd():
        return "it is a mount point or the current folder"
    if path.is_symlink():
        return "it is a link"
    if not path.is_dir():
        return "it is a file" if path.exists() else None
    names = _list_names(path)
    if strays := sorted(names - kind.members):
        return f"it holds {strays[0]}"
    return zarr_nodes.describe_mismatch(path, kind) if names else None


def is_empty(folder: Path) -> bool:
    """Return True if a folder holds nothing, or only files of the system."""
    return not _list_names(folder)


def _list_names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir() if not _IGNORED.fullmatch(entry.name)}


def remove_node(folder: Path) -> None:
    """Remove a node, its root metadata last: by it a later run recognizes leftovers."""
    if not folder.exists():
        return
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != metadata.FILE:
            entry.unlink()
    shutil.rmtree(folder)


def _discard_partial(partial: Path) -> None:
    """Remove a node that was not completed. Threads of Zarr may still write after an interrupt."""
    for _ in range(100):
        with suppress(OSError):
            remove_node(partial)
            return


def _remove_temporary_files(partial: Path) -> None:
    """Remove files that Zarr left when it was killed while it wrote a chunk."""
    for path in partial.rglob("*.partial"):
        if _IGNORED.fullmatch(path.name):
            path.unlink()
