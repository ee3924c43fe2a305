"""Zarr groups and arrays that are whole or not there, and never read with a chunk missing.

What is written is written beside its place and moved there when it is complete: as
``NAME.TOKEN.partial`` with a token of its own, or as ``NAME.partial``, by one run at a time, where
the next one goes on with it. Nothing is replaced but a node (a group or an array) of the same kind,
which is ``NAME.TOKEN.old`` until it is removed. While there are writers ``NAME.lock`` is locked: so
the next one knows what killed ones have left. Chunks are uncompressed, each with a CRC-32C, cut
along the first axis only; `daskkm.chunks` reads them. What `daskkm.metadata` says of them is looked
at first.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import re
import secrets
import shutil
import stat
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import LocalStore, StorePath

from daskkm import chunks, metadata
from daskkm.errors import on_worker

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from daskkm.errors import DaskkmError

_UNREADABLE = (OSError, ValueError, TypeError, KeyError)
# What `complete` says beside what it is told.
_OWN = {"format", "kind", "complete", "metadata"}
_TAKEN = {errno.ENOTEMPTY, errno.EEXIST}
# What the system leaves in any folder, and a run that is killed while Zarr, or it, writes a file.
_SYSTEMS = re.compile(
    r"\.DS_Store|\.nfs.*|.*\.[0-9a-f]{32}\.partial|zarr\.json\.[0-9a-f]{8}\.partial"
)
# What a run that was killed leaves beside a place.
_LEFT = re.compile(r"\.([0-9a-f]{8}\.(partial|old)|lock)$")
NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}  # on some network file systems


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
        msg = f"{path}: {what} no {kind.noun}{why}; {kind.make}"
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
    with _held(place, kind):
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
    with _held(place, kind, alone=True):
        partial = begun(place)
        check_free(partial, kind)
        for left in partial.rglob("*.partial"):
            if _SYSTEMS.fullmatch(left.name):
                left.unlink()
        yield partial
        put(partial, path, kind)


def clear(path: str | os.PathLike[str], kind: Kind) -> None:
    """Remove what runs that were killed left beside a place, if no one writes there now."""
    place = Path(os.path.realpath(path))
    if place.with_name(f"{place.name}.lock").exists():
        with suppress(kind.error), _held(place, kind, alone=True):
            pass


def begun(path: str | os.PathLike[str]) -> Path:
    """Return where `resuming` has a node that is to be put in a place."""
    place = Path(os.path.realpath(path))
    return place.with_name(f"{place.name}.partial")


def reopen(partial: Path, kind: Kind) -> tuple[zarr.Group, dict[str, Any]] | None:
    """Open a group that `resuming` has kept.

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
        document = _document(partial, "", kind)[1]
        metadata.check_node(document, "group")
    except (FileNotFoundError, NotADirectoryError, ValueError, kind.error):
        return None
    said = metadata.ours(document)
    if _other(said, kind) or _other_format(said, kind):
        return None
    return zarr.open_group(partial, mode="r+", zarr_format=3), said


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


def create_group(path: Path, kind: Kind) -> zarr.Group:
    """Create a group at a place that `replacing` gave, anew if one was left there."""
    said = {"daskkm": _of(kind, complete=False)}
    return zarr.create_group(path, zarr_format=3, overwrite=True, attributes=said)


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
        Rows of a chunk, which is whole along the other axes; fewer, if these were too many bytes.
        Every write must cover whole chunks.
    dimensions : tuple of str, optional

    Returns
    -------
    zarr.Array
    """
    row = math.prod(shape[1:]) * np.dtype(dtype).itemsize
    rows = max(1, min(rows, shape[0], metadata.CHUNK_BYTES // max(1, row)))
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
    DaskkmError
        The kind's, if that is too much.
    """
    place = chunks.folder(node) / node.path
    file = place / "zarr.json"
    below = node.members(max_depth=None) if isinstance(node, zarr.Group) else ()
    document = json.loads(file.read_bytes())
    document["attributes"] = {"daskkm": _of(kind, complete=True) | dict(said)}
    names = sorted(name for name, _ in below)  # they come in whatever order
    documents = {name: (place / name / "zarr.json").read_bytes() for name in names}
    data = metadata.sealed(document, documents)
    if len(data) > metadata.NODE_BYTES:
        msg = (
            f"{place}: what there is to say of the {kind.noun} takes {len(data)} bytes, more than "
            f"{metadata.NODE_BYTES}; make several"
        )
        raise kind.error(msg)
    partial = _beside(file, "partial")
    partial.write_bytes(data)
    partial.replace(file)


