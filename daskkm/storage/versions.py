"""Detect that a node was replaced during a read."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from daskkm.errors import StoreError
from daskkm.storage import metadata

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True)
class Version:
    """Digests of the root metadata of a store, and of labels in the store.

    Chunks are opened by name, so a chunk may belong to a later node at the same path.
    """

    digests: tuple[tuple[Path, str], ...] = ()

    def extend(self, path: Path) -> Version:
        """Return a version with the present digest of one more node."""
        return Version((*self.digests, (path, _digest(path))))

    @property
    def path(self) -> Path:
        """Path of the last node."""
        return self.digests[-1][0]

    def find_replacement(self) -> StoreError | None:
        """Return an error for the first node that was replaced, or None."""
        for path, digest in self.digests:
            if _digest(path) != digest:
                return StoreError(f"{path}: replaced during a read. Open the store again")
        return None

    def check(self) -> None:
        """Raise StoreError if a node was replaced."""
        if error := self.find_replacement():
            raise error

    @contextmanager
    def guard_read(self) -> Iterator[None]:
        """Raise StoreError at exit if a node was replaced."""
        try:
            yield
        except StoreError:
            if self.path.exists():  # this machine has the node: a replacement may be the cause
                self.check()
            raise
        self.check()


def _digest(path: Path) -> str:
    with suppress(OSError):
        status = (path / metadata.FILE).stat()
        return _digest_of_file(path, status.st_ino, status.st_mtime_ns, status.st_size)
    return ""


@lru_cache(maxsize=64)
def _digest_of_file(path: Path, *_: int) -> str:
    """Return the digest of a file, cached by inode, time and size."""
    with (path / metadata.FILE).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
