"""Write a store, and resume an interrupted ingest."""

from __future__ import annotations

import math
import warnings
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from daskkm.block_sizes import sizes
from daskkm.errors import StoreError
from daskkm.storage import commit, tile_store, zarr_nodes
from daskkm.storage.records import (
    File,
    ImageRecord,
    SkippedFile,
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
# A writer saves its progress at most this often, since the metadata lists every image.
_MAX_SAVES = 100


class StoreWriter:
    """Writer of a store: appends tiles in order, in whole chunks.

    The attributes of the partial store hold the progress, from which the next writer resumes.
    `images` and `skipped` are the records of the files so far; a chunk has `rows` tiles.
    """

    def __init__(self, path: Path, partial: Path, shape: tuple[int, ...]) -> None:
        self._path, self._partial, self._shape = path, partial, shape
        self._tile = shape[1], shape[2]
        self.rows = min(shape[0], choose_chunk_rows(math.prod(shape[1:])))
        self.images: list[ImageRecord] = []
        self.skipped: list[SkippedFile] = []
        self._buffer: list[NDArray[np.uint8]] = []
        self._n_buffered = self._n_written = 0
        # The next file, and the number of its tiles that an earlier writer wrote.
        self._resumed: tuple[File, int] | None = None

    @property
    def n_done(self) -> int:
        """Number of files that were appended or skipped."""
        return len(self.images) + len(self.skipped)

    def start(self) -> None:
        """Start a new store."""
        with zarr_nodes.translate_write_errors(self._path, STORE):
            commit.remove_node(self._partial)
            # From the first write on, the attributes hold the size of tiles.
            zarr_nodes.create_group(self._partial, STORE, self._make_progress())
            self._tiles = self._create_array("tiles", self._shape, "uint8", self.rows)
            self._save_progress()

    def resume(self, partial_store: PartialStore, files: Sequence[Path]) -> None:
        """Resume an interrupted ingest."""
        attributes = {**partial_store.attributes, "written": partial_store.n_written}
        with zarr_nodes.translate_write_errors(self._path, STORE):
            self._tiles = partial_store.tiles.with_config({"write_empty_chunks": True})
            self._n_written = partial_store.n_written
            # Rewrite the metadata of the array, which may be damaged.
            self._tiles.resize(self._shape)
            zarr_nodes.write_attributes(self._partial, STORE, attributes, complete=False)
        self._load_records(partial_store, files)

    def _load_records(self, partial_store: PartialStore, files: Sequence[Path]) -> None:
        """Load the records of files whose tiles are written."""
        n_left = partial_store.n_written
        both: list[ImageRecord | SkippedFile] = [*partial_store.images, *partial_store.skipped]
        records = {record.name: record for record in both}
        for path in files[: len(records)]:
            record = records[path.name]
            if isinstance(record, SkippedFile):
                self.skipped.append(record)
                continue
            count = math.prod(grid_shape(record.shape, self._tile))
            if count > n_left:
                self._resumed = record, n_left
                break
            self.images.append(record)
            n_left -= count

    def append(self, image: ImageRecord, tiles: NDArray[np.uint8]) -> None:
        """Append the tiles of the next image, (m, height, width) or (m, height, width, bands)."""
        new = tiles[self._take_n_resumed(image) :]
        self._buffer.append(new)
        self._n_buffered += len(new)
        self.images.append(image)
        if self._n_buffered >= self.rows:
            buffered = np.concatenate(self._buffer)
            whole = len(buffered) - len(buffered) % self.rows
            self._write(buffered[:whole])
            self._buffer, self._n_buffered = [buffered[whole:]], len(buffered) - whole

    def skip(self, file: SkippedFile) -> None:
        """Record the next file as skipped."""
        self._take_n_resumed(file)
        self.skipped.append(file)

    def _take_n_resumed(self, file: File) -> int:
        """Return the number of tiles of the next file that an earlier writer wrote."""
        (expected, n), self._resumed = self._resumed or (file, 0), None
        if file != expected:
            msg = f"{self._path}: {file.name} changed during the ingest. Ingest the images again"
            raise StoreError(msg)
        return n

    def _create_array(
        self, name: str, shape: tuple[int, ...], dtype: str, rows: int
    ) -> zarr.Array[Any]:
        dimensions = ("tile", "y", "x", "band")[: len(shape)]
        return zarr_nodes.create_array(
            self._partial / name, shape, dtype, rows=rows, dimensions=dimensions
        )

    def _write(self, tiles: NDArray[np.uint8]) -> None:
        with zarr_nodes.translate_write_errors(self._path, STORE):
            before, self._n_written = self._n_written, self._n_written + len(tiles)
            self._tiles[before : self._n_written] = tiles
            interval = -(-self._shape[0] // _MAX_SAVES)
            if before // interval < self._n_written // interval:
                self._save_progress()

    def _make_records(self) -> dict[str, Any]:
        return {
            "tile": self._tile,
            "images": [asdict(image) for image in self.images],
            "skipped": [asdict(file) for file in self.skipped],
        }

    def _make_progress(self) -> dict[str, Any]:
        return {**self._make_records(), "written": self._n_written}

    def _save_progress(self) -> None:
        zarr_nodes.write_attributes(self._partial, STORE, self._make_progress(), complete=False)

    def finish(self) -> None:
        """Write the buffered tiles and the provenance, and mark the store as complete."""
        if self._n_buffered:
            self._write(np.concatenate(self._buffer))
        with zarr_nodes.translate_write_errors(self._path, STORE):
            if self._n_written < self._shape[0]:  # files were skipped
                self._tiles.resize((self._n_written, *self._shape[1:]))
                self._save_progress()
            self._write_provenance()
            zarr_nodes.write_attributes(self._partial, STORE, self._make_records(), complete=True)

    def _write_provenance(self) -> None:
        n, rows = self._n_written, sizes.provenance_rows
        for name in PROVENANCE:  # leftovers of an earlier writer
            commit.remove_node(self._partial / name)
        arrays = {name: self._create_array(name, (n,), "int32", rows) for name in PROVENANCE}
        for first in range(0, n, rows):
            last = min(first + rows, n)
            for name, values in compute_provenance(self.images, self._tile, first, last).items():
                arrays[name][first:last] = values


class PartialStore(NamedTuple):
    """Content of a partial store."""

    tiles: zarr.Array[Any]
    attributes: dict[str, Any]
    images: list[ImageRecord]
    skipped: list[SkippedFile]
    n_written: int


def _open_partial_store(partial: Path) -> PartialStore | None:
    """Return the partial store in a folder, or None if there is no array of tiles yet."""
    if not partial.exists() or commit.is_empty(partial):
        return None
    group, attributes = zarr_nodes.open_node(partial, STORE, partial=True)
    if "tiles" not in group:
        return None
    tiles = group["tiles"]
    images = [ImageRecord.from_json(record) for record in attributes["images"]]
    skipped = [SkippedFile(**record) for record in attributes["skipped"]]
    n_written = attributes.get("written", tiles.shape[0])  # a complete store has no such attribute
    return PartialStore(tiles, attributes, images, skipped, n_written)


def _compare_partial_store(
    partial_store: PartialStore, files: Sequence[Path], shape: tuple[int, ...]
) -> list[str]:
    """Return the differences between a partial store and an ingest of these files."""
    differences = find_differences(partial_store.images, partial_store.skipped, files)
    if not partial_store.attributes["complete"]:  # files after these have no record yet
        n_files = len(partial_store.images) + len(partial_store.skipped)
        first = {path.name for path in files[:n_files]}
        differences["added"] = [name for name in differences["added"] if name in first]
    return [
        *describe_differences(differences),
        *describe_tiles(partial_store.tiles.shape[1:], shape[1:]),
    ]


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
    """Yield a writer of a new or resumed store, and commit the store at exit.

    The store has at most `n_tiles` tiles of height and width `tile`, with bands () or (3,). A
    partial store is resumed if its records match the first of `files`, the files in order of
    `append` and `skip`. With `overwrite` a store, or a partial store of other files, is replaced.
    After an error the partial store stays. Raise StoreError if `path` holds other content, the
    store cannot be written, or another run writes the store.
    """
    with commit.open_partial(path, STORE, resume=True) as partial:
        # `lock_location` may have restored a store, or another run may have committed a store.
        if not overwrite and tile_store.is_present(path):
            msg = f"{path}: another run has written a store. Ingest the images again"
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
    """Resume a partial store; return False if the writer must start a new store."""
    try:
        partial_store = _open_partial_store(partial)
        if partial_store is None:
            return False
        differences = _compare_partial_store(partial_store, files, shape)
        # A store smaller than one chunk has chunks of another size.
        fits = not differences and partial_store.tiles.chunks[0] == writer.rows
        for _ in zarr_nodes.stream_chunks(
            partial_store.tiles, 0, partial_store.n_written if fits else 0, STORE
        ):
            pass  # raises for a damaged chunk
    except StoreError as error:
        msg = f"{partial}: the partial store is damaged and starts over ({error})"
        warnings.warn(msg, stacklevel=2)
        return False
    if differences and partial_store.n_written and not overwrite:
        msg = (
            f"{partial}: partial store of another ingest: {', '.join(differences)}. Ingest the "
            "same images and tiles, choose another store, or overwrite the partial store"
        )
        raise StoreError(msg, options=OVERWRITE)
    if fits:
        writer.resume(partial_store, files)
    return fits


def choose_chunk_rows(tile_bytes: int) -> int:
    """Return the number of tiles of a chunk, with many divisors, for chunks of distances."""
    rows = max(1, sizes.chunk_bytes // tile_bytes)
    return rows - rows % (1 << max(0, rows.bit_length() - 5))


def compute_provenance(
    images: Sequence[ImageRecord], tile: tuple[int, ...], first: int, last: int
) -> dict[str, NDArray[np.int32]]:
    """Return image, row and column of tiles first … last - 1."""
    grids = np.array([grid_shape(image.shape, tile) for image in images])
    ends = np.cumsum(grids.prod(axis=1))
    indices = np.arange(first, last)
    image = np.searchsorted(ends, indices, side="right")
    within = indices - (ends - grids.prod(axis=1))[image]
    columns = grids[image, 1]
    arrays = {"image": image, "row": within // columns, "col": within % columns}
    return {name: values.astype(np.int32) for name, values in arrays.items()}


def describe_tiles(shape: Sequence[int], other: Sequence[int]) -> list[str]:
    """Return the difference between two shapes of a tile as a list of at most one text."""
    if tuple(shape) == tuple(other):
        return []
    return [f"tiles of {' x '.join(map(str, shape))}, not {' x '.join(map(str, other))}"]


def read_partial_tile_size(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Return height and width of the tiles of a partial store, or None without a partial store.

    Raise StoreError if the partial store is damaged, or its folder holds other content.
    """
    partial = commit.partial_path(path)
    if not partial.exists():
        return None
    commit.check_replaceable(partial, STORE)
    if commit.is_empty(partial):
        return None
    height, width = zarr_nodes.open_node(partial, STORE, partial=True)[1]["tile"]
    return height, width
