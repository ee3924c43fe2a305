"""Starting centroids: exact draws from all tiles, whatever their blocks.

Tiles few enough to be brought together are seeded from in memory; from more, k-means++ and
k-means|| draw in passes that bring only the drawn tiles together. As in `daskkm.kmeans.lloyd`, how
a
pass is made is injected.

One seeding of a restart serves every k of a sweep: k-means++ and random draw centroid after
centroid, each draw knowing only those before it, so the first k of a longer seeding are a
seeding of k; k-means|| draws one pool of candidates for all. Restarts draw from streams of
their own. Draws therefore depend on the seed, the restart and the tiles, and on nothing else.

In a pass, tiles are drawn by a race: tile i arrives at time E_i / mass_i, with E_i from the
exponential distribution, and the first m to arrive are a sample without replacement with
probability proportional to mass (Efraimidis and Spirakis, Weighted random sampling with a
reservoir, Information Processing Letters 97, 2006). E_i is a function of the seed and the
global index i alone, and the first of the first are the first: a race has the same winners
in any blocks, and needs no total known beforehand.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from daskkm.errors import FitError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from numpy.typing import NDArray

#: Message for values whose squares cannot be summed.
TOO_LARGE = "Input X, or sample_weight, is too large to square and sum up; scale it down"

METHODS = ("k-means++", "k-means||", "random")

# Tiles that are brought together, whatever k: a sample that grew with k would change the starts
# of a smaller k that is fitted beside it.
_SAMPLE = 1 << 15

_TILES_A_CLUSTER = 8
# A larger sample, to which the best are fitted next, and how many times its tiles all must be.
_SAMPLE_BYTES = 64 << 20
_MANY_TIMES = 4

# k-means||: rounds, and candidates a round for each centroid of the largest k; above so many in a
# round, the least. At k = 1,000 (100,000 float32 tiles of 384) 800 cost half as much as 2,000, and
# leave 1.10 times as much, after the fit to the sample 1.00 times.
_ROUNDS = 5
_OVERSAMPLING, _LEAST_OVERSAMPLING = 2, 0.5
_MANY_CANDIDATES = 800

# One stream of random numbers for each purpose: a new one must not disturb the others.
_STREAM_SAMPLE, _STREAM_START, _STREAM_FIRST, _STREAM_RACE, _STREAM_FUNCTION = range(5)


class Drawn(NamedTuple):
    """Tiles that were drawn by a race."""

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
        """Draw m tiles of a block, or as many as have mass; `first` is its first index."""
        arrivals = np.full(len(tiles), np.inf)
        np.divide(exponentials, mass, out=arrivals, where=mass > 0)
        rows = np.argpartition(arrivals, m)[:m] if m < len(tiles) else np.arange(len(tiles))
        rows = rows[np.isfinite(arrivals[rows])]
        return cls(arrivals[rows], first + rows, tiles[rows]).first(m)

    def first(self, m: int) -> Self:
        """Return the first m to arrive, in order, lowest index on ties."""
        order = np.lexsort((self.indices, self.arrivals))[:m]
        return type(self)._make(each[order] for each in self)


class Trial(NamedTuple):
    """What a pass tries for one seeding."""

    chosen: NDArray[np.float64]  # (i, d): centroids that stand
    candidates: NDArray[np.float64]  # (c, d): one of which will be the next


class Pool(NamedTuple):
    """Candidates that k-means|| has drawn so far."""

    tiles: NDArray[Any]  # (m, d)
    rounds: int  # that drew them
    weights: NDArray[Any] | None = None  # (m,), of their clusters, once they are known


class Outcome(NamedTuple):
    """What a pass finds, for each candidate, if it is taken."""

    potentials: list[float]  # (c,): weighted sum of squared distances to the nearest centroid
    drawn: list[Drawn]  # (c,): candidates for the centroid after it


if TYPE_CHECKING:
    #: (trials, how many to draw, step) to their outcomes.
    Try = Callable[[Sequence[Trial], int, int], Sequence[Outcome]]
    #: (candidates so far, how many to draw, round) to those that are drawn.
    Draw = Callable[[NDArray[Any], int, int], Drawn]


def sample_indices(n_tiles: int, seed: int, size: int | None = None) -> NDArray[np.int64]:
    """Draw the global indices of tiles to bring together: all of them, if they are few.

    Parameters
    ----------
    n_tiles : int
    seed : int
    size : int, optional
        How many; 32,768 if not given.

    Returns
    -------
    ndarray of shape (m,), int64, ascending
        Uniform, without replacement.
    """
    size = size or _SAMPLE
    if n_tiles <= size:
        return np.arange(n_tiles)
    rng = np.random.default_rng([seed, _STREAM_SAMPLE])
    return np.sort(rng.choice(n_tiles, size, replace=False, shuffle=False))


def sample_size(n_tiles: int, tile_bytes: int) -> int:
    """Return how many tiles to bring together to fit starts to, from coarse to fine.

    64 MiB of tiles, of which starts are first fitted to 32,768; only these, if more would be no
    small part of all tiles.
    """
    large = _SAMPLE_BYTES // tile_bytes
    return large if large > _SAMPLE and n_tiles >= _MANY_TIMES * large else _SAMPLE


def few(n_tiles: int) -> bool:
    """Tell whether there are so few tiles that they are brought together to seed from."""
    return n_tiles <= _SAMPLE


def in_memory(n_tiles: int) -> int:
    """Return how many tiles starts are drawn from in memory."""
    return min(n_tiles, _SAMPLE)


def pool_size(k: int) -> int:
    """Return how many candidates k-means|| draws for k clusters."""
    return 1 + _ROUNDS * _draws_a_round(k)


def _draws_a_round(k: int) -> int:
    return min(_OVERSAMPLING * k, max(_MANY_CANDIDATES, int(_LEAST_OVERSAMPLING * k)))


def sample_holds(k: int) -> bool:
    """Tell whether a sample has enough tiles of each of k clusters to say where they lie."""
    return _TILES_A_CLUSTER * k <= _SAMPLE


def function_state(seed: int, k: int, restart: int) -> np.random.RandomState:
    """Return the state from which a user's function draws the start of a restart.

    It is of the type that scikit-learn gives to such functions.
    """
    words = np.random.SeedSequence([seed, _STREAM_FUNCTION, k, restart]).generate_state(4)
    return np.random.RandomState(words)


def arrivals(seed: int, place: int, step: int, first: int, n: int) -> NDArray[np.float64]:
    """Return the exponential variates of tiles `first` to `first + n - 1`.

    Parameters
    ----------
    seed, place, step : int
        Of the fit, the seeding, and the pass: each triple has a stream of its own.
    first, n : int
        Global index of the first tile, and the number of tiles.

    Returns
    -------
    ndarray of shape (n,), float64, above 0
    """
    key = np.random.SeedSequence([seed, _STREAM_RACE, place, step]).generate_state(2, np.uint64)
    # Philox is a function of a counter, which stands for four numbers in turn.
    bits = np.random.Philox(key=key, counter=first // 4).random_raw(first % 4 + n)[first % 4 :]
    # Uniform in (0, 1): the middles of 2**52 cells.
    return _minus_log(np.asarray(((bits >> np.uint64(12)) + 0.5) * 2.0**-52, np.float64))


def _minus_log(u: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return -log(u) for u in (0, 1), to 13 digits and to the same bits on every CPU.

    NumPy's own logarithm depends on the vector units it finds. With u = m 2**e and
    s = (1 - m) / (1 + m), which is at most 1/3, -log(m) = 2 (s + s**3 / 3 + s**5 / 5 + ...).
    """
    m, e = np.frexp(u)
    s = (1 - m) / (1 + m)
    square = s * s
    total = np.zeros_like(s)
    for i in range(25, 0, -2):
        total = total * square + 1 / i
    return np.asarray(2 * s * total - e * 0.6931471805599453)


