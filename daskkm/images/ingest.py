"""Ingest images: decode each image on the scheduler, cut the image into tiles, write a store.

1. `find_images` lists the files, and tasks read their headers: every tile has its place.
2. `plan.choose_groups` chooses groups of images. Tasks decode the groups and write whole chunks.
3. The root of the store is written last. Until then the folder ``ingest`` in the store records what
   was decoded, and the next run goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
import threading
import warnings
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from dask import delayed

from daskkm.block_sizes import sizes
from daskkm.errors import ImageError, StoreError, printable
from daskkm.images import plan, tasks
from daskkm.images.find import describe_unread, find_images
from daskkm.parameters import as_choice, as_flag
from daskkm.passes import scheduler
from daskkm.storage import image_table, locks, nodes
from daskkm.storage.arrays import ChunkedArray, ChunkError
from daskkm.storage.labels import DISTANCES, LABELS, list_labels
from daskkm.storage.locations import LocalLocation, as_location
from daskkm.storage.nodes import Node
from daskkm.storage.records import (
    ImageRecord,
    SkippedFile,
    describe_differences,
    find_differences,
    grid_shape,
)
from daskkm.storage.tile_store import PARTIAL, STORE, TileStore, is_present, open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from daskkm.storage.locations import Location, LocationLike

_DEFAULT_SIZE = (16, 16)
_OVERWRITE = ("overwrite=True",)
_POLL_SECONDS = 0.5
_TILE = "tile.json"  # in the folder of a partial ingest


def create_store(
    images: LocationLike | Iterable[LocationLike],
    store: LocationLike,
    tile: int | Sequence[int] | None = None,
    *,
    on_bad: str = "fail",
    overwrite: bool = False,
    on_image: Callable[[int, int], None] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> TileStore:
    """Cut images into tiles and write them to a store.

    Images are read in natural order and cut row by row. Pixels at the bottom and the right that
    fill no whole tile are cropped, with one warning. Another warning counts the entries of folders
    that are not read. A store of the same images and tiles is returned unchanged; any other store
    is replaced only with `overwrite`, or grows by `TileStore.append`. An interrupted ingest resumes
    where it was cut short.

    Tasks decode images and write chunks on the active `distributed.Client`, or on dask's default
    scheduler. The store has the same bytes for any number of workers.

    Parameters
    ----------
    images : path-like or URL, or iterable of these
        Images of 8 bits per band, all greyscale or all RGB: folders, single files, or patterns such
        as ``"photos/*.png"``, in the given order. No two files may have the same name. Sub-folders
        are not read.
    store : path-like, URL or zarr.abc.store.Store
        Location of the Zarr group, as for `open_store`.
    tile : int or (int, int), optional
        Height and width of a tile in pixels, or one number for both. The default is the size of
        the store at this path, complete or partial, else 16 x 16.
    on_bad : {"fail", "skip"}, default "fail"
        Raise an error for a file that is not an image, or does not match the other images. With
        "skip", list such files in ``skipped`` of the store.
    overwrite : bool, default False
        Remove a store of other content, with its labels, before the new store is written.
    on_image : callable, optional
        Called as ``on_image(n_done, n_images)`` in another thread, about twice a second, and at the
        end. Not called if the store is complete.
    storage_options : mapping, optional
        For URLs, as for `open_store`.

    Returns
    -------
    TileStore

    Raises
    ------
    ImageError
        If there is no image, or an image is unreadable, smaller than a tile, or of other bands than
        the other images. With ``on_bad="skip"``, if every file is skipped. Headers are checked
        before the first write.
    ParameterError
        If `on_bad` or `overwrite` has an invalid value.
    StoreError
        If the store cannot be written, the path holds other content, or another process is writing
        the store. Without `overwrite`, if the store is damaged or has other images or tiles: the
        message names the differences and the labels that would be deleted.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> import daskkm
    >>> folder = Path(tempfile.mkdtemp())
    >>> Image.linear_gradient("L").resize((64, 48)).save(folder / "image.png")
    >>> store = daskkm.create_store(folder, folder / "tiles.zarr", tile=16)
    >>> len(store), store.tile, store.images[0].name
    (12, (16, 16), 'image.png')
    >>> store.provenance()["row"].tolist()
    [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    """
    size = None if tile is None else _parse_tile_size(tile)
    on_bad = as_choice("on_bad", on_bad, ("fail", "skip"))
    overwrite = as_flag("overwrite", overwrite)
    location = as_location(store, storage_options)
    files, unread = find_images(images, location, storage_options)
    if unread:
        warnings.warn(describe_unread(unread), stacklevel=2)
    nodes.check_free(location, STORE)
    present = _open_present(location, overwrite=overwrite)
    if size is None and present is not None:
        size = present.tile[0], present.tile[1]
    size = size or read_partial_tile_size(location) or _DEFAULT_SIZE
    if present is not None and _is_complete(present, files, size, overwrite=overwrite):
        _check_skipped(present.skipped, files, on_bad)
        return present
    ingest = _Ingest(location, size, on_bad, on_image)
    ingest.read_headers(files)
    with ingest.lock():
        if is_present(location) and not overwrite:
            msg = f"{location}: another run has written a store. Ingest the images again"
            raise StoreError(msg)
        with nodes.translate_write_errors(location, STORE):
            if is_present(location):
                nodes.remove_node(location, STORE)
        return ingest.run(None)


def append_images(
    store: TileStore,
    images: LocationLike | Iterable[LocationLike],
    *,
    on_bad: str = "fail",
    on_image: Callable[[int, int], None] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> TileStore:
    """Add images at the end of a store, as `TileStore.append`."""
    on_bad = as_choice("on_bad", on_bad, ("fail", "skip"))
    location = store.location
    files, unread = find_images(images, location, storage_options)
    if unread:
        warnings.warn(describe_unread(unread), stacklevel=3)
    ingest = _Ingest(location, (store.tile[0], store.tile[1]), on_bad, on_image)
    with ingest.lock():
        node = store.read_again()
        present = TileStore(node)
        start = len(present)
        nodes.read_rows(node, "tiles", start - start % present.chunk_rows)  # this chunk grows
        changes = find_differences(present.images, present.skipped, files)
        if changes["changed"]:
            (text,) = describe_differences({"changed": changes["changed"]})
            msg = f"{location}: {text} since the store was written. Create another store"
            raise StoreError(msg)
        added = set(changes["added"])
        ingest.read_headers([path for path in files if path.name in added], store.tile[2:])
        if not ingest.shapes and not ingest.skipped:
            return present
        return ingest.run(node)


@dataclass
class _Ingest:
    """Ingest of image files into a store of tiles of one size."""

    location: Location
    tile: tuple[int, int]
    on_bad: str
    on_image: Callable[[int, int], None] | None
    # Shapes of images, from headers.
    shapes: dict[Location, tuple[int, ...]] = field(default_factory=dict)
    states: dict[Location, tuple[int, ...]] = field(default_factory=dict)  # before the headers
    skipped: dict[Location, SkippedFile] = field(default_factory=dict)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the write lock of the store."""
        busy = StoreError(
            f"{self.location}: another run is writing this store. Wait until the run ends"
        )
        with nodes.translate_write_errors(self.location, STORE), locks.lock(self.location, busy):
            yield

    def read_headers(self, files: Sequence[Location], bands: tuple[int, ...] | None = None) -> None:
        """Read the shapes of all images, and find bad files."""
        n = sizes.ingested_images
        parts = [files[start : start + n] for start in range(0, len(files), n)]
        lazy = [
            delayed(tasks.read_headers, pure=False)(delayed(part, traverse=False)) for part in parts
        ]
        found = scheduler.compute(*lazy) if len(parts) > 1 else map(tasks.read_headers, parts)
        headers = [header for part in found for header in part]
        for path, (state, header) in zip(files, headers, strict=True):
            self.states[path] = state
            if isinstance(header, SkippedFile):
                self._skip(path, header)
            else:
                self.shapes[path] = header
        if bands is None and self.shapes:
            kinds = Counter(shape[2:] for shape in self.shapes.values())
            bands = kinds.most_common(1)[0][0]
        for path, shape in list(self.shapes.items()):
            if mismatch := _find_mismatch(path, shape, bands or (), self.tile):
                self._skip(path, SkippedFile.from_error(path, mismatch, self.states[path]))
                del self.shapes[path]
        if files and not self.shapes:
            raise self._make_error()

    def _make_error(self) -> ImageError:
        """Return the error of the first skipped file."""
        path, file = next(iter(self.skipped.items()))
        return ImageError(f"{path}: {file.reason}")

    def _skip(self, path: Location, file: SkippedFile) -> None:
        """Record a bad file, or raise its error."""
        self.skipped[path] = file
        if self.on_bad == "fail":
            raise self._make_error()

    def run(self, base: Node | None) -> TileStore:
        """Write the tiles behind those of a store, or of a new store; return the store."""
        with nodes.translate_write_errors(self.location, STORE):
            base = base or self._make_node()
            tiles = base.arrays["tiles"]
            self._start_partial(tiles)
            while True:
                images = self._decode_all(tiles)
                if len(images) == len(self.shapes):
                    break
                # Bad files shift the tiles behind them: these images are decoded again.
            if not self.shapes:
                raise self._make_error()
            self._remove_partial_files()  # of workers that were killed
            node = self._commit(base, images)
            (self.location / PARTIAL).remove()
        _warn_of_cropping(images)
        return TileStore(node)

    def _make_node(self) -> Node:
        """Return a store without tiles, which is not written yet."""
        bands = next(iter(self.shapes.values()))[2:]
        shape = (0, *self.tile, *bands)
        rows = choose_chunk_rows(math.prod(shape[1:]), is_local=self.location.is_local)
        tiles = ChunkedArray(
            self.location / "tiles",
            shape,
            np.dtype(np.uint8),
            rows,
            ("tile", "y", "x", "band")[: len(shape)],
            compressed=not self.location.is_local,
        )
        digest = hashlib.sha256(str(shape[1:]).encode()).hexdigest()
        return Node(self.location, STORE, {"tiles": tiles}, {"digest": digest})

    def _start_partial(self, tiles: ChunkedArray) -> None:
        """Remove what another ingest left, unless this ingest can go on from there."""
        state = {"tile": list(tiles.shape[1:]), "rows": tiles.rows, "start": len(tiles)}
        data = json.dumps(state).encode()
        partial = self.location / PARTIAL
        self._remove_partial_files()
        try:
            if bytes((partial / _TILE).read()) == data:
                return
        except FileNotFoundError:
            pass
        partial.remove()
        if not len(tiles):
            tiles.location.remove()
        (partial / _TILE).write(data)

    def _remove_partial_files(self) -> None:
        """Remove half-written files, except those of labels and distances."""
        if isinstance(self.location, LocalLocation) and self.location.path.is_dir():
            # A run that labels the store writes metadata under this lock.
            with locks.wait_for_commit(self.location):
                self.location.remove_partial_files(keep=(LABELS, DISTANCES))

    def _decode_all(self, tiles: ChunkedArray) -> list[ImageRecord]:
        """Decode the images and write their tiles; skip bad files.

        Return the records of all images, or of fewer if bad files were found.
        """
        start = len(tiles)
        paths, shapes = list(self.shapes), list(self.shapes.values())
        counts = [math.prod(grid_shape(shape, self.tile)) for shape in shapes]
        firsts = (start + np.cumsum([0, *counts])).tolist()
        recorded = self._find_recorded(paths, firsts)
        array = tiles.resize(firsts[-1])
        known = [i in recorded for i in range(len(paths))]
        written = self._find_written(array, start, firsts, known)
        groups = plan.choose_groups(
            counts,
            start,
            tiles.rows,
            written,
            known,
            max_tiles=self._choose_group_tiles(counts, tiles),
            max_images=sizes.ingested_images,
        )
        records = dict(recorded)
        with self._report(len(paths)):
            found = scheduler.compute(
                *self._build_tasks(array, start, groups, paths, shapes, firsts)
            )
        for group, decoded in zip(groups, found, strict=False):
            records.update(zip(range(group.first, group.last), decoded.images, strict=False))
            for file in decoded.bad:
                path = next(p for p in paths[group.first : group.last] if p.name == file.name)
                self._skip(path, file)
                del self.shapes[path]
        if len(self.shapes) < len(paths):
            return []
        return [records[i] for i in range(len(paths))]

    def _find_recorded(
        self, paths: Sequence[Location], firsts: Sequence[int]
    ) -> dict[int, ImageRecord]:
        """Return the records of an earlier run for images that are unchanged, at the same place.

        Remove the other records: this run overwrites their tiles, and the images may return.
        """
        index = {path.name: i for i, path in enumerate(paths)}
        found = {}
        for name, start, images in tasks.read_records(self.location):
            fitting = []
            counts = [math.prod(grid_shape(image.shape, self.tile)) for image in images]
            for image, first in zip(images, start + np.cumsum([0, *counts]), strict=False):
                i = index.get(image.name, -1)
                known = i >= 0 and (first, image.shape) == (firsts[i], self.shapes[paths[i]])
                if known and image.is_file(paths[i]):
                    found[i] = image
                    fitting.append(i)
            if fitting and len(fitting) == len(images):
                continue
            for _, run in groupby(enumerate(fitting), lambda pair: pair[1] - pair[0]):
                own = [i for _, i in run]
                tasks.write_records(self.location, firsts[own[0]], [found[i] for i in own])
            (self.location / PARTIAL / name).remove()
        return found

    def _find_written(
        self, array: ChunkedArray, start: int, firsts: Sequence[int], known: Sequence[bool]
    ) -> set[int]:
        """Return chunks that an earlier run wrote for recorded images; remove the other chunks."""
        rows = array.rows
        unknown = {
            chunk
            for i, is_known in enumerate(known)
            if not is_known
            for chunk in range(firsts[i] // rows, -(-firsts[i + 1] // rows))
        }
        # The last chunk of the present store has its tiles in any case.
        protected = -(-start // rows)
        written = set()
        for key in (array.location / "c").sizes():
            number = key.partition("/")[0]
            if not number.isdigit() or (chunk := int(number)) < protected:
                continue
            if chunk < array.n_chunks and chunk not in unknown:
                with suppress(ChunkError):
                    begin, end = chunk * rows, (chunk + 1) * rows
                    tiles = array.resize(end).read(begin, end)
                    if not tiles[len(array) - begin :].any():  # else of an ingest of more images
                        written.add(chunk)
                        continue
            (array.location / array.key(chunk)).remove()
        return written

    def _choose_group_tiles(self, counts: Sequence[int], tiles: ChunkedArray) -> int:
        """Return the largest number of tiles of a group: several groups for each thread."""
        fair = sum(counts) // (sizes.blocks_per_thread * scheduler.threads())
        most = sizes.block_bytes_max // (math.prod(tiles.shape[1:]) * tiles.dtype.itemsize)
        return max(tiles.rows, min(fair, most))

    def _build_tasks(
        self,
        array: ChunkedArray,
        start: int,
        groups: Sequence[plan.Group],
        paths: Sequence[Location],
        shapes: Sequence[tuple[int, ...]],
        firsts: Sequence[int],
    ) -> list[Any]:
        """Return lazy records of all groups, and the lazy writes of chunks at their seams."""
        seams: dict[int, list[Any]] = {}
        records = []
        for group in groups:
            part = slice(group.first, group.last)
            # One argument without a traversal: there may be thousands of paths.
            states = [self.states[path] for path in paths[part]]
            images = delayed((paths[part], shapes[part], states), traverse=False)
            decoded = delayed(_decode, pure=False)(
                array, images, firsts[group.first], group, skip=self.on_bad == "skip"
            )
            records.append(delayed(tasks.drop_fragments, pure=False)(decoded))
            for chunk in group.seams:
                fragment = delayed(tasks.get_fragment, pure=False)(decoded, chunk)
                seams.setdefault(chunk, []).append(fragment)
        writes = [
            delayed(tasks.write_seam, pure=False)(array, chunk, fragments, start)
            for chunk, fragments in seams.items()
        ]
        return [*records, *writes]

    @contextmanager
    def _report(self, n_images: int) -> Iterator[None]:
        """Call `on_image` in a thread while images are recorded, and once at the end."""
        if self.on_image is None:
            yield
            return
        on_image, ended = self.on_image, threading.Event()

        def report() -> None:
            while not ended.wait(_POLL_SECONDS):
                with suppress(OSError):
                    on_image(min(n_images, tasks.count_recorded(self.location)), n_images)

        thread = threading.Thread(target=report, name="daskkm-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
        on_image(n_images, n_images)

    def _commit(self, base: Node, images: Sequence[ImageRecord]) -> Node:
        """Write the tables of files, and the root of the store."""
        n_before = len(base.arrays["tiles"])
        counts = [math.prod(grid_shape(image.shape, self.tile)) for image in images]
        n = n_before + sum(counts)
        if not base.content:
            for table in (image_table.IMAGES, image_table.SKIPPED):  # of another ingest
                (self.location / table).remove()
        tables = image_table.append_images(self.location, base.arrays, images, self.tile, n_before)
        skipped = list(self.skipped.values())
        tables |= image_table.append_skipped(self.location, base.arrays, skipped)
        digest = image_table.extend_digest(base.attributes["digest"], images)

        def grow(node: Node) -> Node:
            per_tile = dict.fromkeys(("tiles", *list_labels(node)), n)
            node = replace(node, arrays=node.arrays | tables).resize(per_tile)
            return replace(node, attributes=node.attributes | {"digest": digest})

        if not base.content:
            node = grow(base)
            own = {"id": f"{digest}-{base.arrays['tiles'].rows}"}
            return replace(node, attributes=node.attributes | own).write(None)
        return nodes.update_node(self.location, STORE, grow)


def _decode(
    array: ChunkedArray,
    images: tuple[Sequence[Location], Sequence[tuple[int, ...]], Sequence[tuple[int, ...]]],
    start: int,
    group: plan.Group,
    *,
    skip: bool,
) -> tasks.Decoded:
    return tasks.decode_group(array, *images, start, group, skip=skip)


def choose_chunk_rows(tile_bytes: int, *, is_local: bool = True) -> int:
    """Return the number of tiles of a chunk, with many divisors, for chunks of distances."""
    n_bytes = sizes.chunk_bytes if is_local else sizes.remote_chunk_bytes
    rows = max(1, n_bytes // tile_bytes)
    return rows - rows % (1 << max(0, rows.bit_length() - 5))


def read_partial_tile_size(location: Location) -> tuple[int, int] | None:
    """Return height and width of the tiles of a partial ingest, or None if there is none."""
    try:
        state = json.loads(bytes((location / PARTIAL / _TILE).read()))
    except (OSError, ValueError):
        return None
    return state["tile"][0], state["tile"][1]


def is_grown(images: Iterable[LocationLike], location: Location) -> bool:
    """Return True if an intact store holds some of the images, unchanged, and no others."""
    if not is_present(location):
        return False
    files, _ = find_images(images, location)
    try:
        store = open_store(location)
        differences = find_differences(store.images, store.skipped, files)
    except StoreError:
        return False
    return bool(differences.pop("added")) and not any(differences.values())


def _is_complete(
    store: TileStore, files: Sequence[Location], tile: tuple[int, int], *, overwrite: bool
) -> bool:
    """Return True if a store has these tiles; raise StoreError unless `overwrite`."""
    try:
        store.check()
        differences = find_differences(store.images, store.skipped, files)
    except StoreError as error:
        if not overwrite:
            raise _add_overwrite_hint(error, store) from error
        return False
    texts = [*describe_differences(differences), *describe_tiles(store.tile[:2], tile)]
    if texts and not overwrite:
        only_added = len(texts) == 1 and bool(differences["added"])
        hint = "append the images, or overwrite" if only_added else "or overwrite"
        msg = (
            f"{store.path}: the store has other content: {', '.join(texts)}. "
            f"Choose another store, {hint} this store{_describe_losses(store)}"
        )
        raise StoreError(msg, options=_OVERWRITE)
    return not texts


def describe_tiles(shape: Sequence[int], other: Sequence[int]) -> list[str]:
    """Return the difference between two shapes of a tile as a list of at most one text."""
    if tuple(shape) == tuple(other):
        return []
    return [f"tiles of {' x '.join(map(str, shape))}, not {' x '.join(map(str, other))}"]


def _check_skipped(skipped: Sequence[SkippedFile], files: Sequence[Location], on_bad: str) -> None:
    """Raise ImageError for the first skipped file unless files may be skipped."""
    if skipped and on_bad == "fail":
        path = next(path for path in files if path.name == skipped[0].name)
        msg = f"{path}: {skipped[0].reason}"
        raise ImageError(msg)


def _parse_tile_size(tile: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width of a tile; raise ImageError unless both are at least 1."""
    try:
        height, width = (tile, tile) if isinstance(tile, int | np.integer) else tile
        if bool in {type(height), type(width)}:
            raise TypeError  # noqa: TRY301
        size = operator.index(height), operator.index(width)
    except (TypeError, ValueError) as error:
        msg = f"tile: {tile!r} is not a size. Give height and width in pixels, or one number"
        raise ImageError(msg) from error
    if min(size) < 1:
        msg = f"tile: {size[0]} x {size[1]} pixels is empty. Give at least 1 x 1"
        raise ImageError(msg)
    return size


def _open_present(location: Location, *, overwrite: bool) -> TileStore | None:
    """Return the store at a location, or None without a store or for a damaged one to overwrite."""
    if not is_present(location):
        return None
    try:
        return open_store(location)
    except StoreError as error:
        if not overwrite:
            msg = f"{error}, or overwrite the store"
            raise type(error)(msg, options=_OVERWRITE) from error
        return None


def _add_overwrite_hint(error: StoreError, store: TileStore) -> StoreError:
    """Return the error of a damaged store with a hint to overwrite the store."""
    msg = f"{error}, or overwrite the store{_describe_losses(store)}"
    return type(error)(msg, options=_OVERWRITE)


def _describe_losses(store: TileStore) -> str:
    """Return the end of a message, which names labels and distances in a store."""
    names = list_labels(store.read_again())
    return f", which deletes its {', '.join(names)}" if names else ""


def _find_mismatch(
    path: Location, shape: tuple[int, ...], bands: tuple[int, ...], tile: tuple[int, ...]
) -> ImageError | None:
    """Return an error for an image with other bands, or smaller than a tile, or None."""
    kinds = {(): "greyscale", (3,): "RGB"}
    if shape[2:] != bands:
        problem = f"{kinds[shape[2:]]}, while the other images are {kinds[bands]}"
        return ImageError(f"{path}: {problem}. Convert or remove the image")
    if not math.prod(grid_shape(shape, tile)):
        problem = f"{shape[0]} x {shape[1]} pixels hold no whole tile of {tile[0]} x {tile[1]}"
        return ImageError(f"{path}: {problem}. Choose smaller tiles, or remove the image")
    return None


def _warn_of_cropping(images: Sequence[ImageRecord]) -> None:
    """Issue one warning about cropped pixels."""
    cropped = [
        f"{printable(image.name)} ({bottom} at the bottom, {right} at the right)"
        for image in images
        for bottom, right in [image.cropped]
        if bottom or right
    ]
    if cropped:
        more = f" and {len(cropped) - 3} more images" if len(cropped) > 3 else ""
        msg = f"pixels that fill no whole tile were cropped: {', '.join(cropped[:3])}{more}"
        warnings.warn(msg, stacklevel=4)
