"""Files of a sweep's results: centroids as images, the contact sheet, and sweep.json."""

from __future__ import annotations

import io
import json
from contextlib import ExitStack, contextmanager
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from daskkm.errors import ResultsError, translate_errors
from daskkm.storage import locks
from daskkm.storage.locations import LocalLocation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from daskkm.storage.locations import Location

_PROBE = ".daskkm"


def check_writable(out: Location) -> None:
    """Create the folder for results; raise ResultsError if the folder is not writable."""
    with _translate_errors(out):
        (out / _PROBE).write(b"")
        (out / _PROBE).remove()


@contextmanager
def lock_folder(out: Location) -> Iterator[None]:
    """Lock the folder for results; raise ResultsError if another sweep holds the lock."""
    msg = f"{out}: locked by another sweep. Wait for it, or choose another folder"
    busy = ResultsError(msg, options=("out",))
    with ExitStack() as stack:
        with _translate_errors(out):
            if isinstance(out, LocalLocation):
                stack.enter_context(locks.lock_folder(out.path, busy))
                out.remove_partial_files()
            else:
                stack.enter_context(locks.lock(out, busy))
        yield


def remove_file(path: Location) -> None:
    """Remove a file if present."""
    with _translate_errors(path):
        path.remove()


def to_pixels(centroids: NDArray[np.float64], tile: tuple[int, ...]) -> NDArray[np.uint8]:
    """Round centroids, (k, d), to pixels, (k, height, width[, 3])."""
    return np.rint(centroids).clip(0, 255).astype(np.uint8).reshape(-1, *tile)


def save_centroids(out: Location, pixels: NDArray[np.uint8]) -> None:
    """Write ``out/K/centroidI.png`` for the pixels of K centroids, I from 1."""
    folder = out / str(len(pixels))
    for i, centroid in enumerate(pixels, 1):
        save_image(folder / f"centroid{i}.png", Image.fromarray(centroid))


def save_image(path: Location, image: Image.Image) -> None:
    """Write an image, in the format of the suffix."""
    buffer = io.BytesIO()
    image.save(buffer, PurePosixPath(path.name).suffix[1:])
    with _translate_errors(path):
        path.write(buffer.getvalue())


def save_json(path: Location, content: Mapping[str, Any]) -> None:
    """Write a JSON file."""
    with _translate_errors(path):
        path.write((json.dumps(content, indent=1) + "\n").encode())


def _translate_errors(path: Location) -> AbstractContextManager[None]:
    """Translate system errors in a context to ResultsError."""
    problem = "results cannot be written"
    return translate_errors(ResultsError, path, problem, "Choose another folder")