def starts(
    sample: NDArray[Any],
    weights: NDArray[Any] | None,
    ks: Sequence[int],
    n_init: int,
    method: str,
    seed: int,
) -> Iterator[dict[tuple[int, int], NDArray[np.float64]]]:
    """Draw the starting centroids of every (k, restart) in memory, one restart after another.

    They do not depend on the order of the tiles, and a tile of weight w stands for w tiles.

    Parameters
    ----------
    sample : ndarray of shape (m, d)
    weights : ndarray of shape (m,), int64 or float64, optional
    ks : sequence of int
    n_init : int
        Restarts of each k.
    method : {"k-means++", "random"}
    seed : int

    Yields
    ------
    dict of (k, restart) to ndarray of shape (k, d), float64
        Of one restart; tiles again, where k is larger than the number of distinct ones.

    Raises
    ------
    FitError
        If squared distances, times the weights, may overflow.
    """
    _check_squares(sample, weights)
    tiles, masses = distinct(sample, weights)
    draw = {"k-means++": kmeans_plusplus, "random": random_tiles}[method]
    rngs = [np.random.default_rng([seed, _STREAM_START, restart]) for restart in range(n_init)]
    for restart, rows in enumerate(draw(tiles, masses, max(ks), rngs)):
        longest = tiles[rows].astype(np.float64)
        yield {(k, restart): longest[:k] for k in ks}


