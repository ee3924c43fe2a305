"""Places for nodes: what is put in one is whole, and replaces nothing but another of its kind.

What is written is written beside its place and moved there when it is complete: as
``NAME.TOKEN.partial`` with a token of its own, or as ``NAME.partial``, by one run at a time, where
the next one goes on with it. What is replaced is ``NAME.TOKEN.old`` until it is removed. While
there are writers ``NAME.lock`` is locked: so the next one knows what killed ones have left.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from daskkm.storage import locks, nodes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from daskkm.storage.nodes import Kind

_UNREADABLE = (OSError, ValueError, TypeError, KeyError)
_TAKEN = {errno.ENOTEMPTY, errno.EEXIST}
# What the system leaves in any folder, and a run that is killed while Zarr, or it, writes a file.
_SYSTEMS = re.compile(
    r"\.DS_Store|\.nfs.*|.*\.[0-9a-f]{32}\.partial|zarr\.json\.[0-9a-f]{8}\.partial"
)
# What a run that was killed leaves beside a place.
_LEFT = re.compile(r"\.([0-9a-f]{8}\.(partial|old)|lock(\.turn)?)$")


@contextmanager
def held(
    place: Path,
    kind: Kind,
    *,
    alone: bool = False,
    clear: Callable[[Path, Kind], None] | None = None,
) -> Iterator[None]:
    """Be one of those who write to a place, or the only one.

    The first one removes what runs that were killed have left beside it, as `clear` has it.

    Raises
    ------
    DaskkmError
        The kind's: if there are others and may be none, or the folder cannot be written.
    """
    path = place.with_name(f"{place.name}.lock")
    msg = f"{place}: another run is writing this {kind.noun}; wait until it has ended"
    with ExitStack() as stack:
        with nodes.write_errors_named(place, kind):
            stack.enter_context(
                locks.shared(
                    path,
                    kind.error(msg),
                    lambda: (clear or _clear)(place, kind),
                    alone=alone,
                )
            )
        yield


@contextmanager
def replacing(path: str | os.PathLike[str], kind: Kind) -> Iterator[Path]:
    """Give a node a place to be written to, and put it in its own when that is done.

    One of its kind that is there is lost only then: nothing, when writing fails.

    Parameters
    ----------
    path : path-like
        Where it goes.
    kind : Kind

    Yields
    ------
    Path
        Beside it.

    Raises
    ------
    DaskkmError
        The kind's: if something else is there, or the folder cannot be written.
    """
    with beside(path, kind) as partial:
        yield partial
        put(partial, path, kind)


@contextmanager
def beside(path: str | os.PathLike[str], kind: Kind) -> Iterator[Path]:
    """Give a node a place to be written to, from where `put` takes it, or where it is removed.

    Parameters, what is yielded and raised are those of `replacing`.
    """
    place = check_free(path, kind)
    with held(place, kind):
        partial = _beside(place, "partial")
        try:
            yield partial
        finally:
            _discard(partial)


@contextmanager
def resuming(path: str | os.PathLike[str], kind: Kind) -> Iterator[Path]:
    """Give a node a place to be written to that is kept until it is complete, whatever happens.

    Parameters, what is yielded and raised are those of `replacing`, but for this: what is beside
    the place may be there already, as `begun` knows, and a second writer is refused.
    """
    place = check_free(path, kind)
    with held(place, kind, alone=True):
        partial = begun(place)
        _check_ours(partial, kind)
        for left in partial.rglob("*.partial"):
            if _SYSTEMS.fullmatch(left.name):
                left.unlink()
        yield partial
        put(partial, path, kind)


def clear(path: str | os.PathLike[str], kind: Kind) -> None:
    """Remove what runs that were killed left beside a place, if no one writes there now.

    Also what `resuming` has kept.
    """
    place = Path(os.path.realpath(path))
    names = f"{place.name}.lock", f"{place.name}.lock.turn"  # what runs of daskkm's hold
    if begun(place).exists() or any(place.with_name(name).exists() for name in names):
        with suppress(kind.error), held(place, kind, alone=True, clear=_clear_all):
            pass


def begun(path: str | os.PathLike[str]) -> Path:
    """Return where `resuming` has a node that is to be put in a place."""
    place = Path(os.path.realpath(path))
    return place.with_name(f"{place.name}.partial")


def put(partial: Path, path: str | os.PathLike[str], kind: Kind) -> None:
    """Put a complete node in its place. The one that was there goes only when that is done.

    Parameters
    ----------
    partial : Path
        As `beside` gave it.
    path : path-like
    kind : Kind

    Raises
    ------
    DaskkmError
        The kind's: if something else is there by now, or the folder cannot be written.
    """
    while True:
        place = check_free(path, kind)  # again: much may have happened since
        try:
            with nodes.write_errors_named(place, kind), set_aside(place, kind):
                partial.rename(place)
        except kind.error as error:
            # Another run has put its own there in between. The last one stays.
            if getattr(error.__cause__, "errno", None) not in _TAKEN:
                raise
        else:
            return


@contextmanager
def set_aside(place: Path, kind: Kind) -> Iterator[None]:
    """Move away what is at a place, if anything, and remove it, or else bring it back.

    It is removed when the body is done. When that fails it comes back, if the place is free.
    """
    old = _beside(place, "old")
    with suppress(FileNotFoundError):
        place.rename(old)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            _bring_back(old, place, kind)
        raise
    _remove(old)


def check_free(path: str | os.PathLike[str], kind: Kind) -> Path:
    """Find out whether a node of a kind may be put somewhere.

    Parameters
    ----------
    path : path-like
    kind : Kind

    Returns
    -------
    Path
        The place itself if a link leads there: what it holds is replaced, not the link.

    Raises
    ------
    DaskkmError
        The kind's: if anything but another of the kind would be replaced.
    """
    place = Path(path)
    if kind.placed:  # else it is in a store, where no link is followed
        with suppress(OSError, RuntimeError):  # of a loop, which is said below
            place = place.resolve()
    _check_ours(place, kind)
    return place


def _check_ours(path: Path, kind: Kind) -> None:
    """Raise the kind's error if what is at a path is not to be replaced."""
    try:
        found = _foreign(path, kind)
    except (OSError, RuntimeError) as error:
        advice = "choose another place" if kind.placed else "see that it can be written"
        msg = f"{path}: a {kind.noun} cannot be put there ({error}); {advice}"
        raise kind.error(msg) from error
    if found:
        advice = "choose another place" if kind.placed else "move it elsewhere"
        msg = f"{path}: this is not a {kind.noun} of daskkm's to be replaced ({found}); {advice}"
        raise kind.error(msg)


