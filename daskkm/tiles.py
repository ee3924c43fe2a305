"""Sheets and tiles: opening, cutting and putting together, exactly.

Tiles are numbered row by row, sheet by sheet. A sheet is taken if its file holds one picture of
8-bit greyscale or RGB, however it is saved (1-bit, in a palette, with an opaque alpha, to be turned
as EXIF says); else it is refused by name.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import stat
import threading
import time
import warnings
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from daskkm import formats
from daskkm.errors import SheetError, printable, reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

# The modes in which pixels are given, and the bands they have.
_BANDS: dict[str, tuple[int, ...]] = {"L": (), "RGB": (3,)}
_MOST_PIXELS = 178_956_970  # where Pillow, left alone, refuses
_MOST_BYTES = 1 << 30  # no sheet of so many pixels needs more
_TURNED = {5, 6, 7, 8}  # EXIF's orientations by which height becomes width

_UNREAD = (0, "")
_TICK_NS = 2_000_000_000
_PILLOW = threading.Lock()
_PILLOW_LOG = logging.getLogger("PIL.TiffImagePlugin")


@dataclass(frozen=True)
class File:
    """A file as it was read.

    Attributes
    ----------
    name : str
        File name, without its folder.
    size : int
        Bytes of the file.
    sha256 : str
        Hexadecimal digest of the file, or "" if it could not be read, or was being written to.
    mtime_ns, ctime_ns : int, optional
        When the file, and its entry in the file system, were last modified, as the system has it;
        None if the file was modified so shortly before it was read that a later change could have
        the same time, or where that is not known.
    """

    name: str
    size: int
    sha256: str
    mtime_ns: int | None = field(default=None, kw_only=True, compare=False)
    ctime_ns: int | None = field(default=None, kw_only=True, compare=False)

    def is_file(self, path: Path) -> bool:
        """Return True if a file is this one still, or as unreadable as it was.

        It is if size and both times are the same; else its bytes are compared. The time of
        modification alone is not enough: archives and copies set it.
        """
        if path.name != self.name:
            return False
        if self.sha256 and (found := state(path)):
            *_, size, mtime_ns, ctime_ns = found
            if size != self.size:
                return False
            if (mtime_ns, ctime_ns) == (self.mtime_ns, self.ctime_ns):
                return True
        return _identity(path) == (self.size, self.sha256)

    @property
    def content(self) -> dict[str, Any]:
        """All that depends on what the file holds and is called, and not on when it was written."""
        times = {"mtime_ns", "ctime_ns"}
        return {name: value for name, value in asdict(self).items() if name not in times}


@dataclass(frozen=True)
class Sheet(File):
    """A sheet as it was read.

    Attributes
    ----------
    name, size, sha256, mtime_ns, ctime_ns
        As in `File`.
    shape : tuple of int
        (height, width) or (height, width, bands) in pixels.
    cropped : tuple of int
        Pixels left out at the bottom and at the right, which hold no whole tile.
    """

    shape: tuple[int, ...]
    cropped: tuple[int, int]

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Sheet:
        """Return the sheet that `dataclasses.asdict` and JSON made this record of."""
        shape, cropped = tuple(record["shape"]), tuple(record["cropped"])
        file = record["name"], record["size"], record["sha256"]
        mtime_ns, ctime_ns = record.get("mtime_ns"), record.get("ctime_ns")
        return cls(*file, shape, cropped, mtime_ns=mtime_ns, ctime_ns=ctime_ns)


@dataclass(frozen=True)
class Skipped(File):
    """A file that was left out because it is no sheet, or none that fits.

    Attributes
    ----------
    name, size, sha256, mtime_ns, ctime_ns
        As in `File`.
    reason : str
        What is wrong with it, and what to do.
    """

    reason: str

    @classmethod
    def of(cls, path: Path, error: SheetError, before: tuple[int, ...]) -> Skipped:
        """Return what is to be remembered of a file with which something is wrong.

        Parameters
        ----------
        path : Path
        error : SheetError
        before : tuple of int
            What `state` said of it before it was looked at.
        """
        reason = str(error).removeprefix(f"{printable(str(path))}: ")
        began = time.time_ns()
        size, sha256 = _identity(path)
        # What may go better the next time is tried again, and what was still being written.
        if _is_passing(error.__cause__) or state(path) != before:
            size, sha256 = _UNREAD
        times = _times(before[-2], before[-1], began) if sha256 else {}
        return cls(path.name, size, sha256, reason, **times)


def differences(
    sheets: Iterable[File], skipped: Iterable[File], paths: Iterable[Path]
) -> dict[str, list[str]]:
    """Return the names of files that differ from those recorded, by what happened to them.

    Parameters
    ----------
    sheets, skipped : iterable of File
        As they were recorded, each in the order of the files.
    paths : iterable of Path
        The files of today.

    Returns
    -------
    dict of str to list of str
        ``added``, ``removed``, ``changed`` and ``in another order``.
    """
    recorded = list(sheets), list(skipped)
    known = {file.name: file for files in recorded for file in files}
    today = {path.name: path for path in paths}
    return {
        "added": [name for name in today if name not in known],
        "removed": [name for name in known if name not in today],
        "changed": [
            name for name, path in today.items() if name in known and not known[name].is_file(path)
        ],
        "in another order": [
            name
            for files in recorded
            for name in _moved([file.name for file in files], list(today))
        ],
    }


def _moved(names: list[str], today: list[str]) -> list[str]:
    """Return the names, of those in both lists, that have another rank in the second."""
    common = set(names) & set(today)
    ranks = zip(
        *([name for name in each if name in common] for each in (names, today)), strict=True
    )
    return [name for name, other in ranks if name != other]


def describe(found: Mapping[str, Sequence[str]]) -> list[str]:
    """Return what `differences` found as counts and first names: 1 image added (a.png)."""
    texts = []
    for what, names in found.items():
        if names:
            first = ", ".join([*names[:3], *["…"] * (len(names) > 3)])
            texts.append(f"{len(names)} image{'s' * (len(names) != 1)} {what} ({first})")
    return texts


def state(path: Path) -> tuple[int, ...]:
    """Return what changes when a file is written to, or another takes its place."""
    try:
        found = path.stat()
    except OSError:
        return ()
    times = found.st_mtime_ns, found.st_ctime_ns
    return found.st_dev, found.st_ino, found.st_size, *times


def _times(mtime_ns: int, ctime_ns: int, began: int) -> dict[str, int]:
    """Return what to record of times if no change since a file began to be read can have the same.

    Clocks of file systems tick in up to two seconds.
    """
    settled = mtime_ns < began - _TICK_NS
    return {"mtime_ns": mtime_ns, "ctime_ns": ctime_ns} if settled else {}


def sheet_shape(path: Path) -> tuple[int, ...]:
    """Return the shape of a sheet's pixels from its header, without decoding it.

    Parameters
    ----------
    path : Path

    Returns
    -------
    tuple of int
        (height, width) of a greyscale sheet, (height, width, 3) of an RGB one.

    Raises
    ------
    SheetError
        If the file cannot be read as an image, has too many pixels, or holds other than one
        picture in greyscale or RGB of 8 bits.
    """
    with _errors_named(path), _strict():
        _check_regular(path)
        with path.open("rb") as file, _open(path, file) as image:
            return _checked_shape(path, image, file)


def read_sheet(path: Path, tile: tuple[int, int]) -> tuple[Sheet, NDArray[np.uint8]]:
    """Read a sheet: what is to be remembered of it, and its pixels.

    Parameters
    ----------
    path : Path
    tile : tuple of int
        Height and width of a tile in pixels, which say what is cropped.

    Returns
    -------
    Sheet
    ndarray of shape (height, width) or (height, width, 3), uint8

    Raises
    ------
    SheetError
        As `sheet_shape`, or if the pixels cannot be decoded, or some are transparent.
    """
    with _errors_named(path), _strict():
        _check_regular(path)
        # Read once: the digest is that of the very bytes that are decoded.
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            times = _times(found.st_mtime_ns, found.st_ctime_ns, time.time_ns())
            data = file.read()
        with _open(path, io.BytesIO(data)) as image:
            shape = _checked_shape(path, image, io.BytesIO(data))
            if formats.has_unused_bits(image, data):
                msg = f"{path}: 4 bands, of which Pillow shows 3; {formats.CONVERT}"
                raise SheetError(msg)
            if image.format == "PNG":
                image.verify()  # all checksums: reading leaves out those from the pixels on
        with _open(path, io.BytesIO(data)) as image:
            pixels = _pixels(path, image)
        if pixels.shape != shape:  # as where a PNG says behind its pixels that it is to be turned
            msg = f"{path}: its pixels are not of the shape that its header says; save it anew"
            raise SheetError(msg)
    cropped = (shape[0] % tile[0], shape[1] % tile[1])
    digest = hashlib.sha256(data).hexdigest()
    return Sheet(path.name, len(data), digest, shape, cropped, **times), pixels


def _open(path: Path, file: IO[bytes]) -> Image.Image:
    """Open an image of a known format, or raise SheetError with a description of the file."""
    try:
        return Image.open(file, formats=formats.FORMATS)
    except UnidentifiedImageError as error:
        msg = f"{path}: {formats.describe_unopened(file)}"
        raise SheetError(msg) from error


def _check_regular(path: Path) -> None:
    """Refuse what is no file, as a pipe, which would be waited for, and what is far too big."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        msg = f"{path}: this is not a file; remove it"
        raise SheetError(msg)
    if found.st_size > _MOST_BYTES:
        msg = f"{path}: it has {found.st_size} bytes, more than {_MOST_BYTES}; cut the sheet up"
        raise SheetError(msg)


