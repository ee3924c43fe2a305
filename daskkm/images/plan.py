"""Plan an ingest: which images each task decodes, and which chunks it writes. Arithmetic only.

A task decodes consecutive images and writes the chunks that lie within them. A chunk across a seam
of two tasks is written by a task of its own from the fragments of both. Thus every image is decoded
once, and every chunk has one writer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


@dataclass(frozen=True)
class Group:
    """Images first … last - 1, decoded by one task, and the chunks with their tiles.

    `whole` chunks have tiles of this group only; `seams` have tiles of other groups too.
    """

    first: int
    last: int
    whole: tuple[int, ...]
    seams: tuple[int, ...]


def choose_groups(
    counts: Sequence[int],
    start: int,
    rows: int,
    written: Collection[int],
    recorded: Sequence[bool],
    *,
    max_tiles: int,
    max_images: int,
) -> list[Group]:
    """Return the groups of images to decode.

    Parameters
    ----------
    counts : sequence of int
        Number of tiles of each image.
    start : int
        Index in the store of the first tile of the first image.
    rows : int
        Number of tiles of a chunk.
    written : collection of int
        Chunks that are complete.
    recorded : sequence of bool
        True for each image that an earlier ingest decoded and recorded.
    max_tiles, max_images : int
        Sizes of a group; a group has at least one image.

    Examples
    --------
    >>> for group in choose_groups([5, 5, 5], 0, 4, set(), [False] * 3, max_tiles=10, max_images=9):
    ...     print(group)
    Group(first=0, last=2, whole=(0, 1), seams=(2,))
    Group(first=2, last=3, whole=(3,), seams=(2,))
    >>> choose_groups([5, 5, 5], 0, 4, {0, 1, 2}, [True] * 3, max_tiles=10, max_images=9)
    [Group(first=2, last=3, whole=(3,), seams=())]
    """
    sizes = np.asarray(counts, np.int64)
    ends = start + np.cumsum(sizes)
    firsts = ends - sizes
    done = np.zeros(int(ends[-1] if len(ends) else start) // rows + 2, bool)
    done[[i for i in written if i < len(done)]] = True
    # An image is done if no chunk of firsts // rows … (ends - 1) // rows is open.
    n_open = np.concatenate([[0], np.cumsum(~done)])
    needed = (n_open[(ends - 1) // rows + 1] > n_open[firsts // rows]) | ~np.asarray(recorded, bool)
    runs: list[list[int]] = []
    n_tiles = 0
    for i in np.flatnonzero(needed).tolist():
        follows = bool(runs) and runs[-1][-1] == i - 1
        if not follows or n_tiles + counts[i] > max_tiles or len(runs[-1]) == max_images:
            runs.append([])
            n_tiles = 0
        runs[-1].append(i)
        n_tiles += counts[i]
    groups = []
    for run in runs:
        first, last = run[0], run[-1] + 1
        begin, end = int(firsts[first]), int(ends[last - 1])
        chunks = [i for i in range(begin // rows, (end - 1) // rows + 1) if not done[i]]
        at_end = end == int(ends[-1])
        whole = [i for i in chunks if i * rows >= begin and ((i + 1) * rows <= end or at_end)]
        seams = [i for i in chunks if i not in set(whole)]
        groups.append(Group(first, last, tuple(whole), tuple(seams)))
    return groups
