"""Chunks of a local Zarr array of daskkm's, read straight into place and checked.

They are uncompressed and cut along the first axis only: the bytes of whole rows, the last chunk
padded, then their CRC-32C. Zarr reads the same bytes, but into memory of its own first, and a
missing chunk as zeros. In a worker process that matters: its memory is given back after
each task, and new memory costs ten times what reading from the page cache does.
"""

from __future__ import annotations

import math
import os
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
    OSError
        If a chunk is not there, or cannot be read.
    ValueError
        If one is not of its size, or its checksum is not that of its bytes.
    """
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
        _check_size(array, i, _path(array, i).stat().st_size)


def folder(node: Any) -> Path:
    """Return the place of the group that was opened, or of an array that was opened itself."""
    return Path(cast("LocalStore", node.store).root)


def _in_buffer(array: zarr.Array[Any], i: int) -> NDArray[Any]:
    """Read a chunk into this thread's buffer, which its next chunk overwrites."""
    size = _bytes(array)
    buffer = getattr(_OF_THREAD, "buffer", None)
    if buffer is None or len(buffer) < size:
        buffer = _OF_THREAD.buffer = np.empty(size, np.uint8)
    chunk = buffer[:size].view(array.dtype).reshape(array.chunks)
    _fill(array, i, chunk)
    chunk.flags.writeable = False
    return chunk


def _fill(array: zarr.Array[Any], i: int, chunk: NDArray[Any]) -> None:
    """Read a whole chunk into an array of its shape."""
    data = chunk.reshape(-1).view(np.uint8)
    with _path(array, i).open("rb", buffering=0) as file:
        _check_size(array, i, os.fstat(file.fileno()).st_size)
        _read_into(file, data.data)
        checksum = bytearray(_CHECKSUM_BYTES)
        _read_into(file, memoryview(checksum))
    data.flags.writeable = False  # what the library asks for
    if google_crc32c.value(data) != int.from_bytes(checksum, "little"):
        msg = f"the checksum of chunk {_key(array, i)} is not that of its bytes"
        raise ValueError(msg)


def _read_into(file: BinaryIO, place: memoryview) -> None:
    while place:
        n = file.readinto(place)  # type: ignore[attr-defined]
        if not n:
            msg = f"{file.name} ends {len(place)} bytes too soon"
            raise ValueError(msg)
        place = place[n:]


def _announce(array: zarr.Array[Any], i: int) -> None:
    """Ask the system to read a chunk ahead. What is wrong with it is found when it is read."""
    if not hasattr(os, "posix_fadvise"):  # macOS
        return
    with suppress(OSError), _path(array, i).open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def _check_size(array: zarr.Array[Any], i: int, size: int) -> None:
    if size != _bytes(array) + _CHECKSUM_BYTES:
        msg = f"chunk {_key(array, i)} has {size} bytes, not {_bytes(array) + _CHECKSUM_BYTES}"
        raise ValueError(msg)


def _bytes(array: zarr.Array[Any]) -> int:
    """Return the size of a chunk without its checksum."""
    return math.prod(array.chunks) * array.dtype.itemsize


def _key(array: zarr.Array[Any], i: int) -> str:
    return str(array.metadata.encode_chunk_key((i, *(0,) * (array.ndim - 1))))


def _path(array: zarr.Array[Any], i: int) -> Path:
    return folder(array) / array.path / _key(array, i)
