"""Rows of an array in memory, or of a file that is mapped into it: views, never copies.

Blocks of an array that is in memory share its memory, as long as they stay in this process, also
where they pass through a scheduler that lives in it; a worker in another process gets a copy of its
own rows. An array that is mapped from a file stays there:
blocks name the file and the place in it, and map it piece by piece, wherever they are read.
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

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import DTypeLike, NDArray

_PIECE_BYTES = 4 << 20
_MANY_BLOCKS = 4096

# Arrays that blocks are of, by what stands for them in a pickle that does not leave this process.
_ARRAYS: WeakValueDictionary[str, NDArray[Any]] = WeakValueDictionary()
_PICKLING = threading.local()


@dataclass(frozen=True)
class MappedFile:
    """An array in a file, of which rows are mapped when they are asked for, and no longer.

    Attributes
    ----------
    path : Path
    dtype : numpy.dtype
    shape : tuple of int
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
        """Return the file that an array of two dimensions is mapped from.

        Returns
        -------
        MappedFile or None
            None if the array is in memory: also if it may differ from the file, as one that is
            mapped copy-on-write, or the file has been removed or replaced.
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
            found = cls(path, array.dtype, array.shape, array.strides, offset, _version(path))
            ends = [(found.rows(i, i + 1), array[i : i + 1]) for i in (0, len(array) - 1)]
        except (OSError, FitError):
            return None
        return found if all(a.tobytes() == b.tobytes() for a, b in ends) else None

    def rows(self, first: int, last: int) -> NDArray[Any]:
        """Map some rows, at least one, as a read-only array.

        Raises
        ------
        FitError
            If the file is missing here, or is not what it was.
        """
        shape, start = (last - first, self.shape[1]), self.offset + first * self.strides[0]
        length = np.dot(np.subtract(shape, 1), self.strides) + self.dtype.itemsize
        try:
            same = _version(self.path) == self.version
            data = np.memmap(self.path, np.uint8, "r", start, (int(length),)) if same else None
        except (OSError, ValueError) as error:
            msg = (
                f"{self.path}: the file that X is mapped from cannot be read{on_worker()} "
                f"({error}); put it where all workers find it, or give X in memory, np.array(X)"
            )
            raise FitError(msg) from error
        if data is None:
            msg = (
                f"{self.path}: the file that X is mapped from is another one{on_worker()}, or was "
                "written to meanwhile (its size or time of modification differs); give all workers "
                "the same file"
            )
            raise FitError(msg)
        return np.ndarray(shape, self.dtype, data, strides=self.strides)


def _version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


class Rows:
    """A run of rows that are made piece by piece, whenever it is iterated.

    Parameters
    ----------
    array : ndarray or MappedFile, of shape (n, d)
    first, last : int
        Which rows.
    dtype : numpy.dtype
        To which they are converted.
    """

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
        """Of an array in memory only these rows leave the process."""
        array, first, last = self._array, self._first, self._last
        if isinstance(array, MappedFile):
            return Rows, (array, first, last, self._dtype)
        if getattr(_PICKLING, "stays", False):
            name = f"{id(array)}"
            _ARRAYS[name] = array
            return _shared, (name, first, last, self._dtype)
        return Rows, (array[first:last], 0, last - first, self._dtype)

    def __sizeof__(self) -> int:
        if isinstance(self._array, MappedFile):
            return object.__sizeof__(self)
        return len(self) * self._array[:1].nbytes

    def whole(self) -> tuple[NDArray[Any], list[int]]:
        """Return all of them as one array, and how many rows are in each piece."""
        return self._part(self._first, self._last), self._lengths()

    def _lengths(self) -> list[int]:
        rows = rows_in(_PIECE_BYTES, self._array.shape[1], self._dtype)
        cuts = [*range(self._first, self._last, rows), self._last]
        return [hi - lo for lo, hi in pairwise(cuts)] or [0]

    def _part(self, first: int, last: int) -> NDArray[Any]:
        if not isinstance(self._array, MappedFile):
            found = self._array[first:last]
        else:
            found = self._array.rows(first, last)
        return found.astype(self._dtype, copy=False)


def _shared(name: str, first: int, last: int, dtype: np.dtype[Any]) -> Rows:
    return Rows(_ARRAYS[name], first, last, dtype)


@contextmanager
def staying() -> Iterator[None]:
    """Pickle blocks without their rows: what is pickled in this thread stays in this process."""
    _PICKLING.stays = True
    try:
        yield
    finally:
        _PICKLING.stays = False


def in_blocks(array: NDArray[Any], n_bytes: int, dtype: DTypeLike) -> da.Array:
    """Return an array as blocks of `Rows`.

    Parameters
    ----------
    array : ndarray of shape (n, d)
        In memory, or mapped from a file.
    n_bytes : int
        Of a block, at least.
    dtype : numpy.dtype
        To which tiles are converted, a piece at a time.

    Returns
    -------
    dask array of shape (n, d)
        For functions that know what `Rows` are.
    """
    (n, d), dtype = array.shape, np.dtype(dtype)
    source = MappedFile.of(array) or array
    rows = rows_in(n_bytes, d, dtype)
    name = f"rows-{uuid.uuid4()}"  # one made from the content would cost a read of it
    cuts = [*range(0, n, rows), n] if n else [0, 0]
    graph = {(name, i, 0): Rows(source, lo, hi, dtype) for i, (lo, hi) in enumerate(pairwise(cuts))}
    lengths = tuple(hi - lo for lo, hi in pairwise(cuts))
    return da.Array(graph, name, (lengths, (d,)), dtype=dtype, meta=np.empty((0, 0), dtype))


def as_arrays(
    array: NDArray[Any], n_bytes: int | None = None, dtype: DTypeLike | None = None
) -> da.Array:
    """Return an array as blocks that are arrays: views, where nothing is converted.

    Parameters
    ----------
    array, n_bytes, dtype
        As for `in_blocks`; by default short blocks, and nothing is converted.

    Returns
    -------
    dask array of shape (n, d)
    """
    dtype = array.dtype if dtype is None else dtype
    n_bytes = n_bytes or max(_PIECE_BYTES, array.nbytes // _MANY_BLOCKS)
    return in_blocks(array, n_bytes, dtype).map_blocks(
        _whole,
        token="tiles",  # noqa: S106 (the name of the tasks)
        dtype=dtype,
        meta=np.empty((0, 0), dtype),
    )


def _whole(rows: Rows) -> NDArray[Any]:
    return rows.whole()[0]


def rows_in(n_bytes: int, d: int, dtype: np.dtype[Any]) -> int:
    """Return how many rows of d features take so many bytes, at least one."""
    return max(1, n_bytes // (d * dtype.itemsize))
