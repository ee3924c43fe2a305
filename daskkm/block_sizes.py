"""Sizes of chunks, blocks, buffers and samples, in one place.

Modules read ``sizes.NAME`` at each use, and tests change a size by `override`. Sizes that are
compiled into kernels, such as the tiles of a panel, are in `daskkm.kernels.simd_products`.
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
    """Sizes in bytes, unless the name has another unit.

    Results of integer tiles depend on the sizes of the sample only.
    """

    # Store: chunks of tiles, labels and distances, on a local disk and elsewhere; rows of a chunk
    # of the records of images.
    chunk_bytes: int = 4 * MiB
    remote_chunk_bytes: int = 16 * MiB
    table_rows: int = 1 << 16
    # Remote chunks that a task fetches ahead; threads of a process that fetch them.
    fetched_chunks: int = 4
    fetch_threads: int = 16
    # Most images of a task of an ingest.
    ingested_images: int = 512

    # Blocks of tiles, one task each: about 8 a thread, within these limits. Below 4 MiB the
    # scheduler's millisecond for a task exceeds the work.
    block_bytes_min: int = 4 * MiB
    block_bytes_max: int = 64 * MiB
    blocks_per_thread: int = 8
    blocks_max: int = 4096
    # Blocks of remote stores are longer: fetching ahead starts anew in each block.
    remote_block_bytes_max: int = 256 * MiB
    remote_blocks_per_thread: int = 2
    # Piece of a block of an array in memory, or of a mapped file, to read at once.
    piece_bytes: int = 4 * MiB
    # A task reads several blocks if these are more, and on average shorter.
    many_blocks: int = 1024
    short_block_bytes: int = 2 * MiB

    # Sample for initial centroids.
    sample_tiles: int = 1 << 15
    large_sample_bytes: int = 64 * MiB
    sample_blocks: int = 16

    # Passes: partial results to sum at once; largest stack that travels with each task; largest
    # tiles and working memory without a check of workers' memory.
    fan_in: int = 8
    shared_bytes: int = 1 * MiB
    unchecked_bytes: int = 64 * MiB
    # Most tiles with distances for metrics by definition.
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
