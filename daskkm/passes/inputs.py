"""Recognize what a user gives: what is read block by block, what is in memory, what is neither.

This is the one place where that is decided, by what an object is. Packages that daskkm does not
need are known by the names of their classes, and are not imported.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np

from daskkm.errors import FitError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_OF_XARRAY = {"xarray.DataArray", "xarray.Variable"}


def recognize(X: Any) -> Any:
    """Return X as one of the kinds of arrays that tiles are read from.

    Parameters
    ----------
    X : object

    Returns
    -------
    TileStore, dask array, or other array that is sliced to be read (Zarr, HDF5); else X
        A dask data frame becomes a dask array, an xarray.DataArray what it holds. What is returned
        as it is, is in memory, or no array at all: NumPy knows. The function may be called again
        with what it returned.

    Raises
    ------
    FitError
        If X is a masked array.
    TypeError
        If X is an object of a kind that is not one array of numbers, or sparse.
    """
    check_unmasked(X, "X")
    names = _names(X)
    if "daskkm.TileStore" in names or "zarr.Array" in names:
        return X
    if isinstance(X, da.Array):
        return _dense(X)
    if names & _OF_XARRAY:
        return recognize(_held_by(X))
    if "dask.FrameBase" in names:
        return _array_of_frame(X)
    _refuse(X, names)
    return X


def resolve(X: Any) -> Any:
    """Return X as `recognize` does, and what is in memory as an ndarray."""
    X = recognize(X)
    return X if is_lazy(X) else as_array(X)


def as_array(X: Any) -> NDArray[Any]:
    """Return what is in memory, recognized, as an array.

    Raises
    ------
    FitError
        If its parts do not make an array.
    TypeError
        If it is an object that NumPy does not take for an array.
    """
    try:
        if "pandas.DataFrame" in _names(X):
            return np.asarray(X.to_numpy(_dtype_of_frame(X), na_value=np.nan))
        found = np.asarray(X)
    except ValueError as error:
        msg = f"X is no array ({error}); give it as (n_tiles, n_features)"
        raise FitError(msg) from error
    if found.dtype == object and not found.ndim:
        msg = f"X is a {_kind(X)}, which is no array; give it as (n_tiles, n_features)"
        raise TypeError(msg)
    return found


def is_store(X: Any) -> bool:
    """Return True if X is a TileStore."""
    return "daskkm.TileStore" in _names(X)


def is_lazy(X: Any) -> bool:
    """Return True if X, recognized, is read block by block and answered with dask arrays.

    An array that is mapped from a file is read block by block too, but answered in memory.
    """
    return isinstance(X, da.Array) or is_store(X) or is_sliced(X)


def is_sliced(X: Any) -> bool:
    """Return True if X is an array of another kind than dask's that is sliced to be read."""
    kind = type(X)
    return all(hasattr(kind, name) for name in ("shape", "dtype", "chunks", "__getitem__")) and (
        not isinstance(X, da.Array)
    )


def columns(X: Any) -> Any:
    """Return a data frame without rows that has the columns of a dask data frame; else None."""
    return X._meta if "dask.FrameBase" in _names(X) and X._meta.ndim == 2 else None


def column(values: Any, name: str) -> NDArray[Any] | da.Array:
    """Return what is given for each tile, weights or classes, as a NumPy or dask array.

    Parameters
    ----------
    values : array-like, dask array or series, or Zarr array of shape (n,)
    name : str
        Of the parameter, for messages.

    Raises
    ------
    FitError
        If it is a masked array, or no array.
    """
    check_unmasked(values, name)
    if isinstance(values, da.Array):
        return values
    names = _names(values)
    if "dask.FrameBase" in names:
        return values.to_dask_array()
    if names & _OF_XARRAY:
        return column(_held_by(values), name)
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:
        msg = f"{name}: not an array ({error}). Give one number for each tile."
        raise FitError(msg) from error


def check_unmasked(values: Any, name: str) -> None:
    """Raise FitError if an array is masked, or one in a list is: the mask would be lost.

    Parameters
    ----------
    values : object
        A lazy array, an array, or a list of what becomes one array.
    name : str
        Of the parameter, for the message.
    """
    several = values if isinstance(values, (list, tuple)) else [values]
    for value in several:
        if np.ma.isMaskedArray(getattr(value, "_meta", value)):
            msg = f"{name} is a masked array, and k-means has no use for a mask; "
            raise FitError(msg + "fill it or drop the tiles")
        if isinstance(value, (list, tuple)) and value is not values:
            check_unmasked(value, name)


