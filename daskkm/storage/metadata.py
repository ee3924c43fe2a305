"""Write the root ``zarr.json`` of a node, with a SHA-256 of the file, and read its attributes."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from daskkm.files import atomic_writer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FILE = "zarr.json"
CONSOLIDATED = "consolidated_metadata"
_NO_DIGEST = "0" * 64  # placeholder of the digest in the digested bytes
_COPIES = {"kind": "inline", "must_understand": False, "metadata": {}}
GROUP = {"zarr_format": 3, "node_type": "group", CONSOLIDATED: _COPIES}


def get_attributes(document: Any) -> dict[str, Any]:
    """Return the daskkm attributes in the metadata of a node, or an empty dict."""
    attributes = document.get("attributes") if isinstance(document, dict) else None
    own = attributes.get("daskkm") if isinstance(attributes, dict) else None
    return own if isinstance(own, dict) else {}


def write_root(folder: Path, document: Mapping[str, Any], attributes: Mapping[str, Any]) -> None:
    """Write the metadata of a node, with daskkm attributes and a digest of the whole file."""
    sealed = {"daskkm": {**attributes, "sha256": _NO_DIGEST}}
    data = json.dumps({**document, "attributes": sealed}, indent=2).encode()
    digest = hashlib.sha256(data).hexdigest()
    with atomic_writer(folder / FILE) as file:
        file.write(data.replace(_NO_DIGEST.encode(), digest.encode()))


def is_sealed(data: bytes, attributes: Mapping[str, Any]) -> bool:
    """Return True if the digest in the attributes matches the metadata."""
    digest = str(attributes.get("sha256")).encode()
    return hashlib.sha256(data.replace(digest, _NO_DIGEST.encode())).hexdigest() == digest.decode()


def consolidate(folder: Path, names: list[str]) -> dict[str, Any]:
    """Return the metadata of nodes in a folder in Zarr's consolidated form."""
    copies = {name: json.loads((folder / name / FILE).read_bytes()) for name in sorted(names)}
    return {**_COPIES, "metadata": copies}
