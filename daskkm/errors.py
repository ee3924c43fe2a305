"""Errors that daskkm raises, each with a message of the form "object: problem. Hint"."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def on_worker() -> str:
    """Return " on worker ADDRESS" for a message if this code runs on a worker, else ""."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return ""
    try:
        address = str(distributed.get_worker().address)
    except ValueError:
        return ""
    return "" if address.startswith("inproc://") else f" on worker {address}"


def count(n: int, noun: str) -> str:
    """Return a number of things in words, as in "1 image" and "2,000 images"."""
    return f"{n:,} {noun}{'s' * (n != 1)}"


class DaskkmError(Exception):
    """Any error that daskkm raises on purpose.

    Attributes
    ----------
    options : tuple of str
        Parameters that resolve the error, as Python spells them ("fresh=True"). The message ends
        with them; a command names its own flags instead.

    Examples
    --------
    >>> import daskkm
    >>> try:
    ...     daskkm.open_store("nowhere.zarr")
    ... except daskkm.DaskkmError as error:
    ...     print(type(error).__name__)
    StoreError
    """

    def __init__(self, message: str, *, options: tuple[str, ...] = ()) -> None:
        super().__init__(printable(message))
        self.options = options

    def __str__(self) -> str:
        return self.with_options(self.options)

    def with_options(self, spellings: Sequence[str]) -> str:
        """Return the message, ending with the options as a caller spells them."""
        message = super().__str__()
        return f"{message} ({', '.join(spellings)})" if spellings else message


def printable(text: str) -> str:
    """Return a text in one line, with characters that cannot be printed written as Python does."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def reason(error: BaseException) -> str:
    """Return the cause of an error as the system words it, else its message, else its type."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@contextmanager
def translate_errors(
    error_type: type[DaskkmError],
    subject: object,
    problem: str,
    hint: str,
    *,
    catch: type[Exception] | tuple[type[Exception], ...] = OSError,
    options: tuple[str, ...] = (),
) -> Iterator[None]:
    """Raise exceptions of the types `catch` as "subject: problem (reason). Hint".

    Errors of daskkm pass through as they are.
    """
    try:
        yield
    except DaskkmError:
        raise
    except catch as error:
        msg = f"{subject}: {problem}{on_worker()} ({reason(error)}). {hint}"
        raise error_type(msg, options=options) from error


class ImageError(DaskkmError):
    """An image that cannot be read, or does not fit with the others.

    Examples
    --------
    >>> import daskkm
    >>> daskkm.create_store("nowhere", "tiles.zarr")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    daskkm.errors.ImageError: nowhere: no such file or folder. Name the images, or a folder ...
    """


class StoreError(DaskkmError):
    """A store that is missing, incomplete, damaged or not of daskkm.

    Examples
    --------
    >>> import daskkm
    >>> daskkm.open_store("nowhere.zarr")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    daskkm.errors.StoreError: ...nowhere.zarr: the store does not exist. Ingest images first
    """


class CorruptChunkError(StoreError):
    """A chunk of a store that is missing, cut short or changed.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> import daskkm
    >>> folder = Path(tempfile.mkdtemp())
    >>> Image.linear_gradient("L").resize((64, 48)).save(folder / "image.png")
    >>> store = daskkm.create_store(folder, folder / "tiles.zarr")
    >>> (folder / "tiles.zarr" / "tiles" / "c" / "0" / "0" / "0").write_bytes(b"")
    0
    >>> store.check()  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    daskkm.errors.CorruptChunkError: ...tiles.zarr: tiles 0 to 11 cannot be read from chunk ...
    """


class SchedulerError(DaskkmError):
    """A scheduler that cannot be reached, or has no workers.

    Examples
    --------
    >>> from daskkm.passes.connection import check_name
    >>> check_name("nowhere.json")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    daskkm.errors.SchedulerError: 'nowhere.json': not a scheduler. Give local, threads, an ...
    """


class ResultsError(DaskkmError):
    """Results that cannot be written.

    Examples
    --------
    >>> from pathlib import Path
    >>> from daskkm.report.results import save_json
    >>> save_json(Path("nowhere/sweep.json"), {})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    daskkm.errors.ResultsError: nowhere/sweep.json: results cannot be written (...). Choose ...
    """


class ModelError(DaskkmError):
    """A saved model that is missing, damaged or not of daskkm, or that cannot be written.

    Examples
    --------
    >>> import daskkm
    >>> daskkm.load_model("nowhere.zarr")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    daskkm.errors.ModelError: nowhere.zarr: the saved model does not exist. Fit ...
    """


class CheckpointError(DaskkmError):
    """A checkpoint that is damaged, of another fit, in use, or that cannot be written.

    Examples
    --------
    >>> import tempfile, daskkm
    >>> folder = tempfile.mkdtemp()
    >>> with open(f"{folder}/notes.txt", "w"):
    ...     daskkm.fit_sweep([[0.0], [1.0]], [1], checkpoint=folder)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    daskkm.errors.CheckpointError: ...: not a checkpoint, it holds notes.txt. Choose ...
    """


class FitError(DaskkmError, ValueError):
    """Tiles that cannot be fitted, or parameters that do not fit them.

    Examples
    --------
    >>> import daskkm
    >>> daskkm.fit_sweep([[0.0], [1.0]], [3])
    Traceback (most recent call last):
        ...
    daskkm.errors.FitError: n_samples=2 should be >= n_clusters=3. Lower k
    """


class ParameterError(DaskkmError, ValueError, TypeError):
    """A parameter of the wrong type, or with a value that is not allowed.

    Both ValueError and TypeError, as scikit-learn's InvalidParameterError.

    Examples
    --------
    >>> import daskkm
    >>> daskkm.fit_sweep([[0.0], [1.0]], [1], coarse="no")
    Traceback (most recent call last):
        ...
    daskkm.errors.ParameterError: coarse is 'no'. Give True or False
    """


class DtypeError(DaskkmError, TypeError):
    """Tiles of a dtype that is not supported.

    Examples
    --------
    >>> import daskkm
    >>> daskkm.fit_sweep([[1j], [2j]], [1])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    daskkm.errors.DtypeError: tiles: values of dtype complex128 are not supported. Convert ...
    """


class SumOverflowError(DaskkmError, OverflowError):
    """Tiles so many, or of such large values, that their sums do not fit 64 bits.

    Examples
    --------
    >>> import numpy as np
    >>> from daskkm.kernels.dtypes import check_exact
    >>> check_exact(10**8, 256, np.dtype("uint16"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    daskkm.errors.SumOverflowError: tiles: 100000000 (weights added up) of 256 uint16 features ...
    """
