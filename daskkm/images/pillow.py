"""Read images with Pillow.

A file must hold one picture of 8-bit greyscale or RGB in any encoding (1-bit, a palette, with an
opaque alpha, rotated by EXIF). Otherwise an ImageError names the file.
"""

from __future__ import annotations

import hashlib
import io
import logging
import threading
import time
import warnings
from contextlib import ExitStack, contextmanager
from typing import IO, TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError, _imaging

from daskkm.errors import ImageError, printable, reason
from daskkm.images import formats
from daskkm.storage.records import ImageRecord, check_regular, read_state, select_settled_times

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from daskkm.storage.locations import Location

# Shape of the bands of each mode that images are converted to.
_BANDS: dict[str, tuple[int, ...]] = {"L": (), "RGB": (3,)}
_MODES = {"1": "L", "L": "L", "LA": "L", "RGB": "RGB", "RGBA": "RGB"}
_TRANSPOSING = {5, 6, 7, 8}  # EXIF orientations that exchange height and width

_BLOCK_BYTES, _KEPT_BLOCKS = 1 << 20, 32  # of memory, which Pillow keeps for the next images

_LOCK = threading.Lock()
_SETTINGS = ExitStack()
_readers = 0
_PILLOW_LOG = logging.getLogger("PIL.TiffImagePlugin")


