"""Tiles for the benchmarks: any number of them, the same ones whatever the chunks.

The digits of the sample images, each shifted by up to a pixel either way, with uniform noise of
up to 16 grey levels: as many distinct tiles as are asked for, that cluster as digits do.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from daskkm.images import pillow
from daskkm.images.find import find_images
from daskkm.images.grid import cut
from daskkm.images.ingest import choose_chunk_rows
from daskkm.storage import image_table
from daskkm.storage.arrays import ChunkedArray
from daskkm.storage.locations import as_location
from daskkm.storage.nodes import METADATA, Node
from daskkm.storage.records import ImageRecord
from daskkm.storage.tile_store import STORE, open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from daskkm.storage.tile_store import TileStore

ROOT = Path(__file__).parent.parent
SIDE = 16
FEATURES = SIDE * SIDE
NOISE = 16

# Tiles of one seed. Another number makes other tiles.
_BLOCK = 8192


@functools.cache
def digits() -> NDArray[np.uint8]:
    """Return the tiles of the sample images, (5610, 256) uint8."""
    everything = slice(None), slice(None)
    images = [
        pillow.PillowImage(path).read_window(*everything)
        for path in find_images(ROOT / "images")[0]
    ]
    return np.concatenate([cut(s, (SIDE, SIDE)) for s in images]).reshape(-1, FEATURES)


@functools.cache
def _shifted() -> NDArray[np.uint8]:
    """Return the digits under each of the nine shifts, (9, 5610, 256)."""
    images = digits().reshape(-1, SIDE, SIDE)
    wide = np.pad(images, ((0, 0), (1, 1), (1, 1)), mode="edge")
    shifts = [wide[:, y : y + SIDE, x : x + SIDE] for y in range(3) for x in range(3)]
    return np.stack([shift.reshape(-1, FEATURES) for shift in shifts])


def _block(number: int) -> NDArray[np.uint8]:
    """Return the tiles of one seed, (8192, 256) uint8."""
    rng = np.random.default_rng((0, number))
    which = rng.integers(0, len(digits()), _BLOCK)
    clean = _shifted()[rng.integers(0, 9, _BLOCK), which]
    noise = rng.integers(-NOISE, NOISE, (_BLOCK, FEATURES), np.int8, endpoint=True)
    return np.clip(clean + noise.astype(np.int16), 0, 255).astype(np.uint8)


def make(first: int, last: int) -> NDArray[np.uint8]:
    """Return tiles first ... last - 1, (last - first, 256) uint8."""
    made = np.empty((last - first, FEATURES), np.uint8)
    for number in range(first // _BLOCK, -(-last // _BLOCK)):
        start = number * _BLOCK
        lo, hi = max(first, start), min(last, start + _BLOCK)
        made[lo - first : hi - first] = _block(number)[lo - start : hi - start]
    return made


def chunks(n: int, rows: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the first n tiles, some rows at a time."""
    for first in range(0, n, rows):
        yield make(first, min(first + rows, n))


def store(n: int, folder: Path, *, remote: bool = False) -> TileStore:
    """Return a store of the first n tiles in a folder, made if it is not there.

    With `remote`, in chunks as on an object store.
    """
    path = folder / f"digits-{n}{'-remote' * remote}.zarr"
    if not (path / METADATA).exists():
        print(f"making {path.name}", flush=True)
        write_store(path, n, lambda rows: chunks(n, rows), remote=remote)
    return open_store(path)


def write_store(
    path: Path,
    n: int,
    read_tiles: Callable[[int], Iterator[NDArray[np.uint8]]],
    *,
    remote: bool = False,
) -> None:
    """Write n tiles, read some rows at a time, as the tiles of one image."""
    location = as_location(path)
    rows = choose_chunk_rows(FEATURES, is_local=not remote)
    axes = ("tile", "y", "x")
    tiles = ChunkedArray(
        location / "tiles", (n, SIDE, SIDE), np.dtype(np.uint8), rows, axes, compressed=remote
    )
    for i, chunk in enumerate(read_tiles(rows)):
        tiles.write(i * rows, chunk.reshape(-1, SIDE, SIDE))
    image = ImageRecord("made", n * FEATURES, "", (SIDE, SIDE * n), (0, 0))
    table = image_table.append_images(location, {}, [image], (SIDE, SIDE), 0)
    attributes = {"id": path.name, "digest": path.name}
    Node(location, STORE, {"tiles": tiles, **table}, attributes).write(None)


def read(array: zarr.Array[Any]) -> Iterator[NDArray[np.uint8]]:
    """Yield the tiles of an array again, many at a time, as rows of features."""
    for first in range(0, array.shape[0], _BLOCK * 8):
        yield np.asarray(array[first : first + _BLOCK * 8]).reshape(-1, FEATURES)


def plain_zarr(n: int, rows: int, folder: Path) -> zarr.Array[Any]:
    """Return a Zarr array of the first n tiles in chunks of some rows, made if it is not there."""
    path = folder / f"digits-{n}-by-{rows}.zarr"
    if not path.exists():
        print(f"making {path.name}", flush=True)
        partial = path.with_suffix(".partial")
        array = zarr.create_array(
            partial,
            shape=(n, FEATURES),
            chunks=(rows, FEATURES),
            dtype="uint8",
            compressors=None,
            overwrite=True,
        )
        many = rows * max(1, _BLOCK // rows)
        for i, made in enumerate(chunks(n, many)):
            array[i * many : i * many + len(made)] = made
        partial.rename(path)
    return zarr.open_array(path, mode="r")


def starts(ks: Sequence[int], n: int) -> dict[int, NDArray[np.float64]]:
    """Return starting centroids for every k: distinct tiles, among the first 10,000 of n."""
    rng = np.random.default_rng(1)
    # No two alike, which would be ties; and each has a tile, so that none need be moved.
    distinct = np.unique(make(0, min(n, 10_000)), axis=0).astype(np.float64)
    return {k: distinct[rng.choice(len(distinct), k, replace=False)] for k in ks}
