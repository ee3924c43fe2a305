"""Zarr groups and arrays that are whole or not there, and never read with a chunk missing.

What is written is written beside its place, as ``NAME.PID.partial``, and moved there when it is
complete; nothing is replaced but a node (a group or an array) of the same kind. Chunks are
uncompressed, each with a CRC-32C, cut along the first axis only. Before a chunk is read its size
is checked, because zarr reads a missing one as zeros.
"""

from __future__ import annotations

import math
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec
from zarr.errors import NodeNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray
    from zarr.storage import LocalStore

    from daskkm.errors import DaskkmError

_UNREADABLE = (OSError, ValueError, TypeError, KeyError)


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
        What its folder may hold. One that holds anything else is never replaced.
    error : type of DaskkmError
        What is raised.
    make : str
        What to do where there is none.
    mend : str
        What to do when it is damaged.
    format : int
        The only one that is read.
    """

    name: str
    noun: str
    rows: str
    members: frozenset[str]
    error: type[DaskkmError]
    make: str
    mend: str
    format: int = 1


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
    if found := _difference(said, kind):
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
        msg = f"{_folder(group)}: the metadata of {name} cannot be read ({error}); {kind.mend}"
        raise kind.error(msg) from error
    if not isinstance(array, zarr.Array):
        msg = f"{_folder(group)}: the {kind.noun} has no array {name!r}; {kind.mend}"
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
        _check_chunks(array, first, last)
        return np.asarray(array[first:last])


def check(array: zarr.Array[Any], kind: Kind) -> None:
    """Find out whether all chunks of an array are there and of their size, without reading them.

    Parameters are those of `read`.

    Raises
    ------
    DaskkmError
        The kind's, if one is not.
    """
    with _read_errors_named(array, 0, array.shape[0], kind):
        _check_chunks(array, 0, array.shape[0])


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
    path = check_free(path, kind)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with write_errors_named(path, kind):
            _replace(path, partial, kind)
    finally:
        _discard(partial)


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
        msg = f"{path}: a {kind.noun} cannot be put there ({error}); choose another place"
        raise kind.error(msg) from error
    if found:
        msg = (
            f"{path}: this is not a {kind.noun} of daskkm's to be replaced ({found}); "
            "choose another place"
        )
        raise kind.error(msg)
    return path


@contextmanager
def write_errors_named(path: Path, kind: Kind) -> Iterator[None]:
    """Turn an OSError of the system into the kind's error, which says what could not be written."""
    try:
        yield
    except OSError as error:
        msg = (
            f"{path}: the {kind.noun} cannot be written ({error}); "
            "make room or choose another place"
        )
        raise kind.error(msg) from error


@contextmanager
def _read_errors_named(array: zarr.Array[Any], first: int, last: int, kind: Kind) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # zarr's errors are of many types, and none says where
        name = array.path or kind.name
        what = name if name == kind.rows else f"{name} of {kind.rows}"
        msg = (
            f"{_folder(array)}: {what} {first} to {last - 1} cannot be read ({error}); "
            f"restore the {kind.noun}, or remove it and {kind.mend}"
        )
        raise kind.error(msg) from error


def _check_chunks(array: zarr.Array[Any], first: int, last: int) -> None:
    """Raise if a chunk of these rows is missing or short."""
    rows = array.chunks[0]
    # All chunks are of one size, the last one padded; then comes a checksum of 4 bytes.
    whole = math.prod(array.chunks) * array.dtype.itemsize + 4
    for i in range(first // rows, -(-last // rows)):
        key = array.metadata.encode_chunk_key((i, *(0,) * (array.ndim - 1)))
        size = (_folder(array) / array.path / key).stat().st_size
        if size != whole:
            msg = f"chunk {key} has {size} bytes, not {whole}"
            raise ValueError(msg)


def _open(path: Path, kind: Kind) -> zarr.Group | zarr.Array[Any] | None:
    try:
        return zarr.open(path, mode="r", zarr_format=3)
    except (NodeNotFoundError, FileNotFoundError):
        return None
    except _UNREADABLE as error:
        msg = f"{path}: the metadata cannot be read ({error}); remove it and {kind.mend}"
        raise kind.error(msg) from error


def _attributes(node: zarr.Group | zarr.Array[Any]) -> dict[str, Any]:
    said = node.attrs.get("daskkm")
    return dict(said) if isinstance(said, dict) else {}


def _difference(said: Mapping[str, Any], kind: Kind) -> str | None:
    """Say what keeps a node with these attributes from being read as of a kind, if anything."""
    if not said:
        return "it is none of daskkm's"
    found = said.get("kind", "store")  # the first stores did not say
    if found != kind.name:
        return f"its kind is {found}, not {kind.name}"
    if said.get("format") != kind.format:
        return f"its format is {said.get('format')}, not {kind.format}"
    return None


def _foreign(path: Path, kind: Kind) -> str | None:
    """Say what at a place is not to be replaced by a node of a kind, if anything."""
    if path.is_mount() or path == Path.cwd():
        return "it is a mount point or the folder you are in"
    if not path.is_dir():
        return "it is a file" if path.exists() else None
    names = {entry.name for entry in path.iterdir() if not entry.name.startswith(".")}
    if foreign := sorted(names - kind.members):
        return f"it holds {foreign[0]}"
    if not names:
        return None
    node = _open(path, kind)
    return _difference({} if node is None else _attributes(node), kind)


def _replace(path: Path, partial: Path, kind: Kind) -> None:
    """Put a complete node in its place. The one that was there goes only when that is done."""
    check_free(path, kind)  # again: much may have happened since
    old = path.with_name(f"{path.name}.{os.getpid()}.old")
    try:
        if path.exists():
            path.rename(old)
        partial.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _discard(partial: Path) -> None:
    """Remove what was not completed. After an interrupt zarr's threads may still write."""
    for _ in range(100):
        if not partial.exists():
            return
        shutil.rmtree(partial, ignore_errors=True)


def _folder(node: zarr.Group | zarr.Array[Any]) -> Path:
    """Return the place of the group that was opened, or of an array that was opened itself."""
    return Path(cast("LocalStore", node.store).root)
