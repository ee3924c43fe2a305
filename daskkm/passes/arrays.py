"""Blocks of arrays in memory, and of mapped files: views, never copies.

Blocks of an array in memory share the array's memory in this process, and through a scheduler in
this process. A worker in another process gets a copy of the block's rows. Blocks of a mapped file
name the file and the rows, and map a piece at a time.
"""

from __future__ import annotations

import mmap
import threading
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakValueDictionary

import dask.array as da
import numpy as np

from daskkm.block_sizes import sizes
from daskkm.errors import FitError, on_worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import DTypeLike, NDArray

# Arrays of blocks that are pickled within this process, by id.
_ARRAYS: WeakValueDictionary[int, NDArray[Any]] = WeakValueDictionary()
_PICKLING = threading.local()


@dataclass(frozen=True)
class MappedFile:
    """A two-dimensional array in a file; each read maps rows."""

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in bytes
    offset: int  # of the first element, in bytes from the beginning of the file
    version: tuple[int, int]  # size and time of modification of the file

    @classmethod
    def of(cls, array: Any) -> Self | None:
        """Return the file of a mapped array, or None if an array is in memory.

        None also if the array may differ from the file: an array that is mapped copy-on-write, or
        a file that was removed or replaced.
        """
        if not isinstance(array, np.ndarray) or array.ndim != 2:
            return None
        mapped: Any = array
        while isinstance(mapped, np.ndarray) and not isinstance(mapped.base, mmap.mmap):
            mapped = mapped.base
        name = getattr(mapped, "filename", None)
        if name is None or mapped.mode == "c" or not array.size or min(array.strides) <= 0:
            return None
        offset = mapped.offset + array.ctypes.data - mapped.ctypes.data
        try:
            path = Path(name).resolve()
            file = cls(path, array.dtype, array.shape, array.strides, offset, _version(path))
            ends = [(file[i : i + 1], array[i : i + 1]) for i in (0, len(array) - 1)]
        except (OSError, FitError):
            return None
        return file if all(a.tobytes() == b.tobytes() for a, b in ends) else None

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """Map rows, at least one, as a read-only array."""
        shape = (rows.stop - rows.start, self.shape[1])
        start = self.offset + rows.start * self.strides[0]
        length = np.dot(np.subtract(shape, 1), self.strides) + self.dtype.itemsize
        try:
            if _version(self.path) != self.version:
                msg = (
                    f"{self.path}: the file of X has changed{on_worker()} in size or time of "
                    "modification. Give all workers the same file"
                )
                raise FitError(msg)
            data = np.memmap(self.path, np.uint8, "r", start, (int(length),))
        except OSError as error:
            msg = (
                f"{self.path}: the file of X cannot be read{on_worker()} ({error}). "
                "Move the file to where all workers find it, or give X in memory, np.array(X)"
            )
            raise FitError(msg) from error
        return np.ndarray(shape, self.dtype, data, strides=self.strides)


def _version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@dataclass(frozen=True, eq=False, repr=False)
class Rows:
    """A block of rows; each iteration reads the block piece by piece, converted to a dtype."""

    array: NDArray[Any] | MappedFile
    first: int
    last: int
    dtype: np.dtype[Any]

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self._read(lo, hi) for lo, hi in self._pieces())

    def __reduce__(self) -> tuple[Any, ...]:
        """Send another process only these rows of an array in memory."""
        array, first, last = self.array, self.first, self.last
        if isinstance(array, MappedFile):
            return Rows, (array, first, last, self.dtype)
        if getattr(_PICKLING, "by_reference", False):
            _ARRAYS[id(array)] = array
            return _rows_by_reference, (id(array), first, last, self.dtype)
        return Rows, (array[first:last], 0, last - first, self.dtype)

    def __sizeof__(self) -> int:
        if isinstance(self.array, MappedFile):
            return object.__sizeof__(self)
        return len(self) * self.array[:1].nbytes

    def whole(self) -> tuple[NDArray[Any], list[int]]:
        """Return all rows as one array, and the number of rows of each piece."""
        return self._read(self.first, self.last), [hi - lo for lo, hi in self._pieces()]

    def _pieces(self) -> list[tuple[int, int]]:
        rows = rows_in(sizes.piece_bytes, self.array.shape[1], self.dtype)
        return _cut(self.first, self.last, rows)

    def _read(self, first: int, last: int) -> NDArray[Any]:
        return self.array[first:last].astype(self.dtype, copy=False)


def _rows_by_reference(name: int, first: int, last: int, dtype: np.dtype[Any]) -> Rows:
    return Rows(_ARRAYS[name], first, last, dtype)


def _cut(first: int, last: int, rows: int) -> list[tuple[int, int]]:
    """Return the bounds of parts of `rows` rows, at least one part."""
    return list(pairwise([*range(first, last, rows), last])) or [(first, last)]


@contextmanager
def pickling_by_reference() -> Iterator[None]:
    """Pickle blocks without rows, in this thread, for use in this process only."""
    _PICKLING.by_reference = True
    try:
        yield
    finally:
        _PICKLING.by_reference = False


def in_blocks(
    array: NDArray[Any], n_bytes: int, dtype: DTypeLike, file: MappedFile | None = None
) -> da.Array:
    """Return an array as a dask array of blocks of `Rows`.

    Parameters
    ----------
    array : ndarray of shape (n, d)
    n_bytes : int
        Size of a block.
    dtype : numpy.dtype
        Dtype to which each piece is converted.
    file : MappedFile, optional
        File from which `array` is mapped.
    """
    (n, d), dtype = array.shape, np.dtype(dtype)
    parts = _cut(0, n, rows_in(n_bytes, d, dtype))
    name = f"rows-{uuid.uuid4()}"  # a name made from the content would cost a read
    source = array if file is None else file
    graph = {(name, i, 0): Rows(source, lo, hi, dtype) for i, (lo, hi) in enumerate(parts)}
    lengths = tuple(hi - lo for lo, hi in parts)
    return da.Array(graph, name, (lengths, (d,)), dtype=dtype, meta=np.empty((0, 0), dtype))


def as_arrays(
    array: NDArray[Any],
    n_bytes: int | None = None,
    dtype: DTypeLike | None = None,
    file: MappedFile | None = None,
) -> da.Array:
    """Return an array as a dask array of NumPy blocks: views, unless the dtype is converted.

    Parameters are those of `in_blocks`; by default blocks are short and keep their dtype.
    """
    dtype = array.dtype if dtype is None else dtype
    n_bytes = n_bytes or max(sizes.piece_bytes, array.nbytes // sizes.blocks_max)
    return in_blocks(array, n_bytes, dtype, file).map_blocks(
        _whole,
        token="tiles",  # noqa: S106 (the name of the tasks)
        dtype=dtype,
        meta=np.empty((0, 0), dtype),
    )


def _whole(rows: Rows) -> NDArray[Any]:
    return rows.whole()[0]


def rows_in(n_bytes: int, d: int, dtype: np.dtype[Any]) -> int:
    """Return the number of rows of d features in `n_bytes`, at least one."""
    return max(1, n_bytes // (d * dtype.itemsize))
