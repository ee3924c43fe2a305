"""New locations of each kind, for tests."""

from __future__ import annotations

import uuid
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from zarr.storage import MemoryStore

from daskkm.storage.locations import as_location

if TYPE_CHECKING:
    from collections.abc import Iterator

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
