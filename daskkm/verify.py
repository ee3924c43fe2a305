"""Verify: each chunk of a store is read and checked. ``python -m daskkm.verify --help``."""

from __future__ import annotations

if __name__ == "__main__":
    from daskkm import interrupts

    interrupts.end_at_once()

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from daskkm import cli
from daskkm.errors import StoreError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from daskkm.store import Content

# A task's: long enough for the next chunk to be announced, and for few tasks of many chunks.
_RUN = 16


def verify(path: str | os.PathLike[str]) -> list[StoreError]:
    """Check all of a store: metadata, and presence, size and checksum of every chunk.

    Of the tiles, their provenance (that it is what the sheets say, too), labels (that they are
    those of clusters) and distances. Everything is read once, by threads of this process.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    list of StoreError
        All that is wrong, a `CorruptChunkError` for each bad chunk; empty if the store is whole.

    Raises
    ------
    StoreError
        If nothing of it can be known: there is no store, or its own metadata is damaged.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> import daskkm
    >>> folder = Path(tempfile.mkdtemp())
    >>> Image.linear_gradient("L").resize((64, 48)).save(folder / "sheet.png")
    >>> store = daskkm.ingest(folder, folder / "tiles.zarr")
    >>> verify(store.path)
    []
    >>> (store.path / "row" / "c" / "0").unlink()
    >>> len(verify(store.path))
    1
    """
    return [error for found in _checked(Path(path)) for error in found.errors]


class _Found(NamedTuple):
    """Of some chunks: what is wrong, how many there are, and the bytes of those that are whole."""

    errors: list[StoreError]
    chunks: int = 0
    bytes: int = 0


def _checked(path: Path) -> Iterator[_Found]:
    """Check the metadata of a store, then its chunks, run after run."""
    from daskkm import store

    contents, errors = store.contents(path.absolute())
    yield _Found(errors)
    runs = [
        (content, first)
        for content in contents
        for first in range(0, content.array.shape[0], _RUN * content.array.chunks[0])
    ]
    with ThreadPoolExecutor() as pool:
        yield from pool.map(lambda run: _check_run(*run), runs)


def _check_run(content: Content, first: int) -> _Found:
    """Check some chunks of an array: those from a row on."""
    from daskkm import chunks, groups

    array, kind, problem = content
    rows, n = array.chunks[0], array.shape[0]
    errors: list[StoreError] = []
    whole = 0
    starts = range(first, min(first + _RUN * rows, n), rows)
    for start in starts:
        end = min(start + rows, n)
        try:
            for values in groups.stream(array, start, end, kind):
                whole += values.nbytes
                if what := problem(values, start):
                    msg = (
                        f"{chunks.folder(array)}: {array.path or kind.name} of {kind.rows} {start} "
                        f"to {end - 1} cannot be right ({what}); {kind.mend}"
                    )
                    errors.append(StoreError(msg))
        except StoreError as error:
            errors.append(error)
    return _Found(errors, len(starts), whole)


@click.command("verify")
@click.argument("store", type=click.Path(path_type=Path), default=Path("store/tiles.zarr"))
def command(store: Path) -> None:
    """Check all of a STORE: its metadata, and every chunk of tiles, provenance and labels.

    Prints what is wrong, a line each.
    """
    started = time.perf_counter()
    n_errors, n_chunks, n_bytes = 0, 0, 0
    for found in _checked(store):
        for error in found.errors:
            click.echo(error)
        n_errors += len(found.errors)
        n_chunks += found.chunks
        n_bytes += found.bytes
    read = (
        f"{cli.count(n_chunks, 'chunk')}, {n_bytes / 1e6:.1f} MB read, "
        f"{time.perf_counter() - started:.1f} s"
    )
    if n_errors:
        msg = f"{store}: {cli.count(n_errors, 'error')} in {read}; do what is said above"
        raise StoreError(msg)
    click.echo(f"{store}: {read}; all of it is as it was written")


if __name__ == "__main__":
    cli.run(command)