def _check_squares(tiles: NDArray[Any], weights: NDArray[Any] | None) -> None:
    """Raise FitError if the sum of squared distances among tiles may overflow."""
    peak = max(abs(float(tiles.min())), abs(float(tiles.max())))
    # Twice the peak apart, at most; in Python's floats, which overflow without a warning.
    highest = 4 * tiles.size * peak * peak * (1.0 if weights is None else float(weights.max()))
    if not highest < math.inf:
        raise FitError(TOO_LARGE)


def distinct(
    tiles: NDArray[Any], weights: NDArray[Any] | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the distinct tiles of positive weight, in order of content, with their weights.

    Parameters
    ----------
    tiles : ndarray of shape (n, d)
    weights : ndarray of shape (n,), int64 or float64, optional
        1 each if not given.

    Returns
    -------
    tiles : ndarray of shape (m, d)
    weights : ndarray of shape (m,), int64 or float64
        Sums of the weights of tiles that are alike.
    """
    weights = np.ones(len(tiles), np.int64) if weights is None else weights
    tiles, weights = tiles[weights > 0], weights[weights > 0]
    order = np.lexsort(tiles.T[::-1])
    ordered = tiles[order]
    new = np.ones(len(tiles), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    firsts = np.flatnonzero(new)
    return ordered[firsts], np.add.reduceat(weights[order], firsts)


def random_tiles(
    tiles: NDArray[Any], weights: NDArray[Any], k: int, rngs: Sequence[np.random.Generator]
) -> Iterator[NDArray[np.intp]]:
    """Draw k tiles at random, none twice as long as there are k.

    Parameters
    ----------
    tiles : ndarray of shape (m, d)
        Distinct.
    weights : ndarray of shape (m,)
    k : int
    rngs : sequence of numpy.random.Generator
        One for each draw.

    Yields
    ------
    ndarray of shape (k,), intp
        Rows of the tiles.
    """
    for rng in rngs:
        arrivals = rng.exponential(size=len(tiles)) / weights
        yield np.resize(np.argsort(arrivals, kind="stable"), k)


def kmeans_plusplus(
    tiles: NDArray[Any], weights: NDArray[Any], k: int, rngs: Sequence[np.random.Generator]
) -> Iterator[NDArray[np.intp]]:
    """Draw k tiles by greedy k-means++.

    The first is drawn with probability proportional to its weight. With i chosen,
    ``2 + int(log(i + 1))`` candidates are drawn with probability proportional to their weight
    times their squared distance to the nearest of the chosen, and the one that would leave the
    least potential is kept.

    Parameters
    ----------
    tiles : ndarray of shape (m, d)
        For integer tiles the distances are exact and summed in a fixed order, so the draws
        are the same on any machine.
    weights : ndarray of shape (m,), int64 or float64
    k : int
    rngs : sequence of numpy.random.Generator
        One for each draw.

    Yields
    ------
    ndarray of shape (k,), intp
        Rows of the tiles.

    References
    ----------
    D. Arthur and S. Vassilvitskii, k-means++: the advantages of careful seeding, SODA 2007;
    the greedy variant is that of section 5.
    """
    wide = tiles.astype(_exact_type(tiles))
    if tiles.dtype.kind == "f":
        wide -= wide.mean(axis=0)  # or the distances of tiles far from 0 would cancel
    norms = np.square(wide).sum(axis=1, dtype=np.float64)
    for rng in rngs:
        chosen = _draw(weights, rng.random(1)).tolist()
        nearest = _squared_distances(wide, norms, chosen)[:, 0]
        while len(chosen) < k:
            candidates = _draw(weights * nearest, rng.random(n_candidates(len(chosen))))
            left = np.minimum(_squared_distances(wide, norms, candidates), nearest[:, None])
            best = int(np.argmin((weights[:, None] * left).sum(axis=0)))
            chosen.append(int(candidates[best]))
            nearest = left[:, best]
        yield np.array(chosen, np.intp)


def n_candidates(n_chosen: int) -> int:
    """Return how many candidates greedy k-means++ tries for the centroid after so many."""
    return 2 + int(np.log(n_chosen + 1))


def _draw(mass: NDArray[Any], uniform: NDArray[np.float64]) -> NDArray[np.intp]:
    """Draw rows with probability proportional to their mass."""
    cumulative = np.cumsum(mass)
    # side="right" never lands on a tile without mass while any other is left.
    rows = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
    return np.asarray(np.minimum(rows, len(mass) - 1))


def kmeans_plusplus_passes(
    trials: Sequence[Trial], k: int, try_all: Try
) -> Generator[Sequence[Trial], None, list[NDArray[np.float64]]]:
    """Draw k tiles for each seeding by greedy k-means++, in k passes over all tiles.

    As `kmeans_plusplus`, but that the candidates of a step are drawn without replacement.
    Each pass finds out which candidate leaves the least, and draws for each of them the
    candidates that would come after it.

    Parameters
    ----------
    trials : sequence of Trial
        One a seeding: with its first centroid as the only candidate, or as the last pass left it.
    k : int
    try_all : callable
        ``try_all(trials, n_draws, step)`` makes a pass: see `Outcome`.

    Yields
    ------
    sequence of Trial
        What is to be tried next, after each pass.

    Returns
    -------
    list of ndarray of shape (k, d), float64
        One a seeding. Where tiles run out, all lying on a centroid, the last is repeated.
    """
    if k == 1:
        return [trial.candidates for trial in trials]
    for step in range(len(trials[0].chosen) + 1, k + 1):
        n_draws = n_candidates(step) if step < k else 0
        trials = [
            _taken(trial, outcome)
            for trial, outcome in zip(trials, try_all(trials, n_draws, step), strict=True)
        ]
        yield trials
    return [trial.chosen for trial in trials]


def _taken(trial: Trial, outcome: Outcome) -> Trial:
    """Take the candidate that leaves the least, and go on to what was drawn for the next."""
    best = int(np.argmin(outcome.potentials))
    taken = trial.candidates[best : best + 1]
    drawn = outcome.drawn[best].tiles.astype(np.float64)
    return Trial(np.vstack([trial.chosen, taken]), drawn if len(drawn) else taken)


def candidates(pool: Pool, k: int, draw: Draw) -> Generator[Pool, None, Pool]:
    """Draw the candidates of k-means||, in 5 passes over all tiles.

    In each round 2 k tiles are drawn without replacement, with probability proportional to
    their weight times their squared distance to the nearest candidate; of k above 400 as many as
    800, or k / 2 if that is more.

    Parameters
    ----------
    pool : Pool
        The first candidate, or those that the last pass left.
    k : int
        The largest number of clusters.
    draw : callable
        ``draw(candidates, n_draws, step)`` makes a pass: it draws tiles with probability
        proportional to their weight times their squared distance to the nearest candidate.

    Yields
    ------
    Pool
        After each pass.

    Returns
    -------
    Pool
        Of `pool_size` tiles, fewer where tiles run out.

    References
    ----------
    B. Bahmani, B. Moseley, A. Vattani, R. Kumar and S. Vassilvitskii, Scalable k-means++,
    PVLDB 5 (2012), algorithm 2; that rounds have a fixed size is a variant of its section 5.
    """
    for step in range(pool.rounds + 1, _ROUNDS + 1):
        drawn = draw(pool.tiles, _draws_a_round(k), step)
        pool = Pool(np.concatenate([pool.tiles, drawn.tiles]), step)
        yield pool
    return pool


def first_indices(n_tiles: int, n_seedings: int, seed: int) -> NDArray[np.int64]:
    """Draw the global index of the first centroid of each seeding, uniformly.

    Parameters
    ----------
    n_tiles, n_seedings, seed : int

    Returns
    -------
    ndarray of shape (n_seedings,), int64
    """
    rngs = (np.random.default_rng([seed, _STREAM_FIRST, i]) for i in range(n_seedings))
    return np.array([rng.integers(n_tiles) for rng in rngs])


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