def note(node: zarr.Group, kind: Kind, said: Mapping[str, Any]) -> None:
    """Say how far a group that is being written has come, in one step, for `reopen`.

    Parameters are those of `complete`.
    """
    node.update_attributes({"daskkm": _of(kind, complete=False) | dict(said)})


def _of(kind: Kind, *, complete: bool) -> dict[str, Any]:
    return {"format": kind.format, "kind": kind.name, "complete": complete}


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
            node = zarr.Group(zarr.AsyncGroup.from_dict(where, dict(document)))
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


def _said_at(path: Path, kind: Kind) -> dict[str, Any]:
    """Return what a node says of itself, from one read. Zarr takes several to open it."""
    return metadata.ours(_document(path, "", kind)[1])


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
        if known and entry.suffix == ".lock":
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


@contextmanager
def _held(place: Path, kind: Kind, *, alone: bool = False) -> Iterator[None]:
    """Be one of those who write to a place, or the only one, which else is an error.

    The lock is the system's, so it ends with the process, however that does.
    """
    path = place.with_name(f"{place.name}.lock")
    lock = None
    with write_errors_named(place, kind):
        try:
            lock = _locked(place, path, kind, alone=alone)
        except BlockingIOError as error:
            msg = f"{place}: another run is writing this {kind.noun}; wait until it has ended"
            raise kind.error(msg) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
    try:
        yield
    finally:
        if lock is not None:
            _release(lock, path)


def _locked(place: Path, path: Path, kind: Kind, *, alone: bool) -> BinaryIO:
    """Return the lock of a place, held. Who is the first clears what others have left."""
    place.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with ExitStack() as stack:
            lock = stack.enter_context(path.open("a+b"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if alone:
                    raise
            else:
                if _is_at(lock, path):
                    _clear(place, kind)
            if not alone:
                fcntl.flock(lock, fcntl.LOCK_SH)
            # Those who had it before may just have removed it: then it is no one's.
            if _is_at(lock, path):
                stack.pop_all()
                return lock


def _release(lock: BinaryIO, path: Path) -> None:
    """Let go of a lock. The last one removes it, if it is not a file of someone else's."""
    with lock, suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(lock, path) and not os.fstat(lock.fileno()).st_size:
            path.unlink()


def _is_at(lock: BinaryIO, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    return False


def _clear(place: Path, kind: Kind) -> None:
    """Remove what runs that were killed left beside a place; bring back what they moved away."""
    ours = re.compile(rf"{re.escape(place.name)}\.[0-9a-f]{{8}}\.(partial|old)")
    for left in place.parent.iterdir():
        if not ours.fullmatch(left.name) or not left.is_dir() or _stray(_entries(left), kind):
            continue
        if left.suffix == ".old" and not place.exists():
            left.rename(place)
        else:
            shutil.rmtree(left, ignore_errors=True)


def _beside(path: Path, what: str) -> Path:
    """Return a name beside a place that no other run has, in whatever container or thread."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.{what}")


def _discard(partial: Path) -> None:
    """Remove what was not completed. After an interrupt zarr's threads may still write."""
    for _ in range(100):
        if not partial.exists():
            return
        shutil.rmtree(partial, ignore_errors=True)
