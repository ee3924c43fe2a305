"""Tiles of any X as a dask array, with their weights."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np

from daskkm.block_sizes import sizes
from daskkm.errors import FitError
from daskkm.kernels.dtypes import SUPPORTED_DTYPES, check_dtype, check_exact
from daskkm.passes import arrays, inputs
from daskkm.passes.arrays import MappedFile
from daskkm.passes.inputs import TOO_LARGE
from daskkm.passes.memory import block_bytes
from daskkm.passes.scheduler import compute, persist
from daskkm.passes.short_blocks import group_short_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, eq=False)
class Tiles:
    """Tiles of any kind of X, with their weights.

    Attributes
    ----------
    source : TileStore, or NumPy, dask, Zarr or HDF5 array
        X as returned by `daskkm.passes.inputs.resolve`.
    array : dask array of shape (n, d)
        Of a supported dtype, in one chunk along the features; n may be unknown.
    store : TileStore or None
        Store that holds these tiles and no others.
    file : MappedFile or None
        File from which X is mapped.
    weights : dask array of shape (n,), int64 or float64, or None
        In the chunks of `array`; int64 if all are whole numbers.
    total_weight : int
        Sum of the weights; the number of tiles if there are no weights.
    reads : int
        Reads of all tiles to count them.
    """

    source: Any
    array: da.Array
    store: Any = None
    file: MappedFile | None = None
    weights: da.Array | None = None
    total_weight: int = 0
    reads: int = 0

    @classmethod
    def of(cls, X: Any) -> Tiles:
        """Return the tiles of X.

        Raises
        ------
        FitError
            If X is masked, or not of shape (n, d) with d > 0.
        TypeError
            If X is not an array of numbers.
        """
        if isinstance(X, Tiles):
            return X
        X = inputs.resolve(X)
        if inputs.is_store(X):
            return cls(X, X.features(), store=X)
        _check_shape(X)
        file = MappedFile.of(X)
        store = getattr(X, "tile_store", None) if isinstance(X, da.Array) else None
        return cls(X, _as_dask_array(X, file), store=store, file=file)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of tiles, and of features."""
        n, d = self.array.shape
        return int(n), int(d)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the tiles for kernels."""
        dtype: np.dtype[Any] = self.array.dtype
        return dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all tiles."""
        n, d = self.shape
        return n * d * self.dtype.itemsize

    @property
    def tile(self) -> tuple[int, ...] | None:
        """Shape of a tile, (height, width[, band]); None if X is an array of features."""
        return self.source.tile if inputs.is_store(self.source) else None

    @property
    def is_lazy(self) -> bool:
        """Return True if results for each tile are lazy dask arrays."""
        return inputs.is_lazy(self.source)

    @property
    def is_in_memory(self) -> bool:
        """Return True if the tiles are an array in memory here."""
        return not self.is_lazy and self.file is None

    @property
    def is_exact(self) -> bool:
        """Return True if sums are integers, and so independent of blocks."""
        whole = self.weights is None or self.weights.dtype.kind == "i"
        return whole and self.dtype.kind != "f"

    def identity(self) -> str:
        """Return a digest of the tiles or the file, or dask's name of a lazy array."""
        if self.store is not None:
            return str(self.store.digest)
        return str(dask.base.tokenize(self.file or self.source))

    def with_known_size(self, scheduler: Any) -> Tiles:
        """Return tiles of known number; read all tiles if the number is unknown."""
        if not np.isnan(self.array.shape[0]):
            return replace(self, total_weight=int(self.array.shape[0]))
        array = compute_chunk_sizes(self.array, scheduler)
        return replace(self, source=array, array=array, total_weight=int(array.shape[0]), reads=1)

    def with_weights(self, sample_weight: ArrayLike | da.Array | None, scheduler: Any) -> Tiles:
        """Return tiles with weights; raise FitError for invalid weights."""
        if sample_weight is None:
            return self
        with hide_send_warnings(self.source, sample_weight):
            weights = _as_weights(sample_weight, self.array, scheduler)
            # Scaled down, exactly, so that the sum does not overflow with a warning.
            least, scaled, whole = compute(
                weights.min(),
                (weights * 2.0**-64).sum(),
                (weights == da.rint(weights)).all(),
                scheduler=scheduler,
            )
        total = float(scaled) * 2.0**64
        if not (least >= 0 and 0 < total < np.inf):
            raise FitError(_weights_problem(float(least), float(scaled)))
        # Sums of whole floats are whole below 2**53 only.
        dtype = np.int64 if whole and total < 2**53 else np.float64
        return replace(self, weights=weights.astype(dtype), total_weight=int(total))

    def check_sums(self) -> None:
        """Raise SumOverflowError if sums of these tiles could exceed int64."""
        n, d = self.shape
        check_exact(max(self.total_weight, n) if self.is_exact else n, d, self.dtype)

    def in_blocks(self, threads: int, first: int = 0) -> da.Array:
        """Return the tiles in blocks for passes by `threads` threads; of a store, from `first` on.

        Blocks are arrays or iterables of arrays, as for `daskkm.passes.reductions`.
        """
        if self.store is not None:
            remote = not self.store.location.is_local
            return self.store.stream(block_bytes(self.nbytes, threads, remote=remote), first)
        n_bytes = block_bytes(self.nbytes, threads)
        if self.is_lazy:
            return group_short_blocks(self.array, threads)
        return arrays.in_blocks(self.source, n_bytes, self.dtype, self.file)


