"""Writing a store: tiles as they come, and going on where an earlier writer was stopped."""

from __future__ import annotations

import math
import warnings
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import zarr

from daskkm.errors import StoreError
from daskkm.storage import commit, metadata, nodes, tile_store
from daskkm.storage.records import (
    File,
    ImageRecord,
    Skipped,
    describe_differences,
    find_differences,
    grid,
)
from daskkm.storage.tile_store import PROVENANCE, STORE

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

OVERWRITE = ("overwrite=True",)
# Provenance is 4 bytes a tile: far more tiles a chunk.
_PROVENANCE_CHUNK = 1 << 20
# How often at most a writer notes how far it has come. What it says is of every image so far.
_NOTES = 100


class StoreWriter:
    """A store being written: tiles are appended in order, a whole chunk a write.

    How far it has come is noted in it, so that the next writer goes on there.

    Attributes
    ----------
    images : list of ImageRecord
        Those whose tiles are in the store, or wait to be written.
    skipped : list of Skipped
    """

    def __init__(
        self,
        path: Path,
        partial: Path,
        n_tiles: int,
        tile: tuple[int, int],
        bands: tuple[int, ...],
        files: Sequence[Path],
        *,
        overwrite: bool,
    ) -> None:
        self._path = path
        self._tile = tile
        self._shape = (n_tiles, *tile, *bands)
        self._rows = min(n_tiles, tile_store.chunk_rows(math.prod(self._shape[1:])))
        self.images: list[ImageRecord] = []
        self.skipped: list[Skipped] = []
        self._waiting: list[NDArray[np.uint8]] = []
        self._n_waiting = 0
        self._written = 0
        # Of the next file, as an earlier writer read it, so many tiles are written already.
        self._begun: tuple[ImageRecord, int] | None = None
        with nodes.write_errors_named(path, STORE):
            if not self._resume(partial, files, overwrite=overwrite):
                self._group = nodes.create_group(partial, STORE)
                self._note()  # how large tiles are, as a sweep wants to know
                self._tiles = self._create("tiles", self._shape, "uint8", self._rows)
                self._note()

    @property
    def done(self) -> int:
        """How many files are behind: in the store, or left out."""
        return len(self.images) + len(self.skipped)

    def _resume(self, partial: Path, files: Sequence[Path], *, overwrite: bool) -> bool:
        """Resume an ingest that was cut short; return False if there is nothing to resume.

        Raises
        ------
        StoreError
            If it is of other images or tiles, some of which are written, unless `overwrite`.
        """
        try:
            found = _read_partial(partial)
            if found is None:
                return False
            differences = self._differences(found, files)
            # Chunks of a store of less than one have other rows.
            fits = not differences and found.tiles.chunks[0] == self._rows
            for _ in nodes.stream(found.tiles, 0, found.written if fits else 0, STORE):
                pass
        except StoreError as error:
            msg = f"{partial}: the ingest that was cut short is damaged and begins anew ({error})"
            warnings.warn(msg, stacklevel=2)
            return False
        if differences and found.written and not overwrite:
            raise _of_others(partial, differences)
        if fits:
            self._go_on(partial, found, files)
        return fits

    def _differences(self, found: _Partial, files: Sequence[Path]) -> list[str]:
        """Return how what was written differs from these files, cut into such tiles."""
        differences = find_differences(found.images, found.skipped, files)
        if not found.complete:  # the next files are not recorded yet
            first = {path.name for path in files[: found.n_files]}
            differences["added"] = [name for name in differences["added"] if name in first]
        shapes = found.tiles.shape[1:], self._shape[1:]
        return [*describe_differences(differences), *describe_tiles(*shapes)]

    def _go_on(self, partial: Path, found: _Partial, files: Sequence[Path]) -> None:
        """Take over what was written, and the records of its files."""
        self._group = found.group
        array = zarr.open_array(partial / "tiles", mode="r+", zarr_format=3)
        self._tiles = array.with_config({"write_empty_chunks": True})
        self._written = left = found.written
        if self._tiles.shape != self._shape and not found.complete:
            self._resize(self._shape[0], found.said)
        both: list[ImageRecord | Skipped] = [*found.images, *found.skipped]
        records = {record.name: record for record in both}
        for record in (records[path.name] for path in files[: found.n_files]):
            if isinstance(record, Skipped):
                self.skipped.append(record)
            else:
                count = math.prod(grid(record.shape, self._tile))
                if count > left:
                    self._begun = record, left
                    break
                self.images.append(record)
                left -= count

    def append(self, image: ImageRecord, tiles: NDArray[np.uint8]) -> None:
        """Add the tiles of the next image.

        Parameters
        ----------
        image : Image
        tiles : ndarray of shape (m, height, width) or (m, height, width, bands), uint8

        Raises
        ------
        StoreError
            If they cannot be written, or the image is not the one of which some are.
        """
        new = tiles[self._begun_of(image) :]
        self._waiting.append(new)
        self._n_waiting += len(new)
        self.images.append(image)
        if self._n_waiting >= self._rows:
            joined = np.concatenate(self._waiting)
            whole = len(joined) - len(joined) % self._rows
            self._write(joined[:whole])
            self._waiting, self._n_waiting = [joined[whole:]], len(joined) - whole

    def skip(self, file: Skipped) -> None:
        """Leave the next file out."""
        self._begun_of(file)
        self.skipped.append(file)

    def _begun_of(self, file: File) -> int:
        """Return how many tiles of the next file are in the store."""
        (expected, n), self._begun = self._begun or (file, 0), None
        if file != expected:
            msg = f"{self._path}: {file.name} changed while it was being ingested; ingest again"
            raise StoreError(msg)
        return n

    def _resize(self, n: int, said: Mapping[str, Any]) -> None:
        """Have another number of tiles, and go on saying what was said."""
        self._tiles.resize((n, *self._shape[1:]))
        nodes.note(self._group, STORE, said)

    def _create(self, name: str, shape: tuple[int, ...], dtype: str, rows: int) -> zarr.Array[Any]:
        dimensions = ("tile", "y", "x", "band")[: len(shape)]
        return nodes.create_array(
            self._group, name, shape, dtype, STORE, rows=rows, dimensions=dimensions
        )

    def _write(self, tiles: NDArray[np.uint8]) -> None:
        with nodes.write_errors_named(self._path, STORE):
            before, self._written = self._written, self._written + len(tiles)
            self._tiles[before : self._written] = tiles
            every = -(-self._shape[0] // _NOTES)
            if before // every < self._written // every:
                self._note()

    def _said(self) -> dict[str, Any]:
        return {
            "tile": self._tile,
            "images": [asdict(image) for image in self.images],
            "skipped": [asdict(file) for file in self.skipped],
        }

    def _so_far(self) -> dict[str, Any]:
        return {**self._said(), "written": self._written}

    def _note(self) -> None:
        nodes.note(self._group, STORE, self._so_far())

    def finish(self) -> None:
        """Write what is left: the last tiles, where each came from, and that the store is whole."""
        if self._n_waiting:
            self._write(np.concatenate(self._waiting))
        n = self._written
        with nodes.write_errors_named(self._path, STORE):
            if n < self._shape[0]:  # files were left out
                self._resize(n, self._so_far())
            arrays = {
                name: self._create(name, (n,), "int32", _PROVENANCE_CHUNK) for name in PROVENANCE
            }
            for first in range(0, n, _PROVENANCE_CHUNK):
                last = min(first + _PROVENANCE_CHUNK, n)
                for name, values in tile_store.provenance(
                    self.images, self._tile, first, last
                ).items():
                    arrays[name][first:last] = values
            nodes.complete(self._group, STORE, self._said())


class _Partial(NamedTuple):
    """What an ingest that was cut short left: its group and tiles, and what it says of itself."""

    group: zarr.Group
    tiles: zarr.Array[Any]
    said: dict[str, Any]
    images: list[ImageRecord]
    skipped: list[Skipped]
    complete: bool
    written: int

    @property
    def n_files(self) -> int:
        """How many files it has records of: the first ones."""
        return len(self.images) + len(self.skipped)


def _read_partial(partial: Path) -> _Partial | None:
    """Return what an ingest left in a folder, if anything; read no chunk.

    Raises
    ------
    StoreError
        If it is damaged.
    """
    opened = nodes.reopen(partial, STORE)
    if opened is None:
        return None
    group, said = opened
    array = nodes.member(group, "tiles", STORE)
    nodes.refuse_links(partial, "tiles/c", STORE)
    images = [ImageRecord.from_json(record) for record in said["images"]]
    skipped = [Skipped(**record) for record in said["skipped"]]
    written = said.get("written", array.shape[0])  # or it is complete
    return _Partial(group, array, said, images, skipped, said["complete"], written)


def _of_others(partial: Path, differences: Sequence[str]) -> StoreError:
    msg = (
        f"{partial}: an ingest of something else was cut short there: {', '.join(differences)}. "
        "Go on with the same, choose another store, or begin anew"
    )
    return StoreError(msg, options=OVERWRITE)


def check_images(path: str | os.PathLike[str], names: Iterable[str]) -> None:
    """Raise StoreError if images of these names are more than a store can say something of."""
    image = asdict(ImageRecord("", 0, "0" * 64, (1, 1), (0, 0)))
    one, two = (
        len(metadata.sealed({"attributes": {"daskkm": {"images": [image] * n}}}, {}))
        for n in (1, 2)
    )
    with nodes.write_errors_named(Path(path), STORE):
        least = sum(two - one + len(ascii(name)) - len("''") for name in names)
        nodes.check_metadata_bytes(least, STORE)


@contextmanager
def open_writer(
    path: str | os.PathLike[str],
    n_tiles: int,
    tile: tuple[int, int],
    bands: tuple[int, ...],
    files: Sequence[Path] = (),
    *,
    overwrite: bool = False,
) -> Iterator[StoreWriter]:
    """Begin a store, or go on with one.

    A context manager: leaving it without an error completes the store. Else what was written stays
    beside the place, for the next writer.

    Parameters
    ----------
    path : path-like
    n_tiles : int
        Of all files, if none is left out.
    tile : tuple of int
        Height and width in pixels.
    bands : tuple of int
        () for greyscale, (3,) for RGB.
    files : sequence of Path
        In the order in which their tiles will be appended, or they be skipped. An earlier writer is
        followed if what it knew of the first of these is still true.
    overwrite : bool, default False
        Whether to take the place of a store that is there, or of an ingest of other files.

    Yields
    ------
    StoreWriter

    Raises
    ------
    StoreError
        If something is there that is not to be replaced, it cannot be written, or another run is
        writing.
    """
    with commit.resuming(path, STORE) as partial:
        if not overwrite and tile_store.is_there(
            path
        ):  # put, or brought back, since the caller looked
            msg = f"{path}: a store is there now. Run this again"
            raise StoreError(msg)
        writer = StoreWriter(Path(path), partial, n_tiles, tile, bands, files, overwrite=overwrite)
        yield writer
        writer.finish()


def describe_tiles(is_: Sequence[int], asked: Sequence[int]) -> list[str]:
    """Return how a tile's shape differs from the one that is asked for, if it does."""
    if tuple(is_) == tuple(asked):
        return []
    return [f"tiles of {' x '.join(map(str, is_))}, not {' x '.join(map(str, asked))}"]


def tile_of_begun(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Return height and width of the tiles of a store that is not complete, if there is one.

    Raises
    ------
    StoreError
        If they are not known.
    """
    begun = commit.begun(path)
    if not begun.exists():
        return None
    commit.check_free(begun, STORE)  # it may be anything else
    found = nodes.reopen(begun, STORE)
    if found is None and not begun.exists():  # it has just been completed
        return None
    if found is None:
        msg = (
            f"{begun}: an ingest was cut short, or has just begun, and how large its tiles are is "
            "not known; run it again"
        )
        raise StoreError(msg)
    tile = found[1]["tile"]
    return tile[0], tile[1]
