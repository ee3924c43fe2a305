"""Files of a sweep's results: centroids as images, the contact sheet, and sweep.json."""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from daskkm.errors import ResultsError, translate_errors
from daskkm.files import atomic_writer
from daskkm.storage import locks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from numpy.typing import NDArray


def check_writable(out: Path) -> None:
    """Create the folder for results; raise ResultsError if the folder is not writable."""
    with _translate_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()


@contextmanager
def lock_folder(out: Path) -> Iterator[None]:
    """Lock the folder for results; raise ResultsError if another sweep holds the lock."""
    msg = f"{out}: locked by another sweep. Wait for it, or choose another folder"
    busy = ResultsError(msg, options=("out",))
    with ExitStack() as stack:
        with _translate_errors(out):
            stack.enter_context(locks.lock_folder(out, busy))
        yield


def remove_file(path: Path) -> None:
    """Remove a file if present."""
    with _translate_errors(path):
        path.unlink(missing_ok=True)


def to_pixels(centroids: NDArray[np.float64], tile: tuple[int, ...]) -> NDArray[np.uint8]:
    """Round centroids, (k, d), to pixels, (k, height, width[, 3])."""
    return np.rint(centroids).clip(0, 255).astype(np.uint8).reshape(-1, *tile)


def save_centroids(out: Path, pixels: NDArray[np.uint8]) -> None:
    """Write ``out/K/centroidI.png`` for the pixels of K centroids, I from 1."""
    folder = out / str(len(pixels))
    with _translate_errors(folder):
        folder.mkdir(exist_ok=True)
    for i, centroid in enumerate(pixels, 1):
        save_image(folder / f"centroid{i}.png", Image.fromarray(centroid))


def save_image(path: Path, image: Image.Image) -> None:
    """Write an image atomically, in the format of the suffix."""
    with _translate_errors(path), atomic_writer(path) as file:
        image.save(file, path.suffix[1:])


def save_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    with _translate_errors(path), atomic_writer(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


def _translate_errors(path: Path) -> AbstractContextManager[None]:
    """Translate system errors in a context to ResultsError."""
    problem = "results cannot be written"
    return translate_errors(ResultsError, path, problem, "Choose another folder")
