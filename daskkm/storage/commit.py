"""Commit Zarr nodes: write each node beside its location, and rename the complete node.

A run locks ``NAME.lock`` and writes ``NAME.partial``. Finally the run renames an older node to
``.NAME.old``, and the new node to ``NAME``. After a kill, the next run restores or removes
``.NAME.old``.
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

# Files of the operating system, and temporary files of a killed run.
_IGNORED = re.compile(r"\.DS_Store|\.nfs.*|.*\.[0-9a-f]{32}\.partial|\.zarr\.json\.partial")


@contextmanager
def replace_node(path: str | os.PathLike[str], kind: Kind) -> Iterator[Path]:
    """Yield a folder to write a node to, and move the folder to `path` at exit.

    An older node of the kind is replaced. If the context fails, the older node stays.
    """
    with open_partial(path, kind) as partial:
        yield partial
        put_node(partial, path, kind)


@contextmanager
def open_partial(
    path: str | os.PathLike[str], kind: Kind, *, resume: bool = False
) -> Iterator[Path]:
    """Lock a location, and yield the folder of its partial node, for `put_node`.

    Without `resume` an older partial node is removed at entry, and the new one at exit. Raise the
    error of the kind if `path` holds other content, or another run writes to `path`.
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
    """Acquire the write lock of a location, and restore a node that a killed run set aside."""
    msg = f"{location}: another run is writing this {kind.noun}. Wait until the run ends"
    with ExitStack() as stack:
        with zarr_nodes.translate_write_errors(location, kind):
            if not kind.inner:  # a removed store must not appear again
                location.parent.mkdir(parents=True, exist_ok=True)
            path = location.with_name(f"{location.name}.lock")
            stack.enter_context(locks.lock_file(path, kind.error(msg)))
            _recover(location, kind)
        yield


def put_node(partial: Path, path: str | os.PathLike[str], kind: Kind) -> None:
    """Move a complete node to its location, and remove the older node."""
    location = check_free(path, kind)  # the content may have changed since `open_partial`
    with zarr_nodes.translate_write_errors(location, kind), set_aside(location, kind):
        partial.rename(location)


@contextmanager
def set_aside(location: Path, kind: Kind) -> Iterator[None]:
    """Rename a node; remove the node at exit, or restore it if the context fails."""
    old = _get_old_path(location)
    with suppress(FileNotFoundError):
        location.rename(old)
    try:
        yield
    except BaseException:
        with suppress(OSError, kind.error):
            _recover(location, kind)
        raise
    with suppress(OSError):  # the next run removes leftovers
        remove_node(old)


def _recover(location: Path, kind: Kind) -> None:
    """Restore a node that was set aside, or remove it if its location holds another node."""
    old = _get_old_path(location)
    if not old.exists():
        return
    check_replaceable(old, kind)
    if (location / metadata.FILE).exists():
        remove_node(old)
    elif not location.exists() or is_empty(location):
        old.rename(location)


def remove_leftovers(path: str | os.PathLike[str], kind: Kind) -> None:
    """Remove leftovers of killed runs beside a location, unless another run holds the lock."""
    location = Path(os.path.realpath(path))
    partial = partial_path(location)
    leftovers = partial, _get_old_path(location), location.with_name(f"{location.name}.lock")
    if any(leftover.exists() for leftover in leftovers):
        with suppress(kind.error), lock_location(location, kind):
            check_replaceable(partial, kind)
            remove_node(partial)


def partial_path(path: str | os.PathLike[str]) -> Path:
    """Return the folder of the partial node for a path."""
    location = Path(os.path.realpath(path))
    return location.with_name(f"{location.name}.partial")


def _get_old_path(location: Path) -> Path:
    return location.with_name(f".{location.name}.old")


def check_free(path: str | os.PathLike[str], kind: Kind) -> Path:
    """Resolve links of a path and return the location, if only a node of the kind is there.

    Raise the error of the kind if the location holds other content.
    """
    location = Path(path)
    with suppress(OSError, RuntimeError):  # for a loop of links, the check below raises
        location = location if kind.inner else location.resolve()
    check_replaceable(location, kind)
    return location


def check_replaceable(path: Path, kind: Kind) -> None:
    """Raise the error of the kind unless a path is missing, an empty folder, or such a node."""
    hint = "Move the folder" if kind.inner else "Choose another location"
    with translate_errors(kind.error, path, f"a {kind.noun} cannot be written there", hint):
        obstacle = _find_obstacle(path, kind)
    if obstacle:
        msg = f"{path}: not a {kind.noun} that daskkm may replace ({obstacle}). {hint}"
        raise kind.error(msg)


def _find_obstacle(path: Path, kind: Kind) -> str | None:
    if os.path.ismount(path) or path == Path.cwd():
        return "a mount point or the current folder"
    if path.is_symlink():
        return "a link"
    if not path.is_dir():
        return "a file" if path.exists() else None
    names = _list_names(path)
    if strays := sorted(names - kind.members):
        return f"the folder holds {strays[0]}"
    return zarr_nodes.describe_mismatch(path, kind) if names else None


def is_empty(folder: Path) -> bool:
    """Return True if a folder is empty, ignoring system files and temporary files."""
    return not _list_names(folder)


def _list_names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir() if not _IGNORED.fullmatch(entry.name)}


def remove_node(folder: Path) -> None:
    """Remove a node, its root metadata last, so that a later run recognizes leftovers."""
    if not folder.exists():
        return
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != metadata.FILE:
            entry.unlink()
    shutil.rmtree(folder)


def _discard_partial(partial: Path) -> None:
    """Remove a partial node."""
    for _ in range(100):  # threads of Zarr may still write after an interrupt
        with suppress(OSError):
            remove_node(partial)
            return


def _remove_temporary_files(partial: Path) -> None:
    """Remove temporary files of chunks from a killed run."""
    for path in partial.rglob("*.partial"):
        if _IGNORED.fullmatch(path.name):
            path.unlink()
