"""Ingest: images to tiles to a store. ``python -m daskkm.ingest --help``."""

from __future__ import annotations

import math
import operator
import warnings
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from daskkm.errors import ImageError, StoreError, printable
from daskkm.images import pillow
from daskkm.images.find import describe_unread, find_images
from daskkm.images.grid import cut
from daskkm.parameters import as_choice, as_flag
from daskkm.storage import commit, locations
from daskkm.storage.labels import list_labels
from daskkm.storage.records import Skipped, describe_differences, find_differences, grid, state
from daskkm.storage.tile_store import (
    STORE,
    TileStore,
    is_present,
    open_store,
    remove_leftovers,
)
from daskkm.storage.writer import (
    OVERWRITE,
    describe_tiles,
    open_writer,
    partial_tile_size,
)

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

    Images are taken in natural order and cut row by row. Entries of a folder that are not read are
    counted in one warning. Ragged edges fall off, with one
    warning, and are recorded in the store. A store that already holds these very images is
    returned as it is; any other is replaced only if `overwrite` says so. An ingest that was cut
    short is resumed if the images that it has read are the same still.

    Parameters
    ----------
    images : path-like, or iterable of path-like
        Images that show 8 bits a band, all greyscale or all RGB: folders, single files, or
        patterns such as ``"photos/*.png"``. Several are taken in the order given; no two files may
        have the same name. Folders in a folder are not entered.
    store : path-like
        Where the Zarr group goes.
    tile : int or (int, int), optional
        Height and width of a tile in pixels; a number stands for both. If not given, those of the
        store that is there, complete or cut short; else 16 x 16.
    on_bad : {"fail", "skip"}, default "fail"
        What to do where a file is no image, or none that fits: raise, or leave it out, which the
        store's ``skipped`` then says.
    overwrite : bool, default False
        Whether to replace a store, or an ingest that was cut short, that does not hold what is
        asked for. Labels and distances of a store that is replaced are deleted.
    on_image : callable, optional
        Called after each image, as ``on_image(done, total)``, with the number of images that are
        done, and of all. Not called where the store holds them already.

    Returns
    -------
    TileStore

    Raises
    ------
    ImageError
        If there are no images, or one cannot be read, differs in its bands from the others,
        or holds no whole tile. Headers are checked before anything is written. With
        ``on_bad="skip"``, if that leaves none.
    ParameterError
        If `on_bad` is neither of the two, or `overwrite` is not a bool.
    StoreError
        If the store cannot be written, something else is in its place, or another run is writing
        it. Without `overwrite`, before any image is decoded, if a store is there that is damaged
        or holds something else: the message says what differs and which labels would be lost.

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
    size = None if tile is None else _tile_size(tile)
    on_bad = as_choice("on_bad", on_bad, ("fail", "skip"))
    overwrite = as_flag("overwrite", overwrite)
    store = locations.local(store, StoreError)
    files, unread = find_images(images, store)
    if unread:
        warnings.warn(describe_unread(unread), stacklevel=2)
    begun = _size_of_begun(store)  # first: it may take its place just now
    present = _open_present(store, overwrite=overwrite)
    size = size or _default_size(store, present, begun)
    if present is None or not _is_as_asked(present, files, size, overwrite=overwrite):
        present = _write(files, store, size, on_bad, on_image, overwrite=overwrite)
    _refuse(present.skipped, files, on_bad)
    return present


def _write(
    files: Sequence[Path],
    store: str | os.PathLike[str],
    tile: tuple[int, int],
    on_bad: str,
    on_image: Callable[[int, int], None] | None,
    *,
    overwrite: bool,
) -> TileStore:
    """Write a store, from the start or from where an ingest was cut short."""

    def leave_out(path: Path, error: ImageError, before: tuple[int, ...]) -> Skipped:
        if on_bad == "fail":
            raise error
        return Skipped.of(path, error, before)

    shapes, bad = _look_at(files, tile, leave_out)
    bands = next(iter(shapes.values()))[2:]
    n_tiles = sum(math.prod(grid(shape, tile)) for shape in shapes.values())
    with open_writer(store, n_tiles, tile, bands, files, overwrite=overwrite) as writer:
        _refuse(writer.skipped, files, on_bad)
        for path in files[writer.done :]:
            if path in bad:
                writer.skip(bad[path])
            else:
                _append(writer, path, shapes[path], tile, leave_out)
            if on_image is not None:
                on_image(writer.done, len(files))
        if not writer.images:
            _refuse(writer.skipped, files, "fail")
    written = open_store(store)
    _warn_of_cropping(written.images)
    return written


