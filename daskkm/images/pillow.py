"""Read images with Pillow.

A file must hold one picture of 8-bit greyscale or RGB in any encoding (1-bit, a palette, with an
opaque alpha, rotated by EXIF). Otherwise an ImageError names the file.
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

# Shape of the bands of each mode that images are converted to.
_BANDS: dict[str, tuple[int, ...]] = {"L": (), "RGB": (3,)}
_MODES = {"1": "L", "L": "L", "LA": "L", "RGB": "RGB", "RGBA": "RGB"}
_MAX_PIXELS = 178_956_970  # default of Pillow
_TRANSPOSING = {5, 6, 7, 8}  # EXIF orientations that exchange height and width

_PILLOW = threading.Lock()
_PILLOW_LOG = logging.getLogger("PIL.TiffImagePlugin")


def read_shape(path: Path) -> tuple[int, ...]:
    """Return (height, width) or (height, width, 3) from the header of an image."""
    with _translate_errors(path), _configure_pillow():
        check_regular(path)
        with path.open("rb") as file, _open_image(file) as image:
            return _compute_shape(image, file)


def read_image(path: Path, tile: tuple[int, int]) -> tuple[ImageRecord, NDArray[np.uint8]]:
    """Return the record of an image, for tiles of size `tile`, and its pixels."""
    with _translate_errors(path), _configure_pillow():
        check_regular(path)
        # One read: digest and pixels are of the same bytes.
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            times = select_settled_times(status.st_mtime_ns, status.st_ctime_ns, time.time_ns())
            data = file.read()
        shape, pixels = _decode_image(data)
    cropped = (shape[0] % tile[0], shape[1] % tile[1])
    digest = hashlib.sha256(data).hexdigest()
    return ImageRecord(path.name, len(data), digest, shape, cropped, **times), pixels


def _decode_image(data: bytes) -> tuple[tuple[int, ...], NDArray[np.uint8]]:
    """Return shape and pixels of the content of an image file."""
    with _open_image(io.BytesIO(data)) as image:
        shape = _compute_shape(image, io.BytesIO(data))
        if formats.has_unused_bits(image, data):
            msg = f"4 bands, of which Pillow decodes 3; {formats.CONVERT}"
            raise ImageError(msg)
        if image.format == "PNG":
            image.verify()  # decoding ignores checksums after the pixels
    with _open_image(io.BytesIO(data)) as image:
        pixels = _read_pixels(image)
    if pixels.shape != shape:  # a PNG with the orientation after the pixels
        msg = "the shape of the pixels differs from the header. Save the image again"
        raise ImageError(msg)
    return shape, pixels


def _open_image(file: IO[bytes]) -> Image.Image:
    """Open an image; raise ImageError with a description of a file of another format."""
    try:
        return Image.open(file, formats=formats.FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(formats.describe_unopened(file)) from error


@contextmanager
def _configure_pillow() -> Iterator[None]:
    """Configure Pillow to raise each problem, and restore the settings at exit.

    The settings belong to the process, so one thread at a time reads images.
    """
    with _PILLOW, warnings.catch_warnings():
        # Other modules may warn from other threads.
        warnings.filterwarnings("error", module=r"(PIL|daskkm\.images)\b")
        before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, _PILLOW_LOG.disabled
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = _MAX_PIXELS, False
        _PILLOW_LOG.disabled = True  # the errors hold the same text
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, _PILLOW_LOG.disabled = before


@contextmanager
def _translate_errors(path: Path) -> Iterator[None]:
    """Raise each error as an ImageError that names the file."""
    try:
        yield
    except ImageError as error:
        msg = f"{path}: {str(error).removeprefix(printable(f'{path}: '))}"
        raise ImageError(msg) from error.__cause__
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        msg = f"{path}: the image has more than {_MAX_PIXELS} pixels. Split the image"
        raise ImageError(msg) from error
    except Exception as error:  # plugins of Pillow raise any type for a damaged file
        msg = f"{path}: the image cannot be read ({reason(error)}). Replace or remove the file"
        raise ImageError(msg) from error


def _compute_shape(image: Image.Image, file: IO[bytes]) -> tuple[int, ...]:
    """Return the shape of the result of `_read_pixels`, from the header."""
    if loss := formats.find_loss(image, file):
        raise ImageError(loss)
    size = (image.height, image.width)
    # Only chunks of a PNG before the pixels are read. The size of a TIFF is already transposed.
    exif = Image.Image.getexif(image) if image.format != "TIFF" else {}
    if exif.get(ExifTags.Base.Orientation) in _TRANSPOSING:
        size = size[::-1]
    return (*size, *_BANDS[_choose_mode(image)])


def _choose_mode(image: Image.Image) -> str:
    """Return "L" or "RGB", the mode that holds all pixels of an image exactly."""
    if image.mode == "P" and image.palette is not None:
        # Convert the palette to RGB without decoding the pixels.
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
