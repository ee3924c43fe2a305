"""Write a store: tiles as they come, and resume where an earlier writer was stopped."""

from __future__ import annotations

import math
import warnings
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from daskkm.errors import StoreError
from daskkm.sizes import sizes
from daskkm.storage import commit, tile_store, zarr_nodes
from daskkm.storage.records import (
    File,
    ImageRecord,
    Skipped,
    describe_differences,
    find_differences,
    grid_shape,
)
from daskkm.storage.tile_store import PROVENANCE, STORE

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    import zarr
    from numpy.typing import NDArray

OVERWRITE = ("overwrite=True",)
# How often at most a writer notes its progress: a note lists every image so far.
_MAX_NOTES = 100


class StoreWriter:
    """A store being written: tiles are appended in order, a whole chunk a write.

    Its progress is noted in its attributes, so that the next writer resumes there.

    Attributes
    ----------
    images : list of ImageRecord
        Those with all tiles in the store, or in the buffer.
    skipped : list of Skipped
    rows : int
        Tiles of a chunk.
    """

    def __init__(self, path: Path, partial: Path, shape: tuple[int, ...]) -> None:
        self._path, self._partial, self._shape = path, partial, shape
        self._tile = shape[1], shape[2]
        self.rows = min(shape[0], choose_chunk_rows(math.prod(shape[1:])))
        self.images: list[ImageRecord] = []
        self.skipped: list[Skipped] = []
        self._buffer: list[NDArray[np.uint8]] = []
        self._n_buffered = self._n_written = 0
        # The next file, and how many of its tiles an earlier writer wrote.
        self._resumed: tuple[File, int] | None = None

    @property
    def done(self) -> int:
        """Number of files that are in the store, or left out."""
        return len(self.images) + len(self.skipped)

    def start(self) -> None:
        """Start a new store."""
        with zarr_nodes.translate_write_errors(self._path, STORE):
            commit.remove_node(self._partial)
            # The attributes hold the size of tiles.
            zarr_nodes.create_group(self._partial, STORE, self._progress())
            self._tiles = self._create("tiles", self._shape, "uint8", self.rows)
            self._note()

    def resume(self, earlier: PartialStore, files: Sequence[Path]) -> None:
        """Resume an ingest that was cut short."""
        attributes = {**earlier.attributes, "written": earlier.n_written}
        with zarr_nodes.translate_write_errors(self._path, STORE):
            self._tiles = earlier.tiles.with_config({"write_empty_chunks": True})
            self._n_written = earlier.n_written
            self._tiles.resize(self._shape)  # its own metadata may be of another size, or damaged
            zarr_nodes.write_attributes(self._partial, STORE, attributes, complete=False)
        self._load_records(earlier, files)

    def _load_records(self, earlier: PartialStore, files: Sequence[Path]) -> None:
        """Take over the records of files whose tiles are written."""
        n_left = earlier.n_written
        both: list[ImageRecord | Skipped] = [*earlier.images, *earlier.skipped]
        records = {record.name: record for record in both}
        for path in files[: len(records)]:
            record = records[path.name]
            if isinstance(record, Skipped):
                self.skipped.append(record)
                continue
            count = math.prod(grid_shape(record.shape, self._tile))
            if count > n_left:
                self._resumed = record, n_left
                break
            self.images.append(record)
            n_left -= count

    def append(self, image: ImageRecord, tiles: NDArray[np.uint8]) -> None:
        """Add the tiles of the next image, (m, height, width) or (m, height, width, bands)."""
        new = tiles[self._take_n_resumed(image) :]
        self._buffer.append(new)
        self._n_buffered += len(new)
        self.images.append(image)
        if self._n_buffered >= self.rows:
            buffered = np.concatenate(self._buffer)
            whole = len(buffered) - len(buffered) % self.rows
            self._write(buffered[:whole])
            self._buffer, self._n_buffered = [buffered[whole:]], len(buffered) - whole

    def skip(self, file: Skipped) -> None:
        """Leave the next file out."""
        self._take_n_resumed(file)
        self.skipped.append(file)

    def _take_n_resumed(self, file: File) -> int:
        """Return how many tiles of the next file an earlier writer wrote."""
        (expected, n), self._resumed = self._resumed or (file, 0), None
        if file != expected:
            msg = f"{self._path}: {file.name} changed while it was being ingested. Ingest again"
            raise StoreError(msg)
        return n

    def _create(self, name: str, shape: tuple[int, ...], dtype: str, rows: int) -> zarr.Array[Any]:
        dimensions = ("tile", "y", "x", "band")[: len(shape)]
        return zarr_nodes.create_array(
            self._partial / name, shape, dtype, rows=rows, dimensions=dimensions
        )

    def _write(self, tiles: NDArray[np.uint8]) -> None:
        with zarr_nodes.translate_write_errors(self._path, STORE):
            before, self._n_written = self._n_written, self._n_written + len(tiles)
            self._tiles[before : self._n_written] = tiles
            interval = -(-self._shape[0] // _MAX_NOTES)
            if before // interval < self._n_written // interval:
                self._note()

    def _records(self) -> dict[str, Any]:
        return {
            "tile": self._tile,
            "images": [asdict(image) for image in self.images],
            "skipped": [asdict(file) for file in self.skipped],
        }

    def _progress(self) -> dict[str, Any]:
        return {**self._records(), "written": self._n_written}

    def _note(self) -> None:
        zarr_nodes.write_attributes(self._partial, STORE, self._progress(), complete=False)

    def finish(self) -> None:
        """Write the last tiles and the provenance of all, and mark the store as complete."""
        if self._n_buffered:
            self._write(np.concatenate(self._buffer))
        with zarr_nodes.translate_write_errors(self._path, STORE):
            if self._n_written < self._shape[0]:  # files were left out
                self._tiles.resize((self._n_written, *self._shape[1:]))
                self._note()
            self._write_provenance()
            zarr_nodes.write_attributes(self._partial, STORE, self._records(), complete=True)

    def _write_provenance(self) -> None:
        n, rows = self._n_written, sizes.provenance_rows
        for name in PROVENANCE:  # an earlier writer may have been stopped here
            commit.remove_node(self._partial / name)
        arrays = {name: self._create(name, (n,), "int32", rows) for name in PROVENANCE}
        for first in range(0, n, rows):
            last = min(first + rows, n)
            for name, values in compute_provenance(self.images, self._tile, first, last).items():
                arrays[name][first:last] = values


class PartialStore(NamedTuple):
    """An ingest that was cut short."""

    tiles: zarr.Array[Any]
    attributes: dict[str, Any]
    images: list[ImageRecord]
    skipped: list[Skipped]
    n_written: int


def _open_partial_store(partial: Path) -> PartialStore | None:
    """Return the ingest in a folder, or None if it has no tiles yet."""
    if not partial.exists() or commit.is_empty(partial):
        return None
    group, attributes = zarr_nodes.open_node(partial, STORE, partial=True)
    if "tiles" not in group:
        return None
    tiles = group["tiles"]
    images = [ImageRecord.from_json(record) for record in attributes["images"]]
    skipped = [Skipped(**record) for record in attributes["skipped"]]
    n_written = attributes.get("written", tiles.shape[0])  # or it is complete
    return PartialStore(tiles, attributes, images, skipped, n_written)


def _compare_partial_store(
    earlier: PartialStore, files: Sequence[Path], shape: tuple[int, ...]
) -> list[str]:
    """Return how an ingest that was cut short differs from one of these files."""
    differences = find_differences(earlier.images, earlier.skipped, files)
    if not earlier.attributes["complete"]:  # the next files are not recorded yet
        n_files = len(earlier.images) + len(earlier.skipped)
        first = {path.name for path in files[:n_files]}
        differences["added"] = [name for name in differences["added"] if name in first]
    return [*describe_differences(differences), *describe_tiles(earlier.tiles.shape[1:], shape[1:])]


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
    """Yield a writer of a store, new or resumed, and complete the store when the context ends.

    It is for `n_tiles` tiles of height and width `tile`, with bands () or (3,), if no file is left
    out. `files` are in the order in which they will be appended or skipped: a partial store is
    resumed if its records of the first of them are still true. `overwrite` says whether to replace
    a store, or a partial store of other files. After an error the partial store stays.

    Raises
    ------
    StoreError
        If something else is at `path`, it cannot be written, or another run writes it.
    """
    with commit.open_partial(path, STORE, resume=True) as partial:
        # The lock may have restored a store, or another run put one there.
        if not overwrite and tile_store.is_present(path):
            msg = f"{path}: a store is there now. Run this again"
            raise StoreError(msg)
        writer = StoreWriter(Path(path), partial, (n_tiles, *tile, *bands))
        if not _resume(writer, partial, files, (n_tiles, *tile, *bands), overwrite=overwrite):
            writer.start()
        yield writer
        writer.finish()
        commit.put_node(partial, path, STORE)


def _resume(
    writer: StoreWriter,
    partial: Path,
    files: Sequence[Path],
    shape: tuple[int, ...],
    *,
    overwrite: bool,
) -> bool:
    """Resume a partial store; return False if there is none, it is damaged, or it is replaced."""
    try:
        earlier = _open_partial_store(partial)
        if earlier is None:
            return False
        differences = _compare_partial_store(earlier, files, shape)
        # Chunks of a store of less than one have other rows.
        fits = not differences and earlier.tiles.chunks[0] == writer.rows
        for _ in zarr_nodes.stream_chunks(
            earlier.tiles, 0, earlier.n_written if fits else 0, STORE
        ):
            pass  # a damaged chunk is an error
    except StoreError as error:
        msg = f"{partial}: the partial store is damaged and starts anew ({error})"
        warnings.warn(msg, stacklevel=2)
        return False
    if differences and earlier.n_written and not overwrite:
        msg = (
            f"{partial}: an ingest of something else was cut short there: "
            f"{', '.join(differences)}. Ingest the same, choose another store, or start anew"
        )
        raise StoreError(msg, options=OVERWRITE)
    if fits:
        writer.resume(earlier, files)
    return fits


def choose_chunk_rows(tile_bytes: int) -> int:
    """Return how many tiles make a chunk: a number that divides well, for those of distances."""
    rows = max(1, sizes.chunk_bytes // tile_bytes)
    return rows - rows % (1 << max(0, rows.bit_length() - 5))


def compute_provenance(
    images: Sequence[ImageRecord], tile: tuple[int, ...], first: int, last: int
) -> dict[str, NDArray[np.int32]]:
    """Return image, row and column of the tiles first … last - 1."""
    grids = np.array([grid_shape(image.shape, tile) for image in images])
    ends = np.cumsum(grids.prod(axis=1))
    indices = np.arange(first, last)
    image = np.searchsorted(ends, indices, side="right")
    within = indices - (ends - grids.prod(axis=1))[image]
    columns = grids[image, 1]
    found = {"image": image, "row": within // columns, "col": within % columns}
    return {name: values.astype(np.int32) for name, values in found.items()}


def describe_tiles(shape: Sequence[int], asked: Sequence[int]) -> list[str]:
    """Return how the shape of a tile differs from the one that is asked for, if it does."""
    if tuple(shape) == tuple(asked):
        return []
    return [f"tiles of {' x '.join(map(str, shape))}, not {' x '.join(map(str, asked))}"]


def read_partial_tile_size(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Return height and width of the tiles of a partial store, or None if there is none.

    Raise StoreError if the partial store is damaged, or something else is at its path.
    """
    partial = commit.partial_path(path)
    if not partial.exists():
        return None
    commit.check_replaceable(partial, STORE)
    if commit.is_empty(partial):
        return None
    height, width = zarr_nodes.open_node(partial, STORE, partial=True)[1]["tile"]
    return height, width
