"""Records of the image files of a store, and comparison with the files of today."""

from __future__ import annotations

import hashlib
import stat
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from daskkm.errors import ImageError, count, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

_MAX_BYTES = 1 << 30
_NO_IDENTITY = (0, "")
_CLOCK_TICK_NS = 2_000_000_000


@dataclass(frozen=True)
class File:
    """A file as it was read.

    Attributes
    ----------
    name : str
        File name, without its folder.
    size : int
        Bytes of the file.
    sha256 : str
        Hexadecimal digest of the file; "" if it could not be read, or was being written to.
    mtime_ns, ctime_ns : int, optional
        When the file, and its entry in the file system, were last modified; None if this was so
        shortly before the file was read that a later change could have the same time.
    """

    name: str
    size: int
    sha256: str
    mtime_ns: int | None = field(default=None, kw_only=True, compare=False)
    ctime_ns: int | None = field(default=None, kw_only=True, compare=False)

    def is_file(self, path: Path) -> bool:
        """Return True if a file is still this one, or as unreadable as it was.

        Size and both times decide if they are the same, else the bytes. The time of modification
        alone is not enough: archives and copies set it.
        """
        if path.name != self.name:
            return False
        if self.sha256 and (found := read_state(path)):
            *_, size, mtime_ns, ctime_ns = found
            if size != self.size:
                return False
            if (mtime_ns, ctime_ns) == (self.mtime_ns, self.ctime_ns):
                return True
        return read_identity(path) == (self.size, self.sha256)

    @property
    def content(self) -> dict[str, Any]:
        """All attributes but the times, which do not depend on the content."""
        times = {"mtime_ns", "ctime_ns"}
        return {name: value for name, value in asdict(self).items() if name not in times}


@dataclass(frozen=True)
class ImageRecord(File):
    """An image as it was read.

    Attributes
    ----------
    name, size, sha256, mtime_ns, ctime_ns
        As in `File`.
    shape : tuple of int
        (height, width) or (height, width, bands) in pixels.
    cropped : tuple of int
        Pixels left out at the bottom and at the right, which hold no whole tile.
    """

    shape: tuple[int, ...]
    cropped: tuple[int, int]

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ImageRecord:
        """Return the image of which `dataclasses.asdict` and JSON made this record."""
        shape, cropped = tuple(record["shape"]), tuple(record["cropped"])
        return cls(**{**record, "shape": shape, "cropped": cropped})


@dataclass(frozen=True)
class Skipped(File):
    """A file that was left out because it is not an image, or does not fit the others.

    Attributes
    ----------
    name, size, sha256, mtime_ns, ctime_ns
        As in `File`.
    reason : str
        The problem and a hint.
    """

    reason: str

    @classmethod
    def of(cls, path: Path, error: ImageError, before: tuple[int, ...]) -> Skipped:
        """Return the record of a bad file, which had the state `before` when it was looked at."""
        reason = str(error).removeprefix(f"{printable(str(path))}: ")
        began = time.time_ns()
        size, sha256 = read_identity(path)
        # A passing problem, or a file that was still being written, is looked at again next time.
        if _is_transient(error.__cause__) or read_state(path) != before:
            size, sha256 = _NO_IDENTITY
        times = select_settled_times(before[-2], before[-1], began) if sha256 else {}
        return cls(path.name, size, sha256, reason, **times)


def find_differences(
    images: Iterable[File], skipped: Iterable[File], paths: Iterable[Path]
) -> dict[str, list[str]]:
    """Return names of files that differ from those recorded, each list in the order of the files.

    The keys are ``added``, ``removed``, ``changed`` and ``in another order``.
    """
    recorded = list(images), list(skipped)
    known = {file.name: file for files in recorded for file in files}
    today = {path.name: path for path in paths}
    return {
        "added": [name for name in today if name not in known],
        "removed": [name for name in known if name not in today],
        "changed": [
            name for name, path in today.items() if name in known and not known[name].is_file(path)
        ],
        "in another order": [
            name
            for files in recorded
            for name in _find_moved([file.name for file in files], list(today))
        ],
    }


def _find_moved(names: list[str], today: list[str]) -> list[str]:
    """Return the names, of those in both lists, that have another rank in the second."""
    common = set(names) & set(today)
    before, after = ([name for name in each if name in common] for each in (names, today))
    return [name for name, other in zip(before, after, strict=True) if name != other]


def describe_differences(found: Mapping[str, Sequence[str]]) -> list[str]:
    """Return differences as counts and first names: 1 image added (a.png)."""
    texts = []
    for what, names in found.items():
        if names:
            first = ", ".join([*names[:3], *["…"] * (len(names) > 3)])
            texts.append(f"{count(len(names), 'image')} {what} ({first})")
    return texts


def read_state(path: Path) -> tuple[int, ...]:
    """Return device, inode, size and times of a file: one changes if the file does."""
    try:
        found = path.stat()
    except OSError:
        return ()
    times = found.st_mtime_ns, found.st_ctime_ns
    return found.st_dev, found.st_ino, found.st_size, *times


def select_settled_times(mtime_ns: int, ctime_ns: int, began: int) -> dict[str, int]:
    """Return the times to record of a file that began to be read at a time.

    There are none if a later change could have the same times: clocks of file systems tick in up to
    two seconds.
    """
    settled = mtime_ns < began - _CLOCK_TICK_NS
    return {"mtime_ns": mtime_ns, "ctime_ns": ctime_ns} if settled else {}


def check_regular(path: Path) -> None:
    """Raise ImageError for a path that is not a file, such as a pipe, or for one far too large."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        msg = f"{path}: not a file. Remove it"
        raise ImageError(msg)
    if found.st_size > _MAX_BYTES:
        msg = f"{path}: {found.st_size} bytes, more than {_MAX_BYTES}. Cut it into smaller images"
        raise ImageError(msg)


def read_identity(path: Path) -> tuple[int, str]:
    """Return the size of a file in bytes, and its digest; 0 and "" if it cannot be read."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
            return file.tell(), digest.hexdigest()
    except (OSError, ImageError):
        return _NO_IDENTITY


def _is_transient(error: BaseException | None) -> bool:
    """Return True if an error may be of the moment, or the machine, and not of the file."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and bool(error.errno))


def grid_shape(shape: tuple[int, ...], tile: tuple[int, ...]) -> tuple[int, int]:
    """Return how many rows and columns of whole tiles an image of this shape holds."""
    return shape[0] // tile[0], shape[1] // tile[1]
