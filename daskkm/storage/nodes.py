"""Nodes of daskkm: Zarr groups of which the root ``zarr.json`` is the commit.

The root is written last, in one atomic write. It holds the metadata of all arrays, the attributes,
and a digest of itself. Readers read only the root and chunks. Copies of the metadata in each array
are for other programs.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from daskkm.errors import on_worker, translate_errors
from daskkm.storage import locks
from daskkm.storage.arrays import ChunkedArray, ChunkError
from daskkm.storage.locations import ConflictError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from daskkm.errors import DaskkmError
    from daskkm.storage.locations import Location

FORMAT = 4  # older formats are refused
METADATA = "zarr.json"
_NO_DIGEST = "0" * 64  # placeholder of the digest in the digested bytes
_GROUP = {"zarr_format": 3, "node_type": "group"}
# Files of the operating system, and of killed or running writers.
_IGNORED = re.compile(r"\.DS_Store|\.nfs.*|\..*\.partial|.*\.lock")


@dataclass(frozen=True)
class Kind:
    """Kind of a node, with the words of messages."""

    name: str  # in the attributes of the node
    noun: str  # in messages
    items: str  # along the first axis of the arrays
    members: frozenset[str]  # names in the folder; a folder with other names is never written to
    contents: str  # pattern of MEMBER/NAME for the names in members
    error: type[DaskkmError]
    create: str  # hint for a missing node
    repair: str  # hint for a damaged node
    chunk_error: type[DaskkmError] | None = None  # for a bad chunk, if not `error`
    # Hints for bad chunks of arrays in folders that can be written again alone.
    folder_repairs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Node:
    """Committed node: what its root says.

    Attributes
    ----------
    arrays : dict of str to ChunkedArray
        By path.
    attributes : dict
        JSON. ``id`` changes when a store is replaced by another, and stays when it grows.
    content : bytes
        The root as it was read.
    """

    location: Location
    kind: Kind
    arrays: dict[str, ChunkedArray]
    attributes: dict[str, Any]
    content: bytes = b""

    def resize(self, lengths: Mapping[str, int]) -> Node:
        """Return the node with arrays of these lengths; nothing is written."""
        changed = {name: self.arrays[name].resize(n) for name, n in lengths.items()}
        return replace(self, arrays=self.arrays | changed)

    def write(self, old: bytes | None) -> Node:
        """Write copies of the metadata, then the root; return the committed node.

        Raise ConflictError unless the present root is `old`, or None for no root.
        """
        nodes = {name: array.metadata for name, array in sorted(self.arrays.items())}
        for folder in {str(PurePosixPath(name).parent) for name in nodes} - {"."}:
            nodes[folder] = {**_GROUP, "attributes": {}}
        for name, node in nodes.items():
            (self.location / name / METADATA).write(json.dumps(node, indent=1).encode())
        own = {"format": FORMAT, "kind": self.kind.name}
        attributes = {**self.attributes, **own, "sha256": _NO_DIGEST}
        document = {
            **_GROUP,
            "attributes": {"daskkm": attributes},
            "consolidated_metadata": {
                "kind": "inline",
                "must_understand": False,
                "metadata": dict(sorted(nodes.items())),
            },
        }
        data = json.dumps(document, indent=1).encode()
        digest = hashlib.sha256(data).hexdigest()
        content = data.replace(_NO_DIGEST.encode(), digest.encode())
        (self.location / METADATA).swap(old, content)
        return replace(self, attributes={**attributes, "sha256": digest}, content=content)


def read_node(location: Location, kind: Kind) -> Node:
    """Read the root of a node; raise the error of the kind if there is no intact node."""
    try:
        content = bytes((location / METADATA).read())
        document = json.loads(content)
    except FileNotFoundError:
        raise kind.error(_describe_missing(location, kind)) from None
    except (OSError, ValueError) as error:
        msg = f"{location}: the metadata cannot be read ({error}). {_describe_repair(kind)}"
        raise kind.error(msg) from error
    attributes = _get_attributes(document)
    if problem := _describe_mismatch(attributes, kind):
        msg = f"{location}: not a {kind.noun} ({problem}). Name a {kind.noun}, or {kind.create}"
        raise kind.error(msg)
    if (found := attributes.get("format")) != FORMAT:
        msg = (
            f"{location}: not a {kind.noun} of this version of daskkm (its format is {found}, not "
            f"{FORMAT}). Use the version that wrote the {kind.noun}, or remove it and {kind.repair}"
        )
        raise kind.error(msg)
    if not _is_sealed(content, attributes):
        msg = f"{location}: the metadata is damaged (wrong checksum). {_describe_repair(kind)}"
        raise kind.error(msg)
    arrays = {
        name: ChunkedArray.from_metadata(location / name, metadata)
        for name, metadata in document["consolidated_metadata"]["metadata"].items()
        if metadata["node_type"] == "array"
    }
    return Node(location, kind, arrays, attributes, content)


def update_node(location: Location, kind: Kind, change: Callable[[Node], Node]) -> Node:
    """Replace the root by ``change(node)``, again and again if others replace it meanwhile."""
    with translate_write_errors(location, kind), locks.wait_for_commit(location):
        while True:
            node = read_node(location, kind)
            with suppress(ConflictError):
                return change(node).write(node.content)


def find_obstacle(location: Location, kind: Kind) -> str | None:
    """Return a reason why a node cannot be written to a location, or None.

    Nodes of the kind and their remains are no obstacles.
    """
    if location.is_file():
        return "a file"
    names = list_names(location)
    if strays := sorted(names - kind.members):
        return f"the folder holds {strays[0]}"
    if METADATA in names:
        with suppress(ValueError):  # damaged metadata
            return _describe_mismatch(
                _get_attributes(json.loads(bytes((location / METADATA).read()))), kind
            )
    # Without a root these are remains of the kind, or folders of the user with the same names.
    for member in sorted(names - {METADATA}):
        if (location / member).is_file():
            return f"the folder holds {member}"
        for path in sorted(f"{member}/{name}" for name in list_names(location / member)):
            if not re.fullmatch(kind.contents, path):
                return f"the folder holds {path}"
    return None


def check_free(location: Location, kind: Kind) -> None:
    """Raise the error of the kind if a location holds something else than nodes of the kind."""
    problem = f"a {kind.noun} cannot be written there"
    with translate_errors(kind.error, location, problem, "Choose another location"):
        obstacle = find_obstacle(location, kind)
    if obstacle:
        msg = (
            f"{location}: not a {kind.noun} that daskkm may replace ({obstacle}). "
            "Choose another location"
        )
        raise kind.error(msg)


def list_names(location: Location) -> set[str]:
    """Return names in a folder, without files of the system and of writers."""
    return {name for name in location.names() if not _IGNORED.fullmatch(name)}


def remove_node(location: Location, kind: Kind) -> None:
    """Remove a node, its root first: from then on there is no node."""
    for name in sorted(kind.members, key=lambda name: name != METADATA):
        (location / name).remove()


def translate_write_errors(location: Location, kind: Kind) -> AbstractContextManager[None]:
    """Raise each OSError as the error of the kind."""
    problem = f"the {kind.noun} cannot be written"
    return translate_errors(kind.error, location, problem, "Make room, or choose another location")


@contextmanager
def translate_read_errors(node: Node, name: str, first: int, last: int) -> Iterator[None]:
    """Raise each error of a read of rows first … last - 1 as an error of the kind."""
    kind, array = node.kind, node.arrays[name]
    try:
        yield
    except ChunkError as error:
        if not node.location.exists():
            msg = f"{node.location}: not found{on_worker()}. Every worker needs this location"
            raise kind.error(msg) from error
        if replaced := find_replacement(node, name):
            raise replaced from error
        i, problem = error.args
        span = describe_rows(node, name, i * array.rows, min((i + 1) * array.rows, len(array)))
        msg = (
            f"{span} cannot be read{on_worker()} from chunk {name}/{array.key(i)} ({problem}). "
            f"{_describe_repair(kind, name)}"
        )
        raise (kind.chunk_error or kind.error)(msg) from error
    except OSError as error:
        span = describe_rows(node, name, first, last)
        msg = f"{span} cannot be read{on_worker()} ({error}). Check access, and retry"
        raise kind.error(msg) from error


def find_replacement(node: Node, name: str = "") -> DaskkmError | None:
    """Return an error if a node, or one of its arrays, was replaced since it was read, or None."""
    attributes: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        content = bytes((node.location / METADATA).read())
        if content == node.content:
            return None
        attributes = _get_attributes(json.loads(content))
    if _identify(attributes, name) == _identify(node.attributes, name):  # it has grown
        return None
    place = node.location / name if name else node.location
    msg = f"{place}: replaced during a read. Open the {node.kind.noun} again"
    return node.kind.error(msg)


def _identify(attributes: Mapping[str, Any], name: str) -> tuple[Any, Any]:
    """Return the id of a node, and of an array that may be replaced alone, such as labels/5."""
    folder, _, last = name.rpartition("/")
    own = attributes.get(folder, {}).get(last, {}) if folder else {}
    return attributes.get("id"), own.get("centroids")


def describe_rows(node: Node, name: str, first: int, last: int) -> str:
    """Return rows first … last - 1 in words, such as "t.zarr: labels/5 of tiles 14 to 20"."""
    items = node.kind.items if node.arrays[name].dimensions[0] == "tile" else "rows"
    items = name if name == items else f"{name} of {items}"
    return f"{node.location}: {items} {first} to {last - 1}"


def read_rows(node: Node, name: str, first: int = 0, last: int | None = None) -> NDArray[Any]:
    """Read rows of an array; an error of the kind names a bad chunk."""
    last = len(node.arrays[name]) if last is None else last
    with translate_read_errors(node, name, first, last):
        return node.arrays[name].read(first, last)


def stream_rows(node: Node, name: str, first: int, last: int) -> Iterator[NDArray[Any]]:
    """Yield rows first … last - 1 chunk by chunk, read-only, in a buffer that is reused.

    `first` is the first row of a chunk. Errors are the same as for `read_rows`.
    """
    chunks = node.arrays[name].stream(first, last)
    while True:
        with translate_read_errors(node, name, first, last):
            chunk = next(chunks, None)
        if chunk is None:
            return
        yield chunk


def _describe_missing(location: Location, kind: Kind) -> str:
    hint = kind.create[0].upper() + kind.create[1:]
    if location.exists():
        return f"{location}: not a {kind.noun}. {hint}"
    return f"{location}: the {kind.noun} does not exist{suggest_names(location)}. {hint}"


def _describe_repair(kind: Kind, name: str = "") -> str:
    if repair := dict(kind.folder_repairs).get(name.partition("/")[0]):
        return repair
    return f"Restore the {kind.noun}, or remove it and {kind.repair}"


def suggest_names(location: Location) -> str:
    """Return " (did you mean NAME?)" if Zarr groups of similar names exist, else ""."""
    with suppress(OSError):
        folder = location.parent
        near = get_close_matches(location.name, list(folder.names()))
        near = [name for name in near if (folder / name / METADATA).is_file()]
        if near:
            return f" (did you mean {' or '.join(str(folder / name) for name in near)}?)"
    return ""


def _get_attributes(document: Any) -> dict[str, Any]:
    """Return the daskkm attributes in the metadata of a node, or an empty dict."""
    attributes = document.get("attributes") if isinstance(document, dict) else None
    own = attributes.get("daskkm") if isinstance(attributes, dict) else None
    return own if isinstance(own, dict) else {}


def _describe_mismatch(attributes: Mapping[str, Any], kind: Kind) -> str | None:
    if not attributes:
        return "no attributes of daskkm"
    found = attributes.get("kind")
    return None if found == kind.name else f"its kind is {found}, not {kind.name}"


def _is_sealed(content: bytes, attributes: Mapping[str, Any]) -> bool:
    """Return True if the digest in the attributes matches the metadata."""
    digest = str(attributes.get("sha256")).encode()
    data = content.replace(digest, _NO_DIGEST.encode())
    return hashlib.sha256(data).hexdigest() == digest.decode()
