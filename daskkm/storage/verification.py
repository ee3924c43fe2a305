"""Verify: each chunk of a store is read and checked. ``python -m daskkm.verify --help``."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from dask.system import CPU_COUNT

from daskkm.errors import StoreError
from daskkm.storage import chunks, locations, nodes
from daskkm.storage.tile_store import (
    DISTANCES,
    LABELS,
    PROVENANCE,
    STORE,
    TileStore,
    Version,
    known_ks,
    provenance,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import zarr
    from numpy.typing import NDArray

    from daskkm.storage.nodes import Kind

# A task's: long enough for the next chunk to be announced, and for few tasks of many chunks.
_RUN = 16
# Tasks that wait at a time, and errors after which no more are looked for, however many chunks a
# store says it has.
_WAITING, _MOST = 256, 1000
# Threads at most, and what their chunks may take together.
_THREADS, _BUFFERS_BYTES = 8, 1 << 30


def verify_store(path: str | os.PathLike[str]) -> list[StoreError]:
    """Check all of a store: metadata, and presence, size and checksum of every chunk.

    Of the tiles, their provenance (that it is what the images say, too), labels (that they are
    those of clusters) and distances. Everything is read once, by threads of this process.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    list of StoreError
        All that is wrong, a `CorruptChunkError` for each bad chunk; empty if the store is whole.
        Labels and distances that were replaced meanwhile are not looked at, as is said.
        After 1,000 it may be left at that, as the last then says.

    Raises
    ------
    StoreError
        If nothing of it can be known: there is no store, or its own metadata is damaged; or if it
        was replaced meanwhile.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> import daskkm
    >>> folder = Path(tempfile.mkdtemp())
    >>> Image.linear_gradient("L").resize((64, 48)).save(folder / "image.png")
    >>> store = daskkm.create_store(folder, folder / "tiles.zarr")
    >>> verify_store(store.path)
    []
    >>> (store.path / "row" / "c" / "0").unlink()
    >>> len(verify_store(store.path))
    1
    """
    return [
        error for found in iter_checked(locations.local(path, StoreError)) for error in found.errors
    ]


class _Found(NamedTuple):
    """Of some chunks: what is wrong, how many there are, and the bytes of those that are whole."""

    errors: list[StoreError]
    chunks: int = 0
    bytes: int = 0
    total: int = 0  # chunks of the store, known from its metadata


def iter_checked(path: Path) -> Iterator[_Found]:
    """Check the metadata of a store, then its chunks, run after run."""
    contents, errors = _contents(path.absolute())
    yield _Found(errors, total=sum(c.array.cdata_shape[0] for c in contents))
    runs = (
        (content, first)
        for content in contents
        for first in range(0, content.array.shape[0], _RUN * content.array.chunks[0])
    )
    # Each thread has memory for a chunk.
    most = max((math.prod(c.array.chunks) * c.array.dtype.itemsize for c in contents), default=1)
    threads = max(1, min(_THREADS, CPU_COUNT, _BUFFERS_BYTES // max(1, most)))
    n_errors = 0
    said = set(map(str, errors))

    def new(found: _Found) -> _Found:
        """Leave out what was said: that labels were replaced, of each run of their chunks."""
        nonlocal n_errors
        errors = [error for error in found.errors if str(error) not in said]
        said.update(map(str, errors))
        n_errors += len(errors)
        return found._replace(errors=errors)

    with ThreadPoolExecutor(threads) as pool:
        while some := list(islice(runs, _WAITING)):
            if n_errors > _MOST:
                msg = f"{path}: with {n_errors} errors it was left at that; {STORE.mend}"
                yield _Found([StoreError(msg)])
                return
            yield from map(new, pool.map(lambda run: _check_run(*run), some))
    for version in dict.fromkeys(content.version for content in contents):
        yield new(_Found(_replaced(version)))


class _Content(NamedTuple):
    """An array of a store, to be read whole.

    Attributes
    ----------
    array : zarr.Array of shape (n, ...)
    kind : Kind
    version : Version
        Of the node that it is, or is in.
    problem : callable of (rows, first)
        Says what is wrong with its rows from the first on, if anything.
    """

    array: zarr.Array[Any]
    kind: Kind
    version: Version
    problem: Callable[[NDArray[Any], int], str | None]


def _contents(path: Path) -> tuple[list[_Content], list[StoreError]]:
    """Open all that a store has, though some of it may be damaged, and read no chunk.

    Parameters
    ----------
    path : Path

    Returns
    -------
    list of _Content
        The tiles, their provenance, labels and distances.
    list of StoreError
        What is wrong with the metadata, each once.

    Raises
    ------
    StoreError
        If nothing can be known: there is no store, or its own metadata is damaged; or if it was
        replaced meanwhile.
    """
    found: list[_Content] = []
    errors: dict[str, StoreError] = {}

    def attempt(function: Callable[..., Any], *args: Any) -> Any:
        try:
            return function(*args)
        except StoreError as error:
            errors.setdefault(str(error), error)
            return None

    version = Version.of(path)
    group, said = nodes.open_node(path, STORE)
    store = attempt(TileStore, path, group, said, version)
    for name in ("tiles", *PROVENANCE):
        array = attempt(nodes.member, group, name, STORE)
        if array is not None:
            unlike = store is not None and name in PROVENANCE
            problem = partial(_unlike_images, store, name) if unlike else _no_problem
            found.append(_Content(array, STORE, version, problem))
    for kind in (LABELS, DISTANCES):
        attempt(nodes.check_group, path, kind.name, STORE)
        for k in known_ks(path / kind.name):
            place = path / kind.name / str(k)
            own = Version.of(place, version)
            before = dict(errors)
            opened = attempt(nodes.open_node, place, kind, path)
            if store is not None:
                attempt(getattr(store, kind.name), k)
            if changed := _replaced(own):  # what is wrong may only be that
                errors = before | {str(error): error for error in changed}
            elif opened is not None:
                found.append(_Content(opened[0], kind, own, partial(_out_of_range, kind, k)))
    version.check()
    return found, list(errors.values())


def _replaced(version: Version) -> list[StoreError]:
    """Return that labels, or distances, were replaced, if so.

    Raises
    ------
    StoreError
        If the store was.
    """
    if version.store is None:
        version.check()
        return []
    version.store.check()
    if version.path.exists() and version.is_there():
        return []
    return [version.replaced()]


def _no_problem(_rows: NDArray[Any], _first: int) -> None:
    return None


def _unlike_images(store: TileStore, name: str, rows: NDArray[Any], first: int) -> str | None:
    expected = provenance(store.images, store.tile, first, first + len(rows))[name]
    return None if np.array_equal(rows, expected) else "not what the images say"


def _out_of_range(kind: Kind, k: int, rows: NDArray[Any], _first: int) -> str | None:
    most = k - 1 if kind is LABELS else np.finfo(np.float64).max
    return None if ((rows >= 0) & (rows <= most)).all() else f"not all within 0 and {most}"


def _check_run(content: _Content, first: int) -> _Found:
    """Check some chunks of an array: those from a row on."""
    array, kind, version, problem = content
    rows, n = array.chunks[0], array.shape[0]
    errors: list[StoreError] = []
    whole = 0
    starts = range(first, min(first + _RUN * rows, n), rows)
    for start in starts:
        end = min(start + rows, n)
        try:
            for values in nodes.stream(array, start, end, kind):
                whole += values.nbytes
                if what := problem(values, start):
                    msg = (
                        f"{chunks.folder(array)}: {array.path or kind.name} of {kind.rows} {start} "
                        f"to {end - 1} cannot be right ({what}); {kind.mend}"
                    )
                    errors.append(StoreError(msg))
        except StoreError as error:
            # To be read, not raised: what led to each would take more memory than a chunk.
            error.__cause__ = error.__context__ = None
            errors.append(error.with_traceback(None))
    if errors:  # what is wrong may only be that
        errors = _replaced(version) or errors
    return _Found(errors, len(starts), whole)
