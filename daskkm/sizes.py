"""Sizes of chunks, blocks, buffers and samples, in one place.

Modules read ``sizes.NAME`` when they need it; tests change a size with `override`. Sizes that are
compiled into kernels, such as the tiles of a panel, stand in `daskkm.kernels.products`.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

MiB = 1 << 20


@dataclass
class Sizes:
    """Sizes in bytes, unless the name says otherwise.

    Results of integer tiles depend on those of the sample only, which are said so.
    """

    # Store. Chunks of tiles, labels and distances; rows of a chunk of provenance.
    chunk_bytes: int = 4 * MiB
    provenance_rows: int = 1 << 20

    # Blocks of tiles, one task each: about 8 a thread, within these limits. Below 4 MiB the
    # millisecond that a task costs the scheduler exceeds the work.
    block_bytes_min: int = 4 * MiB
    block_bytes_max: int = 64 * MiB
    blocks_per_thread: int = 8
    blocks_max: int = 4096
    # Part of a block of an array in memory, or of a mapped file, that is read at once.
    piece_bytes: int = 4 * MiB
    # More blocks than this that are shorter than this on average are read several a task.
    many_blocks: int = 1024
    short_block_bytes: int = 2 * MiB

    # Initial centroids. Tiles that are brought together; results depend on the next three.
    sample_tiles: int = 1 << 15
    large_sample_bytes: int = 64 * MiB
    sample_blocks: int = 16

    # Passes. Partial results summed at once; a stack up to this size travels with each task; tiles
    # and working memory up to this size are not compared with the memory of workers.
    fan_in: int = 8
    shared_bytes: int = 1 * MiB
    unchecked_bytes: int = 64 * MiB
    # Tiles up to which distances for metrics are measured by the definition.
    exact_metric_tiles: int = 8192


sizes = Sizes()


@contextmanager
def override(**changes: Any) -> Iterator[None]:
    """Change sizes within a context, in this process."""
    before = replace(sizes)
    vars(sizes).update(vars(replace(sizes, **changes)))
    try:
        yield
    finally:
        vars(sizes).update(vars(before))
