"""Metadata of Zarr nodes, their ``zarr.json``: as daskkm writes it, to the last bit, or refused.

Zarr takes whatever dtype, shape, chunks and codecs a document names, and the memory that these
take. Here each document is checked before it has a say. The last one of a node to be written has
the SHA-256 of each below it, and its own: that of its bytes, with zeros in place of that digest.
"""

from __future__ import annotations

import hashlib
import json
import math
from reprlib import repr as short
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

# About 800,000 images, and an array.
NODE_BYTES, ARRAY_BYTES = 256 << 20, 1 << 20
# A tile of as many pixels as Pillow opens has half of it.
CHUNK_BYTES = 1 << 30
MOST_CHUNKS = 1 << 21  # what lists them takes 256 MiB

_ITEM_BYTES = {"bool": 1, "float16": 2, "float32": 4, "float64": 8}
_ITEM_BYTES |= {f"{kind}{8 * n}": n for kind in ("int", "uint") for n in (1, 2, 4, 8)}
_OF_GROUP = {"attributes", "zarr_format", "node_type"}
_OF_ARRAY = {
    *_OF_GROUP,
    *("shape", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value", "codecs"),
}
_MAY_BE = {"dimension_names", "storage_transformers"}
CONSOLIDATED = "consolidated_metadata"
SELF = "."
_UNSEALED = b"0" * 64


def parse(data: bytes) -> dict[str, Any]:
    """Return what a document says.

    Raises
    ------
    ValueError
        If it is no JSON object.
    """
    try:
        document = json.loads(data)
    except RecursionError as error:
        msg = "it is nested too deep"
        raise ValueError(msg) from error
    if not isinstance(document, dict):
        msg = f"it is {short(document)}"
        raise ValueError(msg)  # noqa: TRY004
    return document


def ours(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a document has of daskkm's among its attributes; nothing if there is none."""
    attributes = document.get("attributes")
    said = attributes.get("daskkm") if isinstance(attributes, dict) else None
    return dict(said) if isinstance(said, dict) else {}


def check_node(document: Mapping[str, Any], node_type: str) -> None:
    """Find out whether a document is that of a group, or of an array, as daskkm makes them.

    An array is one of numbers in chunks along its first axis, each of which is bytes, the first one
    least, and their CRC-32C.

    Parameters
    ----------
    document : mapping of str to Any
    node_type : {"group", "array"}

    Raises
    ------
    ValueError
        What is different.
    """
    _expect(document, "zarr_format", 3)
    _expect(document, "node_type", node_type)
    needed, known = _OF_GROUP, _OF_GROUP | {CONSOLIDATED}
    if node_type == "array":
        needed, known = _OF_ARRAY, _OF_ARRAY | _MAY_BE
    for name in (*sorted(set(document) - known), *sorted(needed - set(document))):
        msg = f"it has {short(name)}" if name in document else f"it has no {name}"
        raise ValueError(msg)
    if not isinstance(document["attributes"], dict):
        msg = f"its attributes are {short(document['attributes'])}"
        raise ValueError(msg)  # noqa: TRY004
    if node_type == "array":
        _check_array(document)
    elif CONSOLIDATED in document:
        _check_consolidated(document)


def _check_consolidated(document: Mapping[str, Any]) -> None:
    inline, digests = document[CONSOLIDATED], ours(document).get("metadata")
    copies = inline.get("metadata") if isinstance(inline, dict) else None
    below = set(digests) - {SELF} if isinstance(digests, dict) else set()
    if not isinstance(copies, dict) or set(copies) != below:
        msg = f"it has {CONSOLIDATED!r} that is not of its nodes, {short(inline)}"
        raise ValueError(msg)


def _check_array(document: Mapping[str, Any]) -> None:
    shape, dtype = document["shape"], document["data_type"]
    if not (isinstance(shape, list) and shape and all(type(n) is int and n >= 0 for n in shape)):
        msg = f"its shape is {short(shape)}"
        raise ValueError(msg)
    item = _ITEM_BYTES.get(dtype) if isinstance(dtype, str) else None
    if item is None:
        msg = f"its data_type is {short(dtype)}, no number"
        raise ValueError(msg)
    little = {"configuration": {"endian": "little"}} if item > 1 else {}
    _expect(document, "codecs", [{"name": "bytes", **little}, {"name": "crc32c"}])
    _expect(
        document,
        "chunk_key_encoding",
        {"name": "default", "configuration": {"separator": "/"}},
    )
    if document.get("storage_transformers"):
        _expect(document, "storage_transformers", [])
    try:
        rows = document["chunk_grid"]["configuration"]["chunk_shape"][0]
    except (TypeError, KeyError, IndexError):
        rows = None
    rows = rows if type(rows) is int and rows > 0 else 1
    grid = {"name": "regular", "configuration": {"chunk_shape": [rows, *shape[1:]]}}
    _expect(document, "chunk_grid", grid)
    if (size := math.prod(shape[1:]) * rows * item) > CHUNK_BYTES:
        msg = f"its chunks have {size} bytes, more than {CHUNK_BYTES}"
        raise ValueError(msg)
    if shape[0] > rows * MOST_CHUNKS:
        msg = f"its shape is {short(shape)}, in more than {MOST_CHUNKS} chunks"
        raise ValueError(msg)


def _expect(document: Mapping[str, Any], name: str, value: Any) -> None:
    found = document.get(name)
    if json.dumps(found, sort_keys=True) != json.dumps(value, sort_keys=True):
        msg = f"its {name} is {short(found)}, not {short(value)}"
        raise ValueError(msg)


def consolidated(document: Mapping[str, Any], below: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the document of a group with those of the nodes in it, by which others open it.

    Zarr's inline consolidated metadata: zarr and xarray read one file, and xarray does not warn.
    daskkm reads each document, and does not look at this one's copies.

    Parameters
    ----------
    document : mapping of str to Any
    below : mapping of str to bytes
        The documents of the nodes in this one, by name.

    Returns
    -------
    dict of str to Any
    """
    nodes = {name: json.loads(data) for name, data in below.items()}
    inline = {"kind": "inline", "must_understand": False, "metadata": nodes}
    return {CONSOLIDATED: inline, **document}  # first: the digest of its bytes is to stand last


def sealed(document: Mapping[str, Any], below: Mapping[str, bytes]) -> bytes:
    """Return the bytes of a document, with its digest and those of others in daskkm's attributes.

    Parameters
    ----------
    document : mapping of str to Any
        It has attributes of daskkm's.
    below : mapping of str to bytes
        The documents of the nodes in this one, by name.

    Returns
    -------
    bytes
    """
    # In order: folders are listed in any.
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(below.items())}
    digests[SELF] = _UNSEALED.decode()  # the last of such zeros, whatever else has them
    said = {**ours(document), "metadata": digests}
    attributes = {**document["attributes"], "daskkm": said}
    data = json.dumps({**document, "attributes": attributes}, indent=2).encode()
    return hashlib.sha256(data).hexdigest().encode().join(data.rsplit(_UNSEALED, 1))


def is_sealed(data: bytes, said: Mapping[str, Any], name: str = SELF) -> bool:
    """Tell whether the bytes of a document are those that were written, each bit of them.

    Parameters
    ----------
    data : bytes
    said : mapping of str to Any
        What `ours` returned of the document that was sealed.
    name : str, optional
        Of the document in that; itself if not given.

    Returns
    -------
    bool
    """
    digests = said.get("metadata")
    digest = digests.get(name) if isinstance(digests, dict) else None
    if not isinstance(digest, str) or len(digest) != len(_UNSEALED):
        return False
    if name == SELF:
        data = data.replace(digest.encode(), _UNSEALED)
    return hashlib.sha256(data).hexdigest() == digest
