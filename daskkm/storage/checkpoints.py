"""Save the arrays of a checkpoint: one file in a locked folder, replaced atomically.

The file holds a SHA-256, then a NumPy .npz without pickles.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from daskkm.errors import CheckpointError, translate_errors
from daskkm.files import atomic_writer, partial_path
from daskkm.storage import locations, locks

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from numpy.typing import NDArray

_STATE = "state"
_DIGEST_BYTES = 32
# Parameters that resolve errors.
_CHECKPOINT_OPTION, _FRESH_OPTION = ("checkpoint",), ("fresh=True",)


class CheckpointFile:
    """File of arrays in a locked folder; `arrays` is None if there was no file at first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with _translate_errors(folder, "read"):
            self.arrays = _read(folder)

    def save(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Replace the arrays in the file."""
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        data = buffer.getbuffer()
        with (
            _translate_errors(self.folder, "written"),
            atomic_writer(self.folder / _STATE) as file,
        ):
            file.write(hashlib.sha256(data).digest())
            file.write(data)

    def clear(self) -> None:
        """Remove the file, with a warning if this fails."""
        try:
            _clear(self.folder)
        except OSError as error:
            msg = f"{self.folder}: the checkpoint cannot be removed ({error}). Remove the folder"
            warnings.warn(msg, stacklevel=3)


@contextmanager
def open_checkpoint_file(
    folder: str | os.PathLike[str], *, fresh: bool = False
) -> Iterator[CheckpointFile]:
    """Create and lock the folder of a checkpoint; remove the folder at exit if it is empty.

    Raise CheckpointError if the folder is locked or holds other files, or the checkpoint is
    damaged, or cannot be read or written.
    """
    folder = locations.as_local_path(folder, partial(CheckpointError, options=_CHECKPOINT_OPTION))
    msg = f"{folder}: locked by another fit. Wait for the fit, or choose another folder"
    with ExitStack() as stack:
        with _translate_errors(folder, "written"):
            new_parents = [path for path in folder.absolute().parents if not path.exists()]
            error = CheckpointError(msg, options=_CHECKPOINT_OPTION)
            stack.enter_context(locks.lock_folder(folder, error))
            _check_content(folder)
            if fresh:
                _clear(folder)
        try:
            yield CheckpointFile(folder)
        finally:
            with suppress(OSError):  # keep folders that are not empty
                for path in (folder, *new_parents):
                    path.rmdir()


def _check_content(folder: Path) -> None:
    """Raise CheckpointError if the folder holds other files, except hidden ones."""
    names = {entry.name for entry in folder.iterdir()} - {_STATE}
    if others := {name for name in names if not name.startswith(".")}:
        msg = f"{folder}: not a checkpoint, it holds {min(others)}. Choose another folder"
        raise CheckpointError(msg, options=_CHECKPOINT_OPTION)


def _clear(folder: Path) -> None:
    for path in (folder / _STATE, partial_path(folder / _STATE)):
        path.unlink(missing_ok=True)


def _read(folder: Path) -> dict[str, NDArray[Any]] | None:
    """Return the arrays in a folder, or None if there are none."""
    try:
        data = memoryview((folder / _STATE).read_bytes())
    except FileNotFoundError:
        return None
    archive = data[_DIGEST_BYTES:]
    if hashlib.sha256(archive).digest() != data[:_DIGEST_BYTES]:
        msg = f"{folder}: the checkpoint is damaged (wrong checksum). Start over"
        raise CheckpointError(msg, options=_FRESH_OPTION)
    with np.load(io.BytesIO(archive)) as arrays:
        return dict(arrays)


def _translate_errors(folder: Path, verb: str) -> AbstractContextManager[None]:
    problem = f"the checkpoint cannot be {verb}"
    hint = "Make room, or choose another folder"
    return translate_errors(CheckpointError, folder, problem, hint, options=_CHECKPOINT_OPTION)
