"""Zarr groups and arrays of daskkm's: marked whole or not, and never read with a chunk missing.

Chunks are uncompressed, each with a CRC-32C, cut along the first axis only;
`daskkm.storage.chunks` reads
them. What `daskkm.storage.metadata` says of them is looked at first. `daskkm.storage.commit` is
where they go.
"""

from __future__ import annotations

import json
import math
import secrets
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import LocalStore, StorePath

from daskkm.errors import on_worker
from daskkm.storage import chunks, metadata

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from daskkm.errors import DaskkmError

# What `complete` says beside what it is told.
_OWN = {"format", "kind", "complete", "metadata"}


class TooMuchError(Exception):
    """More than a node may hold: what, and what to do. `write_errors_named` says where."""


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
    corrupt : type of DaskkmError, optional
        What is raised for a chunk that is missing or not what was written, if not `error`.
    """

    name: str
    noun: str
    rows: str
    members: frozenset[str]
    error: type[DaskkmError]
    make: str
    mend: str
    format: int = 2
    names: tuple[tuple[str, str], ...] = ()
    placed: bool = True
    corrupt: type[DaskkmError] | None = None


def open_node(path: Path, kind: Kind, root: Path | None = None) -> tuple[Any, dict[str, Any]]:
    """Open a complete node of a kind.

    Parameters
    ----------
    path : Path
    kind : Kind
    root : Path, optional
        The node that it is in, from where no link leads to it.

    Returns
    -------
    zarr.Group or zarr.Array
    dict of str to Any
        What `complete` was told.

    Raises
    ------
    DaskkmError
        The kind's: if there is none, or it is of another kind or format, or not complete, or its
        metadata is not what was written.
    """
    try:
        data, document = _document(path, "", kind, root)
    except (FileNotFoundError, NotADirectoryError):
        what = "what is there is" if path.exists() else "there is"
        old = [name for name in (".zgroup", ".zarray") if (path / name).exists()]
        why = f" (it is of Zarr format 2, as its {old[0]} says, and not 3)" if old else ""
        near = "" if path.exists() else similar_names(path)
        msg = f"{path}: {what} no {kind.noun}{why}{near}; {kind.make}"
        raise kind.error(msg) from None
    said = metadata.ours(document)
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
    node = _checked(path, "", data, document, said, kind)
    return node, {name: value for name, value in said.items() if name not in _OWN}


def similar_names(path: Path) -> str:
    """Return " (did you mean NAME?)" if there are Zarr groups of similar names, else ""."""
    with suppress(OSError):
        names = [entry.parent.name for entry in path.parent.glob("*/zarr.json")]
        near = get_close_matches(path.name, names)
        if near:
            return f" (did you mean {' or '.join(str(path.with_name(name)) for name in near)}?)"
    return ""


def member(group: zarr.Group, name: str, kind: Kind) -> zarr.Array[Any]:
    """Return an array of a group.

    Parameters
    ----------
    group : zarr.Group
        As `open_node` returned it.
    name : str
    kind : Kind
        Of the group.

    Returns
    -------
    zarr.Array

    Raises
    ------
    DaskkmError
        The kind's: if it is missing, or its metadata is not what was written.
    """
    root = chunks.folder(group)
    if {"", ".", ".."} & set(name.split("/")):
        msg = f"{root}: {name!r} is no name of an array in a {kind.noun}; {kind.mend}"
        raise kind.error(msg)
    try:
        data, document = _document(root, name, kind)
    except (FileNotFoundError, NotADirectoryError):
        msg = f"{root}: the {kind.noun} has no array {name!r}; {kind.mend}"
        raise kind.error(msg) from None
    said = metadata.ours({"attributes": group.attrs.asdict()})
    array: zarr.Array[Any] = _checked(root, name, data, document, said, kind)
    return array


def unlike(path: Path, kind: Kind) -> str | None:
    """Return what a node is, if it is not of a kind and its format, from one read.

    Metadata that is no JSON, as where it was cut short, says nothing: then the result is None.

    Raises
    ------
    FileNotFoundError
        If there is none.
    DaskkmError
        The kind's, if its metadata cannot be read.
    """
    try:
        document = _document(path, "", kind)[1]
    except kind.error as error:
        if isinstance(error.__cause__, json.JSONDecodeError | UnicodeDecodeError):
            return None
        raise
    return _unlike(metadata.ours(document), kind)


def check_group(root: Path, name: str, kind: Kind) -> None:
    """Find out whether a group in a node, if there is one, says that it is one.

    Parameters
    ----------
    root : Path
    name : str
        One of those in the kind's `names`.
    kind : Kind
        Of the node.

    Raises
    ------
    DaskkmError
        The kind's, if it does not.
    """
    if not (root / name).exists():
        return
    try:
        metadata.check_node(_document(root, name, kind)[1], "group")
    except (ValueError, FileNotFoundError, NotADirectoryError) as error:
        raise _of_metadata(root, name, f"is not that of a group ({error})", kind) from error


def refuse_links(root: Path, name: str, kind: Kind) -> None:
    """Raise the kind's error if what is called so in a node, or the way there, is a link."""
    try:
        chunks.refuse_links(root, name)
    except ValueError as error:
        msg = f"{root}: the {kind.noun} cannot be put there ({error}); remove the link"
        raise kind.error(msg) from error


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
        The kind's, naming the place, the array, the chunk and its rows: if one of them is missing,
        short or damaged, or cannot be read.
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


