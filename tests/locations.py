"""New locations of each kind, and the files in locations, for tests."""

from __future__ import annotations

import json
import uuid
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from zarr.storage import MemoryStore

from daskkm.storage.locations import as_location

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from daskkm.storage.locations import Location

KINDS = ("local", "memory", "zarr")
# Kinds on which two writers exclude each other.
SHARED_KINDS = ("local", "memory")


@contextmanager
def new_location(kind: str) -> Iterator[Location]:
    """Yield a location of one kind that does not exist yet."""
    if kind == "local":
        with TemporaryDirectory() as folder:
            yield as_location(folder) / "deep" / "x.zarr"
    elif kind == "memory":
        yield as_location(f"memory://{uuid.uuid4().hex}/deep/x.zarr")
    else:
        yield as_location(MemoryStore()) / "deep" / "x.zarr"


def tree(store: str | Path | Location) -> dict[str, Any]:
    """Return all files of a store; the root without what is random."""
    location = as_location(store)
    files: dict[str, Any] = {name: bytes((location / name).read()) for name in location.sizes()}
    if "zarr.json" in files:
        root = files["zarr.json"] = json.loads(files["zarr.json"])
        for name in ("id", "sha256"):
            del root["attributes"]["daskkm"][name]
    return files
