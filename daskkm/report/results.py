"""What a sweep leaves on disk: centroids as images, and sweep.json."""

from __future__ import annotations

import errno
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
    from collections.abc import Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from numpy.typing import NDArray


def check_writable(out: Path, ks: Iterable[int]) -> None:
    """Make the folder for results, and find out now whether it can be written.

    Parameters
    ----------
    out : Path
    ks : iterable of int
        The numbers of clusters for which there will be results.

    Raises
    ------
    ResultsError
        If it cannot.
    """
    with _errors_named(out):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
        for name in ("sweep.json", "contact_sheet.png"):
            _check_no_folder(out / name)
    for k in ks:
        _check_folder(out / str(k), k)


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Hold a folder for results, to which no other sweep may write then.

    Raises
    ------
    ResultsError
        If another does.
    """
    msg = (
        f"{out}: another sweep that is running has its results there; "
        "wait for it, or choose another folder"
    )
    busy = ResultsError(msg, options=("out",))
    with ExitStack() as stack:
        with _errors_named(out):
            stack.enter_context(locks.lock_folder(out, busy))
        yield


def _check_folder(folder: Path, k: int) -> None:
    """Raise ResultsError if pictures of k centroids could not be written to a folder."""
    if not folder.exists():
        return
    with _errors_named(folder.parent):
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{folder.name} in it is not a folder")
    with _errors_named(folder):
        with tempfile.TemporaryFile(dir=folder):
            pass
        for i in range(1, k + 1):
            _check_no_folder(folder / f"centroid{i}.png")


def _check_no_folder(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, f"{path.name} in it is a folder")


def remove(path: Path) -> None:
    """Remove a file if it is there.

    Parameters
    ----------
    path : Path

    Raises
    ------
    ResultsError
        If it cannot be removed.
    """
    with _errors_named(path):
        path.unlink(missing_ok=True)


def save_centroids(out: Path, pictures: NDArray[np.uint8]) -> None:
    """Write ``out/K/centroidI.png`` for each of K centroids, I from 1.

    Parameters
    ----------
    out : Path
    pictures : ndarray of shape (k, height, width) or (k, height, width, 3), uint8
        As `to_pixels` makes them.

    Raises
    ------
    ResultsError
        If a file cannot be written.
    """
    folder = out / str(len(pictures))
    with _errors_named(folder):
        folder.mkdir(exist_ok=True)
    for i, picture in enumerate(pictures, 1):
        save_image(folder / f"centroid{i}.png", Image.fromarray(picture))


def to_pixels(centroids: NDArray[np.float64], tile: tuple[int, ...]) -> NDArray[np.uint8]:
    """Round centroids to pixels.

    Parameters
    ----------
    centroids : ndarray of shape (k, d), float64
    tile : tuple of int

    Returns
    -------
    ndarray of shape (k, height, width) or (k, height, width, 3), uint8
    """
    return np.rint(centroids).clip(0, 255).astype(np.uint8).reshape(-1, *tile)


def save_image(path: Path, image: Image.Image) -> None:
    """Write an image whole or not at all.

    Parameters
    ----------
    path : Path
        Its suffix says the format.
    image : PIL.Image.Image

    Raises
    ------
    ResultsError
        If it cannot be written.
    """
    with _errors_named(path), atomic_writer(path) as file:
        image.save(file, path.suffix[1:])


def save_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all.

    Parameters
    ----------
    path : Path
    content : mapping

    Raises
    ------
    ResultsError
        If it cannot be written.
    """
    with _errors_named(path), atomic_writer(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


def _errors_named(path: Path) -> AbstractContextManager[None]:
    hint = "Choose another place for them"
    return translate_errors(ResultsError, path, "results cannot be written", hint)
