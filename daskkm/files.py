"""Files that are written whole or not at all."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def partial_path(path: Path) -> Path:
    """Return the path at which `atomic_writer` writes a file before it replaces `path`."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that replaces `path` if the context ends without an error.

    For one writer at a time. The next writer overwrites the partial file of a killed writer.
    """
    partial = partial_path(path)
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
