"""Check that paths are local: URLs are not supported."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# s3://bucket, simplecache::s3://bucket, and s3:/bucket, the text of a Path of a URL.
# A scheme has at least two letters. ./s3:/bucket is a local folder.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.:-]+):/")


def url_problem(path: str | os.PathLike[str]) -> str | None:
    """Return an error message if a path is a URL, or a Path of a URL, else None.

    Examples
    --------
    >>> url_problem("s3://bucket/tiles.zarr")
    's3://bucket/tiles.zarr: this is a URL, not a local path. Give the path of a local file'
    >>> url_problem(Path("file:///data/tiles.zarr"))
    'file:/data/tiles.zarr: this is a URL, not a local path. Give the path /data/tiles.zarr'
    >>> url_problem("tiles.zarr")
    """
    text = os.fspath(path)
    match = _URL.match(str(text))
    if match is None:
        return None
    hint = "Give the path of a local file"
    if match[1].lower() == "file" and (local := re.sub("^[^:]*:/*", "/", text)) != "/":
        hint = f"Give the path {local}"
    return f"{text}: this is a URL, not a local path. {hint}"


def as_local_path(path: str | os.PathLike[str], error: Callable[[str], Exception]) -> Path:
    """Return a local path as a Path; raise `error` with a message for a URL."""
    if problem := url_problem(path):
        raise error(problem)
    return Path(path)
