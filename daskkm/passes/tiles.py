"""X, looked at once: its tiles as a dask array, its weights, and where they are."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np

from daskkm.errors import FitError
from daskkm.kernels.dtypes import SUPPORTED_DTYPES, check_dtype, check_exact
from daskkm.passes import arrays, inputs
from daskkm.passes.arrays import MappedFile
from daskkm.passes.inputs import TOO_LARGE
from daskkm.passes.memory import block_bytes
from daskkm.passes.scheduler import compute, compute_chunk_sizes, persist
from daskkm.passes.short_blocks import group_short_blocks
from daskkm.sizes import sizes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike


@dataclass(frozen=True, eq=False)
class Tiles:
    """Tiles of any kind of X, with their weights.

    Attributes
    ----------
    given : TileStore, dask array, ndarray, or array that is sliced to be read
        X as it was recognized.
    array : dask array of shape (n, d)
        Of a supported dtype, in one chunk along the features; n may be unknown.
    store : TileStore or None
        Store of which these are all tiles.
    file : MappedFile or None
        File that X is mapped from.
    weights : dask array of shape (n,), int64 or float64, or None
        In the chunks of `array`; int64 if all are whole numbers.
    total_weight : int
        Sum of the weights; number of tiles without weights.
    reads : int
        Reads of all tiles that were needed to know their number.
    """

    given: Any
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
        """Data type of the tiles as kernels take them."""
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
        return self.given.tile if inputs.is_store(self.given) else None

    @property
    def is_lazy(self) -> bool:
        """True if results for each tile are lazy dask arrays."""
        return inputs.is_lazy(self.given)

    @property
    def is_in_memory(self) -> bool:
        """True if the tiles are an array in memory here."""
        return not self.is_lazy and self.file is None

    @property
    def is_kernel_ready(self) -> bool:
        """True if the tiles are in memory here as kernels take them, without a copy."""
        array = self.given
        return self.is_in_memory and array.dtype == self.dtype and array.flags.c_contiguous

    @property
    def is_exact(self) -> bool:
        """True if sums are integers, which do not depend on blocks."""
        whole = self.weights is None or self.weights.dtype.kind == "i"
        return whole and self.dtype.kind != "f"

    def identity(self) -> str:
        """Return a digest of the tiles, or dask's name of them, the same in any process."""
        if self.store is not None:
            return str(self.store.digest)
        return str(dask.base.tokenize(self.file or self.given))

    def sized(self, scheduler: Any) -> Tiles:
        """Return tiles of known number; reads all of them if it is unknown."""
        if not np.isnan(self.array.shape[0]):
            return replace(self, total_weight=int(self.array.shape[0]))
        array = compute_chunk_sizes(self.array, scheduler)
        return replace(self, given=array, array=array, total_weight=int(array.shape[0]), reads=1)

    def weighted(self, sample_weight: ArrayLike | da.Array | None, scheduler: Any) -> Tiles:
        """Return tiles of known number with weights; raise FitError for weights that do not fit."""
        if sample_weight is None:
            return self
        with sending(self.given, sample_weight):
            weights = _as_weights(sample_weight, self.array, scheduler)
            # Scaled down, exactly, lest the sum overflow with a warning.
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
        whole = self.weights is None or self.weights.dtype.kind == "i"
        check_exact(max(self.total_weight, n) if whole else n, d, self.dtype)

    def in_blocks(self, threads: int) -> da.Array:
        """Return the tiles in blocks for passes by so many threads.

        Blocks are arrays, or iterables of arrays that are read one after another.
        """
        n_bytes = block_bytes(self.nbytes, threads)
        if self.store is not None:
            return self.store.stream(n_bytes)
        if self.is_lazy:
            return group_short_blocks(self.array, threads)
        return arrays.in_blocks(self.given, n_bytes, self.dtype, self.file)


def _check_shape(X: Any) -> None:
    """Raise FitError unless X is of shape (n, d) with d > 0."""
    if np.isnan(X.shape[1:]).any():
        msg = f"X has shape {X.shape}, of unknown size. Use X.compute_chunk_sizes() first"
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
        # name=False: a name made from the content would cost a read of it.
        X = da.from_array(X, chunks=(stored[0], -1), name=False)
    array: da.Array = X if X.numblocks[1] == 1 else X.rechunk({1: -1})
    return array if array.dtype == dtype else array.astype(dtype)


def _as_weights(values: Any, tiles: da.Array, scheduler: Any) -> da.Array:
    """Return weights as a persisted dask array in the chunks of the tiles."""
    n = tiles.shape[0]
    weights: Any = inputs.column(values, "sample_weight")
    if np.isnan(weights.shape).any():  # of the same selection as the tiles
        weights = compute_chunk_sizes(weights, scheduler)
    if weights.ndim == 0:  # as scikit-learn takes it
        weights = np.full(n, weights)
    if weights.shape != (n,) or weights.dtype.kind not in "biuf":
        msg = (
            f"sample_weight has shape {weights.shape} and dtype {weights.dtype}. "
            f"Give one number for each of the {n} tiles"
        )
        raise FitError(msg)
    (persisted,) = persist(da.asarray(weights).rechunk((tiles.chunks[0],)), scheduler=scheduler)
    return persisted


def _weights_problem(least: float, scaled: float) -> str:
    """Return the problem of weights, by the least of them and their scaled sum."""
    if np.isnan(scaled) or np.isinf(scaled):
        return f"Input sample_weight contains {'NaN' if np.isnan(scaled) else 'infinity'}"
    if least < 0:
        return f"sample_weight: negative ({least}). Give weights of at least 0"
    if scaled == 0:
        return "sample_weight: zero everywhere. Give some tiles a weight"
    return TOO_LARGE


@contextmanager
def sending(*values: Any) -> Iterator[None]:
    """Silence dask's advice against sending arrays to workers, where some are in memory here."""
    with warnings.catch_warnings():
        if not all(value is None or inputs.is_lazy(value) for value in values):
            warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
        yield
