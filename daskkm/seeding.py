"""Starting centroids, drawn from a uniform sample of the tiles.

One seeding of a restart serves every k of a sweep: both methods draw centroid after
centroid, each draw knowing only those before it, so the first k of a longer seeding are a
seeding of k. Restarts draw from streams of their own. Draws therefore depend on the seed,
the restart and the tiles' global order, and on nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

METHODS = ("k-means++", "random")

# Tiles in the sample, whatever k: a sample that grew with k would change the starts of a
# smaller k that is fitted beside it.
_SAMPLE = 1 << 15

# One stream of random numbers for each purpose: a new one must not disturb the others.
_STREAM_SAMPLE, _STREAM_START = range(2)


def sample_indices(n_tiles: int, seed: int) -> NDArray[np.int64]:
    """Draw the global indices of the tiles to seed from: all of them, if they are few.

    Parameters
    ----------
    n_tiles : int
    seed : int

    Returns
    -------
    ndarray of shape (m,), int64, ascending
        Uniform, without replacement; m is at most 32,768.
    """
    if n_tiles <= _SAMPLE:
        return np.arange(n_tiles)
    rng = np.random.default_rng([seed, _STREAM_SAMPLE])
    return np.sort(rng.choice(n_tiles, _SAMPLE, replace=False, shuffle=False))


def starts(
    sample: NDArray[Any], ks: Sequence[int], n_init: int, method: str, seed: int
) -> dict[tuple[int, int], NDArray[np.float64]]:
    """Draw the starting centroids of every (k, restart).

    Parameters
    ----------
    sample : ndarray of shape (m, d)
        Tiles in global order.
    ks : sequence of int
    n_init : int
        Restarts of each k.
    method : {"k-means++", "random"}
    seed : int

    Returns
    -------
    dict of (k, restart) to ndarray of shape (k, d), float64
    """
    draw = {"k-means++": kmeans_plusplus, "random": random_tiles}[method]
    rngs = [np.random.default_rng([seed, _STREAM_START, restart]) for restart in range(n_init)]
    drawn: dict[tuple[int, int], NDArray[np.float64]] = {}
    for restart, rows in enumerate(draw(sample, max(ks), rngs)):
        longest = sample[rows].astype(np.float64)
        drawn |= {(k, restart): longest[:k] for k in ks}
    return drawn


def random_tiles(
    sample: NDArray[Any], k: int, rngs: Sequence[np.random.Generator]
) -> Iterator[NDArray[np.intp]]:
    """Draw k tiles at random, no two alike as long as the sample has k that differ.

    Parameters
    ----------
    sample : ndarray of shape (m, d)
    k : int
    rngs : sequence of numpy.random.Generator
        One for each draw.

    Yields
    ------
    ndarray of shape (k,), intp
        Rows of the sample.
    """
    for rng in rngs:
        seen: set[bytes] = set()
        fresh: list[int] = []
        repeats: list[int] = []
        for row in rng.permutation(len(sample)):
            content = (sample[row] + 0).tobytes()  # -0.0 and 0.0 are alike
            (repeats if content in seen else fresh).append(row)
            seen.add(content)
            if len(fresh) == k:
                break
        yield np.array((fresh + repeats)[:k], np.intp)


def kmeans_plusplus(
    sample: NDArray[Any], k: int, rngs: Sequence[np.random.Generator]
) -> Iterator[NDArray[np.intp]]:
    """Draw k tiles by greedy k-means++.

    The first is drawn uniformly. With i chosen, ``2 + int(log(i + 1))`` candidates are drawn
    with probability proportional to their squared distance to the nearest of the chosen, and
    the one that would leave the least potential is kept.

    Parameters
    ----------
    sample : ndarray of shape (m, d)
        For integer tiles the distances are exact and summed in a fixed order, so the draws
        are the same on any machine.
    k : int
    rngs : sequence of numpy.random.Generator
        One for each draw.

    Yields
    ------
    ndarray of shape (k,), intp
        Rows of the sample.

    References
    ----------
    D. Arthur and S. Vassilvitskii, k-means++: the advantages of careful seeding, SODA 2007;
    the greedy variant is that of section 5.
    """
    tiles = sample.astype(_exact_type(sample))
    if sample.dtype.kind == "f":
        tiles -= tiles.mean(axis=0)  # or the distances of tiles far from 0 would cancel
    norms = np.square(tiles).sum(axis=1, dtype=np.float64)
    for rng in rngs:
        chosen = [int(rng.integers(len(tiles)))]
        nearest = _squared_distances(tiles, norms, chosen)[:, 0]
        while len(chosen) < k:
            draws = rng.random(2 + int(np.log(len(chosen) + 1)))
            cumulative = np.cumsum(nearest)
            # side="right" never lands on a tile at distance 0 while any other is left.
            candidates = np.searchsorted(cumulative, draws * cumulative[-1], side="right")
            candidates = np.minimum(candidates, len(tiles) - 1)
            left = np.minimum(_squared_distances(tiles, norms, candidates), nearest[:, None])
            best = int(np.argmin(left.sum(axis=0)))
            chosen.append(int(candidates[best]))
            nearest = left[:, best]
        yield np.array(chosen, np.intp)


def _squared_distances(
    tiles: NDArray[Any], norms: NDArray[np.float64], rows: Any
) -> NDArray[np.float64]:
    """Return the squared distance of every tile to each of the tiles in `rows`."""
    products: NDArray[np.float64] = (tiles @ tiles[rows].T).astype(np.float64)
    return np.asarray(np.maximum(norms[:, None] - 2.0 * products + norms[rows], 0.0))


def _exact_type(sample: NDArray[Any]) -> type[np.floating[Any]]:
    """Return the float type in which BLAS multiplies these tiles without any rounding.

    Integers below 2**24 (2**53) are exact in float32 (float64), and so is every partial sum,
    in any order.
    """
    if sample.dtype.kind == "f":
        return np.float64
    limits = np.iinfo(sample.dtype)
    peak = max(int(limits.max), -int(limits.min))
    return np.float32 if sample.shape[1] * peak**2 < 2**24 else np.float64
