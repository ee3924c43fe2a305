"""Paths of local files, told from URLs, which are not read or written yet."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# As in s3://bucket, simplecache::s3://bucket, and what becomes of it in a Path, or the text of one:
# s3:/bucket. A scheme has two letters at least. A local folder of such a name is ./s3:/bucket.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.:-]+):/")


def url_problem(path: str | os.PathLike[str]) -> str | None:
    """Return a message if a path is a URL, or was made of one; else None.

    Examples
    --------
    >>> url_problem("s3://bucket/tiles.zarr")
    's3://bucket/tiles.zarr: this is a URL, not a local path. Give the path of a local file'
    >>> url_problem(Path("file:///data/tiles.zarr"))
    'file:/data/tiles.zarr: this is a URL, not a local path. Give it as /data/tiles.zarr'
    >>> url_problem("tiles.zarr")
    """
    text = os.fspath(path)
    if not isinstance(text, str):  # bytes are no URL
        return None
    found = _URL.match(text)
    if found is None:
        return None
    advice = "Give the path of a local file"
    if found[1].lower() == "file" and (local := re.sub("^[^:]*:/*", "/", text)) != "/":
        advice = f"Give it as {local}"
    return f"{text}: this is a URL, not a local path. {advice}"


def local(path: str | os.PathLike[str], error: Callable[[str], Exception]) -> Path:
    """Return a path as a Path.

    Parameters
    ----------
    path : path-like
    error : callable
        Returns what is raised, given a message.

    Raises
    ------
    Exception
        As `error` returns it, if the path is a URL.
    """
    if problem := url_problem(path):
        raise error(problem)
    return Path(path)
