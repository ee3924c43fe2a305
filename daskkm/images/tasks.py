"""Tasks of an ingest: decode a group of images and write chunks of tiles."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from daskkm.errors import ImageError
from daskkm.images import pillow
from daskkm.images.grid import copy_tiles
from daskkm.storage import nodes
from daskkm.storage.arrays import get_buffer
from daskkm.storage.records import ImageRecord, SkippedFile, grid_shape, read_state
from daskkm.storage.tile_store import PARTIAL, STORE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from daskkm.images.plan import Group
    from daskkm.storage.arrays import ChunkedArray
    from daskkm.storage.locations import Location


_DIGEST_CHARS = 64
# New memory, of more than 128 KiB, would take longer than to copy the pixels.
_STRIP_BYTES = 1 << 16
# Threads that decode images of fewer pixels would wait for the GIL: one thread is faster.
_SMALL_PIXELS = 1 << 17
_SMALL_LOCK = threading.Lock()


@dataclass
class Decoded:
    """Result of a group: records of its images and bad files, and tiles of chunks at its seams.

    `fragments` holds, for each chunk at a seam, the row of the first tile and the tiles.
    """

    images: list[ImageRecord] = field(default_factory=list)
    bad: list[SkippedFile] = field(default_factory=list)
    fragments: dict[int, tuple[int, NDArray[Any]]] = field(default_factory=dict)


def read_headers(
    paths: Sequence[Location],
) -> list[tuple[tuple[int, ...], tuple[int, ...] | SkippedFile]]:
    """Return the state of each file, and its shape or the record of a bad file."""
    found: list[tuple[tuple[int, ...], tuple[int, ...] | SkippedFile]] = []
    with pillow.configure_pillow():
        for path in paths:
            state = read_state(path)
            try:
                found.append((state, pillow.read_shape(path, state)))
            except ImageError as error:
                found.append((state, SkippedFile.from_error(path, error, state)))
    return found


def decode_group(
    tiles: ChunkedArray,
    paths: Sequence[Location],
    shapes: Sequence[tuple[int, ...]],
    states: Sequence[tuple[int, ...]],
    start: int,
    group: Group,
    *,
    skip: bool,
) -> Decoded:
    """Decode images, write the whole chunks of a group, and record its images.

    Parameters
    ----------
    tiles : ChunkedArray
    paths, shapes, states : sequences
        Of the images of the group; shapes and states are those of the headers.
    start : int
        Index of the first tile in the store.
    group : Group
    skip : bool
        Return bad files, and write nothing from the first of them on, instead of raising.

    Raises
    ------
    ImageError
        If an image is bad, or has changed since its header was read.
    StoreError
        If a chunk cannot be written.
    """
    tile = tiles.shape[1], tiles.shape[2]
    chunks = _Chunks(tiles, start, group)
    result = Decoded(fragments=chunks.fragments)
    small = sum(height * width for height, width, *_ in shapes) < _SMALL_PIXELS * len(shapes)
    with pillow.configure_pillow(), _SMALL_LOCK if small else nullcontext():
        for path, shape, state in zip(paths, shapes, states, strict=True):
            try:
                image = pillow.PillowImage(path, state)
                strips = _read_strips(image, tile)
                first = next(strips)
            except ImageError as error:
                if not skip:
                    raise
                # Keep no error: the traceback would keep the pixels in memory.
                result.bad.append(SkippedFile.from_error(path, error, state))
                continue
            if image.shape != shape:
                msg = f"{path}: the file changed during the ingest. Run the ingest again"
                raise ImageError(msg)
            result.images.append(image.make_record(tile))
            if not result.bad:
                for strip in chain([first], strips):
                    chunks.add(strip)
    if not result.bad:
        chunks.flush()
        write_records(tiles.location.parent, start, result.images)
    return result


def _read_strips(image: pillow.PillowImage, tile: tuple[int, int]) -> Iterator[NDArray[Any]]:
    """Yield the rows of whole tiles of an image, as many at a time as stay in the cache."""
    row_bytes = math.prod(image.shape[1:]) * image.dtype.itemsize
    step = tile[0] * max(1, _STRIP_BYTES // (row_bytes * tile[0]))
    end = image.shape[0] - image.shape[0] % tile[0]
    for top in range(0, end, step):
        yield image.read_window(slice(top, min(top + step, end)), slice(None))


class _Chunks:
    """Chunks that are filled by tiles in order, and written when they are full."""

    def __init__(self, tiles: ChunkedArray, start: int, group: Group) -> None:
        self._tiles, self._next = tiles, start
        self._whole, self._seams = set(group.whole), set(group.seams)
        self._chunk = -1
        self._first = 0  # row of the first tile in the buffer
        self._buffer: NDArray[Any] = np.empty((0, *tiles.shape[1:]), tiles.dtype)
        self.fragments: dict[int, tuple[int, NDArray[Any]]] = {}

    def add(self, image: NDArray[Any]) -> None:
        """Add the tiles of an image, which follow the tiles added before."""
        rows, tile = self._tiles.rows, (self._tiles.shape[1], self._tiles.shape[2])
        n_tiles, done = math.prod(grid_shape(image.shape, tile)), 0
        while done < n_tiles:
            chunk, row = divmod(self._next, rows)
            n = min(n_tiles - done, rows - row)
            if chunk in self._whole or chunk in self._seams:
                if chunk != self._chunk:
                    self.flush()
                    self._start_chunk(chunk, row)
                start = row - self._first
                copy_tiles(image, tile, done, self._buffer[start : start + n])
            self._next += n
            done += n

    def _start_chunk(self, chunk: int, row: int) -> None:
        self._chunk, self._first = chunk, row
        n = self._tiles.rows - row
        # A chunk at a seam is kept; the others share one buffer of the thread.
        shape = (n, *self._tiles.shape[1:])
        if chunk in self._seams:
            self._buffer = np.empty(shape, self._tiles.dtype)
        else:
            n_bytes = math.prod(shape) * self._tiles.dtype.itemsize
            memory = get_buffer("tiles", n_bytes)[:n_bytes]
            self._buffer = memory.view(self._tiles.dtype).reshape(shape)

    def flush(self) -> None:
        """Write the chunk in the buffer, or keep its tiles as a fragment."""
        if self._chunk < 0:
            return
        rows = self._tiles.rows
        end = min(self._next - self._chunk * rows, rows)
        filled = self._buffer[: end - self._first]
        if self._chunk in self._seams:
            self.fragments[self._chunk] = self._first, filled
        else:
            _write(self._tiles, self._chunk, filled)
        self._chunk = -1


def get_fragment(decoded: Decoded, chunk: int) -> tuple[int, NDArray[Any]] | None:
    """Return the fragment of a chunk, or None if bad files shift tiles."""
    return None if decoded.bad else decoded.fragments[chunk]


def drop_fragments(decoded: Decoded) -> Decoded:
    """Return the records only."""
    return Decoded(decoded.images, decoded.bad)


def write_seam(
    tiles: ChunkedArray,
    chunk: int,
    fragments: Sequence[tuple[int, NDArray[Any]] | None],
    n_present: int,
) -> None:
    """Write a chunk from the fragments of several groups, behind `n_present` tiles of the store."""
    parts = [fragment for fragment in fragments if fragment is not None]
    if len(parts) < len(fragments):
        return
    begin = chunk * tiles.rows
    if n_present > begin:
        with nodes.translate_write_errors(tiles.location.parent, STORE):
            parts.append((0, tiles.resize(n_present).read(begin, n_present)))
    parts.sort(key=lambda part: part[0])
    _write(tiles, chunk, np.concatenate([part for _, part in parts]))


def _write(tiles: ChunkedArray, chunk: int, rows: NDArray[Any]) -> None:
    with nodes.translate_write_errors(tiles.location.parent, STORE):
        tiles.write(chunk * tiles.rows, rows)


def write_records(location: Location, start: int, images: Sequence[ImageRecord]) -> None:
    """Record images that were decoded, the first with tile `start`."""
    content = {"first_tile": start, "images": [vars(image) for image in images]}
    data = json.dumps(content).encode()
    digest = hashlib.sha256(data).hexdigest().encode()
    with nodes.translate_write_errors(location, STORE):
        name = f"{start:012}-{len(images)}.json"
        (location / PARTIAL / name).write(digest, data)


def read_records(location: Location) -> list[tuple[str, int, list[ImageRecord]]]:
    """Return the files of `write_records`: name, first tile and images, none if it is damaged."""
    found: list[tuple[str, int, list[ImageRecord]]] = []
    for name in sorted((location / PARTIAL).names()):
        if not name[:1].isdigit():
            continue
        content = bytes((location / PARTIAL / name).read())
        digest, data = content[:_DIGEST_CHARS], content[_DIGEST_CHARS:]
        if hashlib.sha256(data).hexdigest().encode() != digest:
            found.append((name, 0, []))  # the images are decoded again
            continue
        records = json.loads(data)
        images = [ImageRecord.from_json(record) for record in records["images"]]
        found.append((name, records["first_tile"], images))
    return found


def count_recorded(location: Location) -> int:
    """Return the number of images that were recorded so far."""
    names = (location / PARTIAL).names()
    return sum(int(name[13:].partition(".")[0]) for name in names if name[:1].isdigit())
