"""The fit of many models to one dask array, to convergence.

Every pass reads each block once for all models that are still moving.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from daskkm import lloyd, seeding
from daskkm.blocks import tile_shape
from daskkm.errors import FitError
from daskkm.model import FittedModel
from daskkm.reader import Pass, Reader

if TYPE_CHECKING:
    import dask.array as da
    from numpy.typing import ArrayLike, NDArray

    from daskkm.lloyd import Step

    Starts = dict[tuple[int, int], NDArray[np.float64]]
    Init = str | ArrayLike | Mapping[int, ArrayLike] | Callable[..., ArrayLike]


T = TypeVar("T")

# How far the candidates of k-means|| are clustered: only starts are wanted.
_POOL_ITER, _POOL_TOL = 30, 1e-3


@dataclass(frozen=True, eq=False)  # arrays have no one answer
class SweepResult:
    """What a sweep found.

    Attributes
    ----------
    models : dict of int to FittedModel
        The best model of each k, by k.
    statistics : dict of int to ndarray of shape (k, d + 2), int64 or float64
        For each of them, cluster by cluster: vector sum, count, and sum of squares: squared
        norms in int64, squared distances to the centroid in float64.
    passes : int
        Passes over the tiles, counted as they were made: the seeding's, the iterations' and
        those that relocated empty clusters.
    bytes_read : int
        Bytes of tiles that the blocks of those passes held, counted likewise.
    random_state : int
        The seed; the one that was drawn if none was given.

    Examples
    --------
    >>> import numpy as np
    >>> tiles = np.array([[0], [2], [100], [102]], np.uint8)
    >>> result = fit_sweep(tiles, [1, 2], n_init=2, random_state=0)
    >>> result.models[1].inertia_, result.statistics[1].tolist()
    (10004.0, [[204, 4, 20408]])
    >>> result.bytes_read == result.passes * tiles.nbytes
    True
    """

    models: dict[int, FittedModel]
    statistics: dict[int, NDArray[Any]]
    passes: int
    bytes_read: int
    random_state: int


def fit_sweep(
    X: Any,
    ks: Iterable[int],
    *,
    n_init: int = 16,
    init: Init = "k-means++",
    max_iter: int = 300,
    tol: float = 1e-4,
    random_state: int | None = None,
    sample_weight: ArrayLike | da.Array | None = None,
) -> SweepResult:
    """Fit k-means for every k of a sweep, all restarts at once, in shared passes.

    Runs on the active `distributed.Client` if there is one, else on dask's default scheduler.
    For integer tiles the result is the same to the last bit on either, whatever the chunks.

    Parameters
    ----------
    X : TileStore, or dask, NumPy or Zarr array of shape (n, d)
        Tiles: uint8, int8, uint16, int16, float32 or float64.
    ks : iterable of int
        Numbers of clusters.
    n_init : int, default 16
        Restarts of each k; the one of least inertia is returned (the first of equals).
    init : {"k-means++", "k-means||", "random"}, array of shape (k, d), mapping of k to such \
            arrays, or callable
        Where to start. With arrays there is one restart and `n_init` is ignored. A callable
        gives the array of a restart: ``init(X, k, random_state)``, the last a
        numpy.random.RandomState. See Notes.
    max_iter : int, default 300
        Most iterations of a model.
    tol : float, default 1e-4
        A model has converged when the squared shifts of its centroids sum to no more than
        this times the mean variance of the features; 0 runs until the clusters settle.
    random_state : int, optional
        Seed of all draws; one is drawn if none is given.
    sample_weight : array of shape (n,), optional
        Weights of the tiles, not negative; 1 each if not given. Where all are whole numbers,
        of whatever dtype, and add up to less than 2**53, a tile of weight w adds to sums exactly
        what w tiles do, and starts drawn in memory are the same.

    Returns
    -------
    SweepResult

    Raises
    ------
    FitError
        If a parameter is out of range, weights are negative, not finite or all zero, or there
        are fewer tiles than clusters.
    ValueError
        If float tiles are not finite, or too large to square.
    TypeError
        If the dtype of X is not supported.
    OverflowError
        If there are so many 16-bit pixels (2.1e9 and more), or weights so large, that sums
        would not be exact.

    Notes
    -----
    Seeding reads the tiles this often, before the first iteration (and an array of unknown size
    is read once more, to know it):

    * ``"k-means++"`` draws greedily with probability proportional to the exact squared distance.
      Up to 32,768 tiles are brought together, in one read. From more it draws in passes: one
      read of the blocks that hold the first centroids, then as many passes as the largest k
      (none if that is 1), shared by all k and restarts.
    * ``"k-means||"`` reads one block, then makes 6 passes, whatever k: 5 rounds that draw a
      pool of candidates shared by all k and restarts, and one that weights them. Every restart
      then clusters the pool in memory. For k above about 30 it is the better choice.
    * ``"random"`` draws from a uniform sample of 32,768 tiles, in one read of its blocks.

    Examples
    --------
    >>> import numpy as np
    >>> tiles = np.array([[0], [2], [100], [102]], np.uint8)
    >>> result = fit_sweep(tiles, [1, 2], n_init=2, random_state=0)
    >>> result.models[2].inertia_, sorted(result.models[2].cluster_centers_.ravel().tolist())
    (4.0, [1.0, 101.0])
    """
    passes = iter_passes(
        X,
        ks,
        n_init=n_init,
        init=init,
        max_iter=max_iter,
        tol=tol,
        random_state=random_state,
        sample_weight=sample_weight,
    )
    while True:
        try:
            next(passes)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]


def iter_passes(
    X: Any,
    ks: Iterable[int],
    *,
    n_init: int,
    init: Init,
    max_iter: int,
    tol: float,
    random_state: int | None,
    sample_weight: ArrayLike | da.Array | None = None,
) -> Generator[Pass, None, SweepResult]:
    """Make the passes of `fit_sweep` one by one; the generator returns its result.

    Parameters are those of `fit_sweep`. Nothing is read before the first `next`.

    Yields
    ------
    Pass

    Raises
    ------
    FitError, ValueError, TypeError, OverflowError
        As `fit_sweep`.
    """
    ks, n_init, max_iter, seed = _checked(ks, n_init, max_iter, tol, random_state)
    tiles = Reader(X, sample_weight)
    _check_size(tiles.shape[0], ks)
    starts = yield from _starts(tiles, ks, n_init, init, seed)
    tiles.wants_variance = tol > 0
    steps = yield from _iterations(tiles, starts, max_iter, tol)
    best = _best(steps)
    models = {
        k: FittedModel(
            cluster_centers_=step.centroids,
            counts_=step.counts,
            inertia_=step.inertia,
            n_iter_=step.iteration,
            converged_=step.converged,
            restart_=restart,
            dtype=tiles.tiles.dtype.newbyteorder("="),
            tile=tile_shape(X),
        )
        for k, (restart, step) in best.items()
    }
    statistics = {k: step.statistics for k, (_, step) in best.items()}
    return SweepResult(models, statistics, tiles.passes, tiles.bytes_read, seed)


def _iterations(
    tiles: Reader, starts: Starts, max_iter: int, tol: float
) -> Generator[Pass, None, dict[tuple[int, int], Step]]:
    """Make the passes from the starts on; return the last step of every (k, restart)."""
    names = list(starts)
    steps: dict[tuple[int, int], Step] = {}
    for done in lloyd.iterate(
        list(starts.values()),
        tiles.measure,
        tiles.farthest,
        max_iter=max_iter,
        tol=tol,
        variance=tiles.mean_variance,
    ):
        steps |= {names[i]: step for i, step in done.items()}
        yield tiles.made(steps)
    return steps


def _checked(
    ks: Iterable[int], n_init: int, max_iter: int, tol: float, random_state: int | None
) -> tuple[list[int], int, int, int]:
    """Return the settings as Python's integers, and a seed, or say what is wrong with them."""
    if not np.iterable(ks):
        msg = f"ks is {ks!r}; give a sequence of numbers of clusters, such as [{ks!r}]"
        raise FitError(msg)
    ks = list(ks)
    seed = secrets.randbits(32) if random_state is None else random_state
    numbers: dict[str, Any] = {f"ks[{i}]": k for i, k in enumerate(ks)}
    if not numbers:
        msg = "ks is empty; give at least one number of clusters"
        raise FitError(msg)
    numbers |= {"n_init": n_init, "max_iter": max_iter, "random_state": seed}
    for name, number in numbers.items():
        least = 0 if name == "random_state" else 1
        if not isinstance(number, (int, np.integer)) or isinstance(number, bool) or number < least:
            msg = f"{name} is {number!r}; give an integer of at least {least}"
            raise FitError(msg)
    if not isinstance(tol, Real) or not 0 <= tol < np.inf:
        msg = f"tol is {tol!r}; give a finite number of at least 0"
        raise FitError(msg)
    return sorted({int(k) for k in ks}), int(n_init), int(max_iter), int(seed)


