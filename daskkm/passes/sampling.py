"""Samples of tiles, and weighted draws by races.

In a race, tile i arrives at time E_i / mass_i, where E_i has the exponential distribution. The
first m tiles to arrive are a sample without replacement with probability proportional to mass. See
Efraimidis and Spirakis, Weighted random sampling with a reservoir, Information Processing Letters
97 (2006). E_i is a function of the seed and the global index i alone. So a race has the same
winners in any blocks, and needs no total of the mass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from daskkm.block_sizes import sizes
from daskkm.passes.seeds import Purpose, generator

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Least number of tiles for a large sample, in large samples.
_TIMES_LARGE_SAMPLE = 4


class DrawnTiles(NamedTuple):
    """Tiles drawn by a race."""

    arrivals: NDArray[np.float64]  # (m,)
    indices: NDArray[np.int64]  # (m,), global
    tiles: NDArray[Any]  # (m, d)

    @classmethod
    def race(
        cls,
        tiles: NDArray[Any],
        first: int,
        exponentials: NDArray[np.float64],
        mass: NDArray[np.float64],
        m: int,
    ) -> Self:
        """Draw m tiles of a block, or all with mass; `first` is the global index of tile 0."""
        arrivals = np.full(len(tiles), np.inf)
        np.divide(exponentials, mass, out=arrivals, where=mass > 0)
        rows = np.argpartition(arrivals, m)[:m] if m < len(tiles) else np.arange(len(tiles))
        rows = rows[np.isfinite(arrivals[rows])]
        return cls(arrivals[rows], first + rows, tiles[rows]).top(m)

    def top(self, m: int) -> Self:
        """Return the first m tiles to arrive, in order, lowest index on ties."""
        order = np.lexsort((self.indices, self.arrivals))[:m]
        return type(self)._make(field[order] for field in self)


def is_in_memory(n_tiles: int) -> bool:
    """Return True if initial centroids are drawn from all tiles in memory here."""
    return n_tiles <= sizes.sample_tiles


def sample_size(n_tiles: int, tile_bytes: int) -> int:
    """Return the number of tiles in the sample for the first fits.

    The sample has `sizes.large_sample_bytes`, or only `sizes.sample_tiles` tiles if a large sample
    would be a large part of all tiles.
    """
    large = sizes.large_sample_bytes // tile_bytes
    enough = large > sizes.sample_tiles and n_tiles >= _TIMES_LARGE_SAMPLE * large
    return large if enough else sizes.sample_tiles


def sample_indices(n_tiles: int, seed: int, size: int | None = None) -> NDArray[np.int64]:
    """Return the ascending global indices of a uniform sample without replacement, all if few."""
    size = size or sizes.sample_tiles
    if n_tiles <= size:
        return np.arange(n_tiles)
    rng = generator(seed, Purpose.SAMPLE)
    return np.sort(rng.choice(n_tiles, size, replace=False, shuffle=False))


def first_indices(n_tiles: int, n_seedings: int, seed: int) -> NDArray[np.int64]:
    """Return the global index of the first centroid of each seeding, drawn uniformly."""
    rngs = (generator(seed, Purpose.FIRST_CENTROID, i) for i in range(n_seedings))
    return np.array([rng.integers(n_tiles) for rng in rngs])