def _names(X: Any) -> set[str]:
    """Return the classes of an object, each as the name of its package and its own."""
    return {f"{c.__module__.partition('.')[0]}.{c.__qualname__}" for c in type(X).__mro__}


def _kind(X: Any) -> str:
    """Return the name of the class of an object, and of its package."""
    package = type(X).__module__.partition(".")[0]
    return f"{package}.{type(X).__qualname__}".removeprefix("builtins.")


def _held_by(X: Any) -> Any:
    """Return what an array or variable of xarray holds, lazily if it has not been read."""
    if X.chunks is not None or getattr(getattr(X, "variable", X), "_in_memory", True) or not X.ndim:
        return X.data
    # The data of a file that was opened without dask: `data` would read all of it. The lengths of
    # chunks are those of the file's axes, of which a selection has fewer.
    shards: Any = X.encoding.get("shards") or ()
    lengths = X.encoding.get("preferred_chunks") or {}
    length = shards[0] if len(shards) == X.ndim else lengths.get(X.dims[0], "auto")
    return X.chunk(dict.fromkeys(X.dims, -1) | {X.dims[0]: length}).data


def _dense(X: da.Array) -> da.Array:
    """Return a dask array if its blocks are NumPy's."""
    block = X._meta
    if isinstance(block, np.ndarray):
        return X
    if hasattr(block, "toarray") or hasattr(block, "todense"):
        what = "toarray" if hasattr(block, "toarray") else "todense"
        msg = (
            "Sparse data was passed for X, but dense data is required. "
            f"Use 'X.map_blocks(lambda block: block.{what}())' to convert its blocks."
        )
        raise TypeError(msg)
    msg = f"X has blocks of {_kind(block)}, not of numpy.ndarray; convert them with X.map_blocks"
    raise TypeError(msg)


def _array_of_frame(X: Any) -> da.Array:
    """Return a dask data frame, or series, as an array of numbers, lazily."""
    if X._meta.ndim != 2:
        return _dense(X.to_dask_array())
    dtype = _dtype_of_frame(X._meta)
    if any(each != dtype for each in X._meta.dtypes):
        X = X.astype(dtype)
    return _dense(X.to_dask_array())


def _dtype_of_frame(frame: Any) -> np.dtype[Any]:
    """Return the dtype that holds all columns of a pandas data frame.

    Raises
    ------
    TypeError
        If some columns are not of numbers.
    """
    others = [
        f"{name!r} ({dtype})"
        for name, dtype in frame.dtypes.items()
        if not getattr(dtype, "_is_numeric", False) and getattr(dtype, "kind", "O") not in "biuf"
    ]
    if others:
        msg = f"X: columns that do not hold numbers: {', '.join(others)}. Drop or encode them."
        raise TypeError(msg)
    dtypes: Sequence[Any] = list(frame.dtypes)
    if dtypes and all(isinstance(dtype, np.dtype) for dtype in dtypes):
        return np.result_type(*dtypes)
    return np.dtype(np.float64)  # of extension types, which have missing values


def _refuse(X: Any, names: set[str]) -> None:
    """Raise TypeError for what is no array of numbers, with what to give in its place."""
    kind = _kind(X)
    if names & {"scipy.spmatrix", "scipy.sparray", "sparse.SparseArray"}:
        msg = (
            "Sparse data was passed for X, but dense data is required. "
            "Use '.toarray()' to convert to a dense numpy array."
        )
    elif isinstance(X, (str, bytes, os.PathLike)):
        msg = (
            f"X is a path ({os.fsdecode(X)!r}), not an array; open it: daskkm.open_store(path), "
            "zarr.open_array(path), np.load(path, mmap_mode='r')"
        )
    elif isinstance(X, Mapping) or names & {"zarr.Group"}:
        members = list(X)[:5] if isinstance(X, Mapping) else sorted(X.array_keys())[:5]
        several = ", ".join(repr(name) for name in members)
        msg = f"X is a {kind}, which holds several arrays ({several}); give one of them, X[name]"
    elif dask.is_dask_collection(X):
        msg = f"X is a {kind}; give a dask array or data frame (da.from_delayed, bag.to_dataframe)"
    else:
        return
    raise TypeError(msg)
