"""Kinds of X by name: functions of an array, the length of a chunk, and a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas
import xarray
import zarr

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Kinds = dict[str, Callable[[NDArray[Any], int, str], Any]]


def in_chunks(array: NDArray[Any], chunk: int) -> da.Array:
    return da.from_array(array, chunks=(chunk, -1))


def of_unknown_number(array: NDArray[Any], chunk: int) -> da.Array:
    lazy = in_chunks(np.repeat(array, 2, axis=0), chunk)
    return lazy[in_chunks(np.arange(2 * len(array))[:, None] % 2 == 0, chunk)[:, 0]]


def in_zarr(array: NDArray[Any], chunk: int, shards: Any = None) -> zarr.Array[Any]:
    chunks = (chunk, array.shape[1])
    stored = zarr.create_array(
        {}, shape=array.shape, chunks=chunks, shards=shards, dtype=array.dtype
    )
    stored[:] = array
    return stored


def in_shards(array: NDArray[Any], chunk: int) -> zarr.Array[Any]:
    return in_zarr(array, chunk, (4 * chunk, array.shape[1]))


def mapped(array: NDArray[Any], folder: str | Path, mode: Any = "r") -> NDArray[Any]:
    np.save(Path(folder, "x.npy"), array)
    return np.asarray(np.load(Path(folder, "x.npy"), mmap_mode=mode))


def in_file(array: NDArray[Any], folder: str | Path, **encoding: Any) -> Any:
    """Return a variable of a file, which xarray reads when it is sliced."""
    stored = xarray.Dataset({"x": (("band", "tile", "feature")[-array.ndim :], array)})
    path, options = Path(folder, "set.zarr"), {"zarr_format": 3, "consolidated": False}
    stored.to_zarr(path, encoding={"x": encoding}, **options)  # type: ignore[call-overload]
    return xarray.open_zarr(path, chunks=None, consolidated=False)["x"]


MAPPED: Kinds = {
    "memory map": lambda array, chunk, folder: mapped(array, folder),
    "memory map in Fortran order": lambda array, chunk, folder: mapped(
        np.asfortranarray(array), folder
    ),
    "rows of a memory map": lambda array, chunk, folder: mapped(
        np.vstack([array[:3], array]), folder
    )[-len(array) :],
    "columns of a memory map": lambda array, chunk, folder: mapped(
        np.hstack([array, array]), folder
    )[:, array.shape[1] :],
}
IN_MEMORY: Kinds = {
    "ndarray": lambda array, chunk, folder: array,
    "view": lambda array, chunk, folder: np.repeat(array, 2, axis=0)[::2],
    "rows backwards": lambda array, chunk, folder: array[::-1].copy()[::-1],
    "Fortran order": lambda array, chunk, folder: np.asfortranarray(array),
    "big endian": lambda array, chunk, folder: array.astype(array.dtype.newbyteorder(">")),
    "memory map copied on write": lambda array, chunk, folder: mapped(array, folder, "c"),
    "pandas": lambda array, chunk, folder: pandas.DataFrame(array),
    "xarray": lambda array, chunk, folder: xarray.DataArray(array),
    "xarray variable": lambda array, chunk, folder: xarray.Variable(("tile", "feature"), array),
}
UNKNOWN_NUMBER: Kinds = {
    "dask of unknown number": lambda array, chunk, folder: of_unknown_number(array, chunk),
    "dask frame": lambda array, chunk, folder: dd.from_pandas(
        pandas.DataFrame(array), npartitions=2
    ),
}
# In files or folders: another digest each time.
STORED: Kinds = {
    "Zarr": lambda array, chunk, folder: in_zarr(array, chunk),
    "sharded Zarr": lambda array, chunk, folder: in_shards(array, chunk),
    "xarray not yet read": lambda array, chunk, folder: in_file(array, folder),
    "part of xarray not yet read": lambda array, chunk, folder: in_file(
        np.stack([array, array]), folder
    ).isel(band=1),
}
LAZY: Kinds = {
    "dask": lambda array, chunk, folder: in_chunks(array, chunk),
    "dask in columns": lambda array, chunk, folder: da.from_array(array, chunks=(chunk, 1)),
    "xarray over dask": lambda array, chunk, folder: xarray.DataArray(in_chunks(array, chunk)),
    **UNKNOWN_NUMBER,
    **STORED,
}
KINDS: Kinds = MAPPED | IN_MEMORY | LAZY
