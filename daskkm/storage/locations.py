"""Paths of local files, told from URLs, which are not supported yet."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# s3://bucket, simplecache::s3://bucket, and the text of a Path of one: s3:/bucket.
# A scheme has at least two letters. A local folder of such a name is ./s3:/bucket.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.:-]+):/")


def url_problem(path: str | os.PathLike[str]) -> str | None:
    """Return a message if a path is a URL or was made of one, else None.

    Examples
    --------
    >>> url_problem("s3://bucket/tiles.zarr")
    's3://bucket/tiles.zarr: this is a URL, not a local path. Give the path of a local file'
    >>> url_problem(Path("file:///data/tiles.zarr"))
    'file:/data/tiles.zarr: this is a URL, not a local path. Give it as /data/tiles.zarr'
    >>> url_problem("tiles.zarr")
    """
    text = os.fspath(path)
    match = _URL.match(str(text))
    if match is None:
        return None
    hint = "Give the path of a local file"
    if match[1].lower() == "file" and (local := re.sub("^[^:]*:/*", "/", text)) != "/":
        hint = f"Give it as {local}"
    return f"{text}: this is a URL, not a local path. {hint}"


def as_local_path(path: str | os.PathLike[str], error: Callable[[str], Exception]) -> Path:
    """Return a path as a local Path; raise `error` with a message if it is a URL."""
    if problem := url_problem(path):
        raise error(problem)
    return Path(path)
