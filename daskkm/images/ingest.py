"""Ingest images: read each image, cut the image into tiles, write a store."""

from __future__ import annotations

import math
import operator
import warnings
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from daskkm.errors import ImageError, StoreError, printable
from daskkm.images import pillow
from daskkm.images.find import describe_unread, find_images
from daskkm.images.grid import cut
from daskkm.parameters import as_choice, as_flag
from daskkm.storage import commit, locations
from daskkm.storage.labels import list_labels
from daskkm.storage.records import (
    SkippedFile,
    describe_differences,
    find_differences,
    grid_shape,
    read_state,
)
from daskkm.storage.tile_store import STORE, TileStore, is_present, open_store
from daskkm.storage.writer import OVERWRITE, describe_tiles, open_writer, read_partial_tile_size

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from daskkm.storage.records import ImageRecord
    from daskkm.storage.writer import StoreWriter

_DEFAULT_SIZE = (16, 16)


def create_store(
    images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    store: str | os.PathLike[str],
    tile: int | Sequence[int] | None = None,
    *,
    on_bad: str = "fail",
    overwrite: bool = False,
    on_image: Callable[[int, int], None] | None = None,
) -> TileStore:
    """Cut images into tiles and write them to a store.

    Images are read in natural order and cut row by row. Pixels at the bottom and the right that
    fill no whole tile are cropped, with one warning. Another warning counts the entries of folders
    that are not read. A store of the same images and tiles is returned unchanged; any other store
    is replaced only with `overwrite`. An interrupted ingest resumes if its images are unchanged.

    Parameters
    ----------
    images : path-like, or iterable of path-like
        Images of 8 bits per band, all greyscale or all RGB: folders, single files, or patterns such
        as ``"photos/*.png"``, in the given order. No two files may have the same name. Sub-folders
        are not read.
    store : path-like
        Path of the Zarr group.
    tile : int or (int, int), optional
        Height and width of a tile in pixels, or one number for both. The default is the size of
        the store at this path, complete or partial, else 16 x 16.
    on_bad : {"fail", "skip"}, default "fail"
        Raise an error for a file that is not an image, or does not match the other images. With
        "skip", list such files in ``skipped`` of the store.
    overwrite : bool, default False
        Replace a store, or a partial store, of other content. Labels and distances of a replaced
        store are deleted.
    on_image : callable, optional
        Called as ``on_image(n_done, n_images)`` after each image. Not called if the store is
        complete.

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
    store = locations.as_local_path(store, StoreError)
    files, unread = find_images(images, store)
    if unread:
        warnings.warn(describe_unread(unread), stacklevel=2)
    partial_size = None
    with suppress(StoreError):  # first, since another run may commit the partial store
        partial_size = read_partial_tile_size(store)
    present = _open_existing_store(store, overwrite=overwrite)
    ingest = _Ingest(files, size or _choose_tile_size(store, present, partial_size), on_bad)
    if present is None or not ingest.is_complete(present, overwrite=overwrite):
        present = ingest.write(store, on_image, overwrite=overwrite)
    ingest.check_skipped(present.skipped)
    return present


@dataclass
class _Ingest:
    """Ingest of image files."""

    files: Sequence[Path]
    tile: tuple[int, int]
    on_bad: str
    # Shapes of images, from headers.
    shapes: dict[Path, tuple[int, ...]] = field(default_factory=dict)
    skipped: dict[Path, SkippedFile] = field(default_factory=dict)

    def is_complete(self, store: TileStore, *, overwrite: bool) -> bool:
        """Return True if a store has these tiles; raise StoreError unless `overwrite`."""
        try:
            store.check()
        except StoreError as error:
            if not overwrite:
                raise _add_overwrite_hint(error, store.path) from error
            return False
        differences = find_differences(store.images, store.skipped, self.files)
        sizes = describe_tiles(store.tile[:2], self.tile)
        texts = [*describe_differences(differences), *sizes]
        if texts and not overwrite:
            msg = (
                f"{store.path}: the store has other content: {', '.join(texts)}. "
                f"Choose another store, or overwrite this store{_describe_losses(store.path)}"
            )
            raise StoreError(msg, options=OVERWRITE)
        if not texts:
            commit.remove_leftovers(store.path, STORE)
        return not texts

    def write(
        self, store: Path, on_image: Callable[[int, int], None] | None, *, overwrite: bool
    ) -> TileStore:
        """Write the store, or resume an interrupted ingest."""
        self._read_headers()
        bands = next(iter(self.shapes.values()))[2:]
        n_tiles = sum(math.prod(grid_shape(shape, self.tile)) for shape in self.shapes.values())
        with open_writer(
            store, n_tiles, self.tile, bands, self.files, overwrite=overwrite
        ) as writer:
            self.check_skipped(writer.skipped)
            for path in self.files[writer.n_done :]:
                self._append(writer, path)
                if on_image is not None:
                    on_image(writer.n_done, len(self.files))
            if not writer.images:
                raise self._make_error(writer.skipped[0])
        written = open_store(store)
        _warn_of_cropping(written.images)
        return written

    def check_skipped(self, skipped: Sequence[SkippedFile]) -> None:
        """Raise ImageError for the first skipped file unless files may be skipped."""
        if skipped and self.on_bad == "fail":
            raise self._make_error(skipped[0])

    def _make_error(self, skipped: SkippedFile) -> ImageError:
        """Return the error of a skipped file."""
        path = next(path for path in self.files if path.name == skipped.name)
        return ImageError(f"{path}: {skipped.reason}")

    def _read_headers(self) -> None:
        """Read the shapes of all images, and find bad files."""
        states: dict[Path, tuple[int, ...]] = {}
        for path in self.files:
            states[path] = read_state(path)
            try:
                self.shapes[path] = pillow.read_shape(path)
            except ImageError as error:
                self._skip(path, error, states[path])
        kinds = Counter(shape[2:] for shape in self.shapes.values())
        for path, shape in list(self.shapes.items()):
            if mismatch := _find_mismatch(path, shape, kinds.most_common(1)[0][0], self.tile):
                self._skip(path, mismatch, states[path])
                del self.shapes[path]
        if not self.shapes:
            raise self._make_error(next(iter(self.skipped.values())))

    def _skip(self, path: Path, error: ImageError, state: tuple[int, ...]) -> None:
        """Record a bad file, with its state before the read, or raise the error."""
        if self.on_bad == "fail":
            raise error
        # Keep no error: the traceback would keep the pixels in memory.
        self.skipped[path] = SkippedFile.from_error(path, error, state)

    def _append(self, writer: StoreWriter, path: Path) -> None:
        """Append the tiles of an image to the store, or skip the file."""
        state = read_state(path)
        if path not in self.skipped:
            try:
                image, pixels = pillow.read_image(path, self.tile)
            except ImageError as error:
                self._skip(path, error, state)
        if path in self.skipped:
            writer.skip(self.skipped[path])
            return
        if image.shape != self.shapes[path]:
            msg = f"{path}: the file changed during the ingest. Run the ingest again"
            raise ImageError(msg)
        writer.append(image, cut(pixels, self.tile))


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


def _open_existing_store(path: Path, *, overwrite: bool) -> TileStore | None:
    """Return the store at a path, or None without a store or for a damaged store to overwrite."""
    commit.check_free(path, STORE)
    if not is_present(path):
        return None
    try:
        return open_store(path)
    except StoreError as error:
        if not overwrite:
            raise _add_overwrite_hint(error, path) from error
        return None


def _choose_tile_size(
    path: Path, store: TileStore | None, partial: tuple[int, int] | None
) -> tuple[int, int]:
    """Return the size of tiles of the store at a path, complete or partial, else 16 x 16."""
    complete = store.tile[:2] if store else None
    if partial and complete and partial != complete:
        msg = (
            f"{path}: the store has tiles of {complete[0]} x {complete[1]}, the partial store of "
            f"{partial[0]} x {partial[1]}. Ingest the images with a given size of tiles"
        )
        raise StoreError(msg, options=("tile",))
    if not partial and not complete and is_present(path):
        msg = (
            f"{path}: the store is damaged, and the size of tiles is unknown. Ingest the images "
            "with a given size of tiles, or remove the store"
        )
        raise StoreError(msg, options=("tile",))
    height, width = partial or complete or _DEFAULT_SIZE
    return height, width


def _add_overwrite_hint(error: StoreError, path: Path) -> StoreError:
    """Return the error of a damaged store with a hint to overwrite the store."""
    return type(error)(
        f"{error}, or overwrite the store{_describe_losses(path)}", options=OVERWRITE
    )


def _describe_losses(path: Path) -> str:
    """Return the end of a message, which names labels and distances in a store."""
    names = list_labels(path)
    return f", which deletes its {', '.join(names)}" if names else ""


def _find_mismatch(
    path: Path, shape: tuple[int, ...], bands: tuple[int, ...], tile: tuple[int, int]
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
