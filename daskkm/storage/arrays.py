"""Zarr arrays with chunks along the first axis only, read and written without Zarr's own code.

A chunk holds whole rows, the last chunk is padded, and a CRC-32C follows. Local chunks of tiles are
not compressed, and are read into existing memory: new memory costs ten times as much as the page
cache. Zarr would also read a missing chunk as zeros. Chunks of object stores are compressed by
zstd, and several are fetched ahead.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from daskkm.block_sizes import sizes

if TYPE_CHECKING:
    from collections.abc import Buffer, Iterator, Mapping  # type: ignore[attr-defined]
    from concurrent.futures import Future

    import zarr
    from numpy.typing import NDArray

    from daskkm.storage.locations import Location

_CHECKSUM_BYTES = 4
_THREAD_LOCAL = threading.local()
_ZSTD_LEVEL = 1


class ChunkError(Exception):
    """Missing or damaged chunk, with its index and the problem."""


@dataclass(frozen=True)
class ChunkedArray:
    """Array of shape (n, …) at a location, in chunks of `rows` rows."""

    location: Location
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    rows: int
    dimensions: tuple[str, ...]
    compressed: bool = False
    fill_value: int | str = 0

    @classmethod
    def from_metadata(cls, location: Location, metadata: Mapping[str, Any]) -> ChunkedArray:
        """Return the array with this Zarr metadata; raise ValueError for other metadata."""
        codecs = [codec["name"] for codec in metadata["codecs"]]
        array = cls(
            location,
            tuple(metadata["shape"]),
            np.dtype(metadata["data_type"]),
            metadata["chunk_grid"]["configuration"]["chunk_shape"][0],
            tuple(metadata["dimension_names"]),
            "zstd" in codecs,
            metadata["fill_value"],
        )
        if array.metadata != metadata:
            msg = "not an array of daskkm"
            raise ValueError(msg)
        return array

    @property
    def metadata(self) -> dict[str, Any]:
        """Zarr's metadata of the array, version 3."""
        little = {"configuration": {"endian": "little"}} if self.dtype.itemsize > 1 else {}
        zstd = {"name": "zstd", "configuration": {"level": _ZSTD_LEVEL, "checksum": False}}
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.shape),
            "data_type": self.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": self._chunk_shape}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": self.fill_value,
            "codecs": [
                {"name": "bytes", **little},
                *([zstd] if self.compressed else []),
                {"name": "crc32c"},
            ],
            "attributes": {},
            "dimension_names": list(self.dimensions),
            "storage_transformers": [],
        }

    def open_zarr(self) -> zarr.Array[Any]:
        """Return the array as a read-only Zarr array."""
        import zarr
        from zarr.storage import StorePath

        store, path = self.location.open_zarr()
        return zarr.Array.from_dict(StorePath(store, path), self.metadata)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def fill(self) -> float:
        """Value of rows that are not written."""
        return float(self.fill_value)

    @property
    def _chunk_shape(self) -> list[int]:
        return [self.rows, *(max(1, n) for n in self.shape[1:])]

    @property
    def chunk_bytes(self) -> int:
        """Size of a chunk in memory."""
        return math.prod(self._chunk_shape) * self.dtype.itemsize

    @property
    def n_chunks(self) -> int:
        """Number of chunks."""
        return -(-len(self) // self.rows)

    def resize(self, n: int) -> ChunkedArray:
        """Return the array with `n` rows; nothing is written."""
        return replace(self, shape=(n, *self.shape[1:]))

    def key(self, i: int) -> str:
        """Return the path of chunk i relative to the array."""
        return "/".join(["c", str(i), *["0"] * (len(self.shape) - 1)])

    def read(self, first: int, last: int) -> NDArray[Any]:
        """Read rows first … last - 1 into new memory.

        Raise ChunkError if a chunk is missing or damaged, and OSError if a chunk cannot be read.
        """
        result = np.empty((last - first, *self.shape[1:]), self.dtype)
        start = first - first % self.rows
        for chunk in self.stream(start, last):
            begin = max(first, start)
            result[begin - first : start + len(chunk) - first] = chunk[begin - start :]
            start += len(chunk)
        return result

    def stream(self, first: int, last: int) -> Iterator[NDArray[Any]]:
        """Yield rows first … last - 1 chunk by chunk, read-only, in a buffer that is reused.

        `first` is the first row of a chunk. The next chunks are fetched meanwhile.
        """
        indices = range(first // self.rows, -(-last // self.rows))
        chunks = self._read_in_turn(indices) if self.location.is_local else self._fetch(indices)
        for i, chunk in zip(indices, chunks, strict=True):
            yield chunk[: last - i * self.rows]

    def _read_in_turn(self, indices: range) -> Iterator[NDArray[Any]]:
        """Yield local chunks; the system prefetches the next chunk."""
        for i in indices:
            if i + 1 < self.n_chunks:
                (self.location / self.key(i + 1)).prefetch()
            yield self._read_chunk(i)

    def _fetch(self, indices: range) -> Iterator[NDArray[Any]]:
        """Yield remote chunks; a pool of threads fetches and decodes the next chunks."""
        pool, ahead = _start_pool(), iter(indices)
        futures: deque[Future[NDArray[Any]]] = deque()
        try:
            for i in ahead:
                futures.append(pool.submit(self._decode_new, i))
                if len(futures) == sizes.fetched_chunks:
                    break
            while futures:
                chunk = futures.popleft().result()
                if (later := next(ahead, None)) is not None:
                    futures.append(pool.submit(self._decode_new, later))
                yield chunk
        finally:
            for future in futures:
                future.cancel()

    def _decode_new(self, i: int) -> NDArray[Any]:
        """Fetch a chunk into memory of its own."""
        try:
            return self._decode(i, (self.location / self.key(i)).read(), None)
        except FileNotFoundError as error:
            raise ChunkError(i, "missing file") from error

    def _read_chunk(self, i: int) -> NDArray[Any]:
        """Return a chunk in the buffers of this thread."""
        size = self.chunk_bytes + self.chunk_bytes // 128 + 4096  # more than zstd ever takes
        buffer = get_buffer("stored", size)[:size]
        try:
            data = (self.location / self.key(i)).read_into(buffer.data)
        except FileNotFoundError as error:
            raise ChunkError(i, "missing file") from error
        return self._decode(i, data, "decoded")

    def _decode(self, i: int, data: Buffer, buffer: str | None) -> NDArray[Any]:
        """Check the checksum of a stored chunk, and return its rows, read-only."""
        stored = np.frombuffer(data, np.uint8)
        stored.flags.writeable = False  # google_crc32c requires this
        payload, checksum = stored[:-_CHECKSUM_BYTES], stored[-_CHECKSUM_BYTES:]
        if not self.compressed and len(payload) != self.chunk_bytes:
            raise ChunkError(i, "wrong size")
        if google_crc32c.value(payload) != int.from_bytes(checksum.tobytes(), "little"):
            raise ChunkError(i, "wrong checksum")
        if self.compressed:
            payload = self._decompress(i, payload, buffer)
        if payload.ctypes.data % self.dtype.itemsize:  # memory of the network
            payload = payload.copy()
        rows = payload.view(self.dtype).reshape(self._chunk_shape)
        rows.flags.writeable = False
        return rows

    def _decompress(self, i: int, payload: NDArray[np.uint8], buffer: str | None) -> Any:
        from numcodecs import zstd

        size = self.chunk_bytes
        memory = get_buffer(buffer, size) if buffer else np.empty(size, np.uint8)
        try:
            zstd.decompress(payload, memory[:size])
        except (RuntimeError, ValueError) as error:
            raise ChunkError(i, f"not of {size} bytes") from error
        return memory[:size]

    def write(self, first: int, rows: NDArray[Any]) -> None:
        """Write rows from `first` on, the first row of a chunk; pad the last chunk."""
        for start in range(0, len(rows), self.rows):
            self._write_chunk((first + start) // self.rows, rows[start : start + self.rows])

    def _write_chunk(self, i: int, rows: NDArray[Any]) -> None:
        whole = np.ascontiguousarray(rows, self.dtype)
        if len(rows) < self.rows:
            whole = np.full(self._chunk_shape, self.fill, self.dtype)
            whole[: len(rows)] = rows
        data: Any = whole.reshape(-1).view(np.uint8).data.toreadonly()
        if self.compressed:
            from numcodecs import zstd

            data = zstd.compress(data, _ZSTD_LEVEL)
        checksum = google_crc32c.value(np.frombuffer(data, np.uint8))
        (self.location / self.key(i)).write(data, checksum.to_bytes(_CHECKSUM_BYTES, "little"))

    def append(self, first: int, rows: NDArray[Any]) -> None:
        """Write rows from any `first` on, which follow the rows of the array before `first`."""
        start = first - first % self.rows
        before = self.resize(first).read(start, first)
        self.write(start, np.concatenate([before, rows]))

    def check_sizes(self) -> None:
        """Raise ChunkError if a chunk is missing or has another size, without reading chunks."""
        found = (self.location / "c").sizes()
        expected = self.chunk_bytes + _CHECKSUM_BYTES
        for i in range(self.n_chunks):
            size = found.get(self.key(i).removeprefix("c/"))
            if size is None:
                raise ChunkError(i, "missing file")
            if not self.compressed and size != expected:
                raise ChunkError(i, "wrong size")


def get_buffer(name: str, size: int) -> NDArray[np.uint8]:
    """Return a buffer of this thread with at least this size, and any content."""
    buffer: NDArray[np.uint8] | None = getattr(_THREAD_LOCAL, name, None)
    if buffer is None or len(buffer) < size:
        buffer = np.empty(size, np.uint8)
        setattr(_THREAD_LOCAL, name, buffer)
    return buffer


@cache
def _start_pool() -> ThreadPoolExecutor:
    """Return the pool of threads of this process, which fetch chunks."""
    return ThreadPoolExecutor(sizes.fetch_threads, "daskkm-fetch")
