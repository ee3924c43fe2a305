"""Read and write Zarr groups and arrays of daskkm: complete and intact, or an error.

The root ``zarr.json`` of a node holds attributes, consolidated metadata of its arrays, and a digest
of the file. A writer writes the root last, and a reader reads only the root and chunks. Chunks are
uncompressed, with a CRC-32C, and cut along the first axis only (see `daskkm.storage.chunks`).
"""

from __future__ import annotations

import json
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import LocalStore, StorePath

from daskkm.errors import on_worker, translate_errors
from daskkm.storage import chunks, metadata

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from daskkm.errors import DaskkmError

FORMAT = 3  # older formats are refused
_OWN_ATTRIBUTES = {"format", "kind", "complete", "sha256"}


@dataclass(frozen=True)
class Kind:
    """Kind of a node, with the words of messages."""

    name: str  # in the attributes of the node
    noun: str  # in messages
    items: str  # along the first axis of the arrays
    members: frozenset[str]  # names in the folder; a folder with other names is never replaced
    error: type[DaskkmError]
    create: str  # hint for a missing node
    repair: str  # hint for a damaged node
    chunk_error: type[DaskkmError] | None = None  # for a bad chunk, if not `error`
    inner: bool = False  # True within a store


def open_node(path: Path, kind: Kind, *, partial: bool = False) -> tuple[Any, dict[str, Any]]:
    """Open a node for reading; return the Zarr group or array, and its attributes.

    With `partial` the node may be incomplete, is writable, and the attributes hold ``complete``.
    """
    document, attributes = _read_root(path, kind)
    if not (partial or attributes.get("complete")):
        msg = f"{path}: the {kind.noun} is not complete. {_capitalize(kind.repair)}"
        raise kind.error(msg)
    where = StorePath(LocalStore(path, read_only=not partial))
    node: Any = (
        zarr.Array.from_dict(where, document)
        if document["node_type"] == "array"
        else zarr.Group(zarr.AsyncGroup.from_dict(where, document))
    )
    hidden = _OWN_ATTRIBUTES - {"complete"} if partial else _OWN_ATTRIBUTES
    return node, {name: value for name, value in attributes.items() if name not in hidden}


