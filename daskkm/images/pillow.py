"""Images and tiles: opening, cutting and putting together, exactly.

Tiles are numbered row by row, image by image. An image is taken if its file holds one picture of
8-bit greyscale or RGB, however it is saved (1-bit, in a palette, with an opaque alpha, to be turned
as EXIF says); else it is refused by name.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import threading
import time
import warnings
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from daskkm.errors import ImageError, translate_errors
from daskkm.images import formats
from daskkm.storage.records import ImageRecord, check_regular, settled_times

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

# The modes in which pixels are given, and the bands they have.
_BANDS: dict[str, tuple[int, ...]] = {"L": (), "RGB": (3,)}
_MOST_PIXELS = 178_956_970  # where Pillow, left alone, refuses
_MOST_BYTES = 1 << 30  # no image of so many pixels needs more
_TURNED = {5, 6, 7, 8}  # EXIF's orientations by which height becomes width

_UNREAD = (0, "")
_TICK_NS = 2_000_000_000
_PILLOW = threading.Lock()
_PILLOW_LOG = logging.getLogger("PIL.TiffImagePlugin")


def image_shape(path: Path) -> tuple[int, ...]:
    """Return the shape of an image's pixels from its header, without decoding it.

    Parameters
    ----------
    path : Path

    Returns
    -------
    tuple of int
        (height, width) of a greyscale image, (height, width, 3) of an RGB one.

    Raises
    ------
    ImageError
        If the file cannot be read as an image, has too many pixels, or holds other than one
        picture in greyscale or RGB of 8 bits.
    """
    with _errors_named(path), _strict():
        check_regular(path)
        with path.open("rb") as file, _open(path, file) as image:
            return _checked_shape(path, image, file)


def read_image(path: Path, tile: tuple[int, int]) -> tuple[ImageRecord, NDArray[np.uint8]]:
    """Read an image: what is to be remembered of it, and its pixels.

    Parameters
    ----------
    path : Path
    tile : tuple of int
        Height and width of a tile in pixels, which say what is cropped.

    Returns
    -------
    ImageRecord
    ndarray of shape (height, width) or (height, width, 3), uint8

    Raises
    ------
    ImageError
        As `image_shape`, or if the pixels cannot be decoded, or some are transparent.
    """
    with _errors_named(path), _strict():
        check_regular(path)
        # Read once: the digest is that of the very bytes that are decoded.
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            times = settled_times(found.st_mtime_ns, found.st_ctime_ns, time.time_ns())
            data = file.read()
        with _open(path, io.BytesIO(data)) as image:
            shape = _checked_shape(path, image, io.BytesIO(data))
            if formats.has_unused_bits(image, data):
                msg = f"{path}: 4 bands, of which Pillow shows 3; {formats.CONVERT}"
                raise ImageError(msg)
            if image.format == "PNG":
                image.verify()  # all checksums: reading leaves out those from the pixels on
        with _open(path, io.BytesIO(data)) as image:
            pixels = _pixels(path, image)
        if pixels.shape != shape:  # as where a PNG says behind its pixels that it is to be turned
            msg = f"{path}: its pixels are not of the shape that its header says; save it anew"
            raise ImageError(msg)
    cropped = (shape[0] % tile[0], shape[1] % tile[1])
    digest = hashlib.sha256(data).hexdigest()
    return ImageRecord(path.name, len(data), digest, shape, cropped, **times), pixels


def _open(path: Path, file: IO[bytes]) -> Image.Image:
    """Open an image of a known format, or raise ImageError with a description of the file."""
    try:
        return Image.open(file, formats=formats.FORMATS)
    except UnidentifiedImageError as error:
        msg = f"{path}: {formats.describe_unopened(file)}"
        raise ImageError(msg) from error


@contextmanager
def _strict() -> Iterator[None]:
    """Let Pillow refuse what it can tell is wrong, whatever others in this process told it.

    What says so holds for the whole process, so one thread at a time reads images.
    """
    with _PILLOW, warnings.catch_warnings():
        # Not those of other threads.
        warnings.filterwarnings("error", module=r"(PIL|daskkm\.(tiles|formats))\b")
        before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = _MOST_PIXELS, False
        _PILLOW_LOG.disabled, logged = True, _PILLOW_LOG.disabled  # errors say what it would
        try:
            yield
        finally:
            _PILLOW_LOG.disabled = logged
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    """Turn errors of Pillow, which seldom name the file, into an ImageError that does."""
    problem, hint = "the image cannot be read", "Replace or remove the file"
    # Broken files make Pillow's plugins raise errors of any type.
    with translate_errors(ImageError, path, problem, hint, catch=Exception):
        try:
            yield
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            msg = f"{path}: it has more than {_MOST_PIXELS} pixels; cut the image up"
            raise ImageError(msg) from error


def _checked_shape(path: Path, image: Image.Image, file: IO[bytes]) -> tuple[int, ...]:
    """Return the shape of the pixels that `_pixels` gives, from the header."""
    if loss := formats.find_loss(image, file):
        msg = f"{path}: {loss}"
        raise ImageError(msg)
    size = (image.height, image.width)
    # Of a PNG this asks for what stands before its pixels, and does not decode them. A TIFF's size
    # is that of the turned image already.
    exif = Image.Image.getexif(image) if image.format != "TIFF" else {}
    if exif.get(ExifTags.Base.Orientation) in _TURNED:
        size = size[::-1]
    return (*size, *_BANDS[_mode(image)])


def _mode(image: Image.Image) -> str:
    """Return the mode in which an image is to be had without changing a pixel."""
    if image.mode == "P" and image.palette is not None:
        # Of a palette as it is saved, in an order of its own, without decoding pixels.
        probe = Image.new("P", (1, 1))
        order, colours = image.palette.getdata()
        probe.putpalette(colours, order)
        bands = np.reshape(probe.getpalette() or [], (-1, 3))
        return "L" if (bands == bands[:, :1]).all() else "RGB"
    return {"1": "L", "L": "L", "LA": "L", "RGB": "RGB", "RGBA": "RGB"}[image.mode]


def _pixels(path: Path, image: Image.Image) -> NDArray[np.uint8]:
    """Decode an image as `_checked_shape` said."""
    mode = _mode(image)
    ImageOps.exif_transpose(image, in_place=True)
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        if clear.getchannel("A").getextrema() != (255, 255):
            msg = f"{path}: some of its pixels are transparent; save it without transparency"
            raise ImageError(msg)
        image = image if image.mode == mode else clear
    return np.asarray(image if image.mode == mode else image.convert(mode))
