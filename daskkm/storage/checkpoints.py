"""Save the arrays of a checkpoint: one file in a locked folder, replaced atomically.

The file holds a SHA-256, then a NumPy .npz without pickles.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from daskkm.errors import CheckpointError, translate_errors
from daskkm.storage import locks
from daskkm.storage.locations import LocalLocation, as_location

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from numpy.typing import NDArray

    from daskkm.storage.locations import Location, LocationLike

_STATE = "state"
_DIGEST_BYTES = 32
# Parameters that resolve errors.
_CHECKPOINT_OPTION, _FRESH_OPTION = ("checkpoint",), ("fresh=True",)


class CheckpointFile:
    """File of arrays in a locked folder; `arrays` is None if there was no file at first."""

    def __init__(self, folder: Location) -> None:
        self.folder = folder
        with _translate_errors(folder, "read"):
            self.arrays = _read(folder)

    def save(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Replace the arrays in the file."""
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        data = buffer.getbuffer()
        with _translate_errors(self.folder, "written"):
            (self.folder / _STATE).write(hashlib.sha256(data).digest(), data)

    def clear(self) -> None:
        """Remove the file, with a warning if this fails."""
        try:
            (self.folder / _STATE).remove()
        except OSError as error:
            msg = f"{self.folder}: the checkpoint cannot be removed ({error}). Remove the folder"
            warnings.warn(msg, stacklevel=3)


@contextmanager
def open_checkpoint_file(
    folder: LocationLike,
    *,
    fresh: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Iterator[CheckpointFile]:
    """Create and lock the folder of a checkpoint; remove the folder at exit if it is empty.

    Raise CheckpointError if the folder is locked or holds other files, or the checkpoint is
    damaged, or cannot be read or written.
    """
    location = as_location(folder, storage_options)
    msg = f"{location}: locked by another fit. Wait for the fit, or choose another folder"
    error = CheckpointError(msg, options=_CHECKPOINT_OPTION)
    with ExitStack() as stack:
        with _translate_errors(location, "written"):
            if isinstance(location, LocalLocation):
                parents = [path for path in location.path.parents if not path.exists()]
                stack.enter_context(locks.lock_folder(location.path, error))
                stack.callback(_remove_empty, [location.path, *parents])  # if it is ours
                location.remove_partial_files()
            else:
                stack.enter_context(locks.lock(location, error))
            _check_content(location)
            if fresh:
                (location / _STATE).remove()
        yield CheckpointFile(location)


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders up to the first that is not empty."""
    with suppress(OSError):
        for path in folders:
            path.rmdir()


def _check_content(folder: Location) -> None:
    """Raise CheckpointError if the folder holds other files, except hidden ones."""
    names = folder.names() - {_STATE}
    if others := {name for name in names if not name.startswith(".")}:
        msg = f"{folder}: not a checkpoint, it holds {min(others)}. Choose another folder"
        raise CheckpointError(msg, options=_CHECKPOINT_OPTION)


def _read(folder: Location) -> dict[str, NDArray[Any]] | None:
    """Return the arrays in a folder, or None if there are none."""
    try:
        data = memoryview((folder / _STATE).read())
    except FileNotFoundError:
        return None
    archive = data[_DIGEST_BYTES:]
    if hashlib.sha256(archive).digest() != data[:_DIGEST_BYTES]:
        msg = f"{folder}: the checkpoint is damaged (wrong checksum). Start over"
        raise CheckpointError(msg, options=_FRESH_OPTION)
    with np.load(io.BytesIO(archive)) as arrays:
        return dict(arrays)


def _translate_errors(folder: Location, verb: str) -> AbstractContextManager[None]:
    problem = f"the checkpoint cannot be {verb}"
    hint = "Make room, or choose another folder"
    return translate_errors(CheckpointError, folder, problem, hint, options=_CHECKPOINT_OPTION)
