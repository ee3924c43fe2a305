"""Read chunks of a local Zarr array into existing memory, and check their size and CRC-32C.

Chunks are uncompressed and cut along the first axis only: whole rows, with the last chunk padded,
then a CRC-32C of the rows. Zarr would read into new memory, which costs ten times as much as the
page cache, and would read a missing chunk as zeros.
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
_THREAD_LOCAL = threading.local()


class ChunkError(Exception):
    """Missing or damaged chunk, with its index and the problem."""


def read_rows(array: zarr.Array[Any], first: int, last: int) -> NDArray[Any]:
    """Read rows first … last - 1 into new memory.

    Raise ChunkError if a chunk is missing or damaged, and OSError if a chunk cannot be read.
    """
    rows = array.chunks[0]
    result = np.empty((last - first, *array.shape[1:]), array.dtype)
    for i in range(first // rows, -(-last // rows)):
        begin, end = max(first, i * rows), min(last, (i + 1) * rows)
        out = result[begin - first : end - first]
        if end - begin == rows:
            _read_whole(array, i, out)
        else:
            out[:] = _read_into_buffer(array, i)[begin - i * rows : end - i * rows]
    return result


def read_chunk(array: zarr.Array[Any], first: int, last: int) -> NDArray[Any]:
    """Return rows first … last - 1 of one chunk, read-only, in the buffer of this thread.

    `first` is the first row of a chunk. The next call in this thread overwrites the buffer. The
    system prefetches the next chunk. Errors are the same as for `read_rows`.
    """
    i = first // array.chunks[0]
    if last < array.shape[0]:
        _prefetch(array, i + 1)
    return _read_into_buffer(array, i)[: last - first]


def check_sizes(array: zarr.Array[Any]) -> None:
    """Raise ChunkError if a chunk is missing or has another size, without reading chunks."""
    for i in range(array.cdata_shape[0]):
        with _translate_missing(i):
            _check_size(array, i, os.stat(_get_path(array, i)))  # noqa: PTH116 (a Path takes twice as long)


def get_folder(node: Any) -> Path:
    """Return the folder of the Zarr store of a group or an array."""
    return Path(cast("LocalStore", node.store).root)


def get_key(array: zarr.Array[Any], i: int) -> str:
    """Return the path of a chunk relative to `get_folder`."""
    name = array.metadata.encode_chunk_key((i, *(0,) * (array.ndim - 1)))
    return f"{array.path}/{name}".removeprefix("/")


def _get_path(array: zarr.Array[Any], i: int) -> str:
    return f"{cast('LocalStore', array.store).root}/{get_key(array, i)}"


def _read_into_buffer(array: zarr.Array[Any], i: int) -> NDArray[Any]:
    """Return a chunk, read into the buffer of this thread."""
    size = math.prod(array.chunks) * array.dtype.itemsize
    buffer = getattr(_THREAD_LOCAL, "buffer", None)
    if buffer is None or len(buffer) < size:
        buffer = _THREAD_LOCAL.buffer = np.empty(size, np.uint8)
    chunk = buffer[:size].view(array.dtype).reshape(array.chunks)
    _read_whole(array, i, chunk)
    chunk.flags.writeable = False
    return chunk


def _read_whole(array: zarr.Array[Any], i: int, chunk: NDArray[Any]) -> None:
    """Read a chunk into an array of the shape of a chunk, and compare the checksum."""
    data = chunk.reshape(-1).view(np.uint8)
    checksum = bytearray(_CHECKSUM_BYTES)
    with _translate_missing(i), open(_get_path(array, i), "rb", buffering=0) as file:  # noqa: PTH123
        _check_size(array, i, os.fstat(file.fileno()))
        complete = _read_into(file, data.data) and _read_into(file, memoryview(checksum))
    data.flags.writeable = False  # google_crc32c requires this
    if not complete:
        raise ChunkError(i, "unexpected end of file")
    if google_crc32c.value(data) != int.from_bytes(checksum, "little"):
        raise ChunkError(i, "wrong checksum")


def _read_into(file: BinaryIO, memory: memoryview) -> bool:
    """Read from a file until the memory is full; return False if the file ends first."""
    while memory:
        n = file.readinto(memory)  # type: ignore[attr-defined]
        if not n:
            return False
        memory = memory[n:]
    return True


def _prefetch(array: zarr.Array[Any], i: int) -> None:
    """Ask the system to prefetch a chunk, and ignore errors: a later read raises them."""
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
        raise ChunkError(i, f"{status.st_size} bytes, not {expected}")


@contextmanager
def _translate_missing(i: int) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ChunkError(i, "missing file") from error
