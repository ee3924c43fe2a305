"""Chunks of a local Zarr array of daskkm's, read straight into place and checked.

They are uncompressed and cut along the first axis only: the bytes of whole rows, the last chunk
padded, then their CRC-32C. Zarr reads the same bytes, but into memory of its own first, and a
missing chunk as zeros. In a worker process that matters: its memory is given back after
each task, and new memory costs ten times what reading from the page cache does.
"""

from __future__ import annotations

import math
import os
import stat
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import google_crc32c
import numpy as np

if TYPE_CHECKING:
    import zarr
    from numpy.typing import NDArray
    from zarr.storage import LocalStore

_CHECKSUM_BYTES = 4
_OF_THREAD = threading.local()


class ChunkError(Exception):
    """A chunk that is missing, or is not what was written: which, by its index, and why."""


def read(array: zarr.Array[Any], first: int, last: int) -> NDArray[Any]:
    """Read rows first … last - 1, in whatever chunks they lie.

    Parameters
    ----------
    array : zarr.Array of shape (n, ...)
    first, last : int

    Returns
    -------
    ndarray of shape (last - first, ...)

    Raises
    ------
    ChunkError
        If a chunk is not there, not of its size, not reached without links, or its checksum is not
        that of its bytes.
    OSError
        If one cannot be read.
    """
    check(array, first, last)  # before memory is taken for what may not be there
    rows = array.chunks[0]
    found = np.empty((last - first, *array.shape[1:]), array.dtype)
    for i in range(first // rows, -(-last // rows)):
        begin, end = max(first, i * rows), min(last, (i + 1) * rows)
        place = found[begin - first : end - first]
        if end - begin == rows:
            _fill(array, i, place)
        else:
            place[:] = _in_buffer(array, i)[begin - i * rows : end - i * rows]
    return found


def borrow(array: zarr.Array[Any], first: int, last: int) -> NDArray[Any]:
    """Read rows first … last - 1 of one chunk into memory that this thread uses again.

    The system is asked to read the next chunk meanwhile.

    Parameters and errors are those of `read`; `first` is the first row of a chunk.

    Returns
    -------
    ndarray of shape (last - first, ...), read-only
        The next call in this thread overwrites it.
    """
    i = first // array.chunks[0]
    if last < array.shape[0]:
        _announce(array, i + 1)
    return _in_buffer(array, i)[: last - first]


def check(array: zarr.Array[Any], first: int, last: int) -> None:
    """Find out whether the chunks of rows first … last - 1 are there and of their size.

    Parameters and errors are those of `read`, but that no byte is read.
    """
    rows = array.chunks[0]
    for i in range(first // rows, -(-last // rows)):
        _found(array, i)


def find(root: Path, key: str) -> tuple[Path, int]:
    """Return the path of a file in a store, and how many bytes it has.

    Parameters
    ----------
    root : Path
        Of the store, and whatever leads there.
    key : str
        The way from there.

    Raises
    ------
    FileNotFoundError
        If it is not there.
    ValueError
        If a link is on the way, or it is no file.
    """
    path, status = _status(root, key)
    if not stat.S_ISREG(status.st_mode):
        msg = f"{key} is not a file"
        raise ValueError(msg)
    return path, status.st_size


def refuse_links(root: Path, key: str) -> None:
    """Raise ValueError if what may be at a key of a store, or on the way there, is a link."""
    with suppress(FileNotFoundError):
        _status(root, key)


def _status(root: Path, key: str) -> tuple[Path, os.stat_result]:
    path = str(root)  # for each chunk that is read: a Path would take twice as long
    for part in key.split("/"):
        path = f"{path}/{part}"
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            msg = f"{path} is a link, which may lead out of the store"
            raise ValueError(msg)
    return Path(path), status


def folder(node: Any) -> Path:
    """Return the place of the group that was opened, or of an array that was opened itself."""
    return Path(cast("LocalStore", node.store).root)


def _in_buffer(array: zarr.Array[Any], i: int) -> NDArray[Any]:
    """Read a chunk into this thread's buffer, which its next chunk overwrites."""
    size = math.prod(array.chunks) * array.dtype.itemsize
    buffer = getattr(_OF_THREAD, "buffer", None)
    if buffer is None or len(buffer) < size:
        _found(array, i)  # before memory is taken for what may not be there
        buffer = _OF_THREAD.buffer = np.empty(size, np.uint8)
    chunk = buffer[:size].view(array.dtype).reshape(array.chunks)
    _fill(array, i, chunk)
    chunk.flags.writeable = False
    return chunk


def _fill(array: zarr.Array[Any], i: int, chunk: NDArray[Any]) -> None:
    """Read a whole chunk into an array of its shape."""
    data = chunk.reshape(-1).view(np.uint8)
    with _found(array, i).open("rb", buffering=0) as file:
        checksum = bytearray(_CHECKSUM_BYTES)
        whole = _read_into(file, data.data) and _read_into(file, memoryview(checksum))
    data.flags.writeable = False  # what the library asks for
    if not whole:
        raise ChunkError(i, "it ended while it was read")
    if google_crc32c.value(data) != int.from_bytes(checksum, "little"):
        raise ChunkError(i, "its checksum is not that of its bytes")


def _read_into(file: BinaryIO, place: memoryview) -> bool:
    """Fill memory from a file, and tell whether that had enough."""
    while place:
        n = file.readinto(place)  # type: ignore[attr-defined]
        if not n:
            return False
        place = place[n:]
    return True


def _announce(array: zarr.Array[Any], i: int) -> None:
    """Ask the system to read a chunk ahead. What is wrong with it is found when it is read."""
    if not hasattr(os, "posix_fadvise"):  # macOS
        return
    with suppress(ChunkError, OSError):
        file = os.open(_found(array, i), os.O_RDONLY)
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(file)


def _found(array: zarr.Array[Any], i: int) -> Path:
    """Return the path of a chunk that is there and of its size."""
    expected = math.prod(array.chunks) * array.dtype.itemsize + _CHECKSUM_BYTES
    try:
        path, size = find(folder(array), key(array, i))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ChunkError(i, "it is missing") from error
    except ValueError as error:
        raise ChunkError(i, str(error)) from error
    if size != expected:
        raise ChunkError(i, f"it has {size} bytes, not {expected}")
    return path


def key(array: zarr.Array[Any], i: int) -> str:
    """Return the way from the folder of an array, or of its group, to a chunk."""
    place = array.metadata.encode_chunk_key((i, *(0,) * (array.ndim - 1)))
    return f"{array.path}/{place}".removeprefix("/")