def _foreign(path: Path, kind: Kind) -> str | None:
    """Say what at a place is not to be replaced by a node of a kind, if anything."""
    # Path.is_mount fails where another run moves what is there.
    if os.path.ismount(path) or path == Path.cwd():
        return "it is a mount point or the folder you are in"
    if path.is_symlink():
        return "it is a link"
    # One question at a time of what is there: another run may move it between two of them.
    with suppress(FileNotFoundError):
        if not stat.S_ISDIR(path.stat().st_mode):
            return "it is a file"
    while entries := _entries(path):
        if stray := _stray(entries, kind):
            return f"it holds {stray}"
        try:
            return nodes.unlike(path, kind)
        except FileNotFoundError:
            if _is_debris(path, kind):
                return None
            if path / "zarr.json" not in entries:
                return "it is none of daskkm's"
            # It has just been moved: look again.
    return None


def is_empty(folder: Path) -> bool:
    """Tell whether a folder holds nothing of anyone's."""
    return not _entries(folder)


def _entries(folder: Path) -> list[Path]:
    """Return what a folder holds, in order; nothing if it is gone."""
    try:
        return sorted(entry for entry in folder.iterdir() if not _SYSTEMS.fullmatch(entry.name))
    except FileNotFoundError:
        return []


def _stray(entries: list[Path], kind: Kind) -> str | None:
    """Return the first that is not of a node of this kind, nor of a node in it, if there is one."""
    names = dict(kind.names)
    for entry in entries:
        if entry.name not in kind.members:
            return entry.name
        if entry.name == "c" or not entry.is_dir():  # chunks, of which there may be many
            continue
        if found := _stray_within(entry, names.get(entry.name)):
            return f"{entry.name}/{found}"
    return None


