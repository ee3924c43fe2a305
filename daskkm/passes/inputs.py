"""Recognition of X, weights and classes by the class of the object.

Only this module decides whether an array is in memory, is read block by block, or is no array.
Optional packages are recognized by the names of their classes, without an import.
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
TOO_LARGE = "Input X, or sample_weight, is too large to square and sum up. Scale the values down"


def check_sums_finite(values: NDArray[Any] | float) -> None:
    """Raise FitError if sums of squares have overflowed."""
    if not np.isfinite(values).all():
        raise FitError(TOO_LARGE)


def recognize(X: Any) -> Any:
    """Return the array of X: dask data frames become dask arrays, xarray objects their arrays.

    Other objects in memory, arrays or not, are returned unchanged, for `resolve`. Idempotent.

    Raises
    ------
    FitError
        If X is a masked array.
    TypeError
        If X is sparse, or not one array of numbers.
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
    """Recognize X; return an ndarray if X is in memory.

    Raises
    ------
    FitError, TypeError
        If X is not an array; and as `recognize`.
    """
    X = recognize(X)
    if is_lazy(X):
        return X
    try:
        if "pandas.DataFrame" in _class_names(X):
            return np.asarray(X.to_numpy(_dtype_of_frame(X), na_value=np.nan))
        array = np.asarray(X)
    except ValueError as error:
        msg = f"X: not an array ({error}). Give X as (n_tiles, n_features)"
        raise FitError(msg) from error
    if array.dtype == object and not array.ndim:
        msg = f"X: not an array but a {_class_name(type(X))}. Give X as (n_tiles, n_features)"
        raise TypeError(msg)
    return array


def is_store(X: Any) -> bool:
    """Return True if X is a TileStore."""
    return "daskkm.TileStore" in _class_names(X)


def is_lazy(X: Any) -> bool:
    """Return True if a recognized X is read block by block: a store or dask, Zarr or HDF5 array."""
    names = ("shape", "dtype", "chunks", "__getitem__")
    return is_store(X) or all(hasattr(type(X), name) for name in names)


def empty_frame(X: Any) -> Any:
    """Return an empty data frame with the columns of a dask data frame, or None."""
    return X._meta if "dask.FrameBase" in _class_names(X) and X._meta.ndim == 2 else None


def as_column(values: Any, name: str) -> NDArray[Any] | da.Array:
    """Return the values of the parameter `name`, one for each tile, as a NumPy or dask array.

    Raises
    ------
    FitError
        If the values are masked, or not an array.
    """
    check_unmasked(values, name)
    if isinstance(values, da.Array):
        return values
    names = _class_names(values)
    if "dask.FrameBase" in names:
        return values.to_dask_array()
    if names & _OF_XARRAY:
        return as_column(_array_of_xarray(values), name)
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:
        msg = f"{name}: not an array ({error}). Give one number for each tile"
        raise FitError(msg) from error


def check_unmasked(values: Any, name: str) -> None:
    """Raise FitError if an array, or an array in a list, is masked: the mask would be lost."""
    if isinstance(values, (list, tuple)):
        for value in values:
            check_unmasked(value, name)
    elif np.ma.isMaskedArray(getattr(values, "_meta", values)):
        msg = f"{name}: masked arrays are not supported. Fill the mask or drop the tiles"
        raise FitError(msg)


def _class_names(X: Any) -> set[str]:
    """Return the names of an object's classes, with their packages."""
    return set(map(_class_name, type(X).__mro__))


def _class_name(kind: type) -> str:
    """Return the name of a class, with the package."""
    return f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}".removeprefix("builtins.")


def _array_of_xarray(X: Any) -> Any:
    """Return the array of an xarray object, lazily unless the array is in memory."""
    if X.chunks is not None or getattr(getattr(X, "variable", X), "_in_memory", True) or not X.ndim:
        return X.data
    # Without dask, `data` would read the whole file. The chunks are those of the file, which may
    # have more axes than a selection.
    shards: Any = X.encoding.get("shards") or ()
    lengths = X.encoding.get("preferred_chunks") or {}
    length = shards[0] if len(shards) == X.ndim else lengths.get(X.dims[0], "auto")
    return X.chunk(dict.fromkeys(X.dims, -1) | {X.dims[0]: length}).data


def _dense(X: da.Array) -> da.Array:
    """Return a dask array; raise TypeError if the blocks are not NumPy arrays."""
    if isinstance(X._meta, np.ndarray):
        return X
    kind = _class_name(type(X._meta))
    msg = (
        f"X: blocks of {kind}, not of numpy.ndarray. Convert the blocks, such as by "
        "X.map_blocks(lambda block: block.toarray())"
    )
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
    """Return the dtype for all columns of a data frame; raise TypeError if not numbers."""
    not_numbers = [
        f"{name!r} ({dtype})"
        for name, dtype in frame.dtypes.items()
        if not getattr(dtype, "_is_numeric", False) and getattr(dtype, "kind", "O") not in "biuf"
    ]
    if not_numbers:
        msg = f"X: columns without numbers: {', '.join(not_numbers)}. Drop or encode the columns"
        raise TypeError(msg)
    dtypes: Sequence[Any] = list(frame.dtypes)
    if dtypes and all(isinstance(dtype, np.dtype) for dtype in dtypes):
        return np.result_type(*dtypes)
    return np.dtype(np.float64)  # extension types may have missing values


def _refuse_other_kinds(X: Any, names: set[str]) -> None:
    """Raise TypeError, with a hint, for an object that is not one array of numbers."""
    kind = _class_name(type(X))
    if names & {"scipy.spmatrix", "scipy.sparray", "sparse.SparseArray"}:
        msg = (
            "Sparse data was passed for X, but dense data is required. "
            "Use '.toarray()' to convert to a dense numpy array."
        )
    elif isinstance(X, (str, bytes, os.PathLike)):
        msg = (
            f"X: a path ({os.fsdecode(X)!r}), not an array. Open the path by daskkm.open_store, "
            "zarr.open_array or np.load(path, mmap_mode='r')"
        )
    elif isinstance(X, Mapping) or names & {"zarr.Group"}:
        members = list(X)[:5] if isinstance(X, Mapping) else sorted(X.array_keys())[:5]
        several = ", ".join(repr(name) for name in members)
        msg = f"X: a {kind} of several arrays ({several}). Give one array, X[name]"
    elif dask.is_dask_collection(X):
        msg = f"X: not an array but a {kind}. Use da.from_delayed or bag.to_dataframe"
    else:
        return
    raise TypeError(msg)
