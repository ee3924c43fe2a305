"""Folder of a checkpoint: arrays in one file, replaced whole, under a lock.

The file is a SHA-256, then the bytes of NumPy's .npz without pickles.
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
_ANOTHER, _START_OVER = ("checkpoint",), ("fresh=True",)


class CheckpointFile:
    """Arrays in a locked folder.

    Attributes
    ----------
    folder : Path
    arrays : dict of str to ndarray, or None
        Arrays that were found.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with _translate_errors(folder, "read"):
            self.arrays = _read(folder)

    def save(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write arrays in place of those before."""
        packed = io.BytesIO()
        np.savez(packed, allow_pickle=False, **arrays)
        data = packed.getbuffer()
        with (
            _translate_errors(self.folder, "written"),
            atomic_writer(self.folder / _STATE) as file,
        ):
            file.write(hashlib.sha256(data).digest())
            file.write(data)

    def clear(self) -> None:
        """Remove the arrays; warn if that fails, since the result of the fit is worth more."""
        try:
            _clear(self.folder)
        except OSError as error:
            msg = f"{self.folder}: the checkpoint cannot be removed ({error}). Remove it"
            warnings.warn(msg, stacklevel=3)


@contextmanager
def open_checkpoint_file(
    folder: str | os.PathLike[str], *, fresh: bool = False
) -> Iterator[CheckpointFile]:
    """Open and lock the folder of a checkpoint, made if it is missing, removed if left empty.

    Raises
    ------
    CheckpointError
        If it is damaged, locked by another fit, holds other files, or cannot be read or written.
    """
    folder = locations.as_local_path(folder, partial(CheckpointError, options=_ANOTHER))
    msg = f"{folder}: locked by another fit. Wait for it, or choose another folder"
    with ExitStack() as stack:
        with _translate_errors(folder, "written"):
            missing = [path for path in folder.absolute().parents if not path.exists()]
            busy = CheckpointError(msg, options=_ANOTHER)
            stack.enter_context(locks.lock_folder(folder, busy))
            _check_content(folder)
            if fresh:
                _clear(folder)
        try:
            yield CheckpointFile(folder)
        finally:
            with suppress(OSError):  # a folder that is not empty stays
                for path in (folder, *missing):
                    path.rmdir()


def _check_content(folder: Path) -> None:
    """Raise CheckpointError if the folder holds other files, except hidden ones."""
    names = {entry.name for entry in folder.iterdir()} - {_STATE}
    if others := {name for name in names if not name.startswith(".")}:
        msg = f"{folder}: not a checkpoint, it holds {min(others)}. Choose another folder"
        raise CheckpointError(msg, options=_ANOTHER)


def _clear(folder: Path) -> None:
    for path in (folder / _STATE, partial_path(folder / _STATE)):
        path.unlink(missing_ok=True)


def _read(folder: Path) -> dict[str, NDArray[Any]] | None:
    """Return the arrays in a folder, or None if there are none."""
    try:
        data = memoryview((folder / _STATE).read_bytes())
    except FileNotFoundError:
        return None
    packed = data[_DIGEST_BYTES:]
    if hashlib.sha256(packed).digest() != data[:_DIGEST_BYTES]:
        msg = f"{folder}: the checkpoint is damaged (wrong checksum). Start over"
        raise CheckpointError(msg, options=_START_OVER)
    with np.load(io.BytesIO(packed)) as arrays:
        return dict(arrays)


def _translate_errors(folder: Path, verb: str) -> AbstractContextManager[None]:
    problem = f"the checkpoint cannot be {verb}"
    hint = "Make room, or choose another folder"
    return translate_errors(CheckpointError, folder, problem, hint, options=_ANOTHER)
