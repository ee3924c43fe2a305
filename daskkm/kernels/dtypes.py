"""Dtypes of tiles, of their statistics and distances, and checks of tiles. NumPy only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from daskkm.errors import DtypeError, FitError, SumOverflowError

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUPPORTED_DTYPES = tuple(
    np.dtype(name) for name in ("uint8", "int8", "uint16", "int16", "float32", "float64")
)

_CHECKED_BYTES = 1 << 20  # of tiles that are checked for NaN at once


def statistics_dtype(
    tiles: np.dtype[Any], weights: np.dtype[Any] | None = None
) -> np.dtype[np.int64] | np.dtype[np.float64]:
    """Return the dtype of statistics of tiles and weights: int64 if both are integers."""
    whole = tiles.kind != "f" and (weights is None or weights.kind != "f")
    return np.dtype(np.int64) if whole else np.dtype(np.float64)


def check_finite(tiles: NDArray[Any]) -> None:
    """Raise FitError if float tiles contain NaN or infinity."""
    rows = max(1, _CHECKED_BYTES // max(1, tiles[:1].nbytes))  # few at once, to save memory
    pieces = (tiles[first : first + rows] for first in range(0, len(tiles), rows))
    if tiles.dtype.kind == "f" and not all(np.isfinite(piece).all() for piece in pieces):
        value = "NaN" if np.isnan(tiles).any() else "infinity"
        msg = f"Input X contains {value}. Drop these tiles or replace the values"
        raise FitError(msg)


def check_dtype(dtype: np.dtype[Any]) -> None:
    """Raise DtypeError if tiles of this dtype are not supported."""
    if dtype.newbyteorder("=") not in SUPPORTED_DTYPES:
        names = ", ".join(map(str, SUPPORTED_DTYPES))
        msg = f"tiles: values of dtype {dtype} are not supported. Convert to one of {names}"
        raise DtypeError(msg)


def check_exact(n: int, d: int, dtype: np.dtype[Any]) -> None:
    """Raise SumOverflowError if statistics of n tiles of d features could exceed int64.

    With weights n is the sum of weights. 2**63 / 65535**2 is 2.1e9 pixels of 16-bit tiles; 8-bit
    tiles would need 1.4e14. Sums of squared distances between tiles are as large.
    """
    if dtype.kind == "f" or n * d * max_difference(dtype) ** 2 < 2**63:
        return
    limit = (2**63 - 1) // (d * max_difference(dtype) ** 2)
    msg = (
        f"tiles: {n} (weights added up) of {d} {dtype} features could overflow the exact 64-bit "
        f"sums of squares. Use at most {limit} tiles, or scale them to 8 bits"
    )
    raise SumOverflowError(msg)


def max_magnitude(dtype: np.dtype[Any]) -> int:
    """Return the largest magnitude of an integer type."""
    limits = np.iinfo(dtype)
    return max(int(limits.max), -int(limits.min))


def norm_dtype(tiles: NDArray[Any]) -> type[np.generic]:
    """Return the narrowest type that holds a tile's squared norm exactly."""
    if tiles.dtype.kind == "f":
        return np.float64
    return np.int32 if tiles.shape[1] * max_magnitude(tiles.dtype) ** 2 < 2**31 else np.int64


def max_difference(dtype: np.dtype[Any]) -> int:
    """Return the largest difference between numbers of an integer type."""
    limits = np.iinfo(dtype)
    return int(limits.max) - int(limits.min)


def distance_dtype(tiles: NDArray[Any]) -> type[np.generic]:
    """Return the narrowest type that holds any squared distance between tiles."""
    return np.int32 if tiles.shape[1] * max_difference(tiles.dtype) ** 2 < 2**31 else np.int64


def check_shapes(
    tiles: NDArray[Any], stack: NDArray[np.float64], offsets: NDArray[np.intp]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Check shapes, dtype and offsets; return tiles and stack by `read_only`."""
    check_dtype(tiles.dtype)
    if tiles.ndim != 2 or stack.ndim != 2 or tiles.shape[1] != stack.shape[1]:
        msg = f"tiles: shape {tiles.shape} does not match centroids of shape {stack.shape}"
        raise ValueError(msg)
    if offsets[0] != 0 or offsets[-1] != len(stack) or np.any(np.diff(offsets) < 1):
        msg = f"offsets: {offsets.tolist()} do not divide {len(stack)} centroids into models"
        raise ValueError(msg)
    return read_only(tiles), read_only(stack)


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """Return a contiguous, read-only view, so that numba compiles one version and not four."""
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).view()
    array.flags.writeable = False
    return array
