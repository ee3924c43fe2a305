"""Zarr groups and arrays that are whole or not there, and never read with a chunk missing.

What is written is written beside its place, as ``NAME.TOKEN.partial`` with a token of its own, and
moved there when it is complete; nothing is replaced but a node (a group or an array) of the same
kind, which is ``NAME.TOKEN.old`` until it is removed. Chunks are uncompressed, each with a CRC-32C,
cut along the first axis only; `daskkm.chunks` reads them.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zarr
from zarr.codecs import Crc32cCodec
from zarr.errors import NodeNotFoundError

from daskkm import chunks
from daskkm.errors import on_worker

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from daskkm.errors import DaskkmError

_UNREADABLE = (OSError, ValueError, TypeError, KeyError)
_TAKEN = {errno.ENOTEMPTY, errno.EEXIST}
# What the system leaves in any folder.
_SYSTEMS = re.compile(r"\.DS_Store|\.nfs.*")
# What a run that was killed leaves beside a place.
_LEFT = re.compile(r"\.[0-9a-f]+\.(partial|old)$")


@dataclass(frozen=True)
class Kind:
    """A kind of node, and what is said when one is not as it should be.

    Attributes
    ----------
    name : str
        In the node's attributes.
    noun : str
        In messages.
    rows : str
        What the first axis of its arrays counts.
    members : frozenset of str
        What its folder may hold: nodes. One that holds anything else is never replaced, nor is
        one where the folder of a node in it does.
    error : type of DaskkmError
        What is raised.
    make : str
        What to do where there is none.
    mend : str
        What to do when it is damaged.
    format : int
        The only one that is read.
    names : tuple of pairs of str
        Groups in it, each with the pattern of the names of what these may hold.
    placed : bool
        Whether its place is anyone's choice.
    """

    name: str
    noun: str
    rows: str
    members: frozenset[str]
    error: type[DaskkmError]
    make: str
    mend: str
    format: int = 1
    names: tuple[tuple[str, str], ...] = ()
    placed: bool = True


def open_node(path: Path, kind: Kind) -> tuple[Any, dict[str, Any]]:
    """Open a complete node of a kind.

    Parameters
    ----------
    path : Path
    kind : Kind

    Returns
    -------
    zarr.Group or zarr.Array
    dict of str to Any
        What `complete` was told.

    Raises
    ------
    DaskkmError
        The kind's: if there is none, or it is of another kind or format, or not complete.
    """
    node = _open(path, kind)
    if node is None:
        what = "what is there is" if path.exists() else "there is"
        msg = f"{path}: {what} no {kind.noun}; {kind.make}"
        raise kind.error(msg)
    said = _attributes(node)
    if found := _other(said, kind):
        msg = f"{path}: this is not a {kind.noun} ({found}); name a {kind.noun}, or {kind.make}"
        raise kind.error(msg)
    if found := _other_format(said, kind):
        msg = (
            f"{path}: this is not a {kind.noun} that this version of daskkm reads ({found}); "
            f"use the version that made it, or remove it and {kind.mend}"
        )
        raise kind.error(msg)
    if not said.get("complete"):
        msg = f"{path}: the {kind.noun} is not complete; {kind.mend}"
        raise kind.error(msg)
    return node, said


def member(group: zarr.Group, name: str, kind: Kind) -> zarr.Array[Any]:
    """Return an array of a group.

    Parameters
    ----------
    group : zarr.Group
    name : str
    kind : Kind
        Of the group.

    Returns
    -------
    zarr.Array

    Raises
    ------
    DaskkmError
        The kind's: if it is missing, or its metadata cannot be read.
    """
    try:
        array = group.get(name)
    except _UNREADABLE as error:
        msg = (
            f"{chunks.folder(group)}: the metadata of {name} cannot be read ({error}); {kind.mend}"
        )
        raise kind.error(msg) from error
    if not isinstance(array, zarr.Array):
        msg = f"{chunks.folder(group)}: the {kind.noun} has no array {name!r}; {kind.mend}"
        raise kind.error(msg)
    return array


def read(array: zarr.Array[Any], first: int, last: int, kind: Kind) -> NDArray[Any]:
    """Read rows first … last - 1 of an array.

    Parameters
    ----------
    array : zarr.Array of shape (n, ...)
    first, last : int
    kind : Kind
        Of the array, or of the group that it is in.

    Returns
    -------
    ndarray of shape (last - first, ...)

    Raises
    ------
    DaskkmError
        The kind's, naming the place, the array and the rows: if a chunk of them is missing,
        short or damaged.
    """
    with _read_errors_named(array, first, last, kind):
        return chunks.read(array, first, last)


def stream(array: zarr.Array[Any], first: int, last: int, kind: Kind) -> Iterator[NDArray[Any]]:
    """Read rows first … last - 1 chunk by chunk, in the memory of one.

    Parameters and errors are those of `read`; `first` is the first row of a chunk.

    Yields
    ------
    ndarray of shape (m, ...), read-only
        The rows of one chunk. The next one takes their place.
    """
    rows = array.chunks[0]
    for start in range(first, last, rows):
        end = min(start + rows, last)
        with _read_errors_named(array, start, end, kind):
            chunk = chunks.borrow(array, start, end)
        yield chunk


def check(array: zarr.Array[Any], kind: Kind) -> None:
    """Find out whether all chunks of an array are there and of their size, without reading them.

    Parameters are those of `read`.

    Raises
    ------
    DaskkmError
        The kind's, if one is not.
    """
    with _read_errors_named(array, 0, array.shape[0], kind):
        chunks.check(array, 0, array.shape[0])


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
    partial = _beside(check_free(path, kind), "partial")
    try:
        yield partial
    finally:
        _discard(partial)


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
            with write_errors_named(place, kind), set_aside(place):
                partial.rename(place)
        except kind.error as error:
            # Another run has put its own there in between. The last one stays.
            if getattr(error.__cause__, "errno", None) not in _TAKEN:
                raise
        else:
            return


@contextmanager
def set_aside(place: Path) -> Iterator[None]:
    """Move away what is at a place, if anything, and remove it, or else bring it back.

    It is removed when the body is done. When that fails it comes back, if the place is free.
    """
    old = _beside(place, "old")
    with suppress(FileNotFoundError):
        place.rename(old)
    try:
        yield
    except BaseException:
        if place.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            with suppress(OSError):
                old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def create_group(path: Path) -> zarr.Group:
    """Create a group at a place that `replacing` gave, anew if one was left there."""
    return zarr.create_group(path, zarr_format=3, overwrite=True)


def create_array(
    place: Path | zarr.Group,
    name: str | None,
    shape: tuple[int, ...],
    dtype: np.dtype[Any] | str,
    *,
    rows: int,
    dimensions: tuple[str, ...] | None = None,
) -> zarr.Array[Any]:
    """Create an array, to be written through the object that is returned or a pickle of it.

    Parameters
    ----------
    place : Path or zarr.Group
        The array's own place, as `replacing` gave it, or the group that it is to be in.
    name : str or None
        In the group.
    shape : tuple of int
    dtype : numpy.dtype or str
    rows : int
        Rows of a chunk, which is whole along the other axes. Every write must cover whole chunks.
    dimensions : tuple of str, optional

    Returns
    -------
    zarr.Array
    """
    return zarr.create_array(
        place if isinstance(place, Path) else place.store_path,
        name=name,
        shape=shape,
        dtype=dtype,
        chunks=(max(1, min(rows, shape[0])), *shape[1:]),
        filters=None,
        compressors=[Crc32cCodec()],
        dimension_names=dimensions,
        zarr_format=3,
        overwrite=True,
        # Else an all-zero chunk is left out, and cannot be told from one that was lost. This is
        # not stored: it goes with the object, and through pickle to other processes.
        config={"write_empty_chunks": True},
    )


def complete(node: zarr.Group | zarr.Array[Any], kind: Kind, said: Mapping[str, Any]) -> None:
    """Mark a node as complete: the last thing that is written.

    Parameters
    ----------
    node : zarr.Group or zarr.Array
    kind : Kind
    said : mapping of str to Any
        What `open_node` is to return of it, as JSON has it.
    """
    ours = {"format": kind.format, "kind": kind.name, "complete": True, **said}
    node.update_attributes({"daskkm": ours})


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
    try:
        path = Path(path).resolve()
        found = _foreign(path, kind)
    except (OSError, RuntimeError) as error:
        advice = "choose another place" if kind.placed else "see that it can be written"
        msg = f"{path}: a {kind.noun} cannot be put there ({error}); {advice}"
        raise kind.error(msg) from error
    if found:
        advice = "choose another place" if kind.placed else "move it elsewhere"
        msg = f"{path}: this is not a {kind.noun} of daskkm's to be replaced ({found}); {advice}"
        raise kind.error(msg)
    return path


@contextmanager
def write_errors_named(path: Path, kind: Kind) -> Iterator[None]:
    """Turn an OSError of the system into the kind's error, which says what could not be written."""
    try:
        yield
    except OSError as error:
        advice = "choose another place" if kind.placed else "see that the folder can be written"
        what = f"the {kind.noun} cannot be written{on_worker()} ({error})"
        msg = f"{path}: {what}; make room or {advice}"
        raise kind.error(msg) from error