def _check_shape(X: Any) -> None:
    """Raise FitError unless X is of shape (n, d) with d > 0."""
    if np.isnan(X.shape[1:]).any():
        msg = f"X: shape {X.shape} of unknown size. Use X.compute_chunk_sizes() first"
        raise FitError(msg)
    if X.ndim != 2:
        msg = (
            f"Expected 2D array, got {X.ndim}D array instead: X has shape {X.shape}. "
            "Reshape your data to (n_tiles, n_features)"
        )
        raise FitError(msg)
    if not X.shape[1]:
        msg = f"Found array with 0 feature(s) (shape={X.shape}) while a minimum of 1 is required"
        raise FitError(msg)


def _as_dask_array(X: Any, file: MappedFile | None) -> da.Array:
    """Return X as a dask array of a supported dtype, in one chunk along the features.

    Numbers of other dtypes become float64, a block at a time.
    """
    dtype = X.dtype
    if dtype.kind in "biuf" and dtype.newbyteorder("=") not in SUPPORTED_DTYPES:
        dtype = np.dtype(np.float64)
    check_dtype(dtype)
    if isinstance(X, np.ndarray):
        return arrays.as_arrays(X, dtype=dtype, file=file)
    if not isinstance(X, da.Array):
        length = arrays.rows_in(sizes.piece_bytes, X.shape[1], X.dtype)
        # A sharded Zarr array is read by shards.
        stored = getattr(X, "shards", None) or X.chunks or (length,)
        # name=False: a name made from the content would cost a read.
        X = da.from_array(X, chunks=(stored[0], -1), name=False)
    array: da.Array = X if X.numblocks[1] == 1 else X.rechunk({1: -1})
    return array if array.dtype == dtype else array.astype(dtype)


def _as_weights(values: Any, tiles: da.Array, scheduler: Any) -> da.Array:
    """Return weights as a persisted dask array in the chunks of the tiles."""
    n = tiles.shape[0]
    weights: Any = inputs.as_column(values, "sample_weight")
    if np.isnan(weights.shape).any():  # a selection, as the tiles may be
        weights = compute_chunk_sizes(weights, scheduler)
    if weights.ndim == 0:  # scikit-learn takes one weight for all
        weights = np.full(n, weights)
    if weights.shape != (n,) or weights.dtype.kind not in "biuf":
        msg = (
            f"sample_weight: shape {weights.shape} and dtype {weights.dtype}. "
            f"Give one number for each of the {n} tiles"
        )
        raise FitError(msg)
    (persisted,) = persist(da.asarray(weights).rechunk((tiles.chunks[0],)), scheduler=scheduler)
    return persisted


def _weights_problem(least: float, scaled: float) -> str:
    """Return the message for invalid weights, by the least weight and the scaled sum."""
    if not np.isfinite(scaled):
        return f"Input sample_weight contains {'NaN' if np.isnan(scaled) else 'infinity'}"
    if least < 0:
        return f"sample_weight: negative ({least}). Give weights of at least 0"
    if scaled == 0:
        return "sample_weight: zero everywhere. Give some tiles a weight"
    return TOO_LARGE


def compute_chunk_sizes(array: da.Array, scheduler: Any = None) -> da.Array:
    """Count the rows of a dask array by one read; return the array with known chunks."""
    chunks = ((1,) * array.numblocks[0], *((1,) for _ in array.shape[1:]))
    (rows,) = compute(array.map_blocks(_count_rows, dtype=int, chunks=chunks), scheduler=scheduler)
    known = tuple(map(int, rows.ravel())), *array.chunks[1:]
    return da.Array(array.dask, array.name, known, meta=array._meta)


def _count_rows(block: NDArray[Any]) -> NDArray[Any]:
    return np.full((1,) * block.ndim, len(block))


@contextmanager
def hide_send_warnings(*values: Any) -> Iterator[None]:
    """Hide dask's warning of large graphs if some of the values are arrays in memory here."""
    with warnings.catch_warnings():
        if not all(value is None or inputs.is_lazy(value) for value in values):
            warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
        yield