def _stray_within(folder: Path, names: str | None = None) -> str | None:
    """Return what is not of the node in a folder, if anything. The chunks are not looked at."""
    group = names is not None or _is_group(folder)
    for entry in _entries(folder):
        if entry.name == "zarr.json" or (entry.name == "c" and not group):
            continue
        known = group and re.fullmatch(names or ".*", _LEFT.sub("", entry.name))
        if known and entry.suffix in {".lock", ".turn"}:
            continue
        if not (known and (entry.is_dir() or not entry.exists())):
            return entry.name
        if found := _stray_within(entry):
            return f"{entry.name}/{found}"
    return None


def _is_group(folder: Path) -> bool:
    """Tell whether a folder says that it is a Zarr group: not if what it says is damaged."""
    try:
        return bool(json.loads((folder / "zarr.json").read_bytes())["node_type"] == "group")
    except _UNREADABLE:
        return False


def _clear(place: Path, kind: Kind) -> None:
    """Remove what runs that were killed left beside a place; bring back what they moved away."""
    ours = re.compile(rf"{re.escape(place.name)}\.[0-9a-f]{{8}}\.(partial|old)")
    for left in place.parent.iterdir():
        if not ours.fullmatch(left.name) or left.is_symlink() or not left.is_dir():
            continue
        if _stray(_entries(left), kind):
            continue
        if left.suffix == ".old":
            _bring_back(left, place, kind)
        else:
            _remove(left)


def _clear_all(place: Path, kind: Kind) -> None:
    """Remove what a run left that could go on with it, too."""
    _clear(place, kind)
    if not _foreign(begun(place), kind):
        shutil.rmtree(begun(place), ignore_errors=True)


def _bring_back(old: Path, place: Path, kind: Kind) -> None:
    """Move back what was moved away, or remove it if another whole node has come to its place."""
    if (place / "zarr.json").exists():
        _remove(old)
        return
    if _is_debris(place, kind):
        debris = place.rename(_beside(place, "partial"))
        shutil.rmtree(debris, ignore_errors=True)
    old.rename(place)


def _is_debris(folder: Path, kind: Kind) -> bool:
    """Tell whether a folder holds only what is left of writers into a node that was there.

    Such as a task that writes labels into a store that is replaced just then.
    """
    entries, names = _entries(folder), dict(kind.names)
    return (
        bool(entries)
        and all(entry.name in names and not entry.is_symlink() for entry in entries)
        and not _stray(entries, kind)
        and all(_LEFT.search(left.name) for entry in entries for left in _entries(entry))
    )


def _remove(folder: Path) -> None:
    """Remove what was moved away, or begun. What is there as .old is whole: it may come back."""
    with suppress(OSError):
        folder = folder.rename(folder.with_suffix(".partial"))
        shutil.rmtree(folder, ignore_errors=True)


def _beside(path: Path, what: str) -> Path:
    """Return a name beside a place that no other run has, in whatever container or thread."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.{what}")


def _discard(partial: Path) -> None:
    """Remove what was not completed. After an interrupt zarr's threads may still write."""
    for _ in range(100):
        if not partial.exists():
            return
        shutil.rmtree(partial, ignore_errors=True)