def _check_size(n_tiles: int, ks: Sequence[int]) -> None:
    if n_tiles < ks[-1]:
        msg = f"there are {n_tiles} tiles, too few for k = {ks[-1]}; lower k"
        raise FitError(msg)


def _starts(
    tiles: Reader, ks: Sequence[int], n_init: int, init: Init, seed: int
) -> Generator[Pass, None, Starts]:
    """Make the passes of a seeding; return the starting centroids of every (k, restart)."""
    if isinstance(init, str):
        return (yield from _drawn_starts(tiles, ks, n_init, init, seed))
    if callable(init):
        return {
            (k, restart): _start(
                init(tiles.given, k, random_state=seeding.function_state(seed, k, restart)),
                (k, tiles.shape[1]),
            )
            for k in ks
            for restart in range(n_init)
        }
    given = init if isinstance(init, Mapping) else dict.fromkeys(ks, init)
    return {(k, 0): _start(given.get(k), (k, tiles.shape[1])) for k in ks}


def _drawn_starts(
    tiles: Reader, ks: Sequence[int], n_init: int, method: str, seed: int
) -> Generator[Pass, None, Starts]:
    """Draw the starting centroids of every (k, restart)."""
    if method not in seeding.METHODS:
        msg = f"init {method!r} is not known; use one of {', '.join(seeding.METHODS)} or an array"
        raise FitError(msg)
    if method == "k-means||":
        return (yield from _from_candidates(tiles, ks, n_init, seed))
    if method == "k-means++" and not seeding.few(tiles.shape[0]):
        firsts = tiles.draw_first(n_init, seed)
        yield tiles.made()
        passes = seeding.kmeans_plusplus_passes(firsts, max(ks), tiles.trials(seed))
        longest = yield from _made(tiles, passes)
        return {(k, restart): start[:k] for k in ks for restart, start in enumerate(longest)}
    indices = seeding.sample_indices(tiles.shape[0], seed)
    sample = tiles.take(indices)
    yield tiles.made()
    if len(sample) < ks[-1]:
        msg = (
            f"starts are drawn from {len(sample)} tiles, too few for k = {ks[-1]}; "
            "use k-means++ or k-means||"
        )
        raise FitError(msg)
    weights = tiles.take_weights(indices)
    if weights is not None and not weights.any():
        msg = (
            f"none of the {len(sample)} tiles that starts are drawn from has weight; "
            "use k-means++ or k-means||"
        )
        raise FitError(msg)
    return seeding.starts(sample, weights, ks, n_init, method, seed)


