"""The store: tiles in a Zarr group, where they came from, and whether it is whole.

Chunks are uncompressed (compressed ones read at a fifth of the speed from local disks),
4 MiB, whole tiles, each with a CRC-32C; every write covers whole chunks. The attribute
``complete`` is written last: a store without it is never read. A chunk that is missing, short
or damaged is an error and never zeros.
"""

from __future__ import annotations

import math
import os
import shutil
from contextlib import contextmanager
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
    from collections.abc import Iterator
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

        Computing it raises StoreError if a chunk is missing or damaged.

        Returns
        -------
        dask array of shape (n_tiles, n_features), uint8
            One block a chunk of the store.
        """
        n, rows = len(self), self.tiles.chunks[0]
        d = math.prod(self.tile)
        return da.map_blocks(
            _read_rows,
            path=self.path,
            tiles=self.tiles,
            chunks=((rows,) * (n // rows) + ((n % rows,) if n % rows else ()), (d,)),
            dtype=self.tiles.dtype,
            meta=np.empty((0, 0), self.tiles.dtype),
            name=f"tiles-{tokenize(str(self.path), self.sheets, self.tile)}",
        )

    def check(self) -> None:
        """Find out whether all chunks are there and whole, without reading them.

        Raises
        ------
        StoreError
            If a chunk is missing or short.
        """
        for name in ("tiles", *_PROVENANCE):
            with _read_errors_named(self.path, name, 0, len(self)):
                _check_chunks(self.path, _array(self.path, self._group, name), 0, len(self))

    def provenance(self) -> dict[str, NDArray[np.int32]]:
        """Read where each tile came from.

        Returns
        -------
        dict of str to ndarray of shape (n_tiles,), int32
            ``sheet`` (place in `sheets`), ``row`` and ``col`` (in tiles, within the sheet).

        Raises
        ------
        StoreError
            If a chunk is missing or damaged.
        """
        arrays = {name: _array(self.path, self._group, name) for name in _PROVENANCE}
        return {name: _read(self.path, array, 0, len(self)) for name, array in arrays.items()}


_PROVENANCE = ("sheet", "row", "col")


def _read_rows(path: Path, tiles: zarr.Array[Any], block_id: tuple[int, int]) -> NDArray[np.uint8]:
    """Read a block: the tiles of one chunk, as rows."""
    rows = tiles.chunks[0]
    first = block_id[0] * rows
    block = _read(path, tiles, first, min(first + rows, tiles.shape[0]))
    return block.reshape(len(block), -1)


def _read(path: Path, array: zarr.Array[Any], first: int, last: int) -> NDArray[Any]:
    """Read rows first … last - 1 of an array, or say which of them cannot be read."""
    with _read_errors_named(path, array.path, first, last):
        _check_chunks(path, array, first, last)
        return np.asarray(array[first:last])


@contextmanager
def _read_errors_named(path: Path, name: str, first: int, last: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # zarr's errors are of many types, and none says where
        what = "tiles" if name == "tiles" else f"{name} of tiles"
        msg = (
            f"{path}: {what} {first} to {last - 1} cannot be read ({error}); "
            "restore the store, or remove it and ingest the sheets again"
        )
        raise StoreError(msg) from error


def _check_chunks(path: Path, array: zarr.Array[Any], first: int, last: int) -> None:
    """Raise if a chunk is missing or short: zarr reads one that is not there as zeros."""
    rows = array.chunks[0]
    # All chunks are of one size, the last one padded; then comes a checksum of 4 bytes.
    whole = math.prod(array.chunks) * array.dtype.itemsize + 4
    for i in range(first // rows, -(-last // rows)):
        key = array.metadata.encode_chunk_key((i, *(0,) * (array.ndim - 1)))
        size = (path / array.path / key).stat().st_size
        if size != whole:
            msg = f"chunk {key} has {size} bytes, not {whole}"
            raise ValueError(msg)


class StoreWriter:
    """A store being written: tiles are appended in order, a whole chunk a write.

    It is written beside its place, under a name of its own, and takes its place, and that of
    a store that was there, when it is complete: so nothing is lost when writing fails. A
    context manager: leaving it without an error completes the store.
    """

    def __init__(self, path: Path, n_tiles: int, tile: tuple[int, int], bands: tuple[int, ...]):
        self._path = path
        self._partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        self._tile = tile
        self._sheets: list[Sheet] = []
        self._waiting: list[NDArray[np.uint8]] = []
        self._written = 0
        self._shape = (n_tiles, *tile, *bands)

    def __enter__(self) -> Self:
        try:
            with _write_errors_named(self._path):
                self._begin()
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                with _write_errors_named(self._path):
                    self._finish()
                    _replace(self._path, self._partial)
        finally:
            self._discard()

    def _begin(self) -> None:
        self._group = zarr.create_group(self._partial, zarr_format=3, overwrite=True)
        self._group.attrs["daskkm"] = {"format": FORMAT, "complete": False}
        dimensions = ("tile", "y", "x", "band")[: len(self._shape)]
        self._tiles = _create(self._group, "tiles", self._shape, "uint8", dimensions)
        self._provenance = {
            name: _create(self._group, name, self._shape[:1], "int32", ("tile",))
            for name in _PROVENANCE
        }

    def _discard(self) -> None:
        """Remove what was not completed. After an interrupt zarr's threads may still write."""
        for _ in range(100):
            if not self._partial.exists():
                return
            shutil.rmtree(self._partial, ignore_errors=True)

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
            with _write_errors_named(self._path):
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
            for name, values in _provenance(self._sheets, self._tile, first, last).items():
                self._provenance[name][first:last] = values
        sheets = [asdict(sheet) for sheet in self._sheets]
        self._group.attrs["daskkm"] = {"format": FORMAT, "complete": True, "sheets": sheets}


