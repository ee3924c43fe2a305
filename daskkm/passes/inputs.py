"""Recognition of X, weights and classes by the class of the object.

This is the one place that decides whether an array is in memory, is read block by block, or is no
array. Packages that daskkm does not need are known by the names of their classes, and not imported.
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

#: Message for values whose squares cannot be summed.
TOO_LARGE = "Input X, or sample_weight, is too large to square and sum up; scale it down"


def check_sums_finite(values: NDArray[Any] | float) -> None:
    """Raise FitError if sums of squares have overflowed."""
    if not np.isfinite(values).all():
        raise FitError(TOO_LARGE)


def recognize(X: Any) -> Any:
    """Return X as a TileStore, dask array or other array that is sliced to be read, else X itself.

    A dask data frame becomes a dask array, an xarray.DataArray its array. An object that is
    returned as it is, is in memory, or not an array: `as_array` tells. Idempotent.

    Raises
    ------
    FitError
        If X is a masked array.
    TypeError
        If X is sparse, or of a kind that is not one array of numbers.
    """
    check_unmasked(X, "X")
    names = _class_names(X)
    if "daskkm.TileStore" in names or "zarr.Array" in names:
        return X
    if isinstance(X, da.Array):
        return _dense(X)
    if names & _OF_XARRAY:
        return recognize(_array_of_xarray(X))
    if "dask.FrameBase" in names:
        return _array_of_frame(X)
    _refuse_other_kinds(X, names)
    return X


def resolve(X: Any) -> Any:
    """Return X as `recognize` does, as an ndarray if it is in memory."""
    X = recognize(X)
    return X if is_lazy(X) else as_array(X)


def as_array(X: Any) -> NDArray[Any]:
    """Return a recognized X in memory as an ndarray; raise FitError or TypeError if it is none."""
    try:
        if "pandas.DataFrame" in _class_names(X):
            return np.asarray(X.to_numpy(_dtype_of_frame(X), na_value=np.nan))
        array = np.asarray(X)
    except ValueError as error:
        msg = f"X: not an array ({error}). Give it as (n_tiles, n_features)"
        raise FitError(msg) from error
    if array.dtype == object and not array.ndim:
        msg = f"X: a {_class_name(X)} is not an array. Give it as (n_tiles, n_features)"
        raise TypeError(msg)
    return array


def is_store(X: Any) -> bool:
    """Return True if X is a TileStore."""
    return "daskkm.TileStore" in _class_names(X)


def is_lazy(X: Any) -> bool:
    """Return True if a recognized X is read block by block, and its results are dask arrays."""
    return isinstance(X, da.Array) or is_store(X) or is_sliced(X)


def is_sliced(X: Any) -> bool:
    """Return True if X is sliced to be read, as Zarr and HDF5 arrays are; not dask arrays."""
    kind = type(X)
    return all(hasattr(kind, name) for name in ("shape", "dtype", "chunks", "__getitem__")) and (
        not isinstance(X, da.Array)
    )


def columns(X: Any) -> Any:
    """Return an empty data frame with the columns of a dask data frame, or None."""
    return X._meta if "dask.FrameBase" in _class_names(X) and X._meta.ndim == 2 else None


def column(values: Any, name: str) -> NDArray[Any] | da.Array:
    """Return one value for each tile, weights or classes, as a NumPy or dask array.

    `name` is that of the parameter, for messages.

    Raises
    ------
    FitError
        If it is masked, or not an array.
    """
    check_unmasked(values, name)
    if isinstance(values, da.Array):
        return values
    names = _class_names(values)
    if "dask.FrameBase" in names:
        return values.to_dask_array()
    if names & _OF_XARRAY:
        return column(_array_of_xarray(values), name)
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:
        msg = f"{name}: not an array ({error}). Give one number for each tile"
        raise FitError(msg) from error


def check_unmasked(values: Any, name: str) -> None:
    """Raise FitError if an array, or an array in a list, is masked: its mask would be lost."""
    several = values if isinstance(values, (list, tuple)) else [values]
    for value in several:
        if np.ma.isMaskedArray(getattr(value, "_meta", value)):
            msg = f"{name}: masked arrays are not supported. Fill the mask or drop the tiles"
            raise FitError(msg)
        if isinstance(value, (list, tuple)) and value is not values:
            check_unmasked(value, name)


def _class_names(X: Any) -> set[str]:
    """Return the names of the classes of an object, each with its package."""
    return {f"{c.__module__.partition('.')[0]}.{c.__qualname__}" for c in type(X).__mro__}


def _class_name(X: Any) -> str:
    """Return the name of the class of an object, with its package."""
    package = type(X).__module__.partition(".")[0]
    return f"{package}.{type(X).__qualname__}".removeprefix("builtins.")


def _array_of_xarray(X: Any) -> Any:
    """Return the array of an xarray object, lazily if it has not been read."""
    if X.chunks is not None or getattr(getattr(X, "variable", X), "_in_memory", True) or not X.ndim:
        return X.data
    # `data` would read all of a file that was opened without dask. A selection may have fewer axes
    # than the file, whose chunks these are.
    shards: Any = X.encoding.get("shards") or ()
    lengths = X.encoding.get("preferred_chunks") or {}
    length = shards[0] if len(shards) == X.ndim else lengths.get(X.dims[0], "auto")
    return X.chunk(dict.fromkeys(X.dims, -1) | {X.dims[0]: length}).data


def _dense(X: da.Array) -> da.Array:
    """Return a dask array; raise TypeError if its blocks are not NumPy arrays."""
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
    msg = f"X: blocks of {_class_name(block)}, not of numpy.ndarray. Convert them by X.map_blocks"
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
    """Return the dtype that holds all columns of a pandas data frame; TypeError if not numbers."""
    not_numbers = [
        f"{name!r} ({dtype})"
        for name, dtype in frame.dtypes.items()
        if not getattr(dtype, "_is_numeric", False) and getattr(dtype, "kind", "O") not in "biuf"
    ]
    if not_numbers:
        msg = f"X: columns that do not hold numbers: {', '.join(not_numbers)}. Drop or encode them"
        raise TypeError(msg)
    dtypes: Sequence[Any] = list(frame.dtypes)
    if dtypes and all(isinstance(dtype, np.dtype) for dtype in dtypes):
        return np.result_type(*dtypes)
    return np.dtype(np.float64)  # of extension types, which have missing values


def _refuse_other_kinds(X: Any, names: set[str]) -> None:
    """Raise TypeError, with a hint, for kinds of objects that are not one array of numbers."""
    kind = _class_name(X)
    if names & {"scipy.spmatrix", "scipy.sparray", "sparse.SparseArray"}:
        msg = (
            "Sparse data was passed for X, but dense data is required. "
            "Use '.toarray()' to convert to a dense numpy array."
        )
    elif isinstance(X, (str, bytes, os.PathLike)):
        msg = (
            f"X: a path ({os.fsdecode(X)!r}), not an array. Open it by daskkm.open_store, "
            "zarr.open_array or np.load(path, mmap_mode='r')"
        )
    elif isinstance(X, Mapping) or names & {"zarr.Group"}:
        members = list(X)[:5] if isinstance(X, Mapping) else sorted(X.array_keys())[:5]
        several = ", ".join(repr(name) for name in members)
        msg = f"X: a {kind} of several arrays ({several}). Give one of them, X[name]"
    elif dask.is_dask_collection(X):
        msg = f"X: a {kind}. Give a dask array or data frame (da.from_delayed, bag.to_dataframe)"
    else:
        return
    raise TypeError(msg)