def _made(tiles: Reader, passes: Generator[None, None, T]) -> Generator[Pass, None, T]:
    """Make the passes of a generator that knows nothing of what a pass is; return its result."""
    while True:
        try:
            next(passes)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        yield tiles.made()


def _from_candidates(
    tiles: Reader, ks: Sequence[int], n_init: int, seed: int
) -> Generator[Pass, None, Starts]:
    """Draw candidates by k-means||, and cluster them with the weights of their clusters."""
    first = tiles.draw_first(1, seed)
    yield tiles.made()
    pool = yield from _made(tiles, seeding.candidates(first, max(ks), tiles.trials(seed)))
    weights = tiles.measure(pool.astype(np.float64), np.array([0, len(pool)]))[:, -2]
    yield tiles.made()
    drawn = seeding.starts(pool, weights, ks, n_init, "k-means++", seed)
    # It is small, and here already.
    here = Reader(pool, weights, scheduler="synchronous")
    *_, end = _iterations(here, drawn, _POOL_ITER, _POOL_TOL)
    return {name: step.centroids for name, step in end.steps.items()}


def _start(given: ArrayLike | None, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return starting centroids that were given, as an array of their own."""
    try:
        start = np.array(given, np.float64, order="C")
    except (TypeError, ValueError) as error:
        msg = f"the starting centroids for k = {shape[0]} are no array of numbers ({error})"
        raise FitError(msg) from error
    if start.shape != shape or not np.isfinite(start).all():
        msg = (
            f"the starting centroids for k = {shape[0]} have shape {start.shape}; "
            f"give finite numbers of shape {shape}"
        )
        raise FitError(msg)
    return start


def _best(steps: dict[tuple[int, int], Step]) -> dict[int, tuple[int, Step]]:
    """Return the restart of least inertia for each k, the first of equals, and its last step."""
    best: dict[int, tuple[int, Step]] = {}
    for (k, restart), step in steps.items():
        if k not in best or step.inertia < best[k][1].inertia:
            best[k] = restart, step
    return dict(sorted(best.items()))
