"""Record the image files of a store, and compare records with present files."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from daskkm.errors import ImageError, count, printable
from daskkm.storage.locations import LocalLocation, ObjectLocation

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from daskkm.storage.locations import Location

_MAX_BYTES = 1 << 30
_NO_IDENTITY = (0, "")
_CLOCK_TICK_NS = 2_000_000_000


@dataclass(frozen=True)
class File:
    """Record of a file at the time of its read."""

    name: str  # without the folder
    size: int  # in bytes
    sha256: str  # hexadecimal; "" if the file was unreadable, or still being written
    # Changes of content and inode; None if a later change could have the same times.
    mtime_ns: int | None = field(default=None, kw_only=True, compare=False)
    ctime_ns: int | None = field(default=None, kw_only=True, compare=False)

    def is_file(self, path: Location) -> bool:
        """Return True if a file is unchanged, or still unreadable.

        A file of the same size and both times is unchanged; otherwise the digests decide. The
        modification time alone is not enough: archives and copies set `mtime_ns`.
        """
        if path.name != self.name:
            return False
        if self.sha256 and (state := read_state(path)):
            *_, size, mtime_ns, ctime_ns = state
            if size != self.size:
                return False
            if (mtime_ns, ctime_ns) == (self.mtime_ns, self.ctime_ns):
                return True
        return read_identity(path) == (self.size, self.sha256)


@dataclass(frozen=True)
class ImageRecord(File):
    """Record of an image at the time of its read."""

    shape: tuple[int, ...]  # (height, width) or (height, width, bands) in pixels
    cropped: tuple[int, int]  # rows at the bottom and columns at the right that fill no whole tile

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ImageRecord:
        """Return the ImageRecord of a JSON object, the inverse of `dataclasses.asdict`."""
        shape, cropped = tuple(record["shape"]), tuple(record["cropped"])
        return cls(**{**record, "shape": shape, "cropped": cropped})


@dataclass(frozen=True)
class SkippedFile(File):
    """Record of a file that is not an image, or does not match the other images."""

    reason: str  # the problem and a hint

    @classmethod
    def from_error(cls, path: Location, error: ImageError, state: tuple[int, ...]) -> SkippedFile:
        """Return the record of a bad file, with its state before the read."""
        reason = str(error).removeprefix(f"{printable(str(path))}: ")
        start = time.time_ns()
        size, sha256 = read_identity(path)
        # After a transient error, or a change during the read, the next run reads the file again.
        if _is_transient(error.__cause__) or read_state(path) != state:
            size, sha256 = _NO_IDENTITY
        times = select_settled_times(state[-2], state[-1], start) if sha256 else {}
        return cls(path.name, size, sha256, reason, **times)


def find_differences(
    images: Iterable[File], skipped: Iterable[File], paths: Iterable[Location]
) -> dict[str, list[str]]:
    """Return the names of files that differ from the records.

    The keys are ``added``, ``removed`` and ``changed``.
    """
    known = {file.name: file for files in (images, skipped) for file in files}
    present = {path.name: path for path in paths}
    return {
        "added": [name for name in present if name not in known],
        "removed": [name for name in known if name not in present],
        "changed": [
            name
            for name, path in present.items()
            if name in known and not known[name].is_file(path)
        ],
    }


def describe_differences(differences: Mapping[str, Sequence[str]]) -> list[str]:
    """Return differences as counts with the first names, such as "1 image added (a.png)"."""
    texts = []
    for change, names in differences.items():
        if names:
            first = ", ".join([*names[:3], *["…"] * (len(names) > 3)])
            texts.append(f"{count(len(names), 'image')} {change} ({first})")
    return texts


def read_state(path: Location) -> tuple[int, ...]:
    """Return what tells whether a file has changed, or (): first the mode, last size and times."""
    try:
        if isinstance(path, LocalLocation):
            found = os.stat(path)  # noqa: PTH116
            times = found.st_mtime_ns, found.st_ctime_ns
            return found.st_mode, found.st_dev, found.st_ino, found.st_size, *times
        if isinstance(path, ObjectLocation):
            size, changed_ns = path.stat()
            return stat.S_IFREG, size, changed_ns, changed_ns
    except OSError:
        pass
    return ()


def select_settled_times(mtime_ns: int, ctime_ns: int, start: int) -> dict[str, int]:
    """Return the times to record of a file whose read began at `start`.

    The result is empty if a later change could have the same times: file system clocks tick at
    least every two seconds.
    """
    settled = mtime_ns < start - _CLOCK_TICK_NS
    return {"mtime_ns": mtime_ns, "ctime_ns": ctime_ns} if settled else {}


def check_regular(path: Location, state: Sequence[int]) -> None:
    """Raise ImageError for a state of another file than a regular one of at most `_MAX_BYTES`."""
    if state and not stat.S_ISREG(state[0]):
        msg = f"{path}: not a regular file. Remove the entry"
        raise ImageError(msg)
    if state and state[-3] > _MAX_BYTES:
        msg = f"{path}: {state[-3]} bytes, more than {_MAX_BYTES}. Split the image"
        raise ImageError(msg)


def read_identity(path: Location) -> tuple[int, str]:
    """Return size and digest of a file, or 0 and "" if the file cannot be read."""
    try:
        check_regular(path, read_state(path))
        data = path.read()
    except (OSError, ImageError):
        return _NO_IDENTITY
    return len(memoryview(data)), hashlib.sha256(data).hexdigest()


def _is_transient(error: BaseException | None) -> bool:
    """Return True if an error may come from the machine, not from the file."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and bool(error.errno))


def grid_shape(shape: tuple[int, ...], tile: tuple[int, ...]) -> tuple[int, int]:
    """Return the numbers of rows and columns of whole tiles in an image."""
    return shape[0] // tile[0], shape[1] // tile[1]
