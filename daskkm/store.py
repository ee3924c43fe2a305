"""The store: tiles in a Zarr group, where they came from, and whether it is whole.

Chunks are uncompressed (compressed ones read at a fifth of the speed from local disks),
4 MiB, whole tiles, each with a CRC-32C; every write covers whole chunks. The attribute
``complete`` is written last: a store without it is never read.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import dask.array as da
import numpy as np
import zarr
from dask.base import tokenize
from zarr.codecs import Crc32cCodec
from zarr.errors import GroupNotFoundError

from daskkm.errors import StoreError
from daskkm.tiles import Sheet, grid

if TYPE_CHECKING:
    import os
    from types import TracebackType

    from numpy.typing import NDArray

FORMAT = 1
_CHUNK_BYTES = 4 << 20
# Provenance is 4 bytes a tile: far more tiles a chunk.
_PROVENANCE_CHUNK = 1 << 20


class TileStore:
    """An ingested store, for reading. Get one from `open_store` or `ingest`.

    Attributes
    ----------
    path : Path
        The store's folder.
    tiles : zarr.Array of shape (n, height, width) or (n, height, width, bands), uint8
    sheets : tuple of Sheet
        In the order of their tiles.
    """

    def __init__(self, path: Path, group: zarr.Group) -> None:
        self.path = path
        self.tiles = _array(path, group, "tiles")
        self.sheets = tuple(map(Sheet.from_json, _attributes(group)["sheets"]))
        self._group = group

    @property
    def tile(self) -> tuple[int, ...]:
        """Shape of a tile: (height, width) or (height, width, bands), in pixels."""
        return self.tiles.shape[1:]

    def __len__(self) -> int:
        return self.tiles.shape[0]

    def __repr__(self) -> str:
        return f"<TileStore {self.path}: {len(self)} tiles of {self.tile}>"

    def features(self) -> da.Array:
        """Return the tiles as rows of features, lazily.

        Returns
        -------
        dask array of shape (n_tiles, n_features), uint8
            One block a chunk of the store.
        """
        rows = _Rows(self.path, self.tiles)
        return da.from_array(
            rows,
            chunks=(self.tiles.chunks[0], -1),
            name=f"tiles-{tokenize(str(self.path), self.sheets, self.tile)}",
            meta=np.empty((0, 0), self.tiles.dtype),
            asarray=False,
            # As a task of its own the reader would cost every pass a round trip to a worker.
            inline_array=True,
        )

    def provenance(self) -> dict[str, NDArray[np.int32]]:
        """Read where each tile came from.

        Returns
        -------
        dict of str to ndarray of shape (n_tiles,), int32
            ``sheet`` (place in `sheets`), ``row`` and ``col`` (in tiles, within the sheet).
        """
        return {name: np.asarray(_array(self.path, self._group, name)[:]) for name in _PROVENANCE}


_PROVENANCE = ("sheet", "row", "col")


class _Rows:
    """The tiles of a store as a two-dimensional array, for dask to slice."""

    def __init__(self, path: Path, tiles: zarr.Array[Any]) -> None:
        self._path, self._tiles = path, tiles
        self.shape = (tiles.shape[0], int(np.prod(tiles.shape[1:])))
        self.dtype = tiles.dtype
        self.ndim = 2

    def __getitem__(self, key: tuple[slice, slice]) -> NDArray[Any]:
        rows, columns = key
        try:
            tiles = np.asarray(self._tiles[rows])
        except Exception as error:  # zarr's errors are of many types, and none says where
            msg = (
                f"{self._path}: tiles {rows.start} to {rows.stop - 1} cannot be read ({error}); "
                "restore the store or ingest the sheets again"
            )
            raise StoreError(msg) from error
        return tiles.reshape(len(tiles), -1)[:, columns]


class StoreWriter:
    """A store being written: tiles are appended in order, a whole chunk a write.

    A context manager: leaving it without an error completes the store.
    """

    def __init__(self, path: Path, group: zarr.Group, arrays: dict[str, zarr.Array[Any]]) -> None:
        self._path, self._group, self._arrays = path, group, arrays
        self._tiles = arrays["tiles"]
        self._sheets: list[Sheet] = []
        self._waiting: list[NDArray[np.uint8]] = []
        self._written = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self._finish()

    def append(self, sheet: Sheet, tiles: NDArray[np.uint8]) -> None:
        """Add the tiles of the next sheet.

        Parameters
        ----------
        sheet : Sheet
        tiles : ndarray of shape (m, height, width) or (m, height, width, bands), uint8
        """
        self._sheets.append(sheet)
        self._waiting.append(tiles)
        chunk = self._tiles.chunks[0]
        if sum(map(len, self._waiting)) >= chunk:
            joined = np.concatenate(self._waiting)
            whole = len(joined) - len(joined) % chunk
            self._write(joined[:whole])
            self._waiting = [joined[whole:]]

    def _write(self, tiles: NDArray[np.uint8]) -> None:
        self._tiles[self._written : self._written + len(tiles)] = tiles
        self._written += len(tiles)

    def _finish(self) -> None:
        if self._waiting:
            self._write(np.concatenate(self._waiting))
        if self._written != self._tiles.shape[0]:
            msg = (
                f"{self._path}: {self._written} of {self._tiles.shape[0]} tiles were written; "
                "the store is not complete, ingest the sheets again"
            )
            raise StoreError(msg)
        for first in range(0, self._written, _PROVENANCE_CHUNK):
            last = min(first + _PROVENANCE_CHUNK, self._written)
            tile = self._tiles.shape[1:3]
            for name, values in _provenance(self._sheets, tile, first, last).items():
                self._arrays[name][first:last] = values
        attributes = _attributes(self._group)
        attributes |= {"sheets": [asdict(sheet) for sheet in self._sheets], "complete": True}
        self._group.attrs["daskkm"] = attributes


def create_store(
    path: str | os.PathLike[str], n_tiles: int, tile: tuple[int, int], bands: tuple[int, ...]
) -> StoreWriter:
    """Create a store for n_tiles tiles, in the place of one that may be there.

    Parameters
    ----------
    path : path-like
    n_tiles : int
    tile : tuple of int
        Height and width in pixels.
    bands : tuple of int
        () for greyscale, (3,) for RGB.

    Returns
    -------
    StoreWriter

    Raises
    ------
    StoreError
        If something is there that is not a store, or the folder cannot be written.
    """
    path = Path(path)
    try:
        _remove_old(path)
        group = zarr.create_group(path, zarr_format=3)
        group.attrs["daskkm"] = {"format": FORMAT, "complete": False}
        shape = (n_tiles, *tile, *bands)
        dimensions = ("tile", "y", "x", "band")[: len(shape)]
        arrays = {"tiles": _create(group, "tiles", shape, "uint8", dimensions)}
        for name in _PROVENANCE:
            arrays[name] = _create(group, name, (n_tiles,), "int32", ("tile",))
    except OSError as error:
        msg = f"{path}: the store cannot be written ({error}); choose another place for it"
        raise StoreError(msg) from error
    return StoreWriter(path, group, arrays)


def open_store(path: str | os.PathLike[str]) -> TileStore:
    """Open an ingested store.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    TileStore

    Raises
    ------
    StoreError
        If there is none, it is not one of daskkm's, or it is not complete.
    """
    # Absolute, because workers read it from folders of their own.
    path = Path(path).absolute()
    group = _open_group(path)
    if group is None:
        msg = f"{path}: there is no store; make one with: python -m daskkm.ingest"
        raise StoreError(msg)
    attributes = _attributes(group)
    if attributes.get("format") != FORMAT:
        msg = (
            f"{path}: this is not a store that this version of daskkm reads "
            f"(format {attributes.get('format')}, not {FORMAT}); ingest the sheets again"
        )
        raise StoreError(msg)
    if not attributes.get("complete"):
        msg = f"{path}: the store is not complete; ingest the sheets again"
        raise StoreError(msg)
    return TileStore(path, group)


def _open_group(path: Path) -> zarr.Group | None:
    try:
        return zarr.open_group(path, mode="r", zarr_format=3)
    except (GroupNotFoundError, FileNotFoundError):
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        msg = f"{path}: the store's metadata cannot be read ({error}); ingest the sheets again"
        raise StoreError(msg) from error


def _remove_old(path: Path) -> None:
    """Make room for a store, but never at the cost of anything else."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    group = _open_group(path)
    if group is None or "daskkm" not in group.attrs:
        msg = f"{path}: something is there that is not a store of daskkm's; choose another place"
        raise StoreError(msg)
    # First the mark: a store half removed must not look whole.
    zarr.open_group(path, mode="r+").attrs["daskkm"] = {"format": FORMAT, "complete": False}
    shutil.rmtree(path)


