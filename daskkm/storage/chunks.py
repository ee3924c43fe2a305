"""Read chunks of a local Zarr array of daskkm straight into memory, and check them.

Chunks are uncompressed and cut along the first axis only: the bytes of whole rows, the last chunk
padded, then their CRC-32C. Zarr reads the same bytes, but into new memory, and a missing chunk as
zeros. Workers give memory back after each task, and new memory costs ten times as much as
reading from the page cache.
"""

from __future__ import annotations

import math
import os
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import google_crc32c
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import zarr
    from numpy.typing import NDArray
    from zarr.storage import LocalStore

_CHECKSUM_BYTES = 4
_OF_THREAD = threading.local()


class ChunkError(Exception):
    """A chunk that is missing or changed: its index, and a reason."""


def read_rows(array: zarr.Array[Any], first: int, last: int) -> NDArray[Any]:
    """Read rows first … last - 1, in whatever chunks they lie, into new memory.

    Raises
    ------
    ChunkError
        If a chunk is missing, not of its size, or does not match its checksum.
    OSError
        If a chunk cannot be read.
    """
    rows = array.chunks[0]
    found = np.empty((last - first, *array.shape[1:]), array.dtype)
    for i in range(first // rows, -(-last // rows)):
        begin, end = max(first, i * rows), min(last, (i + 1) * rows)
        place = found[begin - first : end - first]
        if end - begin == rows:
            _read_whole(array, i, place)
        else:
            place[:] = _read_into_buffer(array, i)[begin - i * rows : end - i * rows]
    return found


def read_chunk(array: zarr.Array[Any], first: int, last: int) -> NDArray[Any]:
    """Read rows first … last - 1 of one chunk into a buffer of this thread, read-only.

    `first` is the first row of a chunk. The next call in this thread overwrites the buffer. The
    system is asked to read the next chunk meanwhile. Errors are those of `read`.
    """
    i = first // array.chunks[0]
    if last < array.shape[0]:
        _prefetch(array, i + 1)
    return _read_into_buffer(array, i)[: last - first]


def check_sizes(array: zarr.Array[Any]) -> None:
    """Raise ChunkError if a chunk is missing or not of its size; read none."""
    for i in range(array.cdata_shape[0]):
        with _translate_missing(i):
            _check_size(array, i, os.stat(_get_path(array, i)))  # noqa: PTH116 (a Path costs twice as much)


def get_folder(node: Any) -> Path:
    """Return the folder of the group that was opened, or of an array that was opened itself."""
    return Path(cast("LocalStore", node.store).root)


def get_key(array: zarr.Array[Any], i: int) -> str:
    """Return the path of a chunk within the folder of the array, or of its group."""
    name = array.metadata.encode_chunk_key((i, *(0,) * (array.ndim - 1)))
    return f"{array.path}/{name}".removeprefix("/")


def _get_path(array: zarr.Array[Any], i: int) -> str:
    return f"{cast('LocalStore', array.store).root}/{get_key(array, i)}"


def _read_into_buffer(array: zarr.Array[Any], i: int) -> NDArray[Any]:
    """Read a chunk into the buffer of this thread."""
    size = math.prod(array.chunks) * array.dtype.itemsize
    buffer = getattr(_OF_THREAD, "buffer", None)
    if buffer is None or len(buffer) < size:
        buffer = _OF_THREAD.buffer = np.empty(size, np.uint8)
    chunk = buffer[:size].view(array.dtype).reshape(array.chunks)
    _read_whole(array, i, chunk)
    chunk.flags.writeable = False
    return chunk


def _read_whole(array: zarr.Array[Any], i: int, chunk: NDArray[Any]) -> None:
    """Read a whole chunk into an array of its shape."""
    data = chunk.reshape(-1).view(np.uint8)
    checksum = bytearray(_CHECKSUM_BYTES)
    with _translate_missing(i), open(_get_path(array, i), "rb", buffering=0) as file:  # noqa: PTH123
        _check_size(array, i, os.fstat(file.fileno()))
        whole = _read_into(file, data.data) and _read_into(file, memoryview(checksum))
    data.flags.writeable = False  # as google_crc32c asks for
    if not whole:
        raise ChunkError(i, "it ended while it was read")
    if google_crc32c.value(data) != int.from_bytes(checksum, "little"):
        raise ChunkError(i, "its checksum is not that of its bytes")


def _read_into(file: BinaryIO, place: memoryview) -> bool:
    """Fill memory from a file; return False if the file ends before."""
    while place:
        n = file.readinto(place)  # type: ignore[attr-defined]
        if not n:
            return False
        place = place[n:]
    return True


def _prefetch(array: zarr.Array[Any], i: int) -> None:
    """Ask the system to read a chunk ahead. A later read finds its errors."""
    if not hasattr(os, "posix_fadvise"):  # macOS
        return
    with suppress(OSError):
        file = os.open(_get_path(array, i), os.O_RDONLY)
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(file)


def _check_size(array: zarr.Array[Any], i: int, status: os.stat_result) -> None:
    expected = math.prod(array.chunks) * array.dtype.itemsize + _CHECKSUM_BYTES
    if status.st_size != expected:
        raise ChunkError(i, f"it has {status.st_size} bytes, not {expected}")


@contextmanager
def _translate_missing(i: int) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ChunkError(i, "it is missing") from error