class PillowImage:
    """Image of one file, decoded as a whole at the first read of a window.

    Use it within `configure_pillow`.

    Attributes
    ----------
    shape : tuple of int
        (height, width) or (height, width, 3).
    dtype : numpy.dtype
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, path: Location, state: tuple[int, ...] | None = None) -> None:
        self._path = path
        # No cached_property: that of Python 3.11 decodes one image at a time.
        self._decoded: Image.Image | None = None
        with _translate_errors(path):
            # One read: digest and pixels are of the same bytes.
            self._start = time.time_ns()
            self._state = read_state(path) if state is None else state
            check_regular(path, self._state)
            self._data = bytes(path.read())
            self._png_pixels = formats.find_png_pixels(self._data)
            if self._png_pixels:
                self.shape = formats.read_plain_png(self._data[: formats.HEAD_BYTES]) or ()
            else:
                self._image = _open_image(io.BytesIO(self._data))
                self.shape = _compute_shape(self._image, io.BytesIO(self._data))

    def read_window(self, rows: slice, columns: slice) -> NDArray[np.uint8]:
        """Return the pixels of a window."""
        if self._decoded is None:
            self._decoded = self._decode()
        height, width = self.shape[:2]
        (top, bottom, _), (left, right, _) = rows.indices(height), columns.indices(width)
        return np.asarray(self._decoded.crop((left, top, right, bottom)))

    def _decode(self) -> Image.Image:
        with _translate_errors(self._path):
            if self._png_pixels:
                return _decode_plain_png(self._png_pixels, self.shape)
            with self._image as image:
                if formats.has_unused_bits(image, self._data):
                    msg = f"4 bands, of which Pillow decodes 3; {formats.CONVERT}"
                    raise ImageError(msg)
                if image.format == "PNG":  # an orientation may follow the pixels
                    image = _open_image(io.BytesIO(self._data))  # noqa: PLW2901
                decoded = _convert(image)
        if (decoded.height, decoded.width, *_BANDS[decoded.mode]) != self.shape:
            msg = (
                f"{self._path}: the shape of the pixels differs from the header. "
                "Save the image again"
            )
            raise ImageError(msg)
        return decoded

    def make_record(self, tile: tuple[int, int]) -> ImageRecord:
        """Return the record of the file, for tiles of a size."""
        mtime_ns, ctime_ns = self._state[-2:] or (self._start, 0)  # not settled
        times = select_settled_times(mtime_ns, ctime_ns, self._start)
        digest = hashlib.sha256(self._data).hexdigest()
        cropped = (self.shape[0] % tile[0], self.shape[1] % tile[1])
        size = len(memoryview(self._data))
        return ImageRecord(self._path.name, size, digest, self.shape, cropped, **times)


def read_shape(path: Location, state: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """Return (height, width) or (height, width, 3) from the header of an image.

    `state` is that of `read_state`. Call this within `configure_pillow`.
    """
    with _translate_errors(path):
        check_regular(path, read_state(path) if state is None else state)
        if shape := formats.read_plain_png(path.read_head(formats.HEAD_BYTES)):
            return shape
        with path.open() as file, _open_image(file) as image:
            return _compute_shape(image, file)


def _open_image(file: IO[bytes]) -> Image.Image:
    """Open an image; raise ImageError with a description of a file of another format."""
    try:
        return Image.open(file, formats=formats.FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(formats.describe_unopened(file)) from error


@contextmanager
def configure_pillow() -> Iterator[None]:
    """Configure Pillow to raise each problem, and restore the settings after the last reader.

    The settings belong to the process, in which several threads read images.
    """
    global _readers  # noqa: PLW0603
    with _LOCK:
        _readers += 1
        if _readers == 1:
            _SETTINGS.enter_context(warnings.catch_warnings())
            # Other modules may warn from other threads.
            warnings.filterwarnings("error", module=r"(PIL|daskkm\.images)\b")
            # New memory for each image costs as much as decoding.
            _SETTINGS.callback(_imaging.set_block_size, _imaging.get_block_size())
            _SETTINGS.callback(_imaging.set_blocks_max, _imaging.get_blocks_max())
            _imaging.set_block_size(_BLOCK_BYTES)
            _imaging.set_blocks_max(_KEPT_BLOCKS)
            before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, _PILLOW_LOG.disabled
            _SETTINGS.callback(_set_pillow, *before)
            _set_pillow(formats.MAX_PIXELS, False, True)  # errors hold the text of the log
    try:
        yield
    finally:
        with _LOCK:
            _readers -= 1
            if not _readers:
                _SETTINGS.close()


def _set_pillow(max_pixels: int | None, load_truncated: bool, log_disabled: bool) -> None:
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = max_pixels, load_truncated
    _PILLOW_LOG.disabled = log_disabled


@contextmanager
def _translate_errors(path: Location) -> Iterator[None]:
    """Raise each error as an ImageError that names the file."""
    try:
        yield
    except ImageError as error:
        msg = f"{path}: {str(error).removeprefix(printable(f'{path}: '))}"
        raise ImageError(msg) from error.__cause__
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        msg = f"{path}: the image has more than {formats.MAX_PIXELS} pixels. Split the image"
        raise ImageError(msg) from error
    except Exception as error:  # plugins of Pillow raise any type for a damaged file
        msg = f"{path}: the image cannot be read ({reason(error)}). Replace or remove the file"
        raise ImageError(msg) from error


def _compute_shape(image: Image.Image, file: IO[bytes]) -> tuple[int, ...]:
    """Return the shape of the result of `_convert`, from the header."""
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


def _decode_plain_png(pixels: bytes, shape: tuple[int, ...]) -> Image.Image:
    """Decode the compressed pixels of a PNG of 8-bit greyscale or RGB."""
    (mode,) = (mode for mode, bands in _BANDS.items() if bands == shape[2:])
    return Image.frombytes(mode, (shape[1], shape[0]), pixels, "zip", mode)


def _convert(image: Image.Image) -> Image.Image:
    """Decode, rotate and convert an image."""
    mode = _choose_mode(image)
    ImageOps.exif_transpose(image, in_place=True)
    if image.has_transparency_data:
        with_alpha = image.convert("RGBA")
        if with_alpha.getchannel("A").getextrema() != (255, 255):
            msg = "some pixels are transparent. Save the image without transparency"
            raise ImageError(msg)
        image = image if image.mode == mode else with_alpha
    return image if image.mode == mode else image.convert(mode)