def _identity(path: Path) -> tuple[int, str]:
    """Return how many bytes a file has, and their digest; 0 and "" if it cannot be read."""
    try:
        _check_regular(path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
            return file.tell(), digest.hexdigest()
    except (OSError, SheetError):
        return _UNREAD


def _is_passing(error: BaseException | None) -> bool:
    """Tell whether an error may be of the moment, or the machine, and not of the file."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and bool(error.errno))


@contextmanager
def _strict() -> Iterator[None]:
    """Let Pillow refuse what it can tell is wrong, whatever others in this process told it.

    What says so holds for the whole process, so one thread at a time reads sheets.
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
    """Turn what Pillow raises, which seldom says where, into a SheetError that does."""
    try:
        yield
    except SheetError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        msg = f"{path}: it has more than {_MOST_PIXELS} pixels; cut the sheet up"
        raise SheetError(msg) from error
    except Exception as error:  # broken files make Pillow's plugins raise whatever they meet
        msg = f"{path}: the image cannot be read ({reason(error)}); replace or remove the file"
        raise SheetError(msg) from error


def _checked_shape(path: Path, image: Image.Image, file: IO[bytes]) -> tuple[int, ...]:
    """Return the shape of the pixels that `_pixels` gives, from the header."""
    if loss := formats.find_loss(image, file):
        msg = f"{path}: {loss}"
        raise SheetError(msg)
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
            raise SheetError(msg)
        image = image if image.mode == mode else clear
    return np.asarray(image if image.mode == mode else image.convert(mode))


def grid(shape: tuple[int, ...], tile: tuple[int, ...]) -> tuple[int, int]:
    """Return how many rows and columns of whole tiles a sheet of this shape holds."""
    return shape[0] // tile[0], shape[1] // tile[1]


def cut(sheet: NDArray[Any], tile: tuple[int, int]) -> NDArray[Any]:
    """Cut a sheet into its whole tiles, row by row; ragged edges fall off.

    Parameters
    ----------
    sheet : ndarray of shape (H, W) or (H, W, bands)
    tile : tuple of int
        Height and width in pixels.

    Returns
    -------
    ndarray of shape (rows * columns, height, width) or (…, bands)

    See Also
    --------
    join : the exact inverse.
    """
    (rows, columns), (height, width) = grid(sheet.shape, tile), tile
    bands = sheet.shape[2:]
    whole = sheet[: rows * height, : columns * width]
    return (
        whole.reshape(rows, height, columns, width, *bands)
        .swapaxes(1, 2)
        .reshape(rows * columns, height, width, *bands)
    )


def join(tiles: NDArray[Any], columns: int) -> NDArray[Any]:
    """Put tiles together into a sheet, row by row.

    Parameters
    ----------
    tiles : ndarray of shape (rows * columns, height, width) or (…, bands)
    columns : int

    Returns
    -------
    ndarray of shape (rows * height, columns * width) or (…, bands)
    """
    n, height, width, *bands = tiles.shape
    rows = n // columns
    return (
        tiles.reshape(rows, columns, height, width, *bands)
        .swapaxes(1, 2)
        .reshape(rows * height, columns * width, *bands)
    )
