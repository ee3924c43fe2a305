"""Blocks of arrays in memory, and of mapped files: views, never copies.

Blocks of an array in memory share its memory while they stay in this process, also on their way
through a scheduler in this process. A worker in another process gets a copy of the block's rows.
Blocks of a mapped file name the file and the rows, and map a piece at a time where they are read.
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

from daskkm.errors import FitError, on_worker
from daskkm.sizes import sizes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import DTypeLike, NDArray

# Arrays of blocks that are pickled within this process, by the name that stands for them there.
_ARRAYS: WeakValueDictionary[str, NDArray[Any]] = WeakValueDictionary()
_PICKLING = threading.local()


@dataclass(frozen=True)
class MappedFile:
    """A two-dimensional array in a file. Rows are mapped when they are read.

    Attributes
    ----------
    strides : tuple of int
        In bytes.
    offset : int
        Of the first element, in bytes from the beginning of the file.
    version : tuple of two ints
        Size and time of modification of the file.
    """

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    version: tuple[int, int]

    @classmethod
    def of(cls, array: Any) -> Self | None:
        """Return the file that an array is mapped from, or None if it is in memory.

        None also if the array may differ from the file: if it is mapped copy-on-write, or if the
        file has been removed or replaced.
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
            ends = [(file.rows(i, i + 1), array[i : i + 1]) for i in (0, len(array) - 1)]
        except (OSError, FitError):
            return None
        return file if all(a.tobytes() == b.tobytes() for a, b in ends) else None

    def rows(self, first: int, last: int) -> NDArray[Any]:
        """Map rows `first` to `last - 1`, at least one, as a read-only array."""
        shape, start = (last - first, self.shape[1]), self.offset + first * self.strides[0]
        length = np.dot(np.subtract(shape, 1), self.strides) + self.dtype.itemsize
        try:
            if _version(self.path) != self.version:
                msg = (
                    f"{self.path}: the file that X is mapped from has changed{on_worker()} (its "
                    "size or time of modification differs). Give all workers the same file"
                )
                raise FitError(msg)
            data = np.memmap(self.path, np.uint8, "r", start, (int(length),))
        except OSError as error:
            msg = (
                f"{self.path}: the file that X is mapped from cannot be read{on_worker()} "
                f"({error}). Put it where all workers find it, or give X in memory, np.array(X)"
            )
            raise FitError(msg) from error
        return np.ndarray(shape, self.dtype, data, strides=self.strides)


def _version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


class Rows:
    """A block of rows, read a piece at a time whenever it is iterated, and converted to a dtype."""

    def __init__(
        self, array: NDArray[Any] | MappedFile, first: int, last: int, dtype: np.dtype[Any]
    ) -> None:
        self._array = array
        self._first = first
        self._last = last
        self._dtype = dtype

    def __len__(self) -> int:
        return self._last - self._first

    def __iter__(self) -> Iterator[NDArray[Any]]:
        first = self._first
        for length in self._lengths():
            yield self._part(first, first + length)
            first += length

    def __reduce__(self) -> tuple[Any, ...]:
        """Take only these rows of an array in memory to another process."""
        array, first, last = self._array, self._first, self._last
        if isinstance(array, MappedFile):
            return Rows, (array, first, last, self._dtype)
        if getattr(_PICKLING, "by_reference", False):
            name = f"{id(array)}"
            _ARRAYS[name] = array
            return _rows_by_reference, (name, first, last, self._dtype)
        return Rows, (array[first:last], 0, last - first, self._dtype)

    def __sizeof__(self) -> int:
        if isinstance(self._array, MappedFile):
            return object.__sizeof__(self)
        return len(self) * self._array[:1].nbytes

    def whole(self) -> tuple[NDArray[Any], list[int]]:
        """Return all rows as one array, and the number of rows of each piece."""
        return self._part(self._first, self._last), self._lengths()

    def _lengths(self) -> list[int]:
        rows = rows_in(sizes.piece_bytes, self._array.shape[1], self._dtype)
        cuts = [*range(self._first, self._last, rows), self._last]
        return [hi - lo for lo, hi in pairwise(cuts)] or [0]

    def _part(self, first: int, last: int) -> NDArray[Any]:
        array = self._array
        rows = array.rows(first, last) if isinstance(array, MappedFile) else array[first:last]
        return rows.astype(self._dtype, copy=False)


def _rows_by_reference(name: str, first: int, last: int, dtype: np.dtype[Any]) -> Rows:
    return Rows(_ARRAYS[name], first, last, dtype)


@contextmanager
def pickling_by_reference() -> Iterator[None]:
    """Pickle blocks without their rows, in this thread, for use in this process only."""
    _PICKLING.by_reference = True
    try:
        yield
    finally:
        _PICKLING.by_reference = False


def in_blocks(
    array: NDArray[Any], n_bytes: int, dtype: DTypeLike, file: MappedFile | None = None
) -> da.Array:
    """Return an array, or the file it is mapped from, as a dask array of blocks of `Rows`.

    Parameters
    ----------
    array : ndarray of shape (n, d)
    n_bytes : int
        Of a block.
    dtype : numpy.dtype
        To which tiles are converted, a piece at a time.
    file : MappedFile, optional
        Source of the array.
    """
    (n, d), dtype = array.shape, np.dtype(dtype)
    rows = rows_in(n_bytes, d, dtype)
    name = f"rows-{uuid.uuid4()}"  # a name made from the content would cost a read of it
    cuts = [*range(0, n, rows), n] if n else [0, 0]
    source = array if file is None else file
    graph = {(name, i, 0): Rows(source, lo, hi, dtype) for i, (lo, hi) in enumerate(pairwise(cuts))}
    lengths = tuple(hi - lo for lo, hi in pairwise(cuts))
    return da.Array(graph, name, (lengths, (d,)), dtype=dtype, meta=np.empty((0, 0), dtype))


def as_arrays(
    array: NDArray[Any],
    n_bytes: int | None = None,
    dtype: DTypeLike | None = None,
    file: MappedFile | None = None,
) -> da.Array:
    """Return an array as a dask array of NumPy blocks: views, where nothing is converted.

    Parameters are those of `in_blocks`; by default blocks are short, and nothing is converted.
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
    """Return the number of rows of d features in so many bytes, at least one."""
    return max(1, n_bytes // (d * dtype.itemsize))