def reopen(partial: Path, kind: Kind) -> tuple[zarr.Group, dict[str, Any]] | None:
    """Open a group that `places.resuming` has kept.

    Parameters
    ----------
    partial : Path
    kind : Kind

    Returns
    -------
    zarr.Group
    dict of str to Any
        What `note`, or `complete`, was told last.

    None if there is none of use.
    """
    try:
        data, document = _document(partial, "", kind)
        said = metadata.ours(document)
        if _unlike(said, kind):
            return None
        _checked(partial, "", data, document, said, kind)
    except (FileNotFoundError, NotADirectoryError, kind.error):
        return None
    return zarr.open_group(partial, mode="r+", zarr_format=3, use_consolidated=False), said


def create_group(path: Path, kind: Kind) -> zarr.Group:
    """Create a group at a place that `daskkm.storage.commit` gave, anew if one was left there."""
    said = {"daskkm": _of(kind, complete=False)}
    return zarr.create_group(path, zarr_format=3, overwrite=True, attributes=said)


def create_array(
    place: Path | zarr.Group,
    name: str | None,
    shape: tuple[int, ...],
    dtype: np.dtype[Any] | str,
    kind: Kind,
    *,
    rows: int,
    dimensions: tuple[str, ...] | None = None,
) -> zarr.Array[Any]:
    """Create an array, to be written through the object that is returned or a pickle of it.

    Parameters
    ----------
    place : Path or zarr.Group
        The array's own place, as `daskkm.storage.commit` gave it, or the group that it is to be in.
    name : str or None
        In the group.
    shape : tuple of int
    dtype : numpy.dtype or str
    kind : Kind
        Of the array, or of the group.
    rows : int
        Rows of a chunk, which is whole along the other axes; fewer, if these were too many bytes.
        Every write must cover whole chunks.
    dimensions : tuple of str, optional

    Returns
    -------
    zarr.Array

    Raises
    ------
    TooMuchError
        If it would be in more chunks than are read.
    """
    row = math.prod(shape[1:]) * np.dtype(dtype).itemsize
    rows = max(1, min(rows, shape[0], metadata.CHUNK_BYTES // max(1, row)))
    if shape[0] > rows * metadata.MOST_CHUNKS:
        msg = (
            f"{shape[0]} {kind.rows} are too many for one {kind.noun}, in more than "
            f"{metadata.MOST_CHUNKS} chunks of {rows}; spread them over several"
        )
        raise TooMuchError(msg)
    return zarr.create_array(
        place if isinstance(place, Path) else place.store_path,
        name=name,
        shape=shape,
        dtype=dtype,
        chunks=(rows, *shape[1:]),
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
    """Mark a node as complete, and all metadata as final: the last thing that is written.

    Parameters
    ----------
    node : zarr.Group or zarr.Array
        What was read of it before does not see this.
    kind : Kind
    said : mapping of str to Any
        What `open_node` is to return of it, as JSON has it.

    Raises
    ------
    TooMuchError
        If that takes more than is read.
    """
    _seal(node, kind, said, complete=True)


def note(node: zarr.Group, kind: Kind, said: Mapping[str, Any]) -> None:
    """Say how far a group that is being written has come, in one step, for `reopen`.

    Parameters and errors are those of `complete`.
    """
    _seal(node, kind, said, complete=False)


def _seal(
    node: zarr.Group | zarr.Array[Any], kind: Kind, said: Mapping[str, Any], *, complete: bool
) -> None:
    place = chunks.folder(node) / node.path
    file = place / "zarr.json"
    below = node.members(max_depth=None) if isinstance(node, zarr.Group) else ()
    document = json.loads(file.read_bytes())
    document["attributes"] = {"daskkm": _of(kind, complete=complete) | dict(said)}
    names = sorted(name for name, _ in below)  # they come in whatever order
    documents = {name: (place / name / "zarr.json").read_bytes() for name in names}
    document.pop(metadata.CONSOLIDATED, None)
    if complete and isinstance(node, zarr.Group):
        document = metadata.consolidated(document, documents)
    data = metadata.sealed(document, documents)
    check_metadata_bytes(len(data), kind)
    partial = file.with_name(f"{file.name}.{secrets.token_hex(4)}.partial")
    partial.write_bytes(data)
    partial.replace(file)


def check_metadata_bytes(n: int, kind: Kind) -> None:
    """Raise TooMuchError if so many bytes are more than the metadata of a node may have."""
    if n > metadata.NODE_BYTES:
        msg = (
            f"what there is to say of the {kind.noun} takes {n} bytes, more than "
            f"{metadata.NODE_BYTES}; make several"
        )
        raise TooMuchError(msg)


def _of(kind: Kind, *, complete: bool) -> dict[str, Any]:
    return {"format": kind.format, "kind": kind.name, "complete": complete}


@contextmanager
def write_errors_named(path: Path, kind: Kind) -> Iterator[None]:
    """Turn an OSError of the system into the kind's error, which says what could not be written.

    TooMuchError too.
    """
    try:
        yield
    except TooMuchError as error:
        msg = f"{path}: {error}"
        raise kind.error(msg) from error
    except OSError as error:
        advice = "choose another place" if kind.placed else "see that the folder can be written"
        what = f"the {kind.noun} cannot be written{on_worker()} ({error})"
        msg = f"{path}: {what}; make room or {advice}"
        raise kind.error(msg) from error


@contextmanager
def _read_errors_named(array: zarr.Array[Any], first: int, last: int, kind: Kind) -> Iterator[None]:
    place = chunks.folder(array)
    name = array.path or kind.name
    what = name if name == kind.rows else f"{name} of {kind.rows}"
    try:
        yield
    except chunks.ChunkError as error:
        where = on_worker()
        if not place.exists():
            msg = f"{place}: it is not there{where}; every worker needs it, at the same path"
            raise kind.error(msg) from error
        i, why = error.args
        rows = array.chunks[0]
        msg = (
            f"{place}: {what} {i * rows} to {min((i + 1) * rows, array.shape[0]) - 1} cannot be "
            f"read{where} from chunk {chunks.key(array, i)} ({why}); restore the {kind.noun}, or "
            f"remove it and {kind.mend}"
        )
        raise (kind.corrupt or kind.error)(msg) from error
    except Exception as error:  # of many types, and none says where
        msg = (
            f"{place}: {what} {first} to {last - 1} cannot be read{on_worker()} ({error}); see "
            "that they can, and try again"
        )
        raise kind.error(msg) from error


def _document(
    place: Path, name: str, kind: Kind, root: Path | None = None
) -> tuple[bytes, dict[str, Any]]:
    """Return the metadata of a node, or of one by its name in it, as bytes and as JSON.

    Raises FileNotFoundError or NotADirectoryError if there is none, else the kind's error.
    """
    most = metadata.ARRAY_BYTES if name else metadata.NODE_BYTES
    root = root or place
    try:
        file, size = chunks.find(root, (place / name / "zarr.json").relative_to(root).as_posix())
        if size > most:
            msg = f"it has {size} bytes, more than {most}"
            raise ValueError(msg)  # noqa: TRY301
        data = file.read_bytes()
        return data, metadata.parse(data)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except ValueError as error:
        raise _of_metadata(place, name, f"cannot be read ({error})", kind) from error
    except OSError as error:
        msg = f"{place}: the metadata cannot be read ({error}); see that it can, and try again"
        raise kind.error(msg) from error


def _checked(
    place: Path,
    name: str,
    data: bytes,
    document: dict[str, Any],
    said: Mapping[str, Any],
    kind: Kind,
) -> Any:
    """Return the node of which this is the metadata, or the array in it of that name."""
    node_type = "array" if name or "c" in kind.members else "group"
    where = StorePath(LocalStore(place, read_only=True), name)
    try:
        metadata.check_node(document, node_type)
        if node_type == "array":
            node: Any = zarr.Array.from_dict(where, document)
        else:
            # Each array's own document counts: labels come after the group was consolidated.
            own = {name: document[name] for name in document if name != metadata.CONSOLIDATED}
            node = zarr.Group(zarr.AsyncGroup.from_dict(where, own))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        what = f"is not that of a {kind.noun} ({error})"
        raise _of_metadata(place, name, what, kind) from error
    if not metadata.is_sealed(data, said, name or metadata.SELF):
        what = "is not what was written (its checksum differs)"
        raise _of_metadata(place, name, what, kind)
    return node


def _of_metadata(place: Path, name: str, what: str, kind: Kind) -> DaskkmError:
    of = f" of {name}" if name else ""
    advice = f"restore the {kind.noun}, or remove it and {kind.mend}"
    return kind.error(f"{place}: the metadata{of} {what}; {advice}")


def _unlike(said: Mapping[str, Any], kind: Kind) -> str | None:
    return _other(said, kind) or _other_format(said, kind)


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
