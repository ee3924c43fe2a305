"""Sheets and tiles: finding, opening, cutting and putting together, exactly.

Tiles are numbered row by row, sheet by sheet, sheets in natural order.
"""

from __future__ import annotations

import hashlib
import io
import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from daskkm.errors import SheetError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
# The modes whose pixels are taken as they are, and the bands they have.
_BANDS: dict[str, tuple[int, ...]] = {"L": (), "RGB": (3,)}


@dataclass(frozen=True)
class Sheet:
    """A sheet as it was read.

    Attributes
    ----------
    name : str
        File name, without its folder.
    size : int
        Bytes of the file.
    sha256 : str
        Hexadecimal digest of the file.
    shape : tuple of int
        (height, width) or (height, width, bands) in pixels.
    cropped : tuple of int
        Pixels left out at the bottom and at the right, which hold no whole tile.
    """

    name: str
    size: int
    sha256: str
    shape: tuple[int, ...]
    cropped: tuple[int, int]

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Sheet:
        """Return the sheet that `dataclasses.asdict` and JSON made this record of."""
        shape, cropped = tuple(record["shape"]), tuple(record["cropped"])
        return cls(record["name"], record["size"], record["sha256"], shape, cropped)

    def is_file(self, path: Path) -> bool:
        """Tell whether a file is this sheet still, byte for byte."""
        with _errors_named(path):
            if path.name != self.name or path.stat().st_size != self.size:
                return False
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256


def find_sheets(folder: Path) -> list[Path]:
    """List the sheets of a folder in natural order (sheet_2 before sheet_10).

    Parameters
    ----------
    folder : Path

    Returns
    -------
    list of Path
        Every file whose suffix is that of an image, hidden ones left out.

    Raises
    ------
    SheetError
        If there is no such folder, or no sheet in it.
    """
    if not folder.is_dir():
        msg = f"{folder}: there is no such folder; name the folder that holds the sheets"
        raise SheetError(msg)
    sheets = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")
    ]
    if not sheets:
        kinds = ", ".join(sorted(_SUFFIXES))
        msg = f"{folder}: there are no sheets in this folder; put image files there ({kinds})"
        raise SheetError(msg)
    return sorted(sheets, key=lambda path: natural_key(path.name))


def natural_key(name: str) -> tuple[list[tuple[int, str]], str]:
    """Return a sort key by which numbers inside names count as numbers."""
    parts = re.split(r"(\d+)", name.casefold())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], name


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
        If the file cannot be read as an image, is of another mode or holds several frames.
    """
    with _errors_named(path), Image.open(path) as image:
        return _checked_shape(path, image)


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
        As `sheet_shape`, or if the pixels cannot be decoded.
    """
    with _errors_named(path):
        # Read once: the digest is that of the very bytes that are decoded.
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            shape = _checked_shape(path, image)
            pixels = np.asarray(image)
    cropped = (shape[0] % tile[0], shape[1] % tile[1])
    return Sheet(path.name, len(data), hashlib.sha256(data).hexdigest(), shape, cropped), pixels


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    """Turn what Pillow raises, which seldom says where, into a SheetError that does."""
    try:
        yield
    except UnidentifiedImageError as error:
        msg = f"{path}: this is not an image that can be read; replace or remove the file"
        raise SheetError(msg) from error
    except SheetError:
        raise
    except Exception as error:  # broken files make Pillow's plugins raise whatever they meet
        msg = f"{path}: the image cannot be read ({error}); replace or remove the file"
        raise SheetError(msg) from error


def _checked_shape(path: Path, image: Image.Image) -> tuple[int, ...]:
    frames = getattr(image, "n_frames", 1)
    if image.mode not in _BANDS or frames > 1:
        has = f"{frames} frames" if frames > 1 else f"pixels of mode {image.mode}"
        msg = f"{path}: it has {has}; convert it to one 8-bit greyscale or RGB image"
        raise SheetError(msg)
    return (image.height, image.width, *_BANDS[image.mode])


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
