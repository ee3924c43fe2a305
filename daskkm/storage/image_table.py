"""Records of image files: a table in a store, with one Zarr array for each column."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from daskkm.block_sizes import sizes
from daskkm.storage import nodes
from daskkm.storage.arrays import ChunkedArray
from daskkm.storage.records import ImageRecord, SkippedFile, grid_shape

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from daskkm.storage.locations import Location
    from daskkm.storage.nodes import Node
    from daskkm.storage.records import File

IMAGES, SKIPPED = "images", "skipped"
_NO_TIME = np.iinfo(np.int64).min  # of a file whose times are not recorded
_FIELDS = {
    "size": "int64",
    "mtime_ns": "int64",
    "ctime_ns": "int64",
    "height": "int64",
    "width": "int64",
    "first_tile": "int64",
}
_TEXTS = ("name", "reason")  # each has the ends of its texts in NAME_end
_DIGEST_BYTES = 32
COLUMNS = (*_FIELDS, "sha256", *_TEXTS, *(f"{name}_end" for name in _TEXTS))


class ImageTable(Sequence[ImageRecord]):
    """Records of the images of a store, in the order of their tiles.

    Attributes
    ----------
    first_tile : ndarray of shape (n,), int64
        Index of the first tile of each image.
    shape : ndarray of shape (n, 2), int64
        Height and width in pixels.
    """

    def __init__(
        self, columns: Mapping[str, NDArray[Any]], tile: tuple[int, int], bands: tuple[int, ...]
    ) -> None:
        self._columns, self._tile, self._bands = columns, tile, bands
        self.first_tile = columns["first_tile"]
        self.shape = np.stack([columns["height"], columns["width"]], axis=1)

    def __len__(self) -> int:
        return len(self.first_tile)

    @overload
    def __getitem__(self, i: int) -> ImageRecord: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[ImageRecord]: ...
    def __getitem__(self, i: int | slice) -> ImageRecord | Sequence[ImageRecord]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        height, width = self.shape[i].tolist()
        return ImageRecord(
            **_get_file(self._columns, i),
            shape=(height, width, *self._bands),
            cropped=(height % self._tile[0], width % self._tile[1]),
        )

    def locate(self, first: int, last: int) -> dict[str, NDArray[np.int32]]:
        """Return image, and row and column in tiles, of tiles first … last - 1."""
        indices = np.arange(first, last)
        image = np.searchsorted(self.first_tile, indices, side="right") - 1
        within = indices - self.first_tile[image]
        columns = self.shape[image, 1] // self._tile[1]
        arrays = {"image": image, "row": within // columns, "col": within % columns}
        return {name: values.astype(np.int32) for name, values in arrays.items()}


def read_images(node: Node) -> ImageTable:
    """Read the records of the images of a store."""
    height, width, *bands = node.arrays["tiles"].shape[1:]
    return ImageTable(_read_columns(node, IMAGES), (height, width), tuple(bands))


def read_skipped(node: Node) -> tuple[SkippedFile, ...]:
    """Read the records of the files that were left out."""
    columns = _read_columns(node, SKIPPED)
    if not columns:
        return ()
    return tuple(
        SkippedFile(**_get_file(columns, i), reason=_get_text(columns, "reason", i))
        for i in range(len(columns["size"]))
    )


def _read_columns(node: Node, table: str) -> dict[str, NDArray[Any]]:
    return {
        name.removeprefix(f"{table}/"): nodes.read_rows(node, name)
        for name in node.arrays
        if name.startswith(f"{table}/")
    }


def _get_file(columns: Mapping[str, NDArray[Any]], i: int) -> dict[str, Any]:
    mtime_ns, ctime_ns = columns["mtime_ns"][i].item(), columns["ctime_ns"][i].item()
    digest = columns["sha256"][i]
    return {
        "name": _get_text(columns, "name", i),
        "size": columns["size"][i].item(),
        "sha256": digest.tobytes().hex() if digest.any() else "",
        "mtime_ns": None if mtime_ns == _NO_TIME else mtime_ns,
        "ctime_ns": None if ctime_ns == _NO_TIME else ctime_ns,
    }


def _get_text(columns: Mapping[str, NDArray[Any]], name: str, i: int) -> str:
    ends = columns[f"{name}_end"]
    start = ends[i - 1] if i else 0
    return columns[name][start : ends[i]].tobytes().decode("utf-8", "surrogateescape")


def append_images(
    location: Location,
    arrays: Mapping[str, ChunkedArray],
    images: Sequence[ImageRecord],
    tile: tuple[int, int],
    first_tile: int,
) -> dict[str, ChunkedArray]:
    """Write records behind those in `arrays`; return the arrays of the longer table."""
    counts = [math.prod(grid_shape(image.shape, tile)) for image in images]
    firsts = first_tile + np.cumsum([0, *counts])[:-1]
    more = {
        "height": [image.shape[0] for image in images],
        "width": [image.shape[1] for image in images],
        "first_tile": firsts,
    }
    return _append(location, arrays, IMAGES, images, more, {})


def append_skipped(
    location: Location, arrays: Mapping[str, ChunkedArray], files: Sequence[SkippedFile]
) -> dict[str, ChunkedArray]:
    """Write records of skipped files behind those in `arrays`."""
    if not files:
        return {}
    return _append(
        location, arrays, SKIPPED, files, {}, {"reason": [file.reason for file in files]}
    )


def _append(
    location: Location,
    arrays: Mapping[str, ChunkedArray],
    table: str,
    files: Sequence[File],
    numbers: Mapping[str, Any],
    texts: Mapping[str, list[str]],
) -> dict[str, ChunkedArray]:
    columns: dict[str, NDArray[Any]] = {}
    for name in ("mtime_ns", "ctime_ns"):
        times = [getattr(file, name) for file in files]
        numbers = {**numbers, name: [_NO_TIME if time is None else time for time in times]}
    numbers = {**numbers, "size": [file.size for file in files]}
    for name, values in numbers.items():
        columns[name] = np.array(values, _FIELDS[name])
    digests = [bytes.fromhex(file.sha256) or bytes(_DIGEST_BYTES) for file in files]
    columns["sha256"] = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, _DIGEST_BYTES)
    texts = {**texts, "name": [file.name for file in files]}
    for name, values in texts.items():
        encoded = [value.encode("utf-8", "surrogateescape") for value in values]
        start = len(arrays[f"{table}/{name}"]) if f"{table}/{name}" in arrays else 0
        columns[name] = np.frombuffer(b"".join(encoded), np.uint8)
        columns[f"{name}_end"] = start + np.cumsum([len(each) for each in encoded], dtype=np.int64)
    longer = {}
    for name, values in columns.items():
        path = f"{table}/{name}"
        dimension = table.removesuffix("s") + (f"_{name}" if name in _TEXTS else "")
        dimensions = (dimension, "byte")[: values.ndim]
        new = ChunkedArray(
            location / path, (0, *values.shape[1:]), values.dtype, sizes.table_rows, dimensions,
            compressed=True,
        )  # fmt: skip
        old = arrays.get(path, new)
        old.append(len(old), values)
        longer[path] = old.resize(len(old) + len(values))
    return longer


def extend_digest(digest: str, images: Sequence[ImageRecord]) -> str:
    """Return the digest of a store with these images after the images of `digest`.

    The digest depends on the images and their order, not on the number of appends.
    """
    state = bytes.fromhex(digest)
    for image in images:
        content = f"{image.name}\0{image.size}\0{image.sha256}\0{image.shape}".encode(
            "utf-8", "surrogateescape"
        )
        state = hashlib.sha256(state + content).digest()
    return state.hex()
