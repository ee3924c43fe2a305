"""Read images with Pillow.

An image is read if its file holds one picture of 8-bit greyscale or RGB in any encoding (1-bit, a
palette, with an opaque alpha, rotated by EXIF); else an ImageError names the file.
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

from daskkm.errors import ImageError, printable, reason
from daskkm.images import formats
from daskkm.storage.records import ImageRecord, check_regular, select_settled_times

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

# Bands of the modes to which images are converted.
_BANDS: dict[str, tuple[int, ...]] = {"L": (), "RGB": (3,)}
_MODES = {"1": "L", "L": "L", "LA": "L", "RGB": "RGB", "RGBA": "RGB"}
_MAX_PIXELS = 178_956_970  # Pillow's default
_TRANSPOSED = {5, 6, 7, 8}  # EXIF's orientations that exchange height and width

_PILLOW = threading.Lock()
_PILLOW_LOG = logging.getLogger("PIL.TiffImagePlugin")


def read_shape(path: Path) -> tuple[int, ...]:
    """Return (height, width) or (height, width, 3) from an image's header, without its pixels."""
    with _translate_errors_of(path), _configure_pillow():
        check_regular(path)
        with path.open("rb") as file, _open_image(file) as image:
            return _compute_shape(image, file)


def read_image(path: Path, tile: tuple[int, int]) -> tuple[ImageRecord, NDArray[np.uint8]]:
    """Read an image: its record, for tiles of a size, and its pixels, of shape `read_shape`."""
    with _translate_errors_of(path), _configure_pillow():
        check_regular(path)
        # Read once: the digest is that of the very bytes that are decoded.
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            times = select_settled_times(status.st_mtime_ns, status.st_ctime_ns, time.time_ns())
            data = file.read()
        shape, pixels = _decode_image(data)
    cropped = (shape[0] % tile[0], shape[1] % tile[1])
    digest = hashlib.sha256(data).hexdigest()
    return ImageRecord(path.name, len(data), digest, shape, cropped, **times), pixels


def _decode_image(data: bytes) -> tuple[tuple[int, ...], NDArray[np.uint8]]:
    """Return shape and pixels of an image file's content."""
    with _open_image(io.BytesIO(data)) as image:
        shape = _compute_shape(image, io.BytesIO(data))
        if formats.has_unused_bits(image, data):
            msg = f"4 bands, of which Pillow shows 3; {formats.CONVERT}"
            raise ImageError(msg)
        if image.format == "PNG":
            image.verify()  # decoding skips the checksums behind the pixels
    with _open_image(io.BytesIO(data)) as image:
        pixels = _read_pixels(image)
    if pixels.shape != shape:  # as of a PNG with its orientation behind its pixels
        msg = "shape of the pixels differs from the header's. Save the image again"
        raise ImageError(msg)
    return shape, pixels


def _open_image(file: IO[bytes]) -> Image.Image:
    """Open an image of a known format; the ImageError for any other describes the file."""
    try:
        return Image.open(file, formats=formats.FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(formats.describe_unopened(file)) from error


@contextmanager
def _configure_pillow() -> Iterator[None]:
    """Raise for all that Pillow can detect, whatever other code in this process configured.

    The settings are those of the process, so one thread at a time reads images.
    """
    with _PILLOW, warnings.catch_warnings():
        # Not the warnings of other threads.
        warnings.filterwarnings("error", module=r"(PIL|daskkm\.images)\b")
        before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, _PILLOW_LOG.disabled
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = _MAX_PIXELS, False
        _PILLOW_LOG.disabled = True  # errors contain the same
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, _PILLOW_LOG.disabled = before


@contextmanager
def _translate_errors_of(path: Path) -> Iterator[None]:
    """Turn any error into an ImageError that names the file."""
    try:
        yield
    except ImageError as error:
        msg = f"{path}: {str(error).removeprefix(printable(f'{path}: '))}"
        raise ImageError(msg) from error.__cause__
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        msg = f"{path}: the image has more than {_MAX_PIXELS} pixels. Cut it into smaller images"
        raise ImageError(msg) from error
    except Exception as error:  # broken files make Pillow's plugins raise any error
        msg = f"{path}: the image cannot be read ({reason(error)}). Replace or remove the file"
        raise ImageError(msg) from error


def _compute_shape(image: Image.Image, file: IO[bytes]) -> tuple[int, ...]:
    """Return the shape that `_read_pixels` will give, from the header."""
    if loss := formats.find_loss(image, file):
        raise ImageError(loss)
    size = (image.height, image.width)
    # Of a PNG this reads the chunks before its pixels only. A TIFF's size is already transposed.
    exif = Image.Image.getexif(image) if image.format != "TIFF" else {}
    if exif.get(ExifTags.Base.Orientation) in _TRANSPOSED:
        size = size[::-1]
    return (*size, *_BANDS[_choose_mode(image)])


def _choose_mode(image: Image.Image) -> str:
    """Return the mode to which an image can be converted without a change of its pixels."""
    if image.mode == "P" and image.palette is not None:
        # A palette in the file's order of bands, without decoding pixels.
        probe = Image.new("P", (1, 1))
        order, colours = image.palette.getdata()
        probe.putpalette(colours, order)
        bands = np.reshape(probe.getpalette() or [], (-1, 3))
        return "L" if (bands == bands[:, :1]).all() else "RGB"
    return _MODES[image.mode]


def _read_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Decode, rotate and convert an image."""
    mode = _choose_mode(image)
    ImageOps.exif_transpose(image, in_place=True)
    if image.has_transparency_data:
        with_alpha = image.convert("RGBA")
        if with_alpha.getchannel("A").getextrema() != (255, 255):
            msg = "some pixels are transparent. Save the image without transparency"
            raise ImageError(msg)
        image = image if image.mode == mode else with_alpha
    return np.asarray(image if image.mode == mode else image.convert(mode))
