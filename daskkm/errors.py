"""Errors that daskkm raises, each with a message of the form "object: problem. Hint"."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def on_worker() -> str:
    """Return " on worker ADDRESS" for a message on a worker process, else ""."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return ""
    try:
        address = str(distributed.get_worker().address)
    except ValueError:
        return ""
    return "" if address.startswith("inproc://") else f" on worker {address}"


def count(n: int, noun: str) -> str:
    """Return a number with its noun, such as "1 image" or "2,000 images"."""
    return f"{n:,} {noun}{'s' * (n != 1)}"


class DaskkmError(Exception):
    """Any error that daskkm raises on purpose.

    Attributes
    ----------
    options : tuple of str
        Parameters that resolve the error, such as "fresh=True". The message ends with the
        parameters; commands name flags instead.

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
        """Return the message, followed by the options in the caller's spelling."""
        message = super().__str__()
        return f"{message} ({', '.join(spellings)})" if spellings else message


def printable(text: str) -> str:
    """Return a text in one line, with escapes for characters that cannot be printed."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def reason(error: BaseException) -> str:
    """Return the system's text of an error, else the message, else the type."""
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

    Errors of daskkm pass unchanged.
    """
    try:
        yield
    except DaskkmError:
        raise
    except catch as error:
        msg = f"{subject}: {problem}{on_worker()} ({reason(error)}). {hint}"
        raise error_type(msg, options=options) from error


class ImageError(DaskkmError):
    """An image that cannot be read, or does not fit with the others."""


class StoreError(DaskkmError):
    """A store that is missing, incomplete, damaged or not of daskkm."""


class CorruptChunkError(StoreError):
    """A chunk of a store that is missing, cut short or changed."""


class SchedulerError(DaskkmError):
    """A scheduler that cannot be reached, or has no workers."""


class ResultsError(DaskkmError):
    """Results that cannot be written."""


class ModelError(DaskkmError):
    """A saved model that is missing, damaged or not of daskkm, or that cannot be written."""


class CheckpointError(DaskkmError):
    """A checkpoint that is damaged, of another fit, in use, or that cannot be written."""


class FitError(DaskkmError, ValueError):
    """Tiles that cannot be fitted, or parameters that do not fit them."""


class ParameterError(DaskkmError, ValueError, TypeError):
    """A parameter of the wrong type, or with a value that is not allowed.

    Both ValueError and TypeError, as scikit-learn's InvalidParameterError.
    """


class DtypeError(DaskkmError, TypeError):
    """Tiles of a dtype that is not supported."""


class SumOverflowError(DaskkmError, OverflowError):
    """Tiles so many, or of such large values, that their sums do not fit 64 bits."""