def create_store(
    path: str | os.PathLike[str], n_tiles: int, tile: tuple[int, int], bands: tuple[int, ...]
) -> StoreWriter:
    """Begin a store for n_tiles tiles, to take the place of one that may be there.

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
        If something is there that is not a store, or the folder cannot be written. Its methods
        raise it too, when writing fails.
    """
    try:
        path = Path(path).resolve()  # the store that a link leads to is replaced, not the link
        _check_free(path)
    except (OSError, RuntimeError) as error:
        msg = f"{path}: a store cannot be put there ({error}); choose another place"
        raise StoreError(msg) from error
    return StoreWriter(path, n_tiles, tile, bands)


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
        what = "what is there is no store" if path.exists() else "there is no store"
        msg = f"{path}: {what}; make one with: python -m daskkm.ingest IMAGES --store PATH"
        raise StoreError(msg)
    attributes = _attributes(group)
    if attributes.get("format") != FORMAT:
        msg = (
            f"{path}: this is not a store that this version of daskkm reads "
            f"(format {attributes.get('format')}, not {FORMAT}); use the version that made it, "
            "or remove it and ingest the sheets again"
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
        msg = (
            f"{path}: the metadata cannot be read ({error}); remove it and ingest the sheets again"
        )
        raise StoreError(msg) from error


def _check_free(path: Path) -> None:
    """Raise StoreError if a store put there would replace anything but a store like it."""
    found = None
    if path.is_mount() or path == Path.cwd():
        found = "it is a mount point or the folder you are in"
    elif path.is_dir():
        names = {entry.name for entry in path.iterdir() if not entry.name.startswith(".")}
        if foreign := sorted(names - {"zarr.json", "tiles", *_PROVENANCE}):
            found = f"it holds {foreign[0]}"
        elif names:
            group = _open_group(path)
            if group is None or _attributes(group).get("format") != FORMAT:
                found = "it is of another format"
    elif path.exists():
        found = "it is a file"
    if found:
        msg = (
            f"{path}: this is not a store of daskkm's to be replaced ({found}); "
            "choose another place"
        )
        raise StoreError(msg)


def _replace(path: Path, partial: Path) -> None:
    """Put a complete store in its place. The one that was there goes only when that is done."""
    _check_free(path)  # again: much may have happened while the tiles were written
    old = path.with_name(f"{path.name}.{os.getpid()}.old")
    try:
        if path.exists():
            path.rename(old)
        partial.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _write_errors_named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        msg = f"{path}: the store cannot be written ({error}); make room or choose another place"
        raise StoreError(msg) from error


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
    try:
        array = group.get(name)
    except (OSError, ValueError, TypeError, KeyError) as error:
        msg = f"{path}: the metadata of {name} cannot be read ({error}); ingest the sheets again"
        raise StoreError(msg) from error
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