@contextmanager
def _read_errors_named(array: zarr.Array[Any], first: int, last: int, kind: Kind) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of many types, and none says where
        where = on_worker()
        if where and not (folder := chunks.folder(array)).exists():
            msg = f"{folder}: it is not there{where}; every worker needs it, at the same path"
            raise kind.error(msg) from error
        name = array.path or kind.name
        what = name if name == kind.rows else f"{name} of {kind.rows}"
        msg = (
            f"{chunks.folder(array)}: {what} {first} to {last - 1} cannot be read{where} ({error}); "
            f"restore the {kind.noun}, or remove it and {kind.mend}"
        )
        raise kind.error(msg) from error


def _open(path: Path, kind: Kind) -> zarr.Group | zarr.Array[Any] | None:
    try:
        return zarr.open(path, mode="r", zarr_format=3)
    except (NodeNotFoundError, FileNotFoundError):
        return None
    except _UNREADABLE as error:
        msg = f"{path}: the metadata cannot be read ({error}); remove it and {kind.mend}"
        raise kind.error(msg) from error


def _said_at(path: Path, kind: Kind) -> dict[str, Any]:
    """Return what a node says of itself, from one read. Zarr takes several to open it."""
    try:
        attributes = json.loads((path / "zarr.json").read_bytes()).get("attributes", {})
        return dict(attributes.get("daskkm", {}))
    except FileNotFoundError:
        raise
    except (*_UNREADABLE, AttributeError) as error:
        msg = f"{path}: the metadata cannot be read ({error}); remove it and {kind.mend}"
        raise kind.error(msg) from error


