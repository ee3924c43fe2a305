"""Versions of nodes, by which a reader notices that another node took the place of its own."""

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
    """Digests of the root metadata of nodes: of a store, and of labels in it.

    Chunks are opened by name, one at a time and on any machine, and could be of other nodes.
    """

    digests: tuple[tuple[Path, str], ...] = ()

    def extend(self, path: Path) -> Version:
        """Return this version with a further node, as it is now."""
        return Version((*self.digests, (path, _digest(path))))

    @property
    def path(self) -> Path:
        """The last of the nodes."""
        return self.digests[-1][0]

    def find_replacement(self) -> StoreError | None:
        """Return an error if one of the nodes is another now, else None."""
        for path, digest in self.digests:
            if _digest(path) != digest:
                return StoreError(f"{path}: replaced while it was being read. Run this again")
        return None

    def check(self) -> None:
        """Raise StoreError if one of the nodes is another now."""
        if error := self.find_replacement():
            raise error

    @contextmanager
    def guard_read(self) -> Iterator[None]:
        """Raise StoreError at the end if the data may be of other nodes."""
        try:
            yield
        except StoreError:
            if self.path.exists():  # else this machine does not have it
                self.check()  # the replacement may be the cause
            raise
        self.check()


def _digest(path: Path) -> str:
    with suppress(OSError):
        status = (path / metadata.FILE).stat()
        return _digest_of_file(path, status.st_ino, status.st_mtime_ns, status.st_size)
    return ""


@lru_cache(maxsize=64)
def _digest_of_file(path: Path, *_: int) -> str:
    """Return the digest, from one read as long as the file is the same."""
    with (path / metadata.FILE).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
