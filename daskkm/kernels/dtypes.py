"""Dtypes of tiles: which are supported, what their sums are, and whether these are exact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from daskkm.errors import DtypeError, FitError, SumOverflowError

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUPPORTED_DTYPES = tuple(
    np.dtype(name) for name in ("uint8", "int8", "uint16", "int16", "float32", "float64")
)

_CHECKED_BYTES = 1 << 20  # of tiles that are looked at together for NaN


def statistics_dtype(
    tiles: np.dtype[Any], weights: np.dtype[Any] | None = None
) -> np.dtype[np.int64] | np.dtype[np.float64]:
    """Return the dtype of the statistics of such tiles: int64 where they are exact."""
    whole = tiles.kind != "f" and (weights is None or weights.kind != "f")
    return np.dtype(np.int64) if whole else np.dtype(np.float64)


def check_finite(tiles: NDArray[Any]) -> None:
    """Raise FitError if float tiles hold NaN or infinity."""
    rows = max(1, _CHECKED_BYTES // max(1, tiles[:1].nbytes))  # few, for the sake of memory
    pieces = (tiles[first : first + rows] for first in range(0, len(tiles), rows))
    if tiles.dtype.kind == "f" and not all(np.isfinite(piece).all() for piece in pieces):
        what = "NaN" if np.isnan(tiles).any() else "infinity"
        msg = f"Input X contains {what}; drop such tiles, or replace the values"
        raise FitError(msg)


def check_dtype(dtype: np.dtype[Any]) -> None:
    """Raise DtypeError, a TypeError, if tiles of this dtype are not supported."""
    if dtype.newbyteorder("=") not in SUPPORTED_DTYPES:
        names = ", ".join(map(str, SUPPORTED_DTYPES))
        msg = f"tiles of dtype {dtype} are not supported; convert them to one of {names}"
        raise DtypeError(msg)


def check_exact(n: int, d: int, dtype: np.dtype[Any]) -> None:
    """Raise SumOverflowError if statistics of n tiles of d features could exceed int64.

    With weights n is their sum. Without, only 16-bit tiles can get there: 2**63 / 65535**2 is
    2.1e9 pixels, while 8-bit tiles would need 1.4e14. Squared distances between tiles, which
    seedings sum, are as large.
    """
    if dtype.kind != "f" and n * d * span(dtype) ** 2 >= 2**63:
        msg = (
            f"{n} tiles (weights added up) of {d} {dtype} features could overflow the exact 64-bit "
            f"sums of squares; use at most {(2**63 - 1) // (d * span(dtype) ** 2)}, "
            "or scale tiles to 8 bits"
        )
        raise SumOverflowError(msg)


def peak(dtype: np.dtype[Any]) -> int:
    """Return the largest magnitude of an integer type."""
    limits = np.iinfo(dtype)
    return max(int(limits.max), -int(limits.min))


def norm_dtype(tiles: NDArray[Any]) -> type[np.generic]:
    """Return the narrowest type that holds a tile's squared norm exactly."""
    if tiles.dtype.kind == "f":
        return np.float64
    return np.int32 if tiles.shape[1] * peak(tiles.dtype) ** 2 < 2**31 else np.int64


def span(dtype: np.dtype[Any]) -> int:
    """Return the largest difference between numbers of an integer type."""
    limits = np.iinfo(dtype)
    return int(limits.max) - int(limits.min)


def distance_dtype(tiles: NDArray[Any]) -> type[np.generic]:
    """Return the narrowest type that holds any squared distance between tiles."""
    return np.int32 if tiles.shape[1] * span(tiles.dtype) ** 2 < 2**31 else np.int64


def checked(
    tiles: NDArray[Any], stack: NDArray[np.float64], offsets: NDArray[np.intp]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return tiles and stack as the compiled functions take them, if they fit together."""
    check_dtype(tiles.dtype)
    if tiles.ndim != 2 or stack.ndim != 2 or tiles.shape[1] != stack.shape[1]:
        msg = f"tiles of shape {tiles.shape} do not fit centroids of shape {stack.shape}"
        raise ValueError(msg)
    if offsets[0] != 0 or offsets[-1] != len(stack) or np.any(np.diff(offsets) < 1):
        msg = f"offsets {offsets.tolist()} do not divide {len(stack)} centroids into models"
        raise ValueError(msg)
    return read_only(tiles), read_only(stack)


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """Return a contiguous, read-only view, so that numba compiles one version and not four."""
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).view()
    array.flags.writeable = False
    return array
