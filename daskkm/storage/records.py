"""Records of the image files of a store, and comparison with the files of today."""

from __future__ import annotations

import hashlib
import stat
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from daskkm.errors import ImageError, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

_MOST_BYTES = 1 << 30
_UNREAD = (0, "")
_TICK_NS = 2_000_000_000


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
        Hexadecimal digest of the file, or "" if it could not be read, or was being written to.
    mtime_ns, ctime_ns : int, optional
        When the file, and its entry in the file system, were last modified, as the system has it;
        None if the file was modified so shortly before it was read that a later change could have
        the same time, or where that is not known.
    """

    name: str
    size: int
    sha256: str
    mtime_ns: int | None = field(default=None, kw_only=True, compare=False)
    ctime_ns: int | None = field(default=None, kw_only=True, compare=False)

    def is_file(self, path: Path) -> bool:
        """Return True if a file is this one still, or as unreadable as it was.

        It is if size and both times are the same; else its bytes are compared. The time of
        modification alone is not enough: archives and copies set it.
        """
        if path.name != self.name:
            return False
        if self.sha256 and (found := state(path)):
            *_, size, mtime_ns, ctime_ns = found
            if size != self.size:
                return False
            if (mtime_ns, ctime_ns) == (self.mtime_ns, self.ctime_ns):
                return True
        return identity(path) == (self.size, self.sha256)

    @property
    def content(self) -> dict[str, Any]:
        """All that depends on what the file holds and is called, and not on when it was written."""
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
        """Return the image that `dataclasses.asdict` and JSON made this record of."""
        shape, cropped = tuple(record["shape"]), tuple(record["cropped"])
        file = record["name"], record["size"], record["sha256"]
        mtime_ns, ctime_ns = record.get("mtime_ns"), record.get("ctime_ns")
        return cls(*file, shape, cropped, mtime_ns=mtime_ns, ctime_ns=ctime_ns)


@dataclass(frozen=True)
class Skipped(File):
    """A file that was left out because it is no image, or none that fits.

    Attributes
    ----------
    name, size, sha256, mtime_ns, ctime_ns
        As in `File`.
    reason : str
        What is wrong with it, and what to do.
    """

    reason: str

    @classmethod
    def of(cls, path: Path, error: ImageError, before: tuple[int, ...]) -> Skipped:
        """Return what is to be remembered of a file with which something is wrong.

        Parameters
        ----------
        path : Path
        error : ImageError
        before : tuple of int
            What `state` said of it before it was looked at.
        """
        reason = str(error).removeprefix(f"{printable(str(path))}: ")
        began = time.time_ns()
        size, sha256 = identity(path)
        # What may go better the next time is tried again, and what was still being written.
        if _is_passing(error.__cause__) or state(path) != before:
            size, sha256 = _UNREAD
        times = settled_times(before[-2], before[-1], began) if sha256 else {}
        return cls(path.name, size, sha256, reason, **times)


def find_differences(
    images: Iterable[File], skipped: Iterable[File], paths: Iterable[Path]
) -> dict[str, list[str]]:
    """Return the names of files that differ from those recorded, by what happened to them.

    Parameters
    ----------
    images, skipped : iterable of File
        As they were recorded, each in the order of the files.
    paths : iterable of Path
        The files of today.

    Returns
    -------
    dict of str to list of str
        ``added``, ``removed``, ``changed`` and ``in another order``.
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
            for name in _moved([file.name for file in files], list(today))
        ],
    }


def _moved(names: list[str], today: list[str]) -> list[str]:
    """Return the names, of those in both lists, that have another rank in the second."""
    common = set(names) & set(today)
    ranks = zip(
        *([name for name in each if name in common] for each in (names, today)), strict=True
    )
    return [name for name, other in ranks if name != other]


def describe_differences(found: Mapping[str, Sequence[str]]) -> list[str]:
    """Return what `differences` found as counts and first names: 1 image added (a.png)."""
    texts = []
    for what, names in found.items():
        if names:
            first = ", ".join([*names[:3], *["…"] * (len(names) > 3)])
            texts.append(f"{len(names)} image{'s' * (len(names) != 1)} {what} ({first})")
    return texts


def state(path: Path) -> tuple[int, ...]:
    """Return what changes when a file is written to, or another takes its place."""
    try:
        found = path.stat()
    except OSError:
        return ()
    times = found.st_mtime_ns, found.st_ctime_ns
    return found.st_dev, found.st_ino, found.st_size, *times


def settled_times(mtime_ns: int, ctime_ns: int, began: int) -> dict[str, int]:
    """Return what to record of times if no change since a file began to be read can have the same.

    Clocks of file systems tick in up to two seconds.
    """
    settled = mtime_ns < began - _TICK_NS
    return {"mtime_ns": mtime_ns, "ctime_ns": ctime_ns} if settled else {}


def check_regular(path: Path) -> None:
    """Refuse what is no file, as a pipe, which would be waited for, and what is far too big."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        msg = f"{path}: this is not a file; remove it"
        raise ImageError(msg)
    if found.st_size > _MOST_BYTES:
        msg = f"{path}: it has {found.st_size} bytes, more than {_MOST_BYTES}; cut the image up"
        raise ImageError(msg)


def identity(path: Path) -> tuple[int, str]:
    """Return how many bytes a file has, and their digest; 0 and "" if it cannot be read."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
            return file.tell(), digest.hexdigest()
    except (OSError, ImageError):
        return _UNREAD


def _is_passing(error: BaseException | None) -> bool:
    """Tell whether an error may be of the moment, or the machine, and not of the file."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and bool(error.errno))


def grid(shape: tuple[int, ...], tile: tuple[int, ...]) -> tuple[int, int]:
    """Return how many rows and columns of whole tiles an image of this shape holds."""
    return shape[0] // tile[0], shape[1] // tile[1]