def _create(
    group: zarr.Group, name: str, shape: tuple[int, ...], dtype: str, dimensions: tuple[str, ...]
) -> zarr.Array[Any]:
    item = int(np.prod(shape[1:])) * np.dtype(dtype).itemsize
    rows = max(1, _CHUNK_BYTES // item) if len(shape) > 1 else _PROVENANCE_CHUNK
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=(min(rows, shape[0]), *shape[1:]),
        filters=None,
        compressors=[Crc32cCodec()],
        dimension_names=dimensions,
        # Else an all-zero chunk is left out, and cannot be told from one that was lost. The array
        # must be written through this very object: the setting is not stored.
        config={"write_empty_chunks": True},
    )


def _attributes(group: zarr.Group) -> dict[str, Any]:
    attributes = group.attrs.get("daskkm")
    return dict(attributes) if isinstance(attributes, dict) else {}


def _array(path: Path, group: zarr.Group, name: str) -> zarr.Array[Any]:
    array = group.get(name)
    if not isinstance(array, zarr.Array):
        msg = f"{path}: the store has no array {name!r}; ingest the sheets again"
        raise StoreError(msg)
    return array


def _provenance(
    sheets: list[Sheet], tile: tuple[int, ...], first: int, last: int
) -> dict[str, NDArray[np.int32]]:
    """Return sheet, row and column of the tiles first … last - 1."""
    grids = np.array([grid(sheet.shape, tile) for sheet in sheets])
    ends = np.cumsum(grids.prod(axis=1))
    indices = np.arange(first, last)
    sheet = np.searchsorted(ends, indices, side="right")
    within = indices - (ends - grids.prod(axis=1))[sheet]
    columns = grids[sheet, 1]
    found = {"sheet": sheet, "row": within // columns, "col": within % columns}
    return {name: values.astype(np.int32) for name, values in found.items()}