def _attributes(node: zarr.Group | zarr.Array[Any]) -> dict[str, Any]:
    said = node.attrs.get("daskkm")
    return dict(said) if isinstance(said, dict) else {}


def _other(said: Mapping[str, Any], kind: Kind) -> str | None:
    """Say what a node with these attributes is, if it is of no such kind."""
    if not said:
        return "it is none of daskkm's"
    found = said.get("kind", "store")  # the first stores did not say
    return None if found == kind.name else f"its kind is {found}, not {kind.name}"


def _other_format(said: Mapping[str, Any], kind: Kind) -> str | None:
    """Say what format a node of this kind is of, if it is not the one that is read."""
    found = said.get("format")
    return None if found == kind.format else f"its format is {found}, not {kind.format}"


def _foreign(path: Path, kind: Kind) -> str | None:
    """Say what at a place is not to be replaced by a node of a kind, if anything."""
    # Path.is_mount fails where another run moves what is there.
    if os.path.ismount(path) or path == Path.cwd():
        return "it is a mount point or the folder you are in"
    # One question at a time of what is there: another run may move it between two of them.
    with suppress(FileNotFoundError):
        if not stat.S_ISDIR(path.stat().st_mode):
            return "it is a file"
    while entries := _entries(path):
        if stray := _stray(entries, kind):
            return f"it holds {stray}"
        try:
            said = _said_at(path, kind)
        except FileNotFoundError:
            if (path / "zarr.json").is_symlink():
                return "it holds a zarr.json that leads nowhere"
            if path / "zarr.json" in entries:
                continue  # it has just been moved: look again
            said = {}
        return _other(said, kind) or _other_format(said, kind)
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


def _beside(path: Path, what: str) -> Path:
    """Return a name beside a place that no other run has, in whatever container or thread."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.{what}")


def _discard(partial: Path) -> None:
    """Remove what was not completed. After an interrupt zarr's threads may still write."""
    for _ in range(100):
        if not partial.exists():
            return
        shutil.rmtree(partial, ignore_errors=True)