def _read_root(path: Path, kind: Kind) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read and check the root metadata of a node; return metadata and daskkm attributes."""
    try:
        data = (path / metadata.FILE).read_bytes()
        document = json.loads(data)
    except (FileNotFoundError, NotADirectoryError):
        raise kind.error(_describe_missing(path, kind)) from None
    except (OSError, ValueError) as error:
        hint = f"Restore the {kind.noun}, or remove it and {kind.repair}"
        msg = f"{path}: the metadata cannot be read ({error}). {hint}"
        raise kind.error(msg) from error
    attributes = metadata.get_attributes(document)
    if problem := _describe_attributes_mismatch(attributes, kind):
        msg = f"{path}: not a {kind.noun} ({problem}). Name a {kind.noun}, or {kind.create}"
        raise kind.error(msg)
    if (found := attributes.get("format")) != FORMAT:
        msg = (
            f"{path}: not a {kind.noun} of this version of daskkm (its format is {found}, not "
            f"{FORMAT}). Use the version that wrote the {kind.noun}, or remove it and {kind.repair}"
        )
        raise kind.error(msg)
    if not metadata.is_sealed(data, attributes):
        msg = (
            f"{path}: the metadata is damaged (wrong checksum). "
            f"Restore the {kind.noun}, or remove it and {kind.repair}"
        )
        raise kind.error(msg)
    return document, attributes


def _describe_missing(path: Path, kind: Kind) -> str:
    if path.exists():
        return f"{path}: not a {kind.noun}. {_capitalize(kind.create)}"
    near = suggest_names(path)
    return f"{path}: the {kind.noun} does not exist{near}. {_capitalize(kind.create)}"


def _capitalize(hint: str) -> str:
    return hint[0].upper() + hint[1:]


def suggest_names(path: Path) -> str:
    """Return " (did you mean NAME?)" if Zarr groups of similar names exist, else ""."""
    with suppress(OSError):
        names = [entry.parent.name for entry in path.parent.glob("*/zarr.json")]
        near = get_close_matches(path.name, names)
        if near:
            return f" (did you mean {' or '.join(str(path.with_name(name)) for name in near)}?)"
    return ""


def describe_mismatch(path: Path, kind: Kind) -> str | None:
    """Return a reason why a folder is not a node of a kind, or None; ignore damaged metadata."""
    try:
        document = json.loads((path / metadata.FILE).read_bytes())
    except FileNotFoundError:
        return f"the folder has no {metadata.FILE}"
    except ValueError:
        return None
    return _describe_attributes_mismatch(metadata.get_attributes(document), kind)


def _describe_attributes_mismatch(attributes: Mapping[str, Any], kind: Kind) -> str | None:
    if not attributes:
        return "no attributes of daskkm"
    found = attributes.get("kind")
    return None if found == kind.name else f"its kind is {found}, not {kind.name}"


def create_group(path: Path, kind: Kind, attributes: Mapping[str, Any]) -> zarr.Group:
    """Create an incomplete group in a folder without metadata."""
    path.mkdir(parents=True, exist_ok=True)
    metadata.write_root(path, metadata.GROUP, dict(attributes) | _make_own_attributes(kind))
    return zarr.open_group(path, mode="r+", zarr_format=3, use_consolidated=False)


def create_array(
    path: Path,
    shape: tuple[int, ...],
    dtype: np.dtype[Any] | str,
    *,
    rows: int,
    dimensions: tuple[str, ...],
    kind: Kind | None = None,
) -> zarr.Array[Any]:
    """Create an array with chunks of `rows` rows; with `kind` the array is an incomplete node.

    Write through the returned object, or a pickle of it, in whole chunks.
    """
    return zarr.create_array(
        path,
        shape=shape,
        dtype=dtype,
        chunks=(max(1, min(rows, shape[0])), *(max(1, n) for n in shape[1:])),
        filters=None,
        compressors=[Crc32cCodec()],
        dimension_names=dimensions,
        attributes={"daskkm": _make_own_attributes(kind)} if kind else None,
        zarr_format=3,
        # Otherwise Zarr leaves out an all-zero chunk, like a lost one. The setting is part of the
        # object and its pickles, not of the stored metadata.
        config={"write_empty_chunks": True},
    )


def write_attributes(
    path: Path, kind: Kind, attributes: Mapping[str, Any], *, complete: bool
) -> None:
    """Replace attributes and consolidated metadata in the root of a node atomically.

    Call this function last: until then no reader sees the write.
    """
    document = json.loads((path / metadata.FILE).read_bytes())
    document.pop(metadata.CONSOLIDATED, None)
    if document["node_type"] == "group":
        group = zarr.open_group(path, mode="r", zarr_format=3, use_consolidated=False)
        names = [name for name, _ in group.members(max_depth=None)]
        document[metadata.CONSOLIDATED] = metadata.consolidate(path, names)
    own = _make_own_attributes(kind) | {"complete": complete}
    metadata.write_root(path, document, dict(attributes) | own)


def _make_own_attributes(kind: Kind) -> dict[str, Any]:
    return {"format": FORMAT, "kind": kind.name, "complete": False}


def read_rows(array: zarr.Array[Any], first: int, last: int, kind: Kind) -> NDArray[Any]:
    """Read rows first … last - 1 of an array; an error of the kind names a bad chunk."""
    with _translate_read_errors(array, first, last, kind):
        return chunks.read_rows(array, first, last)


def stream_chunks(
    array: zarr.Array[Any], first: int, last: int, kind: Kind
) -> Iterator[NDArray[Any]]:
    """Yield rows first … last - 1 chunk by chunk, read-only, all in the same buffer.

    `first` is the first row of a chunk. Errors are the same as for `read_rows`.
    """
    rows = array.chunks[0]
    for start in range(first, last, rows):
        end = min(start + rows, last)
        with _translate_read_errors(array, start, end, kind):
            chunk = chunks.read_chunk(array, start, end)
        yield chunk


def check_chunks(array: zarr.Array[Any], kind: Kind) -> None:
    """Raise the error of the kind if a chunk is missing or has another size."""
    with _translate_read_errors(array, 0, array.shape[0], kind):
        chunks.check_sizes(array)


def describe_rows(array: zarr.Array[Any], first: int, last: int, kind: Kind) -> str:
    """Return rows first … last - 1 in words, such as "t.zarr: row of tiles 14 to 20"."""
    name = array.path or kind.name
    items = name if name == kind.items else f"{name} of {kind.items}"
    return f"{chunks.get_folder(array)}: {items} {first} to {last - 1}"


def translate_write_errors(path: Path, kind: Kind) -> AbstractContextManager[None]:
    """Raise each OSError as the error of the kind."""
    hint = "check that the folder can be written" if kind.inner else "choose another location"
    problem = f"the {kind.noun} cannot be written"
    return translate_errors(kind.error, path, problem, f"Make room, or {hint}")


@contextmanager
def _translate_read_errors(
    array: zarr.Array[Any], first: int, last: int, kind: Kind
) -> Iterator[None]:
    folder = chunks.get_folder(array)
    try:
        yield
    except chunks.ChunkError as error:
        if not folder.exists():
            msg = f"{folder}: not found{on_worker()}. Every worker needs this path"
            raise kind.error(msg) from error
        i, reason = error.args
        rows = array.chunks[0]
        span = describe_rows(array, i * rows, min((i + 1) * rows, array.shape[0]), kind)
        msg = (
            f"{span} cannot be read{on_worker()} from chunk {chunks.get_key(array, i)} ({reason}). "
            f"Restore the {kind.noun}, or remove it and {kind.repair}"
        )
        raise (kind.chunk_error or kind.error)(msg) from error
    except Exception as error:  # Zarr raises many types, without the name of the array
        span = describe_rows(array, first, last, kind)
        msg = f"{span} cannot be read{on_worker()} ({error}). Check access, and retry"
        raise kind.error(msg) from error