def _tile_size(tile: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width of a tile that holds something."""
    try:
        height, width = (tile, tile) if isinstance(tile, int | np.integer) else tile
        if bool in {type(height), type(width)}:
            raise TypeError  # noqa: TRY301
        size = operator.index(height), operator.index(width)
    except (TypeError, ValueError) as error:
        msg = f"a tile is {tile!r}; give its height and width in pixels, or one number for both"
        raise ImageError(msg) from error
    if min(size) < 1:
        msg = f"a tile of {size[0]} x {size[1]} pixels holds nothing; give at least 1 x 1"
        raise ImageError(msg)
    return size


def _open_present(path: Path, *, overwrite: bool) -> TileStore | None:
    """Return the store at a path, or None if there is none.

    Raises
    ------
    StoreError
        If something else is there; a damaged store unless `overwrite`.
    """
    commit.check_free(path, STORE)
    if not is_present(path):
        return None
    try:
        return open_store(path)
    except StoreError as error:
        if not overwrite:
            raise _resolved_by_overwrite(error, path) from error
        return None


def _size_of_begun(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    with suppress(StoreError):  # it is not known: nothing is written yet
        return partial_tile_size(path)
    return None


def _default_size(
    path: Path, present: TileStore | None, begun: tuple[int, int] | None
) -> tuple[int, int]:
    """Return the size of tiles of the store at a path, complete or cut short; else 16 x 16."""
    there = present.tile[:2] if present else None
    if begun and there and begun != there:
        msg = (
            f"{path}: its tiles are {there[0]} x {there[1]}, but an ingest of {begun[0]} x "
            f"{begun[1]} was cut short beside it. Ingest with the size of tile that you mean"
        )
        raise StoreError(msg, options=("tile",))
    if not begun and not there and is_present(path):
        msg = (
            f"{path}: the store is damaged, and the size of its tiles not known. Give "
            "daskkm.create_store a size, or remove the store"
        )
        raise StoreError(msg, options=("tile",))
    height, width = begun or there or _DEFAULT_SIZE
    return height, width


def _is_as_asked(
    present: TileStore, files: Sequence[Path], tile: tuple[int, int], *, overwrite: bool
) -> bool:
    """Return True if a store was made of these files, cut into such tiles.

    Raises
    ------
    StoreError
        If not, or if chunks are missing, unless `overwrite`.
    """
    try:
        present.check()
    except StoreError as error:
        if not overwrite:
            raise _resolved_by_overwrite(error, present.path) from error
        return False
    differences = find_differences(present.images, present.skipped, files)
    texts = [*describe_differences(differences), *describe_tiles(present.tile[:2], tile)]
    if texts and not overwrite:
        msg = (
            f"{present.path}: the store differs from what is asked for: {', '.join(texts)}. "
            f"Choose another store, or overwrite this one{_losses(present.path)}"
        )
        raise StoreError(msg, options=OVERWRITE)
    if not texts:
        remove_leftovers(present.path)
    return not texts


def _resolved_by_overwrite(error: StoreError, path: Path) -> StoreError:
    """Return an error of a damaged store as one that overwriting it resolves."""
    return type(error)(f"{error}, or overwrite it{_losses(path)}", options=OVERWRITE)


def _losses(path: Path) -> str:
    """Return which labels and distances go with a store, to end a message."""
    lost = list_labels(path)
    return f", which deletes its {', '.join(lost)}" if lost else ""


def _look_at(
    files: Sequence[Path],
    tile: tuple[int, int],
    leave_out: Callable[[Path, ImageError, tuple[int, ...]], Skipped],
) -> tuple[dict[Path, tuple[int, ...]], dict[Path, Skipped]]:
    """Return the shapes of the images, from their headers, and the other files.

    Raises
    ------
    ImageError
        As `leave_out` raises it, or if there are no images besides.
    """
    shapes: dict[Path, tuple[int, ...]] = {}
    bad: dict[Path, Skipped] = {}  # not the errors, which hold on to what was read of the files
    before: dict[Path, tuple[int, ...]] = {}
    first: ImageError | None = None
    for path in files:
        before[path] = state(path)
        try:
            shapes[path] = pillow.image_shape(path)
        except ImageError as error:
            bad[path] = leave_out(path, error, before[path])
            first = first or error
    usual = Counter(shape[2:] for shape in shapes.values()).most_common(1)
    for path, shape in list(shapes.items()):
        if found := _misfit(path, shape, usual[0][0], tile):
            bad[path] = leave_out(path, found, before[path])
            first = first or found
            del shapes[path]
    if not shapes and first is not None:
        raise first
    return shapes, bad


def _misfit(
    path: Path, shape: tuple[int, ...], usual: tuple[int, ...], tile: tuple[int, int]
) -> ImageError | None:
    """Return what is wrong with an image that fits the others, or the tiles, not."""
    kinds = {(): "greyscale", (3,): "RGB"}
    if shape[2:] != usual:
        msg = (
            f"{path}: it is {kinds[shape[2:]]} while the other images are {kinds[usual]}; "
            "convert or remove it"
        )
        return ImageError(msg)
    if not math.prod(grid(shape, tile)):
        msg = (
            f"{path}: its {shape[0]} x {shape[1]} pixels hold no whole tile of "
            f"{tile[0]} x {tile[1]}; choose smaller tiles or remove it"
        )
        return ImageError(msg)
    return None


def _append(
    writer: StoreWriter,
    path: Path,
    shape: tuple[int, ...],
    tile: tuple[int, int],
    leave_out: Callable[[Path, ImageError, tuple[int, ...]], Skipped],
) -> None:
    """Add an image's tiles to the store, or leave it out."""
    before = state(path)
    try:
        image, pixels = pillow.read_image(path, tile)
    except ImageError as error:
        writer.skip(leave_out(path, error, before))
        return
    if image.shape != shape:
        msg = f"{path}: the file changed while it was being ingested; ingest again"
        raise ImageError(msg)
    writer.append(image, cut(pixels, tile))


def _refuse(skipped: Sequence[Skipped], files: Sequence[Path], on_bad: str) -> None:
    """Raise ImageError for the first file that was left out, if none may be."""
    if skipped and on_bad == "fail":
        path = next(path for path in files if path.name == skipped[0].name)
        msg = f"{path}: {skipped[0].reason}"
        raise ImageError(msg)


def _warn_of_cropping(images: Sequence[ImageRecord]) -> None:
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
